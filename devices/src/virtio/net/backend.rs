//! What carries a network card's frames on the host.
//!
//! A [`Backend`] moves Ethernet frames between memory and the host, one system call and no copy of
//! its own for each, and knows nothing of virtio. Whoever owns it calls it from one thread, watches
//! its one descriptor edge-triggered, and so calls on until it says `WouldBlock`.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use crate::virtio::queue::Iovecs;

/// Bytes of an Ethernet header: a frame is at least that long.
pub(super) const ETHERNET_HEADER: usize = 14;
/// The most room a VLAN tag takes behind it.
pub(super) const VLAN_TAG: usize = 4;

/// What was received.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Received {
    /// A frame, or the rest of it: so many bytes.
    Whole(usize),
    /// So many bytes of a frame of which more will come. The next call goes on behind them.
    Part(usize),
}

/// A network that frames come from and go to.
pub trait Backend: Send {
    /// What messages call it: `TAP tap0`.
    fn name(&self) -> String;

    /// The descriptor to be watched for input and output, edge-triggered.
    fn descriptor(&self) -> RawFd;

    /// Whether each frame stands behind a 12-byte `virtio_net_hdr` (`Documentation/networking/tuntap.rst`),
    /// which says what has been left to the other side: checksums, segmentation.
    fn has_headers(&self) -> bool {
        false
    }

    /// A driver is to be served from now on that has accepted these virtio features.
    fn accept(&mut self, _features: u64) {}

    /// Whether there is somebody at the other end, as far as is known.
    fn is_up(&self) -> bool {
        true
    }

    /// Bytes of room the next call of [`Backend::receive`] needs to bring a whole frame; 0 when that
    /// is not known.
    fn expects(&self) -> usize {
        0
    }

    /// Reads a frame into `to`; of one that is longer the rest is lost.
    ///
    /// # Errors
    /// The host's; `WouldBlock` when there is none.
    fn receive(&mut self, to: Iovecs<'_>) -> io::Result<Received>;

    /// Gives up the frame of which [`Backend::receive`] has brought or announced a part.
    fn skip(&mut self) {}

    /// Sends a frame. After `WouldBlock` the same frame is to be sent again.
    ///
    /// # Errors
    /// The host's. With any but `WouldBlock` the frame is lost.
    fn send(&mut self, frame: Iovecs<'_>) -> io::Result<()>;

    /// What has gone since this was asked last beside the frames as they were given: bytes and frames,
    /// of those that were cut, whose headers stand before every piece.
    fn surplus(&mut self) -> (usize, usize) {
        (0, 0)
    }

    /// Whether a part of the frame has gone that [`Backend::send`] answered with `WouldBlock`.
    fn is_sending(&self) -> bool {
        false
    }

    /// Keeps a copy of what is left of that frame, because it cannot be given again.
    fn keep(&mut self, _frame: Iovecs<'_>) {}
}

/// Asks the host to keep more of what is under way in a socket than it does by default.
pub(super) fn widen(socket: &OwnedFd) {
    let bytes: libc::c_int = 1 << 20;
    let len = size_of_val(&bytes) as libc::socklen_t;
    let value = (&raw const bytes).cast();
    // SAFETY: SO_SNDBUF takes an int. It is a wish: the host may grant less.
    unsafe { libc::setsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_SNDBUF, value, len) };
}

/// Calls `f` until no signal interrupts it.
pub(super) fn uninterrupted<T>(mut f: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match f() {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            done => return done,
        }
    }
}

/// Frames over a socket that keeps their borders, with headers as a TAP has.
#[cfg(any(test, feature = "testing"))]
#[derive(Debug)]
pub struct Plain(pub OwnedFd);

#[cfg(any(test, feature = "testing"))]
impl Backend for Plain {
    fn name(&self) -> String {
        "socket".to_owned()
    }

    fn descriptor(&self) -> RawFd {
        self.0.as_raw_fd()
    }

    fn has_headers(&self) -> bool {
        true
    }

    fn receive(&mut self, to: Iovecs<'_>) -> io::Result<Received> {
        match to.readv(std::os::fd::AsFd::as_fd(&self.0))? {
            0 => Err(io::ErrorKind::WouldBlock.into()),
            len => Ok(Received::Whole(len)),
        }
    }

    fn send(&mut self, frame: Iovecs<'_>) -> io::Result<()> {
        frame.writev(std::os::fd::AsFd::as_fd(&self.0)).map(drop)
    }
}

/// A queue that cannot be turned off.
#[cfg(any(test, feature = "testing"))]
pub(super) struct Always;

#[cfg(any(test, feature = "testing"))]
impl super::control::Source for Always {
    fn turn(&self, _on: bool) -> io::Result<()> {
        Ok(())
    }
}
