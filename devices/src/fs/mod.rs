//! A directory of the host's that a guest shares: a FUSE server, without a daemon and without root.
//!
//! [`Share`] is the directory, [`Session`] what one mount of it by one guest has looked up, open and
//! locked. A request comes in as a [`Message`], is taken apart and checked, becomes system calls on
//! descriptors that were found below the directory, and is answered in place; file data go between
//! guest memory and the file without a copy. Nothing here knows virtio.
//!
//! ```text
//! session   one request: header, body, reply      message, wire   what it is made of
//! tree, attr, file, dir, entries, xattr, lock   the operations, which know the session
//! nodes, handles, locks, claims, stamp, listing   what a session keeps  owner   whose they are   sys, proc   system calls
//! ```

mod attr;
mod claims;
mod dir;
mod entries;
mod errno;
mod file;
mod handles;
mod listing;
mod lock;
mod locks;
mod message;
mod nodes;
mod owner;
mod proc;
mod session;
mod share;
mod stamp;
mod sys;
#[cfg(test)]
pub(crate) mod tests;
mod tree;
pub mod wire;
mod xattr;

pub use errno::Errno;
pub use locks::Waiting;
pub use message::Message;
pub use session::{DATA_MAX, Served, Session, is_brief};
pub use share::{Cache, Share, ShareError, ShareOptions};
pub use sys::own_umask;
