//! What two ends of a link say to each other: frames, one a datagram, and what they leave to each other.
//!
//! ```text
//! HELLO                    first of all; to an end that does not know it, a frame that nobody wants
//! frame                    until both know that both know it, or for ever
//! READY                    answers HELLO, before the first of
//! virtio_net_hdr | frame   checksums and segmentation are left to the other side (§5.1.6)
//! ```
//!
//! An end that is older speaks and hears frames alone. The other end is another process, and what it
//! says a guest's or its own invention: a header is checked, and what the own driver cannot do is done
//! here. Lies cost whoever tells them their frames, and nobody anything else.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use crate::virtio::net::backend::{ETHERNET_HEADER, Received, uninterrupted};
use crate::virtio::net::offload::{Header, Pieces};
use crate::virtio::net::{HEADER_LEN, MAX_FRAME};
use crate::virtio::queue::{IovecBuffer, Iovecs};

/// Bytes of an end's own words: the shortest Ethernet frame.
const WORD: usize = 60;

pub(in crate::virtio) const HELLO: [u8; WORD] = word(1);
pub(in crate::virtio) const READY: [u8; WORD] = word(2);

/// A frame to an address that no bridge passes on (IEEE 802.1Q §8.6.3), of the EtherType for local
/// experiments (IEEE 802 §9.2.3), with the version of these words, 1, and which of them it is.
const fn word(which: u8) -> [u8; WORD] {
    const START: &[u8; 24] =
        b"\x01\x80\xc2\x00\x00\x0e\x52\x00\x00\x00\x00\x00\x88\xb5husk link\x01";
    let mut word = [0; WORD];
    let (start, rest) = word.split_at_mut(START.len());
    start.copy_from_slice(START);
    if let [first, ..] = rest {
        *first = which;
    }
    word
}

/// What comes from the other end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Hears {
    /// Nothing yet.
    Nothing,
    /// Frames, for it is older.
    Frames,
    /// Frames, until it is ready.
    FramesYet,
    /// Frames behind their headers.
    Headers,
}

/// A connected socket that keeps the borders of datagrams, and how far both ends have come.
pub(super) struct Wire {
    socket: OwnedFd,
    hears: Hears,
    /// READY has been said: what goes has headers.
    ready: bool,
    /// The features of the own driver.
    features: u64,
    /// A frame that something is still to be done with, and how it is cut; how many pieces the
    /// driver has got.
    came: Vec<u8>,
    pieces: Option<(Pieces, usize)>,
    /// The same of one that goes, and how many pieces have gone.
    goes: Vec<u8>,
    gone: usize,
    /// Headers and pieces that went beside the frames, and have not been told yet.
    surplus: (usize, usize),
    /// The headers of a piece.
    piece: Vec<u8>,
    list: IovecBuffer,
}

impl Wire {
    /// Greets the other end.
    ///
    /// # Errors
    /// The host's.
    pub(super) fn new(socket: OwnedFd, features: u64) -> io::Result<Wire> {
        let mut wire = Wire {
            socket,
            hears: Hears::Nothing,
            ready: false,
            features,
            came: Vec::new(),
            pieces: None,
            goes: Vec::new(),
            gone: 0,
            surplus: (0, 0),
            piece: Vec::new(),
            list: IovecBuffer::default(),
        };
        wire.say(HELLO)?;
        Ok(wire)
    }

    /// A new driver, which can do this.
    pub(super) fn accept(&mut self, features: u64) {
        self.features = features;
        // After a reset the frame that was under way is not given again. After a pause it is, and its
        // pieces that have gone go twice, which is TCP's to sort out.
        self.gone = 0;
    }

    /// Gives up the frame of which the driver has not got every piece.
    pub(super) fn skip(&mut self) {
        self.pieces = None;
    }

    /// Receives a frame behind its header; an empty one when it was none.
    ///
    /// # Errors
    /// `WouldBlock`; any other when the other end has gone.
    pub(super) fn receive(&mut self, mut to: Iovecs<'_>) -> io::Result<Received> {
        if let Some(len) = self.rest(&mut to) {
            return Ok(Received::Whole(len));
        }
        while matches!(self.hears, Hears::Nothing | Hears::FramesYet) && self.listen()? {}
        match self.hears {
            Hears::Headers if self.does_all() => self.receive_headed(&to),
            Hears::Headers => self.receive_unlike(&mut to),
            _ => {
                let cleared = to.copy_from(&[0; HEADER_LEN]).is_ok();
                to.advance(HEADER_LEN);
                // What has no header there is read all the same, or it would come again and again.
                let len = HEADER_LEN + self.read(&to)?;
                Ok(Received::Whole(if cleared { len } else { 0 }))
            }
        }
    }

    /// Sends a frame that stands behind its header.
    ///
    /// # Errors
    /// The host's; `InvalidInput` for what makes no sense.
    pub(super) fn send(&mut self, frame: Iovecs<'_>) -> io::Result<()> {
        if !self.ready && matches!(self.hears, Hears::FramesYet | Hears::Headers) {
            self.say(READY)?;
            self.ready = true;
        }
        let mut header = [0; HEADER_LEN];
        frame.copy_to(&mut header)?;
        let nonsense = || io::Error::from(io::ErrorKind::InvalidInput);
        let header =
            Header::read(&header, frame.len().saturating_sub(HEADER_LEN)).ok_or_else(nonsense)?;
        // The driver may change what it has said; this it cannot.
        let mut bytes = header.bytes();
        // From here on only as long as that is there.
        let mut frame = frame;
        frame.advance(HEADER_LEN);
        if self.gone == 0 && (self.ready || header.is_plain()) {
            if self.ready {
                frame.prepend(&mut bytes);
            }
            match uninterrupted(|| frame.send(self.socket.as_fd())) {
                // It is longer than the socket's buffer, so it goes in pieces.
                Err(e) if e.raw_os_error() == Some(libc::EMSGSIZE) && header.is_large() => {}
                done => return done.map(drop),
            }
            if self.ready {
                frame.advance(HEADER_LEN);
            }
        }
        self.goes.clear();
        frame.append_to(&mut self.goes)?;
        let pieces = Pieces::of(header, &mut self.goes).ok_or_else(nonsense)?;
        let done = self.send_pieces(pieces);
        if !done.as_ref().is_err_and(|e| e.kind() == io::ErrorKind::WouldBlock) {
            self.gone = 0;
        }
        done
    }

    fn send_pieces(&mut self, pieces: Pieces) -> io::Result<()> {
        while self.gone < pieces.count() {
            self.piece.clear();
            if self.ready {
                self.piece.extend_from_slice(&Header::default().bytes());
            }
            let carried = pieces.write(self.gone, &self.goes, &mut self.piece);
            let Wire { socket, goes, piece, list, .. } = self;
            let carried = goes.get_mut(carried).unwrap_or_default();
            let mut piece = [piece.as_mut_slice(), carried];
            let piece = Iovecs::over(&mut piece, list);
            uninterrupted(|| piece.send(socket.as_fd()))?;
            if self.gone > 0 {
                self.surplus.0 += pieces.headers();
                self.surplus.1 += 1;
            }
            self.gone += 1;
        }
        Ok(())
    }

    /// What has gone beside the frames since this was asked last; see [`Backend::surplus`].
    ///
    /// [`Backend::surplus`]: crate::virtio::net::backend::Backend::surplus
    pub(super) fn surplus(&mut self) -> (usize, usize) {
        std::mem::take(&mut self.surplus)
    }

    fn say(&mut self, mut word: [u8; WORD]) -> io::Result<()> {
        let mut word = [word.as_mut_slice()];
        let word = Iovecs::over(&mut word, &mut self.list);
        uninterrupted(|| word.send(self.socket.as_fd())).map(drop)
    }

    /// Whether the driver takes whatever there is.
    fn does_all(&self) -> bool {
        Header::NEEDS_AT_MOST & !self.features == 0
    }

    /// Looks whether the next datagram is a word that is awaited, and takes it if so; false when it
    /// is a frame.
    fn listen(&mut self) -> io::Result<bool> {
        let (mut next, len) = self.peek::<{ WORD + 1 }>()?;
        if len == 0 {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        let heard = match (self.hears, next.get(..len.min(WORD + 1)).unwrap_or_default()) {
            (Hears::Nothing, said) if said == HELLO => Hears::FramesYet,
            (Hears::FramesYet, said) if said == READY => Hears::Headers,
            (Hears::Nothing, _) => {
                self.hears = Hears::Frames;
                return Ok(false);
            }
            _ => return Ok(false),
        };
        self.hears = heard;
        let mut word = [next.as_mut_slice()];
        let Wire { socket, list, .. } = self;
        let word = Iovecs::over(&mut word, list);
        uninterrupted(|| word.readv(socket.as_fd()))?;
        Ok(true)
    }

    fn read(&self, to: &Iovecs<'_>) -> io::Result<usize> {
        match uninterrupted(|| to.readv(self.socket.as_fd()))? {
            // Nobody sends an empty datagram.
            0 => Err(io::ErrorKind::BrokenPipe.into()),
            len => Ok(len),
        }
    }

    /// Receives for a driver that can do everything: straight into its memory.
    fn receive_headed(&mut self, to: &Iovecs<'_>) -> io::Result<Received> {
        let len = self.read(to)?;
        let mut bytes = [0; HEADER_LEN];
        let header = to.copy_to(&mut bytes).ok().and_then(|()| checked(&bytes, len));
        let written = header.is_some_and(|header| to.copy_from(&header.bytes()).is_ok());
        Ok(Received::Whole(if written { len } else { 0 }))
    }

    /// Receives for a driver that cannot do everything. What it can take as it is goes straight into its memory,
    /// too; with other frames what is left to do is done here. A datagram is read once, and each call makes
    /// one piece of it, which the limit of what is received counts.
    fn receive_unlike(&mut self, to: &mut Iovecs<'_>) -> io::Result<Received> {
        let (bytes, len) = self.peek()?;
        let needs = checked(&bytes, len).map_or(0, |header| header.needs());
        if needs & !self.features == 0 {
            return self.receive_headed(to);
        }
        self.came.resize(MAX_FRAME, 0);
        let Wire { socket, came, list, .. } = self;
        let mut buffer = [came.as_mut_slice()];
        let buffer = Iovecs::over(&mut buffer, list);
        let len = match uninterrupted(|| buffer.readv(socket.as_fd()))? {
            0 => return Err(io::ErrorKind::BrokenPipe.into()),
            len => len,
        };
        self.came.truncate(len);
        let header = self.came.first_chunk().and_then(|bytes| checked(bytes, len));
        let Some(header) = header else { return Ok(Received::Whole(0)) };
        let pieces = Pieces::of(header, self.came.get_mut(HEADER_LEN..).unwrap_or_default());
        self.pieces = pieces.map(|pieces| (pieces, 0));
        Ok(Received::Whole(self.rest(to).unwrap_or_default()))
    }

    /// What the next datagram begins with, and how long it is, while it stays where it is.
    fn peek<const N: usize>(&self) -> io::Result<([u8; N], usize)> {
        let mut bytes = [0u8; N];
        let flags = libc::MSG_PEEK | libc::MSG_DONTWAIT | libc::MSG_TRUNC;
        let (at, fd) = (bytes.as_mut_ptr().cast(), self.socket.as_raw_fd());
        let len = uninterrupted(|| {
            // SAFETY: `bytes` has room for its length, which recv is given.
            let len = unsafe { libc::recv(fd, at, N, flags) };
            usize::try_from(len).map_err(|_| io::Error::last_os_error())
        })?;
        Ok((bytes, len))
    }

    /// Gives the next piece of a frame that came, if there is one; its length with its header.
    fn rest(&mut self, to: &mut Iovecs<'_>) -> Option<usize> {
        let (pieces, n) = self.pieces?;
        self.pieces = (n + 1 < pieces.count()).then_some((pieces, n + 1));
        self.piece.clear();
        self.piece.extend_from_slice(&Header::default().bytes());
        let frame = self.came.get(HEADER_LEN..).unwrap_or_default();
        let carried = pieces.write(n, frame, &mut self.piece);
        let carried = frame.get(carried).unwrap_or_default();
        let mut written = to.copy_from(&self.piece);
        to.advance(self.piece.len());
        written = written.and_then(|()| to.copy_from(carried));
        Some(if written.is_ok() { self.piece.len() + carried.len() } else { 0 })
    }
}

/// The header of a datagram of `len` bytes, if it is one before a frame.
fn checked(bytes: &[u8; HEADER_LEN], len: usize) -> Option<Header> {
    let frame = len.checked_sub(HEADER_LEN).filter(|frame| *frame >= ETHERNET_HEADER)?;
    Header::read(bytes, frame)
}

#[cfg(test)]
mod tests;
