use std::sync::Arc;

use vm_memory::Bytes;

use super::*;
use crate::virtio::device::{Activation, StartError};
use crate::virtio::queue::{Answer, Queue, QueueState, Round};
use crate::virtio::testing::{
    DATA, Driver, EVENT_IDX, MEMORY, MEMORY_END, Piece, Ring, VERSION_1, transport,
};

/// A device without a worker: it processes its queues when it is told to.
#[derive(Default)]
struct Probe {
    features: u64,
    seen: Arc<Mutex<Seen>>,
}

#[derive(Default)]
struct Seen {
    active: Option<Activation>,
    starts: usize,
    stops: usize,
    lose_queues: bool,
    refuse: bool,
    written: Vec<(u64, Vec<u8>)>,
}

impl VirtioDevice for Probe {
    fn device_type(&self) -> u32 {
        42
    }
    fn features(&self) -> u64 {
        self.features
    }
    fn queue_sizes(&self) -> &[u16] {
        &[16, 8]
    }
    fn config(&self) -> Vec<u8> {
        vec![1, 2, 3, 4, 5, 6 + self.seen.lock().unwrap().written.len() as u8]
    }
    fn write_config(&mut self, offset: u64, data: &[u8]) {
        self.seen.lock().unwrap().written.push((offset, data.to_vec()));
    }
    fn start(&mut self, activation: Activation) -> Result<(), StartError> {
        let mut seen = self.seen.lock().unwrap();
        assert!(seen.active.is_none(), "started twice");
        if seen.refuse {
            return Err(StartError::Host { what: "no", source: io::ErrorKind::Other.into() });
        }
        seen.starts += 1;
        seen.active = Some(activation);
        Ok(())
    }
    fn stop(&mut self) -> Vec<QueueState> {
        let mut seen = self.seen.lock().unwrap();
        let Some(active) = seen.active.take() else { return Vec::new() };
        seen.stops += 1;
        if seen.lose_queues {
            return Vec::new();
        }
        active.queues.iter().flatten().map(Queue::state).collect()
    }
}

fn probe() -> (Driver, Arc<Mutex<Seen>>) {
    let probe = Probe { features: 0b101, ..Probe::default() };
    let seen = probe.seen.clone();
    (Driver::idle(Box::new(probe)), seen)
}

fn process(seen: &Mutex<Seen>, queue: usize) -> Round {
    let mut seen = seen.lock().unwrap();
    let active = seen.active.as_mut().unwrap();
    let (memory, line) = (active.memory.clone(), active.interrupt.clone());
    active.queues[queue].as_mut().unwrap().process(&memory, &line, |_| Answer::Done(1))
}

#[test]
fn the_identity_registers_say_what_the_device_is() {
    let (driver, _) = probe();
    let all = [0, 4, 8, 0xc].map(|r| driver.get(r));
    assert_eq!(all, [0x7472_6976, 2, 42, 0x6b73_7568]);
    assert_eq!(driver.transport.device_type(), 42);
    assert_eq!(driver.transport.name(), "test");
    assert_eq!(driver.offered(), 0b101 | VERSION_1 | 1 << 28 | EVENT_IDX);
    driver.set(0x14, 2);
    assert_eq!(driver.get(0x10), 0);
    assert_eq!((driver.get(0xb0), driver.get(0xb4)), (u32::MAX, u32::MAX));
}

#[test]
fn features_are_refused_when_not_offered_or_without_version_1() {
    let (driver, _) = probe();
    driver.negotiate(VERSION_1 | 0b010);
    assert_eq!(driver.status(), 3);
    driver.negotiate(0b001);
    assert_eq!(driver.status(), 3);
    driver.set(0x70, 7);
    assert_eq!(driver.status(), 3, "DRIVER_OK is nothing without FEATURES_OK");
    driver.negotiate(VERSION_1 | 0b001);
    assert_eq!(driver.status(), 11);
    // Accepted is accepted.
    driver.set(0x24, 0);
    driver.set(0x20, 0b010);
    assert_eq!(driver.transport.save().driver_features, VERSION_1 | 0b001);
}

#[test]
fn driver_ok_starts_the_device_once_with_the_queues_that_are_ready() {
    let (driver, seen) = probe();
    driver.negotiate(VERSION_1 | EVENT_IDX);
    let ring = Ring::new(&driver.memory, MEMORY.0, 8);
    driver.set_queue(1, &ring.state());
    driver.set(0x70, 15);
    driver.set(0x70, 15);
    let seen = seen.lock().unwrap();
    assert_eq!(seen.starts, 1);
    let active = seen.active.as_ref().unwrap();
    assert_eq!(active.features, VERSION_1 | EVENT_IDX);
    assert!(active.queues[0].is_none());
    let state = active.queues[1].as_ref().unwrap().state();
    assert_eq!(state, QueueState { event_idx: true, indirect: false, ..ring.state() });
}

#[test]
fn a_queue_in_use_cannot_be_changed_but_can_be_taken_away() {
    let (mut driver, seen) = probe();
    driver.bring_up(0, 8);
    let before = driver.transport.save();
    driver.set_queue(0, &QueueState { size: 4, desc: 1 << 40, ..QueueState::default() });
    assert_eq!(driver.transport.save(), CoreState { queue_sel: 0, ..before });
    driver.set(0x44, 0);
    assert_eq!(driver.get(0x44), 0);
    assert_eq!(seen.lock().unwrap().stops, 1);
    let queues: Vec<bool> =
        seen.lock().unwrap().active.as_ref().unwrap().queues.iter().map(Option::is_some).collect();
    assert_eq!(queues, [false, true]);
    driver.set(0x44, 1);
    assert_eq!(driver.get(0x44), 0, "after DRIVER_OK no queue is added");
}

#[test]
fn a_queue_that_is_not_there_reads_as_zero_and_ignores_writes() {
    let (driver, _) = probe();
    for queue in [2, u32::MAX] {
        driver.set_queue(queue, &QueueState { size: 4, ..QueueState::default() });
        assert_eq!((driver.get(0x34), driver.get(0x44)), (0, 0));
        driver.ring(queue);
    }
}

#[test]
fn queues_that_cannot_be_used_break_the_device_until_it_is_reset() {
    let (mut driver, seen) = probe();
    let good = Ring::new(&driver.memory, MEMORY.0, 8).state();
    for bad in [
        QueueState { size: 0, ..good.clone() },
        QueueState { size: 3, ..good.clone() },
        QueueState { size: 32, ..good.clone() },
        QueueState { desc: good.desc + 1, ..good.clone() },
        QueueState { avail: MEMORY_END, ..good.clone() },
        QueueState { used: 0, ..good.clone() },
    ] {
        driver.negotiate(VERSION_1);
        driver.set_queue(0, &bad);
        driver.set(0x70, 15);
        assert_eq!(driver.status(), 15 | 0x40, "{bad:?}");
        assert_eq!(driver.get(0x60), 2);
        assert_eq!(seen.lock().unwrap().starts, 0);
    }
    driver.bring_up(0, 8);
    assert_eq!(driver.status(), 15);
    assert_eq!(seen.lock().unwrap().starts, 1);
}

#[test]
fn a_device_that_cannot_start_needs_a_reset() {
    let (mut driver, seen) = probe();
    seen.lock().unwrap().refuse = true;
    driver.bring_up(0, 8);
    assert_eq!(driver.status(), 15 | 0x40);
    seen.lock().unwrap().refuse = false;
    driver.bring_up(0, 8);
    assert_eq!(driver.status(), 15);
}

#[test]
fn status_zero_forgets_everything_and_takes_the_queues_back() {
    let (mut driver, seen) = probe();
    let before = driver.transport.save();
    driver.bring_up(0b100, 8);
    driver.rings[0].push(&[Piece::In(DATA, 1)]);
    assert_eq!(process(&seen, 0), Round::Idle);
    driver.ring(0);
    assert_eq!(driver.get(0x60), 1);
    driver.set(0x70, 0);
    assert_eq!(seen.lock().unwrap().stops, 1);
    assert_eq!(driver.transport.save(), before);
    assert!(driver.transport.irq_fd().read().is_err());
    assert!(driver.transport.doorbells()[0].read().is_err());
    driver.bring_up(0, 8);
    driver.transport.reset();
    assert_eq!(driver.transport.save(), before);
}

#[test]
fn status_bits_are_never_cleared_one_by_one() {
    let (driver, _) = probe();
    driver.negotiate(VERSION_1);
    driver.set(0x70, 1);
    assert_eq!(driver.status(), 11);
    driver.set(0x70, 0x40 | 0xffff_ff30);
    assert_eq!(driver.status(), 11, "the driver cannot say NEEDS_RESET, and there is no more");
}

#[test]
fn a_device_given_up_is_stopped() {
    let (mut driver, seen) = probe();
    driver.bring_up(0, 8);
    driver.set(0x70, 0x80);
    assert_eq!(driver.status(), 15 | 0x80);
    assert_eq!(seen.lock().unwrap().stops, 1);
    driver.transport.resume();
    assert_eq!(seen.lock().unwrap().starts, 1);
}

#[test]
fn a_pause_keeps_the_queues_where_they_are() {
    let (mut driver, seen) = probe();
    driver.bring_up(0, 8);
    driver.rings[1].push(&[Piece::In(DATA, 1)]);
    process(&seen, 1);
    driver.transport.pause();
    driver.transport.pause();
    assert!(seen.lock().unwrap().active.is_none());
    driver.rings[1].push(&[Piece::In(DATA, 1)]);
    driver.transport.resume();
    driver.transport.resume();
    assert_eq!(seen.lock().unwrap().starts, 2);
    assert_eq!(seen.lock().unwrap().stops, 1);
    process(&seen, 1);
    assert_eq!(driver.rings[1].used(), [(0, 1), (1, 1)]);
}

#[test]
fn a_driver_that_comes_up_during_a_pause_is_served_after_it() {
    let (mut driver, seen) = probe();
    driver.transport.pause();
    driver.bring_up(0, 8);
    assert_eq!(seen.lock().unwrap().starts, 0);
    driver.transport.resume();
    assert_eq!(seen.lock().unwrap().starts, 1);
}

#[test]
fn a_saved_state_goes_on_in_another_device() {
    let (mut driver, seen) = probe();
    driver.bring_up(0b100, 8);
    driver.rings[0].push(&[Piece::In(DATA, 1)]);
    process(&seen, 0);
    driver.transport.pause();
    let state = driver.transport.save();
    let text = serde_json::to_string(&state).unwrap();
    let state: CoreState = serde_json::from_str(&text).unwrap();

    let device = Probe { features: 0b101, ..Probe::default() };
    let other_seen = device.seen.clone();
    let other = transport("other", Box::new(device), driver.memory.clone());
    other.restore(&state).unwrap();
    assert_eq!(other.save(), state);
    assert_eq!(other.irq_fd().read().unwrap(), 1, "a pending cause is raised again");
    driver.rings[0].push(&[Piece::In(DATA, 1)]);
    other.resume();
    process(&other_seen, 0);
    assert_eq!(driver.rings[0].used(), [(0, 1), (1, 1)]);

    let poorer = transport("p", Box::<Probe>::default(), driver.memory.clone());
    assert_eq!(
        poorer.restore(&state),
        Err(RestoreError::Features { name: "p".into(), missing: 0b100 })
    );
    let alien = CoreState { device_type: 1, ..state.clone() };
    assert!(matches!(other.restore(&alien), Err(RestoreError::Type { .. })));
    let short = CoreState { queues: Vec::new(), ..state.clone() };
    assert!(matches!(other.restore(&short), Err(RestoreError::Queues { .. })));
    let richer = CoreState { device: serde_json::json!({ "a": 1 }), ..state };
    assert!(matches!(other.restore(&richer), Err(RestoreError::Device { .. })));
}

#[test]
fn a_device_whose_queues_are_lost_needs_a_reset() {
    let (mut driver, seen) = probe();
    driver.bring_up(0, 8);
    seen.lock().unwrap().lose_queues = true;
    driver.transport.pause();
    driver.transport.resume();
    assert_eq!(driver.status(), 15 | 0x40);
    driver.bring_up(0, 8);
    assert_eq!(driver.status(), 15);
}

#[test]
fn a_notification_rings_the_doorbell_of_its_queue() {
    let (driver, _) = probe();
    driver.ring(1);
    let bells = driver.transport.doorbells();
    assert_eq!(bells.len(), 2);
    assert!(bells[0].read().is_err());
    assert_eq!(bells[1].read().unwrap(), 1);
}

#[test]
fn running_guests_take_no_lock() {
    let (mut driver, seen) = probe();
    driver.bring_up(0, 8);
    driver.rings[0].push(&[Piece::In(DATA, 1)]);
    process(&seen, 0);
    let held = driver.transport.core.lock().unwrap();
    let exits = driver.transport.counters().counts().exits;
    assert_eq!(driver.get(0x60), 1);
    assert_eq!(driver.config(0, 1), [1]);
    driver.set(INTERRUPT_ACK, ACK_USED);
    assert_eq!(driver.transport.counters().counts().exits, exits + 3);
    driver.ring(0);
    assert_eq!(driver.status(), 15);
    drop(held);
}

#[test]
fn a_handler_as_drivers_have_it_hears_of_every_cause() {
    let (mut driver, seen) = probe();
    driver.bring_up(0, 8);
    // As `vm_interrupt` of Linux: read, acknowledge all that was read, then look at both.
    let handler = |driver: &Driver, meanwhile: &dyn Fn()| {
        let status = driver.get(0x60);
        meanwhile();
        // Nobody hears of this one in a machine.
        if status != ACK_USED {
            driver.set(INTERRUPT_ACK, status);
        }
        status
    };
    let interrupt = seen.lock().unwrap().active.as_ref().unwrap().interrupt.clone();
    let edges = || driver.transport.irq_fd().read().unwrap_or(0);
    interrupt.config_changed(0, || [9]);
    assert_eq!((edges(), handler(&driver, &|| ())), (1, 2));
    assert_eq!(driver.config(0, 1), [9]);
    interrupt.signal_queue();
    assert_eq!((edges(), handler(&driver, &|| ())), (1, 1));
    interrupt.config_changed(0, || [10]);
    interrupt.signal_queue();
    assert_eq!((edges(), handler(&driver, &|| ())), (2, 3));
    // What comes in the middle of the handler has an edge of its own, and finds its cause.
    interrupt.signal_queue();
    assert_eq!((edges(), handler(&driver, &|| interrupt.signal_queue())), (1, 1));
    assert_eq!((edges(), handler(&driver, &|| ())), (1, 1));
}

#[test]
fn reads_are_of_memory_at_any_width_and_registers_are_written_as_whole_words_only() {
    let (driver, seen) = probe();
    assert_eq!(driver.config(4, 8), [5, 6, 0, 0, 0, 0, 0, 0]);
    assert_eq!(driver.config(1, 1), [2]);
    driver.transport.write(0x102, &[7]);
    assert_eq!(seen.lock().unwrap().written, [(2, vec![7])]);
    assert_eq!(driver.config(5, 1), [7], "what the device makes of it");
    let read = |offset, width| {
        let mut data = vec![0xaa; width];
        driver.transport.read(offset, &mut data);
        data
    };
    assert_eq!((read(0, 1), read(1, 2)), (b"v".to_vec(), b"ir".to_vec()));
    assert_eq!(read(2, 8), b"rt\x02\0\0\0\x2a\0");
    for width in [1, 2, 3, 8] {
        driver.transport.write(0x70, &vec![1; width]);
        assert_eq!(driver.status(), 0);
    }
    // Whatever answers, its driver or the page itself, it is the same.
    driver.set(0x30, 1);
    driver.set(0x34, 3);
    let mut whole = vec![0; 0x1000];
    let pages = driver.transport.interrupt.registers().pages();
    pages.read_slice(&mut whole, vm_memory::MemoryRegionAddress(0)).unwrap();
    assert_eq!(read(0, 0x1000), whole);
    assert_eq!(whole[0x34..0x36], [8, 0]);
}

#[test]
fn requests_bytes_doorbells_and_interrupts_are_counted_and_its_own_rings_are_not() {
    let (mut driver, seen) = probe();
    driver.bring_up(0, 8);
    let counters = driver.transport.counters().clone();
    {
        let mut seen = seen.lock().unwrap();
        let active = seen.active.as_mut().unwrap();
        active.queues[0].as_ref().unwrap().ring();
    }
    driver.send(0, &[Piece::Out(DATA, 100), Piece::In(DATA + 100, 10)]);
    driver.send(0, &[Piece::Out(DATA, 20), Piece::In(DATA + 100, 10)]);
    driver.ring(0);
    {
        let mut seen = seen.lock().unwrap();
        let Activation { queues, memory, interrupt, .. } = seen.active.as_mut().unwrap();
        let queue = queues[0].as_mut().unwrap();
        queue.quiet();
        let mut heads = Vec::new();
        queue.process(memory, interrupt, |chain| {
            heads.push(chain.head());
            if heads.len() == 1 { Answer::Done(3) } else { Answer::Deferred }
        });
        queue.complete(memory, interrupt, [(heads[1], 4)]);
        queue.quiet();
    }
    let counts = counters.counts();
    assert_eq!((counts.requests, counts.doorbells, counts.interrupts), (2, 3, 2));
    assert_eq!((counts.bytes_from_guest, counts.bytes_to_guest), (120, 7));
    assert_eq!(counts.errors, 0);
    driver.rings[0].set_avail_idx(1000);
    process(&seen, 0);
    assert_eq!(counters.counts().errors, 1);
}
