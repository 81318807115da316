//! The network device (virtio 1.3 §5.1): pairs of a receive and a transmit queue over a backend.
//!
//! ```text
//! guest ─ rings ─ pair ─ TAP queue │ passt │ link            frames pass through a worker
//!                      └ vhost ─ TAP queue                   frames pass through the host's kernel
//!              ─ control queue                               with several pairs only
//! ```
//!
//! Frames go between the host and guest memory in one system call, with no copy of ours. The config
//! space and the features stand here; what moves frames is in [`pair`], [`rx`] and [`vhost`], and
//! knows nothing of them.

mod backend;
mod control;
mod limit;
pub mod link;
mod offload;
mod pair;
pub mod passt;
mod removal;
mod rx;
mod stream;
pub mod tap;
#[cfg(test)]
mod tests;
pub mod vhost;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::time::Instant;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use virtio_bindings::bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_CTRL_VQ, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_ECN,
    VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_GUEST_TSO6, VIRTIO_NET_F_HOST_ECN,
    VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6, VIRTIO_NET_F_MAC, VIRTIO_NET_F_MQ,
    VIRTIO_NET_F_MRG_RXBUF, VIRTIO_NET_F_MTU, VIRTIO_NET_F_STATUS, VIRTIO_NET_S_LINK_UP,
};

use super::device::{Activation, StartError, VirtioDevice, stateless};
use super::queue::{Queue, QueueState};
use super::seat::Seat;
use crate::worker::WorkerHandle;
#[cfg(any(test, feature = "testing"))]
pub(super) use backend::Plain;
pub use backend::{Backend, Received};
use control::{Control, Source, Switch};
pub use limit::{Direction, Limits};
use pair::{Pair, Parts, Status};
use removal::Removal;
use rx::Rx;
#[cfg(any(test, feature = "testing"))]
pub(super) use stream::Stream;
use tap::{Tap, TapFrames};
use vhost::{Vhost, Watch};

/// Device type 1, virtio 1.3 §5.
const DEVICE_TYPE: u32 = 1;
/// Where in the config space the link's status is (virtio 1.3 §5.1.4).
const CONFIG_STATUS: u64 = 6;
const QUEUE_SIZE: u16 = 256;
/// Commands are few, and each is answered before the driver goes on.
const CONTROL_SIZE: u16 = 64;
/// The most pairs of queues husk gives a card.
pub const MAX_PAIRS: u16 = 16;
/// `virtio_net_hdr` with `num_buffers`: always that long for a virtio 1.x device (§5.1.6).
pub(super) const HEADER_LEN: usize = 12;
/// Header, Ethernet header with one VLAN tag, and the largest IP packet.
pub(super) const MAX_FRAME: usize = HEADER_LEN + 18 + 65535;
/// The smallest and the largest MTU a device may offer (virtio 1.3 §5.1.4.1).
pub const MTU_RANGE: std::ops::RangeInclusive<u16> = 68..=65535;

const FEATURES: u64 =
    1 << VIRTIO_NET_F_MRG_RXBUF | 1 << VIRTIO_NET_F_MAC | 1 << VIRTIO_NET_F_STATUS;
/// What only a backend with headers can carry.
const OFFLOADS: u64 = 1 << VIRTIO_NET_F_CSUM
    | 1 << VIRTIO_NET_F_GUEST_CSUM
    | 1 << VIRTIO_NET_F_GUEST_TSO4
    | 1 << VIRTIO_NET_F_GUEST_TSO6
    | 1 << VIRTIO_NET_F_GUEST_ECN
    | 1 << VIRTIO_NET_F_HOST_TSO4
    | 1 << VIRTIO_NET_F_HOST_TSO6
    | 1 << VIRTIO_NET_F_HOST_ECN;

/// What a card is on the guest's side, beside its network.
#[derive(Debug, Clone, Default)]
pub struct Card {
    /// Its address; without one it gets [`mac_of`] its id.
    pub mac: Option<[u8; 6]>,
    /// The largest packet, in bytes, that the driver is to send, within [`MTU_RANGE`]; without it
    /// the driver takes 1500.
    pub mtu: Option<u16>,
    /// For each pair of queues.
    pub limits: Limits,
}

/// The device; its pairs run on workers between start and stop.
pub struct Net {
    features: u64,
    queue_sizes: Vec<u16>,
    mac: [u8; 6],
    mtu: u16,
    status: Status,
    /// How many pairs the driver uses (virtio 1.3 §5.1.6.5.5).
    pairs_used: Arc<AtomicU16>,
    /// The queues of the TAP, one a pair; empty for other backends.
    taps: Vec<Arc<Tap>>,
    pairs: Vec<PairHome>,
    control: Seat<Control>,
    /// Looks after a TAP whose frames the host's kernel moves.
    removal: Seat<Removal>,
    /// The control queue's place, while it runs.
    control_at: usize,
    /// Queues that mean nothing with the features the driver accepted, and their places.
    unserved: Vec<(usize, QueueState)>,
    workers: Vec<WorkerHandle>,
}

/// What a snapshot keeps of a card with several pairs of queues; one with a single pair has no state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct State {
    /// How many the driver uses.
    pairs: u16,
}

/// A pair, and what it is made of while it does not run.
struct PairHome {
    /// `None` while it runs, and for good when its worker ended under it.
    idle: Option<(Box<dyn Backend>, Limits)>,
    /// What is turned off while the driver does not use the pair; none where there is but one.
    source: Option<Arc<dyn Source>>,
    used: Arc<AtomicBool>,
    seat: Seat<Pair>,
    /// Serves the pair instead of a task, with what watches it.
    vhost: Option<(Vhost, Seat<Watch>)>,
}

impl PairHome {
    fn new(backend: Box<dyn Backend>, limits: Limits) -> PairHome {
        PairHome {
            idle: Some((backend, limits)),
            source: None,
            used: Arc::new(true.into()),
            seat: Seat::default(),
            vhost: None,
        }
    }
}

impl Net {
    /// A network card called `id` before `backend`, served by `worker`.
    pub fn new(id: &str, backend: Box<dyn Backend>, card: Card, worker: WorkerHandle) -> Net {
        let pairs = vec![PairHome::new(backend, card.limits.clone())];
        Net::with(id, pairs, Vec::new(), &card, vec![worker])
    }

    /// A card that has a pair of queues for each of `taps`, which are queues of one TAP; the pairs
    /// are spread over `workers`.
    pub fn over_tap(id: &str, taps: Vec<Tap>, card: Card, workers: Vec<WorkerHandle>) -> Net {
        let taps: Vec<_> = taps.into_iter().map(Arc::new).collect();
        let pairs = taps.iter().map(|tap| {
            let backend = Box::new(TapFrames(tap.clone()));
            PairHome { source: Some(tap.clone()), ..PairHome::new(backend, card.limits.clone()) }
        });
        Net::with(id, pairs.collect(), taps, &card, workers)
    }

    /// The same over sockets that stand for a TAP's queues.
    #[cfg(any(test, feature = "testing"))]
    pub(super) fn over_sockets(
        id: &str,
        sockets: Vec<std::os::fd::OwnedFd>,
        worker: WorkerHandle,
    ) -> Net {
        let home = |socket| {
            let source: Option<Arc<dyn Source>> = Some(Arc::new(backend::Always));
            PairHome { source, ..PairHome::new(Box::new(Plain(socket)), Limits::default()) }
        };
        let pairs = sockets.into_iter().map(home).collect();
        Net::with(id, pairs, Vec::new(), &Card::default(), vec![worker])
    }

    /// The same, with the host's kernel to serve each pair.
    pub fn over_vhost(id: &str, taps: Vec<(Tap, Vhost)>, card: Card, worker: WorkerHandle) -> Net {
        let (taps, vhosts): (Vec<_>, Vec<_>) = taps.into_iter().unzip();
        let mut net = Net::over_tap(id, taps, card, vec![worker]);
        for (home, vhost) in net.pairs.iter_mut().zip(vhosts) {
            home.vhost = Some((vhost, Seat::default()));
        }
        net
    }

    fn with(
        id: &str,
        pairs: Vec<PairHome>,
        taps: Vec<Arc<Tap>>,
        card: &Card,
        workers: Vec<WorkerHandle>,
    ) -> Net {
        let first = pairs.first().and_then(|home| home.idle.as_ref()).map(|(backend, _)| backend);
        let mut features = FEATURES;
        if first.is_some_and(|backend| backend.has_headers()) {
            features |= OFFLOADS;
        }
        if card.mtu.is_some() {
            features |= 1 << VIRTIO_NET_F_MTU;
        }
        let mut queue_sizes = vec![QUEUE_SIZE; 2 * pairs.len()];
        if pairs.len() > 1 {
            features |= 1 << VIRTIO_NET_F_MQ | 1 << VIRTIO_NET_F_CTRL_VQ;
            queue_sizes.push(CONTROL_SIZE);
        }
        Net {
            features,
            queue_sizes,
            mac: card.mac.unwrap_or_else(|| mac_of(id)),
            mtu: card.mtu.unwrap_or_default(),
            status: Arc::new(AtomicU16::new(VIRTIO_NET_S_LINK_UP as u16)),
            pairs_used: Arc::new(1.into()),
            taps,
            pairs,
            control: Seat::default(),
            removal: Seat::default(),
            control_at: 0,
            unserved: Vec::new(),
            workers,
        }
    }

    /// Where the control queue is (virtio 1.3 §5.1.2): behind the pairs the driver knows of.
    fn control_index(&self, features: u64) -> Option<usize> {
        let has = |bit: u32| features & 1 << bit != 0;
        let pairs = if has(VIRTIO_NET_F_MQ) { self.pairs.len() } else { 1 };
        has(VIRTIO_NET_F_CTRL_VQ).then_some(2 * pairs)
    }

    /// Asks for everything that runs, which may be waited for until then.
    fn ask(&mut self) -> Option<Instant> {
        let mut limit = self.control.recall().max(self.removal.recall());
        for home in &mut self.pairs {
            limit = limit.max(home.seat.recall());
            limit = limit.max(home.vhost.as_mut().and_then(|(_, watch)| watch.recall()));
        }
        limit
    }

    fn begin(&mut self, activation: Activation) -> Result<(), StartError> {
        let Activation { features, mut queues, memory, interrupt } = activation;
        let host = |what| move |source| StartError::Host { what, source };
        if let Some(tap) = self.taps.first() {
            tap.set_offloads(features).map_err(host("TUNSETOFFLOAD"))?;
        }
        self.control_at = self.control_index(features).unwrap_or(usize::MAX);
        let control = queues.get_mut(self.control_at).and_then(Option::take);
        let beyond = queues.iter().enumerate().skip(2 * self.pairs.len());
        self.unserved = beyond.filter_map(|(at, q)| Some((at, q.as_ref()?.state()))).collect();
        let bell = |queue: &Queue| queue.doorbell().try_clone().map_err(host("eventfd"));
        let bells: Vec<_> = queues
            .chunks(2)
            .map(|pair| pair.first().and_then(Option::as_ref).map(bell).transpose())
            .collect::<Result<_, _>>()?;
        // Before anybody receives, so that no frame waits where nobody looks.
        let switch = |(home, bell): (&PairHome, _)| {
            Some(Switch { source: home.source.clone()?, used: home.used.clone(), bell })
        };
        let switches: Vec<_> = self.pairs.iter().zip(bells).filter_map(switch).collect();
        if switches.len() > 1 {
            control::set_pairs(&switches, self.pairs_used.load(Ordering::Acquire))
                .map_err(host("TUNSETQUEUE"))?;
        }

        let mergeable = features & 1 << VIRTIO_NET_F_MRG_RXBUF != 0;
        let mtu = (features & 1 << VIRTIO_NET_F_MTU != 0).then_some(self.mtu);
        let mut queues = queues.into_iter();
        let mut taps = self.taps.iter();
        let workers = self.workers.iter().cycle();
        for (home, worker) in self.pairs.iter_mut().zip(workers) {
            let (rx, tx) = (queues.next().flatten(), queues.next().flatten());
            if rx.is_none() && tx.is_none() {
                continue;
            }
            if let (Some((vhost, watch)), Some(tap)) = (&mut home.vhost, taps.next()) {
                let new = Watch::new(vhost, interrupt.clone()).map_err(host("eventfd"))?;
                watch.start(worker, |_| new)?;
                interrupt.expect_queue();
                vhost.start(features, [rx, tx], tap, &memory, &interrupt)?;
                continue;
            }
            if let Some(late) = home.seat.reclaim() {
                home.idle = Some(late.give_up());
            }
            if home.seat.is_late() {
                return Err(StartError::Hangs);
            }
            let gone = || std::io::Error::other("its worker ended");
            let (mut backend, limits) =
                home.idle.take().ok_or_else(gone).map_err(host("network"))?;
            backend.accept(features);
            let pair = Pair::new(Parts {
                backend,
                rx: rx.map(|queue| Rx::new(queue, mergeable, mtu)),
                tx,
                limits,
                used: home.used.clone(),
                status: self.status.clone(),
                memory: memory.clone(),
                interrupt: interrupt.clone(),
            });
            let pair = pair.map_err(host("timerfd"))?;
            home.seat.start(worker, |_| pair)?;
        }
        let watched = self.taps.first().filter(|_| self.pairs.iter().any(|p| p.vhost.is_some()));
        if let (Some(tap), Some(worker)) = (watched, self.workers.first()) {
            match Removal::new(tap.clone(), self.status.clone(), interrupt.clone()) {
                Ok(removal) => self.removal.start(worker, |_| removal)?,
                // The card works without.
                Err(e) => {
                    let what = removal::unnoticed(tap);
                    interrupt.complain(&format_args!("{what}: rtnetlink: {e}"));
                }
            }
        }
        if let (Some(queue), Some(worker)) = (control, self.workers.first()) {
            let pairs = self.pairs_used.clone();
            let control = Control::new(queue, switches, pairs, memory, interrupt);
            self.control.start(worker, |_| control)?;
        }
        Ok(())
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
        self.features
    }

    fn queue_sizes(&self) -> &[u16] {
        &self.queue_sizes
    }

    /// `virtio_net_config` (virtio 1.3 §5.1.4): the MAC address, the status, the number of pairs,
    /// the MTU.
    fn config(&self) -> Vec<u8> {
        let status = self.status.load(Ordering::Acquire);
        // At most MAX_PAIRS, so the cast keeps the number.
        let pairs = self.pairs.len() as u16;
        [&self.mac[..], &status.to_le_bytes(), &pairs.to_le_bytes(), &self.mtu.to_le_bytes()]
            .concat()
    }

    fn start(&mut self, activation: Activation) -> Result<(), StartError> {
        let begun = self.begin(activation);
        if begun.is_err() {
            self.stop();
        }
        begun
    }

    fn recall(&mut self) {
        self.ask();
    }

    fn stop(&mut self) -> Vec<QueueState> {
        let mut states = std::mem::take(&mut self.unserved);
        // All are asked for before the first is waited for, and one deadline is for all.
        let limit = self.ask().unwrap_or_else(Instant::now);
        if let Some(control) = self.control.stop_by(limit) {
            states.push((self.control_at, control.state()));
        }
        drop(self.removal.stop_by(limit));
        for (n, home) in self.pairs.iter_mut().enumerate() {
            let mut keep = |queues: [Option<QueueState>; 2]| {
                states.extend((2 * n..).zip(queues).filter_map(|(at, state)| Some((at, state?))));
            };
            if let Some((vhost, watch)) = &mut home.vhost {
                keep(vhost.stop());
                drop(watch.stop_by(limit));
            }
            let Some(pair) = home.seat.stop_by(limit) else { continue };
            let (backend, limits, queues) = pair.dissolve();
            home.idle = Some((backend, limits));
            keep(queues);
        }
        states.sort_by_key(|(at, _)| *at);
        states.into_iter().map(|(_, state)| state).collect()
    }

    fn save(&self) -> Value {
        if self.pairs.len() == 1 {
            return Value::Null;
        }
        let state = State { pairs: self.pairs_used.load(Ordering::Acquire) };
        // A struct of plain data always has a JSON form.
        serde_json::to_value(state).unwrap_or_default()
    }

    fn restore(&mut self, state: &Value) -> Result<(), String> {
        if self.pairs.len() == 1 {
            return stateless(state);
        }
        let State { pairs } = State::deserialize(state).map_err(|e| e.to_string())?;
        let most = self.pairs.len();
        if !(1..=most).contains(&usize::from(pairs)) {
            return Err(format!("its driver uses {pairs} pairs of queues of {most}"));
        }
        self.pairs_used.store(pairs, Ordering::Release);
        Ok(())
    }

    fn is_busy(&mut self) -> bool {
        // A watch touches no guest memory.
        self.control.may_touch() || self.pairs.iter().any(|home| home.seat.may_touch())
    }

    fn reset(&mut self) {
        self.pairs_used.store(1, Ordering::Release);
    }
}
