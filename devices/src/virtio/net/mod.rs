//! The network device (virtio 1.3 §5.1): a receive and a transmit queue over a TAP.
//!
//! Frames go between the TAP and guest memory in one system call, with no copy of ours. Nothing
//! here blocks: the TAP is watched edge-triggered, and a direction that cannot go on waits for its
//! doorbell (receive buffers) or for the TAP (room to send). A round is bounded and rings its own
//! doorbell, so other tasks of the worker get their turn.

pub mod backend;
mod rx;
pub mod tap;
#[cfg(test)]
mod tests;

use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use event_manager::{EventOps, Events, MutEventSubscriber};
use virtio_bindings::bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_ECN, VIRTIO_NET_F_GUEST_TSO4,
    VIRTIO_NET_F_GUEST_TSO6, VIRTIO_NET_F_HOST_ECN, VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6,
    VIRTIO_NET_F_MAC, VIRTIO_NET_F_MRG_RXBUF, VIRTIO_NET_F_STATUS, VIRTIO_NET_S_LINK_UP,
};
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::epoll::EventSet;

use super::device::{Activation, StartError, VirtioDevice, read_config_bytes};
use super::interrupt::Interrupt;
use super::queue::{Answer, Chain, Queue, QueueState};
use crate::worker::{Task, WorkerHandle};
use backend::NetBackend;
use rx::Rx;

/// Device type 1, virtio 1.3 §5.
const DEVICE_TYPE: u32 = 1;
const QUEUE_SIZES: [u16; 2] = [256, 256];
const RX: usize = 0;
/// Chains of one transmit round.
const TX_ROUND: u16 = 64;
/// `virtio_net_hdr` with `num_buffers`: always that long for a virtio 1.x device (§5.1.6).
pub(super) const HEADER_LEN: usize = 12;
/// Header, Ethernet header with one VLAN tag, and the largest IP packet.
pub(super) const MAX_FRAME: usize = HEADER_LEN + 18 + 65535;

const FEATURES: u64 = 1 << VIRTIO_NET_F_CSUM
    | 1 << VIRTIO_NET_F_GUEST_CSUM
    | 1 << VIRTIO_NET_F_GUEST_TSO4
    | 1 << VIRTIO_NET_F_GUEST_TSO6
    | 1 << VIRTIO_NET_F_GUEST_ECN
    | 1 << VIRTIO_NET_F_HOST_TSO4
    | 1 << VIRTIO_NET_F_HOST_TSO6
    | 1 << VIRTIO_NET_F_HOST_ECN
    | 1 << VIRTIO_NET_F_MRG_RXBUF
    | 1 << VIRTIO_NET_F_MAC
    | 1 << VIRTIO_NET_F_STATUS;

/// The device; it runs on a worker between start and stop.
pub struct Net {
    tap: Arc<dyn NetBackend>,
    /// `virtio_net_config`: the MAC address and the status (virtio 1.3 §5.1.4).
    config: [u8; 8],
    worker: WorkerHandle,
    task: Option<Task<Serve>>,
}

impl Net {
    /// A network card called `id`, in front of `backend`. Without a `mac` it gets [`mac_of`] its id.
    pub fn new(
        id: &str,
        backend: impl NetBackend + 'static,
        mac: Option<[u8; 6]>,
        worker: WorkerHandle,
    ) -> Net {
        let [a, b, c, d, e, f] = mac.unwrap_or_else(|| mac_of(id));
        let [low, high] = (VIRTIO_NET_S_LINK_UP as u16).to_le_bytes();
        let config = [a, b, c, d, e, f, low, high];
        Net { tap: Arc::new(backend), config, worker, task: None }
    }
}

/// The address of the card called `id`: the same for the same id, locally administered, unicast.
/// The first byte is 0x52 (whose two low bits say so), the others are the low 40 bits of the id's
/// 64-bit FNV-1a hash, lowest first.
pub fn mac_of(id: &str) -> [u8; 6] {
    let hash = id.bytes().fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3)
    });
    let [a, b, c, d, e, ..] = hash.to_le_bytes();
    [0x52, a, b, c, d, e]
}

impl VirtioDevice for Net {
    fn device_type(&self) -> u32 {
        DEVICE_TYPE
    }

    fn features(&self) -> u64 {
        FEATURES
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_config_bytes(&self.config, offset, data);
    }

    fn start(&mut self, activation: Activation) -> Result<(), StartError> {
        let Activation { features, queues, memory, interrupt } = activation;
        let offloads = self.tap.set_offloads(features);
        offloads.map_err(|source| StartError::Host { what: "TUNSETOFFLOAD", source })?;
        let mergeable = features & 1 << VIRTIO_NET_F_MRG_RXBUF != 0;
        let (mut rx, mut tx) = (None, None);
        for (index, queue) in queues.into_iter().enumerate() {
            let Some(mut queue) = queue else { continue };
            queue.ring();
            if index == RX {
                rx = Some(Rx::new(queue, self.tap.clone(), mergeable));
            } else {
                queue.set_budget(TX_ROUND);
                tx = Some(Tx { queue, blocked: false, dropped: 0 });
            }
        }
        let serve = Serve { tap: self.tap.clone(), rx, tx, memory, interrupt };
        self.task = Some(self.worker.add(serve)?);
        Ok(())
    }

    fn stop(&mut self) -> Vec<QueueState> {
        let Some(task) = self.task.take().and_then(Task::take) else { return Vec::new() };
        let rx = task.rx.as_ref().map(|rx| rx.queue.state());
        let tx = task.tx.as_ref().map(|tx| tx.queue.state());
        rx.into_iter().chain(tx).collect()
    }
}

/// What runs in the worker.
struct Serve {
    tap: Arc<dyn NetBackend>,
    rx: Option<Rx>,
    tx: Option<Tx>,
    memory: GuestMemoryMmap,
    interrupt: Interrupt,
}

impl MutEventSubscriber for Serve {
    fn init(&mut self, ops: &mut EventOps) {
        let bells = [
            self.rx.as_ref().map(|rx| rx.queue.doorbell()),
            self.tx.as_ref().map(|tx| tx.queue.doorbell()),
        ];
        let mut added = Ok(());
        for bell in bells.into_iter().flatten() {
            added = added.and_then(|()| ops.add(Events::new(bell, EventSet::IN)));
        }
        // One event for each change, so that neither a frame nobody can take nor a TAP that was
        // deleted keeps the loop awake.
        let edges = EventSet::IN | EventSet::OUT | EventSet::EDGE_TRIGGERED;
        added = added.and_then(|()| ops.add(Events::new_raw(self.tap.as_raw_fd(), edges)));
        if let Err(e) = added {
            self.interrupt.needs_reset(&e);
        }
    }

    fn process(&mut self, events: Events, _ops: &mut EventOps) {
        let Serve { tap, rx, tx, memory, interrupt } = self;
        let from_tap = events.fd() == tap.as_raw_fd();
        if let Some(rx) = rx {
            let rung = events.fd() == rx.queue.doorbell().as_raw_fd();
            if rung {
                rx.queue.quiet();
                rx.refilled();
            }
            if rung || from_tap {
                rx.run(memory, interrupt);
            }
        }
        if let Some(tx) = tx {
            let rung = events.fd() == tx.queue.doorbell().as_raw_fd();
            if rung {
                tx.queue.quiet();
            }
            if rung || from_tap && tx.blocked {
                tx.run(tap.as_ref(), memory, interrupt);
            }
        }
    }
}

/// From the guest to the TAP (virtio 1.3 §5.1.6.2).
struct Tx {
    queue: Queue,
    /// The TAP had no room; its next event goes on.
    blocked: bool,
    dropped: u64,
}

impl Tx {
    fn run(&mut self, tap: &dyn NetBackend, memory: &GuestMemoryMmap, interrupt: &Interrupt) {
        self.blocked = false;
        let Tx { queue, blocked, dropped } = self;
        queue.process(memory, interrupt, |chain| match send(tap, chain) {
            Ok(()) => Answer::Done(0),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                *blocked = true;
                Answer::Stop
            }
            // What the host will not have (a bad header, too long, no link, no TAP) is lost, as
            // on a wire.
            Err(_) => {
                *dropped += 1;
                interrupt.counters().add_error();
                Answer::Done(0)
            }
        });
    }
}

impl Drop for Tx {
    fn drop(&mut self) {
        if self.dropped > 0 {
            log::debug!("{} frames from the guest dropped", self.dropped);
        }
    }
}

fn send(tap: &dyn NetBackend, chain: &mut Chain<'_>) -> io::Result<()> {
    let len = chain.readable_len();
    if !(HEADER_LEN..=MAX_FRAME).contains(&len) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let frame = chain.readable_iovecs(0, len).map_err(|_| io::ErrorKind::InvalidInput)?;
    loop {
        match tap.send(&frame) {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            done => return done.map(drop),
        }
    }
}

/// Whether the host says that there is no such interface any more.
fn is_gone(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EBADFD | libc::ENODEV))
}
