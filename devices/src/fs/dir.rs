//! Directories: their entries, with and without what they are.

use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Instant, SystemTime};

use vm_memory::ByteValued;

use super::entries::next_entry;
use super::errno::{Errno, Result};
use super::message::Name;
use super::nodes::Nodes;
use super::session::{Call, Outcome, Session};
use super::share::{Cache, Share};
use super::stamp::Stamp;
use super::sys;
use super::wire::{
    Dirent, EntryOut, FOPEN_CACHE_DIR, FOPEN_KEEP_CACHE, OpenIn, OpenOut, ROOT, ReadIn,
};

/// The most bytes of entries that are asked of the host at a time.
const ENTRIES: usize = 32 << 10;
/// The most bytes of one reply: it is put together here, and the guest comes again.
const REPLY_MAX: usize = 128 << 10;
/// Bytes of the host's shortest entry.
const SHORTEST: usize = 24;

impl Session {
    pub(super) fn opendir(&mut self, call: &mut Call<'_>) -> Result<Outcome> {
        let _: OpenIn = call.words.object()?;
        self.has_room()?;
        let id = call.header.nodeid;
        let fd = sys::open_dir(self.nodes.dir(id)?.fd(), self.share.options.read_only)?;
        let open_flags = match self.share.options.cache {
            Cache::Always => FOPEN_CACHE_DIR | FOPEN_KEEP_CACHE,
            Cache::Auto => self.keeping_entries(id, fd.as_fd()),
            Cache::Never => 0,
        };
        let fh = self.handles.keep(id, fd, true);
        call.answer(&OpenOut { fh, open_flags, padding: 0 })
    }

    /// What the guest may keep of the entries of a directory that it opens: those of before the descriptor was opened
    /// are believed as long as it looks as it does now.
    fn keeping_entries(&mut self, id: u64, fd: BorrowedFd<'_>) -> u32 {
        let kind = || sys::statfs(fd).ok().map(|statfs| statfs.f_type);
        let is_timed = self.nodes.listing(id).is_some_and(|listing| listing.is_timed(kind));
        let stat = if is_timed { sys::stat(fd).ok() } else { None };
        let stamp = stat.and_then(|stat| Stamp::of(&stat, SystemTime::now()));
        let same = stamp.map(|stamp| self.nodes.opens(id, Some(stamp)));
        self.nodes.listing(id).map_or(0, |listing| listing.open(same, Instant::now()))
    }

    /// Fills the reply with entries from a position on; `plus`, each with what it is, which the guest
    /// knows then.
    ///
    /// Never more is read than there is room for: not every file system finds a place in a directory
    /// again from which something was removed meanwhile. What the guest was told and had no room for it is
    /// told again as it was.
    pub(super) fn readdir(&mut self, call: &mut Call<'_>, plus: bool) -> Result<Outcome> {
        let wanted: ReadIn = call.words.object()?;
        let at = i64::try_from(wanted.offset).map_err(|_| Errno(libc::EINVAL))?;
        let (fd, position) = self.handles.reading(call.header.nodeid, wanted.fh)?;
        let mut told = self.told.take(wanted.fh, wanted.offset);
        if at == *position {
            // It had room for all. This ends also where several entries have one position.
            told.entries.clear();
        } else if told.entries.is_empty() {
            sys::lseek(fd, at, libc::SEEK_SET)?;
            *position = at;
        }
        let mut count = 0;
        let done = self.tell(call, &wanted, plus, &mut told.entries, &mut count);
        self.told.put(told);
        if let (Ok(_), Some(listing)) = (&done, self.nodes.listing(call.header.nodeid)) {
            listing.was_read(wanted.offset, count);
        }
        done
    }

    /// Fills the reply with `entries` and, as far as there is room, those that the host has behind them, which
    /// are added to them. Counts them.
    fn tell(
        &mut self,
        call: &mut Call<'_>,
        wanted: &ReadIn,
        plus: bool,
        entries: &mut Vec<u8>,
        count: &mut u32,
    ) -> Result<Outcome> {
        let id = call.header.nodeid;
        let (root, dir) = (id == ROOT, self.nodes.dir(id)?);
        let (own, device) = (sys::stat(dir.fd())?.st_ino, dir.device());
        let (fd, position) = self.handles.reading(id, wanted.fh)?;
        let limit = (wanted.size as usize).min(call.room).min(REPLY_MAX);
        let head = size_of::<Dirent>() + if plus { size_of::<EntryOut>() } else { 0 };
        self.entries.resize(ENTRIES, 0);
        let mut told = 0;
        loop {
            let mut bytes = entries.get(told..).unwrap_or_default();
            while let Some(entry) = next_entry(&mut bytes) {
                let name = entry.name.to_bytes();
                let end = call.reply.len() + (head + name.len()).next_multiple_of(8);
                // The guest goes on from here, with less room than it had before.
                if end > limit {
                    return if told == 0 { Err(Errno(libc::EINVAL)) } else { Ok(Outcome::Reply) };
                }
                if plus {
                    let known = known(&self.share, &mut self.nodes, fd, device, entry.name);
                    // Without a number the guest looks it up by itself, should it want to.
                    call.reply.extend_from_slice(known.unwrap_or_default().as_slice());
                }
                // What lies above the share is nobody's business.
                let ino = if root && name == b".." { own } else { entry.ino };
                let ino = self.share.inode(device, ino);
                let dirent = Dirent {
                    ino,
                    off: entry.next,
                    // A name has at most 1024 bytes.
                    namelen: name.len() as u32,
                    kind: entry.kind.into(),
                };
                call.reply.extend_from_slice(dirent.as_slice());
                call.reply.extend_from_slice(name);
                call.reply.resize(end, 0);
                *count += 1;
                told = entries.len() - bytes.len();
            }
            // However short the names are, so many bytes of entries grow into the room that is left.
            let room = (limit - call.reply.len()) * SHORTEST / (head + 8);
            if room < SHORTEST && !call.reply.is_empty() {
                return Ok(Outcome::Reply);
            }
            let room = self.entries.get_mut(..room.min(ENTRIES)).unwrap_or_default();
            let len = match sys::getdents(fd, room) {
                Ok(0) => return Ok(Outcome::Reply),
                Ok(len) => len,
                // The next one may be too long (EINVAL); of all else the guest hears when it asks for more.
                Err(_) if !call.reply.is_empty() => return Ok(Outcome::Reply),
                Err(why) => return Err(why),
            };
            let mut read = self.entries.get(..len).unwrap_or_default();
            entries.extend_from_slice(read);
            while let Some(entry) = next_entry(&mut read) {
                // A position that the host has chosen: as it is, it is given back.
                *position = entry.next as i64;
            }
        }
    }
}

/// What `name` in an open directory is; the guest knows it then.
fn known(
    share: &Share,
    nodes: &mut Nodes,
    dir: BorrowedFd<'_>,
    device: u64,
    name: &CStr,
) -> Result<EntryOut> {
    let name = Name::new(name)?;
    if let Ok(stat) = sys::stat_in(dir, name.c_str())
        && let Some(id) = nodes.again(&stat)
    {
        return Ok(share.entry(id, &stat));
    }
    let fd = sys::reference(dir, name.c_str())?;
    let stat = share.admit(fd.as_fd(), device)?;
    Ok(share.entry(nodes.know(fd, &stat)?, &stat))
}
