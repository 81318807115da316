//! What husk does for the inside of a guest: the program it runs there, the initramfs it makes for that,
//! and the commands it has it run.
//!
//! ```text
//! image ─▶ modules, drivers   session ─▶ child, copy     (frames over a socket)
//!                             control                    (the agent's life)
//! ```
//!
//! [`image`] and [`ext4`] need no VM, and [`session`] only a socket with an agent behind it: who connects them is
//! `src/vm`. What the guest says is bounded and never believed; `docs/guest-protocol.md` tells what that
//! is.

mod child;
pub mod command;
pub mod control;
mod copy;
mod drivers;
pub mod error;
pub mod ext4;
pub mod image;
pub(crate) mod modules;
mod pipe;
mod session;
#[cfg(test)]
mod tests;

use std::io::{self, Write};
use std::path::Path;

use crate::files;
pub use child::{ChildInput, ChildOutput, GuestChild, Status};
pub use command::{GuestCommand, Output};
pub use copy::CopyStop;
pub(crate) use copy::{Limits, get, put};
pub(crate) use session::{PATIENCE, is_late};

/// The program that runs in guests: init and agent in one, compiled by `build/agent.rs`.
const AGENT: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/husk-agent"));

/// The agent as a program for guests that have an init of their own, which starts it without arguments
/// and as root ([`crate::config::VmConfig::agent`]): one static file.
pub fn agent_program() -> &'static [u8] {
    AGENT
}

/// Writes [`agent_program`] to `path`, executable, where all of it appears or nothing.
///
/// # Errors
/// The host's.
pub fn write_agent(path: &Path) -> io::Result<()> {
    files::write_to(path, Some(0o755), |file| file.write_all(AGENT))
}
/// Where it stands in the initramfs, for `rdinit=`.
pub const INIT: &str = "/husk/init";
