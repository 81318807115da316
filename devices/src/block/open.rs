//! Files and block devices of the host's, opened and locked.
//!
//! The lock is that of many readers or one writer, whichever process they are in, and lasts as long as
//! the file is open. Nothing here knows what is in a file.

use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;
use std::time::{Duration, Instant};

use super::error::DiskError;
use crate::lock::{self, Part, Sharing};

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
        Ok(true) => {}
        Ok(false) => return Err(DiskError::InUse { path, read_only }),
        Err(e) => return Err(host("lock", e)),
    }
    let size = file.seek(SeekFrom::End(0)).map_err(|e| host("measure", e))?;
    Ok((file, size))
}

/// Locks `file` as one of its readers or as its only writer, with some patience: when a process that used
/// io_uring is killed, the kernel closes its files when it gets round to it. False when somebody else has it.
fn lock_soon(file: &File, read_only: bool) -> io::Result<bool> {
    let deadline = Instant::now() + LOCK_PATIENCE;
    loop {
        let locked = lock_image(file, read_only)?;
        if locked || Instant::now() >= deadline {
            return Ok(locked);
        }
        std::thread::sleep(LOCK_PATIENCE / 50);
    }
}

/// Locks all of `file`, as one of its readers or as its only writer; false when somebody else has it.
pub(crate) fn lock_image(file: &File, read_only: bool) -> io::Result<bool> {
    lock::take(file, Part::Whole, if read_only { Sharing::Readers } else { Sharing::Nobody })
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
