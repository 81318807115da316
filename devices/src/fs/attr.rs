//! Attributes of files, and of the file system they are in.

use std::os::fd::{AsFd, BorrowedFd};

use super::errno::{Errno, Result};
use super::nodes::Node;
use super::session::{Call, Outcome, Session};
use super::share::Share;
use super::sys;
use super::wire::{AccessIn, Attr, AttrOut, EntryOut, SetattrIn, StatfsOut, fattr};

impl Share {
    /// Attributes as the guest sees them.
    pub(super) fn attr(&self, stat: &libc::stat) -> Attr {
        Attr {
            ino: self.inode(stat.st_dev, stat.st_ino),
            // Sizes and times keep their bits; the guest reads them as signed ones where they are.
            size: stat.st_size as u64,
            blocks: stat.st_blocks as u64,
            atime: stat.st_atime as u64,
            mtime: stat.st_mtime as u64,
            ctime: stat.st_ctime as u64,
            // Below 10^9.
            atimensec: stat.st_atime_nsec as u32,
            mtimensec: stat.st_mtime_nsec as u32,
            ctimensec: stat.st_ctime_nsec as u32,
            mode: stat.st_mode,
            nlink: u32::try_from(stat.st_nlink).unwrap_or(u32::MAX),
            uid: self.owner.guest_uid(stat.st_uid),
            gid: self.owner.guest_gid(stat.st_gid),
            rdev: guest_device(stat.st_rdev),
            blksize: u32::try_from(stat.st_blksize).unwrap_or(4096),
            flags: 0,
        }
    }

    /// The reply about a file that the guest now knows as `nodeid`.
    pub(super) fn entry(&self, nodeid: u64, stat: &libc::stat) -> EntryOut {
        let valid = self.options.cache.lifetime();
        EntryOut {
            nodeid,
            // Numbers are never used twice.
            generation: 0,
            entry_valid: valid.as_secs(),
            attr_valid: valid.as_secs(),
            entry_valid_nsec: 0,
            attr_valid_nsec: 0,
            attr: self.attr(stat),
        }
    }

    fn attr_reply(&self, node: &Node) -> Result<AttrOut> {
        let stat = sys::stat(node.fd())?;
        let attr_valid = self.options.cache.lifetime().as_secs();
        Ok(AttrOut { attr_valid, attr_valid_nsec: 0, dummy: 0, attr: self.attr(&stat) })
    }
}

impl Share {
    /// Takes the set-user-id bits of a file away that somebody else than its owner changes. The host
    /// does that by itself, unless root asks.
    pub(super) fn disarm(&self, fd: BorrowedFd<'_>) -> Result<()> {
        let mode = sys::stat(fd)?.st_mode & 0o7777;
        let group = if mode & libc::S_IXGRP != 0 { libc::S_ISGID } else { 0 };
        let harmless = mode & !(libc::S_ISUID | group);
        if harmless == mode { Ok(()) } else { self.proc.chmod(fd, harmless) }
    }
}

/// A device number as FUSE has it (Linux `new_encode_dev`): 12 bits of major, 20 of minor number.
fn guest_device(device: u64) -> u32 {
    let (major, minor) = (libc::major(device), libc::minor(device));
    (minor & 0xff) | (major & 0xfff) << 8 | (minor & !0xff) << 12
}

impl Session {
    pub(super) fn getattr(&mut self, call: &mut Call<'_>) -> Result<Outcome> {
        let node = self.nodes.get(call.header.nodeid)?;
        call.answer(&self.share.attr_reply(node)?)
    }

    pub(super) fn setattr(&mut self, call: &mut Call<'_>) -> Result<Outcome> {
        let wanted: SetattrIn = call.words.object()?;
        let (share, id) = (&self.share, call.header.nodeid);
        let node = self.nodes.get(id)?;
        let has = |field| wanted.valid & field != 0;
        // The owner first: a change of it takes the set-user-id bits away.
        if has(fattr::UID | fattr::GID) {
            let stat = sys::stat(node.fd())?;
            let now = (share.owner.guest_uid(stat.st_uid), share.owner.guest_gid(stat.st_gid));
            let same = u32::MAX;
            // What looks as wanted stays as it is: another user's husk cannot give files away.
            let change =
                |field, now, wanted| if has(field) && now != wanted { wanted } else { same };
            let (uid, gid) =
                (change(fattr::UID, now.0, wanted.uid), change(fattr::GID, now.1, wanted.gid));
            if (uid, gid) != (same, same) {
                let uid = if uid == same { same } else { share.owner.host_uid(uid) };
                let gid = if gid == same { same } else { share.owner.host_gid(gid) };
                sys::chown(node.fd(), uid, gid)?;
            }
        }
        if has(fattr::MODE) {
            if node.is_symlink() {
                return Err(Errno(libc::EOPNOTSUPP));
            }
            share.proc.chmod(node.fd(), wanted.mode & 0o7777)?;
        }
        if has(fattr::SIZE) {
            let size = i64::try_from(wanted.size).map_err(|_| Errno(libc::EINVAL))?;
            if has(fattr::KILL_SUIDGID) {
                share.disarm(node.fd())?;
            }
            if has(fattr::FH) {
                sys::truncate(self.handles.file(id, wanted.fh)?, size)?;
            } else {
                let file = share.proc.reopen(node.file()?.fd(), libc::O_WRONLY)?;
                sys::truncate(file.as_fd(), size)?;
            }
        }
        if has(fattr::ATIME | fattr::MTIME) {
            let time = |field, now, seconds: u64, nanoseconds: u32| libc::timespec {
                tv_sec: seconds as i64,
                tv_nsec: match (has(field), has(now)) {
                    (false, _) => libc::UTIME_OMIT,
                    (true, true) => libc::UTIME_NOW,
                    // The two special values are none that a guest can ask for.
                    (true, false) => i64::from(nanoseconds.min(999_999_999)),
                },
            };
            let times = [
                time(fattr::ATIME, fattr::ATIME_NOW, wanted.atime, wanted.atimensec),
                time(fattr::MTIME, fattr::MTIME_NOW, wanted.mtime, wanted.mtimensec),
            ];
            share.proc.utimens(node.fd(), &times)?;
        }
        call.answer(&share.attr_reply(node)?)
    }

    pub(super) fn access(&mut self, call: &mut Call<'_>) -> Result<Outcome> {
        let access: AccessIn = call.words.object()?;
        let mask = i32::try_from(access.mask).map_err(|_| Errno(libc::EINVAL))?;
        if mask & libc::W_OK != 0 {
            self.share.writable()?;
        }
        let node = self.nodes.get(call.header.nodeid)?;
        self.share.proc.access(node.fd(), mask)?;
        Ok(Outcome::Reply)
    }

    pub(super) fn statfs(&mut self, call: &mut Call<'_>) -> Result<Outcome> {
        let statfs = sys::statfs(self.nodes.get(call.header.nodeid)?.fd())?;
        call.answer(&StatfsOut {
            blocks: statfs.f_blocks,
            bfree: statfs.f_bfree,
            bavail: statfs.f_bavail,
            files: statfs.f_files,
            ffree: statfs.f_ffree,
            bsize: statfs.f_bsize as u32,
            namelen: statfs.f_namelen as u32,
            frsize: statfs.f_frsize as u32,
            ..StatfsOut::default()
        })
    }

    pub(super) fn syncfs(&mut self) -> Result<Outcome> {
        if !self.share.options.read_only {
            sys::syncfs(self.share.directory())?;
        }
        Ok(Outcome::Reply)
    }
}
