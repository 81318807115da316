//! The process' own end of the device: connections between the guest and the VMM itself, which no
//! other process can come between and which leave nothing in a file system.
//!
//! [`Inside::dial`] gives the device one half of a socket pair, as if it had been accepted, and says the
//! line on the other; [`Inside::listen`] takes a port of the host's before it is looked for among the
//! unix sockets. What waits on either side is bounded.

use std::collections::{HashMap, VecDeque};
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use vmm_sys_util::eventfd::EventFd;

/// Connections of the guest's to one port that wait for whoever listens there.
const BACKLOG: usize = 8;
/// Longer than any answer of the device's.
const LINE_MAX: usize = 128;

#[derive(Debug, Default)]
struct State {
    /// The device's halves of connections that it does not know of yet.
    dialled: VecDeque<UnixStream>,
    ports: HashMap<u32, SyncSender<UnixStream>>,
    closed: bool,
}

/// The end of a device that is this process' own.
#[derive(Debug)]
pub struct Inside {
    state: Mutex<State>,
    /// Rung when somebody has dialled.
    bell: EventFd,
}

impl Inside {
    /// Without ports and connections.
    ///
    /// # Errors
    /// The host's, which may have no descriptor left.
    pub fn new() -> io::Result<Arc<Inside>> {
        let bell = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?;
        Ok(Arc::new(Inside { state: Mutex::default(), bell }))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // No code panics while it holds the lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the connections of the guest's to `port` from now on, until the receiver is dropped. After
    /// the device's end it brings none, and an error.
    pub fn listen(&self, port: u32) -> Receiver<UnixStream> {
        let (sender, receiver) = sync_channel(BACKLOG);
        let mut state = self.state();
        if !state.closed {
            state.ports.insert(port, sender);
        }
        receiver
    }

    /// Connects to `port` of the guest's and waits for its answer, at most for `patience`.
    ///
    /// # Errors
    /// `ConnectionRefused` with the device's words when the guest does not want it; `NotConnected` after
    /// the device's end; else the host's.
    pub fn dial(&self, port: u32, patience: Duration) -> io::Result<UnixStream> {
        let (mut ours, theirs) = UnixStream::pair()?;
        theirs.set_nonblocking(true)?;
        ours.write_all(format!("CONNECT {port}\n").as_bytes())?;
        {
            let mut state = self.state();
            if state.closed {
                return Err(io::ErrorKind::NotConnected.into());
            }
            state.dialled.push_back(theirs);
        }
        self.bell.write(1)?;
        ours.set_read_timeout(Some(patience))?;
        let line = read_line(&mut ours)?;
        if !line.starts_with("OK ") {
            return Err(io::Error::new(io::ErrorKind::ConnectionRefused, line));
        }
        ours.set_read_timeout(None)?;
        Ok(ours)
    }

    /// The next connection of this process' own that the device is to make.
    pub(super) fn next(&self) -> Option<UnixStream> {
        self.state().dialled.pop_front()
    }

    /// Connects the guest to whoever listens for `port` in this process; `None` when nobody does.
    ///
    /// # Errors
    /// `WouldBlock` when too many wait there, else the host's.
    pub(super) fn connect(&self, port: u32) -> Option<io::Result<UnixStream>> {
        let mut state = self.state();
        let sender = state.ports.get(&port)?;
        let (ours, theirs) = match UnixStream::pair() {
            Ok(pair) => pair,
            Err(e) => return Some(Err(e)),
        };
        if let Err(e) = theirs.set_nonblocking(true) {
            return Some(Err(e));
        }
        match sender.try_send(ours) {
            Ok(()) => Some(Ok(theirs)),
            Err(TrySendError::Full(_)) => Some(Err(io::ErrorKind::WouldBlock.into())),
            Err(TrySendError::Disconnected(_)) => {
                state.ports.remove(&port);
                None
            }
        }
    }

    /// The device has ended, or is about to: nobody waits for it any more.
    pub fn close(&self) {
        let mut state = self.state();
        *state = State { closed: true, ..State::default() };
    }
}

impl AsRawFd for Inside {
    fn as_raw_fd(&self) -> RawFd {
        self.bell.as_raw_fd()
    }
}

/// The device's answer, without the end of its line and not a byte more.
fn read_line(stream: &mut UnixStream) -> io::Result<String> {
    let mut line = Vec::new();
    let mut byte = [0];
    while line.len() < LINE_MAX {
        match stream.read(&mut byte) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(_) if byte == *b"\n" => break,
            Ok(_) => line.extend(byte),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                return Err(io::ErrorKind::TimedOut.into());
            }
            Err(e) => return Err(e),
        }
    }
    Ok(String::from_utf8_lossy(&line).into_owned())
}
