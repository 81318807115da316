//! The system calls of the file server, each as safe as its arguments: descriptors that are borrowed,
//! names that are checked. Nothing here follows a symbolic link but [`root`], whose path is the user's.

use std::ffi::CStr;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use super::errno::{Errno, Result, check, check_len};

/// How every name is resolved: never out of the directory, never through a link of /proc.
const RESOLVE: u64 =
    libc::RESOLVE_IN_ROOT | libc::RESOLVE_NO_MAGICLINKS | libc::RESOLVE_NO_SYMLINKS;

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

/// Takes the descriptor that a system call has made, unless it failed.
pub(super) fn owned(fd: libc::c_int) -> Result<OwnedFd> {
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

/// What is known of what `name`, one component, is in `dir`; of a symbolic link itself.
pub(super) fn stat_in(dir: BorrowedFd<'_>, name: &CStr) -> Result<libc::stat> {
    let mut stat = MaybeUninit::uninit();
    let flags = libc::AT_SYMLINK_NOFOLLOW | libc::AT_NO_AUTOMOUNT;
    // SAFETY: a string with its end, and room for what is written when the call succeeds.
    unsafe {
        check(libc::fstatat(dir.as_raw_fd(), name.as_ptr(), stat.as_mut_ptr(), flags))?;
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
    Ok(crate::lock::call(fd, command, lock)?)
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
