//! The locks that a guest has, and its requests that wait for one: what a session keeps of them.
//!
//! How they are taken and given up is [`super::lock`]'s business; which of the guest's own stand in each
//! other's way is that of [`super::claims`].

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;

use super::claims::{Claim, Claims};
use super::message::{REPLY_HEADER, reply_header};
use super::wire::{FileLock, LK_FLOCK, LkIn};

/// Who has a lock: node, whether it is one of flock(2), and owner in the guest.
pub(super) type Key = (u64, bool, u64);

/// What an owner has open for its locks.
pub(super) struct Holder {
    pub(super) fd: OwnedFd,
    /// The handle that the guest took the last of them through,
    pub(super) fh: u64,
    /// and which process.
    pub(super) pid: u32,
}

/// All locks of a guest.
#[derive(Default)]
pub(super) struct Locks {
    pub(super) files: BTreeMap<Key, Holder>,
    /// Those of fcntl(2), range by range.
    pub(super) claims: Claims,
    /// Counts what was given up.
    pub(super) given_up: u64,
    /// Counts what was taken of those of fcntl(2).
    pub(super) taken: u64,
}

impl Locks {
    /// Ends the locks of `owner` on `node`.
    pub(super) fn release(&mut self, node: u64, owner: u64, flock: bool) {
        if self.files.remove(&(node, flock, owner)).is_some() {
            if !flock {
                self.claims.give_up_all(node, owner);
            }
            self.given_up = self.given_up.wrapping_add(1);
        }
    }

    /// Ends the locks of fcntl(2) that were taken through a handle which is closed. Those of an open file
    /// (`F_OFD_SETLK`) end with it, and of that Linux tells a file server nothing but this. Those of a process
    /// ended before, when it closed its descriptor: nothing of theirs is found here.
    pub(super) fn close(&mut self, node: u64, fh: u64) {
        let through = |(key, holder): (&Key, &Holder)| (holder.fh == fh).then_some(key.2);
        let of_fcntl = (node, false, 0)..=(node, false, u64::MAX);
        let owners: Vec<u64> = self.files.range(of_fcntl).filter_map(through).collect();
        for owner in owners {
            self.release(node, owner, false);
        }
    }

    /// Ends all locks.
    pub(super) fn clear(&mut self) {
        self.files.clear();
        self.claims.clear();
    }

    /// Descriptors that they take.
    pub(super) fn len(&self) -> usize {
        self.files.len()
    }
}

/// A request that waits for a lock.
#[derive(Debug, Clone, Copy)]
pub struct Waiting {
    pub(super) unique: u64,
    pub(super) node: u64,
    pub(super) request: LkIn,
}

impl Waiting {
    /// The request's number.
    pub fn unique(&self) -> u64 {
        self.unique
    }

    /// The reply when it is interrupted.
    pub fn interrupted(&self) -> [u8; REPLY_HEADER] {
        reply_header(REPLY_HEADER as u32, -libc::EINTR, self.unique)
    }

    /// The reply when there are too many that wait.
    pub fn refused(&self) -> [u8; REPLY_HEADER] {
        reply_header(REPLY_HEADER as u32, -libc::ENOLCK, self.unique)
    }

    /// The reply when it would wait for good.
    pub fn deadlocked(&self) -> [u8; REPLY_HEADER] {
        reply_header(REPLY_HEADER as u32, -libc::EDEADLK, self.unique)
    }

    /// What is waited for, if it is a lock of fcntl(2).
    pub(super) fn claim(&self) -> Option<Claim> {
        claim(self.node, &self.request)
    }
}

/// What a request of fcntl(2) wants.
pub(super) fn claim(node: u64, request: &LkIn) -> Option<Claim> {
    let LkIn { owner, lock: FileLock { start, end, kind, .. }, lk_flags, .. } = *request;
    let write = i32::try_from(kind) == Ok(libc::F_WRLCK);
    let is_one = lk_flags & LK_FLOCK == 0 && start <= end;
    is_one.then_some(Claim { node, owner, range: start..=end, write })
}
