//! Frames over a stream socket, each behind its length: what QEMU calls `-netdev stream`, and passt
//! speaks.
//!
//! ```text
//! length u32, big-endian | frame | length | frame | …
//! ```
//!
//! A read takes a frame and the length behind it, so that in the steady state a frame costs one
//! system call. Frames come and go in parts where the socket says so; what is not yet there, or
//! not yet gone, stays where it is: in the socket, or in the guest's memory.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};

use super::backend::{Backend, ETHERNET_HEADER, Received, uninterrupted, widen};
use super::{HEADER_LEN, MAX_FRAME};
use crate::virtio::queue::{IovecBuffer, Iovecs};

/// Bytes of a length.
const PREFIX: usize = 4;
/// The longest frame there is.
const LONGEST: usize = MAX_FRAME - HEADER_LEN;

/// One end of such a socket.
pub struct Stream {
    socket: OwnedFd,
    /// The other end has closed it.
    closed: bool,
    /// A length of which `have` bytes have come.
    prefix: [u8; PREFIX],
    have: usize,
    /// Bytes of the present frame that are still to come; 0 between two frames.
    left: usize,
    /// They are not wanted.
    skipping: bool,
    /// Bytes that have gone of the frame being sent, and of its length; and the frame's length.
    sent: usize,
    sending: usize,
    /// What must go before anything else.
    tail: Vec<u8>,
    list: IovecBuffer,
}

impl Stream {
    /// A connected, non-blocking socket.
    pub fn new(socket: OwnedFd) -> Stream {
        widen(&socket);
        Stream {
            socket,
            closed: false,
            prefix: [0; PREFIX],
            have: 0,
            left: 0,
            skipping: false,
            sent: 0,
            sending: 0,
            tail: Vec::new(),
            list: IovecBuffer::default(),
        }
    }

    /// Sends what must go first.
    fn flush(&mut self) -> io::Result<()> {
        while !self.tail.is_empty() {
            let Stream { tail, list, socket, .. } = self;
            let sent = {
                let mut pieces = [tail.as_mut_slice()];
                let piece = Iovecs::over(&mut pieces, list);
                uninterrupted(|| piece.send(socket.as_fd()))
            };
            let sent = self.open(sent)?;
            self.tail.drain(..sent);
        }
        Ok(())
    }

    /// Reads a length, or some of what is not wanted.
    fn advance(&mut self) -> io::Result<()> {
        let mut waste = [0; 2048];
        let Stream { socket, prefix, have, left, skipping, list, .. } = self;
        let wanted = if *skipping {
            let len = waste.len().min(*left);
            waste.get_mut(..len)
        } else {
            prefix.get_mut(*have..)
        };
        let mut pieces = [wanted.unwrap_or_default()];
        let piece = Iovecs::over(&mut pieces, list);
        let got = uninterrupted(|| piece.readv(socket.as_fd()));
        let got = self.open(got)?;
        if self.skipping {
            self.left -= got;
            self.skipping = self.left > 0;
        } else {
            self.have += got;
            self.begin();
        }
        Ok(())
    }

    /// Takes up the frame whose length has come, if it has. One of an impossible length is not wanted.
    fn begin(&mut self) {
        if self.have == PREFIX {
            self.have = 0;
            self.left = u32::from_be_bytes(self.prefix) as usize;
            let possible = (ETHERNET_HEADER..=LONGEST).contains(&self.left);
            self.skipping = self.left > 0 && !possible;
        }
    }

    /// What a system call answered, which may be that there is nobody any more.
    fn open(&mut self, done: io::Result<usize>) -> io::Result<usize> {
        match done {
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => Err(e),
            Ok(count @ 1..) => Ok(count),
            Ok(0) | Err(_) => {
                self.closed = true;
                Err(io::ErrorKind::BrokenPipe.into())
            }
        }
    }
}

impl Backend for Stream {
    fn name(&self) -> String {
        "stream".to_owned()
    }

    fn descriptor(&self) -> RawFd {
        self.socket.as_raw_fd()
    }

    fn is_up(&self) -> bool {
        !self.closed
    }

    fn expects(&self) -> usize {
        if self.skipping { 0 } else { self.left }
    }

    fn receive(&mut self, to: Iovecs<'_>) -> io::Result<Received> {
        while self.left == 0 || self.skipping {
            self.advance()?;
        }
        let Stream { socket, prefix, left, .. } = self;
        // From here on only as long as the length's place is borrowed.
        let mut to = to;
        to.truncate(*left);
        let whole = to.len() == *left;
        if whole {
            to.push(prefix);
        }
        let got = uninterrupted(|| to.readv(socket.as_fd()));
        let got = self.open(got)?;
        if !whole || got < self.left {
            self.left -= got;
            return Ok(Received::Part(got));
        }
        let len = std::mem::take(&mut self.left);
        self.have = got - len;
        self.begin();
        Ok(Received::Whole(len))
    }

    fn skip(&mut self) {
        self.skipping = self.left > 0;
    }

    fn send(&mut self, frame: Iovecs<'_>) -> io::Result<()> {
        self.flush()?;
        if self.sent > 0 && frame.len() != self.sending {
            // The driver has changed it. What is owed to the stream are its bytes, of whatever kind.
            self.tail.resize(PREFIX + self.sending - self.sent, 0);
            self.sent = 0;
            self.flush()?;
            return Err(io::ErrorKind::InvalidData.into());
        }
        self.sending = frame.len();
        // A frame has at most MAX_FRAME bytes, so the cast keeps the number.
        let mut prefix = (frame.len() as u32).to_be_bytes();
        // From here on only as long as its length is there.
        let mut frame = frame;
        frame.prepend(&mut prefix);
        frame.advance(self.sent);
        while !frame.is_empty() {
            let sent = uninterrupted(|| frame.send(self.socket.as_fd()));
            let sent = self.open(sent)?;
            self.sent += sent;
            frame.advance(sent);
        }
        self.sent = 0;
        Ok(())
    }

    fn is_sending(&self) -> bool {
        self.sent > 0
    }

    fn keep(&mut self, mut frame: Iovecs<'_>) {
        let Some(gone) = self.sent.checked_sub(PREFIX) else {
            // Not even all of its length has gone.
            let prefix = (self.sending as u32).to_be_bytes();
            self.tail.extend_from_slice(prefix.get(self.sent..).unwrap_or_default());
            self.sent = PREFIX;
            return self.keep(frame);
        };
        let owed = self.tail.len() + self.sending.saturating_sub(gone);
        frame.advance(gone);
        // Any bytes will do if these cannot be had.
        let _ = frame.append_to(&mut self.tail);
        // Should the driver have changed it.
        self.tail.resize(owed, 0);
        self.sent = 0;
    }
}

#[cfg(test)]
mod tests;
