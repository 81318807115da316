//! Directories: their entries, with and without what they are.

use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd};

use vm_memory::ByteValued;

use super::errno::{Errno, Result};
use super::message::{Name, Words};
use super::nodes::Nodes;
use super::session::{Call, Outcome, Session};
use super::share::{Cache, Share};
use super::sys;
use super::wire::{
    Dirent, EntryOut, FOPEN_CACHE_DIR, FOPEN_KEEP_CACHE, OpenIn, OpenOut, ROOT, ReadIn,
};

/// The most bytes of entries that are asked of the host at a time.
const ENTRIES: usize = 32 << 10;
/// The most bytes of one reply: it is put together here, and the guest comes again.
const REPLY_MAX: usize = 128 << 10;
/// Bytes of the host's shortest entry, and of the longest one with a name of 255 bytes.
const SHORTEST: usize = 24;
const LONGEST: usize = 280;
/// Bytes of a `linux_dirent64` before its name: inode, position, length, kind.
const FIXED: usize = 19;

/// One entry as the host has it.
struct Entry<'a> {
    ino: u64,
    /// Where the next one is.
    next: u64,
    kind: u8,
    name: &'a CStr,
}

/// Takes the first entry from `bytes`.
fn next_entry<'a>(bytes: &mut &'a [u8]) -> Option<Entry<'a>> {
    let mut words = Words(bytes);
    let (ino, next, len) =
        (words.object().ok()?, words.object().ok()?, words.object::<u16>().ok()?);
    let kind = words.object().ok()?;
    let (whole, rest) = bytes.split_at_checked(usize::from(len))?;
    let name = CStr::from_bytes_until_nul(whole.get(FIXED..)?).ok()?;
    *bytes = rest;
    Some(Entry { ino, next, kind, name })
}

impl Session {
    pub(super) fn opendir(&mut self, call: &mut Call<'_>) -> Result<Outcome> {
        let _: OpenIn = call.words.object()?;
        self.has_room()?;
        let id = call.header.nodeid;
        let fd = sys::open_dir(self.nodes.dir(id)?.fd(), self.share.options.read_only)?;
        let fh = self.handles.keep(id, fd, true);
        let open_flags = match self.share.options.cache {
            Cache::Always => FOPEN_CACHE_DIR | FOPEN_KEEP_CACHE,
            _ => 0,
        };
        call.answer(&OpenOut { fh, open_flags, padding: 0 })
    }

    /// Fills the reply with entries from a position on; `plus`, each with what it is, which the guest
    /// knows then.
    ///
    /// Never more is read than there is room for: not every file system finds a place in a directory
    /// again from which something was removed meanwhile.
    pub(super) fn readdir(&mut self, call: &mut Call<'_>, plus: bool) -> Result<Outcome> {
        let wanted: ReadIn = call.words.object()?;
        let id = call.header.nodeid;
        let (root, dir) = (id == ROOT, self.nodes.dir(id)?);
        let (own, device) = (sys::stat(dir.fd())?.st_ino, dir.device());
        let (fd, position) = self.handles.reading(id, wanted.fh)?;
        let limit = (wanted.size as usize).min(call.room).min(REPLY_MAX);
        let at = i64::try_from(wanted.offset).map_err(|_| Errno(libc::EINVAL))?;
        if at != *position {
            sys::lseek(fd, at, libc::SEEK_SET)?;
            *position = at;
        }
        let head = size_of::<Dirent>() + if plus { size_of::<EntryOut>() } else { 0 };
        self.entries.resize(ENTRIES, 0);
        loop {
            // However short the names are, so many bytes of entries grow into the room that is left.
            let room = (limit - call.reply.len()) * SHORTEST / (head + 8);
            if room < LONGEST && !call.reply.is_empty() {
                return Ok(Outcome::Reply);
            }
            let room = self.entries.get_mut(..room.min(ENTRIES)).unwrap_or_default();
            let len = match sys::getdents(fd, room) {
                Ok(0) => return Ok(Outcome::Reply),
                Ok(len) => len,
                // The guest hears of it when it asks for more.
                Err(_) if !call.reply.is_empty() => return Ok(Outcome::Reply),
                Err(why) => return Err(why),
            };
            let mut bytes = self.entries.get(..len).unwrap_or_default();
            while let Some(entry) = next_entry(&mut bytes) {
                let name = entry.name.to_bytes();
                let end = call.reply.len() + (head + name.len()).next_multiple_of(8);
                // It cannot be; should it be, the guest goes on from here.
                if end > limit {
                    return Ok(Outcome::Reply);
                }
                // A position that the host has chosen: as it is, it is given back.
                *position = entry.next as i64;
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
