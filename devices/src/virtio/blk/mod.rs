//! The block device (virtio 1.3 §5.2): one queue of requests, served one after the other.
//!
//! The device blocks in the backend's system calls, so it is given a worker of its own. It
//! interrupts after each request, not after each round, because a request may take long; a stop
//! waits for one request and not for a queue full of them.

pub mod backend;
pub mod request;
#[cfg(test)]
mod tests;

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use event_manager::{EventOps, Events, MutEventSubscriber};
use virtio_bindings::bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_RO,
    VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_TOPOLOGY, VIRTIO_BLK_F_WRITE_ZEROES, VIRTIO_BLK_S_IOERR,
    VIRTIO_BLK_S_OK,
};
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::epoll::EventSet;

use super::device::{Activation, StartError, VirtioDevice};
use super::interrupt::Interrupt;
use super::queue::{Answer, Chain, Queue, QueueState};
use crate::complaints::Complaints;
use crate::counters::Counters;
use crate::worker::{Task, WorkerHandle};
use backend::{DiskBackend, SECTOR};
use request::{HEADER_LEN, ID_LEN, Limits, MAX_RANGE_SECTORS, RANGE_LEN, Request};

/// Device type 2, virtio 1.3 §5.
const DEVICE_TYPE: u32 = 2;
const QUEUE_SIZE: u16 = 256;
const QUEUE_SIZES: [u16; 1] = [QUEUE_SIZE];
/// Data segments of a request: the queue without header and status. A device that does not say
/// gets one segment a request.
const SEG_MAX: u32 = QUEUE_SIZE as u32 - 2;
/// Bytes of `virtio_blk_config` up to `write_zeroes_may_unmap` and its padding.
const CONFIG_LEN: usize = 60;

/// The device; it runs on a worker between start and stop.
pub struct Blk {
    id: [u8; ID_LEN],
    disk: Arc<DiskBackend>,
    config: [u8; CONFIG_LEN],
    worker: WorkerHandle,
    stopping: Arc<AtomicBool>,
    task: Option<Task<Serve>>,
}

impl Blk {
    /// A disk called `id` (the guest sees its first 20 bytes). `worker` should have nothing else to
    /// do: requests block it.
    pub fn new(id: &str, backend: DiskBackend, worker: WorkerHandle) -> Blk {
        let mut bytes = [0; ID_LEN];
        for (to, from) in bytes.iter_mut().zip(id.bytes()) {
            *to = from;
        }
        Blk {
            id: bytes,
            config: config(&backend),
            disk: Arc::new(backend),
            worker,
            stopping: Arc::default(),
            task: None,
        }
    }
}

impl VirtioDevice for Blk {
    fn device_type(&self) -> u32 {
        DEVICE_TYPE
    }

    fn features(&self) -> u64 {
        let always = 1 << VIRTIO_BLK_F_SEG_MAX
            | 1 << VIRTIO_BLK_F_BLK_SIZE
            | 1 << VIRTIO_BLK_F_FLUSH
            | 1 << VIRTIO_BLK_F_TOPOLOGY;
        if self.disk.read_only() {
            always | 1 << VIRTIO_BLK_F_RO
        } else {
            always | 1 << VIRTIO_BLK_F_DISCARD | 1 << VIRTIO_BLK_F_WRITE_ZEROES
        }
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        super::device::read_config_bytes(&self.config, offset, data);
    }

    fn start(&mut self, activation: Activation) -> Result<(), StartError> {
        let Activation { features, queues, memory, interrupt } = activation;
        if let Some(mut queue) = queues.into_iter().flatten().next() {
            queue.set_prompt(true);
            queue.ring();
            self.stopping.store(false, Ordering::Release);
            let server = Server {
                id: self.id,
                limits: Limits { sectors: self.disk.sectors(), read_only: self.disk.read_only() },
                disk: self.disk.clone(),
                write_through: features & 1 << VIRTIO_BLK_F_FLUSH == 0,
                complaints: Complaint {
                    name: interrupt.name().clone(),
                    counters: interrupt.counters().clone(),
                    limit: Complaints::default(),
                },
            };
            let stopping = self.stopping.clone();
            let task = Serve { queue, memory, interrupt, server, stopping };
            self.task = Some(self.worker.add(task)?);
        }
        Ok(())
    }

    fn stop(&mut self) -> Vec<QueueState> {
        self.stopping.store(true, Ordering::Release);
        let task = self.task.take().and_then(Task::take);
        task.map(|task| task.queue.state()).into_iter().collect()
    }
}

/// `virtio_blk_config`, virtio 1.3 §5.2.4.
fn config(disk: &DiskBackend) -> [u8; CONFIG_LEN] {
    let mut config = [0; CONFIG_LEN];
    let mut put = |at: usize, bytes: &[u8]| {
        if let Some(field) = config.get_mut(at..at + bytes.len()) {
            field.copy_from_slice(bytes);
        }
    };
    put(0, &disk.sectors().to_le_bytes());
    put(12, &SEG_MAX.to_le_bytes());
    put(20, &(SECTOR as u32).to_le_bytes());
    // The physical block: 2^n logical ones, at most a page.
    let blocks = (disk.block_size().clamp(SECTOR, 4096) / SECTOR).ilog2();
    put(24, &[blocks as u8]);
    // The smallest good I/O, in logical blocks.
    put(26, &(1u16 << blocks).to_le_bytes());
    if !disk.read_only() {
        put(36, &MAX_RANGE_SECTORS.to_le_bytes());
        put(40, &1u32.to_le_bytes());
        put(44, &1u32.to_le_bytes());
        put(48, &MAX_RANGE_SECTORS.to_le_bytes());
        put(52, &1u32.to_le_bytes());
        put(56, &[1]);
    }
    config
}

/// What runs in the worker.
struct Serve {
    queue: Queue,
    memory: GuestMemoryMmap,
    interrupt: Interrupt,
    server: Server,
    stopping: Arc<AtomicBool>,
}

impl MutEventSubscriber for Serve {
    fn init(&mut self, ops: &mut EventOps) {
        if let Err(e) = ops.add(Events::new(self.queue.doorbell(), EventSet::IN)) {
            self.interrupt.needs_reset(&e);
        }
    }

    fn process(&mut self, _events: Events, _ops: &mut EventOps) {
        self.queue.quiet();
        let Serve { queue, memory, interrupt, server, stopping } = self;
        queue.process(memory, interrupt, |chain| {
            // What is put back here is found when the device starts again.
            if stopping.load(Ordering::Acquire) { Answer::Stop } else { server.serve(chain) }
        });
    }
}

struct Server {
    id: [u8; ID_LEN],
    disk: Arc<DiskBackend>,
    limits: Limits,
    /// The driver does not flush, so every write is made stable (virtio 1.3 §5.2.6.2).
    write_through: bool,
    complaints: Complaint,
}

impl Server {
    fn serve(&mut self, chain: &mut Chain<'_>) -> Answer {
        let mut header = [0; HEADER_LEN];
        let (Ok(()), Some(data)) =
            (chain.copy_to(0, &mut header), chain.writable_len().checked_sub(1))
        else {
            return Answer::Broken("a block request without header or status");
        };
        let (status, filled) = match self.run(header, data, chain) {
            Ok(filled) => (VIRTIO_BLK_S_OK as u8, filled),
            Err(status) => (status, 0),
        };
        if chain.copy_from(data, &[status]).is_err() {
            return Answer::Broken("a block request without status");
        }
        // A chain has at most u32::MAX bytes, so the cast keeps the number. With nothing read the
        // status is the only byte written.
        Answer::Done(filled as u32 + 1)
    }

    /// Bytes of the writable data that were filled, or the status of a failure.
    fn run(
        &mut self,
        header: [u8; HEADER_LEN],
        writable: usize,
        chain: &mut Chain<'_>,
    ) -> Result<usize, u8> {
        let readable = chain.readable_len() - HEADER_LEN;
        let request = request::parse(header, readable, writable, self.limits)
            .map_err(request::Refusal::status)?;
        let misshapen = VIRTIO_BLK_S_IOERR as u8;
        match request {
            Request::Read { offset, len } => {
                let to = chain.writable_iovecs(0, len).map_err(|_| misshapen)?;
                self.disk.read(to, offset).map_err(|e| self.complaints.hear("read", &e))?;
                Ok(len)
            }
            Request::Write { offset, len } => {
                let from = chain.readable_iovecs(HEADER_LEN, len).map_err(|_| misshapen)?;
                let done = self.disk.write(from, offset);
                self.settle("write", done)
            }
            Request::Flush => {
                self.disk.flush().map_err(|e| self.complaints.hear("flush", &e))?;
                Ok(0)
            }
            Request::GetId => {
                chain.copy_from(0, &self.id).map_err(|_| misshapen)?;
                Ok(ID_LEN)
            }
            Request::Discard | Request::WriteZeroes => {
                let discard = request == Request::Discard;
                let mut range = [0; RANGE_LEN];
                chain.copy_to(HEADER_LEN, &mut range).map_err(|_| misshapen)?;
                let range = request::parse_range(range, discard, self.limits)
                    .map_err(request::Refusal::status)?;
                if discard {
                    let done = self.disk.discard(range.offset, range.len);
                    self.settle("discard", done)
                } else {
                    let done = self.disk.write_zeroes(range.offset, range.len, range.unmap);
                    self.settle("write zeroes", done)
                }
            }
        }
    }

    /// After something that changed the disk.
    fn settle(&mut self, what: &str, done: io::Result<()>) -> Result<usize, u8> {
        let done = if self.write_through { done.and_then(|()| self.disk.flush()) } else { done };
        done.map(|()| 0).map_err(|e| self.complaints.hear(what, &e))
    }
}

/// Tells of the host's errors.
struct Complaint {
    name: Arc<str>,
    counters: Arc<Counters>,
    limit: Complaints,
}

impl Complaint {
    fn hear(&mut self, what: &str, error: &io::Error) -> u8 {
        self.counters.add_error();
        if let Some(silent) = self.limit.admit() {
            log::warn!("{}: {what}: {error} ({silent} errors before were not shown)", self.name);
        }
        VIRTIO_BLK_S_IOERR as u8
    }
}
