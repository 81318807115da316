//! The system calls of the file server, each as safe as its arguments: descriptors that are borrowed,
//! names that are checked. Nothing here follows a symbolic link but [`Proc`], whose links are ours.

use std::ffi::CStr;
use std::io::{self, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use super::errno::{Errno, Result, check, check_len};

/// How every name is resolved: never out of the directory, never through a link of /proc.
const RESOLVE: u64 =
    libc::RESOLVE_IN_ROOT | libc::RESOLVE_NO_MAGICLINKS | libc::RESOLVE_NO_SYMLINKS;

/// `PROC_SUPER_MAGIC` (Linux `include/uapi/linux/magic.h`).
const PROC_SUPER_MAGIC: i64 = 0x9fa0;

/// Opens `name` in `dir`: `openat2(2)`, with `O_CLOEXEC` and `O_NOFOLLOW`.
pub(super) fn open_in(dir: BorrowedFd<'_>, name: &CStr, flags: i32, mode: u32) -> Result<OwnedFd> {
    // SAFETY: all zeroes is an open_how without flags.
    let mut how: libc::open_how = unsafe { std::mem::zeroed() };
    how.flags = (flags | libc::O_CLOEXEC | libc::O_NOFOLLOW) as u64;
    how.mode = mode.into();
    how.resolve = RESOLVE;
    // SAFETY: a string that a NUL ends and a whole open_how; neither is kept.
    let fd = unsafe {
        libc::syscall(
            libc::SYS_openat2,
            dir.as_raw_fd(),
            name.as_ptr(),
            &raw const how,
            size_of::<libc::open_how>(),
        )
    };
    owned(fd as libc::c_int)
}

/// A reference to `name` in `dir` that reads and writes nothing, to a symbolic link too.
pub(super) fn reference(dir: BorrowedFd<'_>, name: &CStr) -> Result<OwnedFd> {
    open_in(dir, name, libc::O_PATH, 0)
}

fn owned(fd: libc::c_int) -> Result<OwnedFd> {
    let fd = check(fd)?;
    // SAFETY: the kernel has just made it, so nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// What is known of a file.
pub(super) fn stat(fd: BorrowedFd<'_>) -> Result<libc::stat> {
    let mut stat = MaybeUninit::uninit();
    let flags = libc::AT_EMPTY_PATH;
    // SAFETY: an empty string, and room for what is written when the call succeeds.
    unsafe {
        check(libc::fstatat(fd.as_raw_fd(), c"".as_ptr(), stat.as_mut_ptr(), flags))?;
        Ok(stat.assume_init())
    }
}

/// What is known of the file system that a file is in.
pub(super) fn statfs(fd: BorrowedFd<'_>) -> Result<libc::statfs> {
    let mut statfs = MaybeUninit::uninit();
    // SAFETY: room for what is written when the call succeeds.
    unsafe {
        check(libc::fstatfs(fd.as_raw_fd(), statfs.as_mut_ptr()))?;
        Ok(statfs.assume_init())
    }
}

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
        // SAFETY: dir is open meanwhile.
        let there = is_proc(unsafe { BorrowedFd::borrow_raw(dir.as_raw_fd()) })?;
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

/// Changes owner and group, of a symbolic link itself; `u32::MAX` leaves one as it is.
pub(super) fn chown(fd: BorrowedFd<'_>, uid: u32, gid: u32) -> Result<()> {
    let flags = libc::AT_EMPTY_PATH | libc::AT_SYMLINK_NOFOLLOW;
    // SAFETY: an empty string.
    let done = unsafe { libc::fchownat(fd.as_raw_fd(), c"".as_ptr(), uid, gid, flags) };
    check(done).map(drop)
}

/// Where a symbolic link leads.
pub(super) fn readlink(fd: BorrowedFd<'_>, to: &mut [u8]) -> Result<usize> {
    // SAFETY: an empty string, and a buffer with its length.
    check_len(unsafe {
        libc::readlinkat(fd.as_raw_fd(), c"".as_ptr(), to.as_mut_ptr().cast(), to.len())
    })
}

pub(super) fn symlink(target: &CStr, dir: BorrowedFd<'_>, name: &CStr) -> Result<()> {
    // SAFETY: two strings that a NUL ends.
    check(unsafe { libc::symlinkat(target.as_ptr(), dir.as_raw_fd(), name.as_ptr()) }).map(drop)
}

pub(super) fn mkdir(dir: BorrowedFd<'_>, name: &CStr, mode: u32) -> Result<()> {
    // SAFETY: a string that a NUL ends.
    check(unsafe { libc::mkdirat(dir.as_raw_fd(), name.as_ptr(), mode) }).map(drop)
}

pub(super) fn mknod(dir: BorrowedFd<'_>, name: &CStr, mode: u32, device: u64) -> Result<()> {
    // SAFETY: a string that a NUL ends.
    check(unsafe { libc::mknodat(dir.as_raw_fd(), name.as_ptr(), mode, device) }).map(drop)
}

/// Removes a name; a directory's with `AT_REMOVEDIR`.
pub(super) fn unlink(dir: BorrowedFd<'_>, name: &CStr, flags: i32) -> Result<()> {
    // SAFETY: a string that a NUL ends.
    check(unsafe { libc::unlinkat(dir.as_raw_fd(), name.as_ptr(), flags) }).map(drop)
}

pub(super) fn rename(
    from: (BorrowedFd<'_>, &CStr),
    to: (BorrowedFd<'_>, &CStr),
    flags: u32,
) -> Result<()> {
    // SAFETY: two strings that a NUL ends.
    let done = unsafe {
        libc::syscall(
            libc::SYS_renameat2,
            from.0.as_raw_fd(),
            from.1.as_ptr(),
            to.0.as_raw_fd(),
            to.1.as_ptr(),
            flags,
        )
    };
    check(done as libc::c_int).map(drop)
}

/// A nameless file in `dir`.
pub(super) fn tmpfile(dir: BorrowedFd<'_>, flags: i32, mode: u32) -> Result<OwnedFd> {
    let flags = flags | libc::O_TMPFILE | libc::O_CLOEXEC;
    // SAFETY: a string that a NUL ends.
    owned(unsafe { libc::openat(dir.as_raw_fd(), c".".as_ptr(), flags, mode) })
}

/// Opens the directory that `fd` refers to, for reading; `quietly`, without a trace of that in its
/// time of last access, if it is ours.
pub(super) fn open_dir(fd: BorrowedFd<'_>, quietly: bool) -> Result<OwnedFd> {
    let flags = libc::O_RDONLY | libc::O_DIRECTORY | libc::O_CLOEXEC;
    // SAFETY: a string that a NUL ends.
    let open = |flags| owned(unsafe { libc::openat(fd.as_raw_fd(), c".".as_ptr(), flags) });
    match if quietly { open(flags | libc::O_NOATIME) } else { Err(Errno(libc::EPERM)) } {
        Err(Errno(libc::EPERM)) => open(flags),
        opened => opened,
    }
}

pub(super) fn truncate(fd: BorrowedFd<'_>, len: i64) -> Result<()> {
    // SAFETY: no memory is passed.
    check(unsafe { libc::ftruncate(fd.as_raw_fd(), len) }).map(drop)
}

pub(super) fn sync(fd: BorrowedFd<'_>, data_only: bool) -> Result<()> {
    let fd = fd.as_raw_fd();
    // SAFETY: no memory is passed.
    check(unsafe { if data_only { libc::fdatasync(fd) } else { libc::fsync(fd) } }).map(drop)
}

pub(super) fn syncfs(fd: BorrowedFd<'_>) -> Result<()> {
    // SAFETY: no memory is passed.
    check(unsafe { libc::syncfs(fd.as_raw_fd()) }).map(drop)
}

pub(super) fn fallocate(fd: BorrowedFd<'_>, mode: i32, offset: i64, len: i64) -> Result<()> {
    // SAFETY: no memory is passed.
    check(unsafe { libc::fallocate(fd.as_raw_fd(), mode, offset, len) }).map(drop)
}

pub(super) fn lseek(fd: BorrowedFd<'_>, offset: i64, whence: i32) -> Result<i64> {
    // SAFETY: no memory is passed.
    let at = unsafe { libc::lseek(fd.as_raw_fd(), offset, whence) };
    if at < 0 { Err(Errno::last()) } else { Ok(at) }
}

/// Copies at most `len` bytes within the host.
pub(super) fn copy(
    from: (BorrowedFd<'_>, i64),
    to: (BorrowedFd<'_>, i64),
    len: usize,
) -> Result<usize> {
    let (mut from_at, mut to_at) = (from.1, to.1);
    // SAFETY: two places for offsets, which live through the call.
    check_len(unsafe {
        libc::copy_file_range(
            from.0.as_raw_fd(),
            &mut from_at,
            to.0.as_raw_fd(),
            &mut to_at,
            len,
            0,
        )
    })
}

/// Directory entries from where the descriptor stands (`struct linux_dirent64`), whole ones.
pub(super) fn getdents(fd: BorrowedFd<'_>, to: &mut [u8]) -> Result<usize> {
    // SAFETY: a buffer with its length.
    check_len(unsafe {
        libc::syscall(libc::SYS_getdents64, fd.as_raw_fd(), to.as_mut_ptr(), to.len()) as isize
    })
}

/// Takes or gives up a lock of `flock(2)`; it does not wait.
pub(super) fn flock(fd: BorrowedFd<'_>, operation: i32) -> Result<()> {
    // SAFETY: no memory is passed.
    check(unsafe { libc::flock(fd.as_raw_fd(), operation | libc::LOCK_NB) }).map(drop)
}

/// `F_OFD_SETLK` or `F_OFD_GETLK` (fcntl(2)); it does not wait.
pub(super) fn ofd_lock(fd: BorrowedFd<'_>, command: i32, lock: &mut libc::flock) -> Result<()> {
    // SAFETY: a lock that lives through the call.
    check(unsafe { libc::fcntl(fd.as_raw_fd(), command, std::ptr::from_mut(lock)) }).map(drop)
}

/// Gives the calling thread a `umask` of its own, of 0: the guest's kernel has applied the guest's.
///
/// # Errors
/// When the host refuses; then the process' own umask applies to new files.
pub fn own_umask() -> io::Result<()> {
    // SAFETY: only what this thread shares with others changes, not memory; umask cannot fail.
    unsafe {
        if libc::unshare(libc::CLONE_FS) < 0 {
            return Err(io::Error::last_os_error());
        }
        libc::umask(0);
    }
    Ok(())
}

/// The calling thread makes files as another user, until this is dropped.
pub(super) struct Acting(());

impl Acting {
    /// For a thread of root's. The kernel takes root's rights over files away meanwhile.
    pub(super) fn of(uid: u32, gid: u32) -> Result<Acting> {
        // -1 would change nothing, and the file be root's.
        if uid == u32::MAX || gid == u32::MAX {
            return Err(Errno(libc::EINVAL));
        }
        let acting = Acting(());
        // SAFETY: only the ids of this thread change. The second call says what the first one did.
        let (now_gid, now_uid) = unsafe {
            libc::setfsgid(gid);
            let now_gid = libc::setfsgid(gid);
            libc::setfsuid(uid);
            (now_gid, libc::setfsuid(uid))
        };
        if now_gid as u32 == gid && now_uid as u32 == uid {
            Ok(acting)
        } else {
            Err(Errno(libc::EPERM))
        }
    }
}

impl Drop for Acting {
    fn drop(&mut self) {
        // SAFETY: only the ids of this thread change; root's effective ids are 0.
        unsafe {
            libc::setfsuid(0);
            libc::setfsgid(libc::getegid());
        }
    }
}

/// A reference to the directory at a path of the user's, whose symbolic links are followed.
pub(super) fn root(path: &CStr) -> Result<OwnedFd> {
    let flags = libc::O_PATH | libc::O_DIRECTORY | libc::O_CLOEXEC;
    // SAFETY: a string that a NUL ends.
    owned(unsafe { libc::open(path.as_ptr(), flags) })
}
