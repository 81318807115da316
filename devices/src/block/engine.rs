//! The contract of an engine: what carries out jobs while their owner does something else.

use std::any::Any;
use std::fs::File;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::at_once::AtOnce;
use super::disk::Disk;
use super::job::Job;
use super::overlay::file_system;
use super::threads::Threads;
use super::uring::Uring;

/// Whatever keeps the memory of the jobs' data mapped, as long as it is not dropped.
pub type Keep = Arc<dyn Any + Send + Sync>;

/// Carries out jobs on one disk, any number at once, in no order.
///
/// A job is owned by the engine from [`Engine::submit`] until [`Engine::reap`] gives it back. An
/// engine that is dropped before leaves what the kernel still works on to the kernel, and keeps the
/// memory and the disk's lock until that is done: nobody waits for it.
pub trait Engine: Send {
    /// Takes over a job that has begun; begun at the host by [`Engine::kick`] at the latest.
    ///
    /// # Safety
    /// The memory of the job's data must be mapped until the job is back, or until what was given
    /// to [`Engine::protect`] is dropped.
    unsafe fn submit(&mut self, job: Box<Job>);

    /// Has the host begin what was submitted. [`Engine::reap`] is due after it: some may be done.
    ///
    /// # Errors
    /// When the host takes nothing, even after some patience. What was submitted stays submitted.
    fn kick(&mut self) -> io::Result<()>;

    /// Appends the jobs that are done, or were held, to `done`. Never waits. Afterwards
    /// [`Engine::kick`] is due, for a job that needs another step.
    fn reap(&mut self, done: &mut Vec<Box<Job>>);

    /// Jobs that have not come back.
    fn in_flight(&self) -> usize;

    /// Readable when something is done that was not when [`Engine::kick`] returned, until it is
    /// reaped.
    fn event(&self) -> BorrowedFd<'_>;

    /// While held, no step begins: jobs come back unfinished instead, after the step they are in.
    fn hold(&mut self, held: bool);

    /// Has the host give up what it can: such jobs come back unfinished. Only while held.
    fn cancel(&mut self);

    /// Keeps `memory` for the jobs that are submitted from now on, and what was given before for as
    /// long as older jobs are in flight.
    fn protect(&mut self, memory: Keep);
}

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

/// What has been given to [`Engine::protect`].
#[derive(Default)]
pub(super) struct Kept(Vec<Keep>);

impl Kept {
    pub(super) fn add(&mut self, memory: Keep, in_flight: usize) {
        if in_flight == 0 {
            self.0.clear();
        }
        if !self.0.iter().any(|kept| Arc::ptr_eq(kept, &memory)) {
            self.0.push(memory);
        }
    }
}
