//! What runs in the worker: the host's sockets always, the guest's queues while it has them.

use event_manager::{EventOps, Events, MutEventSubscriber};
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::epoll::EventSet;

use super::ends::Ends;
use super::muxer::{Id, MAX_CONNECTIONS};
use crate::virtio::gather;
use crate::virtio::interrupt::Interrupt;
use crate::virtio::queue::{Answer, Queue, QueueState, Round};

/// `VIRTIO_VSOCK_EVENT_TRANSPORT_RESET` (virtio 1.3 §5.10.6.7).
const TRANSPORT_RESET: [u8; 4] = 0u32.to_le_bytes();

/// Whom an event of the loop is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Token {
    /// A connection's socket, and which one of those that have had its place: an event may come to
    /// light when the next one has it.
    Stream(Id, u32),
    /// The socket of a peer that has not said its line.
    Handshake(u32),
    /// The listening socket.
    Listener,
    /// The timer.
    Timer,
    /// A queue's doorbell.
    Bell(u32),
}

/// Bits of a connection's place in a token, and of what follows it.
const ID_BITS: u32 = MAX_CONNECTIONS.ilog2();
const TURN_BITS: u32 = 24 - ID_BITS;

impl Token {
    /// The socket of the connection `id`, the `count`th that husk has begun.
    pub fn stream(id: Id, count: u64) -> Token {
        Token::Stream(id, count as u32 & ((1 << TURN_BITS) - 1))
    }

    /// As the loop keeps it: the kind in the top byte, the number below.
    pub fn data(self) -> u32 {
        match self {
            Token::Stream(id, turn) => turn << ID_BITS | id,
            Token::Handshake(n) => 1 << 24 | n,
            Token::Listener => 2 << 24,
            Token::Timer => 3 << 24,
            Token::Bell(n) => 4 << 24 | n,
        }
    }

    fn of(data: u32) -> Option<Token> {
        let n = data & 0xff_ffff;
        match data >> 24 {
            0 => Some(Token::Stream(n & (MAX_CONNECTIONS as u32 - 1), n >> ID_BITS)),
            1 => Some(Token::Handshake(n)),
            2 => Some(Token::Listener),
            3 => Some(Token::Timer),
            4 => Some(Token::Bell(n)),
            _ => None,
        }
    }
}

/// The guest's side while the device runs.
pub struct Queues {
    pub memory: GuestMemoryMmap,
    pub interrupt: Interrupt,
    /// Receive, transmit, event (virtio 1.3 §5.10.2); those that the driver enabled.
    pub queues: [Option<Queue>; 3],
    /// The driver is to be told that all its connections are gone.
    pub reset_owed: bool,
}

/// The transmit queue among them.
const TX: usize = 1;

impl Queues {
    /// Where each queue stands that the driver enabled.
    pub fn states(&self) -> Vec<QueueState> {
        self.queues.iter().flatten().map(Queue::state).collect()
    }
}

/// The task.
pub struct Serve {
    pub ends: Ends,
    pub guest: Option<Queues>,
    /// Packets of the guest's wait until there is room for answers.
    tx_waits: bool,
}

impl Serve {
    /// Without a guest.
    pub fn new(ends: Ends) -> Serve {
        Serve { ends, guest: None, tx_waits: false }
    }

    /// Serves the guest from now on.
    pub fn begin(&mut self, guest: Queues) {
        self.ends.guest_ready = matches!(guest.queues, [Some(_), Some(_), _]);
        self.guest = Some(guest);
        self.tx_waits = false;
    }

    fn run(&mut self, rung: Option<usize>, ops: &mut EventOps<'_>) {
        let Serve { ends, guest: Some(guest), tx_waits } = self else { return };
        let Queues { memory, interrupt, queues: [rx, tx, event], reset_owed } = guest;
        let mut broken = false;
        if let Some(event) = event
            && *reset_owed
        {
            let round = event.process(memory, interrupt, |chain| {
                if !std::mem::take(reset_owed) {
                    return Answer::Stop;
                }
                match chain.copy_from(0, &TRANSPORT_RESET) {
                    Ok(()) => Answer::Done(TRANSPORT_RESET.len() as u32),
                    Err(_) => Answer::Broken("an event buffer too small for an event"),
                }
            });
            broken |= round == Round::Broken;
        }
        if let Some(tx) = tx
            && (rung == Some(TX) || *tx_waits)
        {
            let round = tx.process(memory, interrupt, |chain| ends.take(chain, ops));
            *tx_waits = round == Round::Stopped;
            broken |= round == Round::Broken;
        }
        if let Some(rx) = rx
            && ends.muxer.has_next()
        {
            let round = rx.process(memory, interrupt, |chain| ends.give(chain, ops));
            broken |= round == Round::Broken;
            if let Some(tx) = tx
                && *tx_waits
                && ends.muxer.may_receive()
            {
                tx.ring();
            }
        }
        if broken && ends.guest_ready {
            ends.forget_guest(Some(ops));
        }
    }
}

impl MutEventSubscriber for Serve {
    fn init(&mut self, ops: &mut EventOps) {
        if let Err(e) = self.ends.watch(ops) {
            log::error!("vsock: the host's sockets are not all watched: {e}");
        }
        let Some(guest) = &self.guest else { return };
        for (queue, n) in guest.queues.iter().zip(0..) {
            let Some(queue) = queue else { continue };
            let bell = Events::with_data(queue.doorbell(), Token::Bell(n).data(), EventSet::IN);
            if let Err(e) = ops.add(bell) {
                guest.interrupt.needs_reset(&e);
            }
        }
    }

    fn process(&mut self, events: Events, ops: &mut EventOps) {
        let mut rung = None;
        match Token::of(events.data()) {
            Some(token @ Token::Stream(id, _)) => {
                self.ends.happened(id, token, events.event_set(), ops);
            }
            Some(Token::Handshake(n)) => self.ends.shake(n, ops),
            Some(Token::Listener) => self.ends.accept(ops),
            Some(Token::Timer) => self.ends.tick(ops),
            Some(Token::Bell(n)) => {
                let n = n as usize;
                let queues = self.guest.as_ref().map(|guest| &guest.queues);
                if let Some(Some(queue)) = queues.and_then(|queues| queues.get(n)) {
                    queue.quiet();
                    if n == TX {
                        gather::at_once();
                    }
                    rung = Some(n);
                }
            }
            None => {}
        }
        self.run(rung, ops);
        self.ends.accept_waiting(ops);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_comes_back_out_of_the_loops_number() {
        for token in [
            Token::Stream(0, 0),
            Token::stream(1023, u64::MAX),
            Token::Handshake(63),
            Token::Listener,
            Token::Timer,
            Token::Bell(2),
        ] {
            assert_eq!(Token::of(token.data()), Some(token));
        }
        assert_eq!(Token::of(u32::MAX), None);
    }
}
