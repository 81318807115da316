//! One port: what the driver knows of it, and its bytes between a queue and the host.

use std::io;
use std::os::fd::RawFd;

use event_manager::{EventOps, Events};
use serde::{Deserialize, Serialize};
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::epoll::EventSet;

use super::super::control::ToDriver;
use super::super::endpoint::Endpoint;
use crate::complaints::Complaints;
use crate::virtio::interrupt::Interrupt;
use crate::virtio::queue::{Answer, Chain, Queue};

/// Bytes of one round in one direction, so that other ports and devices get their turn.
const ROUND: usize = 1 << 20;

/// What a snapshot keeps of a port.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct PortState {
    pub(super) name: String,
    told: Told,
    /// Bytes of the first chain from the guest that the host has already.
    sent: usize,
}

/// How far the driver and the device have come with each other about a port.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Told {
    /// It has to be told that there is the port.
    add: bool,
    /// It has to be told its name.
    name: bool,
    /// It knows the port.
    known: bool,
    /// What it was told last: somebody on the host has the port open.
    host_open: bool,
    /// Whoever that was has gone, perhaps for somebody else already.
    gone: bool,
    /// Somebody in the guest has it open.
    guest_open: bool,
}

pub(super) struct Port {
    id: u32,
    name: String,
    endpoint: Endpoint,
    told: Told,
    sent: usize,
    /// The client has closed both directions; what it wrote may still lie in the socket.
    hung_up: bool,
    /// Nothing comes from the client any more.
    ended: bool,
    watched: Option<RawFd>,
    complaints: Complaints,
}

impl Port {
    pub(super) fn new(id: u32, name: String, endpoint: Endpoint) -> Port {
        Port {
            id,
            name,
            endpoint,
            told: Told::default(),
            sent: 0,
            hung_up: false,
            ended: false,
            watched: None,
            complaints: Complaints::default(),
        }
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn state(&self) -> PortState {
        PortState { name: self.name.clone(), told: self.told, sent: self.sent }
    }

    pub(super) fn restore(&mut self, state: PortState) {
        (self.told, self.sent) = (state.told, state.sent);
    }

    /// The driver knows nothing any more.
    pub(super) fn reset(&mut self) {
        (self.told, self.sent) = (Told::default(), 0);
    }

    /// The driver takes ports now, or none.
    pub(super) fn announce(&mut self, ready: bool) {
        self.told = Told { add: ready, ..Told::default() };
    }

    /// The driver has made the port, or could not.
    pub(super) fn known(&mut self, ready: bool) {
        self.told = Told { known: ready, name: ready, ..Told::default() };
    }

    /// Somebody in the guest has opened it, or closed it.
    pub(super) fn opened(&mut self, open: bool) {
        self.told.guest_open = open && self.told.known;
    }

    /// What the driver has to be told next.
    fn due(&self) -> Option<ToDriver<'_>> {
        let told = &self.told;
        if told.add {
            Some(ToDriver::Add)
        } else if told.known && told.name {
            Some(ToDriver::Name(&self.name))
        } else if told.known && told.gone {
            Some(ToDriver::Open(false))
        } else if told.known && told.host_open != self.endpoint.is_open() {
            Some(ToDriver::Open(self.endpoint.is_open()))
        } else {
            None
        }
    }

    pub(super) fn message(&self) -> Option<Vec<u8>> {
        self.due().map(|due| due.bytes(self.id))
    }

    /// The message was given to the driver.
    pub(super) fn told(&mut self) {
        match self.due() {
            Some(ToDriver::Add) => self.told.add = false,
            Some(ToDriver::Name(_)) => self.told.name = false,
            Some(ToDriver::Open(open)) => (self.told.host_open, self.told.gone) = (open, false),
            None => {}
        }
    }

    /// The worker has it now.
    pub(super) fn begin(&mut self, ops: &mut EventOps, interrupt: &Interrupt) {
        self.watched = None;
        self.watch(ops, interrupt);
    }

    pub(super) fn watches(&self, fd: RawFd) -> bool {
        self.watched == Some(fd)
    }

    /// Watches the client, or the listener as long as there is none.
    fn watch(&mut self, ops: &mut EventOps, interrupt: &Interrupt) {
        let (fd, events) = match (self.endpoint.listener(), self.endpoint.stream()) {
            // One event for each change, so that nothing that cannot go on keeps the loop awake.
            (Some(listener), _) => (listener, EventSet::IN | EventSet::EDGE_TRIGGERED),
            (None, Some(stream)) => {
                let all = EventSet::IN | EventSet::OUT | EventSet::READ_HANG_UP;
                (stream, all | EventSet::EDGE_TRIGGERED)
            }
            (None, None) => return,
        };
        if self.watched == Some(fd) {
            return;
        }
        match ops.add(Events::new_raw(fd, events)) {
            Ok(()) => self.watched = Some(fd),
            // A regular file has no events; it needs none.
            Err(_) if self.endpoint.listener().is_none() && self.endpoint.is_open() => {}
            Err(e) => interrupt.needs_reset(&e),
        }
    }

    fn unwatch(&mut self, ops: &mut EventOps) {
        if let Some(fd) = self.watched.take() {
            // Fails only when it is not watched.
            let _ = ops.remove(Events::new_raw(fd, EventSet::empty()));
        }
    }

    /// Something about what is watched.
    pub(super) fn happened(&mut self, events: &Events, ops: &mut EventOps, interrupt: &Interrupt) {
        if self.endpoint.listener().is_some() {
            if self.endpoint.accept() {
                (self.hung_up, self.ended) = (false, false);
                self.unwatch(ops);
                self.watch(ops, interrupt);
            }
        } else if self.endpoint.is_socket()
            && events.event_set().intersects(EventSet::HANG_UP | EventSet::ERROR)
        {
            self.hung_up = true;
        }
    }

    /// Lets go of a client that is gone, once the guest has all that it wrote; true when it did.
    pub(super) fn settle(&mut self, ops: &mut EventOps, interrupt: &Interrupt) -> bool {
        if !self.hung_up || !self.ended && self.endpoint.has_unread() {
            return false;
        }
        self.unwatch(ops);
        self.endpoint.hang_up();
        self.told.gone = self.told.host_open;
        (self.hung_up, self.ended, self.sent) = (false, false, 0);
        self.watch(ops, interrupt);
        true
    }

    /// From the guest to the host.
    pub(super) fn send(&mut self, tx: &mut Queue, memory: &GuestMemoryMmap, line: &Interrupt) {
        tx.quiet();
        let mut left = ROUND;
        let mut again = false;
        tx.process(memory, line, |chain| {
            while left > 0 {
                match self.write(chain, left) {
                    Ok(0) => {
                        self.sent = 0;
                        return Answer::Done(0);
                    }
                    Ok(count) => {
                        self.sent += count;
                        left -= count;
                    }
                    Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                    // The next event of the client's goes on.
                    Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Answer::Stop,
                    Err(e) => {
                        self.lose(&e, line);
                        return Answer::Done(0);
                    }
                }
            }
            again = true;
            Answer::Stop
        });
        if again {
            tx.ring();
        }
    }

    /// Writes some of what is left of the chain, at most `limit` bytes; 0 when nothing is left.
    fn write(&self, chain: &mut Chain<'_>, limit: usize) -> io::Result<usize> {
        let left = chain.readable_len().saturating_sub(self.sent).min(limit);
        if left == 0 {
            return Ok(0);
        }
        let from = chain.readable_iovecs(self.sent, left).map_err(io::Error::other)?;
        match self.endpoint.write(&from) {
            Ok(0) => Err(io::ErrorKind::WriteZero.into()),
            done => done,
        }
    }

    /// What the host did not take is lost: with the client that is gone, or for want of room.
    fn lose(&mut self, why: &io::Error, line: &Interrupt) {
        self.sent = 0;
        line.counters().add_error();
        // What it wrote before it went is still to come.
        self.hung_up |= self.endpoint.is_socket();
        if why.kind() != io::ErrorKind::BrokenPipe
            && let Some(silent) = self.complaints.admit()
        {
            let (device, name) = (line.name(), &self.name);
            log::warn!("{device}: port {name}: {why}{silent}");
        }
    }

    /// From the host to the guest, once somebody there has opened the port: what came before that
    /// would be thrown away there.
    pub(super) fn receive(&mut self, rx: &mut Queue, memory: &GuestMemoryMmap, line: &Interrupt) {
        rx.quiet();
        if !self.told.guest_open {
            return;
        }
        let mut left = ROUND;
        rx.process(memory, line, |chain| {
            let len = chain.writable_len().min(left);
            if left == 0 || self.ended {
                return Answer::Stop;
            }
            if len == 0 {
                return Answer::Done(0);
            }
            let Ok(to) = chain.writable_iovecs(0, len) else {
                return Answer::Broken("a port's receive buffer is shorter than it says");
            };
            loop {
                return match self.endpoint.read(&to) {
                    Ok(0) => {
                        self.ended = true;
                        Answer::Stop
                    }
                    Ok(count) => {
                        left -= count;
                        // At most ROUND, so the cast keeps the number.
                        Answer::Done(count as u32)
                    }
                    Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                    Err(e) if e.kind() == io::ErrorKind::WouldBlock => Answer::Stop,
                    Err(_) => {
                        (self.hung_up, self.ended) = (true, true);
                        Answer::Stop
                    }
                };
            }
        });
        if left == 0 {
            rx.ring();
        }
    }
}
