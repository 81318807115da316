//! VMs with a name: each has a socket in the user's runtime directory, through which other processes of
//! the user's reach it.
//!
//! ```text
//! $XDG_RUNTIME_DIR/husk/   (or /run/user/UID/husk/, /tmp/husk-UID/)   0700, the user's own
//!   NAME.sock              answers one request a connection: serve.rs, remote.rs
//! ```
//!
//! A name belongs to whoever listens at its socket. What a process that is gone has left there is
//! removed, and never trusted; a directory that is not the user's own is refused.

mod directory;
mod error;
mod fds;
mod remote;
mod serve;
#[cfg(test)]
mod tests;

pub use directory::{NAME_MAX, check};
pub use error::NameError;
pub use remote::{Info, Remote, find, list};
pub use serve::{Named, serve};

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
    pub const CONNECT: &str = "connect";
    pub const SHUT_DOWN: &str = "stop";
    pub const KILL: &str = "kill";
    pub const LOG: &str = "log";
    /// Why the agent does not answer any more.
    pub const WHY: &str = "why";
}

/// The longest line of a request or of an answer, in bytes.
const LINE_MAX: u64 = 16 << 10;
/// How long either side may take for its line.
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(5);
