//! The block device (virtio 1.3 §5.2): queues of requests, each with an engine and a worker.
//!
//! A lane is one queue while it is served (`lane`): it takes chains, hands what they ask for to its
//! engine, and answers them in the order in which the host is done. Nothing waits for the host but
//! [`Blk::stop`], and that for a bounded time: a request that hangs there stays pending, comes back
//! to life with the next start, and until it is answered keeps the guest's memory and the disk. A lane
//! that hangs itself, because the host does not even take a request, is given up until it comes back.

mod lane;
mod limit;
pub mod request;
#[cfg(test)]
mod tests;

use std::num::NonZeroU64;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use virtio_bindings::bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_MQ,
    VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_TOPOLOGY, VIRTIO_BLK_F_WRITE_ZEROES,
};

use super::device::{Activation, SizeError, SizeWork, StartError, VirtioDevice};
use super::queue::QueueState;
use super::seat::Seat;
use crate::block::{Disk, EngineChoice, EngineError, ResizeError, SECTOR};
use crate::rate::Budget;
use crate::worker::{self, OnBroken, Worker};
use lane::{Hand, Serve, Server};
use limit::{Limiter, Throttle};
use request::{ID_LEN, Limits, MAX_RANGE_SECTORS};

/// Device type 2, virtio 1.3 §5.
const DEVICE_TYPE: u32 = 2;
const QUEUE_SIZE: u16 = 256;
/// More queues than that are of no use, and each costs a thread.
pub const QUEUES_MAX: u16 = 16;
/// Data segments of a request: the queue without header and status. A device that does not say
/// gets one segment a request.
const SEG_MAX: u32 = QUEUE_SIZE as u32 - 2;
/// Bytes of `virtio_blk_config` up to `write_zeroes_may_unmap` and its padding.
const CONFIG_LEN: usize = 60;
/// How long a stop waits after the host was asked to give requests up.
const CANCELLED: Duration = Duration::from_millis(200);

/// What a disk is like, besides the disk.
#[derive(Debug, Clone, Copy)]
pub struct BlkOptions {
    /// What carries its requests out.
    pub engine: EngineChoice,
    /// Number of queues, 1 to [`QUEUES_MAX`].
    pub queues: u16,
    /// How long a stop waits for the host; what takes longer is pending then.
    pub patience: Duration,
    /// How long a worker of its own may take to answer, see [`worker::PATIENCE`].
    pub worker_patience: Duration,
    /// The most bytes read and written a second, on average.
    pub bytes_per_second: Option<NonZeroU64>,
    /// The most requests of any kind a second, on average.
    pub requests_per_second: Option<NonZeroU64>,
}

impl Default for BlkOptions {
    fn default() -> Self {
        BlkOptions {
            engine: EngineChoice::Auto,
            queues: 1,
            patience: Duration::from_secs(2),
            worker_patience: worker::PATIENCE,
            bytes_per_second: None,
            requests_per_second: None,
        }
    }
}

/// The device; its queues run on workers of its own between start and stop.
pub struct Blk {
    name: Arc<str>,
    id: [u8; ID_LEN],
    disk: Disk,
    options: BlkOptions,
    config: [u8; CONFIG_LEN],
    queue_sizes: Vec<u16>,
    lanes: Vec<Lane>,
    limiter: Option<Arc<Limiter>>,
    on_broken: OnBroken,
    /// What the last stop gave back.
    parked: Vec<QueueState>,
    /// What comes of another size that the host was asked for.
    resizing: Option<Receiver<Result<Disk, ResizeError>>>,
}

/// A queue, and what serves it.
#[derive(Default)]
struct Lane {
    worker: Option<Worker>,
    /// While it is served.
    seat: Seat<Serve>,
    /// While it is not.
    hand: Option<Hand>,
}

impl Lane {
    /// Whether the host may still touch guest memory for it. What a lane had in hand that was given up
    /// and has come back is had back here.
    fn is_busy(&mut self) -> bool {
        if let Some(late) = self.seat.reclaim() {
            self.hand = Some(late.give_up());
        }
        self.seat.is_late() || self.hand.as_mut().is_some_and(Hand::is_busy)
    }
}

impl Blk {
    /// A disk called `id` (the guest sees its first 20 bytes).
    ///
    /// # Errors
    /// When there can be no such engine.
    pub fn new(id: &str, disk: Disk, options: BlkOptions) -> Result<Blk, EngineError> {
        let mut options = options;
        options.queues = options.queues.clamp(1, QUEUES_MAX);
        let first = options.engine.open(&disk, QUEUE_SIZE)?;
        let mut bytes = [0; ID_LEN];
        for (to, from) in bytes.iter_mut().zip(id.bytes()) {
            *to = from;
        }
        let budget = Budget::per_second(options.bytes_per_second, options.requests_per_second);
        let mut lanes: Vec<Lane> = (0..options.queues).map(|_| Lane::default()).collect();
        if let Some(lane) = lanes.first_mut() {
            lane.hand = Some(Hand::new(first));
        }
        Ok(Blk {
            name: id.into(),
            id: bytes,
            config: config(&disk, options.queues),
            queue_sizes: vec![QUEUE_SIZE; options.queues.into()],
            disk,
            options,
            lanes,
            limiter: budget.is_limited().then(|| Arc::new(Limiter::new(budget))),
            on_broken: Arc::new(|why| log::error!("{why}")),
            parked: Vec::new(),
            resizing: None,
        })
    }

    /// The same, with `on_broken` told of a worker of its own that ends of itself, instead of the log.
    pub fn watched(mut self, on_broken: OnBroken) -> Blk {
        self.on_broken = on_broken;
        self
    }

    /// Has every lane ready to go on, or to begin anew.
    fn prepare(&mut self, goes_on: bool) -> Result<(), StartError> {
        let deadline = Instant::now() + self.options.patience;
        for lane in &mut self.lanes {
            // Looks for the hand of a lane that was given up, too.
            lane.is_busy();
            if lane.seat.is_late() {
                return Err(StartError::Hangs);
            }
            if let Some(hand) = &mut lane.hand
                && !goes_on
                && !hand.forget(deadline)
            {
                return Err(StartError::Busy);
            }
        }
        Ok(())
    }

    fn serve(&mut self, activation: Activation, goes_on: bool) -> Result<(), StartError> {
        let Activation { features, queues, memory, interrupt } = activation;
        let write_through = features & 1 << VIRTIO_BLK_F_FLUSH == 0;
        for ((index, queue), lane) in queues.into_iter().enumerate().zip(&mut self.lanes) {
            let Some(mut queue) = queue else { continue };
            queue.set_prompt(true);
            if goes_on {
                queue.keep_pending();
            }
            queue.ring();
            let mut hand = match lane.hand.take() {
                Some(hand) => hand,
                None => {
                    let engine = self.options.engine.open(&self.disk, QUEUE_SIZE);
                    let engine = engine.map_err(|e| StartError::Device(e.to_string()))?;
                    Hand::new(engine)
                }
            };
            hand.protect(Arc::new(memory.clone()));
            let limits = Limits {
                sectors: self.disk.sectors(),
                block: block_size(&self.disk),
                read_only: self.disk.read_only(),
            };
            let disk = self.disk.clone();
            let server = Server::new(self.id, disk, limits, write_through);
            let throttle = self.limiter.clone().map(Throttle::new).transpose();
            let throttle = throttle.map_err(|source| StartError::Host { what: "timer", source })?;
            let worker = match &lane.worker {
                Some(worker) => worker,
                None => {
                    let name = match index {
                        0 => format!("husk-{}", self.name),
                        _ => format!("husk-{}-{index}", self.name),
                    };
                    let on_broken = self.on_broken.clone();
                    let worker = Worker::spawn_watched(name, move |why| on_broken(why))?;
                    lane.worker.insert(worker.with_patience(self.options.worker_patience))
                }
            };
            let (memory, interrupt) = (memory.clone(), interrupt.clone());
            lane.seat.start(&worker.handle(), |lease| Serve {
                queue,
                throttle,
                memory,
                interrupt,
                server,
                hand,
                lease,
            })?;
        }
        Ok(())
    }
}

impl VirtioDevice for Blk {
    fn device_type(&self) -> u32 {
        DEVICE_TYPE
    }

    fn features(&self) -> u64 {
        let mut features = 1 << VIRTIO_BLK_F_SEG_MAX
            | 1 << VIRTIO_BLK_F_BLK_SIZE
            | 1 << VIRTIO_BLK_F_FLUSH
            | 1 << VIRTIO_BLK_F_TOPOLOGY;
        if self.lanes.len() > 1 {
            features |= 1 << VIRTIO_BLK_F_MQ;
        }
        if self.disk.read_only() {
            features | 1 << VIRTIO_BLK_F_RO
        } else {
            features | 1 << VIRTIO_BLK_F_DISCARD | 1 << VIRTIO_BLK_F_WRITE_ZEROES
        }
    }

    fn queue_sizes(&self) -> &[u16] {
        &self.queue_sizes
    }

    fn config(&self) -> Vec<u8> {
        self.config.to_vec()
    }

    fn resize(&mut self, size: Option<u64>) -> Result<SizeWork, SizeError> {
        let mut disk = self.disk.clone();
        let (give, take) = channel();
        self.resizing = Some(take);
        let run = Box::new(move || {
            let resized = disk.resize(size).map(|_| disk);
            // The disk may be gone by now.
            let _ = give.send(resized);
        });
        Ok(SizeWork { run, patience: self.options.patience })
    }

    /// What a disk refuses is a [`ResizeError`].
    fn resized(&mut self) -> Result<u64, SizeError> {
        let resized = self.resizing.take().and_then(|resized| resized.try_recv().ok());
        let resized = resized.ok_or_else(|| SizeError::Refused("it came to nothing".into()))?;
        self.disk = resized.map_err(|why| SizeError::Refused(why.into()))?;
        self.config = config(&self.disk, self.options.queues);
        Ok(self.disk.size())
    }

    fn start(&mut self, activation: Activation) -> Result<(), StartError> {
        // The requests at the host are those of a driver that was reset meanwhile, unless the
        // queues come back as they were given away.
        let states: Vec<_> = activation.queues.iter().flatten().map(|q| q.state()).collect();
        let goes_on = states == std::mem::take(&mut self.parked);
        self.prepare(goes_on)?;
        let started = self.serve(activation, goes_on);
        if started.is_err() {
            self.stop();
            self.parked.clear();
        }
        started
    }

    fn recall(&mut self) {
        for lane in &mut self.lanes {
            lane.seat.recall();
        }
    }

    fn stop(&mut self) -> Vec<QueueState> {
        // All before the first is waited for, and one deadline for all.
        let deadlines = self.lanes.iter_mut().map(|lane| lane.seat.recall());
        let Some(limit) = deadlines.fold(None, Option::max) else { return Vec::new() };
        let taken = self.lanes.iter_mut().map(|lane| lane.seat.stop_by(limit));
        let mut taken: Vec<_> = taken.collect();
        let deadline = Instant::now() + self.options.patience;
        taken.iter_mut().flatten().for_each(Serve::hold);
        let mut states = Vec::with_capacity(taken.len());
        for (lane, serve) in self.lanes.iter_mut().zip(taken) {
            let Some(mut serve) = serve else { continue };
            serve.drain(deadline);
            states.push(serve.queue.state());
            lane.hand = Some(serve.hand);
        }
        let hanging = states.iter().map(|state| state.pending.len()).sum::<usize>();
        if hanging > 0 {
            log::warn!("{}: the host has not answered {hanging} requests", self.name);
        }
        self.parked.clone_from(&states);
        states
    }

    fn is_busy(&mut self) -> bool {
        // Each is looked at.
        self.lanes.iter_mut().fold(false, |busy, lane| lane.is_busy() | busy)
    }
}

impl Drop for Blk {
    fn drop(&mut self) {
        self.stop();
        let busy = self.is_busy();
        for lane in &mut self.lanes {
            if busy && let Some(worker) = lane.worker.take() {
                worker.abandon();
            }
        }
    }
}

/// Bytes of a block: what offsets and lengths of requests are multiples of.
fn block_size(disk: &Disk) -> u64 {
    SECTOR.max(disk.align() as u64)
}

/// `virtio_blk_config`, virtio 1.3 §5.2.4.
fn config(disk: &Disk, queues: u16) -> [u8; CONFIG_LEN] {
    let mut config = [0; CONFIG_LEN];
    let mut put = |at: usize, bytes: &[u8]| {
        if let Some(field) = config.get_mut(at..at + bytes.len()) {
            field.copy_from_slice(bytes);
        }
    };
    let block = block_size(disk);
    put(0, &disk.sectors().to_le_bytes());
    put(12, &SEG_MAX.to_le_bytes());
    // At most a page, so the cast keeps the number.
    put(20, &(block as u32).to_le_bytes());
    // The physical block: 2^n logical ones, at most a page.
    let blocks = (disk.block_size().clamp(block, 4096.max(block)) / block).ilog2();
    put(24, &[blocks as u8]);
    // The smallest good I/O, in logical blocks.
    put(26, &(1u16 << blocks).to_le_bytes());
    if queues > 1 {
        put(34, &queues.to_le_bytes());
    }
    if !disk.read_only() {
        put(36, &MAX_RANGE_SECTORS.to_le_bytes());
        put(40, &1u32.to_le_bytes());
        // A page at most is 8 sectors.
        put(44, &((block / SECTOR) as u32).to_le_bytes());
        put(48, &MAX_RANGE_SECTORS.to_le_bytes());
        put(52, &1u32.to_le_bytes());
        put(56, &[1]);
    }
    config
}
