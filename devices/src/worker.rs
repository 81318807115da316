//! Worker threads: event loops that run the device side of queues and consoles.
//!
//! Each VM has one worker, and a device that blocks (a disk) is given its own. A task moves into
//! the loop with [`WorkerHandle::add`] and comes back out, with its state, from [`Task::take`], so
//! a device needs no lock around what its queues use. vCPU threads only ever ring doorbells; the
//! two calls here are for start and stop.

use std::any::Any;
use std::io;
use std::marker::PhantomData;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use event_manager::{
    EventManager, EventOps, Events, MutEventSubscriber, RemoteEndpoint, SubscriberId,
};

use crate::panics;

/// Called, with a sentence, when a worker has ended of itself: the devices in it are gone.
pub type OnBroken = Arc<dyn Fn(String) + Send + Sync>;

/// What a worker can run: it registers its descriptors in `init` and is called back in `process`.
pub trait Run: MutEventSubscriber + Any + Send {}
impl<T: MutEventSubscriber + Any + Send> Run for T {}

struct Slot(Box<dyn Run>);

impl MutEventSubscriber for Slot {
    fn process(&mut self, events: Events, ops: &mut EventOps) {
        self.0.process(events, ops);
    }
    fn init(&mut self, ops: &mut EventOps) {
        self.0.init(ops);
    }
}

/// The loop refused, or has ended.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    /// The event loop could not be made or has gone.
    #[error("event loop: {0}")]
    Loop(#[from] event_manager::Error),
    /// The thread could not be started.
    #[error("worker thread: {0}")]
    Thread(#[from] io::Error),
}

/// Bytes of stack of a worker. Far below the 2 MiB at which the kernel would back it by a huge page.
const STACK: usize = 256 << 10;

/// A thread with an event loop; dropping it ends the thread and whatever still runs in it.
pub struct Worker {
    handle: WorkerHandle,
    ended: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Worker {
    /// Starts a thread called `name` (Linux shows the first 15 bytes).
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
        let handle = WorkerHandle { remote: manager.remote_endpoint() };
        let ended = Arc::new(AtomicBool::new(false));
        let until = ended.clone();
        let called = format!("the worker thread {name}");
        let run = move || -> Result<(), event_manager::Error> {
            while !until.load(Ordering::Acquire) {
                manager.run()?;
            }
            Ok(())
        };
        let thread = std::thread::Builder::new().name(name).stack_size(STACK).spawn(move || {
            let ran = panics::caught(&called, run);
            match ran {
                Ok(Ok(())) => {}
                Ok(Err(e)) => on_failure(format!("{called}: its event loop failed: {e}")),
                Err(panic) => on_failure(panic),
            }
        })?;
        Ok(Worker { handle, ended, thread: Some(thread) })
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
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            log::error!("worker: the thread panicked");
        }
    }
}

/// Puts tasks into a worker's loop. Cheap to clone.
#[derive(Clone)]
pub struct WorkerHandle {
    remote: RemoteEndpoint<Slot>,
}

impl WorkerHandle {
    /// Moves `task` into the loop and waits until it has registered its descriptors. Never called
    /// from the worker itself.
    pub fn add<T: Run>(&self, task: T) -> Result<Task<T>, WorkerError> {
        let id = self.remote.call_blocking(move |ops| {
            Ok::<_, event_manager::Error>(ops.add_subscriber(Slot(Box::new(task))))
        })?;
        Ok(Task { id, remote: self.remote.clone(), kind: PhantomData })
    }
}

/// A task inside a worker's loop. Dropping this leaves the task there until the worker ends.
pub struct Task<T> {
    id: SubscriberId,
    remote: RemoteEndpoint<Slot>,
    kind: PhantomData<T>,
}

impl<T: Run> Task<T> {
    /// Takes the task out of the loop, after any callback of it that is running. `None` when the
    /// worker has ended and the task with it. Never called from the worker itself.
    pub fn take(self) -> Option<T> {
        let id = self.id;
        let slot = self.remote.call_blocking(move |ops| ops.remove_subscriber(id)).ok()?;
        let task: Box<dyn Any> = slot.0;
        task.downcast::<T>().ok().map(|task| *task)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsRawFd;
    use std::sync::mpsc;
    use vmm_sys_util::epoll::EventSet;
    use vmm_sys_util::eventfd::EventFd;

    struct Counter {
        doorbell: EventFd,
        rung: u64,
        told: mpsc::Sender<u64>,
    }

    impl MutEventSubscriber for Counter {
        fn init(&mut self, ops: &mut EventOps) {
            ops.add(Events::new(&self.doorbell, EventSet::IN)).unwrap();
        }
        fn process(&mut self, events: Events, _: &mut EventOps) {
            assert_eq!(events.fd(), self.doorbell.as_raw_fd());
            self.rung += self.doorbell.read().unwrap();
            self.told.send(self.rung).unwrap();
        }
    }

    #[test]
    fn a_task_runs_in_the_loop_and_comes_back_with_its_state() {
        let worker = Worker::spawn("test").unwrap();
        let doorbell = EventFd::new(libc::EFD_NONBLOCK).unwrap();
        let (told, heard) = mpsc::channel();
        let task = Counter { doorbell: doorbell.try_clone().unwrap(), rung: 0, told };
        let task = worker.handle().add(task).unwrap();
        doorbell.write(1).unwrap();
        assert_eq!(heard.recv().unwrap(), 1);
        assert_eq!(task.take().unwrap().rung, 1);
    }

    /// Panics when its doorbell rings.
    struct Panicking(EventFd);

    impl MutEventSubscriber for Panicking {
        fn init(&mut self, ops: &mut EventOps) {
            ops.add(Events::new(&self.0, EventSet::IN)).unwrap();
        }
        fn process(&mut self, _: Events, _: &mut EventOps) {
            panic!("rung");
        }
    }

    #[test]
    fn a_worker_whose_task_panics_tells_so_and_one_that_ends_says_nothing() {
        let (tell, told) = mpsc::channel();
        let worker = Worker::spawn_watched("watched", move |why| tell.send(why).unwrap()).unwrap();
        let doorbell = EventFd::new(libc::EFD_NONBLOCK).unwrap();
        let task = worker.handle().add(Panicking(doorbell.try_clone().unwrap())).unwrap();
        doorbell.write(1).unwrap();
        let why = told.recv().unwrap();
        assert!(why.contains("worker thread watched panicked") && why.ends_with("rung"), "{why}");
        assert!(task.take().is_none());

        let (tell, told) = mpsc::channel();
        drop(Worker::spawn_watched("quiet", move |why| tell.send(why).unwrap()).unwrap());
        assert!(told.recv().is_err());
    }

    #[test]
    fn a_task_of_a_worker_that_ended_is_gone_and_says_so() {
        let worker = Worker::spawn("test").unwrap();
        let doorbell = EventFd::new(libc::EFD_NONBLOCK).unwrap();
        let (told, _heard) = mpsc::channel();
        let task = worker.handle().add(Counter { doorbell, rung: 0, told }).unwrap();
        drop(worker);
        assert!(task.take().is_none());
    }
}
