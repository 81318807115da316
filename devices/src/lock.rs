//! Locks of open files (`man 2 fcntl`, open file description locks): each belongs to one opening of a file, not
//! to the process, so that two holders in one process exclude each other too, and it goes when that is closed.
//! They have nothing to do with those of flock(2). Nothing here waits.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

/// What of a file is locked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// All of it, however long it becomes.
    Whole,
    /// The byte at this place, which need not be there.
    Byte(u64),
}

/// Who else may have a lock of the same part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sharing {
    /// Others that share it; the file is open for reading.
    Readers,
    /// Nobody; the file is open for writing.
    Nobody,
}

/// Locks `part` of `file`. False when somebody else has a lock that does not go with it.
///
/// # Errors
/// The host's.
pub fn take(file: &File, part: Part, sharing: Sharing) -> io::Result<bool> {
    let kind = match sharing {
        Sharing::Readers => libc::F_RDLCK,
        Sharing::Nobody => libc::F_WRLCK,
    };
    let (start, len) = match part {
        // No length: to the end, wherever that is.
        Part::Whole => (0, 0),
        Part::Byte(at) => (i64::try_from(at).map_err(io::Error::other)?, 1),
    };
    // Both constants are small.
    let mut lock = libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: start,
        l_len: len,
        l_pid: 0,
    };
    match call(file.as_fd(), libc::F_OFD_SETLK, &mut lock) {
        Ok(()) => Ok(true),
        Err(e) if matches!(e.raw_os_error(), Some(libc::EAGAIN | libc::EACCES)) => Ok(false),
        Err(e) => Err(e),
    }
}

/// `F_OFD_SETLK` or `F_OFD_GETLK` as they are.
///
/// # Errors
/// The host's.
pub(crate) fn call(fd: BorrowedFd<'_>, command: i32, lock: &mut libc::flock) -> io::Result<()> {
    // SAFETY: a lock that lives through the call.
    match unsafe { libc::fcntl(fd.as_raw_fd(), command, std::ptr::from_mut(lock)) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_are_many_readers_or_one_writer_also_in_one_process() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        File::create(&path).unwrap();
        let open = || File::options().read(true).write(true).open(&path).unwrap();
        let (one, two) = (open(), open());
        assert!(take(&one, Part::Whole, Sharing::Readers).unwrap());
        assert!(take(&two, Part::Byte(7), Sharing::Readers).unwrap());
        assert!(!take(&one, Part::Byte(7), Sharing::Nobody).unwrap());
        assert!(take(&one, Part::Byte(8), Sharing::Nobody).unwrap());
        assert!(!take(&two, Part::Whole, Sharing::Readers).unwrap());
        drop(one);
        assert!(take(&two, Part::Whole, Sharing::Nobody).unwrap());
        assert!(take(&two, Part::Byte(u64::MAX), Sharing::Nobody).is_err());
    }
}
