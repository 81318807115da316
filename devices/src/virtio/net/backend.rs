//! What stands behind a network card: something that sends and receives frames.

use std::io;
use std::os::fd::AsRawFd;

use crate::virtio::queue::Iovecs;

/// A source and sink of Ethernet frames, each behind a 12-byte `virtio_net_hdr` (virtio 1.3
/// §5.1.6). Its descriptor can be polled for frames to receive and for room to send; nothing here
/// blocks.
pub trait NetBackend: AsRawFd + Send + Sync {
    /// What the user calls it, for messages.
    fn name(&self) -> &str;

    /// The guest accepted these virtio `features`: only such frames may be received as it can take.
    ///
    /// # Errors
    /// The host's.
    fn set_offloads(&self, features: u64) -> io::Result<()>;

    /// Reads one frame; the bytes it has, or `WouldBlock`.
    ///
    /// # Errors
    /// The host's; `EBADFD` and `ENODEV` say that there will be no frame any more.
    fn receive(&self, to: &Iovecs<'_>) -> io::Result<usize>;

    /// Sends one frame, or says `WouldBlock`.
    ///
    /// # Errors
    /// The host's.
    fn send(&self, frame: &Iovecs<'_>) -> io::Result<usize>;
}
