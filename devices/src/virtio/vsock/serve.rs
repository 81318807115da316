//! What runs in the worker: the host's sockets always, the guest's queues while it has them.

use event_manager::{EventOps, Events, MutEventSubscriber};
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::epoll::EventSet;

use super::ends::Ends;
use super::token::Token;
use crate::virtio::gather;
use crate::virtio::interrupt::Interrupt;
use crate::virtio::queue::{Answer, Queue, QueueState, Round};

/// `VIRTIO_VSOCK_EVENT_TRANSPORT_RESET` (virtio 1.3 §5.10.6.7).
const TRANSPORT_RESET: [u8; 4] = 0u32.to_le_bytes();

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
