//! The entropy device (virtio 1.3 §5.4): one queue of buffers that the host's generator fills.
//!
//! The bytes go from `getrandom(2)` straight into guest memory. A buffer may be returned partly
//! filled, so one guest gets at most 64 KiB before the worker's other tasks have their turn.

use event_manager::{EventOps, Events, MutEventSubscriber};
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::epoll::EventSet;

use super::device::{Activation, StartError, VirtioDevice};
use super::interrupt::Interrupt;
use super::queue::{Answer, Chain, Queue, QueueState};
use super::seat::Seat;
use crate::worker::WorkerHandle;

/// Device type 4, virtio 1.3 §5.
const DEVICE_TYPE: u32 = 4;
const QUEUE_SIZES: [u16; 1] = [64];
/// Bytes for one chain and for one round.
const ROUND: usize = 64 * 1024;

/// The device; it runs on a worker between start and stop.
pub struct Rng {
    worker: WorkerHandle,
    seat: Seat<Fill>,
}

impl Rng {
    /// An entropy device that will be served by `worker`.
    pub fn new(worker: WorkerHandle) -> Rng {
        Rng { worker, seat: Seat::default() }
    }
}

impl VirtioDevice for Rng {
    fn device_type(&self) -> u32 {
        DEVICE_TYPE
    }

    fn features(&self) -> u64 {
        0
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn start(&mut self, activation: Activation) -> Result<(), StartError> {
        let Activation { queues, memory, interrupt, .. } = activation;
        if let Some(queue) = queues.into_iter().flatten().next() {
            queue.ring();
            self.seat.start(&self.worker, |_| Fill { queue, memory, interrupt })?;
        }
        Ok(())
    }

    fn recall(&mut self) {
        self.seat.recall();
    }

    fn stop(&mut self) -> Vec<QueueState> {
        self.seat.stop().map(|task| task.queue.state()).into_iter().collect()
    }

    fn is_busy(&mut self) -> bool {
        self.seat.may_touch()
    }
}

struct Fill {
    queue: Queue,
    memory: GuestMemoryMmap,
    interrupt: Interrupt,
}

impl MutEventSubscriber for Fill {
    fn init(&mut self, ops: &mut EventOps) {
        if let Err(e) = ops.add(Events::new(self.queue.doorbell(), EventSet::IN)) {
            self.interrupt.needs_reset(&e);
        }
    }

    fn process(&mut self, _events: Events, _ops: &mut EventOps) {
        self.queue.quiet();
        let mut left = ROUND;
        self.queue.process(&self.memory, &self.interrupt, |chain| {
            if left == 0 {
                return Answer::Stop;
            }
            let filled = fill(chain, left);
            left -= filled;
            // At most ROUND, so the cast keeps the number.
            Answer::Done(filled as u32)
        });
        if left == 0 {
            self.queue.ring();
        }
    }
}

/// Fills the chain up to `limit` bytes and says how many those were.
fn fill(chain: &mut Chain<'_>, limit: usize) -> usize {
    let len = chain.writable_len().min(limit);
    let Ok(mut rest) = chain.writable_iovecs(0, len) else { return 0 };
    while !rest.is_empty() {
        match rest.getrandom() {
            Ok(count) if count > 0 => rest.advance(count),
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            _ => break,
        }
    }
    len - rest.len()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::virtio::testing::{DATA, Driver, EVENT_IDX, Piece};
    use crate::worker::Worker;

    #[test]
    fn buffers_come_back_full_of_random_bytes() {
        let worker = Worker::spawn("rng").unwrap();
        for features in [0, EVENT_IDX] {
            let mut driver = Driver::start(Box::new(Rng::new(worker.handle())), features, 16);
            let head = driver.send(
                0,
                &[Piece::In(DATA, 40), Piece::In(DATA + 0x100, 0), Piece::In(DATA + 64, 24)],
            );
            assert_eq!(driver.wait_used(0, 1), [(head.into(), 64)]);
            assert_ne!(driver.read(DATA, 40), [0; 40]);
            assert_ne!(driver.read(DATA + 64, 24), [0; 24]);
            assert_eq!(driver.read(DATA + 40, 24), [0; 24]);
            assert_eq!(driver.get(0x60), 1);
        }
    }

    #[test]
    fn a_greedy_guest_gets_its_bytes_in_rounds() {
        let worker = Worker::spawn("rng").unwrap();
        let mut driver = Driver::start(Box::new(Rng::new(worker.handle())), 0, 16);
        for _ in 0..8 {
            driver.rings[0].push(&[Piece::In(DATA, 48 * 1024)]);
        }
        driver.ring(0);
        let used = driver.wait_used(0, 8);
        assert!(used.iter().all(|&(_, len)| len > 0 && len <= ROUND as u32));
    }

    #[test]
    fn what_was_asked_for_during_a_pause_comes_after_it() {
        let worker = Worker::spawn("rng").unwrap();
        let mut driver = Driver::start(Box::new(Rng::new(worker.handle())), EVENT_IDX, 16);
        driver.transport.pause();
        driver.rings[0].push(&[Piece::In(DATA, 4)]);
        driver.transport.resume();
        assert_eq!(driver.wait_used(0, 1), [(0, 4)]);
        driver.transport.reset();
        driver.bring_up(0, 16);
        driver.send(0, &[Piece::In(DATA, 4)]);
        assert_eq!(driver.wait_used(0, 1), [(0, 4)]);
    }

    #[test]
    fn a_saved_device_goes_on_in_another_whose_state_is_the_same() {
        let worker = Worker::here("rng").unwrap();
        let mut driver = Driver::start(Box::new(Rng::new(worker.handle())), EVENT_IDX, 16);
        for _ in 0..3 {
            driver.send(0, &[Piece::In(DATA, 4)]);
            worker.turn();
        }
        assert_eq!(driver.rings[0].used().len(), 3);
        driver.transport.pause();
        let saved = serde_json::to_string(&driver.transport.save()).unwrap();
        let state = serde_json::from_str(&saved).unwrap();
        let heir = Box::new(Rng::new(worker.handle()));
        driver.transport = crate::virtio::testing::transport("heir", heir, driver.memory.clone());
        driver.transport.restore(&state).unwrap();
        assert_eq!(driver.transport.save(), state);
        // What is asked for before it goes on is answered then, once.
        driver.rings[0].push(&[Piece::In(DATA, 4)]);
        driver.transport.resume();
        worker.turn();
        assert_eq!(driver.rings[0].used(), [(3, 4)]);
    }

    #[test]
    fn a_malformed_ring_breaks_only_this_device_and_a_reset_repairs_it() {
        let worker = Worker::spawn("rng").unwrap();
        let mut driver = Driver::start(Box::new(Rng::new(worker.handle())), 0, 16);
        let mut other = Driver::start(Box::new(Rng::new(worker.handle())), 0, 16);
        driver.send(0, &[Piece::In(0, 4)]);
        driver.wait_broken();
        assert_eq!(driver.get(0x60), 2);
        other.send(0, &[Piece::In(DATA, 4)]);
        other.wait_used(0, 1);
        driver.bring_up(0, 16);
        driver.send(0, &[Piece::In(DATA, 4)]);
        driver.wait_used(0, 1);
    }

    #[test]
    fn a_worker_that_ended_leaves_a_broken_device_and_no_panic() {
        let worker = Worker::spawn("rng").unwrap();
        let mut driver = Driver::start(Box::new(Rng::new(worker.handle())), 0, 16);
        drop(worker);
        driver.transport.pause();
        driver.transport.resume();
        assert_ne!(driver.status() & 0x40, 0);
        driver.bring_up(0, 16);
        assert_ne!(driver.status() & 0x40, 0);
    }
}
