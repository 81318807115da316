//! A device's seat in a worker: where the task that serves its queues sits while it is started.
//!
//! This is the start and stop of a device that is one task, and a piece of those that are several. A
//! task whose worker hangs in the host is given up after a while: it is late then, the device cannot
//! start, and whether guest memory may still be touched for it is known. Once it has come back the
//! seat is free, and its owner may have out of it what outlives a start.

use std::time::Instant;

use super::device::StartError;
use crate::worker::{Lease, Recall, Returned, Run, Task, WorkerHandle};

/// Room for one task.
pub(super) struct Seat<T>(Sits<T>);

enum Sits<T> {
    Nobody,
    Task(Task<T>),
    /// Asked for and not waited for yet, which is to be done until then.
    Recalled(Recall<T>, Instant),
    /// Waited for in vain.
    Late(Recall<T>),
}

impl<T> Default for Seat<T> {
    fn default() -> Self {
        Seat(Sits::Nobody)
    }
}

impl<T: Run> Seat<T> {
    /// Puts the task that `make` makes into `worker`.
    ///
    /// # Errors
    /// When the last one is late, or the worker hangs or has ended.
    pub fn start(
        &mut self,
        worker: &WorkerHandle,
        make: impl FnOnce(Lease) -> T,
    ) -> Result<(), StartError> {
        drop(self.reclaim());
        if self.is_late() {
            return Err(StartError::Hangs);
        }
        self.0 = Sits::Task(worker.add_with(make)?);
        Ok(())
    }

    /// Asks for the task and does not wait: before several are waited for. Gives the moment until which
    /// its worker may be waited for, counted from when it was asked first.
    pub fn recall(&mut self) -> Option<Instant> {
        match self.take() {
            Sits::Task(task) => {
                let deadline = task.deadline();
                self.0 = Sits::Recalled(task.recall(), deadline);
                Some(deadline)
            }
            Sits::Recalled(recall, deadline) => {
                self.0 = Sits::Recalled(recall, deadline);
                Some(deadline)
            }
            other => {
                self.0 = other;
                None
            }
        }
    }

    /// Takes the task out of its worker. `None` when there is none, when its worker has ended, or when
    /// it is late.
    pub fn stop(&mut self) -> Option<T> {
        let deadline = self.recall()?;
        self.stop_by(deadline)
    }

    /// The same for one that was recalled, waiting until `deadline`.
    pub fn stop_by(&mut self, deadline: Instant) -> Option<T> {
        match self.take() {
            Sits::Recalled(recall, _) => self.settle(recall.wait(deadline)),
            other => {
                self.0 = other;
                None
            }
        }
    }

    /// A task that was late and has come back meanwhile. The rings it has are its driver's no more.
    pub fn reclaim(&mut self) -> Option<T> {
        match self.take() {
            Sits::Late(recall) => self.settle(recall.poll()),
            other => {
                self.0 = other;
                None
            }
        }
    }

    /// Whether the last task was given up and has not been reclaimed.
    pub fn is_late(&self) -> bool {
        matches!(self.0, Sits::Late(_))
    }

    /// Whether a task that is late may still touch guest memory.
    pub fn may_touch(&self) -> bool {
        matches!(&self.0, Sits::Late(recall) if recall.may_touch())
    }

    fn take(&mut self) -> Sits<T> {
        std::mem::replace(&mut self.0, Sits::Nobody)
    }

    fn settle(&mut self, returned: Returned<T>) -> Option<T> {
        match returned {
            Returned::Back(task) => Some(task),
            Returned::Gone => None,
            Returned::Late(recall) => {
                self.0 = Sits::Late(recall);
                None
            }
        }
    }
}

#[cfg(test)]
mod tests;
