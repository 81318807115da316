//! What the balloon's worker does: pages given up, taken back and reported, and the statistics.

use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use event_manager::{EventOps, Events, MutEventSubscriber};
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::epoll::EventSet;

use super::ram::{PAGE, Plain, Refused};
use super::stats::{self, MemoryStatistics};
use super::{Balloon, DEFLATE, INFLATE, PAGES_MAX, WANTED};
use crate::virtio::interrupt::Interrupt;
use crate::virtio::queue::{Answer, Chain, Queue};
use crate::worker::Lease;

/// What runs in the worker.
pub(super) struct Serve {
    pub queues: Vec<Option<Queue>>,
    /// Which queue the statistics come by, and which the free pages.
    pub statistics: Option<usize>,
    pub reporting: Option<usize>,
    /// The guest may have filled free pages with something.
    pub poisoned: bool,
    pub balloon: Arc<Balloon>,
    pub plain: Plain,
    pub memory: GuestMemoryMmap,
    pub interrupt: Interrupt,
    pub lease: Lease,
}

impl Serve {
    /// Serves queue `n`, whose doorbell the driver rang, or not.
    fn queue(&mut self, n: usize, rung: bool) {
        let Serve { queues, balloon, plain, memory, interrupt, lease, .. } = self;
        let Some(Some(queue)) = queues.get_mut(n) else { return };
        queue.quiet();
        let giver = Giver { plain, interrupt };
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
        match why {
            Refused::NotRam => {
                self.interrupt.complain(&"the guest gave up memory that is not its RAM");
            }
            Refused::Host(e) => {
                let what = format_args!("memory cannot be given back to the host: {e}");
                self.interrupt.complain(&what);
            }
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
