//! Worker threads: event loops that run the device side of queues and consoles.
//!
//! Each VM has one worker, and a device that blocks (a disk) is given its own. A task moves into
//! the loop with [`WorkerHandle::add`] and comes back out, with its state, from [`Task::take`], so
//! a device needs no lock around what its queues use. vCPU threads only ever ring doorbells; the
//! two calls here are for start and stop, and neither waits for ever: a worker that hangs in the
//! host is given up with what it serves ([`Lease`]), until it comes back.

#[cfg(any(test, feature = "testing"))]
mod here;
mod lease;
mod task;
#[cfg(test)]
mod tests;

use std::io;
use std::marker::PhantomData;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use event_manager::{EventManager, RemoteEndpoint, SubscriberOps};

use crate::panics;
pub use lease::Lease;
pub use task::{Recall, Returned, Run, Task};
use task::{Slot, Waited};

/// Called, with a sentence, when a worker has ended of itself: the devices in it are gone.
pub type OnBroken = Arc<dyn Fn(String) + Send + Sync>;

/// The loop refused, or has ended.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    /// The event loop could not be made or has gone.
    #[error("event loop: {0}")]
    Loop(String),
    /// The thread could not be started.
    #[error("worker thread: {0}")]
    Thread(io::Error),
    /// It has ended of itself.
    #[error("the worker thread {0} has ended")]
    Ended(String),
    /// It does not come back from a call to the host.
    #[error("the worker thread {0} hangs in the host")]
    Hangs(String),
}

impl From<event_manager::Error> for WorkerError {
    fn from(e: event_manager::Error) -> Self {
        WorkerError::Loop(e.to_string())
    }
}

impl From<io::Error> for WorkerError {
    fn from(e: io::Error) -> Self {
        WorkerError::Thread(e)
    }
}

/// Bytes of stack of a worker. Far below the 2 MiB at which the kernel would back it by a huge page.
const STACK: usize = 256 << 10;

/// How long a worker may take to answer, and to end. Its callbacks take milliseconds: a worker that
/// has not come back by then is at the mercy of the host.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// A thread with an event loop; dropping it ends the thread and whatever still runs in it.
pub struct Worker {
    handle: WorkerHandle,
    ended: Arc<AtomicBool>,
    /// Closed by the thread's end.
    running: Receiver<()>,
    thread: Option<JoinHandle<()>>,
    /// It has its loop itself.
    #[cfg(any(test, feature = "testing"))]
    _here: Option<here::Owned>,
}

impl Worker {
    /// Starts a thread called `name` (Linux shows the first 15 bytes).
    ///
    /// # Errors
    /// [`WorkerError`]: the host has no thread or descriptor left.
    pub fn spawn(name: impl Into<String>) -> Result<Worker, WorkerError> {
        Self::spawn_watched(name, |_| {})
    }

    /// As [`Worker::spawn`]; should the loop fail or a task in it panic, the thread ends, every task
    /// with it, and `on_failure` is called there with a sentence about it.
    ///
    /// # Errors
    /// When the host has no thread or no epoll descriptor left.
    pub fn spawn_watched(
        name: impl Into<String>,
        on_failure: impl FnOnce(String) + Send + 'static,
    ) -> Result<Worker, WorkerError> {
        let name = name.into();
        let mut manager = EventManager::<Slot>::new_with_capacity(64)?;
        let handle = WorkerHandle {
            name: name.as_str().into(),
            remote: manager.remote_endpoint(),
            hangs: Arc::default(),
            patience: PATIENCE,
            #[cfg(any(test, feature = "testing"))]
            here: None,
        };
        let ended = Arc::new(AtomicBool::new(false));
        let until = ended.clone();
        let called = format!("the worker thread {name}");
        let run = move || -> Result<(), event_manager::Error> {
            while !until.load(Ordering::Acquire) {
                manager.run()?;
            }
            Ok(())
        };
        let (runs, running) = channel();
        let thread = std::thread::Builder::new().name(name).stack_size(STACK).spawn(move || {
            let _runs = runs;
            let ran = panics::caught(&called, run);
            match ran {
                Ok(Ok(())) => {}
                Ok(Err(e)) => on_failure(format!("{called}: its event loop failed: {e}")),
                Err(panic) => on_failure(panic),
            }
        })?;
        Ok(Worker {
            handle,
            ended,
            running,
            thread: Some(thread),
            #[cfg(any(test, feature = "testing"))]
            _here: None,
        })
    }

    /// The same, with another limit than [`PATIENCE`]; for handles that are made after this.
    #[must_use]
    pub fn with_patience(mut self, patience: Duration) -> Worker {
        self.handle.patience = patience;
        self
    }

    /// Ends the thread without waiting for that: the kernel does not let a thread go before the
    /// requests it has made of a host that hangs.
    pub fn abandon(mut self) {
        self.thread = None;
    }

    /// A handle through which tasks enter the loop.
    pub fn handle(&self) -> WorkerHandle {
        self.handle.clone()
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Release);
        // An error means that the loop has gone already.
        let _ = self.handle.remote.kick();
        let Some(thread) = self.thread.take() else { return };
        if let Err(Waited::Hangs) = self.handle.wait(&self.running, self.handle.deadline()) {
            // It has its memory and descriptors until it comes back, or the process ends.
            return;
        }
        if thread.join().is_err() {
            log::error!("worker: the thread panicked");
        }
    }
}

/// Puts tasks into a worker's loop. Cheap to clone.
#[derive(Clone)]
pub struct WorkerHandle {
    name: Arc<str>,
    remote: RemoteEndpoint<Slot>,
    /// It has not answered once, and has not been heard of since.
    hangs: Arc<AtomicBool>,
    patience: Duration,
    /// The loop of a worker without a thread.
    #[cfg(any(test, feature = "testing"))]
    here: Option<here::Loop>,
}

impl WorkerHandle {
    /// Moves `task` into the loop and waits until it has registered its descriptors. Never called
    /// from the worker itself.
    ///
    /// # Errors
    /// When the worker has ended, or hangs. Then the task is dropped, and touches nothing before.
    pub fn add<T: Run>(&self, task: T) -> Result<Task<T>, WorkerError> {
        self.add_with(|_| task)
    }

    /// The same, with a task that knows its lease.
    ///
    /// # Errors
    /// As [`WorkerHandle::add`].
    pub fn add_with<T: Run>(&self, make: impl FnOnce(Lease) -> T) -> Result<Task<T>, WorkerError> {
        let lease = Lease::default();
        let (task, own) = (Box::new(make(lease.clone())), lease.clone());
        // If it was given up meanwhile, the slot leaves again at once, without a callback.
        let answer = self.ask(move |ops| {
            let over = own.is_over();
            let id = ops.add_subscriber(Slot { task, lease: own });
            if over {
                let _ = ops.remove_subscriber(id);
            }
            id
        })?;
        match self.wait(&answer, self.deadline()) {
            Ok(id) => Ok(Task { id, worker: self.clone(), lease, kind: PhantomData }),
            Err(Waited::Ended) => Err(WorkerError::Ended(self.name.to_string())),
            Err(Waited::Hangs) => {
                lease.revoke();
                Err(WorkerError::Hangs(self.name.to_string()))
            }
        }
    }

    /// When whoever asks now gives up.
    pub fn deadline(&self) -> Instant {
        Instant::now() + self.patience
    }

    /// Has the worker do something, and does not wait for it.
    fn ask<R: Send + 'static>(
        &self,
        f: impl FnOnce(&mut dyn SubscriberOps<Subscriber = Slot>) -> R + Send + 'static,
    ) -> Result<Receiver<R>, WorkerError> {
        let (tell, answer) = channel();
        let hangs = self.hangs.clone();
        self.remote.fire(move |ops| {
            // Whoever asked may have given up.
            let _ = tell.send(f(ops));
            // In this order, see `wait`.
            hangs.store(false, Ordering::SeqCst);
        })?;
        Ok(answer)
    }

    /// Waits for an answer until `deadline`, but not at all for a worker that is known to hang.
    fn wait<R>(&self, answer: &Receiver<R>, deadline: Instant) -> Result<R, Waited> {
        #[cfg(any(test, feature = "testing"))]
        self.turn();
        if self.hangs.load(Ordering::SeqCst) {
            return answer.try_recv().map_err(Waited::from);
        }
        let left = deadline.saturating_duration_since(Instant::now());
        match answer.recv_timeout(left).map_err(Waited::from) {
            Err(Waited::Hangs) => {}
            answered => return answered,
        }
        let known = self.hangs.swap(true, Ordering::SeqCst);
        // If there is none yet, the worker clears what was just set after it has sent it.
        match answer.try_recv().map_err(Waited::from) {
            Err(Waited::Hangs) => {}
            answered => {
                self.hangs.store(false, Ordering::SeqCst);
                return answered;
            }
        }
        if !known {
            let (name, limit) = (&self.name, self.patience);
            log::error!(
                "the worker thread {name} hangs in the host, and has for {limit:?}: what it serves is \
                 given up until it comes back"
            );
        }
        Err(Waited::Hangs)
    }
}
