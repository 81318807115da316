//! Files and block devices of the host's, opened and locked.
//!
//! The lock is that of many readers or one writer, whichever process they are in, and lasts as long as
//! the file is open. Nothing here knows what is in a file.

use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;
use std::time::{Duration, Instant};

use super::error::DiskError;

/// How long a lock that somebody else has is waited for.
const LOCK_PATIENCE: Duration = Duration::from_millis(250);

/// Opens and locks a file or block device, and says how many bytes it has.
///
/// # Errors
/// See [`DiskError`].
pub(super) fn open_locked(path: &Path, read_only: bool) -> Result<(File, u64), DiskError> {
    let path = path.to_path_buf();
    // A FIFO would block us without O_NONBLOCK.
    let opened = OpenOptions::new()
        .read(true)
        .write(!read_only)
        .custom_flags(libc::O_CLOEXEC | libc::O_NONBLOCK)
        .open(&path);
    let mut file = match opened {
        Ok(file) => file,
        Err(e) if e.raw_os_error() == Some(libc::EISDIR) => {
            return Err(DiskError::Kind { path, kind: "a directory" });
        }
        Err(source) => {
            let remedy = remedy(&source, read_only);
            return Err(DiskError::Open { path, source, remedy });
        }
    };
    let host = |what, source| DiskError::Host { path: path.clone(), what, source };
    let kind = file.metadata().map_err(|e| host("examine", e))?.file_type();
    if !kind.is_file() && !kind.is_block_device() {
        let kind = if kind.is_dir() { "a directory" } else { "a special file" };
        return Err(DiskError::Kind { path, kind });
    }
    match lock_soon(&file, read_only) {
        Ok(()) => {}
        Err(e) if is_taken(&e) => return Err(DiskError::InUse { path, read_only }),
        Err(e) => return Err(host("lock", e)),
    }
    let size = file.seek(SeekFrom::End(0)).map_err(|e| host("measure", e))?;
    Ok((file, size))
}

/// [`lock`], with some patience: when a process that used io_uring is killed, the kernel closes its
/// files when it gets round to it.
fn lock_soon(file: &File, read_only: bool) -> io::Result<()> {
    let deadline = Instant::now() + LOCK_PATIENCE;
    loop {
        match lock(file, read_only) {
            Err(e) if is_taken(&e) && Instant::now() < deadline => {
                std::thread::sleep(LOCK_PATIENCE / 50);
            }
            done => return done,
        }
    }
}

/// Somebody else has the lock.
fn is_taken(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EACCES))
}

/// An open file description lock over the whole file: it belongs to this opening of the file, not
/// to the process, so that two disks of one process exclude each other too.
pub(crate) fn lock(file: &File, read_only: bool) -> io::Result<()> {
    let kind = if read_only { libc::F_RDLCK } else { libc::F_WRLCK };
    let range = libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    };
    // SAFETY: the third argument of F_OFD_SETLK is a flock, which lives through the call.
    match unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &range) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

pub(crate) fn remedy(error: &io::Error, read_only: bool) -> &'static str {
    match error.kind() {
        io::ErrorKind::NotFound if !read_only => {
            "check the path, or make it with `truncate -s 1G FILE`"
        }
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem if !read_only => {
            "make it writable for you, or make the disk read-only"
        }
        io::ErrorKind::PermissionDenied => "make it readable for you",
        _ => "check the path",
    }
}
