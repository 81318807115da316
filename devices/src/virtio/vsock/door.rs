//! Where the host's programs come in: accepted, heard to the end of their line, or sent away.
//!
//! Both those who are saying their line and their time are bounded; others wait in the listening
//! socket's own queue until there is room, or until the host has descriptors again.

use std::fmt::Display;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use event_manager::{EventOps, Events};
use vmm_sys_util::epoll::EventSet;

use super::handshake::{Handshake, MAX_HANDSHAKES, Said};
use super::inside::Inside;
use super::socket::Listener;
use super::stream;
use super::token::Token;
use crate::complaints::Complaints;

/// Whether there may be peers that were not accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Waiting {
    Nobody,
    /// Until a handshake is done.
    ForRoom,
    /// Until the host has descriptors and memory again: the timer or an end is waited for.
    ForMeans,
}

/// The listening socket, if there is one, the process' own end, and those in front of it.
pub struct Door {
    listener: Option<Listener>,
    inside: Arc<Inside>,
    handshakes: Vec<Option<Handshake>>,
    waiting: Waiting,
    patience: Duration,
    complaints: Complaints,
}

impl Door {
    /// Nobody stands there yet. A peer gets `patience` for its line.
    pub fn new(listener: Option<Listener>, inside: Arc<Inside>, patience: Duration) -> Door {
        Door {
            listener,
            inside,
            handshakes: std::iter::repeat_with(|| None).take(MAX_HANDSHAKES).collect(),
            waiting: Waiting::Nobody,
            patience,
            complaints: Complaints::default(),
        }
    }

    /// Registers everything there is with an event loop.
    pub fn watch(&mut self, ops: &mut EventOps<'_>) -> Result<(), event_manager::Error> {
        let events = EventSet::IN | EventSet::EDGE_TRIGGERED;
        // The bell is never read: each ring is an event.
        ops.add(Events::with_data(&*self.inside, Token::Listener.data(), events))?;
        if let Some(listener) = &self.listener {
            ops.add(Events::with_data(listener, Token::Listener.data(), events))?;
        }
        for (place, n) in self.handshakes.iter().zip(0..) {
            if let Some(handshake) = place {
                ops.add(watched(&handshake.socket, Token::Handshake(n)))?;
            }
        }
        Ok(())
    }

    /// Whether time has to be watched: somebody is saying a line, or cannot be accepted.
    pub fn needs_time(&self) -> bool {
        self.waiting == Waiting::ForMeans || self.handshakes.iter().any(Option::is_some)
    }

    /// Accepts those who wait, as far as there is room for them.
    pub fn accept(&mut self, ops: &mut EventOps<'_>) {
        self.waiting = Waiting::ForRoom;
        while let Some((place, n)) =
            self.handshakes.iter_mut().zip(0..).find(|(place, _)| place.is_none())
        {
            match next_peer(&self.inside, self.listener.as_ref()) {
                Ok(socket) => match ops.add(watched(&socket, Token::Handshake(n))) {
                    Ok(()) => {
                        *place = Some(Handshake::new(socket, Instant::now() + self.patience));
                    }
                    Err(e) => self.complain(&e),
                },
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    self.waiting = Waiting::Nobody;
                    return;
                }
                Err(e) if matches!(e.raw_os_error(), Some(libc::EINTR | libc::ECONNABORTED)) => {}
                Err(e) => {
                    // No descriptor or memory left.
                    self.complain(&e);
                    self.waiting = Waiting::ForMeans;
                    return;
                }
            }
        }
    }

    /// Accepts those for whom there was no room before.
    pub fn accept_waiting(&mut self, ops: &mut EventOps<'_>) {
        if self.waiting == Waiting::ForRoom && self.handshakes.iter().any(Option::is_none) {
            self.accept(ops);
        }
    }

    /// The host has a descriptor again.
    pub fn has_means(&mut self) {
        if self.waiting == Waiting::ForMeans {
            self.waiting = Waiting::ForRoom;
        }
    }

    /// Sends those away who have taken too long, and tries again to accept. Gives the number of
    /// those sent away.
    pub fn tick(&mut self, now: Instant, ops: &mut EventOps<'_>) -> u64 {
        let mut late = 0;
        for place in &mut self.handshakes {
            if let Some(handshake) = place.take_if(|handshake| handshake.deadline <= now) {
                dismiss(handshake.socket, ops, "ERROR no CONNECT line came in time\n");
                late += 1;
            }
        }
        if self.waiting != Waiting::Nobody {
            self.accept(ops);
        }
        late
    }

    /// Listens to a peer. One that is done has left the door: with the port that it wants, or
    /// without, and should be [`dismiss`]ed then.
    pub fn listen(&mut self, n: u32) -> Option<(UnixStream, Result<u32, &'static str>)> {
        let place = self.handshakes.get_mut(n as usize)?;
        let wanted = match place.as_mut()?.listen() {
            Said::Part => return None,
            Said::Port(port) => Ok(port),
            Said::Nonsense => Err("ERROR expected CONNECT <port>\n"),
            Said::Gone => Err(""),
        };
        Some((place.take()?.socket, wanted))
    }

    /// Connects the guest to whoever listens for `port` of the host's.
    ///
    /// # Errors
    /// The host's.
    pub fn connect(&self, port: u32) -> io::Result<UnixStream> {
        match (self.inside.connect(port), &self.listener) {
            (Some(connected), _) => connected,
            (None, Some(listener)) => listener.connect(port),
            (None, None) => Err(io::ErrorKind::ConnectionRefused.into()),
        }
    }

    /// Says that something failed, if it is not said too often.
    pub fn complain(&self, error: &dyn Display) {
        if let Some(silent) = self.complaints.admit() {
            log::warn!("vsock: a connection has to wait or is lost: {error}{silent}");
        }
    }
}

/// The next one who wants in; `WouldBlock` when there is none.
fn next_peer(inside: &Inside, listener: Option<&Listener>) -> io::Result<UnixStream> {
    match (inside.next(), listener) {
        (Some(own), _) => Ok(own),
        (None, Some(listener)) => listener.accept(),
        (None, None) => Err(io::ErrorKind::WouldBlock.into()),
    }
}

/// All that can happen to `socket`, each change once.
pub fn watched(socket: &impl AsRawFd, token: Token) -> Events {
    let events = EventSet::IN | EventSet::OUT | EventSet::READ_HANG_UP | EventSet::EDGE_TRIGGERED;
    Events::with_data(socket, token.data(), events)
}

/// Tells a peer why, if it is still there, and lets it go.
pub fn dismiss(socket: UnixStream, ops: &mut EventOps<'_>, why: &str) {
    let _ = stream::say(&socket, why);
    // It is watched, and if it were not there would be nothing to undo.
    let _ = ops.remove(Events::empty(&socket));
}
