//! One guest's mount of a share: takes requests apart, has them done, and answers them.
//!
//! A request is checked before anything is done: its length, the room for its reply, and in a
//! read-only share that it changes nothing. Whatever is wrong with it is an error in its reply, and
//! the next request is served as if nothing had been.

use std::io;
use std::sync::Arc;

use vm_memory::ByteValued;

use super::entries::LastTold;
use super::errno::{Errno, Result};
use super::handles::Handles;
use super::locks::{Locks, Waiting};
use super::message::{HEADER, Message, REPLY_HEADER, Words, object, reply_header};
use super::nodes::Nodes;
use super::share::{Cache, Share};
use super::wire::{
    BatchForgetIn, ForgetIn, ForgetOne, InHeader, InitIn, InitOut, InterruptIn, MAJOR, MINOR,
    MINOR_MIN, WriteIn, init, op, reply_len,
};

/// The most bytes of file data or directory entries in one request.
pub const DATA_MAX: usize = 1 << 20;
/// The same in pages, as the guest's kernel counts.
const PAGES_MAX: u16 = (DATA_MAX >> 12) as u16;
/// The longest body that is not file data: an attribute's value (`XATTR_SIZE_MAX`), names, forgotten
/// nodes by the thousand.
const BODY_MAX: usize = 136 << 10;

/// What became of a request.
#[derive(Debug)]
pub enum Served {
    /// It is answered; so many bytes of the reply were filled. 0: it has no reply.
    Done(u32),
    /// It waits for a lock. The device asks again with [`Session::try_again`].
    Waits(Waiting),
    /// The request of that number need not wait any longer; this one has no reply.
    Interrupt(u64),
    /// It was given up while the host worked on it: nothing of the message may be touched any more.
    GivenUp,
}

/// One mount.
pub struct Session {
    pub(super) share: Arc<Share>,
    pub(super) nodes: Nodes,
    pub(super) handles: Handles,
    pub(super) locks: Locks,
    /// `INIT` is done.
    mounted: bool,
    body: Vec<u8>,
    reply: Vec<u8>,
    /// Directory entries on their way.
    pub(super) entries: Vec<u8>,
    pub(super) told: LastTold,
}

/// A request while it is served.
pub(super) struct Call<'a> {
    pub(super) header: InHeader,
    /// What follows the header.
    pub(super) words: Words<'a>,
    /// Bytes there are for the reply, without its header.
    pub(super) room: usize,
    pub(super) reply: &'a mut Vec<u8>,
}

impl Call<'_> {
    /// Adds an object to the reply.
    pub(super) fn answer<T: ByteValued>(&mut self, object: &T) -> Result<Outcome> {
        self.reply.extend_from_slice(object.as_slice());
        Ok(Outcome::Reply)
    }
}

/// What a request leads to, when it is not refused.
pub(super) enum Outcome {
    /// What is in [`Call::reply`].
    Reply,
    /// So many bytes are in the message already.
    Filled(usize),
    Waits(Waiting),
}

impl Session {
    /// What one guest is served with.
    ///
    /// # Errors
    /// When the process has no descriptor left.
    pub fn of(share: Arc<Share>) -> io::Result<Session> {
        let (root, stat) = share.root()?;
        let max = share.options().max_files;
        Ok(Session {
            nodes: Nodes::new(root, &stat, max - max / 4),
            handles: Handles::new(),
            locks: Locks::default(),
            share,
            mounted: false,
            body: Vec::new(),
            reply: Vec::new(),
            entries: Vec::new(),
            told: LastTold::default(),
        })
    }

    /// Whether a guest has the share mounted.
    pub fn is_mounted(&self) -> bool {
        self.mounted
    }

    /// Files the guest knows of, and files it has open or locked.
    pub fn holdings(&self) -> (usize, usize) {
        (self.nodes.len(), self.handles.len() + self.locks.len())
    }

    /// Serves one request.
    pub fn serve(&mut self, message: &mut dyn Message) -> Served {
        let header = object::<InHeader>(message, 0);
        let Some(header) = header else { return finish(message, 0, Err(Errno(libc::EINVAL))) };
        let unique = header.unique;
        let (mut body, mut reply) =
            (std::mem::take(&mut self.body), std::mem::take(&mut self.reply));
        reply.clear();
        let served = match read_body(message, &header, &mut body) {
            Err(why) if has_reply(header.opcode) => finish(message, unique, Err(why)),
            Err(_) => Served::Done(0),
            Ok(()) => {
                let room = message.writable_len().saturating_sub(REPLY_HEADER);
                let words = Words(&body);
                let mut call = Call { header, words, room, reply: &mut reply };
                match header.opcode {
                    op::FORGET | op::BATCH_FORGET => {
                        // Nobody waits for an answer, not even to nonsense.
                        let _ = self.forget(&mut call);
                        Served::Done(0)
                    }
                    op::INTERRUPT => match call.words.object::<InterruptIn>() {
                        Ok(interrupt) => Served::Interrupt(interrupt.unique),
                        Err(_) => Served::Done(0),
                    },
                    _ => match self.attend(&mut call, message) {
                        None => Served::GivenUp,
                        Some(Ok(Outcome::Waits(waiting))) => Served::Waits(waiting),
                        Some(Ok(Outcome::Filled(len))) => finish(message, unique, Ok((len, &[]))),
                        Some(Ok(Outcome::Reply)) => finish(message, unique, Ok((0, &reply))),
                        Some(Err(why)) => finish(message, unique, Err(why)),
                    },
                }
            }
        };
        (self.body, self.reply) = (body, reply);
        served
    }

    /// Does what a request asks for, if it may be done; `None` when it was given up meanwhile.
    fn attend(
        &mut self,
        call: &mut Call<'_>,
        message: &mut dyn Message,
    ) -> Option<Result<Outcome>> {
        let opcode = call.header.opcode;
        if message.writable_len() < REPLY_HEADER || call.room < reply_len(opcode) {
            return Some(Err(Errno(libc::EINVAL)));
        }
        if let Err(why) = self.admit(opcode) {
            return Some(Err(why));
        }
        match opcode {
            op::READ => return Some(self.read(call, message)),
            op::WRITE => return Some(self.write(call, message)),
            _ => {}
        }
        let mut result = Err(Errno(libc::EIO));
        message.away(&mut || result = self.run(call)).then_some(result)
    }

    /// Whether such a request may be made now.
    fn admit(&self, opcode: u32) -> Result<()> {
        match opcode {
            op::INIT | op::DESTROY => Ok(()),
            _ if !self.mounted => Err(Errno(libc::EIO)),
            op::SETATTR
            | op::SYMLINK
            | op::MKNOD
            | op::MKDIR
            | op::UNLINK
            | op::RMDIR
            | op::RENAME
            | op::RENAME2
            | op::LINK
            | op::WRITE
            | op::SETXATTR
            | op::REMOVEXATTR
            | op::CREATE
            | op::TMPFILE
            | op::FALLOCATE
            | op::COPY_FILE_RANGE => self.share.writable(),
            _ => Ok(()),
        }
    }

    /// Does what a request asks for that has no file data.
    fn run(&mut self, call: &mut Call<'_>) -> Result<Outcome> {
        match call.header.opcode {
            op::INIT => self.init(call),
            op::DESTROY => {
                self.clear();
                Ok(Outcome::Reply)
            }
            op::LOOKUP => self.lookup(call),
            op::GETATTR => self.getattr(call),
            op::SETATTR => self.setattr(call),
            op::READLINK => self.readlink(call),
            op::SYMLINK => self.symlink(call),
            op::MKNOD => self.mknod(call),
            op::MKDIR => self.mkdir(call),
            op::UNLINK => self.unlink(call, 0),
            op::RMDIR => self.unlink(call, libc::AT_REMOVEDIR),
            op::RENAME => self.rename(call, false),
            op::RENAME2 => self.rename(call, true),
            op::LINK => self.link(call),
            op::OPEN => self.open(call),
            op::STATFS => self.statfs(call),
            op::RELEASE | op::RELEASEDIR => self.release(call),
            op::FSYNC => self.fsync(call, false),
            op::SETXATTR => self.setxattr(call),
            op::GETXATTR => self.getxattr(call),
            op::LISTXATTR => self.listxattr(call),
            op::REMOVEXATTR => self.removexattr(call),
            // Nothing is locked, and the guest need not tell of each close.
            op::FLUSH if self.share.options.read_only => Err(Errno(libc::ENOSYS)),
            op::FLUSH => self.flush(call),
            op::OPENDIR => self.opendir(call),
            op::READDIR => self.readdir(call, false),
            op::READDIRPLUS => self.readdir(call, true),
            op::FSYNCDIR => self.fsync(call, true),
            op::GETLK => self.getlk(call),
            op::SETLK => self.setlk(call, false),
            op::SETLKW => self.setlk(call, true),
            op::ACCESS => self.access(call),
            op::CREATE => self.create(call),
            op::TMPFILE => self.tmpfile(call),
            op::FALLOCATE => self.fallocate(call),
            op::LSEEK => self.lseek(call),
            op::COPY_FILE_RANGE => self.copy_file_range(call),
            op::SYNCFS => self.syncfs(),
            _ => Err(Errno(libc::ENOSYS)),
        }
    }

    /// The guest mounts the share. What an earlier mount left is gone.
    fn init(&mut self, call: &mut Call<'_>) -> Result<Outcome> {
        let offer: InitIn = call.words.object()?;
        let mut answer = InitOut { major: MAJOR, minor: MINOR, ..InitOut::default() };
        if offer.major > MAJOR {
            // It asks again, with a version that it was told.
            return call.answer(&answer);
        }
        if offer.major < MAJOR || offer.minor < MINOR_MIN {
            return Err(Errno(libc::EPROTO));
        }
        self.clear();
        self.mounted = true;
        let mut wanted = init::ASYNC_READ
            | init::ATOMIC_O_TRUNC
            | init::BIG_WRITES
            | init::DO_READDIRPLUS
            | init::READDIRPLUS_AUTO
            | init::ASYNC_DIO
            | init::PARALLEL_DIROPS
            | init::MAX_PAGES
            // Otherwise the guest asks for an attribute before each write.
            | init::HANDLE_KILLPRIV_V2;
        if !self.share.options.read_only {
            wanted |= init::POSIX_LOCKS | init::FLOCK_LOCKS;
        }
        wanted |= match self.share.options.cache {
            // Where a link leads never changes: another one is another file.
            Cache::Auto => init::AUTO_INVAL_DATA | init::CACHE_SYMLINKS,
            Cache::Always => init::CACHE_SYMLINKS,
            Cache::Never => 0,
        };
        answer.flags = wanted & offer.flags;
        answer.minor = MINOR.min(offer.minor);
        answer.max_readahead = offer.max_readahead.min(DATA_MAX as u32);
        answer.max_write = DATA_MAX as u32;
        answer.max_pages = PAGES_MAX;
        answer.max_background = 64;
        answer.congestion_threshold = 48;
        // Nanoseconds.
        answer.time_gran = 1;
        call.answer(&answer)
    }

    /// Forgets everything but the directory itself.
    fn clear(&mut self) {
        self.mounted = false;
        self.locks.clear();
        self.handles.clear();
        self.told.clear();
        self.nodes.clear();
    }

    fn forget(&mut self, call: &mut Call<'_>) -> Result<()> {
        if call.header.opcode == op::FORGET {
            let forget: ForgetIn = call.words.object()?;
            self.nodes.forget(call.header.nodeid, forget.nlookup);
            return Ok(());
        }
        let batch: BatchForgetIn = call.words.object()?;
        // The body's end comes before a count that is too high.
        for _ in 0..batch.count {
            let one: ForgetOne = call.words.object()?;
            self.nodes.forget(one.nodeid, one.nlookup);
        }
        Ok(())
    }

    /// Whether there is room for one more open or locked file.
    pub(super) fn has_room(&self) -> Result<()> {
        let held = self.handles.len() + self.locks.len();
        if held < self.share.options.max_files / 4 { Ok(()) } else { Err(Errno(libc::ENFILE)) }
    }
}

/// Whether a request is one that the host mostly answers from memory: those that look at names and change nothing.
pub fn is_brief(message: &dyn Message) -> bool {
    let opcode = object::<InHeader>(message, 0).map_or(0, |header| header.opcode);
    matches!(
        opcode,
        op::LOOKUP
            | op::GETATTR
            | op::READLINK
            | op::ACCESS
            | op::OPENDIR
            | op::READDIR
            | op::READDIRPLUS
            | op::RELEASEDIR
    )
}

/// Whether a request is answered at all.
fn has_reply(opcode: u32) -> bool {
    !matches!(opcode, op::FORGET | op::BATCH_FORGET | op::INTERRUPT)
}

/// Copies a request's body, without file data.
fn read_body(message: &dyn Message, header: &InHeader, body: &mut Vec<u8>) -> Result<()> {
    let len = header.len as usize;
    let mut len = len.checked_sub(HEADER).ok_or(Errno(libc::EINVAL))?;
    if header.len as usize > message.readable_len() {
        return Err(Errno(libc::EINVAL));
    }
    if header.opcode == op::WRITE {
        len = len.min(size_of::<WriteIn>());
    }
    if len > BODY_MAX {
        return Err(Errno(libc::E2BIG));
    }
    body.clear();
    body.resize(len, 0);
    if message.copy_to(HEADER, body) { Ok(()) } else { Err(Errno(libc::EINVAL)) }
}

/// Writes a reply: its header, and what is not there yet of `filled` bytes and `body`.
fn finish(message: &mut dyn Message, unique: u64, result: Result<(usize, &[u8])>) -> Served {
    let room = message.writable_len().saturating_sub(REPLY_HEADER);
    let (error, filled, body) = match result {
        Ok((filled, body)) if body.len() <= room => (0, filled, body),
        Ok(_) => (-libc::ERANGE, 0, &[][..]),
        Err(why) => (-why.0, 0, &[][..]),
    };
    let len = REPLY_HEADER + filled + body.len();
    let header = reply_header(len as u32, error, unique);
    // A guest that left no room for an answer gets none.
    let whole = message.copy_from(0, &header) && message.copy_from(REPLY_HEADER, body);
    Served::Done(if whole { len as u32 } else { 0 })
}
