//! What runs on the worker: chains become FUSE requests, and those that wait for a lock wait here.
//!
//! A request that waits is asked again when the guest gives a lock up, and as long as there are any,
//! every now and then, for the host's processes do not tell. Those that would wait for each other for good
//! are told. When the device stops they are put back, and served again when it starts.

use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use event_manager::{EventOps, Events, MutEventSubscriber};
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::timerfd::TimerFd;

use crate::fs::{Message, Served, Session, Waiting, is_brief};
use crate::virtio::device::Activation;
use crate::virtio::gather;
use crate::virtio::interrupt::Interrupt;
use crate::virtio::queue::{Answer, Chain, IovecBuffer, Iovecs, Queue, QueueState};
use crate::worker::Lease;

/// How often a lock that a process of the host's has is asked for again.
const AGAIN: Duration = Duration::from_millis(50);
/// Requests of a round, after which those that must not wait have their turn.
const BUDGET: u16 = 16;
/// After so long the guest is told of what is done before another request is served.
const UNTOLD: Duration = Duration::from_millis(1);

/// A chain, and what lets us touch it.
struct Request<'r, 'c> {
    chain: &'r mut Chain<'c>,
    lease: &'r Lease,
}

impl Message for Request<'_, '_> {
    fn readable_len(&self) -> usize {
        self.chain.readable_len()
    }

    fn writable_len(&self) -> usize {
        self.chain.writable_len()
    }

    fn copy_to(&self, offset: usize, data: &mut [u8]) -> bool {
        self.chain.copy_to(offset, data).is_ok()
    }

    fn copy_from(&mut self, offset: usize, data: &[u8]) -> bool {
        self.chain.copy_from(offset, data).is_ok()
    }

    fn readable(&mut self, offset: usize, len: usize) -> Option<Iovecs<'_>> {
        self.chain.readable_iovecs(offset, len).ok()
    }

    fn writable(&mut self, offset: usize, len: usize) -> Option<Iovecs<'_>> {
        self.chain.writable_iovecs(offset, len).ok()
    }

    fn away(&mut self, call: &mut dyn FnMut()) -> bool {
        self.lease.away(call).is_some()
    }
}

/// A request that waits for a lock.
struct Waiter {
    head: u16,
    waiting: Waiting,
    /// Where its reply goes: guest memory, which [`Serve`] keeps.
    place: IovecBuffer,
}

/// The device while it is served.
pub(super) struct Serve {
    /// Urgent requests, and all others.
    queues: [Option<Queue>; 2],
    memory: GuestMemoryMmap,
    interrupt: Interrupt,
    session: Session,
    waiters: Vec<Waiter>,
    /// [`Session::taken`] when none of them waited for another that waits for it.
    searched: u64,
    timer: TimerFd,
    /// The timer will ring.
    armed: bool,
    lease: Lease,
}

impl Serve {
    pub(super) fn new(
        activation: Activation,
        session: Session,
        timer: TimerFd,
        lease: Lease,
    ) -> Serve {
        let Activation { queues, memory, interrupt, .. } = activation;
        let mut queues = queues.into_iter().map(|queue| {
            queue.map(|mut queue| {
                queue.set_budget(BUDGET);
                queue.ring();
                queue
            })
        });
        let queues = [queues.next().flatten(), queues.next().flatten()];
        Serve {
            queues,
            memory,
            interrupt,
            searched: session.taken(),
            session,
            waiters: Vec::new(),
            timer,
            armed: false,
            lease,
        }
    }

    /// What is left of it: the requests that wait are pending in their queues.
    pub(super) fn end(self) -> (Session, Vec<QueueState>) {
        (self.session, self.queues.iter().flatten().map(Queue::state).collect())
    }

    /// Serves the requests of one queue.
    fn round(&mut self, which: usize) {
        let Serve { queues, memory, interrupt, session, waiters, lease, .. } = self;
        let Some(queue) = queues.get_mut(which).and_then(Option::as_mut) else { return };
        queue.quiet();
        // What must not wait does not, and tells nothing of who waits for answers.
        if which != 0 {
            gather::before_round(queue.waiting(memory));
        }
        let most = usize::from(queue.size() / 8).max(1);
        let (mut interrupted, mut given_up) = (Vec::new(), false);
        // When the first of the requests was done of which the guest has not been told.
        let mut untold: Option<Instant> = None;
        queue.process(memory, interrupt, |chain| {
            // What is put back here is found when the device starts again.
            if lease.is_recalled() {
                return Answer::Stop;
            }
            let mut request = Request { chain, lease };
            if untold.is_some_and(|since| !is_brief(&request) || since.elapsed() >= UNTOLD) {
                untold = None;
                return Answer::TellFirst;
            }
            match session.serve(&mut request) {
                Served::Done(len) => {
                    untold.get_or_insert_with(Instant::now);
                    Answer::Done(len)
                }
                Served::GivenUp => {
                    given_up = true;
                    Answer::Gone
                }
                Served::Interrupt(unique) => {
                    interrupted.push(unique);
                    Answer::Done(0)
                }
                Served::Waits(waiting) => {
                    let mut place = IovecBuffer::default();
                    let others = waiters.iter().map(|waiter| &waiter.waiting);
                    let for_good = session.would_deadlock(&waiting, others);
                    let reply = if for_good { waiting.deadlocked() } else { waiting.refused() };
                    let room = chain.list_writable(0, reply.len(), &mut place).is_ok();
                    // The request that gives the lock up must find room in the queue.
                    if for_good || which == 0 || !room || waiters.len() >= most {
                        let answered = room && chain.copy_from(0, &reply).is_ok();
                        return Answer::Done(if answered { reply.len() as u32 } else { 0 });
                    }
                    waiters.push(Waiter { head: chain.head(), waiting, place });
                    Answer::Deferred
                }
            }
        });
        if !interrupted.is_empty() && !given_up {
            self.answer(|_, waiting| {
                let its = interrupted.contains(&waiting.unique());
                Some(its.then(|| waiting.interrupted()))
            });
        }
    }

    /// Answers those that wait for whom `reply` has a reply; nobody any more, once it gives nothing. False
    /// then: guest memory is somebody else's.
    fn answer(
        &mut self,
        mut reply: impl FnMut(&mut Session, &Waiting) -> Option<Option<[u8; 16]>>,
    ) -> bool {
        let Serve { queues: [_, queue], memory, interrupt, session, waiters, .. } = self;
        let Some(queue) = queue else { return true };
        let mut given_up = false;
        waiters.retain(|waiter| {
            let reply = if given_up { None } else { reply(session, &waiter.waiting) };
            given_up |= reply.is_none();
            let Some(Some(reply)) = reply else { return true };
            // SAFETY: the place was cut from a chain in `memory`, which is there as long as we are.
            let answered = unsafe { waiter.place.copy_from(&reply) }.is_ok();
            let len = if answered { reply.len() as u32 } else { 0 };
            queue.complete(memory, interrupt, [(waiter.head, len)]);
            false
        });
        !given_up
    }

    /// If owners that wait block each other in a circle, answers the newest of them with `EDEADLK`: its
    /// work is the least. Other circles are found at the next call.
    fn break_a_circle(&mut self) {
        let taken = self.session.taken();
        if self.searched == taken {
            return;
        }
        let Serve { session, waiters, .. } = self;
        match session.find_deadlock(waiters.iter().map(|waiter| &waiter.waiting)) {
            None => self.searched = taken,
            Some(found) => {
                self.answer(|_, waiting| {
                    let it = waiting.unique() == found;
                    Some(it.then(|| waiting.deadlocked()))
                });
            }
        }
    }
}

impl MutEventSubscriber for Serve {
    fn init(&mut self, ops: &mut EventOps) {
        let doorbells = self.queues.iter().flatten().map(|queue| queue.doorbell().as_raw_fd());
        for fd in doorbells.chain([self.timer.as_raw_fd()]) {
            if let Err(e) = ops.add(Events::new_raw(fd, EventSet::IN)) {
                self.interrupt.needs_reset(&e);
            }
        }
    }

    fn process(&mut self, events: Events, _ops: &mut EventOps) {
        let rang = |queue: &Option<Queue>| {
            queue.as_ref().is_some_and(|queue| queue.doorbell().as_raw_fd() == events.fd())
        };
        let which = self.queues.iter().position(rang);
        let given_up = self.session.given_up();
        match which {
            Some(which) => self.round(which),
            None => {
                // Disarming a timer that is ours does not fail.
                let _ = self.timer.clear();
                self.armed = false;
            }
        }
        if self.waiters.is_empty() || self.lease.is_recalled() {
            return;
        }
        if which.is_none() || given_up != self.session.given_up() {
            let lease = self.lease.clone();
            if !self.answer(|session, waiting| lease.away(|| session.try_again(waiting))) {
                return;
            }
            self.break_a_circle();
        }
        // One that will ring is left alone: others' requests would put it off again and again.
        if self.waiters.is_empty() || self.armed {
            return;
        }
        // A timer that cannot be set would leave them waiting for the guest's own locks only.
        self.armed = self.timer.reset(AGAIN, None).is_ok();
        if !self.armed {
            log::warn!("{}: a lock may be waited for in vain: no timer", self.interrupt.name());
        }
    }
}
