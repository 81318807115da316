//! A step of a job as a system call, for the engines that make it in a thread of ours.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

use super::disk::Disk;
use super::types::{Part, Step};
use crate::segment::Segment;

/// Makes the call and gives what it returned, or the negative error number; an image that is no plain file
/// has its own idea of it.
pub(super) fn make(disk: &Disk, step: Step<'_>) -> i32 {
    let part = match step {
        Step::Read { part, .. } | Step::Write { part, .. } | Step::Allocate { part, .. } => part,
        Step::Sync => Part::Image,
    };
    if part == Part::Image
        && let Some(image) = disk.formatted()
    {
        return image.make(step);
    }
    let fd = disk.part(part).as_fd().as_raw_fd();
    let returned = match step {
        Step::Read { to, offset, .. } => {
            let (list, count) = raw(to);
            // SAFETY: `list` points to `count` pieces, which are mapped: who submitted the job
            // vouches for that.
            unsafe { libc::preadv(fd, list, count, offset) }
        }
        Step::Write { from, offset, .. } => {
            let (list, count) = raw(from);
            // SAFETY: as above.
            unsafe { libc::pwritev(fd, list, count, offset) }
        }
        // SAFETY: takes no pointers.
        Step::Allocate { mode, offset, len, .. } => unsafe {
            libc::fallocate(fd, mode, offset, len) as isize
        },
        // SAFETY: takes no pointers.
        Step::Sync => unsafe { libc::fdatasync(fd) as isize },
    };
    if returned < 0 {
        return -io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO);
    }
    // One call moves at most 2 GiB - 4 KiB (`MAX_RW_COUNT`), so the cast keeps the number.
    returned as i32
}

/// A [`Segment`] is a transparent `iovec`.
fn raw(pieces: &[Segment]) -> (*const libc::iovec, libc::c_int) {
    // At most IOV_MAX, so the cast keeps the number.
    (pieces.as_ptr().cast(), pieces.len() as libc::c_int)
}
