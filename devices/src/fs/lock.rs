//! Locks that processes of the guest and of the host see of each other.
//!
//! A lock belongs to an owner in the guest, and on the host to an open file: each owner that locks a
//! file has that file open once more, and gives its locks up when that is closed. Nothing here waits:
//! who has to is told so, and asks again.

use std::os::fd::{AsFd, OwnedFd};

use super::claims::Claim;
use super::errno::{Errno, Result};
use super::locks::{Holder, Waiting, claim};
use super::message::{REPLY_HEADER, reply_header};
use super::session::{Call, Outcome, Session};
use super::sys;
use super::wire::{FileLock, LK_FLOCK, LkIn};

/// A range of a file as fcntl(2) has it.
fn range(lock: &FileLock) -> Result<libc::flock> {
    let invalid = Errno(libc::EINVAL);
    let start = i64::try_from(lock.start).map_err(|_| invalid)?;
    let end = i64::try_from(lock.end).map_err(|_| invalid)?;
    let kind = i16::try_from(lock.kind).map_err(|_| invalid)?;
    if end < start || !matches!(i32::from(kind), libc::F_RDLCK | libc::F_WRLCK | libc::F_UNLCK) {
        return Err(invalid);
    }
    // SAFETY: all zeroes is a lock from the beginning to the end.
    let mut flock: libc::flock = unsafe { std::mem::zeroed() };
    flock.l_type = kind;
    flock.l_whence = libc::SEEK_SET as i16;
    flock.l_start = start;
    // 0 is to the end, whatever that will be.
    flock.l_len = if end == i64::MAX { 0 } else { end - start + 1 };
    Ok(flock)
}

impl Session {
    /// The number of one of the requests that wait, each for another of them; the last to begin.
    pub fn find_deadlock<'a>(&self, waiting: impl Iterator<Item = &'a Waiting>) -> Option<u64> {
        let (waiting, claims): (Vec<&Waiting>, Vec<Claim>) =
            waiting.filter_map(|waiting| Some((waiting, waiting.claim()?))).unzip();
        let found = self.locks.claims.find_circle(&claims)?;
        waiting.get(found).map(|waiting| waiting.unique())
    }

    /// How often locks were given up here, for whoever asks again.
    pub fn given_up(&self) -> u64 {
        self.locks.given_up
    }

    /// How often locks were taken here that owners may wait for for good.
    pub fn taken(&self) -> u64 {
        self.locks.taken
    }

    pub(super) fn setlk(&mut self, call: &mut Call<'_>, wait: bool) -> Result<Outcome> {
        let request: LkIn = call.words.object()?;
        let (unique, node) = (call.header.unique, call.header.nodeid);
        match self.lock(node, &request) {
            Err(Errno(libc::EAGAIN | libc::EACCES)) if wait => {
                Ok(Outcome::Waits(Waiting { unique, node, request }))
            }
            Err(Errno(libc::EACCES)) => Err(Errno(libc::EAGAIN)),
            done => done.map(|()| Outcome::Reply),
        }
    }

    /// Whether one that is to wait would wait for good, for one of those that wait `already`.
    pub fn would_deadlock<'a>(
        &self,
        waiting: &Waiting,
        already: impl Iterator<Item = &'a Waiting>,
    ) -> bool {
        let already: Vec<Claim> = already.filter_map(Waiting::claim).collect();
        let wanted = waiting.claim();
        wanted.is_some_and(|wanted| self.locks.claims.close_a_circle(&wanted, &already))
    }

    /// The reply to a request that waited, if it need not wait any longer.
    pub fn try_again(&mut self, waiting: &Waiting) -> Option<[u8; REPLY_HEADER]> {
        let error = match self.lock(waiting.node, &waiting.request) {
            Err(Errno(libc::EAGAIN | libc::EACCES)) => return None,
            Err(Errno(why)) => -why,
            Ok(()) => 0,
        };
        Some(reply_header(REPLY_HEADER as u32, error, waiting.unique))
    }

    fn lock(&mut self, node: u64, request: &LkIn) -> Result<()> {
        // Who may only read must not hold up who may write.
        self.share.writable().map_err(|_| Errno(libc::ENOSYS))?;
        let flock = request.lk_flags & LK_FLOCK != 0;
        let mut lock = range(&request.lock)?;
        let key = (node, flock, request.owner);
        let unlock = i32::from(lock.l_type) == libc::F_UNLCK;
        if unlock && (flock || (lock.l_start, lock.l_len) == (0, 0)) {
            self.locks.release(node, request.owner, flock);
            return Ok(());
        }
        let mut opened = None;
        let fd = match self.locks.files.get(&key) {
            Some(holder) => &holder.fd,
            None if unlock => return Ok(()),
            None => opened.insert(self.open_for_lock(node, request.fh, flock)?),
        };
        let claim = claim(node, request);
        match &claim {
            Some(claim) if unlock => self.locks.claims.may_give_up(claim)?,
            Some(_) => self.locks.claims.has_room()?,
            None => {}
        }
        if flock {
            let exclusive = i32::from(lock.l_type) == libc::F_WRLCK;
            sys::flock(fd.as_fd(), if exclusive { libc::LOCK_EX } else { libc::LOCK_SH })?;
        } else {
            sys::ofd_lock(fd.as_fd(), libc::F_OFD_SETLK, &mut lock)?;
        }
        // Who gets no lock keeps nothing open for it.
        let (fh, pid) = (request.fh, request.lock.pid);
        if let Some(fd) = opened {
            self.locks.files.insert(key, Holder { fd, fh, pid });
        } else if let Some(holder) = self.locks.files.get_mut(&key).filter(|_| !unlock) {
            (holder.fh, holder.pid) = (fh, pid);
        }
        match claim {
            Some(claim) if unlock => {
                self.locks.claims.give_up(claim.node, claim.owner, claim.range);
            }
            Some(claim) => {
                self.locks.claims.take(claim);
                self.locks.taken = self.locks.taken.wrapping_add(1);
            }
            None => {}
        }
        if unlock {
            self.locks.given_up = self.locks.given_up.wrapping_add(1);
        }
        Ok(())
    }

    /// The file or directory once more, for an owner's locks.
    fn open_for_lock(&self, node: u64, fh: u64, flock: bool) -> Result<OwnedFd> {
        self.has_room()?;
        if flock && self.handles.dir(node, fh).is_ok() {
            return sys::open_dir(self.nodes.dir(node)?.fd(), false);
        }
        self.handles.file(node, fh)?;
        let fd = self.nodes.get(node)?.file()?.fd();
        self.share
            .proc
            .reopen(fd, libc::O_RDWR)
            .or_else(|_| self.share.proc.reopen(fd, libc::O_RDONLY))
    }

    pub(super) fn getlk(&mut self, call: &mut Call<'_>) -> Result<Outcome> {
        self.share.writable().map_err(|_| Errno(libc::ENOSYS))?;
        let request: LkIn = call.words.object()?;
        let node = call.header.nodeid;
        let mut lock = range(&request.lock)?;
        let opened;
        let fd = match self.locks.files.get(&(node, false, request.owner)) {
            Some(holder) => &holder.fd,
            None => {
                opened = self.open_for_lock(node, request.fh, false)?;
                &opened
            }
        };
        sys::ofd_lock(fd.as_fd(), libc::F_OFD_GETLK, &mut lock)?;
        let start = u64::try_from(lock.l_start).unwrap_or_default();
        let end = match u64::try_from(lock.l_len) {
            Ok(0) | Err(_) => i64::MAX as u64,
            Ok(len) => start.saturating_add(len - 1),
        };
        // One of the host's has a number there only.
        let in_the_way = claim(node, &request).and_then(|wanted| {
            let wanted = Claim { range: start..=end, ..wanted };
            self.locks.claims.in_the_way(&wanted).next()
        });
        let holder = in_the_way.and_then(|owner| self.locks.files.get(&(node, false, owner)));
        let pid = holder.map_or(0, |holder| holder.pid);
        call.answer(&FileLock { start, end, kind: lock.l_type as u32, pid })
    }
}
