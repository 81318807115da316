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
pub mod stats;

use std::io;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use event_manager::{EventOps, Events, MutEventSubscriber};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::device::{Activation, StartError, VirtioDevice};
use super::interrupt::Interrupt;
use super::queue::{Answer, Chain, Queue, QueueState};
use super::seat::Seat;
use crate::complaints::Complaints;
use crate::worker::{Lease, WorkerHandle};
use ram::{PAGE, Plain, Refused};
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
            complaints: Complaints::default(),
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

/// What runs in the worker.
struct Serve {
    queues: Vec<Option<Queue>>,
    /// Which queue the statistics come by, and which the free pages.
    statistics: Option<usize>,
    reporting: Option<usize>,
    /// The guest may have filled free pages with something.
    poisoned: bool,
    balloon: Arc<Balloon>,
    plain: Plain,
    memory: GuestMemoryMmap,
    interrupt: Interrupt,
    lease: Lease,
    complaints: Complaints,
}

impl Serve {
    /// Serves queue `n`, whose doorbell the driver rang, or not.
    fn queue(&mut self, n: usize, rung: bool) {
        let Serve { queues, balloon, plain, memory, interrupt, lease, complaints, .. } = self;
        let Some(Some(queue)) = queues.get_mut(n) else { return };
        queue.quiet();
        let giver = Giver { plain, interrupt, complaints };
        if Some(n) == self.statistics {
            statistics(queue, balloon, memory, interrupt, rung);
            return;
        }
        let keep = self.poisoned && balloon.poison.load(Ordering::Acquire) != 0;
        let reporting = Some(n) == self.reporting;
        queue.process(memory, interrupt, |chain| {
            // What is put back here is found when the device starts again.
            if lease.is_recalled() {
                return Answer::Stop;
            }
            match n {
                INFLATE => giver.inflate(chain),
                // A page comes back by being touched.
                DEFLATE => Answer::Done(0),
                // Pages must keep what the guest filled them with (§5.5.6.8.1).
                _ if reporting && !keep => giver.report(chain),
                _ => Answer::Done(0),
            }
        });
    }
}

/// Gives pages back.
struct Giver<'a> {
    plain: &'a Plain,
    interrupt: &'a Interrupt,
    complaints: &'a Complaints,
}

impl Giver<'_> {
    /// Page numbers (le32) that the guest gives up.
    fn inflate(&self, chain: &Chain<'_>) -> Answer {
        let count = chain.readable_len() / 4;
        if count > PAGES_MAX {
            return Answer::Broken("a balloon request of more than 16384 pages");
        }
        let mut run: Option<(u64, u64)> = None;
        for n in 0..count {
            let mut raw = [0; 4];
            if chain.copy_to(4 * n, &mut raw).is_err() {
                break;
            }
            let page = u64::from(u32::from_le_bytes(raw)) * PAGE;
            // Pages come in order, or in reverse order, more often than not.
            run = match run {
                Some((start, len)) if page == start + len => Some((start, len + PAGE)),
                Some((start, len)) if page + PAGE == start => Some((page, len + PAGE)),
                Some((start, len)) => {
                    self.give(start, len);
                    Some((page, PAGE))
                }
                None => Some((page, PAGE)),
            };
        }
        if let Some((start, len)) = run {
            self.give(start, len);
        }
        Answer::Done(0)
    }

    /// A run of pages: all of it, or, where it is not all RAM, those pages of it that are.
    fn give(&self, start: u64, len: u64) {
        match self.plain.discard(start, len) {
            Ok(()) => {}
            Err(Refused::NotRam) if len > PAGE => {
                for page in (start..start + len).step_by(PAGE as usize) {
                    self.give(page, PAGE);
                }
            }
            Err(why) => self.complain(&why),
        }
    }

    /// Free pages, named by the writable part of the chain.
    fn report(&self, chain: &Chain<'_>) -> Answer {
        for piece in chain.writable_pieces() {
            if let Err(why) = self.plain.discard_mapped(piece) {
                self.complain(&why);
            }
        }
        Answer::Done(0)
    }

    fn complain(&self, why: &Refused) {
        self.interrupt.counters().add_error();
        if let Some(silent) = self.complaints.admit() {
            let (name, what) = (
                self.interrupt.name(),
                match why {
                    Refused::NotRam => "the guest gave up memory that is not its RAM".to_owned(),
                    Refused::Host(e) => format!("memory cannot be given back to the host: {e}"),
                },
            );
            log::warn!("{name}: {what}{silent}");
        }
    }
}

/// The driver always has one buffer here. It stays in the queue, read, until it is asked for news;
/// then it is given back, and comes again with them (§5.5.6.3).
fn statistics(
    queue: &mut Queue,
    balloon: &Balloon,
    memory: &GuestMemoryMmap,
    line: &Interrupt,
    mut news: bool,
) {
    let mut present = false;
    queue.process(memory, line, |chain| {
        present = true;
        if balloon.asked.swap(false, Ordering::AcqRel) {
            news = true;
            return Answer::Done(0);
        }
        if !news {
            return Answer::Stop;
        }
        let mut statistics = MemoryStatistics::default();
        for n in 0..(chain.readable_len() / stats::LEN).min(stats::MAX) {
            let mut raw = [0; stats::LEN];
            if chain.copy_to(n * stats::LEN, &mut raw).is_ok() {
                statistics.take(raw);
            }
        }
        let mut told = balloon.told();
        told.statistics = statistics;
        told.times += 1;
        balloon.answered.notify_all();
        Answer::Stop
    });
    if !present {
        // The driver has the buffer: it comes with news anyway.
        balloon.asked.store(false, Ordering::Release);
    }
}

impl MutEventSubscriber for Serve {
    fn init(&mut self, ops: &mut EventOps) {
        let bells = self.queues.iter().flatten().map(Queue::doorbell);
        for fd in bells.chain([&self.balloon.wake]) {
            if let Err(e) = ops.add(Events::new(fd, EventSet::IN)) {
                self.interrupt.needs_reset(&e);
            }
        }
    }

    fn process(&mut self, events: Events, _ops: &mut EventOps) {
        let fd = events.fd();
        let rung = self.queues.iter().position(|queue| {
            queue.as_ref().is_some_and(|queue| queue.doorbell().as_raw_fd() == fd)
        });
        match (rung, self.statistics) {
            (Some(n), _) => self.queue(n, true),
            (None, statistics) => {
                // Fails when nobody rang.
                let _ = self.balloon.wake.read();
                let Balloon { wanted, actual, .. } = &*self.balloon;
                if wanted.load(Ordering::Acquire) != actual.load(Ordering::Acquire) {
                    self.interrupt.config_changed(WANTED, || self.balloon.wanted_pages());
                }
                if let Some(n) = statistics {
                    self.queue(n, false);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
