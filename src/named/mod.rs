//! VMs with a name: each has a socket in the user's runtime directory, through which other processes of
//! the user's reach it.
//!
//! ```text
//! $XDG_RUNTIME_DIR/husk/   (or /run/user/UID/husk/, /tmp/husk-UID/)   0700, the user's own
//!   NAME.sock              answers one request a connection: answer.rs, remote.rs, end.rs
//!   NAME.log, NAME.log.old what it writes, if it is kept: log.rs
//!   NAME.end               what it was and how it ended, if it was kept: record.rs
//! ```
//!
//! A name belongs to whoever listens at its socket. What a process that is gone has left there is
//! removed, and never trusted; a directory that is not the user's own is refused.

mod answer;
mod directory;
mod end;
mod error;
mod fds;
mod inspection;
mod list;
mod log;
mod record;
mod remote;
mod serve;
mod terminal;
#[cfg(test)]
mod tests;
mod waiting;

pub use directory::check;
pub use error::NameError;
pub use inspection::{About, GuestState, Inspection};
pub use list::list;
pub use log::{Log, LogReader};
pub use record::{Ended, ended};
pub use remote::{Info, Remote, find, wait};
pub use serve::{Named, serve, serve_kept};
pub use terminal::{Resize, Terminal};

/// Bytes of the longest name: with the longest directory there is room in a socket's address.
pub const NAME_MAX: usize = 40;

/// The place of the file `name` in the user's runtime directory, which is made if need be.
///
/// # Errors
/// When the directory is not the user's own, or cannot be made.
pub(crate) fn runtime_file(name: &str) -> Result<std::path::PathBuf, NameError> {
    Ok(directory::Directory::open()?.file(name))
}

/// What can be asked of a VM, a line each.
mod request {
    pub const INFO: &str = "info";
    /// All that it tells of itself.
    pub const INSPECT: &str = "inspect";
    pub const CONNECT: &str = "connect";
    pub const SHUT_DOWN: &str = "stop";
    pub const KILL: &str = "kill";
    /// What comes after it is typed.
    pub const ATTACH: &str = "attach";
    /// Columns and rows of the window follow.
    pub const RESIZE: &str = "resize ";
    /// What it was concluded with, when it has ended.
    pub const WAIT: &str = "wait";
    pub const LOG: &str = "log";
    /// Why the agent does not answer any more.
    pub const WHY: &str = "why";
}

/// What those are told for whom there is no room.
const TOO_MANY: &[u8] = b"ERROR too many at once\n";
/// Bytes of stack of the threads here.
const STACK: usize = 128 << 10;
/// The longest line of a request or of an answer, in bytes.
const LINE_MAX: u64 = 16 << 10;
/// How long either side may take for its line.
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(5);
