//! All connections of a device: which packet belongs to which, and whose turn it is.
//!
//! A pure state machine: packets of the guest's go in by [`Muxer::receive`], packets for the guest
//! come out by [`Muxer::next`], and whoever owns the host's sockets says what happened there. Turns
//! go round: a connection sends one packet and goes to the end of the line, and one that cannot go
//! on (no credit, nothing to read) is not in the line at all. Everything is bounded: connections by
//! [`MAX_CONNECTIONS`], answers to packets that belong to none by [`MAX_REFUSALS`].

use std::collections::{HashMap, VecDeque};

use super::connection::{Connection, Heard, Key, Owed};
use super::packet::{HOST_CID, Header, STREAM, op};

/// Connections at once, those included that are only still written to the host; a power of two.
pub const MAX_CONNECTIONS: usize = 1024;
/// RSTs that wait for receive buffers of the guest's before nothing more is taken from it.
pub const MAX_REFUSALS: usize = 256;
/// The first port of the host's for connections that it begins.
const FIRST_PORT: u32 = 1 << 30;

/// A connection's place; the same number is given out again after its end.
pub type Id = u32;

/// What a packet of the guest's asks of the host's side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Incoming {
    /// Nothing.
    Nothing,
    /// The guest wants to connect to this port of the host's: [`Muxer::accept`] or
    /// [`Muxer::refuse`].
    Connect(u32),
    /// This happened to a connection.
    Heard(Id, Heard),
}

/// The next packet for the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// One without payload.
    Control(Header),
    /// Up to `limit` bytes of the host's; answered by one of [`Muxer::sent`], [`Muxer::readable`]
    /// and [`Muxer::host_ends`].
    Data {
        /// Whose.
        id: Id,
        /// The guest's credit in bytes.
        limit: u32,
    },
}

#[derive(Debug)]
struct Slot {
    connection: Connection,
    /// The host's side has not been closed.
    host: bool,
    /// It stands in the line.
    queued: bool,
}

/// The connections of one device.
#[derive(Debug)]
pub struct Muxer {
    cid: u64,
    slots: Vec<Option<Slot>>,
    free: Vec<Id>,
    /// Those connections that the guest knows of.
    keys: HashMap<Key, Id>,
    line: VecDeque<Id>,
    refusals: VecDeque<Header>,
    next_port: u32,
}

impl Muxer {
    /// Without a connection, for a guest with context id `cid`.
    pub fn new(cid: u64) -> Muxer {
        Muxer {
            cid,
            slots: Vec::new(),
            free: Vec::new(),
            keys: HashMap::new(),
            line: VecDeque::new(),
            refusals: VecDeque::new(),
            next_port: FIRST_PORT,
        }
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        *self = Muxer { next_port: self.next_port, ..Muxer::new(self.cid) };
    }

    /// Whether packets of the guest's may be taken: each may need an answer.
    pub fn may_receive(&self) -> bool {
        self.refusals.len() < MAX_REFUSALS
    }

    /// Whether [`Muxer::next`] may have something.
    pub fn has_next(&self) -> bool {
        !self.line.is_empty() || !self.refusals.is_empty()
    }

    /// Connections, those included that are only still written to the host.
    pub fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Begins a connection of the host's to `port` of the guest's; `None` when there are too many.
    pub fn connect(&mut self, port: u32) -> Option<Id> {
        if self.len() >= MAX_CONNECTIONS {
            return None;
        }
        // There are more ports than connections, so one of them is free.
        let key = loop {
            let key = Key { guest: port, host: self.next_port };
            self.next_port = FIRST_PORT | self.next_port.wrapping_add(1) & (FIRST_PORT - 1);
            if !self.keys.contains_key(&key) {
                break key;
            }
        };
        Some(self.insert(Connection::ask(key)))
    }

    /// The ports of a connection.
    pub fn key(&self, id: Id) -> Option<Key> {
        self.connection(id).map(Connection::key)
    }

    /// Whether the guest owes the host an answer.
    pub fn is_asking(&self, id: Id) -> bool {
        self.connection(id).is_some_and(Connection::is_asking)
    }

    /// Whether nothing is read from the host any more.
    pub fn is_deaf(&self, id: Id) -> bool {
        self.connection(id).is_none_or(Connection::is_deaf)
    }

    /// Takes in a packet of the guest's. Its payload has the length the header says.
    pub fn receive(&mut self, packet: &Header) -> Incoming {
        if packet.src_cid != self.cid {
            // Whoever that is, an answer would not reach it.
            return Incoming::Nothing;
        }
        let key = Key { guest: packet.src_port, host: packet.dst_port };
        let ours = packet.dst_cid == HOST_CID && packet.kind == STREAM;
        if !ours {
            self.refuse(packet);
            return Incoming::Nothing;
        }
        if let Some(&id) = self.keys.get(&key) {
            let heard = self.update(id, |c| c.hear(packet)).unwrap_or(Heard::Nothing);
            return Incoming::Heard(id, heard);
        }
        if packet.op == op::REQUEST && self.len() < MAX_CONNECTIONS {
            return Incoming::Connect(packet.dst_port);
        }
        self.refuse(packet);
        Incoming::Nothing
    }

    /// The host's side of the connection that `request` asked for is there.
    pub fn accept(&mut self, request: &Header) -> Id {
        let key = Key { guest: request.src_port, host: request.dst_port };
        self.insert(Connection::answer(key, request))
    }

    /// Answers a packet by an RST; one that is an RST itself is not answered.
    pub fn refuse(&mut self, packet: &Header) {
        if packet.op == op::RST {
            return;
        }
        self.refusals.push_back(Header {
            src_cid: packet.dst_cid,
            dst_cid: packet.src_cid,
            src_port: packet.dst_port,
            dst_port: packet.src_port,
            // The spec's only other answer to a kind that is not known (§5.10.6.4.2) is the same.
            kind: packet.kind,
            op: op::RST,
            ..Header::default()
        });
    }

    /// The host's side took `count` bytes of the guest's.
    pub fn forwarded(&mut self, id: Id, count: u32) {
        self.update(id, |c| c.forwarded(count));
    }

    /// The host's side has (or has no) bytes or an end to read.
    pub fn readable(&mut self, id: Id, readable: bool) {
        self.update(id, |c| c.set_readable(readable));
    }

    /// The host does less from now on: flags of [`super::packet::shut`].
    pub fn host_ends(&mut self, id: Id, flags: u32) {
        self.update(id, |c| c.host_ends(flags));
    }

    /// Ends a connection by an RST.
    pub fn reset(&mut self, id: Id) {
        self.update(id, Connection::reset);
    }

    /// The host's side is closed for good.
    pub fn host_closed(&mut self, id: Id) {
        if let Some(slot) = self.slot(id) {
            slot.host = false;
        }
        self.update(id, |_| ());
    }

    /// The next packet for the guest.
    pub fn next(&mut self) -> Option<Next> {
        if let Some(refusal) = self.refusals.pop_front() {
            return Some(Next::Control(refusal));
        }
        while let Some(id) = self.line.pop_front() {
            let Some(slot) = self.slot(id) else { continue };
            slot.queued = false;
            match slot.connection.owed() {
                // Perhaps it is over and has only stood in the line still.
                None => drop(self.update(id, |_| ())),
                Some(Owed::Data(limit)) => return Some(Next::Data { id, limit }),
                Some(Owed::Control(op, flags)) => {
                    return self.say(id, op, flags, 0).map(Next::Control);
                }
            }
        }
        None
    }

    /// `count` bytes of the host's go out: behind this header.
    pub fn sent(&mut self, id: Id, count: u32) -> Option<Header> {
        self.say(id, op::RW, 0, count)
    }

    fn say(&mut self, id: Id, op: u16, flags: u32, len: u32) -> Option<Header> {
        let cid = self.cid;
        self.update(id, |connection| {
            let (buf_alloc, fwd_cnt) = connection.say(op, flags, len);
            let key = connection.key();
            Header {
                src_cid: HOST_CID,
                dst_cid: cid,
                src_port: key.host,
                dst_port: key.guest,
                len,
                kind: STREAM,
                op,
                flags,
                buf_alloc,
                fwd_cnt,
            }
        })
    }

    fn connection(&self, id: Id) -> Option<&Connection> {
        Some(&self.slots.get(id as usize)?.as_ref()?.connection)
    }

    fn slot(&mut self, id: Id) -> Option<&mut Slot> {
        self.slots.get_mut(id as usize)?.as_mut()
    }

    fn insert(&mut self, connection: Connection) -> Id {
        let key = connection.key();
        let slot = Some(Slot { connection, host: true, queued: false });
        let id = match self.free.pop() {
            Some(id) => {
                if let Some(place) = self.slots.get_mut(id as usize) {
                    *place = slot;
                }
                id
            }
            None => {
                self.slots.push(slot);
                // At most MAX_CONNECTIONS, so the cast keeps the number.
                (self.slots.len() - 1) as Id
            }
        };
        self.keys.insert(key, id);
        self.update(id, |_| ());
        id
    }

    /// Changes a connection, and then what follows: its place in the line, its ports, its slot.
    fn update<T>(&mut self, id: Id, change: impl FnOnce(&mut Connection) -> T) -> Option<T> {
        let slot = self.slots.get_mut(id as usize)?.as_mut()?;
        let was_over = slot.connection.is_over();
        let result = change(&mut slot.connection);
        if !slot.queued && slot.connection.owed().is_some() {
            slot.queued = true;
            self.line.push_back(id);
        }
        let over = slot.connection.is_over();
        let free = over && !slot.host && !slot.queued;
        if over && !was_over {
            self.keys.remove(&slot.connection.key());
        }
        if free {
            if let Some(place) = self.slots.get_mut(id as usize) {
                *place = None;
            }
            self.free.push(id);
        }
        Some(result)
    }
}

#[cfg(test)]
mod tests;
