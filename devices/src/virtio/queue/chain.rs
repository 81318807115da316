//! One descriptor chain: walked, checked, and handed to a device as host memory.
//!
//! [`walk`] copies each descriptor once and believes nothing it has not checked: after it, a chain
//! is a list of host segments that lie in guest memory, readable ones first. [`Chain`] is the
//! device's view of that list, with byte offsets that run across segments.

use virtio_bindings::bindings::virtio_ring::{
    VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE,
};
use virtio_queue::desc::split::Descriptor;
use vm_memory::{
    ByteValued, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion,
    GuestRegionMmap, MemoryRegionAddress,
};

use super::Malformed;
use super::ring::{Rings, descriptor, in_ram};
use crate::backing::Backing;
use crate::iovec::{IOV_MAX, IovecBuffer, Iovecs};
use crate::segment::{Segment, each};

/// The most segments of one chain, and entries of one indirect table.
pub const MAX_SEGMENTS: usize = IOV_MAX;

const DESCRIPTOR_LEN: u32 = size_of::<Descriptor>() as u32;

/// What [`walk`] found and put at the end of the list of segments.
#[derive(Clone, Copy, Default)]
pub(super) struct Extent {
    /// Segments that the driver filled; they come first.
    pub(super) readable: usize,
    /// Segments for the device to fill.
    pub(super) writable: usize,
    pub(super) readable_len: usize,
    pub(super) writable_len: usize,
    /// The worst of the segments.
    pub(super) backing: Backing,
}

/// Follows the chain that begins at `head` and appends its segments to `segments`.
pub(super) fn walk(
    memory: &GuestMemoryMmap,
    rings: &Rings<'_>,
    size: u16,
    indirect_allowed: bool,
    head: u16,
    segments: &mut Vec<Segment>,
) -> Result<Extent, Malformed> {
    let mut extent = Extent::default();
    let (mut table, mut entries, mut index) = (rings.desc, size, head);
    let mut inside = false;
    let mut steps = 0;
    let mut total = 0u32;
    let mut places = Places { memory, last: None, backing: Backing::Ram };
    loop {
        if index >= entries {
            return Err(Malformed::DescriptorIndex { index, entries });
        }
        // A chain that is longer than its table goes round in it.
        if steps == entries {
            return Err(Malformed::Loop);
        }
        steps += 1;
        let found = descriptor(&table, index)?;
        let flags = u32::from(found.flags());
        if flags & VRING_DESC_F_INDIRECT != 0 {
            // virtio 1.3 §2.7.5.3
            if inside || !indirect_allowed || flags & VRING_DESC_F_NEXT != 0 {
                return Err(Malformed::Indirect);
            }
            let len = found.len();
            let count = len / DESCRIPTOR_LEN;
            if len == 0 || len % DESCRIPTOR_LEN != 0 || count as usize > MAX_SEGMENTS {
                return Err(Malformed::IndirectLen(len));
            }
            table = in_ram(memory, "indirect table", found.addr().0, len as usize)?
                .ok_or(Malformed::Outside { address: found.addr().0, len })?;
            // At most MAX_SEGMENTS, so the cast keeps the number.
            (entries, index, steps, inside) = (count as u16, 0, 0, true);
            continue;
        }
        total = total.checked_add(found.len()).ok_or(Malformed::TooManyBytes)?;
        let writable = flags & VRING_DESC_F_WRITE != 0;
        if !writable && extent.writable_len + extent.writable > 0 {
            return Err(Malformed::ReadableAfterWritable);
        }
        let before = segments.len();
        places.append(&found, segments)?;
        let added = segments.len() - before;
        extent.backing = places.backing;
        if extent.readable + extent.writable + added > MAX_SEGMENTS {
            return Err(Malformed::TooManySegments);
        }
        if writable {
            extent.writable += added;
            extent.writable_len += found.len() as usize;
        } else {
            extent.readable += added;
            extent.readable_len += found.len() as usize;
        }
        if flags & VRING_DESC_F_NEXT == 0 {
            return Ok(extent);
        }
        index = found.next();
    }
}

/// Where buffers are in this process' memory.
struct Places<'m> {
    memory: &'m GuestMemoryMmap,
    /// The region of the last one, where the next is likely to be, too.
    last: Option<&'m GuestRegionMmap>,
    /// The worst of all so far.
    backing: Backing,
}

impl Places<'_> {
    /// One descriptor is one segment, or two where guest memory is made of adjoining regions. An empty
    /// one is none, whatever its address.
    fn append(&mut self, found: &Descriptor, segments: &mut Vec<Segment>) -> Result<(), Malformed> {
        let (address, len) = (found.addr(), found.len() as usize);
        if let Some(piece) = self.last.and_then(|region| within(region, address, len)) {
            segments.push(piece);
            return Ok(());
        }
        let outside = Malformed::Outside { address: address.0, len: found.len() };
        for piece in self.memory.get_slices(address, len) {
            let Ok(piece) = piece else { return Err(outside) };
            segments.push(Segment::new(piece.ptr_guard_mut().as_ptr(), piece.len()));
        }
        self.last = self.memory.find_region(address);
        // Files lie above RAM: what reaches into one ends in one.
        let end = GuestAddress(address.0.saturating_add(len.saturating_sub(1) as u64));
        let last = self.last.filter(|region| region.last_addr() >= end);
        if let Some(region) = last.or_else(|| self.memory.find_region(end)) {
            self.backing = self.backing.max(Backing::of(self.memory, region));
        }
        Ok(())
    }
}

/// The `len` bytes at `address`, if there are any and all are in `region`.
fn within(region: &GuestRegionMmap, address: GuestAddress, len: usize) -> Option<Segment> {
    let offset = address.0.checked_sub(region.start_addr().0)?;
    let rest = region.len().checked_sub(offset)?;
    if len == 0 || len as u64 > rest {
        return None;
    }
    let base = region.get_host_address(MemoryRegionAddress(offset)).ok()?;
    Some(Segment::new(base, len))
}

/// Bytes were asked for that the chain does not have, or that are in a page of a file that cannot be had.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the chain is shorter than that, or in memory that cannot be had")]
pub struct OutOfChain;

/// One request of the driver's: what it filled, and what it wants filled.
pub struct Chain<'a> {
    head: u16,
    readable: &'a [Segment],
    writable: &'a [Segment],
    extent: Extent,
    scratch: &'a mut IovecBuffer,
}

impl<'a> Chain<'a> {
    /// # Safety
    /// The segments must lie in memory that stays mapped for `'a`, and `extent` describe them.
    pub(super) unsafe fn new(
        head: u16,
        segments: &'a [Segment],
        extent: Extent,
        scratch: &'a mut IovecBuffer,
    ) -> Chain<'a> {
        let (readable, writable) = segments.split_at_checked(extent.readable).unwrap_or_default();
        Chain { head, readable, writable, extent, scratch }
    }

    /// The chain's name in the used ring.
    pub fn head(&self) -> u16 {
        self.head
    }

    /// Bytes the driver filled.
    pub fn readable_len(&self) -> usize {
        self.extent.readable_len
    }

    /// Bytes the device may fill.
    pub fn writable_len(&self) -> usize {
        self.extent.writable_len
    }

    /// Copies readable bytes at `offset` to `data`.
    ///
    /// # Errors
    /// When the readable part ends before, or cannot be had; then nothing useful is in `data`.
    pub fn copy_to(&self, offset: usize, data: &mut [u8]) -> Result<(), OutOfChain> {
        // SAFETY: Chain::new's caller vouches for the memory, for 'a.
        unsafe { copy_out(self.readable, self.extent.backing, offset, data) }
    }

    /// A copy of the object at readable byte `offset`.
    ///
    /// # Errors
    /// When the readable part ends before the object does, or cannot be had.
    pub fn read_obj<T: ByteValued + Default>(&self, offset: usize) -> Result<T, OutOfChain> {
        let mut object = T::default();
        self.copy_to(offset, object.as_mut_slice())?;
        Ok(object)
    }

    /// Copies `data` to the writable bytes at `offset`.
    ///
    /// # Errors
    /// When the writable part ends before, or cannot be had.
    pub fn copy_from(&self, offset: usize, data: &[u8]) -> Result<(), OutOfChain> {
        // SAFETY: Chain::new's caller vouches for the memory, for 'a.
        unsafe { copy_into(self.writable, self.extent.backing, offset, data) }
    }

    /// Where the pieces of the writable part are mapped, and their lengths in bytes.
    pub fn writable_pieces(&self) -> impl Iterator<Item = (*const u8, usize)> {
        self.writable.iter().map(|piece| (piece.base(), piece.len()))
    }

    /// The readable bytes `offset..offset + len`, for a system call that reads them.
    ///
    /// # Errors
    /// When the readable part ends before.
    pub fn readable_iovecs(&mut self, offset: usize, len: usize) -> Result<Iovecs<'_>, OutOfChain> {
        // SAFETY: Chain::new's caller vouches for the memory, for 'a, which outlives this borrow.
        unsafe { Iovecs::slice(self.readable, self.extent.backing, offset, len, self.scratch) }
            .ok_or(OutOfChain)
    }

    /// The writable bytes `offset..offset + len`, for a system call that fills them.
    ///
    /// # Errors
    /// When the writable part ends before.
    pub fn writable_iovecs(&mut self, offset: usize, len: usize) -> Result<Iovecs<'_>, OutOfChain> {
        // SAFETY: Chain::new's caller vouches for the memory, for 'a, which outlives this borrow.
        unsafe { Iovecs::slice(self.writable, self.extent.backing, offset, len, self.scratch) }
            .ok_or(OutOfChain)
    }

    /// The writable byte at `offset`, for who answers later.
    pub(crate) fn place(&self, offset: usize) -> Option<Place> {
        let (mut place, backing) = (None, self.extent.backing);
        let _ = each(self.writable, offset, 1, |at| place = Some(Place { at, backing }));
        place
    }

    /// The readable bytes `offset..offset + len` as a list that outlives this borrow: who uses it
    /// vouches for the memory.
    ///
    /// # Errors
    /// When the readable part ends before.
    pub(crate) fn list_readable(
        &self,
        offset: usize,
        len: usize,
        list: &mut IovecBuffer,
    ) -> Result<(), OutOfChain> {
        list.assign(self.readable, self.extent.backing, offset, len).then_some(()).ok_or(OutOfChain)
    }

    /// The writable bytes `offset..offset + len` as a list that outlives this borrow: who uses it
    /// vouches for the memory.
    ///
    /// # Errors
    /// When the writable part ends before.
    pub(crate) fn list_writable(
        &self,
        offset: usize,
        len: usize,
        list: &mut IovecBuffer,
    ) -> Result<(), OutOfChain> {
        list.assign(self.writable, self.extent.backing, offset, len).then_some(()).ok_or(OutOfChain)
    }
}

/// Where a byte goes, for who answers later.
#[derive(Clone, Copy)]
pub(crate) struct Place {
    at: Segment,
    backing: Backing,
}

impl Place {
    /// Nowhere.
    pub(crate) const NONE: Place = Place { at: Segment::EMPTY, backing: Backing::Ram };

    /// Puts it there; false when the memory cannot be had.
    ///
    /// # Safety
    /// The memory of the chain it was made of must still be mapped.
    pub(crate) unsafe fn put(&self, byte: u8) -> bool {
        // SAFETY: the caller vouches for the memory.
        unsafe { self.backing.copy_from(self.at, &[byte]) }
    }
}

/// Copies the bytes at `offset` of `segments`, of which `backing` is the worst, to `data`.
///
/// # Safety
/// The memory of every segment must be mapped and readable.
pub(super) unsafe fn copy_out(
    segments: &[Segment],
    backing: Backing,
    offset: usize,
    data: &mut [u8],
) -> Result<(), OutOfChain> {
    let (mut done, mut had) = (0, true);
    let whole = each(segments, offset, data.len(), |piece| {
        if let Some(rest) = data.get_mut(done..) {
            // SAFETY: the caller vouches for the memory.
            had &= unsafe { backing.copy_to(piece, rest) };
            done += piece.len();
        }
    });
    (whole && had).then_some(()).ok_or(OutOfChain)
}

/// Copies `data` to byte `offset` of `segments`, of which `backing` is the worst.
///
/// # Safety
/// The memory of every segment must be mapped and writable.
pub(super) unsafe fn copy_into(
    segments: &[Segment],
    backing: Backing,
    offset: usize,
    data: &[u8],
) -> Result<(), OutOfChain> {
    let (mut rest, mut had) = (data, true);
    let whole = each(segments, offset, data.len(), |piece| {
        if let Some((now, later)) = rest.split_at_checked(piece.len()) {
            // SAFETY: the caller vouches for the memory.
            had &= unsafe { backing.copy_from(piece, now) };
            rest = later;
        }
    });
    (whole && had).then_some(()).ok_or(OutOfChain)
}
