//! The engine that makes system calls in a few threads: works on every Linux.
//!
//! Threads come when there is work for one more than there are, up to [`MAX_THREADS`]; they end
//! with the engine. One lock stands around the list of what is to do and the list of what is done;
//! it is held for a push or a pop and never during a system call.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::call;
use super::disk::Disk;
use super::engine::{Engine, Keep, Kept};
use super::job::Job;

/// As many requests of a queue as are at the host at once.
const MAX_THREADS: usize = 4;
/// Bytes of stack: a system call and little else.
const STACK: usize = 128 << 10;
/// Bytes of stack where an image has a format, and code to go through it.
const FORMATTED_STACK: usize = 1 << 20;

pub(super) struct Threads {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    in_flight: usize,
}

struct Shared {
    disk: Disk,
    state: Mutex<State>,
    work: Condvar,
    /// Rung when `done` is no longer empty.
    event: EventFd,
}

#[derive(Default)]
struct State {
    todo: VecDeque<Box<Job>>,
    done: Vec<Box<Job>>,
    idle: usize,
    held: bool,
    closed: bool,
    kept: Kept,
}

impl Threads {
    pub(super) fn new(disk: &Disk) -> io::Result<Threads> {
        let shared = Shared {
            disk: disk.clone(),
            state: Mutex::default(),
            work: Condvar::new(),
            event: EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?,
        };
        Ok(Threads { shared: Arc::new(shared), threads: Vec::new(), in_flight: 0 })
    }

    fn spawn(&mut self) -> io::Result<()> {
        let shared = self.shared.clone();
        let stack = if shared.disk.is_formatted() { FORMATTED_STACK } else { STACK };
        let thread = std::thread::Builder::new().name("husk-disk-io".into()).stack_size(stack);
        self.threads.push(thread.spawn(move || shared.work())?);
        Ok(())
    }
}

impl Engine for Threads {
    unsafe fn submit(&mut self, job: Box<Job>) {
        self.in_flight += 1;
        let mut state = self.shared.state();
        if state.held || job.is_finished() {
            state.done.push(job);
            self.shared.ring();
            return;
        }
        state.todo.push_back(job);
        let busy = state.idle < state.todo.len();
        drop(state);
        self.shared.work.notify_one();
        // Fewer threads do too, if there is one.
        if busy
            && self.threads.len() < MAX_THREADS
            && let Err(e) = self.spawn()
            && self.threads.is_empty()
        {
            let mut state = self.shared.state();
            if let Some(mut job) = state.todo.pop_back() {
                job.fail(e);
                state.done.push(job);
                self.shared.ring();
            }
        }
    }

    fn kick(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn reap(&mut self, done: &mut Vec<Box<Job>>) {
        // Fails when nothing is done.
        let _ = self.shared.event.read();
        let before = done.len();
        done.append(&mut self.shared.state().done);
        self.in_flight -= done.len() - before;
    }

    fn in_flight(&self) -> usize {
        self.in_flight
    }

    fn event(&self) -> BorrowedFd<'_> {
        // SAFETY: the event descriptor is open as long as `shared` lives, which self has.
        unsafe { BorrowedFd::borrow_raw(self.shared.event.as_raw_fd()) }
    }

    fn hold(&mut self, held: bool) {
        let mut state = self.shared.state();
        state.held = held;
        if held && !state.todo.is_empty() {
            let State { todo, done, .. } = &mut *state;
            done.extend(todo.drain(..));
            self.shared.ring();
        }
    }

    /// What waits has come back already, and a system call cannot be called back.
    fn cancel(&mut self) {}

    fn protect(&mut self, memory: Keep) {
        self.shared.state().kept.add(memory, self.in_flight);
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        let mut state = self.shared.state();
        state.closed = true;
        state.held = true;
        state.todo.clear();
        drop(state);
        self.shared.work.notify_all();
        // A thread that is in a system call keeps `shared`, with the memory and the file. Without
        // one, the disk is unlocked when this returns.
        if self.in_flight == 0 {
            for thread in self.threads.drain(..) {
                if thread.join().is_err() {
                    log::error!("a disk's thread panicked");
                }
            }
        }
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing panics while it holds the lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ring(&self) {
        // Fails only when it rings already.
        let _ = self.event.write(1);
    }

    /// What a thread does until the engine is dropped.
    fn work(&self) {
        let mut state = self.state();
        loop {
            if state.closed {
                return;
            }
            let Some(mut job) = state.todo.pop_front() else {
                state.idle += 1;
                state = self.work.wait(state).unwrap_or_else(PoisonError::into_inner);
                state.idle -= 1;
                continue;
            };
            loop {
                drop(state);
                let more = match job.step() {
                    Some(step) => {
                        let returned = call::make(&self.disk, step);
                        job.answer(returned);
                        !job.is_finished()
                    }
                    None => false,
                };
                state = self.state();
                if !more || state.held {
                    break;
                }
            }
            state.done.push(job);
            self.ring();
        }
    }
}
