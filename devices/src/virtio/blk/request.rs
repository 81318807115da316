//! Block requests as the driver lays them out, checked (virtio 1.3 §5.2.6). Pure functions.
//!
//! ```text
//! readable: type u32 | reserved u32 | sector u64 | data of OUT, ranges of DISCARD, WRITE_ZEROES
//! writable: data of IN, id of GET_ID | status u8
//! ```

use virtio_bindings::bindings::virtio_blk::{
    VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_UNSUPP, VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH,
    VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_WRITE_ZEROES,
    VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP,
};

use crate::block::SECTOR;

/// Bytes before the readable data.
pub const HEADER_LEN: usize = 16;
/// Bytes of a range of DISCARD and WRITE_ZEROES.
pub const RANGE_LEN: usize = 16;
/// The most sectors of one range.
pub const MAX_RANGE_SECTORS: u32 = 1 << 17;

/// The only length there is of an id (`VIRTIO_BLK_ID_BYTES`).
pub const ID_LEN: usize = 20;

/// What is asked of the disk. Offsets and lengths are bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Request {
    /// Fill the writable data from `offset`.
    Read {
        /// Into the disk.
        offset: u64,
        /// Of the data.
        len: usize,
    },
    /// Write the readable data at `offset`.
    Write {
        /// Into the disk.
        offset: u64,
        /// Of the data.
        len: usize,
    },
    /// Make what was written stable.
    Flush,
    /// Tell the disk's id.
    GetId,
    /// The contents of the range that follows do not matter.
    Discard,
    /// The range that follows becomes zero.
    WriteZeroes,
}

/// The disk's answer to a request it will not even try.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// `VIRTIO_BLK_S_IOERR`: out of range, misshapen, or a write to a read-only disk.
    IoErr,
    /// `VIRTIO_BLK_S_UNSUPP`: not a request of ours.
    Unsupported,
}

impl Refusal {
    /// The status byte.
    pub fn status(self) -> u8 {
        match self {
            Refusal::IoErr => VIRTIO_BLK_S_IOERR as u8,
            Refusal::Unsupported => VIRTIO_BLK_S_UNSUPP as u8,
        }
    }
}

/// What a request is checked against.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Of 512 bytes.
    pub sectors: u64,
    /// Bytes that offsets and lengths are multiples of, at least a sector.
    pub block: u64,
    /// Writes are refused.
    pub read_only: bool,
}

impl Limits {
    /// The byte offset of `sector`, when `len` bytes from there are whole blocks of the disk.
    fn place(&self, sector: u64, len: u64) -> Result<u64, Refusal> {
        let end = sector.checked_add(len.div_ceil(SECTOR)).ok_or(Refusal::IoErr)?;
        let offset = sector.checked_mul(SECTOR).ok_or(Refusal::IoErr)?;
        let aligned = offset.is_multiple_of(self.block) && len.is_multiple_of(self.block);
        if end > self.sectors || !aligned {
            return Err(Refusal::IoErr);
        }
        Ok(offset)
    }
}

/// Reads a header. `readable` and `writable` are the bytes of data, without header and status.
///
/// # Errors
/// The status to answer with.
pub fn parse(
    header: [u8; HEADER_LEN],
    readable: usize,
    writable: usize,
    limits: Limits,
) -> Result<Request, Refusal> {
    let [t0, t1, t2, t3, _, _, _, _, sector @ ..] = header;
    let sector = u64::from_le_bytes(sector);
    let may_write = || if limits.read_only { Err(Refusal::IoErr) } else { Ok(()) };
    match u32::from_le_bytes([t0, t1, t2, t3]) {
        VIRTIO_BLK_T_IN => {
            let offset = limits.place(sector, writable as u64)?;
            Ok(Request::Read { offset, len: writable })
        }
        VIRTIO_BLK_T_OUT => {
            may_write()?;
            let offset = limits.place(sector, readable as u64)?;
            Ok(Request::Write { offset, len: readable })
        }
        VIRTIO_BLK_T_FLUSH => Ok(Request::Flush),
        VIRTIO_BLK_T_GET_ID if writable >= ID_LEN => Ok(Request::GetId),
        VIRTIO_BLK_T_GET_ID => Err(Refusal::IoErr),
        kind @ (VIRTIO_BLK_T_DISCARD | VIRTIO_BLK_T_WRITE_ZEROES) => {
            may_write()?;
            match readable {
                RANGE_LEN if kind == VIRTIO_BLK_T_DISCARD => Ok(Request::Discard),
                RANGE_LEN => Ok(Request::WriteZeroes),
                // max_discard_seg and max_write_zeroes_seg are 1.
                _ => Err(Refusal::IoErr),
            }
        }
        _ => Err(Refusal::Unsupported),
    }
}

/// A range of DISCARD or WRITE_ZEROES.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Range {
    /// Bytes into the disk.
    pub offset: u64,
    /// Bytes.
    pub len: u64,
    /// The space may be given back.
    pub unmap: bool,
}

/// Reads a range (virtio 1.3 §5.2.6.1: unknown flags, and `unmap` for DISCARD, are unsupported).
///
/// # Errors
/// The status to answer with.
pub fn parse_range(
    range: [u8; RANGE_LEN],
    discard: bool,
    limits: Limits,
) -> Result<Range, Refusal> {
    let [s0, s1, s2, s3, s4, s5, s6, s7, n0, n1, n2, n3, flags @ ..] = range;
    let sector = u64::from_le_bytes([s0, s1, s2, s3, s4, s5, s6, s7]);
    let count = u32::from_le_bytes([n0, n1, n2, n3]);
    let flags = u32::from_le_bytes(flags);
    let unmap = flags == VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP;
    if flags & !VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP != 0 || discard && unmap {
        return Err(Refusal::Unsupported);
    }
    if count > MAX_RANGE_SECTORS {
        return Err(Refusal::IoErr);
    }
    let len = u64::from(count) * SECTOR;
    Ok(Range { offset: limits.place(sector, len)?, len, unmap })
}
