//! The three areas of a split virtqueue, as host memory (virtio 1.3 §2.7).
//!
//! ```text
//! descriptor table   16 bytes × size      addr u64 | len u32 | flags u16 | next u16
//! available ring     flags u16 | idx u16 | ring u16 × size | used_event u16
//! used ring          flags u16 | idx u16 | (id u32 | len u32) × size | avail_event u16
//! ```
//!
//! [`Rings::resolve`] looks the areas up once a round; after that every access is a bounds-checked
//! volatile or atomic one. The orderings are those of virtio 1.3 §2.7.13 and are said where used.

use std::sync::atomic::Ordering;

use virtio_queue::desc::split::Descriptor;
use vm_memory::{
    Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion,
    MemoryRegionAddress, VolatileSlice,
};

use super::{Malformed, QueueState};
use crate::backing::Backing;

/// `VIRTQ_AVAIL_F_NO_INTERRUPT` and `VIRTQ_USED_F_NO_NOTIFY`, virtio 1.3 §2.7.6, §2.7.8.
const NO_NOTIFICATION: u16 = 1;

pub(super) struct Rings<'m> {
    pub(super) desc: VolatileSlice<'m>,
    avail: VolatileSlice<'m>,
    used: VolatileSlice<'m>,
    size: u16,
}

/// The `len` bytes of guest memory at `address`, in one piece.
fn area<'m>(
    memory: &'m GuestMemoryMmap,
    what: &'static str,
    address: u64,
    align: u64,
    len: usize,
) -> Result<VolatileSlice<'m>, Malformed> {
    if !address.is_multiple_of(align) {
        return Err(Malformed::Misaligned { what, address, align });
    }
    in_ram(memory, what, address, len)?.ok_or(Malformed::AreaOutside { what, address, len })
}

/// The `len` bytes at `address` for loads and stores of our own; `None` when no region has all of them.
pub(super) fn in_ram<'m>(
    memory: &'m GuestMemoryMmap,
    what: &'static str,
    address: u64,
    len: usize,
) -> Result<Option<VolatileSlice<'m>>, Malformed> {
    let Some(region) = memory.find_region(GuestAddress(address)) else { return Ok(None) };
    if Backing::of(memory, region) == Backing::File {
        return Err(Malformed::InFile { what, address });
    }
    let offset = address.saturating_sub(region.start_addr().0);
    Ok(region.get_slice(MemoryRegionAddress(offset), len).ok())
}

impl<'m> Rings<'m> {
    /// Finds the areas in guest memory: each aligned as virtio 1.3 §2.7 says, and within one
    /// region of RAM.
    pub(super) fn resolve(
        memory: &'m GuestMemoryMmap,
        state: &QueueState,
    ) -> Result<Rings<'m>, Malformed> {
        let size = state.size;
        if !size.is_power_of_two() || size > QueueState::MAX_SIZE {
            return Err(Malformed::Size(size));
        }
        let n = usize::from(size);
        Ok(Rings {
            desc: area(memory, "descriptor table", state.desc, 16, 16 * n)?,
            avail: area(memory, "available ring", state.avail, 2, 6 + 2 * n)?,
            used: area(memory, "used ring", state.used, 4, 6 + 8 * n)?,
            size,
        })
    }

    fn slot(&self, index: u16) -> usize {
        usize::from(index & (self.size - 1))
    }

    fn load(&self, area: &VolatileSlice<'m>, at: usize, order: Ordering) -> Result<u16, Malformed> {
        area.load::<u16>(at, order).map(u16::from_le).map_err(|_| Malformed::Host)
    }

    fn store(&self, at: usize, value: u16, order: Ordering) -> Result<(), Malformed> {
        self.used.store(value.to_le(), at, order).map_err(|_| Malformed::Host)
    }

    /// `avail.idx`. Acquire: what the driver wrote before it moved the index is seen after this.
    pub(super) fn avail_idx(&self) -> Result<u16, Malformed> {
        self.load(&self.avail, 2, Ordering::Acquire)
    }

    /// The head of the chain at free-running position `index`.
    pub(super) fn avail_entry(&self, index: u16) -> Result<u16, Malformed> {
        self.load(&self.avail, 4 + 2 * self.slot(index), Ordering::Relaxed)
    }

    /// Whether the driver asked for no interrupts through `avail.flags`.
    pub(super) fn interrupts_off(&self) -> Result<bool, Malformed> {
        Ok(self.load(&self.avail, 0, Ordering::Relaxed)? & NO_NOTIFICATION != 0)
    }

    /// `used_event`: the used index after which the driver wants an interrupt (§2.7.7.1).
    pub(super) fn used_event(&self) -> Result<u16, Malformed> {
        self.load(&self.avail, 4 + 2 * usize::from(self.size), Ordering::Relaxed)
    }

    /// Asks the driver for doorbells, or for none, through `used.flags`.
    pub(super) fn set_doorbells(&self, wanted: bool) -> Result<(), Malformed> {
        self.store(0, if wanted { 0 } else { NO_NOTIFICATION }, Ordering::Relaxed)
    }

    /// `avail_event`: the available index after which we want a doorbell (§2.7.10).
    pub(super) fn set_avail_event(&self, index: u16) -> Result<(), Malformed> {
        self.store(4 + 8 * usize::from(self.size), index, Ordering::Relaxed)
    }

    /// Writes the used element at free-running position `index`; not seen before `publish`.
    pub(super) fn put_used(&self, index: u16, head: u16, len: u32) -> Result<(), Malformed> {
        let element = (u64::from(head) | u64::from(len) << 32).to_le();
        self.used.write_obj(element, 4 + 8 * self.slot(index)).map_err(|_| Malformed::Host)
    }

    /// `used.idx`, as somebody else has left it there. Acquire: with it its elements.
    pub(super) fn used_idx(&self) -> Result<u16, Malformed> {
        self.load(&self.used, 2, Ordering::Acquire)
    }

    /// Where the areas are in this process' memory: descriptor table, available and used ring.
    pub(super) fn addresses(&self) -> [u64; 3] {
        [&self.desc, &self.avail, &self.used].map(|area| area.ptr_guard().as_ptr() as u64)
    }

    /// Moves `used.idx` to `index`. Release: the elements and the buffers are seen before it.
    pub(super) fn publish(&self, index: u16) -> Result<(), Malformed> {
        self.store(2, index, Ordering::Release)
    }
}

/// Copies descriptor `index` of `table` out of guest memory, once.
pub(super) fn descriptor(table: &VolatileSlice<'_>, index: u16) -> Result<Descriptor, Malformed> {
    table.read_obj(16 * usize::from(index)).map_err(|_| Malformed::Host)
}
