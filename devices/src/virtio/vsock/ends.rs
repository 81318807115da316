//! Where both sides of the connections meet: the muxer, which speaks with the guest, and the host's
//! sockets.
//!
//! Sockets are watched edge-triggered: one event for each change, so that neither a reader that is
//! slow nor a guest without credit keeps the loop awake, and no event set is ever adjusted.

use std::io;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use event_manager::{EventOps, Events};
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::timerfd::TimerFd;

use super::connection::Heard;
use super::door::{Door, dismiss, watched};
use super::muxer::{Id, Incoming, Muxer, Next};
use super::packet::{HEADER_LEN, Header, shut};
use super::stream::{Goes, Pool, Stream};
use super::token::Token;
use crate::virtio::queue::{Answer, Chain};

/// What passed through, for the log.
#[derive(Debug, Default)]
pub struct Counters {
    /// Connections that came to be.
    pub opened: u64,
    /// Connections that were asked for in vain, by either side.
    pub refused: u64,
    /// Bytes of payload.
    pub to_guest: u64,
    /// Bytes of payload.
    pub to_host: u64,
}

/// The two sides.
pub struct Ends {
    pub muxer: Muxer,
    /// A driver has begun and not been reset since.
    pub guest_ready: bool,
    pub counters: Counters,
    door: Door,
    /// At the place of their connection's id.
    streams: Vec<Option<Stream>>,
    pool: Pool,
    /// Sockets that have become connections, from the beginning on.
    begun: u64,
    timer: TimerFd,
    timer_runs: bool,
    patience: Duration,
}

impl Ends {
    /// Without any connection. The guest gets `patience` for its answer.
    pub fn new(cid: u64, door: Door, timer: TimerFd, patience: Duration) -> Ends {
        Ends {
            muxer: Muxer::new(cid),
            guest_ready: false,
            counters: Counters::default(),
            door,
            streams: Vec::new(),
            pool: Pool::default(),
            begun: 0,
            timer,
            timer_runs: false,
            patience,
        }
    }

    /// Registers everything there is with an event loop.
    pub fn watch(&mut self, ops: &mut EventOps<'_>) -> Result<(), event_manager::Error> {
        // The timer is never read: setting it anew forgets what it has to tell.
        let events = EventSet::IN | EventSet::EDGE_TRIGGERED;
        ops.add(Events::with_data(&self.timer, Token::Timer.data(), events))?;
        self.door.watch(ops)?;
        for stream in self.streams.iter().flatten() {
            ops.add(watched(stream, stream.token))?;
        }
        Ok(())
    }

    /// The guest knows of no connection any more. `ops` is the loop that watches them, if one does.
    pub fn forget_guest(&mut self, mut ops: Option<&mut EventOps<'_>>) {
        self.guest_ready = false;
        for (place, id) in self.streams.iter_mut().zip(0..) {
            let Some(stream) = place.take() else { continue };
            if self.muxer.is_asking(id) {
                refuse(&mut self.counters, |line| stream.say(line), NOT_READY);
            }
            if let Some(ops) = &mut ops {
                // It is watched, and if it were not there would be nothing to undo.
                let _ = ops.remove(Events::empty(&stream));
            }
        }
        self.muxer.clear();
    }

    /// Accepts those who wait, as far as there is room for them.
    pub fn accept(&mut self, ops: &mut EventOps<'_>) {
        self.door.accept(ops);
        self.run_timer_for_door();
    }

    /// Accepts those for whom there was no room before.
    pub fn accept_waiting(&mut self, ops: &mut EventOps<'_>) {
        self.door.accept_waiting(ops);
        self.run_timer_for_door();
    }

    fn run_timer_for_door(&mut self) {
        if self.door.needs_time() {
            self.run_timer();
        }
    }

    fn run_timer(&mut self) {
        if !self.timer_runs {
            match self.timer.reset(self.patience / 10, None) {
                Ok(()) => self.timer_runs = true,
                Err(e) => self.door.complain(&e),
            }
        }
    }

    /// The timer says that time has passed.
    pub fn tick(&mut self, ops: &mut EventOps<'_>) {
        self.timer_runs = false;
        let now = Instant::now();
        let mut waiting = false;
        self.counters.refused += self.door.tick(now, ops);
        for id in 0..self.streams.len() as Id {
            let Some(Some(stream)) = self.streams.get(id as usize) else { continue };
            match stream.deadline {
                Some(deadline) if deadline <= now => {
                    refuse(
                        &mut self.counters,
                        |line| stream.say(line),
                        "ERROR the guest does not answer\n",
                    );
                    self.muxer.reset(id);
                    self.close(id, ops);
                }
                deadline => waiting |= deadline.is_some(),
            }
        }
        if waiting || self.door.needs_time() {
            self.run_timer();
        }
    }

    /// A peer has said more.
    pub fn shake(&mut self, n: u32, ops: &mut EventOps<'_>) {
        let Some((socket, wanted)) = self.door.listen(n) else { return };
        let why = match wanted {
            Ok(_) if !self.guest_ready => NOT_READY,
            Ok(port) => match self.muxer.connect(port) {
                Some(id) => return self.begin(id, socket, ops),
                None => "ERROR there are too many connections\n",
            },
            Err(why) => why,
        };
        self.counters.refused += 1;
        dismiss(socket, ops, why);
    }

    /// A peer's socket becomes a connection that the guest is asked for.
    fn begin(&mut self, id: Id, socket: UnixStream, ops: &mut EventOps<'_>) {
        // Changing what is watched also brings an event for what came meanwhile.
        let token = self.next_token(id);
        let watching = ops.modify(watched(&socket, token));
        let deadline = Instant::now() + self.patience;
        self.put(id, Stream::new(socket, token, Some(deadline)));
        self.run_timer();
        self.give_up_unless(watching, id, ops);
    }

    /// A socket that is not watched is none.
    fn give_up_unless(
        &mut self,
        watching: Result<(), event_manager::Error>,
        id: Id,
        ops: &mut EventOps<'_>,
    ) {
        if let Err(e) = watching {
            self.door.complain(&e);
            self.muxer.reset(id);
            self.close(id, ops);
        }
    }

    fn next_token(&mut self, id: Id) -> Token {
        self.begun += 1;
        Token::stream(id, self.begun)
    }

    fn put(&mut self, id: Id, stream: Stream) {
        let at = id as usize;
        if self.streams.len() <= at {
            self.streams.resize_with(at + 1, || None);
        }
        if let Some(place) = self.streams.get_mut(at) {
            *place = Some(stream);
        }
    }

    fn stream(&mut self, id: Id) -> Option<&mut Stream> {
        self.streams.get_mut(id as usize)?.as_mut()
    }

    /// Something happened to a host's socket.
    pub fn happened(&mut self, id: Id, token: Token, events: EventSet, ops: &mut EventOps<'_>) {
        let Some(stream) = self.stream(id).filter(|stream| stream.token == token) else { return };
        stream.hung_up |= events.intersects(EventSet::HANG_UP | EventSet::ERROR);
        let hung_up = stream.hung_up;
        self.flush(id, ops);
        self.muxer.readable(id, true);
        let deaf = self.muxer.is_deaf(id);
        let ending = self.stream(id).is_none_or(|stream| stream.is_ending());
        if hung_up && (deaf || ending || self.muxer.is_asking(id)) {
            // Otherwise the end is found by reading, after what comes before it.
            self.muxer.host_ends(id, shut::BOTH);
            self.close(id, ops);
        }
    }

    fn flush(&mut self, id: Id, ops: &mut EventOps<'_>) {
        let Some(Some(stream)) = self.streams.get_mut(id as usize) else { return };
        let kept = stream.kept();
        if kept == 0 {
            return;
        }
        let taken = match stream.flush(&mut self.pool) {
            Ok(count) => count,
            Err(_) => {
                self.muxer.host_ends(id, shut::RECEIVE);
                kept
            }
        };
        if stream.settle() == Goes::Away {
            self.close(id, ops);
        }
        // At most the ring's size, so the cast keeps the number.
        self.muxer.forwarded(id, taken as u32);
    }

    /// Closes the host's side.
    fn close(&mut self, id: Id, ops: &mut EventOps<'_>) {
        let Some(mut stream) = self.streams.get_mut(id as usize).and_then(Option::take) else {
            return;
        };
        stream.discard(&mut self.pool);
        // It is watched, and if it were not there would be nothing to undo.
        let _ = ops.remove(Events::empty(&stream));
        self.muxer.host_closed(id);
        self.door.has_means();
    }

    /// Takes a packet of the guest's.
    pub fn take(&mut self, chain: &mut Chain<'_>, ops: &mut EventOps<'_>) -> Answer {
        if !self.muxer.may_receive() {
            return Answer::Stop;
        }
        let mut header = [0; HEADER_LEN];
        if chain.copy_to(0, &mut header).is_err() {
            return Answer::Broken("a packet without a header");
        }
        let header = Header::decode(&header);
        let len = header.len as usize;
        if len > chain.readable_len() - HEADER_LEN {
            return Answer::Broken("a packet with less payload than its header says");
        }
        match self.muxer.receive(&header) {
            Incoming::Nothing => {}
            Incoming::Connect(port) => self.connect(port, &header, ops),
            Incoming::Heard(id, heard) => self.heard(id, heard, chain, len, ops),
        }
        Answer::Done(0)
    }

    /// The guest wants to reach `port` of the host's.
    fn connect(&mut self, port: u32, request: &Header, ops: &mut EventOps<'_>) {
        let Ok(socket) = self.door.connect(port) else {
            self.counters.refused += 1;
            self.muxer.refuse(request);
            return;
        };
        let id = self.muxer.accept(request);
        let token = self.next_token(id);
        let watching = ops.add(watched(&socket, token));
        self.put(id, Stream::new(socket, token, None));
        self.counters.opened += 1;
        self.give_up_unless(watching, id, ops);
    }

    fn heard(
        &mut self,
        id: Id,
        heard: Heard,
        chain: &mut Chain<'_>,
        len: usize,
        ops: &mut EventOps<'_>,
    ) {
        let key = self.muxer.key(id);
        let Some(Some(stream)) = self.streams.get_mut(id as usize) else { return };
        let goes = match heard {
            Heard::Nothing => Goes::On,
            Heard::Opened => {
                stream.deadline = None;
                self.counters.opened += 1;
                let port = key.map_or(0, |key| key.host);
                if stream.say(&format!("OK {port}\n")).is_ok() {
                    Goes::On
                } else {
                    self.muxer.host_ends(id, shut::BOTH);
                    Goes::Away
                }
            }
            Heard::Refused => {
                let port = key.map_or(0, |key| key.guest);
                let why = format!("ERROR the guest refuses port {port}\n");
                refuse(&mut self.counters, |line| stream.say(line), &why);
                Goes::Away
            }
            Heard::Data => {
                self.counters.to_host += len as u64;
                let taken = match stream.write(chain, len, &mut self.pool) {
                    Ok(taken) => taken,
                    Err(_) => {
                        let lost = stream.kept();
                        stream.discard(&mut self.pool);
                        self.muxer.host_ends(id, shut::RECEIVE);
                        lost + len
                    }
                };
                // At most the credit the guest had, so the cast keeps the number.
                self.muxer.forwarded(id, taken as u32);
                Goes::On
            }
            Heard::Shut(flags) => {
                if flags & shut::RECEIVE != 0 {
                    stream.end_reading();
                }
                if flags & shut::SEND != 0 { stream.end_writing() } else { Goes::On }
            }
            Heard::Closed => stream.end(),
        };
        if goes == Goes::Away {
            self.close(id, ops);
        }
    }

    /// Fills a receive buffer of the guest's with the next packet for it.
    pub fn give(&mut self, chain: &mut Chain<'_>, ops: &mut EventOps<'_>) -> Answer {
        let room = match chain.writable_len().checked_sub(HEADER_LEN) {
            None | Some(0) => return Answer::Broken("a receive buffer too small for a packet"),
            Some(room) => room,
        };
        while let Some(next) = self.muxer.next() {
            let header = match next {
                Next::Control(header) => Some(header),
                Next::Data { id, limit } => self.read(id, chain, room.min(limit as usize), ops),
            };
            if let Some(header) = header {
                return match chain.copy_from(0, &header.encode()) {
                    Ok(()) => Answer::Done(HEADER_LEN as u32 + header.len),
                    Err(_) => Answer::Broken("a receive buffer too small for a packet"),
                };
            }
        }
        Answer::Stop
    }

    /// Reads from the host into the payload; `None` when nothing came of it.
    fn read(
        &mut self,
        id: Id,
        chain: &mut Chain<'_>,
        limit: usize,
        ops: &mut EventOps<'_>,
    ) -> Option<Header> {
        let Some(Some(stream)) = self.streams.get(id as usize) else {
            self.muxer.readable(id, false);
            return None;
        };
        match stream.read(chain, limit) {
            Ok(0) => {
                let hung_up = stream.hung_up;
                self.muxer.host_ends(id, if hung_up { shut::BOTH } else { shut::SEND });
                if hung_up {
                    self.close(id, ops);
                }
                None
            }
            Ok(count) => {
                self.counters.to_guest += count as u64;
                // At most the credit, so the cast keeps the number.
                self.muxer.sent(id, count as u32)
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {
                self.muxer.readable(id, true);
                None
            }
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                self.muxer.readable(id, false);
                None
            }
            Err(_) => {
                self.muxer.host_ends(id, shut::BOTH);
                self.close(id, ops);
                None
            }
        }
    }
}

impl Drop for Ends {
    fn drop(&mut self) {
        log::debug!("vsock: {:?}", self.counters);
    }
}

const NOT_READY: &str = "ERROR the guest is not ready\n";

/// Counts a connection that does not come to be, and tells its peer.
fn refuse(counters: &mut Counters, say: impl FnOnce(&str) -> io::Result<()>, why: &str) {
    counters.refused += 1;
    // A peer that has gone need not know.
    let _ = say(why);
}
