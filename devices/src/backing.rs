//! What guest memory is made of, and how husk touches it.
//!
//! RAM is husk's own memory. A file that the guest has as memory is not: it may become shorter, or be sparse
//! on a full disk, and a load or store in a page that cannot be had is a SIGBUS, which ends all VMs of the
//! process. A system call answers `EFAULT` there. So in a file's memory husk copies by system calls alone,
//! and the areas that must be loads and stores (rings, tables of descriptors) have to be in RAM.

use std::sync::Arc;

use vm_memory::{GuestMemoryBackend, GuestMemoryMmap, GuestRegionMmap};

use crate::segment::Segment;

/// What a region of guest memory is made of, or the worst of a list of pieces.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(crate) enum Backing {
    #[default]
    Ram,
    File,
}

/// `process_vm_readv(2)` and `process_vm_writev(2)`.
type Call = unsafe extern "C" fn(
    libc::pid_t,
    *const libc::iovec,
    libc::c_ulong,
    *const libc::iovec,
    libc::c_ulong,
    libc::c_ulong,
) -> isize;

impl Backing {
    /// Of a region of `memory`. RAM comes first there, and is of one memfd where it is of any.
    pub(crate) fn of(memory: &GuestMemoryMmap, region: &GuestRegionMmap) -> Backing {
        let Some(file) = region.file_offset() else { return Backing::Ram };
        let ram = memory.iter().next().and_then(|first| first.file_offset());
        match ram {
            Some(ram) if Arc::ptr_eq(ram.arc(), file.arc()) => Backing::Ram,
            _ => Backing::File,
        }
    }

    /// Copies from the start of `piece` to `data` as many bytes as both have; false when they cannot be
    /// had.
    ///
    /// # Safety
    /// The piece must be mapped and readable, and be of this backing or of RAM.
    pub(crate) unsafe fn copy_to(self, piece: Segment, data: &mut [u8]) -> bool {
        match self {
            Backing::Ram => {
                // SAFETY: the caller vouches for the memory.
                unsafe { piece.as_slice() }.copy_to(data);
                true
            }
            Backing::File => {
                let len = data.len().min(piece.len());
                let own = Segment::new(data.as_mut_ptr(), len);
                // SAFETY: `own` is of `data`, which is borrowed mutably, and is written to.
                unsafe { by_call(libc::process_vm_readv, own, piece.cut(0, len)) }
            }
        }
    }

    /// Copies `data` to the start of `piece`, as many bytes as both have; false when they cannot be had.
    ///
    /// # Safety
    /// The piece must be mapped and writable, and be of this backing or of RAM.
    pub(crate) unsafe fn copy_from(self, piece: Segment, data: &[u8]) -> bool {
        match self {
            Backing::Ram => {
                // SAFETY: the caller vouches for the memory.
                unsafe { piece.as_slice() }.copy_from(data);
                true
            }
            Backing::File => {
                let len = data.len().min(piece.len());
                // Only ever read through this pointer.
                let own = Segment::new(data.as_ptr().cast_mut(), len);
                // SAFETY: `own` is of `data`, which is borrowed, and is read.
                unsafe { by_call(libc::process_vm_writev, own, piece.cut(0, len)) }
            }
        }
    }
}

/// Copies between `own` and `piece`, which have one length, as `call` does; false when not all of it could be.
///
/// # Safety
/// `own` must be memory that `call` may read, or write, whichever it does; `piece` guest memory.
unsafe fn by_call(call: Call, own: Segment, piece: Segment) -> bool {
    if own.len() == 0 {
        return true;
    }
    // A process id is a pid_t to begin with, so the cast keeps the number.
    let pid = std::process::id() as libc::pid_t;
    // SAFETY: the caller vouches for both pieces; a Segment is an iovec. What of them is not there, the
    // kernel says.
    let done = unsafe { call(pid, (&raw const own).cast(), 1, (&raw const piece).cast(), 1, 0) };
    usize::try_from(done).is_ok_and(|done| done == own.len())
}

#[cfg(test)]
pub(crate) mod tests {
    use std::fs::File;

    use vm_memory::mmap::MmapRegionBuilder;
    use vm_memory::{FileOffset, GuestAddress, GuestMemoryRegion};

    use super::*;

    /// `memory`, and the start of `file` at guest address `start`.
    pub(crate) fn with_file(
        memory: &GuestMemoryMmap,
        file: &Arc<File>,
        start: u64,
        len: usize,
    ) -> GuestMemoryMmap {
        let region = shared(file, 0, start, len);
        memory.insert_region(Arc::new(region)).unwrap()
    }

    fn shared(file: &Arc<File>, offset: u64, start: u64, len: usize) -> GuestRegionMmap {
        let mapping = MmapRegionBuilder::new(len)
            .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
            .with_mmap_flags(libc::MAP_SHARED | libc::MAP_NORESERVE)
            .with_file_offset(FileOffset::from_arc(file.clone(), offset))
            .build()
            .unwrap();
        GuestRegionMmap::new(mapping, GuestAddress(start)).unwrap()
    }

    fn file(len: u64) -> Arc<File> {
        let file = tempfile::tempfile().unwrap();
        file.set_len(len).unwrap();
        Arc::new(file)
    }

    #[test]
    fn rams_own_file_is_ram_and_any_other_is_a_file() {
        let (ram, other) = (file(0x4000), file(0x2000));
        let regions = vec![shared(&ram, 0, 0, 0x2000), shared(&ram, 0x2000, 0x1_0000, 0x2000)];
        let memory = GuestMemoryMmap::from_regions(regions).unwrap();
        let memory = with_file(&memory, &other, 0x2_0000, 0x2000);
        let backings: Vec<_> = memory.iter().map(|region| Backing::of(&memory, region)).collect();
        assert_eq!(backings, [Backing::Ram, Backing::Ram, Backing::File]);
        let anonymous = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x2000)]).unwrap();
        let memory = with_file(&anonymous, &other, 0x2_0000, 0x2000);
        let backings: Vec<_> = memory.iter().map(|region| Backing::of(&memory, region)).collect();
        assert_eq!(backings, [Backing::Ram, Backing::File]);
    }

    #[test]
    fn a_page_that_a_file_has_is_copied_from_and_to_and_one_it_has_lost_is_an_error() {
        let file = file(0x2000);
        let region = shared(&file, 0, 0, 0x2000);
        file.set_len(0x1000).unwrap();
        let piece = |at: usize, len| Segment::new(region.as_ptr().wrapping_add(at), len);
        let mut read = *b"------";
        // SAFETY: all pieces are of the mapping, which lives to the end of the test.
        unsafe {
            assert!(Backing::File.copy_from(piece(0xffe, 2), b"abc"));
            assert!(Backing::File.copy_to(piece(0xffc, 4), &mut read));
            assert_eq!(&read, b"\0\0ab--");
            assert!(Backing::File.copy_from(piece(0x1000, 0), b"abc"));
            // The second half of it is gone, or all.
            for at in [0xffe, 0x1000, 0x1800] {
                assert!(!Backing::File.copy_to(piece(at, 4), &mut read[..4]), "{at:#x}");
                assert!(!Backing::File.copy_from(piece(at, 4), b"abcd"), "{at:#x}");
            }
        }
        assert_eq!(region.len(), 0x2000);
    }
}
