//! Records: what a request or the machine's set-up consists of.
//!
//! ```text
//! 0 tag u8 | 1 length u32 (little-endian) | 5 bytes | zero
//! ```
//!
//! The zero behind the bytes is there so that the agent can hand them to the kernel where they lie.

use crate::Malformed;

/// What a record tells.
pub mod tag {
    /// The next argument; the first one is the command.
    pub const ARGUMENT: u8 = 1;
    /// `NAME=VALUE`
    pub const VARIABLE: u8 = 2;
    /// The directory to run in.
    pub const DIRECTORY: u8 = 3;
    /// `USER[:GROUP]`, names or numbers.
    pub const USER: u8 = 4;
    /// The file to be copied.
    pub const FILE: u8 = 5;
    /// The name under which it is put into [`FILE`] when that is a directory.
    pub const NAME: u8 = 6;

    /// (Empty) [`crate::Frame::OutOfMemory`] is understood, and wanted.
    pub const OUT_OF_MEMORY: u8 = 7;

    /// Set-up: what a network interface is to have, of [`crate::INTERFACE_LEN`] bytes: its number n (`ethn`),
    /// the address (4 bytes), the bits of its network's prefix, and the default gateway (4 bytes; of zeros
    /// there is none).
    pub const INTERFACE: u8 = 40;

    /// Set-up: the serial number of the disk with the root file system.
    pub const ROOT: u8 = 16;
    /// Set-up: the root is written to; without this it is only read, below an overlay in memory.
    pub const ROOT_WRITABLE: u8 = 17;
    /// Set-up: what the machine is called.
    pub const HOST_NAME: u8 = 18;
    /// Set-up: seconds (u64) and nanoseconds (u32) since the epoch.
    pub const CLOCK: u8 = 19;
    /// Set-up: `TAG:/DIRECTORY`, a shared directory and where it is mounted.
    pub const VOLUME: u8 = 20;
    /// Set-up: as [`VOLUME`], and it is only read.
    pub const VOLUME_READ_ONLY: u8 = 21;
    /// Set-up: as [`VOLUME`], and it is only read, below an overlay in memory.
    pub const VOLUME_OVERLAY: u8 = 22;
    /// Set-up: a directory that is a fresh one in memory.
    pub const TMPFS: u8 = 23;
    /// Set-up: the tag of the shared directory that is the root.
    pub const ROOT_VOLUME: u8 = 24;
    /// Set-up: commands find the root read-only.
    pub const ROOT_READ_ONLY: u8 = 25;
    /// Set-up: the serial number of the disk, an empty ext4, that all overlays are on instead of in memory.
    pub const OVERLAY_DISK: u8 = 26;
}

/// Bytes before those of a record.
const HEAD: usize = 5;

/// What stands before the bytes of a record; a zero stands behind them.
pub fn record_head(tag: u8, len: u32) -> [u8; HEAD] {
    let [a, b, c, d] = len.to_le_bytes();
    [tag, a, b, c, d]
}

/// A record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Record<'a> {
    /// One of [`tag`].
    pub tag: u8,
    /// Its bytes, a zero at their end and, when it is to be given to the kernel, none before.
    pub with_zero: &'a [u8],
}

impl<'a> Record<'a> {
    /// Its bytes.
    pub fn bytes(&self) -> &'a [u8] {
        self.with_zero.split_last().map_or(&[], |(_, bytes)| bytes)
    }
}

/// The records in some bytes, one after the other; after one that is malformed there is none.
#[derive(Debug, Clone)]
pub struct Records<'a>(pub &'a [u8]);

impl<'a> Iterator for Records<'a> {
    type Item = Result<Record<'a>, Malformed>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let record = take(self.0);
        let rest = match record {
            Ok((_, rest)) => rest,
            Err(_) => &[],
        };
        self.0 = rest;
        Some(record.map(|(record, _)| record))
    }
}

fn take(bytes: &[u8]) -> Result<(Record<'_>, &[u8]), Malformed> {
    let (&[tag, a, b, c, d], rest) = bytes.split_first_chunk::<HEAD>().ok_or(Malformed)?;
    let len = (u32::from_le_bytes([a, b, c, d]) as usize).checked_add(1).ok_or(Malformed)?;
    let (with_zero, rest) = rest.split_at_checked(len).ok_or(Malformed)?;
    match with_zero.last() {
        Some(0) => Ok((Record { tag, with_zero }, rest)),
        _ => Err(Malformed),
    }
}
