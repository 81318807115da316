//! The VM's side of its name.

use std::fs;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use super::STACK;
use super::answer::{Clients, Given, Stop, admit};
use super::directory::{Directory, clean};
use super::end::Why;
use super::error::{NameError, host};
use super::inspection::About;
use super::log::{HALF, Log};
use super::record;
use super::remote::Info;
use super::terminal::Terminal;
use crate::kernels;
use crate::vm::RunningVm;

/// How long nobody is accepted when that has failed.
const PAUSE: Duration = Duration::from_millis(100);
/// How often it is told that it fails.
const TOLD_EVERY: Duration = Duration::from_secs(60);
/// How long answers may take that are on their way when the name is given up.
const LAST_WORDS: Duration = Duration::from_secs(1);

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
    vm: Weak<RunningVm>,
    given: Arc<Given>,
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

/// The same, of a VM that nobody sits in front of: what is written to the log is kept, and, once it is
/// [recorded](Named::record) and [stays](Named::stay), how the VM ended. It is forgotten when the name is taken again, or when many others have ended since.
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
    let kernel = kernels::name(&vm.config().kernel);
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
    if fs::symlink_metadata(&path).is_ok_and(|found| !found.file_type().is_socket()) {
        return Err(NameError::NoSocket(path));
    }
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
    let given = Arc::<Given>::default();
    let clients = Arc::new(Clients::new(info.clone(), about, vm.clone(), given.clone()));
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
        vm,
        given,
        kept: None,
        stays: AtomicBool::new(false),
    })
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

impl Named {
    /// Remembers of a VM that was [kept](serve_kept) that it runs; unless it is to [stay](Self::stay), that is
    /// forgotten at its end.
    ///
    /// # Errors
    /// When there is no room for it: nothing would be known of the VM's end either.
    pub fn record(&self) -> Result<(), NameError> {
        let Some(directory) = &self.kept else { return Ok(()) };
        let path = directory.end(&self.info.name);
        record::write(directory, &self.info, None).map_err(host(&path, "remember the VM"))
    }

    /// From now on what was [recorded](Self::record) stays after its end, however that comes about.
    pub fn stay(&self) {
        self.stays.store(true, Ordering::Release);
    }

    /// When its end is asked for, in good order, `stop` is called instead of what is usual; it does not wait.
    pub fn on_stop(&self, stop: impl Fn() + Send + Sync + 'static) {
        // Called once.
        let _ = self.given.stop.set(Stop(Box::new(stop)));
    }

    /// From now on one can sit in front of it.
    pub fn attach(&self, terminal: Terminal) {
        // Called once.
        let _ = self.given.terminal.set(terminal);
    }

    /// It has ended with this status, of which whoever serves the VM knows what it means: who waits is told it when
    /// the name is given up.
    pub fn conclude(&self, status: u8) {
        self.given.waiting().status = Some(status);
    }

    /// Remembers how it ended, or that it has never been.
    fn settle(&self, directory: &Directory) {
        let status = self.given.waiting().status;
        if !self.stays.load(Ordering::Acquire) {
            record::forget(directory, &self.info.name);
        } else if status.is_some() {
            self.remember(directory, status);
        }
    }

    fn remember(&self, directory: &Directory, status: Option<u8>) {
        if let Err(e) = record::write(directory, &self.info, status) {
            log::warn!("what becomes of {} is not remembered: {e}", self.info.name);
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
        let outcome = self.vm.upgrade().and_then(|vm| vm.wait_timeout(Duration::ZERO));
        // Of words and switches.
        let why = serde_json::to_string(&Why::of(outcome.as_ref())).unwrap_or_default();
        self.given.waiting().end(why);
        if let Some(terminal) = self.given.terminal.get() {
            terminal.end();
        }
        self.given_up.store(true, Ordering::Release);
        // SAFETY: shutdown takes no pointers. It ends the thread's wait in accept(2).
        unsafe { libc::shutdown(self.listener.as_raw_fd(), libc::SHUT_RDWR) };
        if let Some(thread) = self.thread.take() {
            // A panic in it was told when it happened.
            let _ = thread.join();
        }
        // Whoever asked for the end, or for its reason, is to hear of it.
        self.given.answers.settle(LAST_WORDS);
    }
}

#[cfg(test)]
mod tests {
    use std::cell::{Cell, RefCell};
    use std::io::{Read, Write};

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
    fn who_sits_in_front_of_a_vm_is_sent_away_when_the_name_is_given_up() {
        let dir = tempfile::tempdir().unwrap();
        let names = Directory::at(dir.path().join("husk")).unwrap();
        let info =
            Info { name: "one".to_owned(), pid: 1, kernel: String::new(), since: 0, answers: true };
        let named = serve_in(&names, info, About::default(), Weak::new()).unwrap();
        let (mut typed, input) = io::pipe().unwrap();
        let input = std::os::fd::OwnedFd::from(input);
        named.attach(Terminal::new(input.into(), Box::new(|_| ())).unwrap());
        let (near, mut far) = std::os::unix::net::UnixStream::pair().unwrap();
        let given = named.given.clone();
        let sat = std::thread::spawn(move || given.terminal.get().unwrap().sit(&near));
        far.write_all(b"x").unwrap();
        typed.read_exact(&mut [0]).unwrap();
        drop(named);
        sat.join().unwrap().unwrap();
        assert_eq!(far.read(&mut [0]).unwrap(), 0);
    }
}
