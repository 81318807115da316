//! What a disk's file is: raw, or an image with a format of its own.
//!
//! A guest writes what it likes to a raw disk, also the first bytes of an image that names files of
//! the host's. So a file that husk writes to is an image only when its owner says so; one that is only
//! read may be recognised, because an image never leads to another file unless that is asked for.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::error::DiskError;
use super::types::{DiskFormat, DiskOptions};

/// The first bytes of a qcow2 image.
pub(super) const QCOW2_MAGIC: [u8; 4] = *b"QFI\xfb";

/// What the disk at `path` is, which was opened as `file`.
///
/// # Errors
/// When it is not what it is said to be, or its first bytes cannot be read.
pub(super) fn of(file: &File, path: &Path, options: DiskOptions) -> Result<DiskFormat, DiskError> {
    let path = || path.to_path_buf();
    if options.format == Some(DiskFormat::Raw) {
        return Ok(DiskFormat::Raw);
    }
    let mut start = [0; 4];
    let there = match file.read_at(&mut start, 0) {
        Ok(count) => count,
        Err(source) => return Err(DiskError::Host { path: path(), what: "read", source }),
    };
    let is_qcow2 = there == start.len() && start == QCOW2_MAGIC;
    match options.format {
        Some(_) if is_qcow2 => Ok(DiskFormat::Qcow2),
        Some(_) => {
            let why = "it is no qcow2 image; leave format=qcow2 out".to_owned();
            Err(DiskError::Format { path: path(), why })
        }
        None if !is_qcow2 => Ok(DiskFormat::Raw),
        None if options.read_only => Ok(DiskFormat::Qcow2),
        None => Err(DiskError::Ambiguous { path: path() }),
    }
}
