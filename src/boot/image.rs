//! The bytes a kernel is read from: an open file, or memory when an unpacked kernel could not be
//! kept on disk. Both answer positioned reads, so the readers above need not know which it is.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// Where the bytes of a kernel are.
#[derive(Debug)]
pub(super) enum Image {
    /// A file, `len` bytes long when it was opened.
    File {
        file: File,
        len: u64,
        /// Nobody writes to this file in place, so it may stay mapped while the guest runs. True
        /// of husk's own cache, never of a file the user gave: the next `make` writes over it.
        immutable: bool,
    },
    /// Unpacked, and not kept on disk.
    Bytes(Vec<u8>),
}

impl Image {
    /// The length in bytes.
    pub(super) fn len(&self) -> u64 {
        match self {
            Image::File { len, .. } => *len,
            Image::Bytes(bytes) => bytes.len() as u64,
        }
    }

    /// Fills `buf` from `offset`.
    ///
    /// # Errors
    /// `UnexpectedEof` when the image ends before, and whatever reading the file says.
    pub(super) fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        match self {
            Image::File { file, .. } => file.read_exact_at(buf, offset),
            Image::Bytes(_) => {
                buf.copy_from_slice(self.slice(offset, buf.len() as u64)?);
                Ok(())
            }
        }
    }

    /// `len` bytes at `offset` of an image in memory.
    ///
    /// # Errors
    /// `UnexpectedEof` when they are not all there (or the image is a file).
    pub(super) fn slice(&self, offset: u64, len: u64) -> io::Result<&[u8]> {
        let Image::Bytes(bytes) = self else {
            return Err(io::ErrorKind::UnexpectedEof.into());
        };
        let range = offset
            .checked_add(len)
            .and_then(|end| bytes.get(usize::try_from(offset).ok()?..usize::try_from(end).ok()?));
        range.ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
    }
}
