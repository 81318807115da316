//! The engine that makes system calls in the thread that submits: for files whose pages need no waiting.
//!
//! io_uring passes what it cannot try without waiting to a thread of the kernel's, and for a file in RAM
//! (tmpfs) that is everything, until Linux 6.6: two changes of threads for a copy that takes less.
//! Here a job is done when it is submitted, up to [`BATCH`] bytes before the first are answered, so that the
//! guest goes on with them while the next are copied. A file that does make it wait holds up its own queue,
//! and so does a host that hangs.

use std::collections::VecDeque;
use std::io;
use std::num::NonZeroUsize;
use std::os::fd::{AsRawFd, BorrowedFd};

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::call;
use super::disk::Disk;
use super::engine::{Engine, Keep, Kept};
use super::job::{Job, PIECE};

/// Bytes to move before what is done is answered: the guest goes on with it on another processor.
const BATCH: usize = PIECE;
/// The same where there is only one processor, which answers would only take from what is to be moved.
const BATCH_ALONE: usize = 16 * PIECE;

pub(super) struct AtOnce {
    disk: Disk,
    /// What is more than a batch.
    todo: VecDeque<Box<Job>>,
    done: Vec<Box<Job>>,
    /// Bytes moved, about, since what was done was taken.
    moved: usize,
    /// How many are moved before that.
    batch: usize,
    held: bool,
    /// Rung when there is more to do than a batch.
    event: EventFd,
    rung: bool,
    kept: Kept,
}

impl AtOnce {
    /// # Errors
    /// When the host has no event descriptor left.
    pub(super) fn new(disk: &Disk) -> io::Result<AtOnce> {
        Ok(AtOnce {
            disk: disk.clone(),
            todo: VecDeque::new(),
            done: Vec::new(),
            moved: 0,
            batch: match std::thread::available_parallelism() {
                Ok(NonZeroUsize::MIN) => BATCH_ALONE,
                _ => BATCH,
            },
            held: false,
            event: EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?,
            rung: false,
            kept: Kept::default(),
        })
    }

    /// Asks to be called again.
    fn ring(&mut self) {
        if !std::mem::replace(&mut self.rung, true) {
            // Cannot fail: it is as it was made.
            let _ = self.event.write(1);
        }
    }

    /// Makes steps until the batch is full.
    fn run(&mut self) {
        while self.moved < self.batch
            && let Some(mut job) = self.todo.pop_front()
        {
            if let Some(step) = job.step() {
                let returned = call::make(&self.disk, step);
                job.answer(returned);
                // A step that moves nothing has its cost, too.
                self.moved += usize::try_from(returned).unwrap_or(0).max(1);
            }
            match job.is_finished() {
                true => self.done.push(job),
                false => self.todo.push_front(job),
            }
        }
    }
}

impl Engine for AtOnce {
    unsafe fn submit(&mut self, job: Box<Job>) {
        if self.held || job.is_finished() {
            self.done.push(job);
        } else {
            self.todo.push_back(job);
            self.run();
        }
    }

    fn kick(&mut self) -> io::Result<()> {
        // What is done is asked for next; see the contract.
        if !self.todo.is_empty() {
            self.ring();
        }
        Ok(())
    }

    fn reap(&mut self, done: &mut Vec<Box<Job>>) {
        if std::mem::take(&mut self.rung) {
            // Cannot fail: it rings.
            let _ = self.event.read();
        }
        // What is done is answered before more is: the guest goes on with it meanwhile.
        if self.done.is_empty() {
            self.moved = 0;
            self.run();
        }
        done.append(&mut self.done);
        self.moved = 0;
        if !self.todo.is_empty() {
            self.ring();
        }
    }

    fn in_flight(&self) -> usize {
        self.todo.len() + self.done.len()
    }

    fn event(&self) -> BorrowedFd<'_> {
        // SAFETY: the event descriptor is open as long as self lives.
        unsafe { BorrowedFd::borrow_raw(self.event.as_raw_fd()) }
    }

    fn hold(&mut self, held: bool) {
        self.held = held;
        if held {
            self.done.extend(self.todo.drain(..));
        }
    }

    /// Nothing is at the host between two calls.
    fn cancel(&mut self) {}

    fn protect(&mut self, memory: Keep) {
        self.kept.add(memory, self.in_flight());
    }
}
