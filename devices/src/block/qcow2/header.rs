//! What a qcow2 image says of itself, checked before anything else believes it (QEMU
//! `docs/interop/qcow2.txt`).
//!
//! An image is as hostile as whoever made it. Here stands what husk does not do (encryption, data in
//! other files, features it does not know), the bounds of what is read into memory at once, and, for an
//! image that is written, that its reference counts are where they should be: whoever looks for a free
//! cluster goes through them. Nothing is changed here.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use super::super::format::QCOW2_MAGIC;

/// Bytes of the header of version 2; version 3 has at least 104.
const LEN_2: usize = 72;
const LEN_3: usize = 104;
/// Cluster sizes of 512 bytes to 2 MiB, as QEMU has them.
const CLUSTER_BITS: std::ops::RangeInclusive<u32> = 9..=21;
/// The longest tables, in bytes, as QEMU has them.
const L1_MAX: u64 = 32 << 20;
const REFCOUNT_TABLE_MAX: u64 = 8 << 20;
/// The longest name of a backing file, in bytes.
const BACKING_MAX: u32 = 1023;
/// Header extension with names of features: entries of so many bytes.
const FEATURE_NAMES: u32 = 0x6803_f857;
const FEATURE_NAME_LEN: usize = 48;
/// What to do about an image that is damaged.
const REPAIR: &str = "`qemu-img check -r all IMAGE` may repair it";

/// What is wrong with an image, and what to do about it.
#[derive(Debug, thiserror::Error)]
pub(super) enum HeaderError {
    #[error("cannot read it: {0}")]
    Read(io::Error),
    #[error("{0}")]
    Cannot(String),
    #[error("the qcow2 image is damaged: {0}; {REPAIR}")]
    Damaged(String),
}

impl From<io::Error> for HeaderError {
    fn from(e: io::Error) -> Self {
        HeaderError::Read(e)
    }
}

fn damaged<T>(what: impl Into<String>) -> Result<T, HeaderError> {
    Err(HeaderError::Damaged(what.into()))
}

fn cannot<T>(what: impl Into<String>) -> Result<T, HeaderError> {
    Err(HeaderError::Cannot(what.into()))
}

/// The numbers of a header, big-endian, by their offset; what lies behind the end is zero.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn bytes<const N: usize>(&self, at: usize) -> [u8; N] {
        let mut bytes = [0; N];
        let there = at.checked_add(N).and_then(|end| self.0.get(at..end));
        if let Some(there) = there {
            bytes.copy_from_slice(there);
        }
        bytes
    }

    fn u32(&self, at: usize) -> u32 {
        u32::from_be_bytes(self.bytes(at))
    }

    fn u64(&self, at: usize) -> u64 {
        u64::from_be_bytes(self.bytes(at))
    }
}

/// Refuses an image that husk cannot use, or not safely.
///
/// # Errors
/// What is wrong with it.
pub(super) fn check(file: &File, writable: bool) -> Result<(), HeaderError> {
    let len = io::Seek::seek(&mut &*file, io::SeekFrom::End(0))?;
    let mut start = [0; LEN_3];
    let there = read_at_most(file, &mut start, 0)?;
    let header = Fields(&start);
    if start.get(..4) != Some(&QCOW2_MAGIC[..]) || there < LEN_2 {
        return damaged("it has no whole header");
    }
    let version = header.u32(4);
    if !(2..=3).contains(&version) {
        return cannot(format!("it is a qcow image of version {version}; husk reads 2 and 3"));
    }
    let cluster_bits = header.u32(20);
    if !CLUSTER_BITS.contains(&cluster_bits) {
        return damaged(format!("its clusters have 2^{cluster_bits} bytes"));
    }
    let cluster = 1u64 << cluster_bits;
    if header.u32(32) != 0 {
        return cannot(
            "the qcow2 image is encrypted, which husk does not read; `qemu-img convert` it",
        );
    }
    if version == 3 {
        check_features(header.u64(72))?;
        // At most 2 MiB, so the cast keeps the number.
        let mut first = vec![0; cluster as usize];
        read_at_most(file, &mut first, 0)?;
        check_extensions(&first, header.u32(100))?;
    }
    let (name_at, name_len) = (header.u64(8), header.u32(16));
    if name_at != 0 && (name_len > BACKING_MAX || name_at >= cluster) {
        return damaged("the name of its backing file is not where it may be");
    }
    check_l1(&header, cluster, len)?;
    if writable {
        let order = if version == 2 { 4 } else { header.u32(96) };
        if order > 6 {
            return damaged(format!("its reference counts have 2^{order} bits"));
        }
        check_refcounts(file, &header, cluster, (cluster * 8) >> order, len)?;
    }
    Ok(())
}

/// Bits of `incompatible_features`.
fn check_features(features: u64) -> Result<(), HeaderError> {
    let has = |bit: u32| features & 1 << bit != 0;
    match () {
        () if has(1) => damaged("it says so itself"),
        () if has(0) => damaged("it was not closed, and its reference counts may be wrong"),
        () if has(2) => {
            cannot("the qcow2 image keeps its data in another file, which husk does not open")
        }
        () if has(3) => cannot(
            "the qcow2 image is compressed otherwise than by zlib; `qemu-img convert -O qcow2` it",
        ),
        () if has(4) => {
            cannot("the qcow2 image has subclusters (extended_l2); `qemu-img convert -O qcow2` it")
        }
        () if features != 0 => {
            cannot(format!("the qcow2 image has features that husk does not know: {features:#x}"))
        }
        () => Ok(()),
    }
}

/// Header extensions: type, length, data, up to type 0, all in the first cluster.
fn check_extensions(first: &[u8], header_len: u32) -> Result<(), HeaderError> {
    let mut at = header_len as usize;
    if at < LEN_3 || !at.is_multiple_of(8) || at > first.len() {
        return damaged(format!("its header has {header_len} bytes"));
    }
    let fields = Fields(first);
    loop {
        let (kind, len) = (fields.u32(at), fields.u32(at + 4) as usize);
        let end = at + 8 + len;
        if end > first.len() {
            return damaged("its header is longer than a cluster");
        }
        match kind {
            0 => return Ok(()),
            FEATURE_NAMES if !len.is_multiple_of(FEATURE_NAME_LEN) => {
                return damaged("the names of its features are cut off");
            }
            _ => at = end.next_multiple_of(8),
        }
    }
}

fn check_l1(header: &Fields<'_>, cluster: u64, len: u64) -> Result<(), HeaderError> {
    let (size, entries, at) = (header.u64(24), u64::from(header.u32(36)), header.u64(40));
    // An entry stands for a table of entries, of which each stands for a cluster.
    let needed = size.div_ceil(cluster).div_ceil(cluster / 8);
    if entries * 8 > L1_MAX || needed * 8 > L1_MAX {
        return cannot(format!("a qcow2 image of {size} bytes is too large for its clusters"));
    }
    if entries < needed {
        return damaged("its table of clusters is too short for its size");
    }
    let end = at.checked_add(entries * 8);
    let inside = at != 0 && at.is_multiple_of(cluster) && end.is_some_and(|end| end <= len);
    if entries > 0 && !inside {
        return damaged("its table of clusters lies outside of the file");
    }
    Ok(())
}

/// A refcount block for each cluster of the file, in a table without gaps: who writes looks for free
/// clusters there, and makes blocks that lack.
fn check_refcounts(
    file: &File,
    header: &Fields<'_>,
    cluster: u64,
    clusters_per_block: u64,
    len: u64,
) -> Result<(), HeaderError> {
    let (at, table_len) = (header.u64(48), u64::from(header.u32(56)) * cluster);
    let inside = at.checked_add(table_len).is_some_and(|end| end <= len);
    if at == 0 || !at.is_multiple_of(cluster) || table_len == 0 || !inside {
        return damaged("its table of reference counts lies outside of the file");
    }
    if table_len > REFCOUNT_TABLE_MAX {
        return cannot("the qcow2 image has too many reference counts");
    }
    let mut table = vec![0; usize::try_from(table_len).unwrap_or(0)];
    file.read_exact_at(&mut table, at)?;
    let mut blocks: Vec<u64> = table.chunks_exact(8).map(|entry| Fields(entry).u64(0)).collect();
    let used = blocks.iter().rposition(|block| *block != 0).map_or(0, |last| last + 1);
    blocks.truncate(used);
    let is_file = file.metadata()?.is_file();
    // A block device is longer than what of it is used.
    let end = if is_file { len } else { at + table_len };
    if (used as u64) < end.div_ceil(cluster).div_ceil(clusters_per_block) {
        return damaged("reference counts are missing");
    }
    for block in &blocks {
        let own = block.is_multiple_of(cluster) && *block != 0 && *block < len;
        if !own || (at..at + table_len).contains(block) {
            return damaged(format!("reference counts are said to be at {block:#x}"));
        }
    }
    blocks.sort_unstable();
    blocks.dedup();
    if blocks.len() != used {
        return damaged("two blocks of reference counts are one");
    }
    Ok(())
}

/// Fills as much of `buffer` as there is.
fn read_at_most(file: &File, buffer: &mut [u8], at: u64) -> io::Result<usize> {
    let mut done = 0;
    while let Some(rest) = buffer.get_mut(done..).filter(|rest| !rest.is_empty()) {
        match file.read_at(rest, at + done as u64) {
            Ok(0) => break,
            Ok(count) => done += count,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(done)
}
