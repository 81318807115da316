//! Which engine carries out a disk's jobs: the one that was asked for, or the best that disk and host allow.

use std::fs::File;
use std::io;

use serde::{Deserialize, Serialize};

use super::at_once::AtOnce;
use super::disk::Disk;
use super::engine::Engine;
use super::temporary::file_system;
use super::threads::Threads;
use super::uring::Uring;

/// Which engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EngineChoice {
    /// `sync` for a file in RAM; else `io_uring` where the host has all of it that is needed; else
    /// `threads`.
    #[default]
    Auto,
    /// io_uring.
    IoUring,
    /// System calls in a few threads.
    Threads,
    /// System calls in the queue's own thread: for what is in RAM.
    Sync,
}

/// An engine that cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The host has no io_uring, or not enough of it, or does not let us.
    #[error("io_uring cannot be used here: {0}; use engine=threads")]
    IoUring(io::Error),
    /// An image that no system call can read.
    #[error("engine=io_uring does not read qcow2 images; use engine=threads, or leave it out")]
    Formatted,
    /// No event descriptor.
    #[error("disk engine: {0}")]
    Host(io::Error),
}

impl From<io::Error> for EngineError {
    fn from(e: io::Error) -> Self {
        EngineError::Host(e)
    }
}

impl EngineChoice {
    /// What it comes to for `disk`, as far as that depends on the disk.
    pub(super) fn for_disk(self, disk: &Disk) -> EngineChoice {
        match self {
            EngineChoice::Auto if disk.is_formatted() => EngineChoice::Threads,
            EngineChoice::Auto if disk.files().all(is_in_ram) => EngineChoice::Sync,
            chosen => chosen,
        }
    }

    /// An engine for `disk` with at most `depth` jobs at once.
    ///
    /// # Errors
    /// See [`EngineError`].
    pub fn open(self, disk: &Disk, depth: u16) -> Result<Box<dyn Engine>, EngineError> {
        match self.for_disk(disk) {
            EngineChoice::IoUring if disk.is_formatted() => Err(EngineError::Formatted),
            EngineChoice::Threads => Ok(Box::new(Threads::new(disk)?)),
            EngineChoice::Sync => Ok(Box::new(AtOnce::new(disk)?)),
            EngineChoice::IoUring => {
                Ok(Box::new(Uring::new(disk, depth).map_err(EngineError::IoUring)?))
            }
            EngineChoice::Auto => match Uring::new(disk, depth) {
                Ok(uring) => Ok(Box::new(uring)),
                Err(e) => {
                    log::debug!("no io_uring here ({e}): disks use threads");
                    Ok(Box::new(Threads::new(disk)?))
                }
            },
        }
    }
}

/// Whether all of a file is in RAM, or in swap. A device's node is not: /dev has that file system, too.
pub(super) fn is_in_ram(file: &File) -> bool {
    /// Linux `include/uapi/linux/magic.h`.
    const TMPFS_MAGIC: u32 = 0x0102_1994;
    file.metadata().is_ok_and(|file| file.is_file()) && file_system(file) == Some(TMPFS_MAGIC)
}
