//! A frame: a header, and behind it at most [`PAYLOAD_MAX`] bytes.
//!
//! ```text
//! 0 kind u8 | 1 zero | 2 zero u16 | 4 length u32      (little-endian)
//! ```

use crate::{HEADER_LEN, PAYLOAD_MAX};

/// A frame that says nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Malformed;

/// The header of a frame whose length was checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    kind: u8,
    /// Bytes behind it, at most [`PAYLOAD_MAX`].
    pub len: usize,
}

/// What a session is to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Run a command.
    Exec,
    /// Make a file of what comes by stdin, or a directory ([`crate::tree`]).
    Put,
    /// Send a file by stdout, or a directory.
    Get,
}

/// The first frame of a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Begin {
    /// [`crate::VERSION`] of the host.
    pub version: u16,
    /// What to do.
    pub action: Action,
    /// The command has a terminal, whose output is all stdout.
    pub tty: bool,
    /// Columns and rows of its window.
    pub window: (u16, u16),
    /// Type and permissions of a file or directory to be made.
    pub mode: u32,
    /// Bytes of the request that follows in parts.
    pub len: u32,
}

/// Where a session could not go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// The command: not found, not executable.
    Command,
    /// The directory to run it in.
    Directory,
    /// The user or group to run it as.
    User,
    /// The file to be copied.
    File,
    /// The same: it is neither file nor directory nor link. Instead of an `errno` its type ([`crate::tree::TYPE`]).
    Special,
    /// What the agent itself needs.
    Agent,
}

/// A frame, decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Frame<'a> {
    /// Guest, once: the agent is up and speaks this version.
    Hello(u16),
    /// Host: the machine's records ([`crate::tag`]).
    Setup(&'a [u8]),
    /// Guest, once: commands can be run.
    Ready,
    /// Guest: the machine could not be set up, in words.
    Failed(&'a [u8]),
    /// Host: end all processes, write everything to the disks, turn the machine off.
    Shutdown,

    /// Host, first in a session.
    Begin(Begin),
    /// Host: the next bytes of the request.
    Part(&'a [u8]),
    /// Host: bytes for stdin.
    Input(&'a [u8]),
    /// Host: stdin is at its end.
    InputEnd,
    /// Host: send the command this signal.
    Signal(u8),
    /// Host: the terminal has these columns and rows now.
    Resize(u16, u16),
    /// Either: so many bytes more of this stream may come.
    Credit(u8, u32),
    /// Either: nothing more is wanted of this stream.
    Close(u8),

    /// Guest: it has begun.
    Started,
    /// Guest, last: it has not, for this `errno`.
    Cannot(Stage, u32),
    /// Guest: bytes of a stream.
    Output(u8, &'a [u8]),
    /// Guest: a stream is at its end.
    OutputEnd(u8),
    /// Guest: type and permissions of what it sends.
    Mode(u32),
    /// Guest, before the last, when it was asked for ([`crate::tag::OUT_OF_MEMORY`]): while the command ran its
    /// kernel ended so many processes for want of memory, not 0.
    OutOfMemory(u32),
    /// Guest, last: the command's exit status.
    Exited(u8),
    /// Guest, last: the signal that ended it, and whether for want of memory.
    Signaled(u8, bool),
}

impl Header {
    /// Reads a header.
    ///
    /// # Errors
    /// When it is none, or says more than [`PAYLOAD_MAX`] bytes.
    pub fn decode(bytes: [u8; HEADER_LEN]) -> Result<Header, Malformed> {
        let [kind, 0, 0, 0, a, b, c, d] = bytes else { return Err(Malformed) };
        let len = u32::from_le_bytes([a, b, c, d]) as usize;
        if len > PAYLOAD_MAX { Err(Malformed) } else { Ok(Header { kind, len }) }
    }
}

impl<'a> Frame<'a> {
    /// Reads what stands behind `header`.
    ///
    /// # Errors
    /// When that is no frame of this protocol.
    pub fn decode(header: Header, payload: &'a [u8]) -> Result<Frame<'a>, Malformed> {
        if payload.len() != header.len {
            return Err(Malformed);
        }
        Ok(match (header.kind, payload) {
            (1, &[a, b]) => Frame::Hello(u16::from_le_bytes([a, b])),
            (2, bytes) => Frame::Setup(bytes),
            (3, []) => Frame::Ready,
            (4, bytes) => Frame::Failed(bytes),
            (5, []) => Frame::Shutdown,
            (16, bytes) => Frame::Begin(Begin::decode(bytes)?),
            (17, bytes) => Frame::Part(bytes),
            (18, bytes) => Frame::Input(bytes),
            (19, []) => Frame::InputEnd,
            (20, &[signal]) => Frame::Signal(signal),
            (21, &[a, b, c, d]) => {
                Frame::Resize(u16::from_le_bytes([a, b]), u16::from_le_bytes([c, d]))
            }
            (22, &[stream, a, b, c, d]) => Frame::Credit(stream, u32::from_le_bytes([a, b, c, d])),
            (23, &[stream]) => Frame::Close(stream),
            (32, []) => Frame::Started,
            (33, &[stage, a, b, c, d]) => {
                Frame::Cannot(Stage::decode(stage)?, u32::from_le_bytes([a, b, c, d]))
            }
            (34, [stream, bytes @ ..]) => Frame::Output(*stream, bytes),
            (35, &[stream]) => Frame::OutputEnd(stream),
            (36, &[status]) => Frame::Exited(status),
            (38, &[a, b, c, d]) => Frame::Mode(u32::from_le_bytes([a, b, c, d])),
            (39, &[a, b, c, d]) => Frame::OutOfMemory(u32::from_le_bytes([a, b, c, d])),
            (37, &[signal @ 1..=255, memory @ 0..=1]) => Frame::Signaled(signal, memory == 1),
            _ => return Err(Malformed),
        })
    }

    /// The header and the beginning of what follows it, and the bytes that end the frame: they are
    /// sent one after the other. Of bytes there must not be more than fit ([`Frame::PIECE`]).
    pub fn encode(&self) -> Encoded<'a> {
        let mut encoded = Encoded { head: [0; HEAD_MAX], head_len: HEADER_LEN, bytes: &[] };
        let kind = match *self {
            Frame::Hello(version) => encoded.with(1, &version.to_le_bytes()),
            Frame::Setup(bytes) => encoded.carrying(2, bytes),
            Frame::Ready => 3,
            Frame::Failed(bytes) => encoded.carrying(4, bytes),
            Frame::Shutdown => 5,
            Frame::Begin(begin) => encoded.with(16, &begin.encode()),
            Frame::Part(bytes) => encoded.carrying(17, bytes),
            Frame::Input(bytes) => encoded.carrying(18, bytes),
            Frame::InputEnd => 19,
            Frame::Signal(signal) => encoded.with(20, &[signal]),
            Frame::Resize(columns, rows) => {
                let ([a, b], [c, d]) = (columns.to_le_bytes(), rows.to_le_bytes());
                encoded.with(21, &[a, b, c, d])
            }
            Frame::Credit(stream, bytes) => {
                let [a, b, c, d] = bytes.to_le_bytes();
                encoded.with(22, &[stream, a, b, c, d])
            }
            Frame::Close(stream) => encoded.with(23, &[stream]),
            Frame::Started => 32,
            Frame::Cannot(stage, errno) => {
                let [a, b, c, d] = errno.to_le_bytes();
                encoded.with(33, &[stage.encode(), a, b, c, d])
            }
            Frame::Output(stream, bytes) => {
                encoded.with(34, &[stream]);
                encoded.carrying(34, bytes)
            }
            Frame::OutputEnd(stream) => encoded.with(35, &[stream]),
            Frame::Mode(mode) => encoded.with(38, &mode.to_le_bytes()),
            Frame::OutOfMemory(killed) => encoded.with(39, &killed.to_le_bytes()),
            Frame::Exited(status) => encoded.with(36, &[status]),
            Frame::Signaled(signal, memory) => encoded.with(37, &[signal, memory.into()]),
        };
        let len = (encoded.head_len - HEADER_LEN + encoded.bytes.len()) as u32;
        let [a, b, c, d] = len.to_le_bytes();
        let header = [kind, 0, 0, 0, a, b, c, d];
        if let Some(place) = encoded.head.first_chunk_mut() {
            *place = header;
        }
        encoded
    }
}

impl Frame<'_> {
    /// The most bytes any frame carries.
    pub const PIECE: usize = PAYLOAD_MAX - 1;
}

/// Header and fixed fields: [`Begin`] has the most.
const HEAD_MAX: usize = HEADER_LEN + BEGIN_LEN;
const BEGIN_LEN: usize = 16;

/// A frame as it is sent.
#[derive(Debug, Clone, Copy)]
pub struct Encoded<'a> {
    head: [u8; HEAD_MAX],
    head_len: usize,
    bytes: &'a [u8],
}

impl<'a> Encoded<'a> {
    fn with(&mut self, kind: u8, fields: &[u8]) -> u8 {
        let place = self.head.get_mut(self.head_len..).unwrap_or_default();
        for (to, from) in place.iter_mut().zip(fields) {
            *to = *from;
        }
        self.head_len += fields.len().min(place.len());
        kind
    }

    fn carrying(&mut self, kind: u8, bytes: &'a [u8]) -> u8 {
        self.bytes = bytes.get(..Frame::PIECE).unwrap_or(bytes);
        kind
    }

    /// The first bytes.
    pub fn head(&self) -> &[u8] {
        self.head.get(..self.head_len).unwrap_or_default()
    }

    /// The others.
    pub fn bytes(&self) -> &'a [u8] {
        self.bytes
    }
}

impl Begin {
    fn encode(&self) -> [u8; BEGIN_LEN] {
        let action = match self.action {
            Action::Exec => 1,
            Action::Put => 2,
            Action::Get => 3,
        };
        let [v0, v1] = self.version.to_le_bytes();
        let ([c0, c1], [r0, r1]) = (self.window.0.to_le_bytes(), self.window.1.to_le_bytes());
        let [m0, m1, m2, m3] = self.mode.to_le_bytes();
        let [l0, l1, l2, l3] = self.len.to_le_bytes();
        [v0, v1, action, self.tty.into(), c0, c1, r0, r1, m0, m1, m2, m3, l0, l1, l2, l3]
    }

    fn decode(bytes: &[u8]) -> Result<Begin, Malformed> {
        let &[v0, v1, action, tty, c0, c1, r0, r1, m0, m1, m2, m3, l0, l1, l2, l3] = bytes else {
            return Err(Malformed);
        };
        Ok(Begin {
            version: u16::from_le_bytes([v0, v1]),
            action: match action {
                1 => Action::Exec,
                2 => Action::Put,
                3 => Action::Get,
                _ => return Err(Malformed),
            },
            tty: match tty {
                0 => false,
                1 => true,
                _ => return Err(Malformed),
            },
            window: (u16::from_le_bytes([c0, c1]), u16::from_le_bytes([r0, r1])),
            mode: u32::from_le_bytes([m0, m1, m2, m3]),
            len: u32::from_le_bytes([l0, l1, l2, l3]),
        })
    }
}

impl Stage {
    fn encode(self) -> u8 {
        match self {
            Stage::Command => 1,
            Stage::Directory => 2,
            Stage::User => 3,
            Stage::File => 4,
            Stage::Agent => 5,
            Stage::Special => 6,
        }
    }

    fn decode(byte: u8) -> Result<Stage, Malformed> {
        Ok(match byte {
            1 => Stage::Command,
            2 => Stage::Directory,
            3 => Stage::User,
            4 => Stage::File,
            5 => Stage::Agent,
            6 => Stage::Special,
            _ => return Err(Malformed),
        })
    }
}
