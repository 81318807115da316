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

use crate::size::Size;
use crate::x86_64::layout;

const HUGE_PAGE: usize = 2 << 20;

/// What guest memory is to be made of.
#[derive(Debug, Clone, Copy)]
pub struct Spec {
    /// How much, a multiple of a page of its kind.
    pub size: Size,
    /// Backed by a memfd that other processes can map.
    pub shared: bool,
    /// Taken from the host's pool of 2 MiB huge pages.
    pub hugepages: bool,
}

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
        r#source: io::Error,
    },
}

/// Maps guest memory as `spec` says.
///
/// # Errors
/// When the host has not that much, or refuses.
pub fn allocate(spec: Spec) -> Result<GuestMemoryMmap, MemoryError> {
    check_host(spec)?;
    map_regions(spec)
}

/// Where `size` bytes of guest memory lie: below the MMIO hole, and what does not fit above it.
fn parts(size: u64) -> [(u64, u64); 2] {
    let low = size.min(layout::MMIO_HOLE);
    [(0, low), (layout::MMIO_HOLE_END, size - low)]
}

/// The most memory a guest can have whose processors have `bits` bits of physical address.
pub fn most(bits: u32) -> Size {
    let space = 1u64.checked_shl(bits).unwrap_or(u64::MAX);
    Size(space.saturating_sub(layout::MMIO_HOLE_END - layout::MMIO_HOLE))
}

fn map_regions(spec: Spec) -> Result<GuestMemoryMmap, MemoryError> {
    let wanted = spec.size;
    let failed = |source| MemoryError::Map { wanted, source };
    let memfd = match spec.shared {
        true => Some(Arc::new(memfd(wanted.0, spec.hugepages).map_err(failed)?)),
        false => None,
    };
    let parts = parts(wanted.0);
    let mut regions = Vec::with_capacity(parts.len());
    let mut offset = 0;
    for (base, len) in parts.into_iter().filter(|(_, len)| *len > 0) {
        let size = usize::try_from(len).map_err(|e| failed(io::Error::other(e)))?;
        let file = memfd.as_ref().map(|f| FileOffset::from_arc(f.clone(), offset));
        let mapping = map(size, file, spec.hugepages).map_err(|e| match e {
            MmapRegionError::Mmap(_) if spec.hugepages => too_few_huge_pages(wanted),
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
    let region = builder.build()?;
    // A child of ours (passt) has no use for it, and while it had a copy every page the guest writes to
    // would have to be copied. If the host will not, it is that slow.
    // SAFETY: the range is the mapping just made; no access to it changes.
    unsafe { libc::madvise(region.as_ptr().cast(), size, libc::MADV_DONTFORK) };
    Ok(region)
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

/// What the host says of its memory (`proc_meminfo(5)`).
pub(crate) struct Meminfo(pub String);

impl Meminfo {
    /// Of this moment; without a single field where there is no /proc.
    pub fn read() -> Self {
        Self(std::fs::read_to_string("/proc/meminfo").unwrap_or_default())
    }

    /// The number of the field called `name`: in KiB, or of pages if it is `HugePages_…`.
    pub fn field(&self, name: &str) -> Option<u64> {
        let line = self.0.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        line.split_whitespace().next()?.parse().ok()
    }
}

/// Memory is mapped without reserving it, so that too much would only be noticed by the OOM killer.
fn check_host(spec: Spec) -> Result<(), MemoryError> {
    let wanted = spec.size;
    // Huge pages are counted when they are mapped.
    if spec.hugepages {
        return Ok(());
    }
    let host = Meminfo::read();
    if let Some(total) = host.field("MemTotal") {
        let kib = total.saturating_add(host.field("SwapTotal").unwrap_or(0));
        let present = Size(kib.saturating_mul(1024));
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

/// Empties all guest memory, which is as `spec` says: it reads as it was first mapped, zero or, where
/// a kernel is shared, that kernel, and takes no room of its own. For a reboot in place; no vCPU and
/// no device uses it.
///
/// Huge pages are not given back but zeroed, the untouched ones too (some 0.1 s a GiB). Linux before
/// 5.18 discards none of a private mapping (`EINVAL`), and what is discarded loses its reservation,
/// of shared memory always and of private before 6.9: somebody else could take the page, and the
/// guest's next touch would be a SIGBUS.
///
/// # Errors
/// The host's.
pub fn discard(memory: &GuestMemoryMmap, spec: Spec) -> io::Result<()> {
    for region in memory.iter() {
        let len = usize::try_from(region.len()).map_err(io::Error::other)?;
        if spec.hugepages {
            // SAFETY: the range is a mapping of guest memory, writable and backed by pages set aside
            // for it. No reference into it exists: it is accessed by volatile operations alone, and
            // whoever does so (vCPUs, devices) has stopped.
            unsafe { std::ptr::write_bytes(region.as_ptr(), 0, len) };
            continue;
        }
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
mod tests;
