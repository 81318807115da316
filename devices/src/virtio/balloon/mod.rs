//! The traditional memory balloon (virtio 1.3 §5.5), with statistics and free page reporting.
//!
//! ```text
//! queue 0  inflate: page numbers the guest gives up
//! queue 1  deflate: page numbers it takes back
//! then     statistics, and free page reporting: of those that were agreed on, in this order
//! ```
//!
//! The specification numbers the last two 2 and 4; Linux and QEMU leave no gaps. Both are served: a
//! queue that the driver did not set up is passed over. Giving memory back can take long, so the
//! device has a worker of its own; it believes no page number, see [`ram`].

pub mod ram;
mod serve;
pub mod stats;

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::device::{Activation, StartError, VirtioDevice};
use super::interrupt::Interrupt;
use super::queue::{Queue, QueueState};
use super::seat::Seat;
use crate::worker::WorkerHandle;
use ram::{PAGE, Plain};
use serve::Serve;
use stats::MemoryStatistics;

/// Device type 5, virtio 1.3 §5.
const DEVICE_TYPE: u32 = 5;
const QUEUE_SIZES: [u16; 5] = [128; 5];
const INFLATE: usize = 0;
const DEFLATE: usize = 1;
/// Feature bits (virtio 1.3 §5.5.3).
const STATS_VQ: u64 = 1 << 1;
const DEFLATE_ON_OOM: u64 = 1 << 2;
const PAGE_POISON: u64 = 1 << 4;
const PAGE_REPORTING: u64 = 1 << 5;
/// Where in the config space what is (virtio 1.3 §5.5.4); the driver writes the last two.
const WANTED: u64 = 0;
const ACTUAL: u64 = 4;
const POISON: u64 = 12;
/// Page numbers of one chain. Drivers send 256 or 1,024.
const PAGES_MAX: usize = 1 << 14;

/// The balloon as its owner sees it.
pub struct Balloon {
    /// Pages the guest is asked to give up.
    wanted: AtomicU32,
    /// Pages the guest says it has given up.
    actual: AtomicU32,
    /// What the guest fills free pages with.
    poison: AtomicU32,
    /// Statistics are asked for.
    asked: AtomicBool,
    statistics: Mutex<Told>,
    answered: Condvar,
    /// Rung for the device when something is wanted of it.
    wake: EventFd,
    /// Where the guest finds what is wanted, once there is a device.
    line: OnceLock<Interrupt>,
}

#[derive(Default)]
struct Told {
    statistics: MemoryStatistics,
    /// How often the guest has told.
    times: u64,
}

impl Balloon {
    /// A balloon that asks the guest for `bytes` from the start on.
    ///
    /// # Errors
    /// When the host has no event descriptor left.
    pub fn new(bytes: u64) -> io::Result<Arc<Balloon>> {
        let balloon = Balloon {
            wanted: AtomicU32::new(0),
            actual: AtomicU32::new(0),
            poison: AtomicU32::new(0),
            asked: AtomicBool::new(false),
            statistics: Mutex::default(),
            answered: Condvar::new(),
            wake: EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?,
            line: OnceLock::new(),
        };
        balloon.set(bytes);
        Ok(Arc::new(balloon))
    }

    /// Asks the guest for `bytes` in all, rounded down to pages. Whether and when it gives them is up
    /// to it.
    pub fn set(&self, bytes: u64) {
        let pages = u32::try_from(bytes / PAGE).unwrap_or(u32::MAX);
        self.wanted.store(pages, Ordering::Release);
        if let Some(line) = self.line.get() {
            line.set_config(WANTED, || self.wanted_pages());
        }
        self.ring();
    }

    /// `num_pages` of the config space (virtio 1.3 §5.5.4).
    fn wanted_pages(&self) -> [u8; 4] {
        self.wanted.load(Ordering::Acquire).to_le_bytes()
    }

    /// Bytes the guest is asked for.
    pub fn wanted(&self) -> u64 {
        u64::from(self.wanted.load(Ordering::Acquire)) * PAGE
    }

    /// Bytes the guest says it has given up.
    pub fn actual(&self) -> u64 {
        u64::from(self.actual.load(Ordering::Acquire)) * PAGE
    }

    /// Asks the guest for its statistics and waits for them, at most for `patience`; `None` when it
    /// does not answer.
    pub fn statistics(&self, patience: Duration) -> Option<MemoryStatistics> {
        let deadline = Instant::now().checked_add(patience)?;
        let mut told = self.told();
        let before = told.times;
        self.asked.store(true, Ordering::Release);
        self.ring();
        while told.times == before {
            let left = deadline.checked_duration_since(Instant::now())?;
            let waited = self.answered.wait_timeout(told, left);
            told = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        Some(told.statistics)
    }

    fn told(&self) -> MutexGuard<'_, Told> {
        // Plain numbers; a panic elsewhere cannot leave them inconsistent.
        self.statistics.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ring(&self) {
        // Fails only when it rings already.
        let _ = self.wake.write(1);
    }
}

/// The device; it runs on a worker between start and stop.
pub struct BalloonDevice {
    balloon: Arc<Balloon>,
    plain: Plain,
    worker: WorkerHandle,
    seat: Seat<Serve>,
}

/// What a snapshot keeps of the balloon. The guest's memory is kept by others.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct State {
    wanted: u32,
    actual: u32,
    poison: u32,
}

impl BalloonDevice {
    /// The device behind which `balloon` is; `plain` says what of memory it may give back. `worker`
    /// should have nothing else to do.
    pub fn new(balloon: Arc<Balloon>, plain: Plain, worker: WorkerHandle) -> BalloonDevice {
        BalloonDevice { balloon, plain, worker, seat: Seat::default() }
    }
}

impl VirtioDevice for BalloonDevice {
    fn device_type(&self) -> u32 {
        DEVICE_TYPE
    }

    fn features(&self) -> u64 {
        STATS_VQ | DEFLATE_ON_OOM | PAGE_POISON | PAGE_REPORTING
    }

    fn connect(&mut self, interrupt: &Interrupt) {
        // A balloon has one device.
        let _ = self.balloon.line.set(interrupt.clone());
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn config(&self) -> Vec<u8> {
        let now = |word: &AtomicU32| word.load(Ordering::Acquire).to_le_bytes();
        let Balloon { wanted, actual, poison, .. } = &*self.balloon;
        [now(wanted), now(actual), [0; 4], now(poison)].concat()
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        // Drivers write whole fields; anything else means nothing.
        let Ok(value) = data.try_into().map(u32::from_le_bytes) else { return };
        match offset {
            ACTUAL => self.balloon.actual.store(value, Ordering::Release),
            POISON => self.balloon.poison.store(value, Ordering::Release),
            _ => {}
        }
    }

    fn start(&mut self, activation: Activation) -> Result<(), StartError> {
        let Activation { features, queues, memory, interrupt } = activation;
        for queue in queues.iter().flatten() {
            queue.ring();
        }
        // See the top.
        let mut others =
            (DEFLATE + 1..queues.len()).filter(|n| matches!(queues.get(*n), Some(Some(_))));
        let mut next = |feature: u64| {
            let agreed = features & feature != 0;
            agreed.then(|| others.next()).flatten()
        };
        let (statistics, reporting) = (next(STATS_VQ), next(PAGE_REPORTING));
        let (balloon, plain) = (self.balloon.clone(), self.plain.clone());
        self.seat.start(&self.worker, |lease| Serve {
            queues,
            statistics,
            reporting,
            poisoned: features & PAGE_POISON != 0,
            balloon,
            plain,
            memory,
            interrupt,
            lease,
        })
    }

    fn recall(&mut self) {
        self.seat.recall();
    }

    fn stop(&mut self) -> Vec<QueueState> {
        let task = self.seat.stop();
        task.map(|task| task.queues.iter().flatten().map(Queue::state).collect())
            .unwrap_or_default()
    }

    fn is_busy(&mut self) -> bool {
        self.seat.may_touch()
    }

    fn save(&self) -> Value {
        let now = |word: &AtomicU32| word.load(Ordering::Acquire);
        let Balloon { wanted, actual, poison, .. } = &*self.balloon;
        let state = State { wanted: now(wanted), actual: now(actual), poison: now(poison) };
        // A struct of plain data always has a JSON form.
        serde_json::to_value(state).unwrap_or_default()
    }

    fn restore(&mut self, state: &Value) -> Result<(), String> {
        let State { wanted, actual, poison } =
            State::deserialize(state).map_err(|e| e.to_string())?;
        self.balloon.wanted.store(wanted, Ordering::Release);
        self.balloon.actual.store(actual, Ordering::Release);
        self.balloon.poison.store(poison, Ordering::Release);
        Ok(())
    }

    fn reset(&mut self) {
        self.balloon.actual.store(0, Ordering::Release);
        self.balloon.poison.store(0, Ordering::Release);
    }
}

#[cfg(test)]
mod tests;
