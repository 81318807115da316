//! Unpacking the kernel a `bzImage` carries.
//!
//! [`unpack`] takes the payload's bytes, recognises the compression by its magic, as the kernel's
//! own `lib/decompress.c` does, and returns what was inside. The payload says how long that is in
//! its last four bytes (`scripts/Makefile.lib`, `size_append`; with gzip they are the format's
//! own), and nothing longer is ever produced, so a small file cannot fill the host's memory. All
//! decoders are Rust. It knows nothing of files, ELF or guests.

use std::io::{self, Read};

use ruzstd::decoding::StreamingDecoder;

use super::u32_at;

/// No kernel is longer than this when unpacked, in bytes: a distribution's is 50 to 100 MiB, and its
/// header's `init_size`, which also counts, bounds it further. What a file of a few KiB can make
/// husk unpack is this much memory, for a second or two.
pub const MAX_UNPACKED: u64 = 256 << 20;
/// What a decoder may use for its window, in KiB. `xz -9` and the kernel's `zstd -22` need 64 and
/// 128 MiB.
const MAX_WINDOW_KIB: u32 = 160 << 10;
/// Bytes reserved before any are produced, per byte of payload: real kernels shrink to a fifth.
/// Longer claims may be true; then the buffer grows as the bytes come.
const RESERVE_RATIO: u64 = 16;
/// The bytes of an uncompressed block of lz4's legacy frame format.
const LZ4_BLOCK: usize = 8 << 20;

/// How a kernel is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// gzip, RFC 1952 (`CONFIG_KERNEL_GZIP`).
    Gzip,
    /// xz with the x86 branch filter (`CONFIG_KERNEL_XZ`).
    Xz,
    /// Zstandard, RFC 8878 (`CONFIG_KERNEL_ZSTD`).
    Zstd,
    /// lz4's legacy frame (`CONFIG_KERNEL_LZ4`, made with `lz4 -l`).
    Lz4,
    /// lzma-alone (`CONFIG_KERNEL_LZMA`).
    Lzma,
    /// bzip2 (`CONFIG_KERNEL_BZIP2`).
    Bzip2,
}

impl Compression {
    /// Recognises the first bytes of a payload (the magics of `lib/decompress.c`).
    pub fn detect(payload: &[u8]) -> Option<Compression> {
        const MAGICS: [(&[u8], Compression); 6] = [
            (&[0x1f, 0x8b], Compression::Gzip),
            (&[0xfd, b'7', b'z', b'X', b'Z', 0], Compression::Xz),
            (&[0x28, 0xb5, 0x2f, 0xfd], Compression::Zstd),
            (&[0x02, 0x21, 0x4c, 0x18], Compression::Lz4),
            (&[0x5d, 0x00, 0x00], Compression::Lzma),
            (b"BZh", Compression::Bzip2),
        ];
        let found = MAGICS.iter().find(|(magic, _)| payload.starts_with(magic));
        found.map(|(_, compression)| *compression)
    }

    /// Its name, as a command of that name would unpack it.
    pub fn name(self) -> &'static str {
        match self {
            Compression::Gzip => "gzip",
            Compression::Xz => "xz",
            Compression::Zstd => "zstd",
            Compression::Lz4 => "lz4",
            Compression::Lzma => "lzma",
            Compression::Bzip2 => "bzip2",
        }
    }
}

/// Why a payload does not unpack.
#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    /// The decoder refused it.
    #[error("its {} payload does not unpack: {source}", .compression.name())]
    Corrupt {
        /// The compression it was taken for.
        compression: Compression,
        /// What the decoder says.
        r#source: io::Error,
    },
    /// The claimed length cannot be.
    #[error("its payload claims to unpack to {claimed} bytes; at most {limit} are possible")]
    TooLarge {
        /// What the payload's last four bytes say.
        claimed: u64,
        /// What the header's `init_size` and husk allow, in bytes.
        limit: u64,
    },
    /// The payload unpacks to something else than it claims.
    #[error(
        "its {} payload claims to unpack to {claimed} bytes and is {relation}: it is damaged",
        .compression.name()
    )]
    WrongLength {
        /// The compression it was taken for.
        compression: Compression,
        /// What the payload's last four bytes say.
        claimed: u64,
        /// "longer", or how short it is.
        relation: String,
    },
    /// There is not enough memory on the host.
    #[error("the host has no memory for an unpacked kernel of {0} bytes")]
    NoMemory(u64),
}

/// Unpacks `payload` as `compression`, to at most `limit` bytes.
///
/// # Errors
/// When the payload is damaged, or is not as long unpacked as it says.
pub fn unpack(
    payload: &[u8],
    compression: Compression,
    limit: u64,
) -> Result<Vec<u8>, UnpackError> {
    let limit = limit.min(MAX_UNPACKED);
    let corrupt = |source| UnpackError::Corrupt { compression, source };
    let cut = || corrupt(io::ErrorKind::UnexpectedEof.into());
    let data_len = payload.len().checked_sub(4).ok_or_else(cut)?;
    let claimed = u64::from(u32_at(payload, data_len).ok_or_else(cut)?);
    if claimed > limit {
        return Err(UnpackError::TooLarge { claimed, limit });
    }
    let data = payload.get(..data_len).ok_or_else(cut)?;

    let mut sink = Sink::new(claimed, payload.len() as u64)?;
    let outcome = match compression {
        Compression::Gzip => sink.drain(flate2::bufread::GzDecoder::new(payload)),
        Compression::Xz => {
            sink.drain(lzma_rust2::XzReader::new_mem_limit(data, false, MAX_WINDOW_KIB))
        }
        Compression::Zstd => sink.zstd(data),
        Compression::Lz4 => sink.lz4_legacy(data),
        Compression::Lzma => lzma_rust2::LzmaReader::new_mem_limit(data, MAX_WINDOW_KIB, None)
            .and_then(|reader| sink.drain(reader)),
        Compression::Bzip2 => sink.drain(bzip2::bufread::BzDecoder::new(data)),
    };
    outcome.map_err(corrupt)?;
    let len = sink.out.len() as u64;
    if len == claimed {
        return Ok(sink.out);
    }
    let relation = match claimed.checked_sub(len) {
        Some(missing) => format!("{missing} bytes short"),
        None => "longer".to_owned(),
    };
    Err(UnpackError::WrongLength { compression, claimed, relation })
}

/// What has been unpacked so far; it takes one byte more than was claimed, and then stops.
struct Sink {
    out: Vec<u8>,
    limit: u64,
}

impl Sink {
    fn new(claimed: u64, payload_len: u64) -> Result<Sink, UnpackError> {
        let no_memory = || UnpackError::NoMemory(claimed);
        let limit = claimed + 1;
        let reserve = usize::try_from(limit.min(payload_len.saturating_mul(RESERVE_RATIO)));
        let mut out = Vec::new();
        out.try_reserve_exact(reserve.map_err(|_| no_memory())?).map_err(|_| no_memory())?;
        Ok(Sink { out, limit })
    }

    fn drain(&mut self, reader: impl Read) -> io::Result<()> {
        reader.take(self.limit).read_to_end(&mut self.out).map(drop)
    }

    /// A Zstandard frame. Its checksum, if it has one, is left to the caller by the decoder.
    fn zstd(&mut self, data: &[u8]) -> io::Result<()> {
        let mut reader = StreamingDecoder::new(data).map_err(io::Error::other)?;
        self.drain(&mut reader)?;
        match reader.decoder.get_checksum_from_data() {
            Some(sum) if reader.decoder.get_calculated_checksum() != Some(sum) => {
                Err(io::Error::new(io::ErrorKind::InvalidData, "its checksum is wrong"))
            }
            _ => Ok(()),
        }
    }

    /// lz4's legacy frame: after the magic, blocks of a 4-byte compressed length and the data, each
    /// of 8 MiB but the last (`lz4_Frame_format.md`, "Legacy frame").
    fn lz4_legacy(&mut self, data: &[u8]) -> io::Result<()> {
        let cut = || io::Error::from(io::ErrorKind::UnexpectedEof);
        let limit = usize::try_from(self.limit).unwrap_or(usize::MAX);
        let mut rest = data.get(4..).ok_or_else(cut)?;
        while !rest.is_empty() && self.out.len() < limit {
            let len = usize::try_from(u32_at(rest, 0).ok_or_else(cut)?).map_err(|_| cut())?;
            let (block, after) =
                rest.get(4..).and_then(|rest| rest.split_at_checked(len)).ok_or_else(cut)?;
            let start = self.out.len();
            // No more room than this block can fill: lz4 makes at most 255 bytes of one.
            let room = LZ4_BLOCK.min(limit - start).min(len.saturating_mul(255));
            self.out.resize(start + room, 0);
            let target = self.out.get_mut(start..).unwrap_or_default();
            let done = lz4_flex::block::decompress_into(block, target).map_err(io::Error::other)?;
            self.out.truncate(start + done);
            rest = after;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
