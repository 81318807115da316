//! The initrd: a file read into guest memory above the kernel, as high as the kernel allows, so
//! that it is in the way of nothing the kernel unpacks or allocates early.
//!
//! [`Initrd::open`] checks the file, [`Initrd::load`] places and reads it. Its contents are the
//! kernel's business alone.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use vm_memory::GuestMemoryMmap;

use super::host::for_each_span;
use super::params::GuestRange;
use super::{PAGE, align_down, align_up};
use crate::files;

/// Why an initrd cannot be used. All name the path the user gave.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the fields are the path and the cause in each")]
pub enum InitrdError {
    /// It cannot be opened or read.
    #[error("initrd {}: {source}", .path.display())]
    Read { path: PathBuf, r#source: io::Error },
    /// It is a directory, a pipe or a device.
    #[error("initrd {}: it is {what}, not a file", .path.display())]
    NotAFile { path: PathBuf, what: &'static str },
    /// There is nothing in it.
    #[error("initrd {}: it is an empty file", .path.display())]
    Empty { path: PathBuf },
    /// It does not fit between the kernel and the end of memory.
    #[error(
        "initrd {}: it is {} MiB, but above the kernel there is room for {} MiB: give the guest \
         more memory",
        .path.display(), tenths(.len.saturating_add(TENTH - 1)), tenths(*.room)
    )]
    TooLarge { path: PathBuf, len: u64, room: u64 },
}

/// A tenth of a MiB, in bytes, more or less.
const TENTH: u64 = (1 << 20) / 10;

/// So many bytes in MiB, cut off after a tenth.
fn tenths(bytes: u64) -> String {
    let tenths = (u128::from(bytes) * 10) >> 20;
    format!("{}.{}", tenths / 10, tenths % 10)
}

/// An initrd file, checked, open until dropped.
#[derive(Debug)]
pub struct Initrd {
    path: PathBuf,
    file: File,
    len: u64,
}

impl Initrd {
    /// Opens the initrd at `path`.
    ///
    /// # Errors
    /// When it is no regular file, cannot be read, or is empty.
    pub fn open(path: &Path) -> Result<Initrd, InitrdError> {
        let failed = |source| InitrdError::Read { path: path.to_owned(), source };
        let file = files::open(path).map_err(failed)?;
        let metadata = file.metadata().map_err(failed)?;
        if let Some(what) = files::not_a_file(&metadata) {
            return Err(InitrdError::NotAFile { path: path.to_owned(), what });
        }
        match metadata.len() {
            0 => Err(InitrdError::Empty { path: path.to_owned() }),
            len => Ok(Initrd { path: path.to_owned(), file, len }),
        }
    }

    /// An initrd in a file that is open, called `name` in messages.
    ///
    /// # Errors
    /// When it is empty, or the host does not tell.
    pub fn of(file: File, name: &Path) -> Result<Initrd, InitrdError> {
        let path = name.to_owned();
        match file.metadata() {
            Ok(metadata) if metadata.len() == 0 => Err(InitrdError::Empty { path }),
            Ok(metadata) => Ok(Initrd { path, file, len: metadata.len() }),
            Err(source) => Err(InitrdError::Read { path, source }),
        }
    }

    /// Where it goes, page-aligned: as high as possible below `low_ram_end` (the end of the memory
    /// below the 32-bit hole), its last byte not above `initrd_max`, and not below `kernel_end`.
    ///
    /// # Errors
    /// When there is not that much room.
    pub fn place(
        &self,
        low_ram_end: u64,
        initrd_max: u64,
        kernel_end: u64,
    ) -> Result<GuestRange, InitrdError> {
        let bottom = align_up(kernel_end, PAGE).unwrap_or(u64::MAX);
        let top = low_ram_end.min(initrd_max.saturating_add(1));
        let start = top.checked_sub(self.len).map(|start| align_down(start, PAGE));
        match start {
            Some(addr) if addr >= bottom => Ok(GuestRange { addr, len: self.len }),
            _ => Err(InitrdError::TooLarge {
                path: self.path.clone(),
                len: self.len,
                room: align_down(top, PAGE).saturating_sub(bottom),
            }),
        }
    }

    /// Reads it into `memory`, to where [`Initrd::place`] says.
    ///
    /// # Errors
    /// Those of `place`, and of reading.
    pub fn load(
        &self,
        memory: &GuestMemoryMmap,
        low_ram_end: u64,
        initrd_max: u64,
        kernel_end: u64,
    ) -> Result<GuestRange, InitrdError> {
        let range = self.place(low_ram_end, initrd_max, kernel_end)?;
        for_each_span(memory, range.addr, range.len, |span, done| {
            span.advise_huge();
            span.read_from(&self.file, done)
        })
        .map_err(|source| InitrdError::Read { path: self.path.clone(), source })?;
        Ok(range)
    }
}

#[cfg(test)]
mod tests;
