//! The host's error numbers, which are the guest's as well: both are Linux.

use std::io;

/// Why a request was refused; never 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Errno(pub i32);

/// What a request gives, or why it was refused.
pub type Result<T> = std::result::Result<T, Errno>;

impl Errno {
    /// The calling thread's `errno`.
    pub(super) fn last() -> Errno {
        io::Error::last_os_error().into()
    }
}

impl From<io::Error> for Errno {
    fn from(error: io::Error) -> Errno {
        Errno(error.raw_os_error().filter(|number| *number > 0).unwrap_or(libc::EIO))
    }
}

/// The count or descriptor a system call gave, unless it failed.
pub(super) fn check(returned: libc::c_int) -> Result<libc::c_int> {
    if returned < 0 { Err(Errno::last()) } else { Ok(returned) }
}

/// The number of bytes a system call gave, unless it failed.
pub(super) fn check_len(returned: isize) -> Result<usize> {
    usize::try_from(returned).map_err(|_| Errno::last())
}
