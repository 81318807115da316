//! `/proc/self/fd`: through it a file that is only referred to is opened, and changed without being
//! opened. Its links are husk's own descriptors, and the only ones that are ever followed.

use std::ffi::CStr;
use std::io::Write;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use super::errno::{Errno, Result, check, check_len};
use super::sys::{owned, statfs};

/// `PROC_SUPER_MAGIC` (Linux `include/uapi/linux/magic.h`).
const PROC_SUPER_MAGIC: i64 = 0x9fa0;

/// Whether it lies in a /proc, where files are doors to the host's processes.
pub(super) fn is_proc(fd: BorrowedFd<'_>) -> Result<bool> {
    Ok(statfs(fd)?.f_type == PROC_SUPER_MAGIC)
}

/// `/proc/self/fd`: what is referred to can be opened there, and changed without being opened.
pub(super) struct Proc(OwnedFd);

/// A number as a string that a NUL ends.
struct Text<const N: usize>([u8; N]);

impl<const N: usize> Text<N> {
    fn new(before: &str, fd: RawFd) -> Text<N> {
        let mut text = [0; N];
        // Room for the longest number and a NUL is there.
        let _ = write!(&mut text[..], "{before}{fd}");
        Text(text)
    }

    fn c_str(&self) -> &CStr {
        CStr::from_bytes_until_nul(&self.0).unwrap_or_default()
    }
}

impl Proc {
    /// # Errors
    /// When /proc is not mounted.
    pub(super) fn open() -> Result<Proc> {
        let flags = libc::O_PATH | libc::O_DIRECTORY | libc::O_CLOEXEC;
        // SAFETY: a string that a NUL ends.
        let dir = owned(unsafe { libc::open(c"/proc/self/fd".as_ptr(), flags) })?;
        let there = is_proc(dir.as_fd())?;
        if there { Ok(Proc(dir)) } else { Err(Errno(libc::ENOENT)) }
    }

    fn name(fd: BorrowedFd<'_>) -> Text<16> {
        Text::new("", fd.as_raw_fd())
    }

    /// Opens what `fd` refers to. To be called for regular files only, unless with `O_PATH`: opening
    /// others may wait, or do something.
    pub(super) fn reopen(&self, fd: BorrowedFd<'_>, flags: i32) -> Result<OwnedFd> {
        let (name, flags) = (Proc::name(fd), flags | libc::O_CLOEXEC | libc::O_NOCTTY);
        // SAFETY: a string that a NUL ends.
        owned(unsafe { libc::openat(self.0.as_raw_fd(), name.c_str().as_ptr(), flags) })
    }

    pub(super) fn chmod(&self, fd: BorrowedFd<'_>, mode: u32) -> Result<()> {
        let name = Proc::name(fd);
        // SAFETY: a string that a NUL ends.
        let done = unsafe { libc::fchmodat(self.0.as_raw_fd(), name.c_str().as_ptr(), mode, 0) };
        check(done).map(drop)
    }

    /// Access and modification time.
    pub(super) fn utimens(&self, fd: BorrowedFd<'_>, times: &[libc::timespec; 2]) -> Result<()> {
        let name = Proc::name(fd);
        // SAFETY: a string that a NUL ends, and two times.
        let done = unsafe {
            libc::utimensat(self.0.as_raw_fd(), name.c_str().as_ptr(), times.as_ptr(), 0)
        };
        check(done).map(drop)
    }

    pub(super) fn access(&self, fd: BorrowedFd<'_>, mask: i32) -> Result<()> {
        let name = Proc::name(fd);
        // SAFETY: a string that a NUL ends.
        let done = unsafe { libc::faccessat(self.0.as_raw_fd(), name.c_str().as_ptr(), mask, 0) };
        check(done).map(drop)
    }

    /// Another name for what `fd` refers to.
    pub(super) fn link(&self, fd: BorrowedFd<'_>, dir: BorrowedFd<'_>, name: &CStr) -> Result<()> {
        let from = Proc::name(fd);
        // SAFETY: two strings that a NUL ends.
        let done = unsafe {
            libc::linkat(
                self.0.as_raw_fd(),
                from.c_str().as_ptr(),
                dir.as_raw_fd(),
                name.as_ptr(),
                libc::AT_SYMLINK_FOLLOW,
            )
        };
        check(done).map(drop)
    }

    fn path(fd: BorrowedFd<'_>) -> Text<32> {
        Text::new("/proc/self/fd/", fd.as_raw_fd())
    }

    /// Reads an extended attribute and gives its length; with an empty buffer, only that.
    pub(super) fn getxattr(&self, fd: BorrowedFd<'_>, name: &CStr, to: &mut [u8]) -> Result<usize> {
        let path = Proc::path(fd);
        // SAFETY: two strings that a NUL ends, and a buffer with its length.
        check_len(unsafe {
            let (path, name) = (path.c_str().as_ptr(), name.as_ptr());
            libc::getxattr(path, name, to.as_mut_ptr().cast(), to.len())
        })
    }

    /// The names of all extended attributes, each with a NUL; with an empty buffer, only the length.
    pub(super) fn listxattr(&self, fd: BorrowedFd<'_>, to: &mut [u8]) -> Result<usize> {
        let path = Proc::path(fd);
        // SAFETY: a string that a NUL ends, and a buffer with its length.
        check_len(unsafe {
            libc::listxattr(path.c_str().as_ptr(), to.as_mut_ptr().cast(), to.len())
        })
    }

    pub(super) fn setxattr(
        &self,
        fd: BorrowedFd<'_>,
        name: &CStr,
        value: &[u8],
        flags: i32,
    ) -> Result<()> {
        let path = Proc::path(fd);
        // SAFETY: two strings that a NUL ends, and a buffer with its length.
        check(unsafe {
            let (path, name) = (path.c_str().as_ptr(), name.as_ptr());
            libc::setxattr(path, name, value.as_ptr().cast(), value.len(), flags)
        })
        .map(drop)
    }

    pub(super) fn removexattr(&self, fd: BorrowedFd<'_>, name: &CStr) -> Result<()> {
        let path = Proc::path(fd);
        // SAFETY: two strings that a NUL ends.
        check(unsafe { libc::removexattr(path.c_str().as_ptr(), name.as_ptr()) }).map(drop)
    }
}
