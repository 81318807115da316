//! One connection as a state machine: what the guest said, what it is owed, and the credit of both
//! sides. It knows no descriptors and no rings, and it allocates nothing.
//!
//! ```text
//! host connects:   Asking ─REQUEST─▶ Asked ◀─RESPONSE─ guest          any ──▶ Resetting ─RST─▶ Over
//! guest connects:  Answering ─RESPONSE─▶ Open ◀──┘                    any ◀─RST─ guest ──────▶ Over
//! ```
//!
//! Credit (virtio 1.3 §5.10.6.3): each side tells how much room it has (`buf_alloc`) and how much it
//! has consumed (`fwd_cnt`, modulo 2^32); the other may have at most `buf_alloc` bytes on the way.

use super::packet::{Header, op, shut};

/// Bytes the guest may send before the host has taken them: what one connection can make us keep.
pub const ROOM: u32 = 128 << 10;

/// The two ports by which a connection is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Key {
    /// The guest's.
    pub guest: u32,
    /// The host's.
    pub host: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// The guest is owed a REQUEST.
    Asking,
    /// The guest owes an answer.
    Asked,
    /// The guest is owed a RESPONSE.
    Answering,
    Open,
    /// The guest is owed an RST.
    Resetting,
    /// The guest knows of nothing any more.
    Over,
}

/// What a packet of the guest's means for the host's side of the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Heard {
    /// Nothing.
    Nothing,
    /// The guest accepted: the host's side is up.
    Opened,
    /// The guest refused.
    Refused,
    /// The packet's payload is for the host; [`Connection::forwarded`] says when it took it.
    Data,
    /// The host's side should be told that the guest does less from now on: [`shut`] flags.
    Shut(u32),
    /// The connection is over: what was kept for the host is still written, then it is closed.
    Closed,
}

/// What the guest is to be told next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Owed {
    /// A packet without payload: its operation and flags.
    Control(u16, u32),
    /// Up to so many bytes of the host's.
    Data(u32),
}

/// A connection.
#[derive(Debug)]
pub struct Connection {
    key: Key,
    phase: Phase,
    /// The host has bytes, or an end, to read.
    readable: bool,
    /// What the host does no more, and what of it the guest was told: [`shut`] flags.
    host: u32,
    told: u32,
    /// What the guest does no more.
    guest: u32,
    /// From the guest: bytes it sent, those the host took, and how many of these it was told.
    received: u32,
    taken: u32,
    taken_told: u32,
    update_owed: bool,
    /// To the guest: bytes sent, those it consumed, its room.
    sent: u32,
    consumed: u32,
    room: u32,
    /// The guest was asked for its credit and has had none since.
    asked_credit: bool,
}

impl Connection {
    fn new(key: Key, phase: Phase) -> Connection {
        Connection {
            key,
            phase,
            readable: false,
            host: 0,
            told: 0,
            guest: 0,
            received: 0,
            taken: 0,
            taken_told: 0,
            update_owed: false,
            sent: 0,
            consumed: 0,
            room: 0,
            asked_credit: false,
        }
    }

    /// A connection that the host asks the guest for.
    pub fn ask(key: Key) -> Connection {
        Connection::new(key, Phase::Asking)
    }

    /// A connection that the guest asked for by `request`, and has got.
    pub fn answer(key: Key, request: &Header) -> Connection {
        let mut connection = Connection::new(key, Phase::Answering);
        connection.learn_credit(request);
        connection
    }

    /// Its ports.
    pub fn key(&self) -> Key {
        self.key
    }

    /// Whether the guest knows nothing of it any more.
    pub fn is_over(&self) -> bool {
        self.phase == Phase::Over
    }

    /// Whether the guest has not yet answered the host.
    pub fn is_asking(&self) -> bool {
        matches!(self.phase, Phase::Asking | Phase::Asked)
    }

    /// Whether nothing is read from the host any more.
    pub fn is_deaf(&self) -> bool {
        self.guest & shut::RECEIVE != 0 || self.host & shut::SEND != 0
    }

    /// Takes in a packet of the guest's, which is for this connection. What breaks the protocol
    /// ends the connection.
    pub fn hear(&mut self, packet: &Header) -> Heard {
        if self.phase == Phase::Over {
            return Heard::Nothing;
        }
        if packet.op == op::RST {
            let heard = match self.phase {
                Phase::Asking | Phase::Asked => Heard::Refused,
                Phase::Resetting => Heard::Nothing,
                _ => Heard::Closed,
            };
            self.phase = Phase::Over;
            return heard;
        }
        if self.phase == Phase::Resetting {
            return Heard::Nothing;
        }
        self.learn_credit(packet);
        match (self.phase, packet.op) {
            (Phase::Asked, op::RESPONSE) => {
                self.phase = Phase::Open;
                Heard::Opened
            }
            (Phase::Open, op::RW) => self.hear_data(packet.len),
            (Phase::Open, op::SHUTDOWN) => {
                let new = packet.flags & shut::BOTH & !self.guest;
                self.guest |= new;
                if self.guest == shut::BOTH { self.violated() } else { Heard::Shut(new) }
            }
            (Phase::Open, op::CREDIT_UPDATE) => Heard::Nothing,
            (Phase::Open, op::CREDIT_REQUEST) => {
                self.update_owed = true;
                Heard::Nothing
            }
            // A REQUEST for ports that are in use, an operation nobody knows, or one out of turn.
            _ => self.violated(),
        }
    }

    fn hear_data(&mut self, len: u32) -> Heard {
        let kept = self.received.wrapping_sub(self.taken);
        if self.guest & shut::SEND != 0 || len > ROOM - kept.min(ROOM) {
            return self.violated();
        }
        self.received = self.received.wrapping_add(len);
        if self.host & shut::RECEIVE != 0 {
            // It crossed our SHUTDOWN: nobody will take it.
            self.forwarded(len);
            return Heard::Nothing;
        }
        if len == 0 { Heard::Nothing } else { Heard::Data }
    }

    /// The connection ends by an RST; a clean end does too (virtio 1.3 §5.10.6.5).
    fn violated(&mut self) -> Heard {
        self.reset();
        Heard::Closed
    }

    fn learn_credit(&mut self, packet: &Header) {
        self.room = packet.buf_alloc;
        self.consumed = packet.fwd_cnt;
        // A guest without room answers that it has none: asked again and again, it and we would do
        // nothing else. It tells by itself when it has some.
        self.asked_credit &= self.credit() == 0;
    }

    /// Bytes the guest has room for. A guest that claims to have consumed what was never sent gets
    /// nothing.
    fn credit(&self) -> u32 {
        self.room.saturating_sub(self.sent.wrapping_sub(self.consumed))
    }

    /// The host has taken `count` bytes of the guest's.
    pub fn forwarded(&mut self, count: u32) {
        self.taken = self.taken.wrapping_add(count);
        // As the guest sees it, half of its room is in use that is not: it may be waiting.
        if self.taken != self.taken_told && self.received.wrapping_sub(self.taken_told) > ROOM / 2 {
            self.update_owed = true;
        }
    }

    /// The host has (or has no) bytes or an end to read.
    pub fn set_readable(&mut self, readable: bool) {
        self.readable = readable;
    }

    /// The host does less from now on: [`shut`] flags.
    pub fn host_ends(&mut self, flags: u32) {
        self.host |= flags & shut::BOTH;
        if self.host == shut::BOTH && self.is_asking() {
            // It did not wait for the answer.
            self.reset();
        }
    }

    /// Ends the connection by an RST, which is owed then unless the guest knows nothing of it.
    pub fn reset(&mut self) {
        self.phase = match self.phase {
            Phase::Asking | Phase::Over => Phase::Over,
            _ => Phase::Resetting,
        };
    }

    /// What the guest is owed, if anything.
    pub fn owed(&self) -> Option<Owed> {
        match self.phase {
            Phase::Asking => Some(Owed::Control(op::REQUEST, 0)),
            Phase::Answering => Some(Owed::Control(op::RESPONSE, 0)),
            Phase::Resetting => Some(Owed::Control(op::RST, 0)),
            Phase::Asked | Phase::Over => None,
            Phase::Open if self.host & !self.told != 0 => {
                Some(Owed::Control(op::SHUTDOWN, self.host))
            }
            Phase::Open => {
                let credit = self.credit();
                let waiting = self.readable && !self.is_deaf();
                if waiting && credit > 0 && !self.update_owed {
                    Some(Owed::Data(credit))
                } else if self.update_owed {
                    Some(Owed::Control(op::CREDIT_UPDATE, 0))
                } else if waiting && !self.asked_credit {
                    Some(Owed::Control(op::CREDIT_REQUEST, 0))
                } else {
                    None
                }
            }
        }
    }

    /// The packet for what was owed is on its way: `len` bytes of payload. Gives the credit to
    /// write into its header: room, and bytes taken.
    pub fn say(&mut self, op: u16, flags: u32, len: u32) -> (u32, u32) {
        match op {
            op::REQUEST => self.phase = Phase::Asked,
            op::RESPONSE => self.phase = Phase::Open,
            op::RST => self.phase = Phase::Over,
            op::SHUTDOWN => self.told |= flags,
            op::CREDIT_REQUEST => self.asked_credit = true,
            _ => self.sent = self.sent.wrapping_add(len),
        }
        self.update_owed = false;
        self.taken_told = self.taken;
        (ROOM, self.taken)
    }
}

#[cfg(test)]
mod tests;
