//! The control queue (virtio 1.3 §5.1.6.5), of which husk serves one class: how many of a card's
//! pairs of queues the driver uses (`VIRTIO_NET_CTRL_MQ`, §5.1.6.5.5).
//!
//! ```text
//! readable: class u8 | command u8 | virtqueue_pairs u16      writable: ack u8
//! ```

use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};

use event_manager::{EventOps, Events, MutEventSubscriber};
use virtio_bindings::bindings::virtio_net::{
    VIRTIO_NET_CTRL_MQ, VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET, VIRTIO_NET_ERR, VIRTIO_NET_OK,
};
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::eventfd::EventFd;

use crate::virtio::interrupt::Interrupt;
use crate::virtio::queue::{Answer, Chain, Queue, QueueState};

/// Chains of one round; a system call or more for each.
const ROUND: u16 = 8;
/// The command's two bytes and its parameter.
const COMMAND: usize = 4;

/// A queue of the host's, which gives frames or none.
pub(super) trait Source: Send + Sync {
    /// Makes it give frames, or none.
    ///
    /// # Errors
    /// The host's.
    fn turn(&self, on: bool) -> io::Result<()>;
}

/// Turns one pair on and off.
pub(super) struct Switch {
    pub source: Arc<dyn Source>,
    pub used: Arc<AtomicBool>,
    /// The pair's receive queue's: frames may have come that nobody was told of.
    pub bell: Option<EventFd>,
}

impl Switch {
    /// Makes the host's queue give frames, or none.
    ///
    /// # Errors
    /// The host's.
    pub(super) fn set(&self, on: bool) -> io::Result<()> {
        if self.used.load(Ordering::Acquire) == on {
            return Ok(());
        }
        if on {
            self.source.turn(true)?;
            self.used.store(true, Ordering::Release);
            if let Some(bell) = &self.bell {
                // Fails only when it rings already.
                let _ = bell.write(1);
            }
        } else {
            self.used.store(false, Ordering::Release);
            self.source.turn(false)?;
        }
        Ok(())
    }
}

/// What runs in the worker.
pub(super) struct Control {
    queue: Queue,
    switches: Vec<Switch>,
    /// How many pairs are used; outlives a pause.
    pairs: Arc<AtomicU16>,
    memory: GuestMemoryMmap,
    interrupt: Interrupt,
}

impl Control {
    pub(super) fn new(
        mut queue: Queue,
        switches: Vec<Switch>,
        pairs: Arc<AtomicU16>,
        memory: GuestMemoryMmap,
        interrupt: Interrupt,
    ) -> Control {
        queue.set_budget(ROUND);
        queue.ring();
        Control { queue, switches, pairs, memory, interrupt }
    }

    pub(super) fn state(&self) -> QueueState {
        self.queue.state()
    }
}

impl MutEventSubscriber for Control {
    fn init(&mut self, ops: &mut EventOps) {
        if let Err(e) = ops.add(Events::new(self.queue.doorbell(), EventSet::IN)) {
            self.interrupt.needs_reset(&e);
        }
    }

    fn process(&mut self, events: Events, _ops: &mut EventOps) {
        if events.fd() != self.queue.doorbell().as_raw_fd() {
            return;
        }
        let Control { queue, switches, pairs, memory, interrupt } = self;
        queue.quiet();
        queue.process(memory, interrupt, |chain| {
            // Checked first: a command whose answer has no place must not be carried out.
            if chain.writable_len() == 0 {
                return Answer::Broken("a control command without room for its answer");
            }
            let done = obey(chain, switches, pairs).unwrap_or_else(|e| {
                interrupt.complain(&format_args!("turning queues of the TAP on and off: {e}"));
                false
            });
            let ack = if done { VIRTIO_NET_OK } else { VIRTIO_NET_ERR } as u8;
            // There is room, as was just seen; it may be in memory that cannot be had.
            Answer::Done(chain.copy_from(0, &[ack]).is_ok().into())
        });
    }
}

/// Carries a command out; false when it is none we know, or makes no sense.
///
/// # Errors
/// The host's.
fn obey(chain: &Chain<'_>, switches: &[Switch], pairs: &AtomicU16) -> io::Result<bool> {
    let mut bytes = [0; COMMAND];
    if chain.copy_to(0, &mut bytes).is_err() {
        return Ok(false);
    }
    let [class, command, low, high] = bytes;
    let known = u32::from(class) == VIRTIO_NET_CTRL_MQ
        && u32::from(command) == VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET;
    let wanted = u16::from_le_bytes([low, high]);
    // §5.1.6.5.5.2: 0, and more than there are, is an error.
    if !known || wanted == 0 || usize::from(wanted) > switches.len() {
        return Ok(false);
    }
    set_pairs(switches, wanted)?;
    pairs.store(wanted, Ordering::Release);
    Ok(true)
}

/// Turns the first `wanted` pairs on and the others off.
///
/// # Errors
/// The host's.
pub(super) fn set_pairs(switches: &[Switch], wanted: u16) -> io::Result<()> {
    (0..).zip(switches).try_for_each(|(n, switch): (u16, _)| switch.set(n < wanted))
}
