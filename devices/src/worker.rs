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
        let mut manager = EventManager::<Slot>::new_with_capacity(64)?;
        let handle = WorkerHandle { remote: manager.remote_endpoint() };
        let ended = Arc::new(AtomicBool::new(false));
        let until = ended.clone();
        let thread =
            std::thread::Builder::new().name(name.into()).stack_size(STACK).spawn(move || {
                while !until.load(Ordering::Acquire) {
                    if let Err(e) = manager.run() {
                        log::error!("worker: the event loop failed: {e}");
                        return;
                    }
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
