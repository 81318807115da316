//! One queue of a disk while it is served: chains become jobs, jobs become answers.
//!
//! All of it runs in the lane's worker, which waits for two things: the doorbell and the engine's
//! event. [`Hand`] is what a lane has in hand and outlives a stop: the engine with the requests at
//! the host, and what is needed to answer them.

#![allow(clippy::vec_box, reason = "a job stays where it is while the kernel reads its list")]

use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::time::{Duration, Instant};

use event_manager::{EventOps, Events, MutEventSubscriber};
use virtio_bindings::bindings::virtio_blk::{VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK};
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::epoll::EventSet;

use super::CANCELLED;
use super::limit::Throttle;
use super::request::{self, HEADER_LEN, ID_LEN, Limits, RANGE_LEN, Request};
use crate::block::{Disk, Engine, Job, Keep, Operation};
use crate::virtio::gather;
use crate::virtio::interrupt::Interrupt;
use crate::virtio::queue::{Answer, Chain, Place, Queue};
use crate::worker::Lease;

/// What runs in the worker.
pub(super) struct Serve {
    pub(super) queue: Queue,
    pub(super) memory: GuestMemoryMmap,
    pub(super) interrupt: Interrupt,
    pub(super) server: Server,
    pub(super) hand: Hand,
    pub(super) lease: Lease,
    /// If there are limits.
    pub(super) throttle: Option<Throttle>,
}

impl MutEventSubscriber for Serve {
    fn init(&mut self, ops: &mut EventOps) {
        let engine = self.hand.engine.event().as_raw_fd();
        let added = ops
            .add(Events::new(self.queue.doorbell(), EventSet::IN))
            .and_then(|()| ops.add(Events::new_raw(engine, EventSet::IN)))
            .and_then(|()| match &self.throttle {
                Some(throttle) => ops.add(Events::new_raw(throttle.as_raw_fd(), EventSet::IN)),
                None => Ok(()),
            });
        if let Err(e) = added {
            self.interrupt.needs_reset(&e);
        }
    }

    fn process(&mut self, events: Events, _ops: &mut EventOps) {
        if events.fd() == self.queue.doorbell().as_raw_fd() {
            self.queue.quiet();
        }
        if let Some(throttle) = &mut self.throttle
            && events.fd() == throttle.as_raw_fd()
        {
            throttle.quiet();
        }
        self.answer();
        self.server.measured = false;
        let Serve { queue, memory, interrupt, server, hand, lease, throttle } = self;
        gather::before_round(queue.waiting(memory));
        if !lease.is_recalled() {
            hand.go_on(server);
        }
        queue.process(memory, interrupt, |chain| {
            // What is put back here is found when the device starts again.
            match lease.is_recalled() {
                true => Answer::Stop,
                false => server.take(chain, hand, throttle.as_mut()),
            }
        });
        // Twice: some jobs are done at once, and some of these need another step.
        if self.kick() {
            self.answer();
            self.kick();
        }
    }
}

impl Serve {
    /// Has the host begin what was submitted. False when it took so long that the lane was given up:
    /// the rings are somebody else's then.
    fn kick(&mut self) -> bool {
        // A file system may block even who only asks it to begin (it reads metadata, say).
        let engine = &mut self.hand.engine;
        match self.lease.away(|| engine.kick()) {
            None => false,
            Some(Ok(())) => true,
            Some(Err(e)) => {
                self.interrupt.needs_reset(&e);
                true
            }
        }
    }

    /// What a lane that was given up had in hand; its queue is left as it is.
    pub(super) fn give_up(mut self) -> Hand {
        self.hold();
        self.hand.engine.cancel();
        self.hand
    }

    /// Answers the chains whose jobs are done.
    fn answer(&mut self) {
        let Serve { queue, memory, interrupt, hand, .. } = self;
        let Hand { engine, done, held, pool, tickets, answers } = hand;
        engine.reap(done);
        if done.is_empty() {
            return;
        }
        // A list and not an iterator: all jobs must come home, even if the queue has broken.
        answers.clear();
        answers.extend(done.drain(..).filter_map(|job| {
            if !job.is_finished() {
                held.push(job);
                return None;
            }
            let ticket = tickets.get(job.tag()).copied();
            let status = match job.result() {
                Ok(()) => VIRTIO_BLK_S_OK as u8,
                Err(e) => failed(job.operation(), e, interrupt),
            };
            pool.push(job);
            let Ticket { head, filled, status: place } = ticket?;
            // SAFETY: the ticket was made from a chain of `memory`, which we still have.
            if !unsafe { place.put(status) } {
                return Some((head, 0));
            }
            let filled = if status == VIRTIO_BLK_S_OK as u8 { filled } else { 0 };
            // With nothing read the status is the only byte written.
            Some((head, filled.saturating_add(1)))
        }));
        queue.complete(memory, interrupt, answers.iter().copied());
    }

    /// No request goes on from here.
    pub(super) fn hold(&mut self) {
        self.hand.engine.hold(true);
    }

    /// Answers what the host is done with until `deadline`, and then has it give up what it can.
    /// What is neither stays pending.
    pub(super) fn drain(&mut self, deadline: Instant) {
        let mut deadline = deadline;
        let mut cancelled = false;
        loop {
            self.answer();
            if self.hand.engine.in_flight() == 0 {
                return;
            }
            if Instant::now() >= deadline {
                if cancelled {
                    return;
                }
                cancelled = true;
                self.hand.engine.cancel();
                deadline = Instant::now() + CANCELLED;
            }
            self.hand.wait(deadline);
        }
    }
}

/// What is needed to answer a chain that is in hand.
#[derive(Clone, Copy)]
struct Ticket {
    head: u16,
    /// Bytes read, if all goes well.
    filled: u32,
    /// Where the status goes.
    status: Place,
}

/// What a lane has in hand.
pub(super) struct Hand {
    engine: Box<dyn Engine>,
    /// By the tag of the job.
    tickets: Vec<Ticket>,
    /// Jobs that nobody uses.
    pool: Vec<Box<Job>>,
    /// Jobs that were held when the device stopped, and go on when it starts.
    held: Vec<Box<Job>>,
    /// Always empty between two calls.
    done: Vec<Box<Job>>,
    /// Heads and lengths; of no meaning between two calls.
    answers: Vec<(u16, u32)>,
}

impl Hand {
    pub(super) fn new(engine: Box<dyn Engine>) -> Hand {
        let (tickets, answers) = (Vec::new(), Vec::new());
        let (pool, held, done) = (Vec::new(), Vec::new(), Vec::new());
        Hand { engine, tickets, pool, held, done, answers }
    }

    /// Keeps `memory` as long as the host may touch it for requests from now on.
    pub(super) fn protect(&mut self, memory: Keep) {
        self.engine.hold(false);
        self.engine.protect(memory);
    }

    /// Goes on with what was held.
    fn go_on(&mut self, server: &mut Server) {
        for mut job in self.held.drain(..) {
            server.measure();
            job.renew(&server.disk);
            // SAFETY: the job's data is guest memory, which was given to `protect`.
            unsafe { self.engine.submit(job) };
        }
    }

    /// Whether anything is at the host.
    pub(super) fn is_busy(&mut self) -> bool {
        let Hand { engine, done, held, .. } = self;
        engine.reap(done);
        held.append(done);
        engine.in_flight() > 0
    }

    /// Drops all requests, whose driver is gone, and waits until `deadline` for those at the host;
    /// false when some are still there then.
    pub(super) fn forget(&mut self, deadline: Instant) -> bool {
        while self.is_busy() {
            if Instant::now() >= deadline {
                return false;
            }
            self.wait(deadline);
        }
        self.pool.append(&mut self.held);
        true
    }

    /// Waits for the engine's event.
    fn wait(&self, deadline: Instant) {
        let left = deadline.saturating_duration_since(Instant::now());
        let mut fd = libc::pollfd {
            fd: self.engine.event().as_fd().as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        };
        // Rounded up, so that it does not spin through the last millisecond; at most seconds.
        let milliseconds = left.saturating_add(Duration::from_micros(999)).as_millis() as i32;
        // SAFETY: one pollfd, which lives through the call. A signal only ends the wait early.
        unsafe { libc::poll(&mut fd, 1, milliseconds) };
    }

    fn job(&mut self) -> Box<Job> {
        self.pool.pop().unwrap_or_else(|| {
            let tag = self.tickets.len();
            self.tickets.push(Ticket { head: 0, filled: 0, status: Place::NONE });
            Box::new(Job::new(tag))
        })
    }
}

/// What a chain asks for, so far.
enum Taken {
    /// Its limits do not let it begin yet.
    Later,
    /// Answered already, so many bytes filled.
    Done(usize),
    /// Begun; so many bytes will be filled.
    Begun(Box<Job>, usize),
}

/// Understands chains.
pub(super) struct Server {
    id: [u8; ID_LEN],
    disk: Disk,
    limits: Limits,
    /// The driver does not flush, so every write is made stable (virtio 1.3 §5.2.6.2).
    write_through: bool,
    /// The disk was measured in this round.
    measured: bool,
}

impl Server {
    pub(super) fn new(id: [u8; ID_LEN], disk: Disk, limits: Limits, write_through: bool) -> Server {
        Server { id, disk, limits, write_through, measured: false }
    }

    /// Measures the disk, once a round.
    fn measure(&mut self) {
        if !std::mem::replace(&mut self.measured, true) {
            self.disk.measure();
        }
    }

    fn take(
        &mut self,
        chain: &mut Chain<'_>,
        hand: &mut Hand,
        throttle: Option<&mut Throttle>,
    ) -> Answer {
        let mut header = [0; HEADER_LEN];
        let (Ok(()), Some(data)) =
            (chain.copy_to(0, &mut header), chain.writable_len().checked_sub(1))
        else {
            return Answer::Broken("a block request without header or status");
        };
        let Some(place) = chain.place(data) else {
            return Answer::Broken("a block request without status");
        };
        let (status, filled) = match self.run(header, data, chain, hand, throttle) {
            Ok(Taken::Later) => return Answer::Stop,
            // A chain has at most u32::MAX bytes, so the casts keep the number.
            Ok(Taken::Begun(job, filled)) => {
                if let Some(ticket) = hand.tickets.get_mut(job.tag()) {
                    *ticket = Ticket { head: chain.head(), filled: filled as u32, status: place };
                }
                // SAFETY: the job's data is guest memory, which was given to `protect`.
                unsafe { hand.engine.submit(job) };
                return Answer::Deferred;
            }
            Ok(Taken::Done(filled)) => (VIRTIO_BLK_S_OK as u8, filled),
            Err(status) => (status, 0),
        };
        if chain.copy_from(data, &[status]).is_err() {
            return Answer::Broken("a block request without status");
        }
        Answer::Done(filled as u32 + 1)
    }

    /// What is to become of a chain, or the status to refuse it with.
    fn run(
        &mut self,
        header: [u8; HEADER_LEN],
        writable: usize,
        chain: &mut Chain<'_>,
        hand: &mut Hand,
        throttle: Option<&mut Throttle>,
    ) -> Result<Taken, u8> {
        let readable = chain.readable_len() - HEADER_LEN;
        let request = request::parse(header, readable, writable, self.limits)
            .map_err(request::Refusal::status)?;
        if let Some(throttle) = throttle {
            let bytes = match request {
                Request::Read { len, .. } | Request::Write { len, .. } => len as u64,
                _ => 0,
            };
            if !throttle.admits(bytes) {
                return Ok(Taken::Later);
            }
        }
        let misshapen = VIRTIO_BLK_S_IOERR as u8;
        let (operation, offset, len) = match request {
            Request::GetId => {
                chain.copy_from(0, &self.id).map_err(|_| misshapen)?;
                return Ok(Taken::Done(ID_LEN));
            }
            Request::Read { offset, len } => (Operation::Read, offset, len as u64),
            Request::Write { offset, len } => (Operation::Write, offset, len as u64),
            Request::Flush => (Operation::Flush, 0, 0),
            Request::Discard | Request::WriteZeroes => {
                let discard = request == Request::Discard;
                let mut range = [0; RANGE_LEN];
                chain.copy_to(HEADER_LEN, &mut range).map_err(|_| misshapen)?;
                let range = request::parse_range(range, discard, self.limits)
                    .map_err(request::Refusal::status)?;
                let zeroes = Operation::WriteZeroes { unmap: range.unmap };
                (if discard { Operation::Discard } else { zeroes }, range.offset, range.len)
            }
        };
        let mut job = hand.job();
        let listed = match request {
            Request::Read { len, .. } => chain.list_writable(0, len, job.data()),
            Request::Write { len, .. } => chain.list_readable(HEADER_LEN, len, job.data()),
            _ => Ok(()),
        };
        if listed.is_err() {
            hand.pool.push(job);
            return Err(misshapen);
        }
        if !matches!(operation, Operation::Read | Operation::Flush) {
            self.measure();
        }
        job.begin(operation, &self.disk, offset, len, self.write_through);
        let filled = if operation == Operation::Read { len as usize } else { 0 };
        Ok(Taken::Begun(job, filled))
    }
}

/// Tells of an error of the host's, and gives the status for it.
fn failed(operation: Operation, error: &io::Error, interrupt: &Interrupt) -> u8 {
    let what = match operation {
        Operation::Read => "read",
        Operation::Write => "write",
        Operation::Flush => "flush",
        Operation::Discard => "discard",
        Operation::WriteZeroes { .. } => "write zeroes",
    };
    interrupt.complain(&format_args!("{what}: {error}"));
    VIRTIO_BLK_S_IOERR as u8
}
