//! Lanes whose worker hangs in the host: an engine stands for it that does not come back from a kick.

use std::os::fd::BorrowedFd;
use std::sync::{Condvar, Mutex};

use super::*;
use crate::block::{Engine, Job, Keep};

/// How long the tests wait for a worker that hangs. One that only has no processor just now should
/// have one meanwhile.
const SHORT: Duration = Duration::from_secs(1);

#[derive(Default)]
struct State {
    kicks_hang: bool,
    /// Kicks that hang.
    hanging: usize,
}

/// The host.
#[derive(Clone, Default)]
struct Host(Arc<(Mutex<State>, Condvar)>);

impl Host {
    fn hang(&self, hangs: bool) {
        self.0.0.lock().unwrap().kicks_hang = hangs;
        self.0.1.notify_all();
    }

    fn hanging(&self) -> usize {
        self.0.0.lock().unwrap().hanging
    }

    fn kicked(&self) {
        let (state, changed) = &*self.0;
        let mut state = state.lock().unwrap();
        state.hanging += 1;
        while state.kicks_hang {
            state = changed.wait(state).unwrap();
        }
        state.hanging -= 1;
    }
}

/// An engine on that host. It makes no request of it before a kick.
struct HangingEngine {
    host: Host,
    engine: Box<dyn Engine>,
    #[allow(clippy::vec_box, reason = "a job stays where it is")]
    submitted: Vec<Box<Job>>,
}

impl Engine for HangingEngine {
    unsafe fn submit(&mut self, job: Box<Job>) {
        self.submitted.push(job);
    }
    fn kick(&mut self) -> std::io::Result<()> {
        if !self.submitted.is_empty() {
            self.host.kicked();
        }
        for job in self.submitted.drain(..) {
            // SAFETY: as whoever submitted it here promised.
            unsafe { self.engine.submit(job) };
        }
        self.engine.kick()
    }
    fn reap(&mut self, done: &mut Vec<Box<Job>>) {
        self.engine.reap(done);
    }
    fn in_flight(&self) -> usize {
        self.submitted.len() + self.engine.in_flight()
    }
    fn event(&self) -> BorrowedFd<'_> {
        self.engine.event()
    }
    fn hold(&mut self, held: bool) {
        self.engine.hold(held);
    }
    fn cancel(&mut self) {
        self.engine.cancel();
    }
    fn protect(&mut self, memory: Keep) {
        self.engine.protect(memory);
    }
}

/// A disk of `queues` queues on `host`, each with a request that hangs there.
fn hung(host: &Host, queues: u16) -> (Rig, tempfile::NamedTempFile) {
    let file = image(4096);
    let engine = EngineChoice::Threads;
    let options = BlkOptions { engine, queues, worker_patience: SHORT, ..BlkOptions::default() };
    let disk = open(file.path(), false).unwrap();
    let mut device = Blk::new("slow", disk.clone(), options).unwrap();
    for lane in &mut device.lanes {
        let engine = engine.open(&disk, QUEUE_SIZE).unwrap();
        let engine = HangingEngine { host: host.clone(), engine, submitted: Vec::new() };
        lane.hand = Some(Hand::new(Box::new(engine)));
    }
    drop(disk);
    let mut rig = Rig::of(device);
    host.hang(true);
    rig.driver.write(HEAD, &[0; 16]);
    rig.driver.write(STATUS, &[0xee]);
    for queue in 0..queues {
        let pieces = [Piece::Out(HEAD, 16), Piece::In(BUFFER, 512), Piece::In(STATUS, 1)];
        rig.driver.send(queue.into(), &pieces);
    }
    wait_until("kick", || host.hanging() == usize::from(queues));
    (rig, file)
}

/// A read of the first sector goes as it should.
fn works(rig: &mut Rig) {
    rig.driver.bring_up(EVENT_IDX, 64);
    assert_eq!(rig.ask(0, 0, &[Piece::In(BUFFER, 512)]), (0, 513));
    assert_eq!(rig.driver.read(BUFFER, 512), [1; 512]);
}

#[test]
fn a_reset_gives_a_disk_up_whose_worker_hangs_and_the_ring_is_not_touched_any_more() {
    let host = Host::default();
    let (mut rig, _file) = hung(&host, 1);
    at_once(|| rig.driver.set(0x70, 0));
    assert_eq!(rig.driver.status(), 0, "the driver sees a reset that is done");
    assert!(rig.driver.transport.is_busy());
    at_once(|| rig.driver.bring_up(EVENT_IDX, 64));
    assert_ne!(rig.driver.status() & 0x40, 0, "it started while its worker hangs");
    at_once(|| rig.driver.set(0x70, 0));
    // The ring is the guest's again, which has its own words there now.
    let used = rig.driver.rings[0].used;
    rig.driver.write(used, &[0xaa; 16]);
    host.hang(false);
    wait_until("end of the hang", || !rig.driver.transport.is_busy());
    assert_eq!(rig.driver.read(used, 16), [0xaa; 16]);
    assert_eq!(rig.driver.read(STATUS, 1), [0xee], "answered after it was given up");
    works(&mut rig);
}

#[test]
fn a_pause_gives_a_disk_up_whose_worker_hangs_and_its_driver_is_told() {
    let host = Host::default();
    let (mut rig, _file) = hung(&host, 1);
    at_once(|| rig.driver.transport.pause());
    at_once(|| rig.driver.transport.resume());
    assert_eq!(rig.driver.status() & 0x44, 0x44, "broken, and the driver is up");
    assert_eq!(rig.driver.get(0x60) & 2, 2, "a change of configuration says so");
    host.hang(false);
    wait_until("end of the hang", || !rig.driver.transport.is_busy());
    assert!(rig.driver.rings[0].used().is_empty());
    works(&mut rig);
}

#[test]
fn the_queues_of_a_disk_that_hangs_are_waited_for_together_and_a_disk_goes_away_all_the_same() {
    let host = Host::default();
    let (rig, file) = hung(&host, 6);
    let begin = Instant::now();
    drop(rig);
    assert!(begin.elapsed() < 5 * SHORT, "{:?}", begin.elapsed());
    // It is locked as long as something may still come of it.
    assert!(matches!(open(file.path(), false), Err(DiskError::InUse { .. })));
    host.hang(false);
    wait_until("end of the lock", || open(file.path(), false).is_ok());
}
