//! What husk and its agent in the guest say to each other, as bytes; `docs/guest-protocol.md` tells who
//! says what when.
//!
//! Pure: no sockets, no allocation, no standard library, so that both sides share it. Nothing a peer
//! says is believed: a frame has at most [`PAYLOAD_MAX`] bytes, and what is malformed is an error and
//! never a panic. The crate is compiled by `build/agent.rs` of husk as well, for the guest.

#![cfg_attr(not(test), no_std)]

mod frame;
pub mod holes;
mod record;
#[cfg(test)]
mod tests;
pub mod tree;

pub use frame::{Action, Begin, Frame, Header, Malformed, Stage};
pub use record::{Record, Records, record_head, tag};

/// Of this protocol. A peer with another one is refused.
pub const VERSION: u16 = 2;
/// The port of the host's (CID 2) that the agent connects to when it is up.
pub const HOST_PORT: u32 = 0x6873_6b01;
/// The port of the guest's where the agent serves sessions.
pub const GUEST_PORT: u32 = 0x6873_6b02;
/// Bytes of a frame's header.
pub const HEADER_LEN: usize = 8;
/// The most bytes behind a header.
pub const PAYLOAD_MAX: usize = 32 << 10;
/// Bytes of a stream that may be on their way before their receiver has granted more.
pub const WINDOW: u32 = 256 << 10;
/// The most bytes of a request: arguments, environment and all. Linux itself takes less than a
/// quarter of the stack's limit, 2 MiB at the usual 8, but a command with a greater one more.
pub const REQUEST_MAX: u32 = 16 << 20;

/// Bytes of a record [`tag::INTERFACE`].
pub const INTERFACE_LEN: usize = 10;

/// The streams of a session.
pub mod stream {
    /// From the host.
    pub const STDIN: u8 = 0;
    /// To the host.
    pub const STDOUT: u8 = 1;
    /// To the host.
    pub const STDERR: u8 = 2;
}
