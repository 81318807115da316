//! A directory with all that is in it, as one stream of bytes: what a session carries by stdin or stdout
//! instead of a file's.
//!
//! ```text
//! 0 kind u8 | 1 mode u32 | 5 length u32 | 9 bytes      (little-endian), one after the other
//! ```
//!
//! A name is one of a directory's entries and never a path: whoever makes the files opens one directory after
//! the other, and what is sent leads nowhere else.

use crate::{Malformed, PAYLOAD_MAX};

/// Bytes before those of a record.
pub const HEAD: usize = 9;
/// The longest name, in bytes (`NAME_MAX`).
pub const NAME_MAX: usize = 255;
/// The longest that a link leads to, in bytes (`PATH_MAX` without its zero).
pub const TARGET_MAX: usize = 4095;
/// The most directories in each other.
pub const DEPTH_MAX: usize = 128;
/// The most bytes of a record of [`Kind::Data`].
pub const DATA_MAX: usize = PAYLOAD_MAX;
/// The type in a mode, and those that are copied (`S_IFMT` and others, linux/stat.h).
pub const TYPE: u32 = 0o170_000;
/// A directory.
pub const DIRECTORY: u32 = 0o040_000;
/// A file.
pub const FILE: u32 = 0o100_000;
/// A symbolic link.
pub const LINK: u32 = 0o120_000;

/// What a record tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A directory of this name and mode; what follows is in it.
    Directory,
    /// The end of what is in it.
    Leave,
    /// A file of this name and mode.
    File,
    /// The next bytes of that file.
    Data,
    /// A symbolic link: its name, a zero, and what it leads to.
    Link,
    /// The end of everything.
    End,
}

/// The beginning of a record, whose length was checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head {
    /// What it tells.
    pub kind: Kind,
    /// Permissions, of a directory or a file.
    pub mode: u32,
    /// Bytes behind it, as many as its kind may have.
    pub len: usize,
}

impl Head {
    /// As it is sent.
    pub fn encode(&self) -> [u8; HEAD] {
        let kind = match self.kind {
            Kind::Directory => 1,
            Kind::Leave => 2,
            Kind::File => 3,
            Kind::Data => 4,
            Kind::Link => 5,
            Kind::End => 6,
        };
        let [m0, m1, m2, m3] = self.mode.to_le_bytes();
        let [l0, l1, l2, l3] = (self.len as u32).to_le_bytes();
        [kind, m0, m1, m2, m3, l0, l1, l2, l3]
    }

    /// Reads one.
    ///
    /// # Errors
    /// When it is none, or its length is none of its kind's.
    pub fn decode(bytes: [u8; HEAD]) -> Result<Head, Malformed> {
        let [kind, m0, m1, m2, m3, l0, l1, l2, l3] = bytes;
        let len = u32::from_le_bytes([l0, l1, l2, l3]) as usize;
        let (kind, lengths) = match kind {
            1 => (Kind::Directory, 1..=NAME_MAX),
            2 => (Kind::Leave, 0..=0),
            3 => (Kind::File, 1..=NAME_MAX),
            4 => (Kind::Data, 1..=DATA_MAX),
            5 => (Kind::Link, 3..=NAME_MAX + 1 + TARGET_MAX),
            6 => (Kind::End, 0..=0),
            _ => return Err(Malformed),
        };
        if !lengths.contains(&len) {
            return Err(Malformed);
        }
        Ok(Head { kind, mode: u32::from_le_bytes([m0, m1, m2, m3]), len })
    }
}

/// Whether these bytes are the name of something in a directory.
pub fn is_name(bytes: &[u8]) -> bool {
    let plain = !bytes.iter().any(|byte| matches!(byte, 0 | b'/'));
    plain && (1..=NAME_MAX).contains(&bytes.len()) && bytes != b"." && bytes != b".."
}

/// Name and target of a link.
///
/// # Errors
/// When they are none.
pub fn link(bytes: &[u8]) -> Result<(&[u8], &[u8]), Malformed> {
    let mut parts = bytes.split(|byte| *byte == 0);
    let (Some(name), Some(target), None) = (parts.next(), parts.next(), parts.next()) else {
        return Err(Malformed);
    };
    let fine = is_name(name) && (1..=TARGET_MAX).contains(&target.len());
    if fine { Ok((name, target)) } else { Err(Malformed) }
}
