//! One kept kernel: an ELF with mappable segments (see `relayout.rs`), then a trailer by which a
//! truncated or damaged file is told from a whole one.
//!
//! ```text
//!   ├── ELF ──────────────┼ magic 8 ┼ ELF length 8 ┼ XXH3-64 of the ELF 8 ┼ absent drivers 8 ┼ key 32 ┤
//! ```
//! The checksum is against accidents, a disk that filled or a host that crashed; who can write to
//! the directory is the user himself.

use std::fmt;
use std::fs::File;
use std::hash::Hasher as _;
use std::io::{self, BufWriter, Read, Write};
use std::os::unix::fs::FileExt;

use sha2::{Digest, Sha256};
use twox_hash::xxhash3_64::Hasher;

use crate::boot::builtin::Absent;
use crate::boot::elf::Elf;
use crate::boot::image::Image;
use crate::boot::{relayout, u64_at};

/// Begins the trailer. The digit changes with the format, and old entries are then made anew.
const MAGIC: &[u8; 8] = b"husk-k3\n";
const TRAILER_SIZE: usize = 8 + 8 + 8 + 8 + 32;
/// Where the drivers are in it that the kernel has not.
const ABSENT_AT: usize = 24;
/// Bytes read at a time when checking.
const CHUNK: usize = 256 << 10;

/// The SHA-256 of a `bzImage`, the name of what it unpacks to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::boot) struct Key([u8; 32]);

impl Key {
    /// The key of a file with these contents.
    pub(in crate::boot) fn of(bytes: &[u8]) -> Key {
        Key(Sha256::digest(bytes).into())
    }

    /// Reads what [`fmt::Display`] writes, and nothing else.
    pub(super) fn parse(hex: &str) -> Option<Key> {
        let mut key = [0; 32];
        if hex.len() != 64 || !hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
            return None;
        }
        for (i, byte) in key.iter_mut().enumerate() {
            *byte = u8::from_str_radix(hex.get(2 * i..2 * i + 2)?, 16).ok()?;
        }
        Some(Key(key))
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// Counts and sums what goes through to the file.
struct Summing<'a> {
    file: &'a mut File,
    hasher: Hasher,
    len: u64,
}

impl Write for Summing<'_> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let written = self.file.write(buf)?;
        self.hasher.write(buf.get(..written).unwrap_or(buf));
        self.len += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// Writes the entry for `elf`, which is in `image`, in memory.
pub(super) fn write(file: &mut File, key: &Key, elf: &Elf, image: &Image) -> io::Result<()> {
    let summing = Summing { file, hasher: Hasher::new(), len: 0 };
    let mut out = BufWriter::with_capacity(CHUNK, summing);
    relayout::write(elf, image, &mut out)?;
    let Summing { file, hasher, len } = out.into_inner()?;
    file.write_all(&trailer(len, hasher.finish(), elf.absent, key))
}

fn trailer(len: u64, sum: u64, absent: Absent, key: &Key) -> Vec<u8> {
    let numbers = [len, sum, absent.bits()].map(u64::to_le_bytes).concat();
    [MAGIC.as_slice(), &numbers, &key.0].concat()
}

/// Reads all of an entry: is it what was written for `key`?
pub(super) fn is_intact(file: &File, key: &Key) -> bool {
    let check = || -> io::Result<bool> {
        let Some(len) = file.metadata()?.len().checked_sub(TRAILER_SIZE as u64) else {
            return Ok(false);
        };
        let mut found = [0; TRAILER_SIZE];
        file.read_exact_at(&mut found, len)?;
        if u64_at(&found, 8) != Some(len) {
            return Ok(false);
        }
        let mut hasher = Hasher::new();
        let mut chunk = vec![0; CHUNK];
        let mut rest = file.take(len);
        loop {
            let read = rest.read(&mut chunk)?;
            let Some(bytes @ [_, ..]) = chunk.get(..read) else { break };
            hasher.write(bytes);
        }
        let absent = Absent::from_bits(u64_at(&found, ABSENT_AT).unwrap_or_default());
        Ok(found == *trailer(len, hasher.finish(), absent, key))
    };
    check().unwrap_or(false)
}

/// Takes an entry of `len` bytes that is known to be whole. `None` if it is none after all.
pub(super) fn parse(file: File, len: u64) -> Option<(Image, Elf)> {
    let mut trailer = [0; TRAILER_SIZE];
    let at = len.checked_sub(TRAILER_SIZE as u64)?;
    file.read_exact_at(&mut trailer, at).ok()?;
    let image = Image::File { file, len, immutable: true };
    let mut elf = Elf::parse(&image).ok().filter(|_| trailer.starts_with(MAGIC))?;
    elf.absent = Absent::from_bits(u64_at(&trailer, ABSENT_AT)?);
    Some((image, elf))
}
