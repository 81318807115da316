//! What the guest knows of: every file it has looked up, by a number of ours.
//!
//! A node is a descriptor that refers to a file (`O_PATH`), not a path: whatever is renamed meanwhile,
//! a number means the same file, and that was found below the share's directory. Numbers are never
//! used twice, so one that the guest made up, or has forgotten, is nothing.

use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use super::errno::{Errno, Result};
use super::listing::Listing;
use super::stamp::Stamp;
use super::wire::ROOT;

/// A file that the guest knows.
pub(super) struct Node {
    fd: OwnedFd,
    /// Device and inode number on the host.
    identity: (u64, u64),
    /// `S_IFREG`, `S_IFDIR`…; a file's kind never changes.
    kind: u32,
    /// How often the guest was told this number, and has not forgotten it.
    lookups: u64,
    /// How the file looked when the guest opened it last.
    opened: Option<Stamp>,
    /// Of a directory.
    listing: Listing,
}

impl Node {
    /// The reference.
    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// The device it lies on.
    pub(super) fn device(&self) -> u64 {
        self.identity.0
    }

    /// The same, if it is a regular file.
    pub(super) fn file(&self) -> Result<&Node> {
        match self.kind {
            libc::S_IFREG => Ok(self),
            libc::S_IFDIR => Err(Errno(libc::EISDIR)),
            libc::S_IFLNK => Err(Errno(libc::ELOOP)),
            // The guest's kernel opens its own devices, FIFOs and sockets.
            _ => Err(Errno(libc::ENXIO)),
        }
    }

    /// Whether it is a symbolic link.
    pub(super) fn is_symlink(&self) -> bool {
        self.kind == libc::S_IFLNK
    }
}

/// All nodes of a guest.
pub(super) struct Nodes {
    by_id: HashMap<u64, Node>,
    by_identity: HashMap<(u64, u64), u64>,
    next: u64,
    max: usize,
}

impl Nodes {
    /// Only the share's directory, and at most `max` others at a time.
    pub(super) fn new(root: OwnedFd, stat: &libc::stat, max: usize) -> Nodes {
        let mut nodes =
            Nodes { by_id: HashMap::new(), by_identity: HashMap::new(), next: ROOT, max };
        nodes.insert(root, stat, 1);
        nodes
    }

    /// The node of that number.
    pub(super) fn get(&self, id: u64) -> Result<&Node> {
        self.by_id.get(&id).ok_or(Errno(libc::ENOENT))
    }

    /// The node of that number, if it is a directory.
    pub(super) fn dir(&self, id: u64) -> Result<&Node> {
        let node = self.get(id)?;
        if node.kind == libc::S_IFDIR { Ok(node) } else { Err(Errno(libc::ENOTDIR)) }
    }

    /// The number of the file that looks like this, if the guest knows it: then it is told once more. As long
    /// as it is known nothing else has its identity.
    pub(super) fn again(&mut self, stat: &libc::stat) -> Option<u64> {
        let id = *self.by_identity.get(&(stat.st_dev, stat.st_ino))?;
        let node = self.by_id.get_mut(&id)?;
        node.lookups = node.lookups.saturating_add(1);
        Some(id)
    }

    /// The number of the file that `fd` refers to, which the guest is told once more.
    ///
    /// # Errors
    /// `ENFILE` when the guest knows too many.
    pub(super) fn know(&mut self, fd: OwnedFd, stat: &libc::stat) -> Result<u64> {
        if let Some(id) = self.again(stat) {
            return Ok(id);
        }
        self.has_room()?;
        Ok(self.insert(fd, stat, 1))
    }

    /// Whether the guest may come to know one more: to be asked before anything is made.
    ///
    /// # Errors
    /// `ENFILE` when it knows too many.
    pub(super) fn has_room(&self) -> Result<()> {
        if self.by_id.len() > self.max { Err(Errno(libc::ENFILE)) } else { Ok(()) }
    }

    fn insert(&mut self, fd: OwnedFd, stat: &libc::stat, lookups: u64) -> u64 {
        let (id, identity) = (self.next, (stat.st_dev, stat.st_ino));
        // One a nanosecond are used up after 584 years.
        self.next = self.next.wrapping_add(1);
        let kind = stat.st_mode & libc::S_IFMT;
        self.by_id.insert(
            id,
            Node { fd, identity, kind, lookups, opened: None, listing: Listing::default() },
        );
        self.by_identity.insert(identity, id);
        id
    }

    /// The guest opens the file, which looks like this; whether it looked the same when it did so last.
    pub(super) fn opens(&mut self, id: u64, stamp: Option<Stamp>) -> bool {
        let Some(node) = self.by_id.get_mut(&id) else { return false };
        stamp.is_some() && std::mem::replace(&mut node.opened, stamp) == stamp
    }

    /// What the guest does with a directory's names.
    pub(super) fn listing(&mut self, id: u64) -> Option<&mut Listing> {
        self.by_id.get_mut(&id).map(|node| &mut node.listing)
    }

    /// The guest forgets that it was told the number so often.
    pub(super) fn forget(&mut self, id: u64, lookups: u64) {
        let Some(node) = self.by_id.get_mut(&id).filter(|_| id != ROOT) else { return };
        node.lookups = node.lookups.saturating_sub(lookups);
        if node.lookups == 0 {
            let identity = node.identity;
            self.by_id.remove(&id);
            self.by_identity.remove(&identity);
        }
    }

    /// The guest forgets everything but the share's directory.
    pub(super) fn clear(&mut self) {
        self.by_id.retain(|id, _| *id == ROOT);
        if let Some(root) = self.by_id.get_mut(&ROOT) {
            // Another mount has kept nothing of it.
            (root.opened, root.listing) = (None, Listing::default());
        }
        self.by_identity.retain(|_, id| *id == ROOT);
    }

    /// How many there are, the share's directory not counted.
    pub(super) fn len(&self) -> usize {
        self.by_id.len().saturating_sub(1)
    }
}
