//! A worker without a thread, for tests and fuzzers: its loop turns on the thread of whoever asks it
//! for something, or says [`Worker::turn`].
//!
//! What such a worker serves does the same every time, and costs no change of thread.

use std::sync::atomic::AtomicBool;
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex, PoisonError};

use event_manager::EventManager;

use super::task::Slot;
use super::{PATIENCE, Worker, WorkerError, WorkerHandle};

/// Rounds of the loop in which something happened, after which it will never come to rest.
const MOST_ROUNDS: usize = 100_000;

/// The loop, until its worker is dropped.
type Shared = Arc<Mutex<Option<EventManager<Slot>>>>;

/// A handle's share of the loop.
#[derive(Clone)]
pub(super) struct Loop(Shared);

/// The worker's: with it the loop ends, and whatever still runs in it.
pub(super) struct Owned(Shared);

impl Drop for Owned {
    fn drop(&mut self) {
        drop(self.0.lock().unwrap_or_else(PoisonError::into_inner).take());
    }
}

impl Worker {
    /// A worker called `name` that has no thread.
    ///
    /// # Errors
    /// The host has no descriptor left.
    pub fn here(name: &str) -> Result<Worker, WorkerError> {
        let manager = EventManager::<Slot>::new_with_capacity(64)?;
        let remote = manager.remote_endpoint();
        let shared = Arc::new(Mutex::new(Some(manager)));
        let here = Some(Loop(shared.clone()));
        let handle = WorkerHandle {
            name: name.into(),
            remote,
            hangs: Arc::default(),
            patience: PATIENCE,
            here,
        };
        let (_, running) = channel();
        let ended = Arc::new(AtomicBool::new(false));
        Ok(Worker { handle, ended, running, thread: None, _here: Some(Owned(shared)) })
    }

    /// Lets the loop turn until nothing happens any more; one with a thread does so by itself.
    ///
    /// # Panics
    /// When it never comes to rest, or fails.
    pub fn turn(&self) {
        self.handle.turn();
    }
}

impl WorkerHandle {
    #[allow(clippy::panic, reason = "a tool of tests")]
    pub(super) fn turn(&self) {
        let Some(Loop(shared)) = &self.here else { return };
        // Whoever is called from the loop does not turn it.
        let Ok(mut manager) = shared.try_lock() else { return };
        let Some(manager) = manager.as_mut() else { return };
        for _ in 0..MOST_ROUNDS {
            match manager.run_with_timeout(0) {
                Ok(0) => return,
                Ok(_) => {}
                Err(e) => panic!("the loop of {}: {e}", self.name),
            }
        }
        panic!("{} never comes to rest", self.name);
    }
}
