//! The host's side of one connection: a unix socket, and what it would not take yet.
//!
//! Bytes of the guest's go from its memory straight into the socket. What does not fit is kept in a
//! ring as large as the credit that the guest was given, so there is always room; the rings come
//! from a pool and go back to it when they are empty.

use std::io;
use std::net::Shutdown;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::time::Instant;

use super::connection::ROOM;
use super::packet::HEADER_LEN;
use super::token::Token;
use crate::virtio::queue::{Chain, IovecBuffer, Iovecs, OutOfChain};

/// Empty rings that are kept for the next slow reader.
const SPARE_RINGS: usize = 8;

/// Bytes for a reader that is slow.
struct Ring {
    bytes: Box<[u8]>,
    start: usize,
    len: usize,
}

impl Ring {
    fn new() -> Ring {
        Ring { bytes: vec![0; ROOM as usize].into_boxed_slice(), start: 0, len: 0 }
    }

    /// Adds the `len` readable bytes of `chain` at `offset`.
    fn put(&mut self, chain: &Chain<'_>, offset: usize, len: usize) -> Result<(), OutOfChain> {
        let size = self.bytes.len();
        if len > size - self.len {
            return Err(OutOfChain);
        }
        let end = (self.start + self.len) % size;
        let first = len.min(size - end);
        let (low, high) = self.bytes.split_at_mut_checked(end).ok_or(OutOfChain)?;
        chain.copy_to(offset, high.get_mut(..first).ok_or(OutOfChain)?)?;
        chain.copy_to(offset + first, low.get_mut(..len - first).ok_or(OutOfChain)?)?;
        self.len += len;
        Ok(())
    }

    /// What is in it, in order.
    fn pieces(&mut self) -> [&mut [u8]; 2] {
        let (start, len, size) = (self.start, self.len, self.bytes.len());
        let first = len.min(size - start);
        let Some((low, high)) = self.bytes.split_at_mut_checked(start) else {
            return Default::default();
        };
        [high.get_mut(..first).unwrap_or_default(), low.get_mut(..len - first).unwrap_or_default()]
    }

    fn advance(&mut self, count: usize) {
        let count = count.min(self.len);
        self.start = (self.start + count) % self.bytes.len();
        self.len -= count;
    }
}

/// What all streams of a device share, so that a packet allocates nothing.
#[derive(Default)]
pub struct Pool {
    rings: Vec<Ring>,
    list: IovecBuffer,
}

/// What happens to the socket once nothing is kept for it any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum After {
    Nothing,
    ShutDown,
    Close,
}

/// Whether a stream goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Goes {
    /// It does.
    On,
    /// It can be closed: nothing is left to do.
    Away,
}

/// A host's socket.
pub struct Stream {
    socket: UnixStream,
    /// What its events are known by.
    pub token: Token,
    kept: Option<Ring>,
    after: After,
    /// The peer has closed its end for both directions.
    pub hung_up: bool,
    /// When it will have waited long enough for the guest's answer.
    pub deadline: Option<Instant>,
}

impl Stream {
    /// A socket that does not block.
    pub fn new(socket: UnixStream, token: Token, deadline: Option<Instant>) -> Stream {
        Stream { socket, token, kept: None, after: After::Nothing, hung_up: false, deadline }
    }

    /// Sends the first `len` bytes of payload in `chain`, or keeps them. Gives those the peer took.
    ///
    /// # Errors
    /// When the peer takes no more bytes at all.
    pub fn write(
        &mut self,
        chain: &mut Chain<'_>,
        len: usize,
        pool: &mut Pool,
    ) -> io::Result<usize> {
        let lost = |_| io::Error::from(io::ErrorKind::InvalidInput);
        let mut sent = 0;
        if self.kept.is_none() {
            let mut bytes = chain.readable_iovecs(HEADER_LEN, len).map_err(lost)?;
            send_all(&mut bytes, &self.socket)?;
            sent = len - bytes.len();
            if sent == len {
                return Ok(sent);
            }
        }
        let ring = self.kept.get_or_insert_with(|| pool.rings.pop().unwrap_or_else(Ring::new));
        ring.put(chain, HEADER_LEN + sent, len - sent).map_err(lost)?;
        Ok(sent)
    }

    /// Sends what was kept. Gives the number of bytes the peer took.
    ///
    /// # Errors
    /// When the peer takes no more bytes at all; then nothing is kept any more.
    pub fn flush(&mut self, pool: &mut Pool) -> io::Result<usize> {
        let Pool { rings, list } = pool;
        if let Some(ring) = &mut self.kept {
            let mut pieces = ring.pieces();
            let mut bytes = Iovecs::over(&mut pieces, list);
            let all = bytes.len();
            let done = send_all(&mut bytes, &self.socket);
            let sent = all - bytes.len();
            ring.advance(sent);
            if ring.len == 0 || done.is_err() {
                give_back(&mut self.kept, rings);
            }
            return done.map(|()| sent);
        }
        Ok(0)
    }

    /// Bytes that are kept.
    pub fn kept(&self) -> usize {
        self.kept.as_ref().map_or(0, |ring| ring.len)
    }

    /// What remains to be done when nothing is kept.
    pub fn settle(&mut self) -> Goes {
        if self.kept.is_none() {
            match self.after {
                After::Nothing => {}
                // An error means that the peer has gone, which the next event tells.
                After::ShutDown => drop(self.socket.shutdown(Shutdown::Write)),
                After::Close => return Goes::Away,
            }
        }
        Goes::On
    }

    /// The guest sends no more: the peer reads an end after what is kept.
    pub fn end_writing(&mut self) -> Goes {
        if self.after == After::Nothing {
            self.after = After::ShutDown;
        }
        self.settle()
    }

    /// The guest receives no more: the peer's writes fail.
    pub fn end_reading(&self) {
        // An error means that the peer has gone, which the next event tells.
        let _ = self.socket.shutdown(Shutdown::Read);
    }

    /// The guest has closed: so does this, after what is kept.
    pub fn end(&mut self) -> Goes {
        self.after = After::Close;
        self.settle()
    }

    /// Whether it only has to send what is kept.
    pub fn is_ending(&self) -> bool {
        self.after == After::Close
    }

    /// Gives what it keeps back to the pool.
    pub fn discard(&mut self, pool: &mut Pool) {
        give_back(&mut self.kept, &mut pool.rings);
    }

    /// Reads up to `limit` bytes into the payload of `chain`.
    ///
    /// # Errors
    /// The host's.
    pub fn read(&self, chain: &mut Chain<'_>, limit: usize) -> io::Result<usize> {
        let bytes = chain
            .writable_iovecs(HEADER_LEN, limit)
            .map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
        bytes.readv(self.socket.as_fd())
    }

    /// Sends a line of husk's own.
    ///
    /// # Errors
    /// When it could not be sent whole.
    pub fn say(&self, line: &str) -> io::Result<()> {
        say(&self.socket, line)
    }
}

impl AsRawFd for Stream {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

fn give_back(kept: &mut Option<Ring>, rings: &mut Vec<Ring>) {
    if let Some(ring) = kept.take()
        && rings.len() < SPARE_RINGS
    {
        rings.push(Ring { start: 0, len: 0, ..ring });
    }
}

/// Sends until all is sent or the socket is full: then it tells when it is not any more.
fn send_all(bytes: &mut Iovecs<'_>, socket: &UnixStream) -> io::Result<()> {
    while !bytes.is_empty() {
        match bytes.send(socket.as_fd()) {
            Ok(count) => bytes.advance(count),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// Sends a line of husk's own to `socket`, to which little was sent before.
///
/// # Errors
/// When it could not be sent whole.
pub fn say(socket: &UnixStream, line: &str) -> io::Result<()> {
    let mut line = line.as_bytes().to_vec();
    let mut list = IovecBuffer::default();
    let mut pieces = [&mut line[..]];
    let mut bytes = Iovecs::over(&mut pieces, &mut list);
    send_all(&mut bytes, socket)?;
    if bytes.is_empty() { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
}
