//! A receive and a transmit queue over one backend, as a task of a worker.
//!
//! Nothing here blocks: the backend is watched edge-triggered, and a direction that cannot go on
//! waits for its doorbell (receive buffers), for the backend (room to send), or for the clock (a
//! limit). A round is bounded and rings its own doorbell, so other tasks of the worker get their turn.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::time::{Duration, Instant};

use event_manager::{EventOps, Events, MutEventSubscriber};
use virtio_bindings::bindings::virtio_net::VIRTIO_NET_S_LINK_UP;
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::eventfd::EventFd;
use vmm_sys_util::timerfd::TimerFd;

use super::backend::{Backend, ETHERNET_HEADER};
use super::limit::{Direction, Limits, Turn};
use super::rx::{End, Rx};
use super::{HEADER_LEN, MAX_FRAME};
use crate::virtio::gather;
use crate::virtio::interrupt::Interrupt;
use crate::virtio::queue::{Answer, Chain, IovecBuffer, Iovecs, Queue, QueueState};

/// Chains of one transmit round.
const TX_ROUND: u16 = 64;

const UP: u16 = VIRTIO_NET_S_LINK_UP as u16;

/// The device status field of the config space (virtio 1.3 §5.1.4), shared with the worker.
pub(super) type Status = Arc<AtomicU16>;

/// What runs in the worker.
pub(super) struct Pair {
    backend: Box<dyn Backend>,
    rx: Option<Rx>,
    tx: Option<Tx>,
    limits: Limits,
    /// Ends a wait for a limit; there when there is one.
    timer: Option<TimerFd>,
    /// What it is set to.
    due: Option<Instant>,
    /// The backend has failed for good.
    gone: bool,
    /// What the driver was told of the link.
    up: bool,
    /// Whether the driver uses this pair; the host gives frames only to those it uses.
    used: Arc<AtomicBool>,
    status: Status,
    memory: GuestMemoryMmap,
    interrupt: Interrupt,
}

/// What a pair is made of.
pub(super) struct Parts {
    pub backend: Box<dyn Backend>,
    pub rx: Option<Rx>,
    pub tx: Option<Queue>,
    pub limits: Limits,
    pub used: Arc<AtomicBool>,
    pub status: Status,
    pub memory: GuestMemoryMmap,
    pub interrupt: Interrupt,
}

impl Pair {
    /// Begins with whatever has come while nobody served the queues.
    pub(super) fn new(parts: Parts) -> io::Result<Pair> {
        let Parts { mut backend, rx, tx, limits, used, status, memory, interrupt } = parts;
        // A frame that was begun before is not known to the queue's new chains.
        backend.skip();
        let timer = if limits.rx.is_limited() || limits.tx.is_limited() {
            Some(TimerFd::new().map_err(|e| io::Error::from_raw_os_error(e.errno()))?)
        } else {
            None
        };
        let tx = tx.map(|mut queue| {
            queue.set_budget(TX_ROUND);
            Tx { queue, blocked: false }
        });
        let (due, gone, up) = (None, false, status.load(Ordering::Acquire) & UP != 0);
        let pair =
            Pair { backend, rx, tx, limits, timer, due, gone, up, used, status, memory, interrupt };
        // Fails only where it rings already.
        pair.doorbells().for_each(|bell| drop(bell.write(1)));
        Ok(pair)
    }

    /// Gives everything back, with the queues' states (receive, transmit).
    pub(super) fn dissolve(mut self) -> (Box<dyn Backend>, Limits, [Option<QueueState>; 2]) {
        if let Some(tx) = &mut self.tx {
            tx.settle(&mut *self.backend, &self.memory, &self.interrupt);
        }
        let states = [
            self.rx.as_ref().map(|rx| rx.queue.state()),
            self.tx.as_ref().map(|tx| tx.queue.state()),
        ];
        (self.backend, self.limits, states)
    }

    /// The same of one whose queues are not its own any more: they are left as they are.
    pub(super) fn give_up(mut self) -> (Box<dyn Backend>, Limits) {
        if self.backend.is_sending() {
            // Of the frame there is nothing more.
            self.backend.keep(Iovecs::over(&mut [], &mut IovecBuffer::default()));
        }
        (self.backend, self.limits)
    }

    fn doorbells(&self) -> impl Iterator<Item = &EventFd> {
        let rx = self.rx.as_ref().map(|rx| rx.queue.doorbell());
        let tx = self.tx.as_ref().map(|tx| tx.queue.doorbell());
        rx.into_iter().chain(tx)
    }

    fn register(&self, ops: &mut EventOps) -> Result<(), event_manager::Error> {
        for bell in self.doorbells() {
            ops.add(Events::new(bell, EventSet::IN))?;
        }
        if let Some(timer) = &self.timer {
            // Edge-triggered, it need not be read, which could block when it was set again since.
            ops.add(Events::new(timer, EventSet::IN | EventSet::EDGE_TRIGGERED))?;
        }
        // One event for each change, so that neither a frame nobody can take nor a backend that is
        // gone keeps the loop awake.
        let edges = EventSet::IN | EventSet::OUT | EventSet::EDGE_TRIGGERED;
        ops.add(Events::new_raw(self.backend.descriptor(), edges))
    }

    fn receive(&mut self) {
        let Some(rx) = &mut self.rx else { return };
        if !self.used.load(Ordering::Acquire) {
            return;
        }
        let limit = &mut self.limits.rx;
        match rx.run(&mut *self.backend, limit, &self.memory, &self.interrupt) {
            End::Idle => {}
            End::Limited => {
                let wait = limit.wait();
                self.wake_in(wait);
            }
            // When the driver has stopped using the pair it is only not ours any more.
            End::Gone => self.gone |= self.used.load(Ordering::Acquire),
        }
    }

    fn transmit(&mut self) {
        let Some(tx) = &mut self.tx else { return };
        let limit = &mut self.limits.tx;
        if tx.run(&mut *self.backend, limit, &self.memory, &self.interrupt) == End::Limited {
            let wait = limit.wait();
            self.wake_in(wait);
        }
    }

    /// Tells the driver when somebody has come to the other end, or left it.
    fn announce(&mut self) {
        let up = self.backend.is_up() && !self.gone;
        if std::mem::replace(&mut self.up, up) == up {
            return;
        }
        if !tell(&self.status, &self.interrupt, up) {
            // Another pair of the card has said so.
            return;
        }
        let (name, backend) = (self.interrupt.name(), self.backend.name());
        if self.gone {
            log::warn!("{name}: {backend} is gone; the guest's link is down");
        } else {
            log::info!("{name}: {backend} is {}", if up { "up" } else { "down" });
        }
    }

    /// Sets the timer, unless it rings earlier anyway.
    fn wake_in(&mut self, wait: Duration) {
        let Some(timer) = &mut self.timer else { return };
        // At most a day: whoever is woken too early waits again. At least something: 0 is never.
        let wait = wait.clamp(Duration::from_micros(1), Duration::from_secs(86_400));
        let then = Instant::now() + wait;
        if self.due.is_none_or(|due| then < due) {
            self.due = Some(then);
            // Fails for a wrong duration only.
            let _ = timer.reset(wait, None);
        }
    }
}

impl MutEventSubscriber for Pair {
    fn init(&mut self, ops: &mut EventOps) {
        if let Err(e) = self.register(ops) {
            self.interrupt.needs_reset(&e);
        }
    }

    fn process(&mut self, events: Events, _ops: &mut EventOps) {
        let fd = events.fd();
        let is = |bell: &EventFd| bell.as_raw_fd() == fd;
        let from_host = fd == self.backend.descriptor();
        let late = self.timer.as_ref().is_some_and(|timer| timer.as_raw_fd() == fd);
        if late {
            self.due = None;
        }
        let rung = self.rx.as_mut().filter(|rx| is(rx.queue.doorbell())).is_some_and(|rx| {
            rx.queue.quiet();
            rx.refilled();
            true
        });
        if rung || from_host || late {
            self.receive();
        }
        let rung = self.tx.as_mut().is_some_and(|tx| {
            let rung = is(tx.queue.doorbell());
            if rung {
                tx.queue.quiet();
                gather::before_round(tx.queue.waiting(&self.memory));
            }
            rung || (from_host || late) && tx.blocked
        });
        if rung {
            self.transmit();
        }
        self.announce();
    }
}

/// Tells the driver that the card's link is up, or down; false when it knows.
pub(super) fn tell(status: &Status, interrupt: &Interrupt, up: bool) -> bool {
    let before = match up {
        true => status.fetch_or(UP, Ordering::AcqRel),
        false => status.fetch_and(!UP, Ordering::AcqRel),
    };
    let is_news = (before & UP != 0) != up;
    if is_news {
        let now = || status.load(Ordering::Acquire).to_le_bytes();
        interrupt.config_changed(super::CONFIG_STATUS, now);
    }
    is_news
}

/// From the guest to the host (virtio 1.3 §5.1.6.2).
struct Tx {
    queue: Queue,
    /// There was no room, or the limit was reached: the backend's next event, or the timer, goes on.
    blocked: bool,
}

impl Tx {
    fn run(
        &mut self,
        backend: &mut dyn Backend,
        limit: &mut Direction,
        memory: &GuestMemoryMmap,
        interrupt: &Interrupt,
    ) -> End {
        self.blocked = false;
        let mut end = End::Idle;
        let Tx { queue, blocked } = self;
        queue.process(memory, interrupt, |chain| {
            let len = chain.readable_len().saturating_sub(HEADER_LEN);
            if limit.take_frame(len) == Turn::Wait {
                (*blocked, end) = (true, End::Limited);
                return Answer::Stop;
            }
            let sent = send(backend, chain);
            limit.count_surplus(backend.surplus());
            match sent {
                Ok(()) => Answer::Done(0),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    limit.give_back(len);
                    *blocked = true;
                    Answer::Stop
                }
                // What the host will not have (a bad header, too long, no link, no TAP) is lost, as
                // on a wire.
                Err(_) => {
                    interrupt.counters().add_error();
                    Answer::Done(0)
                }
            }
        });
        end
    }

    /// Finishes a frame of which a part has gone, so that the chain can be given up.
    fn settle(
        &mut self,
        backend: &mut dyn Backend,
        memory: &GuestMemoryMmap,
        interrupt: &Interrupt,
    ) {
        self.queue.process(memory, interrupt, |chain| {
            if !backend.is_sending() {
                return Answer::Stop;
            }
            let skip = if backend.has_headers() { 0 } else { HEADER_LEN };
            let len = chain.readable_len().saturating_sub(skip);
            if let Ok(frame) = chain.readable_iovecs(skip, len) {
                backend.keep(frame);
            }
            Answer::Done(0)
        });
        if backend.is_sending() {
            // The driver has spoilt the ring meanwhile: of the frame there is nothing more.
            backend.keep(Iovecs::over(&mut [], &mut IovecBuffer::default()));
        }
    }
}

fn send(backend: &mut dyn Backend, chain: &mut Chain<'_>) -> io::Result<()> {
    let len = chain.readable_len();
    if !(HEADER_LEN + ETHERNET_HEADER..=MAX_FRAME).contains(&len) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let skip = if backend.has_headers() { 0 } else { HEADER_LEN };
    let frame = chain.readable_iovecs(skip, len - skip).map_err(|_| io::ErrorKind::InvalidInput)?;
    backend.send(frame)
}
