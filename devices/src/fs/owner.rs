//! Whose a file is, on the host and in the guest.
//!
//! Root's husk shares files with their owners as they are, and the guest's users make files of their
//! own. Anybody else's husk does everything as that user, who is root to the guest: their files, and
//! those of the host's root, are the guest's root's; others keep their numbers. What the user may not
//! do the guest may not do.

use super::errno::Result;
use super::sys::Acting;

/// The user that husk runs as.
#[derive(Debug, Clone, Copy)]
pub(super) struct Owner {
    uid: u32,
    gid: u32,
}

impl Owner {
    /// The calling thread's user.
    pub(super) fn current() -> Owner {
        // SAFETY: they cannot fail and touch no memory.
        unsafe { Owner { uid: libc::geteuid(), gid: libc::getegid() } }
    }

    fn is_root(self) -> bool {
        self.uid == 0
    }

    /// A user of the host's, as the guest sees them.
    pub(super) fn guest_uid(self, uid: u32) -> u32 {
        if uid == self.uid { 0 } else { uid }
    }

    /// A group of the host's, as the guest sees it.
    pub(super) fn guest_gid(self, gid: u32) -> u32 {
        if gid == self.gid && !self.is_root() { 0 } else { gid }
    }

    /// A user of the guest's, on the host.
    pub(super) fn host_uid(self, uid: u32) -> u32 {
        if uid == 0 { self.uid } else { uid }
    }

    /// A group of the guest's, on the host.
    pub(super) fn host_gid(self, gid: u32) -> u32 {
        if gid == 0 && !self.is_root() { self.gid } else { gid }
    }

    /// Has the calling thread make files as a user of the guest's, as far as it can.
    pub(super) fn act(self, uid: u32, gid: u32) -> Result<Option<Acting>> {
        let other = self.is_root() && (uid, gid) != (self.uid, self.gid);
        if other { Acting::of(uid, gid).map(Some) } else { Ok(None) }
    }
}
