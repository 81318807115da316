//! The VM's side of its name.

use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use super::directory::{Directory, clean, user};
use super::error::{NameError, host};
use super::inspection::{About, Inspection};
use super::log::{HALF, Log};
use super::record;
use super::remote::{Info, Why};
use super::terminal::{self, Terminal};
use super::waiting::Waiting;
use super::{LINE_MAX, PATIENCE, TOO_MANY, fds, request};
use crate::vm::RunningVm;

/// Bytes of stack of the threads here.
const STACK: usize = 128 << 10;
/// Requests that are read and answered at once; others are told so.
pub(super) const CLIENTS_MAX: usize = 16;
/// Requests for the agent at once, which may take minutes: they keep none of the others out.
const CONNECTING_MAX: usize = 16;
/// How long nobody is accepted when that has failed.
const PAUSE: Duration = Duration::from_millis(100);
/// How often it is told that it fails.
const TOLD_EVERY: Duration = Duration::from_secs(60);
/// Lines of the console in a log: all that are kept.
const LOG_LINES: usize = usize::MAX;
/// Lines of the console that are told when the agent has gone.
const CONSOLE_LINES: usize = 40;

/// A name that is taken. Dropping it gives it up.
#[derive(Debug)]
pub struct Named {
    listener: Arc<UnixListener>,
    path: PathBuf,
    /// Device and inode of the socket.
    identity: (u64, u64),
    given_up: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
    info: Info,
    waiting: Arc<Mutex<Waiting>>,
    terminal: Arc<OnceLock<Terminal>>,
    stop: Arc<OnceLock<Stop>>,
    /// Where what stays of the VM is kept.
    kept: Option<Directory>,
    /// Something stays of it.
    stays: AtomicBool,
}

/// Takes `name` for `vm`, and answers for it as long as both live, also with what `about` tells.
///
/// # Errors
/// When the name is taken, or none, or the host refuses.
pub fn serve(name: &str, vm: &Arc<RunningVm>, about: About) -> Result<Named, NameError> {
    serve_in(&Directory::open()?, info(name, vm), about, Arc::downgrade(vm))
}

/// The same, of a VM that nobody sits in front of: what is written to the log is kept, and, once it
/// [stays](Named::stay), how the VM ended. It is forgotten when the name is taken again, or when many others have ended since.
///
/// # Errors
/// As [`serve`].
pub fn serve_kept(
    name: &str,
    vm: &Arc<RunningVm>,
    about: About,
) -> Result<(Named, Log), NameError> {
    let directory = Directory::open()?;
    let about = About { log: Some(directory.log(name)), ..about };
    let mut named = serve_in(&directory, info(name, vm), about, Arc::downgrade(vm))?;
    let lock = directory.lock()?;
    record::make_room(&directory)?;
    drop(lock);
    let path = directory.log(name);
    let log = Log::create(path.clone(), HALF).map_err(host(&path, "create"))?;
    named.kept = Some(directory);
    Ok((named, log))
}

fn info(name: &str, vm: &RunningVm) -> Info {
    let since = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default().as_secs();
    let kernel = vm.config().kernel.display().to_string();
    Info { name: name.to_owned(), pid: std::process::id(), kernel, since, answers: true }
}

pub(super) fn serve_in(
    directory: &Directory,
    info: Info,
    about: About,
    vm: Weak<RunningVm>,
) -> Result<Named, NameError> {
    let path = directory.socket(&info.name)?;
    let lock = directory.lock()?;
    if !clean(&path) {
        return Err(NameError::InUse(info.name));
    }
    let listener = UnixListener::bind(&path).map_err(host(&path, "bind"))?;
    let made = fs::symlink_metadata(&path).map_err(host(&path, "stat"))?;
    // Of another that was called so before.
    record::forget(directory, &info.name);
    drop(lock);
    let listener = Arc::new(listener);
    let given_up = Arc::new(AtomicBool::new(false));
    let (waiting, terminal) = (Arc::default(), Arc::default());
    let stop = Arc::new(OnceLock::new());
    let clients = Arc::new(Clients {
        info: info.clone(),
        about,
        vm,
        answering: Places::default(),
        connecting: Places::default(),
        waiting: Arc::clone(&waiting),
        terminal: Arc::clone(&terminal),
        stop: stop.clone(),
        attached: Places::default(),
    });
    let (accepting, leaving) = (listener.clone(), given_up.clone());
    let thread = std::thread::Builder::new()
        .name("husk-name".to_owned())
        .stack_size(STACK)
        .spawn(move || {
            let next = || accepting.accept().map(|(client, _)| client);
            accept(&leaving, next, |client| admit(&clients, client));
        })
        .map_err(host(&path, "start a thread"))?;
    let identity = (made.dev(), made.ino());
    Ok(Named {
        listener,
        path,
        identity,
        given_up,
        thread: Some(thread),
        info,
        waiting,
        terminal,
        stop,
        kept: None,
        stays: AtomicBool::new(false),
    })
}

/// How the VM's end is asked for.
struct Stop(Box<dyn Fn() + Send + Sync>);

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

/// What is answered from, and who is answered.
struct Clients {
    info: Info,
    about: About,
    vm: Weak<RunningVm>,
    answering: Places,
    connecting: Places,
    waiting: Arc<Mutex<Waiting>>,
    terminal: Arc<OnceLock<Terminal>>,
    stop: Arc<OnceLock<Stop>>,
    /// Who sits in front of it.
    attached: Places,
}

/// Admits those who come until the name is given up. That one cannot be accepted, for want of
/// descriptors or because it has gone, is no reason to leave.
fn accept<T>(given_up: &AtomicBool, next: impl Fn() -> io::Result<T>, admit: impl Fn(T)) {
    let mut told: Option<Instant> = None;
    loop {
        let next = next();
        if given_up.load(Ordering::Acquire) {
            return;
        }
        match next {
            Ok(client) => admit(client),
            Err(e) => {
                if told.is_none_or(|told| told.elapsed() >= TOLD_EVERY) {
                    log::warn!("the VM's name: nobody can be answered for the moment: {e}");
                    told = Some(Instant::now());
                }
                std::thread::sleep(PAUSE);
            }
        }
    }
}

fn lock(waiting: &Mutex<Waiting>) -> MutexGuard<'_, Waiting> {
    // No code panics while it holds the lock.
    waiting.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Answers a client in a thread of its own, if there is room.
fn admit(clients: &Arc<Clients>, client: UnixStream) {
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

/// Reads a request and answers it.
fn answer(client: &UnixStream, clients: &Clients, place: Place) -> io::Result<()> {
    let Clients { info, about, vm, .. } = clients;
    client.set_read_timeout(Some(PATIENCE))?;
    client.set_write_timeout(Some(PATIENCE))?;
    // The directory keeps others out; this is for one whose permissions somebody has changed since.
    let peer = fds::peer(client)?.uid;
    let mut writing = client;
    if peer != user() && peer != 0 {
        return writing.write_all(b"ERROR you are somebody else\n");
    }
    let mut line = String::new();
    BufReader::new(client.take(LINE_MAX)).read_line(&mut line)?;
    // Also of one that ends just now.
    if line.trim_end() == request::WAIT {
        return lock(&clients.waiting).join(client);
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
            let Some(terminal) = clients.terminal.get() else {
                return writing.write_all(b"NONE\n");
            };
            let Some(_attached) = clients.attached.take(1) else {
                return writing.write_all(b"ERROR somebody else sits in front of it\n");
            };
            drop((place, vm));
            writing.write_all(b"OK\n")?;
            terminal.carry(client)
        }
        resize if resize.starts_with(request::RESIZE) => {
            let size = resize.strip_prefix(request::RESIZE).and_then(terminal::size);
            match (clients.terminal.get(), size) {
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
            drop(place);
            match vm.dial(None) {
                Ok(agent) => fds::send(client, b"OK\n", agent.as_raw_fd()),
                Err(e) => {
                    let words = e.to_string().replace('\n', " ");
                    writing.write_all(format!("ERROR {words}\n").as_bytes())
                }
            }
        }
        request::SHUT_DOWN => {
            if let Some(Stop(stop)) = clients.stop.get() {
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

impl Named {
    /// From now on something of a VM that was [kept](serve_kept) stays after its end.
    pub fn stay(&self) {
        self.stays.store(true, Ordering::Release);
    }

    /// When its end is asked for, in good order, `stop` is called instead of what is usual; it does not wait.
    pub fn on_stop(&self, stop: impl Fn() + Send + Sync + 'static) {
        // Called once.
        let _ = self.stop.set(Stop(Box::new(stop)));
    }

    /// From now on one can sit in front of it.
    pub fn attach(&self, terminal: Terminal) {
        // Called once.
        let _ = self.terminal.set(terminal);
    }

    /// It has ended with this exit status: whoever waits is told so when the name is given up.
    pub fn conclude(&self, status: u8) {
        lock(&self.waiting).status = Some(status);
    }

    /// Remembers how it ended, or that it has never been.
    fn settle(&self, directory: &Directory) {
        let info = &self.info;
        if !self.stays.load(Ordering::Acquire) {
            record::forget(directory, &info.name);
        } else if let Some(status) = lock(&self.waiting).status
            && let Err(e) = record::write(directory, info, status)
        {
            log::warn!("the exit status of {} is not remembered: {e}", info.name);
        }
    }
}

impl Drop for Named {
    fn drop(&mut self) {
        if let Some(directory) = &self.kept {
            self.settle(directory);
        }
        // Somebody may have put something else there.
        let ours = |found: fs::Metadata| (found.dev(), found.ino()) == self.identity;
        if fs::symlink_metadata(&self.path).is_ok_and(ours) {
            // What stays is cleaned by the next who wants the name.
            let _ = fs::remove_file(&self.path);
        }
        lock(&self.waiting).end();
        self.given_up.store(true, Ordering::Release);
        // SAFETY: shutdown takes no pointers. It ends the thread's wait in accept(2).
        unsafe { libc::shutdown(self.listener.as_raw_fd(), libc::SHUT_RDWR) };
        if let Some(thread) = self.thread.take() {
            // A panic in it was told when it happened.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::{Cell, RefCell};

    use super::*;

    #[test]
    fn a_client_that_cannot_be_accepted_does_not_make_the_name_deaf() {
        let given_up = AtomicBool::new(false);
        let (calls, admitted) = (Cell::new(0), RefCell::new(Vec::new()));
        let next = || {
            calls.set(calls.get() + 1);
            match calls.get() {
                1 => Err(io::Error::from_raw_os_error(libc::EMFILE)),
                2 => Err(io::Error::from_raw_os_error(libc::ECONNABORTED)),
                3 => Ok("somebody"),
                _ => {
                    given_up.store(true, Ordering::Release);
                    Err(io::Error::from_raw_os_error(libc::EINVAL))
                }
            }
        };
        accept(&given_up, next, |client| admitted.borrow_mut().push(client));
        assert_eq!((calls.get(), admitted.into_inner()), (4, vec!["somebody"]));
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
