//! The file system device (virtio 1.3 §5.11): a host's directory, which the guest mounts by its tag.
//!
//! ```text
//! queue 0  requests that must not wait behind others (FORGET)     queue 1  all other requests
//! ```
//!
//! A chain is a FUSE request and the room for its reply; what it means is [`crate::fs`]'s business.
//! The device has a worker of its own, because the host's files may be slow. What the guest has looked
//! up and opened lives from its mount to its reset: it outlives a pause, and is given up on the worker.

mod serve;
#[cfg(test)]
mod tests;

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use event_manager::{EventOps, Events, MutEventSubscriber};
use serde_json::{Value, json};
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};
use vmm_sys_util::timerfd::TimerFd;

use super::device::{Activation, StartError, VirtioDevice, stateless};
use super::queue::QueueState;
use super::seat::Seat;
use crate::fs::{Session, Share, own_umask};
use crate::worker::{Task, WorkerError, WorkerHandle};
use serve::Serve;

/// Device type 26, virtio 1.3 §5.
const DEVICE_TYPE: u32 = 26;
/// Descriptors of the queue of urgent requests, and of the other one: a request of 256 pages fits.
const QUEUE_SIZES: [u16; 2] = [128, 512];
/// The longest tag, in bytes (virtio 1.3 §5.11.4).
pub const TAG_MAX: usize = 36;
/// Bytes of `virtio_fs_config`: the tag and the number of request queues.
const CONFIG_LEN: usize = TAG_MAX + 4;

/// The device; it runs on a worker between start and stop.
pub struct Fs {
    config: [u8; CONFIG_LEN],
    share: Arc<Share>,
    worker: WorkerHandle,
    seat: Seat<Serve>,
    /// What the guest has of the share, while the device is stopped.
    session: Option<Session>,
    grave: Arc<Grave>,
    _sweeper: Task<Sweeper>,
}

impl Fs {
    /// The device for `share`, which the guest finds as `tag` (its first [`TAG_MAX`] bytes). `worker`
    /// should have nothing else to do: file systems block it, and it gets a umask of its own.
    ///
    /// # Errors
    /// When the worker has ended, or the host has no event descriptor left.
    pub fn new(tag: &str, share: Share, worker: WorkerHandle) -> Result<Fs, WorkerError> {
        let mut config = [0; CONFIG_LEN];
        let (place, queues) = config.split_at_mut(TAG_MAX);
        place.iter_mut().zip(tag.bytes()).for_each(|(to, from)| *to = from);
        queues.copy_from_slice(&1u32.to_le_bytes());
        let grave = Arc::new(Grave::new()?);
        let sweeper = worker.add(Sweeper(grave.clone()))?;
        Ok(Fs {
            config,
            share: Arc::new(share),
            worker,
            seat: Seat::default(),
            session: None,
            grave,
            _sweeper: sweeper,
        })
    }
}

impl VirtioDevice for Fs {
    fn device_type(&self) -> u32 {
        DEVICE_TYPE
    }

    fn features(&self) -> u64 {
        0
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn config(&self) -> Vec<u8> {
        self.config.to_vec()
    }

    fn start(&mut self, activation: Activation) -> Result<(), StartError> {
        // One that hung in the host and has come back has the files of a driver that was reset.
        if let Some(late) = self.seat.reclaim() {
            self.grave.bury(late.end().0);
        }
        if self.seat.is_late() {
            return Err(StartError::Hangs);
        }
        let session = match self.session.take() {
            Some(session) => session,
            None => Session::of(self.share.clone())
                .map_err(|source| StartError::Host { what: "shared directory", source })?,
        };
        let timer = TimerFd::new().map_err(io::Error::from);
        let timer = timer.map_err(|source| StartError::Host { what: "timer", source })?;
        self.seat.start(&self.worker, |lease| Serve::new(activation, session, timer, lease))
    }

    fn recall(&mut self) {
        self.seat.recall();
    }

    fn stop(&mut self) -> Vec<QueueState> {
        let Some(serve) = self.seat.stop() else { return Vec::new() };
        let (session, states) = serve.end();
        self.session = Some(session);
        states
    }

    fn save(&self) -> Value {
        match &self.session {
            Some(session) if session.is_mounted() => json!({ "mounted": true }),
            _ => Value::Null,
        }
    }

    fn restore(&mut self, state: &Value) -> Result<(), String> {
        stateless(state).map_err(|_| {
            "the guest had its shared directory mounted, and what it had open there cannot be opened \
             again; have it unmount the directory before"
                .to_owned()
        })
    }

    fn is_busy(&mut self) -> bool {
        self.seat.may_touch()
    }

    fn reset(&mut self) {
        // Not here: closing many files, or one on a slow host, would hold up a vCPU.
        if let Some(session) = self.session.take() {
            self.grave.bury(session);
        }
    }
}

/// Sessions that nobody needs any more.
struct Grave {
    sessions: Mutex<Vec<Session>>,
    bell: EventFd,
}

impl Grave {
    fn new() -> io::Result<Grave> {
        let bell = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?;
        Ok(Grave { sessions: Mutex::default(), bell })
    }

    fn bury(&self, session: Session) {
        // A list: a panic elsewhere leaves it as it is.
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner).push(session);
        // Fails only when it rings already.
        let _ = self.bell.write(1);
    }
}

/// Closes on the worker what they had open.
struct Sweeper(Arc<Grave>);

impl MutEventSubscriber for Sweeper {
    fn init(&mut self, ops: &mut EventOps) {
        // The first thing that runs on the worker, before any file can be made.
        if let Err(e) = own_umask() {
            log::warn!("shared directory: new files get husk's umask as well: unshare: {e}");
        }
        if let Err(e) = ops.add(Events::new(&self.0.bell, EventSet::IN)) {
            log::error!("shared directory: what guests had open is not closed: {e}");
        }
    }

    fn process(&mut self, _events: Events, _ops: &mut EventOps) {
        // Fails when nobody rang.
        let _ = self.0.bell.read();
        let dead =
            std::mem::take(&mut *self.0.sessions.lock().unwrap_or_else(PoisonError::into_inner));
        drop(dead);
    }
}
