//! Guest memory: mapped once, split around the MMIO hole, empty until the guest touches it.
//!
//! ```text
//! region 0   0 ‥ min(size, 3 GiB)             region 1   4 GiB ‥ the rest
//! ```

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd};
use std::sync::Arc;

use vm_memory::mmap::{MmapRegionBuilder, MmapRegionError};
use vm_memory::{
    FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion,
    GuestRegionMmap, MmapRegion,
};

use crate::config::{MemoryConfig, Size};
use crate::x86_64::layout;

const HUGE_PAGE: usize = 2 << 20;

/// Memory that cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// More than there is.
    #[error("--memory {wanted}: this host has {present} of memory and swap")]
    MoreThanHost {
        /// What was asked for.
        wanted: Size,
        /// What the host has.
        present: Size,
    },
    /// Not enough free huge pages.
    #[error(
        "--memory {wanted},hugepages: the host has {free} free 2 MiB huge pages, {needed} are \
         needed; reserve them with `sysctl vm.nr_hugepages={needed}`"
    )]
    HugePages {
        /// What was asked for.
        wanted: Size,
        /// Free pages.
        free: u64,
        /// Needed pages.
        needed: u64,
    },
    /// The host refused.
    #[error("guest memory of {wanted}: {source}")]
    Map {
        /// What was asked for.
        wanted: Size,
        /// Its answer.
        source: io::Error,
    },
}

/// Maps guest memory as `config` says.
pub fn allocate(config: &MemoryConfig) -> Result<GuestMemoryMmap, MemoryError> {
    let wanted = config.size;
    let failed = |source| MemoryError::Map { wanted, source };
    check_host(config)?;

    let low = wanted.0.min(layout::MMIO_HOLE);
    let parts = [(0, low), (layout::MMIO_HOLE_END, wanted.0 - low)];
    let memfd = match config.shared {
        true => Some(Arc::new(memfd(wanted.0, config.hugepages).map_err(failed)?)),
        false => None,
    };
    let mut regions = Vec::with_capacity(parts.len());
    let mut offset = 0;
    for (base, len) in parts.into_iter().filter(|(_, len)| *len > 0) {
        let size = usize::try_from(len).map_err(|e| failed(io::Error::other(e)))?;
        let file = memfd.as_ref().map(|f| FileOffset::from_arc(f.clone(), offset));
        let mapping = map(size, file, config.hugepages).map_err(|e| match e {
            MmapRegionError::Mmap(_) if config.hugepages => too_few_huge_pages(wanted),
            other => failed(io::Error::other(other)),
        })?;
        // The addresses are constants below 2^44; they cannot wrap.
        let region = GuestRegionMmap::new(mapping, GuestAddress(base))
            .ok_or_else(|| failed(io::ErrorKind::InvalidInput.into()))?;
        regions.push(region);
        offset += len;
    }
    GuestMemoryMmap::from_regions(regions).map_err(|e| failed(io::Error::other(e)))
}

/// One region, aligned to 2 MiB where the host has the room, so that huge pages can back it and KVM
/// map it by them.
fn map(size: usize, file: Option<FileOffset>, huge: bool) -> Result<MmapRegion, MmapRegionError> {
    // Huge pages are set aside for us now: one that is missing later would be a SIGBUS.
    let mut flags = if huge { 0 } else { libc::MAP_NORESERVE };
    flags |=
        if file.is_some() { libc::MAP_SHARED } else { libc::MAP_PRIVATE | libc::MAP_ANONYMOUS };
    if huge && file.is_none() {
        flags |= libc::MAP_HUGETLB | libc::MAP_HUGE_2MB;
    }
    let mut builder = MmapRegionBuilder::new(size)
        .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
        .with_mmap_flags(flags);
    if let Some(file) = file {
        builder = builder.with_file_offset(file);
    }
    let _hole = AlignedHole::make(size);
    builder.build()
}

/// A file as a guest has it: `size` bytes from its start on, aligned to 2 MiB. With `private` what is
/// written there stays in this mapping, and unwritten pages are the page cache's.
///
/// # Errors
/// The host's.
pub fn map_file(file: &Arc<File>, size: u64, private: bool) -> io::Result<MmapRegion> {
    let size = usize::try_from(size).map_err(io::Error::other)?;
    let sharing = if private { libc::MAP_PRIVATE } else { libc::MAP_SHARED };
    let builder = MmapRegionBuilder::new(size)
        .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
        .with_mmap_flags(sharing | libc::MAP_NORESERVE)
        .with_file_offset(FileOffset::from_arc(file.clone(), 0));
    let _hole = AlignedHole::make(size);
    builder.build().map_err(io::Error::other)
}

/// A hole of the right size at the right alignment, which the next mapping falls into.
///
/// The kernel places a mapping at the top of the highest gap that fits. Two mappings around the
/// place we want make that gap; both are gone when this is dropped. If another thread takes the gap
/// first, the mapping lands elsewhere, and only its alignment is lost.
struct AlignedHole {
    guards: [(*mut libc::c_void, usize); 2],
}

impl AlignedHole {
    fn make(size: usize) -> Option<Self> {
        let len = size.checked_next_multiple_of(HUGE_PAGE)?.checked_add(2 * HUGE_PAGE)?;
        // SAFETY: a new mapping without access, placed by the kernel.
        let start = unsafe {
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
            libc::mmap(std::ptr::null_mut(), len, libc::PROT_NONE, flags, -1, 0)
        };
        if start == libc::MAP_FAILED {
            return None;
        }
        let size = size.next_multiple_of(4096);
        // At least a page in front, so that both guards exist.
        let before = start.wrapping_byte_add(1).align_offset(HUGE_PAGE) + 1;
        let hole = start.wrapping_byte_add(before);
        let after = hole.wrapping_byte_add(size);
        // SAFETY: the range lies inside the mapping made above, which nobody else knows.
        unsafe { libc::munmap(hole, size) };
        let rest = len - before - size;
        Some(Self { guards: [(start, before), (after, rest)] })
    }
}

impl Drop for AlignedHole {
    fn drop(&mut self) {
        for (start, len) in self.guards {
            // SAFETY: each guard is what `make` left of its own mapping.
            unsafe { libc::munmap(start, len) };
        }
    }
}

fn memfd(size: u64, huge: bool) -> io::Result<File> {
    let flags = libc::MFD_CLOEXEC | if huge { libc::MFD_HUGETLB | libc::MFD_HUGE_2MB } else { 0 };
    // SAFETY: the name is a NUL-terminated constant.
    let fd = unsafe { libc::memfd_create(c"husk-guest-memory".as_ptr(), flags) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: memfd_create gave us this descriptor just now.
    let file = unsafe { File::from_raw_fd(fd) };
    file.set_len(size)?;
    Ok(file)
}

/// Memory is mapped without reserving it, so that too much would only be noticed by the OOM killer.
fn check_host(config: &MemoryConfig) -> Result<(), MemoryError> {
    let wanted = config.size;
    // Huge pages are counted when they are mapped.
    if config.hugepages {
        return Ok(());
    }
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let field = |name: &str| -> Option<u64> {
        let line = text.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(':'))?;
        line.split_whitespace().next()?.parse().ok()
    };
    if let Some(total) = field("MemTotal") {
        let present = Size((total + field("SwapTotal").unwrap_or(0)) << 10);
        if wanted > present {
            return Err(MemoryError::MoreThanHost { wanted, present });
        }
    }
    Ok(())
}

/// Says how many there are. The count may be of another moment than the refusal.
fn too_few_huge_pages(wanted: Size) -> MemoryError {
    let count = |name: &str| -> u64 {
        let path = format!("/sys/kernel/mm/hugepages/hugepages-2048kB/{name}");
        std::fs::read_to_string(path).ok().and_then(|n| n.trim().parse().ok()).unwrap_or(0)
    };
    let free = count("free_hugepages").saturating_sub(count("resv_hugepages"));
    MemoryError::HugePages { wanted, free, needed: wanted.0 / HUGE_PAGE as u64 }
}

/// Empties all guest memory: it reads as it was first mapped, zero or, where a kernel is shared, that
/// kernel, and takes no room of its own. For a reboot in place.
pub fn discard(memory: &GuestMemoryMmap) -> io::Result<()> {
    for region in memory.iter() {
        let len = usize::try_from(region.len()).map_err(io::Error::other)?;
        let done = match region.file_offset() {
            Some(file) => {
                let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
                let start = libc::off_t::try_from(file.start()).map_err(io::Error::other)?;
                // SAFETY: punches a hole into a memfd of our own; no pointer is involved.
                unsafe { libc::fallocate(file.file().as_raw_fd(), mode, start, len as libc::off_t) }
            }
            // SAFETY: the range is a mapping of guest memory, which is only ever accessed through
            // volatile operations that allow it to change at any time.
            None => unsafe { libc::madvise(region.as_ptr().cast(), len, libc::MADV_DONTNEED) },
        };
        if done != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// The address just past the RAM below the MMIO hole.
pub fn low_end(memory: &GuestMemoryMmap) -> GuestAddress {
    let low = memory.iter().next().map_or(0, |region| region.len());
    GuestAddress(low)
}

#[cfg(test)]
mod tests {
    use super::*;
    use vm_memory::Bytes;

    fn config(size: u64, shared: bool) -> MemoryConfig {
        MemoryConfig { size: Size(size), shared, hugepages: false }
    }

    #[test]
    fn memory_below_3_gib_is_one_region_and_more_continues_at_4_gib() {
        let memory = allocate(&config(128 << 20, false)).unwrap();
        assert_eq!((memory.num_regions(), low_end(&memory).0), (1, 128 << 20));
        let memory = allocate(&config(5 << 30, false)).unwrap();
        assert_eq!((memory.num_regions(), low_end(&memory).0), (2, 3 << 30));
        let above = memory.find_region(GuestAddress(4 << 30)).unwrap();
        assert_eq!(above.len(), 2 << 30);
        assert!(memory.find_region(GuestAddress(layout::MMIO_HOLE)).is_none());
    }

    #[test]
    fn regions_are_aligned_so_that_huge_pages_fit() {
        let memory = allocate(&config((128 << 20) + 4096, false)).unwrap();
        for region in memory.iter() {
            assert_eq!(region.as_ptr() as usize % HUGE_PAGE, 0);
        }
    }

    #[test]
    fn discarded_memory_reads_as_zero_whatever_backs_it() {
        for shared in [false, true] {
            let memory = allocate(&config(64 << 20, shared)).unwrap();
            memory.write_obj(7u64, GuestAddress(0x1234)).unwrap();
            discard(&memory).unwrap();
            assert_eq!(memory.read_obj::<u64>(GuestAddress(0x1234)).unwrap(), 0);
        }
    }

    #[test]
    fn more_memory_than_the_host_has_is_refused_by_name() {
        let error = allocate(&config(1 << 44, false)).unwrap_err();
        assert!(matches!(error, MemoryError::MoreThanHost { .. }), "{error}");
    }
}
