//! What is answered to those who ask for a VM by its name, a request a connection, each in a thread of its own.
//!
//! None of them is trusted to ask, to read, or to leave: there are only so many at once, and each has only so much
//! time for its line.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::{Duration, Instant};

use super::end::Why;
use super::inspection::{About, Inspection};
use super::remote::Info;
use super::terminal::{self, Terminal};
use super::waiting::Waiting;
use super::{LINE_MAX, PATIENCE, STACK, TOO_MANY, fds, request};
use crate::guest::error::ExecError;
use crate::runtime::user;
use crate::vm::RunningVm;

/// Requests that are read and answered at once; others are told so.
pub(super) const CLIENTS_MAX: usize = 16;
/// Requests for the agent at once, which may take minutes: they keep none of the others out.
const CONNECTING_MAX: usize = 16;
/// Lines of the console in a log: all that are kept.
const LOG_LINES: usize = usize::MAX;
/// Lines of the console that are told when the agent has gone.
const CONSOLE_LINES: usize = 40;

/// How the VM's end is asked for.
pub(super) struct Stop(pub Box<dyn Fn() + Send + Sync>);

impl std::fmt::Debug for Stop {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Stop").finish_non_exhaustive()
    }
}

/// Places of which there are only so many.
#[derive(Debug, Default, Clone)]
struct Places(Arc<AtomicUsize>);

/// One of them, free again when dropped.
struct Place(Arc<AtomicUsize>);

impl Places {
    fn take(&self, max: usize) -> Option<Place> {
        let more = |taken| (taken < max).then_some(taken + 1);
        self.0.fetch_update(Ordering::AcqRel, Ordering::Acquire, more).ok()?;
        Some(Place(self.0.clone()))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Answers that are on their way.
#[derive(Debug, Default)]
pub(super) struct Answers {
    count: Mutex<usize>,
    fewer: Condvar,
}

/// One of them, until it is dropped.
struct Answer<'a>(&'a Answers);

impl Answers {
    fn count(&self) -> MutexGuard<'_, usize> {
        // A number is whole whenever the lock is free.
        self.count.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn begin(&self) -> Answer<'_> {
        *self.count() += 1;
        Answer(self)
    }

    /// Waits for them, at most for `patience`: whoever goes takes with it what has not been said.
    pub fn settle(&self, patience: Duration) {
        let waited = self.fewer.wait_timeout_while(self.count(), patience, |count| *count > 0);
        drop(waited);
    }
}

impl Drop for Answer<'_> {
    fn drop(&mut self) {
        *self.0.count() -= 1;
        self.0.fewer.notify_all();
    }
}

/// What the VM's husk makes known to those who ask, as it comes about.
#[derive(Debug, Default)]
pub(super) struct Given {
    waiting: Mutex<Waiting>,
    pub terminal: OnceLock<Terminal>,
    pub stop: OnceLock<Stop>,
    pub answers: Answers,
}

impl Given {
    /// Those who wait for the VM's end.
    pub fn waiting(&self) -> MutexGuard<'_, Waiting> {
        // No code panics while it holds the lock.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What is answered from, and who is answered.
pub(super) struct Clients {
    info: Info,
    about: About,
    vm: Weak<RunningVm>,
    answering: Places,
    connecting: Places,
    given: Arc<Given>,
    /// Who sits in front of it.
    attached: Places,
}

impl Clients {
    /// Of this VM, which has been asked for nothing yet.
    pub fn new(info: Info, about: About, vm: Weak<RunningVm>, given: Arc<Given>) -> Clients {
        let (answering, connecting, attached) = Default::default();
        Clients { info, about, vm, answering, connecting, given, attached }
    }
}

/// Answers a client in a thread of its own, if there is room.
pub(super) fn admit(clients: &Arc<Clients>, client: UnixStream) {
    let Some(place) = clients.answering.take(CLIENTS_MAX) else {
        // It fits into any socket's buffer, so that nobody is waited for.
        let _ = client.set_nonblocking(true).and_then(|()| (&client).write_all(TOO_MANY));
        return;
    };
    let clients = clients.clone();
    let thread = std::thread::Builder::new().name("husk-name".to_owned()).stack_size(STACK);
    let spawned = thread.spawn(move || {
        if let Err(e) = answer(&client, &clients, place) {
            log::debug!("a client of the VM's name: {e}");
        }
    });
    if let Err(e) = spawned {
        log::debug!("a client of the VM's name: no thread for it: {e}");
    }
}

/// A client's bytes until a moment, however few come at a time.
struct Until<'a>(&'a UnixStream, Instant);

impl Read for Until<'_> {
    fn read(&mut self, room: &mut [u8]) -> io::Result<usize> {
        let Until(mut client, end) = *self;
        let left = end.checked_duration_since(Instant::now()).filter(|left| !left.is_zero());
        client.set_read_timeout(Some(left.ok_or(io::ErrorKind::TimedOut)?))?;
        client.read(room)
    }
}

/// The client's line, for which it has `patience`.
fn line(client: &UnixStream, patience: Duration) -> io::Result<String> {
    let mut line = String::new();
    let client = Until(client, Instant::now() + patience);
    BufReader::new(client.take(LINE_MAX)).read_line(&mut line)?;
    Ok(line)
}

/// Reads a request and answers it.
fn answer(client: &UnixStream, clients: &Clients, place: Place) -> io::Result<()> {
    let Clients { info, about, vm, .. } = clients;
    client.set_write_timeout(Some(PATIENCE))?;
    // The directory keeps others out; this is for one whose permissions somebody has changed since.
    let peer = fds::peer(client)?.uid;
    let mut writing = client;
    if peer != user() && peer != 0 {
        return writing.write_all(b"ERROR you are somebody else\n");
    }
    let line = line(client, PATIENCE)?;
    let _answer = clients.given.answers.begin();
    // Also of one that ends just now.
    if line.trim_end() == request::WAIT {
        return clients.given.waiting().join(client);
    }
    let Some(vm) = vm.upgrade() else { return writing.write_all(b"ERROR it has ended\n") };
    match line.trim_end() {
        request::INFO => {
            let info = serde_json::to_string(info).map_err(std::io::Error::other)?;
            writing.write_all(format!("OK {info}\n").as_bytes())
        }
        request::INSPECT => match serde_json::to_vec(&Inspection::of(info, about, &vm)) {
            Ok(inspection) => {
                writing.write_all(b"OK\n")?;
                writing.write_all(&inspection)
            }
            // A path that is no UTF-8.
            Err(e) => writing.write_all(format!("ERROR it cannot be told: {e}\n").as_bytes()),
        },
        request::ATTACH => {
            let Some(terminal) = clients.given.terminal.get() else {
                return writing.write_all(b"NONE\n");
            };
            let Some(_attached) = clients.attached.take(1) else {
                return writing.write_all(b"ERROR somebody else sits in front of it\n");
            };
            drop((place, vm));
            writing.write_all(b"OK\n")?;
            terminal.sit(client)
        }
        resize if resize.starts_with(request::RESIZE) => {
            let size = resize.strip_prefix(request::RESIZE).and_then(terminal::size);
            match (clients.given.terminal.get(), size) {
                (Some(terminal), Some(size)) => terminal.resize(size),
                _ => return writing.write_all(b"ERROR it has no window of that size\n"),
            }
            writing.write_all(b"OK\n")
        }
        request::CONNECT => {
            // Kept until the answer, instead of the other.
            let Some(_connecting) = clients.connecting.take(CONNECTING_MAX) else {
                return writing.write_all(TOO_MANY);
            };
            let dialler = vm.dialler();
            // It may take minutes, and holds neither a place nor the VM for that.
            drop((place, vm));
            match dialler.and_then(|dialler| dialler.dial(None)) {
                Ok(agent) => fds::send(client, b"OK\n", agent.as_raw_fd()),
                Err(ExecError::Ended(outcome)) => {
                    let why = serde_json::to_string(&Why::of(Some(&outcome)));
                    let why = why.map_err(io::Error::other)?;
                    writing.write_all(format!("GONE {why}\n").as_bytes())?;
                    writing.write_all(outcome.console().as_bytes())
                }
                Err(e) => {
                    let words = e.to_string().replace('\n', " ");
                    writing.write_all(format!("ERROR {words}\n").as_bytes())
                }
            }
        }
        request::SHUT_DOWN => {
            if let Some(Stop(stop)) = clients.given.stop.get() {
                stop();
            } else if vm.has_agent() {
                vm.ask_to_shut_down();
            } else {
                // If it has ended meanwhile that is as well.
                let _ = vm.press_power_button();
            }
            writing.write_all(b"OK\n")
        }
        request::KILL => {
            let _ = vm.kill();
            writing.write_all(b"OK\n")
        }
        request::LOG => {
            writing.write_all(b"OK\n")?;
            writing.write_all(vm.console_tail(LOG_LINES).as_bytes())
        }
        request::WHY => {
            let why = serde_json::to_string(&Why::of(vm.ending().as_ref()));
            let why = why.map_err(io::Error::other)?;
            writing.write_all(format!("OK {why}\n").as_bytes())?;
            writing.write_all(vm.console_tail(CONSOLE_LINES).as_bytes())
        }
        _ => writing.write_all(b"ERROR nobody asks that\n"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_sends_a_line_byte_by_byte_has_no_more_time_for_it() {
        let (near, mut far) = UnixStream::pair().unwrap();
        let late = std::thread::scope(|scope| {
            // Until this end is closed, which is when there is an answer.
            scope.spawn(move || {
                while far.write_all(b"x").is_ok() {
                    std::thread::sleep(Duration::from_millis(5));
                }
            });
            let late = line(&near, Duration::from_millis(100));
            drop(near);
            late
        });
        // Not that there were too many of them.
        let late = late.unwrap_err().kind();
        assert!(matches!(late, io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock), "{late}");
        let (near, mut far) = UnixStream::pair().unwrap();
        far.write_all(b"info\n").unwrap();
        assert_eq!(line(&near, Duration::from_secs(60)).unwrap(), "info\n");
    }

    #[test]
    fn answers_are_waited_for_but_not_for_ever() {
        let answers = Answers::default();
        answers.settle(Duration::from_secs(60));
        let answer = answers.begin();
        answers.settle(Duration::from_millis(1));
        std::thread::scope(|scope| {
            let settled = scope.spawn(|| answers.settle(Duration::from_secs(60)));
            std::thread::sleep(Duration::from_millis(20));
            assert!(!settled.is_finished());
            drop(answer);
        });
    }

    #[test]
    fn a_place_is_free_again_when_it_is_left() {
        let places = Places::default();
        let (one, two) = (places.take(2).unwrap(), places.take(2).unwrap());
        assert!(places.take(2).is_none());
        drop(one);
        let three = places.take(2).unwrap();
        assert!(places.take(2).is_none());
        drop((two, three));
        assert_eq!(places.0.load(Ordering::Acquire), 0);
    }
}
