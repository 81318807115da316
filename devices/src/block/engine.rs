//! The contract of an engine: what carries out jobs while their owner does something else.

use std::any::Any;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use super::job::Job;

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
