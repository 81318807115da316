//! Files: opening, making, reading and writing them.
//!
//! Data go between the file and guest memory by preadv, pwritev and pwritev2, and nowhere else.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, SystemTime};

use super::errno::{Errno, Result};
use super::message::{HEADER, Message, Name, REPLY_HEADER};
use super::session::{Call, DATA_MAX, Outcome, Session};
use super::share::{Cache, Share};
use super::stamp::Stamp;
use super::sys;
use super::wire::{
    CopyIn, CreateIn, CreateOut, EntryOut, FOPEN_DIRECT_IO, FOPEN_KEEP_CACHE, FSYNC_FDATASYNC,
    FallocateIn, FlushIn, FsyncIn, LseekIn, LseekOut, OPEN_KILL_SUIDGID, OpenIn, OpenOut,
    RELEASE_FLOCK_UNLOCK, ReadIn, ReleaseIn, WRITE_CACHE, WRITE_KILL_SUIDGID, WriteIn, WriteOut,
};

/// The most bytes that one request copies within the host: the worker has others to serve.
const COPY_MAX: u64 = 64 << 20;
/// How often CREATE tries again when the host removes the file before it is opened and makes it before it is
/// made. Try n is preceded by a sleep of n microseconds.
const CREATE_AGAIN: u64 = 100;
/// The flags of open(2) that mean something to the host. `O_DIRECT` would ask of guest memory what it
/// need not have, each write says whether it is `O_APPEND`'s, and everything else is the guest's own affair.
const OPEN_FLAGS: i32 = libc::O_ACCMODE | libc::O_TRUNC | libc::O_SYNC | libc::O_DSYNC;

fn offset(guest: u64) -> Result<i64> {
    i64::try_from(guest).map_err(|_| Errno(libc::EINVAL))
}

impl Share {
    /// The flags to open a file with, of those the guest gave.
    fn open_flags(&self, guest: u32) -> Result<i32> {
        let flags = guest as i32 & OPEN_FLAGS;
        match flags & libc::O_ACCMODE {
            libc::O_RDONLY if flags & libc::O_TRUNC == 0 => {}
            libc::O_RDONLY | libc::O_WRONLY | libc::O_RDWR => self.writable()?,
            _ => return Err(Errno(libc::EINVAL)),
        }
        Ok(flags)
    }

    /// Opens a regular file that is there with `flags`, those of [`OPEN_FLAGS`] that the `guest` gave.
    fn open_there(&self, fd: BorrowedFd<'_>, flags: i32, guest: u32) -> Result<OwnedFd> {
        match self.reopen(fd, flags) {
            // What the host lets nobody but append to (`chattr +a`) is written to in no other way.
            Err(Errno(libc::EPERM)) if guest as i32 & libc::O_APPEND != 0 => {
                self.reopen(fd, flags | libc::O_APPEND)
            }
            opened => opened,
        }
    }

    /// What the guest may keep of a file's data, which are the `same` as when it opened the file last, as far
    /// as a [`Stamp`] tells.
    fn keeping(&self, same: bool) -> u32 {
        match self.options.cache {
            Cache::Auto if same => FOPEN_KEEP_CACHE,
            Cache::Auto => 0,
            Cache::Always => FOPEN_KEEP_CACHE,
            Cache::Never => FOPEN_DIRECT_IO,
        }
    }
}

impl Session {
    fn keep_file(&mut self, node: u64, fd: OwnedFd) -> OpenOut {
        // The descriptor was opened before: what changes from now on is seen when it is opened next.
        let stamp = match self.share.options.cache {
            Cache::Auto => sys::stat(fd.as_fd()).ok(),
            _ => None,
        };
        let stamp = stamp.and_then(|stat| Stamp::of(&stat, SystemTime::now()));
        let same = self.nodes.opens(node, stamp);
        let fh = self.handles.keep(node, fd, false);
        OpenOut { fh, open_flags: self.share.keeping(same), padding: 0 }
    }

    pub(super) fn open(&mut self, call: &mut Call<'_>) -> Result<Outcome> {
        let wanted: OpenIn = call.words.object()?;
        let flags = self.share.open_flags(wanted.flags)?;
        self.has_room()?;
        let id = call.header.nodeid;
        let node = self.nodes.get(id)?.file()?;
        let fd = self.share.open_there(node.fd(), flags, wanted.flags)?;
        if flags & libc::O_TRUNC != 0 && wanted.open_flags & OPEN_KILL_SUIDGID != 0 {
            self.share.disarm(node.fd())?;
        }
        let open = self.keep_file(id, fd);
        call.answer(&open)
    }

    pub(super) fn create(&mut self, call: &mut Call<'_>) -> Result<Outcome> {
        let wanted: CreateIn = call.words.object()?;
        let name = call.words.name()?;
        let flags = self.share.open_flags(wanted.flags)?;
        self.has_room()?;
        let may_be_there = wanted.flags as i32 & libc::O_EXCL == 0;
        let mut again = 1..=CREATE_AGAIN;
        loop {
            match self.make_file(call, name, flags, &wanted) {
                Ok(fd) => return self.answer_created(call, fd),
                Err(Errno(libc::EEXIST)) if may_be_there => {}
                Err(why) => return Err(why),
            }
            let found = self.open_found(call, name, flags, &wanted);
            match again.next() {
                // Somebody on the host has removed it meanwhile. Who makes and removes it without a pause
                // can keep step with this loop, so that it always comes at the wrong moment: it changes step.
                Some(turn) if matches!(found, Err(Errno(libc::ENOENT))) => {
                    std::thread::sleep(Duration::from_micros(turn));
                }
                _ => return found,
            }
        }
    }

    /// Makes a file as the user who asks for it; `EEXIST` when the name is taken.
    fn make_file(
        &self,
        call: &Call<'_>,
        name: Name<'_>,
        flags: i32,
        wanted: &CreateIn,
    ) -> Result<OwnedFd> {
        let dir = self.nodes.dir(call.header.nodeid)?;
        if let Err(full) = self.nodes.has_room() {
            // What is there and known needs no room; nothing is made.
            let there = sys::reference(dir.fd(), name.c_str()).is_ok();
            return Err(if there { Errno(libc::EEXIST) } else { full });
        }
        let _acting = self.share.owner.act(call.header.uid, call.header.gid)?;
        let exclusively = flags | libc::O_CREAT | libc::O_EXCL;
        sys::open_in(dir.fd(), name.c_str(), exclusively, wanted.mode & 0o7777)
    }

    /// Opens the file that is there instead of one that was to be made, and answers with it.
    fn open_found(
        &mut self,
        call: &mut Call<'_>,
        name: Name<'_>,
        flags: i32,
        wanted: &CreateIn,
    ) -> Result<Outcome> {
        let entry = self.find(call.header.nodeid, name)?;
        let opened = self.nodes.get(entry.nodeid).and_then(|node| {
            let fd = self.share.open_there(node.file()?.fd(), flags, wanted.flags)?;
            if flags & libc::O_TRUNC != 0 && wanted.open_flags & OPEN_KILL_SUIDGID != 0 {
                self.share.disarm(node.fd())?;
            }
            Ok((fd, sys::stat(node.fd())?))
        });
        match opened {
            Ok((fd, stat)) => {
                let entry = self.share.entry(entry.nodeid, &stat);
                self.answer_open(call, entry, fd)
            }
            Err(why) => {
                // The guest does not hear of it.
                self.nodes.forget(entry.nodeid, 1);
                Err(why)
            }
        }
    }

    pub(super) fn tmpfile(&mut self, call: &mut Call<'_>) -> Result<Outcome> {
        let wanted: CreateIn = call.words.object()?;
        let flags = self.share.open_flags(wanted.flags)? & !libc::O_TRUNC;
        // Whether it can be given a name later.
        let flags = flags | wanted.flags as i32 & libc::O_EXCL;
        self.has_room()?;
        self.nodes.has_room()?;
        let dir = self.nodes.dir(call.header.nodeid)?;
        let fd = {
            let _acting = self.share.owner.act(call.header.uid, call.header.gid)?;
            sys::tmpfile(dir.fd(), flags, wanted.mode & 0o7777)?
        };
        self.answer_created(call, fd)
    }

    /// Answers with a file that was just made. It is known by what was made, not by its name, which
    /// may be another's by now.
    fn answer_created(&mut self, call: &mut Call<'_>, fd: OwnedFd) -> Result<Outcome> {
        let reference = self.share.proc.reopen(fd.as_fd(), libc::O_PATH)?;
        let stat = sys::stat(reference.as_fd())?;
        let id = self.nodes.know(reference, &stat)?;
        let entry = self.share.entry(id, &stat);
        self.answer_open(call, entry, fd)
    }

    fn answer_open(
        &mut self,
        call: &mut Call<'_>,
        entry: EntryOut,
        fd: OwnedFd,
    ) -> Result<Outcome> {
        let open = self.keep_file(entry.nodeid, fd);
        call.answer(&CreateOut { entry, open })
    }

    pub(super) fn read(
        &mut self,
        call: &mut Call<'_>,
        message: &mut dyn Message,
    ) -> Result<Outcome> {
        let wanted: ReadIn = call.words.object()?;
        let fd = self.handles.file(call.header.nodeid, wanted.fh)?;
        let at = offset(wanted.offset)?;
        let len = (wanted.size as usize).min(call.room).min(DATA_MAX);
        let mut rest = message.writable(REPLY_HEADER, len).ok_or(Errno(libc::EINVAL))?;
        // What is missing behind the first short read is the file's end, or the next request's error.
        while !rest.is_empty() {
            let done = len - rest.len();
            match rest.preadv(fd, at.saturating_add(done as i64)) {
                Ok(0) => break,
                Ok(count) => rest.advance(count),
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Err(e) if done == 0 => return Err(e.into()),
                Err(_) => break,
            }
        }
        Ok(Outcome::Filled(len - rest.len()))
    }

    pub(super) fn write(
        &mut self,
        call: &mut Call<'_>,
        message: &mut dyn Message,
    ) -> Result<Outcome> {
        let wanted: WriteIn = call.words.object()?;
        let fd = self.handles.file(call.header.nodeid, wanted.fh)?;
        let at = offset(wanted.offset)?;
        let (data, len) = (HEADER + size_of::<WriteIn>(), wanted.size as usize);
        let sent = (call.header.len as usize).saturating_sub(data);
        if len > sent || len > DATA_MAX {
            return Err(Errno(libc::EINVAL));
        }
        if wanted.write_flags & WRITE_KILL_SUIDGID != 0 {
            self.share.disarm(fd)?;
        }
        // A page of a mapping has its place, also if the kernel sends it by a handle that appends.
        let append =
            wanted.flags as i32 & libc::O_APPEND != 0 && wanted.write_flags & WRITE_CACHE == 0;
        let mut rest = message.readable(data, len).ok_or(Errno(libc::EINVAL))?;
        while !rest.is_empty() {
            let done = len - rest.len();
            let written = match append {
                true => rest.append(fd),
                false => rest.pwritev(fd, at.saturating_add(done as i64)),
            };
            match written {
                Ok(0) => break,
                Ok(count) => rest.advance(count),
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Err(e) if done == 0 => return Err(e.into()),
                Err(_) => break,
            }
        }
        // At most DATA_MAX.
        call.answer(&WriteOut { size: (len - rest.len()) as u32, padding: 0 })
    }

    pub(super) fn release(&mut self, call: &mut Call<'_>) -> Result<Outcome> {
        let wanted: ReleaseIn = call.words.object()?;
        self.handles.release(call.header.nodeid, wanted.fh)?;
        self.locks.close(call.header.nodeid, wanted.fh);
        if wanted.release_flags & RELEASE_FLOCK_UNLOCK != 0 {
            self.locks.release(call.header.nodeid, wanted.lock_owner, true);
        }
        Ok(Outcome::Reply)
    }

    /// A descriptor of the guest's is closed: its owner's locks on the file end.
    pub(super) fn flush(&mut self, call: &mut Call<'_>) -> Result<Outcome> {
        let wanted: FlushIn = call.words.object()?;
        self.handles.file(call.header.nodeid, wanted.fh)?;
        self.locks.release(call.header.nodeid, wanted.lock_owner, false);
        Ok(Outcome::Reply)
    }

    pub(super) fn fsync(&mut self, call: &mut Call<'_>, directory: bool) -> Result<Outcome> {
        let wanted: FsyncIn = call.words.object()?;
        let id = call.header.nodeid;
        let fd = if directory {
            self.handles.dir(id, wanted.fh)?
        } else {
            self.handles.file(id, wanted.fh)?
        };
        if !self.share.options.read_only {
            sys::sync(fd, wanted.fsync_flags & FSYNC_FDATASYNC != 0)?;
        }
        Ok(Outcome::Reply)
    }

    /// Takes a file's set-user-id bits away that somebody else than the guest's root is going to change; of
    /// these requests the guest's kernel does not say so, as it does of writing.
    fn disarm_for(&self, call: &Call<'_>, fd: BorrowedFd<'_>) -> Result<()> {
        if call.header.uid == 0 { Ok(()) } else { self.share.disarm(fd) }
    }

    pub(super) fn fallocate(&mut self, call: &mut Call<'_>) -> Result<Outcome> {
        let wanted: FallocateIn = call.words.object()?;
        let fd = self.handles.file(call.header.nodeid, wanted.fh)?;
        let mode = i32::try_from(wanted.mode).map_err(|_| Errno(libc::EOPNOTSUPP))?;
        self.disarm_for(call, fd)?;
        sys::fallocate(fd, mode, offset(wanted.offset)?, offset(wanted.length)?)?;
        Ok(Outcome::Reply)
    }

    pub(super) fn lseek(&mut self, call: &mut Call<'_>) -> Result<Outcome> {
        let wanted: LseekIn = call.words.object()?;
        let fd: BorrowedFd<'_> = self.handles.file(call.header.nodeid, wanted.fh)?;
        let whence = match i32::try_from(wanted.whence) {
            Ok(whence @ (libc::SEEK_DATA | libc::SEEK_HOLE)) => whence,
            // The others the guest does by itself.
            _ => return Err(Errno(libc::EINVAL)),
        };
        let at = sys::lseek(fd, offset(wanted.offset)?, whence)?;
        call.answer(&LseekOut { offset: at as u64 })
    }

    pub(super) fn copy_file_range(&mut self, call: &mut Call<'_>) -> Result<Outcome> {
        let wanted: CopyIn = call.words.object()?;
        if wanted.flags != 0 {
            return Err(Errno(libc::EINVAL));
        }
        let from = self.handles.file(call.header.nodeid, wanted.fh_in)?;
        let to = self.handles.file(wanted.nodeid_out, wanted.fh_out)?;
        self.disarm_for(call, to)?;
        let len = wanted.len.min(COPY_MAX) as usize;
        let (from, to) = ((from, offset(wanted.off_in)?), (to, offset(wanted.off_out)?));
        let copied = sys::copy(from, to, len)?;
        // At most COPY_MAX.
        call.answer(&WriteOut { size: copied as u32, padding: 0 })
    }
}
