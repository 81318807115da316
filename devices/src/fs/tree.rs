//! Names: looking them up, making, moving and removing them.

use std::ffi::CStr;
use std::time::Instant;

use super::errno::{Errno, Result};
use super::message::Name;
use super::session::{Call, Outcome, Session};
use super::share::Cache;
use super::sys;
use super::wire::{EntryOut, LinkIn, MkdirIn, MknodIn, Rename2In, RenameIn};

/// The longest target of a symbolic link (`PATH_MAX`).
const TARGET_MAX: usize = 4096;
/// The flags of renameat2(2) that Linux has.
const RENAME_FLAGS: u32 = libc::RENAME_NOREPLACE | libc::RENAME_EXCHANGE | libc::RENAME_WHITEOUT;

impl Session {
    /// What `name` in the directory `dir` is; the guest knows it then.
    pub(super) fn find(&mut self, dir: u64, name: Name<'_>) -> Result<EntryOut> {
        let parent = self.nodes.dir(dir)?;
        // What is known need not be opened.
        if let Ok(stat) = sys::stat_in(parent.fd(), name.c_str())
            && let Some(id) = self.nodes.again(&stat)
        {
            return Ok(self.share.entry(id, &stat));
        }
        let parent = self.nodes.dir(dir)?;
        let fd = sys::reference(parent.fd(), name.c_str())?;
        let stat = self.share.admit(std::os::fd::AsFd::as_fd(&fd), parent.device())?;
        let id = self.nodes.know(fd, &stat)?;
        Ok(self.share.entry(id, &stat))
    }

    pub(super) fn lookup(&mut self, call: &mut Call<'_>) -> Result<Outcome> {
        let name = call.words.name()?;
        match self.find(call.header.nodeid, name) {
            // The guest may remember that there is nothing: whoever looks along a path does so all the time.
            Err(Errno(libc::ENOENT))
                if self.share.options.cache != Cache::Never
                    && self.nodes.dir(call.header.nodeid).is_ok() =>
            {
                let entry_valid = self.share.options.cache.lifetime().as_secs();
                call.answer(&EntryOut { entry_valid, ..EntryOut::default() })
            }
            found => {
                let entry = found?;
                if let Some(listing) = self.nodes.listing(call.header.nodeid) {
                    listing.was_asked(Instant::now());
                }
                call.answer(&entry)
            }
        }
    }

    pub(super) fn readlink(&mut self, call: &mut Call<'_>) -> Result<Outcome> {
        let node = self.nodes.get(call.header.nodeid)?;
        if !node.is_symlink() {
            return Err(Errno(libc::EINVAL));
        }
        call.reply.resize(TARGET_MAX, 0);
        let len = sys::readlink(node.fd(), call.reply)?;
        call.reply.truncate(len);
        Ok(Outcome::Reply)
    }

    /// Has `make` make something in the request's directory, as the user who asks for it, and answers
    /// with what is there then.
    fn make(
        &mut self,
        call: &mut Call<'_>,
        name: Name<'_>,
        make: impl FnOnce(std::os::fd::BorrowedFd<'_>, &CStr) -> Result<()>,
    ) -> Result<Outcome> {
        self.nodes.has_room()?;
        let dir = self.nodes.dir(call.header.nodeid)?;
        {
            let _acting = self.share.owner.act(call.header.uid, call.header.gid)?;
            make(dir.fd(), name.c_str())?;
        }
        let entry = self.find(call.header.nodeid, name)?;
        call.answer(&entry)
    }

    pub(super) fn symlink(&mut self, call: &mut Call<'_>) -> Result<Outcome> {
        let (name, target) = (call.words.name()?, call.words.string()?);
        self.make(call, name, |dir, name| sys::symlink(target, dir, name))
    }

    pub(super) fn mkdir(&mut self, call: &mut Call<'_>) -> Result<Outcome> {
        let wanted: MkdirIn = call.words.object()?;
        let name = call.words.name()?;
        self.make(call, name, |dir, name| sys::mkdir(dir, name, wanted.mode & 0o7777))
    }

    pub(super) fn mknod(&mut self, call: &mut Call<'_>) -> Result<Outcome> {
        let wanted: MknodIn = call.words.object()?;
        let name = call.words.name()?;
        match wanted.mode & libc::S_IFMT {
            libc::S_IFREG | libc::S_IFIFO | libc::S_IFSOCK => {}
            // The whiteout of an overlay is device 0:0, which is nothing.
            libc::S_IFCHR if wanted.rdev == 0 => {}
            // A guest's root would make a door to the host's devices, where a husk of root's lets it.
            _ => return Err(Errno(libc::EPERM)),
        }
        let mode = wanted.mode & (libc::S_IFMT | 0o7777);
        self.make(call, name, |dir, name| sys::mknod(dir, name, mode, 0))
    }

    pub(super) fn unlink(&mut self, call: &mut Call<'_>, flags: i32) -> Result<Outcome> {
        let name = call.words.name()?;
        sys::unlink(self.nodes.dir(call.header.nodeid)?.fd(), name.c_str(), flags)?;
        Ok(Outcome::Reply)
    }

    pub(super) fn rename(&mut self, call: &mut Call<'_>, second: bool) -> Result<Outcome> {
        let (newdir, flags) = if second {
            let wanted: Rename2In = call.words.object()?;
            (wanted.newdir, wanted.flags)
        } else {
            (call.words.object::<RenameIn>()?.newdir, 0)
        };
        let (from, to) = (call.words.name()?, call.words.name()?);
        if flags & !RENAME_FLAGS != 0 {
            return Err(Errno(libc::EINVAL));
        }
        let (olddir, newdir) = (self.nodes.dir(call.header.nodeid)?, self.nodes.dir(newdir)?);
        sys::rename((olddir.fd(), from.c_str()), (newdir.fd(), to.c_str()), flags)?;
        Ok(Outcome::Reply)
    }

    pub(super) fn link(&mut self, call: &mut Call<'_>) -> Result<Outcome> {
        let wanted: LinkIn = call.words.object()?;
        let name = call.words.name()?;
        let (dir, node) = (self.nodes.dir(call.header.nodeid)?, self.nodes.get(wanted.oldnodeid)?);
        self.share.proc.link(node.fd(), dir.fd(), name.c_str())?;
        // The guest knows the file already, so there is room for it.
        let entry = self.find(call.header.nodeid, name)?;
        call.answer(&entry)
    }
}
