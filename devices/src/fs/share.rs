//! The directory that is shared, and how.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::errno::{Errno, Result};
use super::owner::Owner;
use super::proc::{Proc, is_proc};
use super::sys;

/// What the guest may believe of what it has seen, and for how long.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Cache {
    /// Names and attributes for a second; a file's pages until it is seen to have changed.
    #[default]
    Auto,
    /// Everything for a day: nobody else changes the directory.
    Always,
    /// Nothing: every access asks the host.
    Never,
}

impl Cache {
    /// How long names and attributes stay valid.
    pub(super) fn lifetime(self) -> Duration {
        match self {
            Cache::Auto => Duration::from_secs(1),
            Cache::Always => Duration::from_secs(24 * 3600),
            Cache::Never => Duration::ZERO,
        }
    }
}

/// How a directory is shared.
#[derive(Debug, Clone, Copy)]
pub struct ShareOptions {
    /// Nothing in it can be changed.
    pub read_only: bool,
    /// What the guest may keep.
    pub cache: Cache,
    /// The most descriptors that a guest can make husk hold: one for each file it knows of, and one
    /// for each that it has open or locked.
    pub max_files: usize,
}

impl Default for ShareOptions {
    fn default() -> Self {
        ShareOptions { read_only: false, cache: Cache::Auto, max_files: 512 }
    }
}

/// A directory that cannot be shared. Each names the path and the way out.
#[derive(Debug, thiserror::Error)]
pub enum ShareError {
    /// It is not there, or not ours to read.
    #[error(
        "cannot share {path}: {source}; check that it is a directory, and that you may read and enter it",
        path = path.display()
    )]
    Open {
        /// What the user gave.
        path: PathBuf,
        /// The host's answer.
        r#source: io::Error,
    },
    /// A /proc: through its files a guest would reach the host's processes.
    #[error("cannot share {path}: it lies in a /proc, whose files reach into the host's processes", path = .0.display())]
    Proc(PathBuf),
    /// The host cannot do what is needed.
    #[error(
        "cannot share {path}: {what}: {source}; Linux 5.8 or newer with /proc mounted is needed",
        path = path.display()
    )]
    Host {
        /// What the user gave.
        path: PathBuf,
        /// What was tried.
        what: &'static str,
        /// The host's answer.
        r#source: io::Error,
    },
}

/// A shared directory.
pub struct Share {
    path: PathBuf,
    /// Refers to the directory, and reads nothing.
    root: OwnedFd,
    /// The same, open.
    open: OwnedFd,
    /// The device it lies on.
    device: u64,
    pub(super) proc: Proc,
    pub(super) owner: Owner,
    pub(super) options: ShareOptions,
}

impl Share {
    /// The directory at `path`, shared as the calling thread's user.
    ///
    /// # Errors
    /// See [`ShareError`].
    pub fn open(path: &Path, options: ShareOptions) -> std::result::Result<Share, ShareError> {
        let io = |e: Errno| io::Error::from_raw_os_error(e.0);
        let refused = |e: Errno| ShareError::Open { path: path.to_owned(), source: io(e) };
        let host =
            |what| move |e: Errno| ShareError::Host { path: path.to_owned(), what, source: io(e) };
        let name = CString::new(path.as_os_str().as_bytes());
        let name = name.map_err(|_| refused(Errno(libc::EINVAL)))?;
        let root = sys::root(&name).map_err(refused)?;
        let open = sys::open_dir(root.as_fd(), true).map_err(refused)?;
        if is_proc(root.as_fd()).map_err(refused)? {
            return Err(ShareError::Proc(path.to_owned()));
        }
        let proc = Proc::open().map_err(host("/proc/self/fd"))?;
        sys::reference(root.as_fd(), c".").map_err(host("openat2"))?;
        let device = sys::stat(root.as_fd()).map_err(refused)?.st_dev;
        let owner = Owner::current();
        Ok(Share { path: path.to_owned(), root, open, device, proc, owner, options })
    }

    /// What the user gave.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// How it is shared.
    pub fn options(&self) -> &ShareOptions {
        &self.options
    }

    /// The directory once more, for a guest, and what it is.
    ///
    /// # Errors
    /// When the process has no descriptor left.
    pub(super) fn root(&self) -> io::Result<(OwnedFd, libc::stat)> {
        let root = self.root.try_clone()?;
        let stat = sys::stat(root.as_fd()).map_err(|e| io::Error::from_raw_os_error(e.0))?;
        Ok((root, stat))
    }

    /// The open directory.
    pub(super) fn directory(&self) -> BorrowedFd<'_> {
        self.open.as_fd()
    }

    /// An inode number for the guest, to which everything lies on one device: those of other file
    /// systems that are mounted below are told apart, or two files would be taken for one.
    pub(super) fn inode(&self, device: u64, inode: u64) -> u64 {
        if device == self.device {
            return inode;
        }
        // Fibonacci hashing; file systems hardly use the highest 16 bits.
        let mark = device.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1 << 48;
        inode ^ (mark & 0xffff << 48)
    }

    /// # Errors
    /// `EROFS` when nothing may be changed.
    pub(super) fn writable(&self) -> Result<()> {
        if self.options.read_only { Err(Errno(libc::EROFS)) } else { Ok(()) }
    }

    /// Whether it is the descriptor of a file in a directory on the device `above`, that may be known.
    pub(super) fn admit(&self, fd: BorrowedFd<'_>, above: u64) -> Result<libc::stat> {
        let stat = sys::stat(fd)?;
        // Another file system is mounted there.
        if stat.st_dev != above && is_proc(fd)? {
            return Err(Errno(libc::EACCES));
        }
        Ok(stat)
    }

    /// Opens the regular file that `fd` refers to.
    pub(super) fn reopen(&self, fd: BorrowedFd<'_>, flags: i32) -> Result<OwnedFd> {
        if self.options.read_only {
            // Reading would change the time of the last access; only its owner may prevent that.
            match self.proc.reopen(fd, flags | libc::O_NOATIME) {
                Err(Errno(libc::EPERM)) => {}
                opened => return opened,
            }
        }
        self.proc.reopen(fd, flags)
    }
}

impl std::fmt::Debug for Share {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let fd = self.root.as_raw_fd();
        f.debug_struct("Share").field("path", &self.path).field("fd", &fd).finish_non_exhaustive()
    }
}
