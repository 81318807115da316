//! The words that the parts of a disk have in common: how it is opened, and what is asked of its files.
//!
//! Plain data, which know of nothing that stands here: a disk, its format, its overlay and its jobs all
//! stand on them.

use serde::{Deserialize, Serialize};

use crate::segment::Segment;

/// Bytes of a sector, whatever the disk's own are (virtio 1.3 §5.2).
pub const SECTOR: u64 = 512;

/// What a write is worth once it was answered, and what a flush does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Cache {
    /// Through the host's page cache; stable after a flush.
    #[default]
    Writeback,
    /// Past the host's page cache (`O_DIRECT`); stable after a flush.
    Direct,
    /// Through the host's page cache, and a flush does nothing: what the guest believes to be safe
    /// is lost when the host goes down. For what is thrown away anyway.
    Unsafe,
}

/// How a disk is opened.
#[derive(Debug, Clone, Copy, Default)]
pub struct DiskOptions {
    /// Never write.
    pub read_only: bool,
    /// See [`Cache`].
    pub cache: Cache,
    /// What the file is. Without it a disk that is only read is what it looks like, and one that is
    /// written is raw and must not look like anything else.
    pub format: Option<DiskFormat>,
    /// Whether the image may name another file that it is based on, which is opened then.
    pub backing: bool,
}

/// What a disk's file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DiskFormat {
    /// What is in the file is what the guest sees.
    Raw,
    /// An image as `qemu-img` makes them, of version 2 or 3.
    Qcow2,
}

/// Which of a disk's files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    /// The image itself.
    Image,
    /// The overlay's own file.
    Layer,
}

/// A system call for an engine to make.
#[derive(Clone, Copy)]
pub(super) enum Step<'a> {
    /// `preadv` to these pieces.
    Read { part: Part, to: &'a [Segment], offset: i64 },
    /// `pwritev` from these pieces.
    Write { part: Part, from: &'a [Segment], offset: i64 },
    /// `fallocate`.
    Allocate { part: Part, mode: i32, offset: i64, len: i64 },
    /// `fdatasync` of the image.
    Sync,
}
