//! Giving guest memory back to the host.
//!
//! What a driver names is a number it made up: it is given back only where it lies whole in a region
//! of guest memory that is plain RAM, private and anonymous or a memfd of the VM's own. Such pages
//! read as zero afterwards and take no room until they are touched again.

use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;

use vm_memory::{
    GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, GuestRegionMmap,
    MemoryRegionAddress,
};

/// Bytes of the pages that balloons are about, whatever the guest's own are (virtio 1.3 §5.5.6).
pub(super) const PAGE: u64 = 4096;

/// What of guest memory can be given back.
#[derive(Debug, Clone)]
pub struct Plain {
    /// The guest's RAM, and nothing else that devices may reach.
    ram: GuestMemoryMmap,
    /// Guest addresses of memory that is not plain RAM: mapped from a file that others share.
    excluded: Vec<Range<u64>>,
}

/// Nothing was given back.
#[derive(Debug)]
pub(super) enum Refused {
    /// It is not (all) plain RAM.
    NotRam,
    /// The host would not.
    Host(io::Error),
}

impl Plain {
    /// All of `ram`, every region of which is private and anonymous or a memfd of the VM's own, but
    /// these guest addresses.
    pub fn new(ram: GuestMemoryMmap, excluded: Vec<Range<u64>>) -> Plain {
        Plain { ram, excluded }
    }

    /// Gives back `len` bytes at guest address `start`, both multiples of [`PAGE`].
    pub(super) fn discard(&self, start: u64, len: u64) -> Result<(), Refused> {
        let end = start.checked_add(len).ok_or(Refused::NotRam)?;
        let overlaps = |range: &Range<u64>| range.start < end && start < range.end;
        if self.excluded.iter().any(overlaps) {
            return Err(Refused::NotRam);
        }
        let (region, offset) =
            self.ram.to_region_addr(GuestAddress(start)).ok_or(Refused::NotRam)?;
        // Not across two regions: what lies beside one may be anything.
        match offset.0.checked_add(len) {
            Some(last) if last <= region.len() => {}
            _ => return Err(Refused::NotRam),
        }
        punch(region, offset, len).map_err(Refused::Host)
    }

    /// As [`Plain::discard`], for memory that is known by where it is mapped; only the whole pages in
    /// it. Returns how many bytes those were.
    pub(super) fn discard_mapped(&self, (base, len): (*const u8, usize)) -> Result<u64, Refused> {
        let at = base.addr();
        let found = self.ram.iter().find_map(|region| {
            let offset = at.checked_sub(region.as_ptr().addr())? as u64;
            (offset < region.len()).then(|| region.start_addr().0 + offset)
        });
        let start = found.ok_or(Refused::NotRam)?;
        let end = start.checked_add(len as u64).ok_or(Refused::NotRam)?;
        let (first, last) = (start.next_multiple_of(PAGE), end - end % PAGE);
        let whole = last.saturating_sub(first);
        if whole > 0 {
            self.discard(first, whole)?;
        }
        Ok(whole)
    }
}

/// The pages read as zero after this and take no room.
fn punch(region: &GuestRegionMmap, offset: MemoryRegionAddress, len: u64) -> io::Result<()> {
    let done = match region.file_offset() {
        Some(file) => {
            let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
            let at = file.start().checked_add(offset.0).ok_or(io::ErrorKind::InvalidInput)?;
            let (at, len) = (
                libc::off_t::try_from(at).map_err(io::Error::other)?,
                libc::off_t::try_from(len).map_err(io::Error::other)?,
            );
            // SAFETY: punches a hole into the memfd that is this region; no pointer is involved.
            unsafe { libc::fallocate(file.file().as_raw_fd(), mode, at, len) }
        }
        None => {
            let at = usize::try_from(offset.0).map_err(io::Error::other)?;
            let len = usize::try_from(len).map_err(io::Error::other)?;
            let start = region.as_ptr().wrapping_add(at);
            // SAFETY: the caller has checked that the range lies in the region. Guest memory is only
            // ever accessed through volatile operations that allow it to change at any time.
            unsafe { libc::madvise(start.cast(), len, libc::MADV_DONTNEED) }
        }
    };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vm_memory::Bytes;

    fn memory() -> GuestMemoryMmap {
        let ranges = [(GuestAddress(0x1000), 0x4000), (GuestAddress(0x5000), 0x4000)];
        let memory = GuestMemoryMmap::from_ranges(&ranges).unwrap();
        memory.write_slice(&[1; 0x4000], GuestAddress(0x1000)).unwrap();
        memory.write_slice(&[1; 0x4000], GuestAddress(0x5000)).unwrap();
        memory
    }

    fn plain(excluded: Option<Range<u64>>) -> (GuestMemoryMmap, Plain) {
        let memory = memory();
        (memory.clone(), Plain::new(memory, excluded.into_iter().collect()))
    }

    fn pages(memory: &GuestMemoryMmap) -> Vec<u8> {
        (1..9).map(|n| memory.read_obj(GuestAddress(n * 0x1000 + 5)).unwrap()).collect()
    }

    #[test]
    fn whole_pages_in_one_region_are_given_back_and_nothing_else() {
        let (memory, plain) = plain(Some(0x3000..0x3800));
        plain.discard(0x2000, 0x1000).unwrap();
        plain.discard(0x7000, 0x2000).unwrap();
        assert_eq!(pages(&memory), [1, 0, 1, 1, 1, 1, 0, 0]);
        for (start, len) in [
            (0, 0x1000),
            (0x4000, 0x2000),
            (0x8000, 0x2000),
            (0x9000, 0x1000),
            (0x3000, 0x1000),
            (0x2000, 0x2000),
            (u64::MAX - 0xfff, 0x1000),
            (0x1000, u64::MAX - 0xfff),
        ] {
            assert!(plain.discard(start, len).is_err(), "{start:#x} {len:#x}");
        }
        assert_eq!(pages(&memory), [1, 0, 1, 1, 1, 1, 0, 0]);
    }

    #[test]
    fn of_memory_known_by_its_mapping_only_the_whole_pages_are_given_back() {
        let (memory, plain) = plain(None);
        let base = memory.iter().next().unwrap().as_ptr().cast_const();
        let piece = |at: usize, len: usize| (base.wrapping_add(at), len);
        assert_eq!(plain.discard_mapped(piece(1, 0x1000)).unwrap(), 0);
        assert_eq!(plain.discard_mapped(piece(1, 0x2fff)).unwrap(), 0x2000);
        assert_eq!(pages(&memory), [1, 0, 0, 1, 1, 1, 1, 1]);
        let elsewhere = [0u8; 1];
        assert!(plain.discard_mapped((elsewhere.as_ptr(), 0x1000)).is_err());
    }
}
