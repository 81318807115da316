//! The VM's side of its name.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::thread::JoinHandle;
use std::time::SystemTime;

use super::directory::{Directory, clean, user};
use super::error::{NameError, host};
use super::remote::Info;
use super::{LINE_MAX, PATIENCE, fds, request};
use crate::vm::RunningVm;

/// Bytes of stack of the threads here.
const STACK: usize = 128 << 10;
/// Who is served at once; others wait.
const CLIENTS_MAX: usize = 16;
/// Lines of the console in a log: all that are kept.
const LOG_LINES: usize = usize::MAX;

/// A name that is taken. Dropping it gives it up.
#[derive(Debug)]
pub struct Named {
    listener: Arc<UnixListener>,
    path: PathBuf,
    /// Device and inode of the socket.
    identity: (u64, u64),
    thread: Option<JoinHandle<()>>,
}

/// Takes `name` for `vm`, and answers for it as long as both live. `kernel` is what to say that it runs.
///
/// # Errors
/// When the name is taken, or none, or the host refuses.
pub fn serve(name: &str, vm: &Arc<RunningVm>, kernel: String) -> Result<Named, NameError> {
    let since = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default().as_secs();
    let info =
        Info { name: name.to_owned(), pid: std::process::id(), kernel, since, answers: true };
    serve_in(&Directory::open()?, info, Arc::downgrade(vm))
}

pub(super) fn serve_in(
    directory: &Directory,
    info: Info,
    vm: Weak<RunningVm>,
) -> Result<Named, NameError> {
    let path = directory.socket(&info.name)?;
    let lock = directory.lock()?;
    if !clean(&path) {
        return Err(NameError::InUse(info.name));
    }
    let listener = UnixListener::bind(&path).map_err(host(&path, "bind"))?;
    let made = fs::symlink_metadata(&path).map_err(host(&path, "stat"))?;
    drop(lock);
    let listener = Arc::new(listener);
    let accepting = listener.clone();
    let thread = std::thread::Builder::new()
        .name("husk-name".to_owned())
        .stack_size(STACK)
        .spawn(move || accept(&accepting, &Arc::new(info), &vm))
        .map_err(host(&path, "start a thread"))?;
    Ok(Named { listener, path, identity: (made.dev(), made.ino()), thread: Some(thread) })
}

fn accept(listener: &UnixListener, info: &Arc<Info>, vm: &Weak<RunningVm>) {
    let clients = Arc::new(AtomicUsize::new(0));
    // It fails when the name is given up.
    while let Ok((client, _)) = listener.accept() {
        if clients.load(Ordering::Acquire) >= CLIENTS_MAX {
            // It sees an end without an answer.
            continue;
        }
        clients.fetch_add(1, Ordering::AcqRel);
        let (info, vm, count) = (info.clone(), vm.clone(), clients.clone());
        let thread = std::thread::Builder::new().name("husk-name".to_owned()).stack_size(STACK);
        let spawned = thread.spawn(move || {
            if let Err(e) = answer(&client, &info, &vm) {
                log::debug!("a client of the VM's name: {e}");
            }
            count.fetch_sub(1, Ordering::AcqRel);
        });
        if spawned.is_err() {
            clients.fetch_sub(1, Ordering::AcqRel);
        }
    }
}

/// Reads a request and answers it.
fn answer(client: &UnixStream, info: &Info, vm: &Weak<RunningVm>) -> std::io::Result<()> {
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
    let Some(vm) = vm.upgrade() else { return writing.write_all(b"ERROR it has ended\n") };
    match line.trim_end() {
        request::INFO => {
            let info = serde_json::to_string(info).map_err(std::io::Error::other)?;
            writing.write_all(format!("OK {info}\n").as_bytes())
        }
        request::CONNECT => match vm.dial() {
            Ok(agent) => fds::send(client, b"OK\n", agent.as_raw_fd()),
            Err(e) => {
                let words = e.to_string().replace('\n', " ");
                writing.write_all(format!("ERROR {words}\n").as_bytes())
            }
        },
        request::SHUT_DOWN => {
            if vm.has_agent() {
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
        _ => writing.write_all(b"ERROR nobody asks that\n"),
    }
}

impl Drop for Named {
    fn drop(&mut self) {
        // Somebody may have put something else there.
        let ours = |found: fs::Metadata| (found.dev(), found.ino()) == self.identity;
        if fs::symlink_metadata(&self.path).is_ok_and(ours) {
            // What stays is cleaned by the next who wants the name.
            let _ = fs::remove_file(&self.path);
        }
        // SAFETY: shutdown takes no pointers. It ends the thread's wait in accept(2).
        unsafe { libc::shutdown(self.listener.as_raw_fd(), libc::SHUT_RDWR) };
        if let Some(thread) = self.thread.take() {
            // A panic in it was told when it happened.
            let _ = thread.join();
        }
    }
}
