//! Tasks: what runs in a worker's loop, and how it is had back.
//!
//! A task comes back in two steps, so that several can be asked for before the first is waited for:
//! [`Task::recall`] asks, [`Recall::wait`] waits until a moment. A task whose worker hangs past it is
//! late: its lease is revoked, and should the worker come back it is handed over all the same.

use std::any::Any;
use std::marker::PhantomData;
use std::sync::mpsc::{Receiver, RecvTimeoutError, TryRecvError};
use std::time::Instant;

use event_manager::{EventOps, Events, MutEventSubscriber, SubscriberId};

use super::{Lease, WorkerHandle};

/// What a worker can run: it registers its descriptors in `init` and is called back in `process`.
pub trait Run: MutEventSubscriber + Any + Send {}
impl<T: MutEventSubscriber + Any + Send> Run for T {}

/// A task in the loop.
pub(super) struct Slot {
    pub(super) task: Box<dyn Run>,
    pub(super) lease: Lease,
}

impl MutEventSubscriber for Slot {
    fn process(&mut self, events: Events, ops: &mut EventOps) {
        if self.lease.enter() {
            self.task.process(events, ops);
            self.lease.leave();
        } else {
            // It was given up. What it does not listen to does not keep the loop awake either.
            let _ = ops.remove(events);
        }
    }

    fn init(&mut self, ops: &mut EventOps) {
        if self.lease.enter() {
            self.task.init(ops);
            self.lease.leave();
        }
    }
}

/// A task inside a worker's loop. Dropping this leaves the task there until the worker ends.
pub struct Task<T> {
    pub(super) id: SubscriberId,
    pub(super) worker: WorkerHandle,
    pub(super) lease: Lease,
    pub(super) kind: PhantomData<T>,
}

impl<T: Run> Task<T> {
    /// When whoever asks for it now gives it up.
    pub fn deadline(&self) -> Instant {
        self.worker.deadline()
    }

    /// Asks for the task, to be taken out of the loop after any callback of it that is running. Does
    /// not wait.
    pub fn recall(self) -> Recall<T> {
        let Task { id, worker, lease, kind } = self;
        lease.recall();
        let answer = worker.ask(move |ops| ops.remove_subscriber(id).ok()).ok();
        Recall { answer, worker, lease, kind }
    }

    /// Takes the task out of the loop, waiting as long as its worker may take for anything. `None`
    /// when the worker has ended or hangs: then the task is given up. Never called from the worker
    /// itself.
    pub fn take(self) -> Option<T> {
        let deadline = self.deadline();
        match self.recall().wait(deadline) {
            Returned::Back(task) => Some(task),
            Returned::Gone | Returned::Late(_) => None,
        }
    }
}

/// A task that was asked for. Dropping this gives it up.
pub struct Recall<T> {
    /// `None` when there was nobody to ask.
    answer: Option<Receiver<Option<Slot>>>,
    worker: WorkerHandle,
    lease: Lease,
    kind: PhantomData<T>,
}

/// What has become of a task.
pub enum Returned<T> {
    /// Here it is. When it was late before, what it was given is not its own any more.
    Back(T),
    /// The worker has ended, and the task with it.
    Gone,
    /// The worker hangs in the host. Its lease is revoked.
    Late(Recall<T>),
}

impl<T: Run> Recall<T> {
    /// Waits for the task until `deadline`; not at all if its worker is known to hang.
    pub fn wait(self, deadline: Instant) -> Returned<T> {
        let answered = self.answer.as_ref().map(|answer| self.worker.wait(answer, deadline));
        self.returned(answered)
    }

    /// Looks whether a task that is late has come meanwhile.
    pub fn poll(self) -> Returned<T> {
        let answered = self.answer.as_ref().map(|answer| answer.try_recv().map_err(Waited::from));
        self.returned(answered)
    }

    fn returned(self, answered: Option<Result<Option<Slot>, Waited>>) -> Returned<T> {
        match answered.unwrap_or(Err(Waited::Ended)) {
            Ok(Some(slot)) => {
                let task: Box<dyn Any> = slot.task;
                task.downcast::<T>().map_or(Returned::Gone, |task| Returned::Back(*task))
            }
            Ok(None) | Err(Waited::Ended) => Returned::Gone,
            Err(Waited::Hangs) => {
                self.lease.revoke();
                Returned::Late(self)
            }
        }
    }

    /// Whether the task, which is late, is in the middle of something that may touch guest memory.
    pub fn may_touch(&self) -> bool {
        !self.lease.is_over()
    }
}

impl<T> Drop for Recall<T> {
    fn drop(&mut self) {
        self.lease.revoke();
    }
}

/// Why there is no answer from a worker.
pub(super) enum Waited {
    Ended,
    Hangs,
}

impl From<RecvTimeoutError> for Waited {
    fn from(e: RecvTimeoutError) -> Self {
        match e {
            RecvTimeoutError::Timeout => Waited::Hangs,
            RecvTimeoutError::Disconnected => Waited::Ended,
        }
    }
}

impl From<TryRecvError> for Waited {
    fn from(e: TryRecvError) -> Self {
        match e {
            TryRecvError::Empty => Waited::Hangs,
            TryRecvError::Disconnected => Waited::Ended,
        }
    }
}
