//! A link between two VMs of one user: a socket that keeps the borders of frames. What goes over it is
//! [`wire`]'s.
//!
//! Both know the wire by its name, which is a lock file and a socket in a directory of the user's
//! own. Whoever has the lock listens, the other connects; a third is refused, because then there is a
//! lock and no listener:
//!
//! ```text
//!          lock free                     accepts
//! apart ───────────────▶ listening ─────────────────▶ joined
//!   ▲  └───────────────────────────────────────────────▲  │
//!   │      lock taken: connects to whoever has it         │
//!   └─────────────────────────────────────────────────────┘  the other has gone
//! ```
//!
//! The kernel frees the lock of whoever ends, in whatever way: a socket without it is stale, and is
//! replaced. Each end has also one of two bytes of that file locked for as long as it lives, whoever
//! listens: by it the two cards get different addresses. Whoever can lock both is alone, and takes the file along when it
//! goes; who has locked a byte of a file that is not at its place any more begins again. While nobody is at the other end frames are lost, as on a cable that is not plugged in.
//! What is watched is an epoll descriptor with whatever socket there is in it; nobody asks that one
//! which, for every call tries whatever is next.

use std::fs::{DirBuilder, File};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::timerfd::TimerFd;

use super::backend::{Backend, Received, widen};
use super::mac_of;
use crate::lock::{self, Part, Sharing};
use crate::unix_socket;
use crate::virtio::queue::Iovecs;

mod wire;

use wire::Wire;
#[cfg(any(test, feature = "testing"))]
pub(in crate::virtio) use wire::{HELLO, READY};

/// How long a newcomer waits for one that has the lock to listen: it is between two steps, or it has
/// noticed just now that its other end has gone.
const PATIENCE: Duration = Duration::from_secs(1);
/// What a socket that is still connected may answer: it is full, the frame too long for it, the host out
/// of memory.
const PASSING: [libc::c_int; 4] = [libc::EAGAIN, libc::EMSGSIZE, libc::ENOBUFS, libc::ENOMEM];
/// The first and the longest time between two attempts to find the other.
const RETRY: (Duration, Duration) = (Duration::from_millis(10), Duration::from_secs(5));

/// A link that cannot be made. Each names it and the way out.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// Two VMs have it.
    #[error("link {name} has two VMs already; stop one of them, or use another name")]
    Taken {
        /// What the user gave.
        name: String,
    },
    /// Somebody else could be at the other end.
    #[error(
        "{path}, where links are, is not a directory of yours alone (mode 0700); remove it, or set \
         XDG_RUNTIME_DIR"
    )]
    Unsafe {
        /// The directory.
        path: PathBuf,
    },
    /// A socket's address has 107 bytes.
    #[error(
        "the socket of the link would be {path}, which is too long; set a shorter XDG_RUNTIME_DIR"
    )]
    TooLong {
        /// The socket.
        path: PathBuf,
    },
    /// The host refused something.
    #[error("link {name}: {what}: {source}")]
    Host {
        /// What the user gave.
        name: String,
        /// What was tried.
        what: String,
        /// The host's answer.
        r#source: io::Error,
    },
}

/// Which of two an end is, as long as it lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    First,
    Second,
}

enum State {
    Apart,
    Listening(OwnedFd),
    Joined(Box<Wire>),
}

/// An end of the wire.
pub struct Link {
    name: String,
    socket: PathBuf,
    lock: File,
    /// The lock file's place.
    place: PathBuf,
    locked: bool,
    /// The byte of the lock file that is this end's.
    side: Option<Side>,
    state: State,
    poll: Epoll,
    timer: TimerFd,
    retry: Duration,
    /// What the driver has accepted.
    features: u64,
    /// See [`Backend::surplus`]; it outlives the wire, or leaving would be a way around a limit.
    surplus: (usize, usize),
}

impl Link {
    /// An end of the link called `name`, a part of a file's name, in `directory`: that is made if it is not
    /// there, and must be the user's alone.
    ///
    /// # Errors
    /// See [`LinkError`].
    pub fn open(directory: &Path, name: &str) -> Result<Link, LinkError> {
        let host = |what: &str| {
            let (name, what) = (name.to_owned(), what.to_owned());
            move |source| LinkError::Host { name, what, source }
        };
        match DirBuilder::new().mode(0o700).create(directory) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => {
                return Err(host(&format!("making {}", directory.display()))(e));
            }
            _ => {}
        }
        let found = directory.symlink_metadata().map_err(host("its directory"))?;
        // SAFETY: geteuid takes nothing and cannot fail.
        let user = unsafe { libc::geteuid() };
        if !found.is_dir() || found.uid() != user || found.mode() & 0o077 != 0 {
            return Err(LinkError::Unsafe { path: directory.to_owned() });
        }
        let socket = directory.join(format!("{name}.link"));
        if unix_socket::address(&socket).is_err() {
            return Err(LinkError::TooLong { path: socket });
        }
        let place = directory.join(format!("{name}.lock"));
        let lock = open_lock(&place).map_err(host("its lock"))?;
        let errno = |e: vmm_sys_util::errno::Error| io::Error::from_raw_os_error(e.errno());
        let poll = Epoll::new().map_err(host("epoll"))?;
        let timer = TimerFd::new().map_err(errno).map_err(host("timerfd"))?;
        let mut link = Link {
            name: name.to_owned(),
            socket,
            lock,
            place,
            locked: false,
            side: None,
            state: State::Apart,
            poll,
            timer,
            retry: RETRY.0,
            features: 0,
            surplus: (0, 0),
        };
        link.watch(link.timer.as_raw_fd()).map_err(host("epoll"))?;
        let begun = Instant::now();
        loop {
            if link.side.is_none() {
                link.take_side().map_err(host("its lock"))?;
            }
            if link.side.is_some() {
                link.meet().map_err(host("its socket"))?;
            }
            if !matches!(link.state, State::Apart) {
                return Ok(link);
            }
            if begun.elapsed() > PATIENCE {
                return Err(LinkError::Taken { name: name.to_owned() });
            }
            std::thread::sleep(RETRY.0);
        }
    }

    /// Takes a side, if there is one, of the file that others find: whoever was alone has perhaps removed this one
    /// since it was opened.
    fn take_side(&mut self) -> io::Result<()> {
        self.side = take_side(&self.lock)?;
        if self.side.is_some() && !is_at(&self.lock, &self.place)? {
            self.side = None;
            self.lock = open_lock(&self.place)?;
        }
        Ok(())
    }

    /// The address of the card called `id` at this end, which is not the one at the other end: the first to
    /// come, and whoever comes in its place, has [`mac_of`] the id, the other that of the id and `/2`, which
    /// is in no id.
    pub fn mac_of(&self, id: &str) -> [u8; 6] {
        match self.side {
            Some(Side::Second) => mac_of(&format!("{id}/2")),
            _ => mac_of(id),
        }
    }

    /// Takes the next step towards the other end, if there is one to be taken now.
    fn meet(&mut self) -> io::Result<()> {
        match &self.state {
            State::Joined(_) => {}
            State::Listening(listener) => {
                if let Some(peer) = accept(listener)? {
                    // A third must find nobody who listens.
                    let _ = std::fs::remove_file(&self.socket);
                    self.state = State::Apart;
                    self.join(peer)?;
                }
            }
            State::Apart => {
                self.locked = self.locked || try_lock(&self.lock);
                if self.locked {
                    let listener = listen(&self.socket)?;
                    self.watch(listener.as_raw_fd())?;
                    self.state = State::Listening(listener);
                } else if let Some(peer) = connect(&self.socket)? {
                    self.join(peer)?;
                }
            }
        }
        Ok(())
    }

    fn join(&mut self, peer: OwnedFd) -> io::Result<()> {
        widen(&peer);
        self.watch(peer.as_raw_fd())?;
        // Fails when it has gone already: then nobody has come.
        if let Ok(wire) = Wire::new(peer, self.features) {
            self.state = State::Joined(Box::new(wire));
            self.retry = RETRY.0;
        }
        Ok(())
    }

    /// The other end has gone, or whoever listened has not been found: what there is to do is done,
    /// or tried again after a while.
    fn part(&mut self) {
        self.state = State::Apart;
        self.seek();
    }

    fn seek(&mut self) {
        let failed = self.meet().is_err();
        if failed || matches!(self.state, State::Apart) {
            // Fails for a wrong duration only.
            let _ = self.timer.reset(self.retry, None);
            self.retry = (self.retry * 2).min(RETRY.1);
        }
    }

    fn watch(&self, fd: RawFd) -> io::Result<()> {
        let edges = EventSet::IN | EventSet::OUT | EventSet::EDGE_TRIGGERED;
        self.poll.ctl(ControlOperation::Add, fd, EpollEvent::new(edges, 0))
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        if matches!(self.state, State::Listening(_)) {
            // Nobody is misled by one that stays.
            let _ = std::fs::remove_file(&self.socket);
        }
        // With both sides taken nobody else takes one, or removes the file: it is at its place, if it ever was. Two
        // that go at the same time leave it to the next.
        let is_alone = self.side.is_some_and(|own| {
            let other = if own == Side::First { 1 } else { 0 };
            lock::take(&self.lock, Part::Byte(other), Sharing::Nobody).unwrap_or(false)
        });
        if is_alone && is_at(&self.lock, &self.place).unwrap_or(false) {
            let _ = std::fs::remove_file(&self.place);
        }
    }
}

impl Backend for Link {
    fn name(&self) -> String {
        format!("link {}", self.name)
    }

    fn descriptor(&self) -> RawFd {
        self.poll.as_raw_fd()
    }

    fn has_headers(&self) -> bool {
        true
    }

    fn accept(&mut self, features: u64) {
        self.features = features;
        if let State::Joined(wire) = &mut self.state {
            wire.accept(features);
        }
    }

    fn is_up(&self) -> bool {
        matches!(self.state, State::Joined(_))
    }

    fn receive(&mut self, to: Iovecs<'_>) -> io::Result<Received> {
        if let State::Joined(wire) = &mut self.state {
            match wire.receive(to) {
                Err(e) if e.kind() != io::ErrorKind::WouldBlock => self.part(),
                done => return done,
            }
        } else {
            self.seek();
        }
        // A socket that is watched from now on has an event of its own.
        Err(io::ErrorKind::WouldBlock.into())
    }

    fn skip(&mut self) {
        if let State::Joined(wire) = &mut self.state {
            wire.skip();
        }
    }

    fn send(&mut self, frame: Iovecs<'_>) -> io::Result<()> {
        let State::Joined(wire) = &mut self.state else {
            return Err(io::ErrorKind::NotConnected.into());
        };
        let sent = wire.send(frame);
        self.surplus = wire.surplus();
        match sent {
            Ok(()) => Ok(()),
            // The frame's own trouble, or the host's for the moment.
            Err(e) if e.kind() == io::ErrorKind::InvalidInput => Err(e),
            Err(e) if e.raw_os_error().is_some_and(|errno| PASSING.contains(&errno)) => Err(e),
            Err(e) => {
                self.part();
                Err(io::Error::new(io::ErrorKind::NotConnected, e))
            }
        }
    }

    fn surplus(&mut self) -> (usize, usize) {
        std::mem::take(&mut self.surplus)
    }
}

/// The lock file at `place`, made if need be.
fn open_lock(place: &Path) -> io::Result<File> {
    File::options().create(true).truncate(false).write(true).open(place)
}

/// Whether the open `file` is what is at `place`.
fn is_at(file: &File, place: &Path) -> io::Result<bool> {
    let own = file.metadata()?;
    match place.symlink_metadata() {
        Ok(found) => Ok((found.dev(), found.ino()) == (own.dev(), own.ino())),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(e),
    }
}

/// Takes the lock, unless somebody else has it: another process, or another link of this one.
fn try_lock(file: &File) -> bool {
    // SAFETY: flock takes no pointers.
    unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) == 0 }
}

/// Takes the side that nobody has, if there is one: a [byte](crate::lock) of the file each, which has nothing to
/// do with the lock of [`try_lock`].
fn take_side(file: &File) -> io::Result<Option<Side>> {
    for (byte, side) in [(0, Side::First), (1, Side::Second)] {
        if lock::take(file, Part::Byte(byte), Sharing::Nobody)? {
            return Ok(Some(side));
        }
    }
    Ok(None)
}

/// What a system call that makes a descriptor returned.
fn owned(fd: RawFd) -> io::Result<OwnedFd> {
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the callers pass on what the kernel gave them just now.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// `bind` or `connect`.
type Call =
    unsafe extern "C" fn(libc::c_int, *const libc::sockaddr, libc::socklen_t) -> libc::c_int;

fn with_address(call: Call, socket: &OwnedFd, path: &Path) -> io::Result<()> {
    let (address, len) = unix_socket::address(path)?;
    // SAFETY: both calls read an address, `len` bytes of a sockaddr_un that lives through the call.
    if unsafe { call(socket.as_raw_fd(), (&raw const address).cast(), len) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Listens at `path`, of which the caller has the lock: what is there is stale.
fn listen(path: &Path) -> io::Result<OwnedFd> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let socket = unix_socket::socket(libc::SOCK_SEQPACKET)?;
    with_address(libc::bind, &socket, path)?;
    // One may wait to be accepted, which is when this VM's driver is up; a third is turned away.
    // SAFETY: listen takes no pointers.
    if unsafe { libc::listen(socket.as_raw_fd(), 0) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(socket)
}

/// Connects to whoever listens at `path`, if anybody does.
pub(in crate::virtio) fn connect(path: &Path) -> io::Result<Option<OwnedFd>> {
    let socket = unix_socket::socket(libc::SOCK_SEQPACKET)?;
    match with_address(libc::connect, &socket, path) {
        Ok(()) => Ok(Some(socket)),
        Err(e) => match e.raw_os_error() {
            Some(libc::ENOENT | libc::ECONNREFUSED | libc::EAGAIN) => Ok(None),
            _ => Err(e),
        },
    }
}

/// Whoever has connected, if anybody has.
fn accept(listener: &OwnedFd) -> io::Result<Option<OwnedFd>> {
    let flags = libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
    let none = std::ptr::null_mut();
    // SAFETY: accept4 may be given no place for the address.
    let fd = unsafe { libc::accept4(listener.as_raw_fd(), none, none.cast(), flags) };
    match owned(fd) {
        Ok(fd) => Ok(Some(fd)),
        Err(e) if e.kind() == io::ErrorKind::WouldBlock => Ok(None),
        Err(e) => Err(e),
    }
}

#[cfg(test)]
mod tests;
