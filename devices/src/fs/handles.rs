//! Files and directories that the guest has open, by a number of ours.
//!
//! As with nodes, numbers are never used twice, and one that the guest made up is nothing. A handle
//! belongs to its node: with another node's number it is refused.

use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use super::errno::{Errno, Result};

struct Handle {
    fd: OwnedFd,
    node: u64,
    directory: bool,
    /// Where the next entry of a directory is read, if the guest goes on there.
    position: i64,
}

/// All handles of a guest.
pub(super) struct Handles {
    by_id: HashMap<u64, Handle>,
    next: u64,
}

impl Handles {
    pub(super) fn new() -> Handles {
        Handles { by_id: HashMap::new(), next: 1 }
    }

    /// Keeps what was opened of `node`, and gives its number.
    pub(super) fn keep(&mut self, node: u64, fd: OwnedFd, directory: bool) -> u64 {
        let id = self.next;
        // One a nanosecond are used up after 584 years.
        self.next = self.next.wrapping_add(1);
        self.by_id.insert(id, Handle { fd, node, directory, position: 0 });
        id
    }

    fn get(&self, node: u64, id: u64, directory: bool) -> Result<BorrowedFd<'_>> {
        let handle = self.by_id.get(&id);
        let handle = handle.filter(|handle| handle.node == node && handle.directory == directory);
        handle.map(|handle| handle.fd.as_fd()).ok_or(Errno(libc::EBADF))
    }

    /// An open file of `node`.
    pub(super) fn file(&self, node: u64, id: u64) -> Result<BorrowedFd<'_>> {
        self.get(node, id, false)
    }

    /// An open directory of `node`.
    pub(super) fn dir(&self, node: u64, id: u64) -> Result<BorrowedFd<'_>> {
        self.get(node, id, true)
    }

    /// An open directory of `node`, and where it is read next.
    pub(super) fn reading(&mut self, node: u64, id: u64) -> Result<(BorrowedFd<'_>, &mut i64)> {
        let handle = self.by_id.get_mut(&id);
        let handle = handle.filter(|handle| handle.node == node && handle.directory);
        let handle = handle.ok_or(Errno(libc::EBADF))?;
        Ok((handle.fd.as_fd(), &mut handle.position))
    }

    /// Closes one.
    pub(super) fn release(&mut self, node: u64, id: u64) -> Result<()> {
        if self.by_id.get(&id).is_none_or(|handle| handle.node != node) {
            return Err(Errno(libc::EBADF));
        }
        self.by_id.remove(&id);
        Ok(())
    }

    /// Closes all.
    pub(super) fn clear(&mut self) {
        self.by_id.clear();
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.by_id.len()
    }
}
