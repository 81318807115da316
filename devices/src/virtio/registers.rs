//! A device's registers as its driver reads them: one page of memory.
//!
//! Whatever may be read stands in the page at its register's place (virtio 1.3 §4.2.2), always as it is
//! now. So the machine floor can give the guest the page itself to read, and reading a register, above all
//! the cause of an interrupt, leaves the guest no more than reading its RAM does; where it cannot, the
//! transport answers from the same page. Only writes are for the transport. The guest must never be
//! able to write to the page.

use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicU32;

use virtio_bindings::bindings::virtio_mmio as reg;
use vm_memory::{
    Bytes, GuestAddress, GuestRegionMmap, MemoryRegionAddress, MmapRegion, VolatileMemory,
};

/// Bytes of address space, and of memory, that a device's registers take.
pub const REGISTERS_LEN: u64 = 0x1000;

/// Where the device's config space begins.
const CONFIG: u64 = reg::VIRTIO_MMIO_CONFIG as u64;

/// The page of one device. A clone is the same page.
#[derive(Clone)]
pub struct Registers {
    /// The pages of all devices of a machine.
    pages: Arc<GuestRegionMmap>,
    /// Where in them this one begins.
    base: u64,
}

impl Registers {
    /// Pages for `count` devices, one after the other, which a guest is to find from `at` on.
    ///
    /// # Errors
    /// When the host has no memory, or `at` is too near to the end of all addresses.
    pub fn for_devices(count: usize, at: GuestAddress) -> io::Result<Vec<Registers>> {
        let len = REGISTERS_LEN as usize * count.max(1);
        let pages = MmapRegion::new(len).map_err(io::Error::other)?;
        let pages = GuestRegionMmap::new(pages, at).ok_or(io::ErrorKind::InvalidInput)?;
        let pages = Arc::new(pages);
        let bases = (0..).step_by(REGISTERS_LEN as usize).take(count);
        Ok(bases.map(|base| Registers { pages: pages.clone(), base }).collect())
    }

    /// One page that no guest is given.
    ///
    /// # Errors
    /// When the host has no memory.
    pub fn alone() -> io::Result<Registers> {
        let mut one = Registers::for_devices(1, GuestAddress(0))?;
        one.pop().ok_or_else(|| io::ErrorKind::OutOfMemory.into())
    }

    /// The pages of all devices this one was made with.
    pub fn pages(&self) -> &Arc<GuestRegionMmap> {
        &self.pages
    }

    /// What a driver reads at `offset`, at any width and alignment; zeroes where nothing is, and past
    /// the end.
    pub(super) fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        let room = REGISTERS_LEN.saturating_sub(offset);
        let len = usize::try_from(room).unwrap_or(usize::MAX).min(data.len());
        let at = MemoryRegionAddress(self.base.saturating_add(offset));
        if let Some(data) = data.get_mut(..len) {
            // Cannot fail: all of it is in the page.
            let _ = self.pages.read_slice(data, at);
        }
    }

    /// The device status.
    pub(super) fn status(&self) -> &AtomicU32 {
        self.word(reg::VIRTIO_MMIO_STATUS)
    }

    /// The causes of interrupt.
    pub(super) fn causes(&self) -> &AtomicU32 {
        self.word(reg::VIRTIO_MMIO_INTERRUPT_STATUS)
    }

    /// The config space's generation.
    pub(super) fn generation(&self) -> &AtomicU32 {
        self.word(reg::VIRTIO_MMIO_CONFIG_GENERATION)
    }

    /// The 32-bit word at the register `offset`, which others read while it changes.
    #[expect(clippy::expect_used, reason = "an invariant of constants")]
    pub(super) fn word(&self, offset: u32) -> &AtomicU32 {
        let at = self.base as usize + offset as usize;
        self.pages.get_atomic_ref(at).expect("offsets are of the specification: words in the page")
    }

    /// The config space has `bytes` from `at` on now. A driver that reads meanwhile may see a field half
    /// old; the notification of the change, which follows, has it read again.
    pub(super) fn set_config(&self, at: u64, bytes: &[u8]) {
        let end = at.saturating_add(bytes.len() as u64);
        debug_assert!(end <= REGISTERS_LEN - CONFIG, "a config space of {end} bytes");
        if end <= REGISTERS_LEN - CONFIG {
            let at = MemoryRegionAddress(self.base + CONFIG + at);
            // Cannot fail: all of it is in the page.
            let _ = self.pages.write_slice(bytes, at);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use super::*;

    #[test]
    fn a_page_is_read_at_every_width_and_ends_where_the_next_begins() {
        let both = Registers::for_devices(2, GuestAddress(0xd000_0000)).unwrap();
        assert!(Arc::ptr_eq(both[0].pages(), both[1].pages()));
        both[0].word(8).store(0x0403_0201, Ordering::Release);
        both[1].word(0).store(u32::MAX, Ordering::Release);
        both[0].set_config(2, &[7, 8]);
        let read = |offset, len| {
            let mut data = vec![0xaa; len];
            both[0].read(offset, &mut data);
            data
        };
        assert_eq!((read(8, 4), read(10, 1)), (vec![1, 2, 3, 4], vec![3]));
        assert_eq!(read(7, 8), [0, 1, 2, 3, 4, 0, 0, 0]);
        assert_eq!(read(0x101, 4), [0, 7, 8, 0]);
        assert_eq!(
            (read(0xffe, 4), read(0x1000, 2), read(u64::MAX, 2)),
            (vec![0; 4], vec![0; 2], vec![0; 2])
        );
    }
}
