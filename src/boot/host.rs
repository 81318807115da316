//! What boot asks of the host's kernel itself: to read a file straight into guest memory, to put huge
//! pages behind it or a file's pages over it.
//!
//! All of boot's `unsafe` is here. A [`Span`] is a range of one region of guest memory, checked to
//! be inside it, so that what is done to its host addresses stays in that region's mapping.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use vm_memory::{
    Address, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, GuestRegionMmap,
    MemoryRegionAddress,
};

use super::{PAGE, align_down, align_up};

/// The size of an x86-64 huge page, in bytes.
pub(super) const HUGE_PAGE: u64 = 2 << 20;

/// A range of guest memory inside one region.
pub(super) struct Span<'a> {
    region: &'a GuestRegionMmap,
    /// Bytes from the region's start.
    start: u64,
    len: usize,
}

/// Calls `each` for every piece of `[start, start + len)`, with its offset from `start`: one piece
/// where guest memory is one region, as it mostly is.
///
/// # Errors
/// What `each` says, or `NotFound` when a part of the range is not guest memory.
pub(super) fn for_each_span(
    memory: &GuestMemoryMmap,
    start: u64,
    len: u64,
    mut each: impl FnMut(Span<'_>, u64) -> io::Result<()>,
) -> io::Result<()> {
    let mut done = 0;
    while done < len {
        let at = start.checked_add(done).map(GuestAddress);
        let (region, offset) = at
            .and_then(|at| memory.to_region_addr(at))
            .ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
        let offset = offset.raw_value();
        let piece = (region.len() - offset).min(len - done);
        let len = usize::try_from(piece).map_err(io::Error::other)?;
        each(Span { region, start: offset, len }, done)?;
        done += piece;
    }
    Ok(())
}

impl Span<'_> {
    /// Its length in bytes.
    pub(super) fn len(&self) -> u64 {
        self.len as u64
    }

    /// Whether it is private memory of ordinary pages: a file can then be mapped over it without touching
    /// another process's memory and without losing reserved huge pages.
    pub(super) fn is_private(&self) -> bool {
        self.region.flags() & (libc::MAP_SHARED | libc::MAP_HUGETLB) == 0
    }

    /// The host address. In bounds, because a span is inside its region.
    fn host(&self) -> io::Result<*mut u8> {
        self.region.get_host_address(MemoryRegionAddress(self.start)).map_err(io::Error::other)
    }

    /// Has the host put a page behind the beginning of the span, whose contents are lost.
    ///
    /// A page that a system call finds missing is made under the lock of all of this process's mappings,
    /// and making a huge one takes long: meanwhile no thread can start. One that is missed by the
    /// program itself is made under its mapping's own lock.
    pub(super) fn touch(&self) {
        // A file's page, or one set aside, may be refused, with a signal and not with an error.
        if self.is_private()
            && let Ok(host) = self.host()
        {
            // SAFETY: inside the region's mapping, which lives as long as the borrow of the region; guest
            // memory is no Rust object.
            unsafe { host.write_volatile(0) };
        }
    }

    /// Reads the bytes at `offset` of `file` into all of the span.
    ///
    /// # Errors
    /// The file's, or `UnexpectedEof` when it has become shorter.
    pub(super) fn read_from(&self, file: &File, offset: u64) -> io::Result<()> {
        let host = self.host()?;
        let mut done = 0;
        while done < self.len {
            let at = libc::off_t::try_from(offset.saturating_add(done as u64))
                .map_err(io::Error::other)?;
            // SAFETY: `host + done .. host + len` is inside the region's mapping, which lives as
            // long as the borrow of the region. Guest memory is no Rust object: nothing refers to
            // it, so the kernel may write to it. `pread` touches no other memory.
            let read = unsafe {
                libc::pread(file.as_raw_fd(), host.add(done).cast(), self.len - done, at)
            };
            match read {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                read if read > 0 => done += read.unsigned_abs(),
                _ => {
                    let error = io::Error::last_os_error();
                    if error.kind() != io::ErrorKind::Interrupted {
                        return Err(error);
                    }
                }
            }
        }
        Ok(())
    }

    /// Copies `bytes`, as many as the span has, into it.
    pub(super) fn copy_from(&self, bytes: &[u8]) -> io::Result<()> {
        let slice = self
            .region
            .get_slice(MemoryRegionAddress(self.start), self.len)
            .map_err(io::Error::other)?;
        slice.copy_from(bytes);
        Ok(())
    }

    /// Asks for huge pages behind the span and the rest of the huge pages it begins and ends in,
    /// as far as the region goes. A wish: a host that does not grant it is only slower.
    pub(super) fn advise_huge(&self) {
        let Ok(base) = self.region.get_host_address(MemoryRegionAddress(0)) else { return };
        let base = base as u64;
        let region_end = base + self.region.len();
        let start = align_down(base + self.start, HUGE_PAGE).max(base);
        let end = align_up(base + self.start + self.len as u64, HUGE_PAGE);
        let end = end.unwrap_or(region_end).min(region_end);
        let Ok(len) = usize::try_from(end.saturating_sub(start)) else { return };
        // SAFETY: the range is inside the region's mapping, and this advice changes no contents.
        unsafe { libc::madvise(start as *mut libc::c_void, len, libc::MADV_HUGEPAGE) };
    }

    /// Whether a file's pages from `offset` on may be put in place of the span: both are whole pages of the
    /// host, and the span is private.
    pub(super) fn can_be_mapped(&self, offset: u64) -> bool {
        let whole = |value: u64| value.is_multiple_of(PAGE);
        let host = self.host().is_ok_and(|host| whole(host as u64));
        host && whole(self.len as u64) && whole(offset) && self.is_private()
    }

    /// Puts the pages of `file` at `offset` in place of all of the span, copy-on-write.
    ///
    /// # Errors
    /// `InvalidInput` where that cannot be, else what `mmap` says. Then the span may have lost what
    /// was behind it.
    pub(super) fn map_from(&self, file: &File, offset: u64) -> io::Result<()> {
        let host = self.host()?;
        if !self.can_be_mapped(offset) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let at = libc::off_t::try_from(offset).map_err(io::Error::other)?;
        // SAFETY: the range is whole pages inside the region's mapping, so MAP_FIXED replaces
        // nothing else, and the region's own munmap will undo it. Guest memory is no Rust object,
        // so what replaces its contents matters to none. A private mapping's writes do not reach
        // the file.
        let mapped = unsafe {
            libc::mmap(
                host.cast(),
                self.len,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_FIXED | libc::MAP_NORESERVE,
                file.as_raw_fd(),
                at,
            )
        };
        if mapped == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        // It is a mapping of its own now, and guest memory is not for children (crate::memory).
        // SAFETY: the range is the mapping just made; no access to it changes.
        unsafe { libc::madvise(mapped, self.len, libc::MADV_DONTFORK) };
        Ok(())
    }
}
