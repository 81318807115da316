use super::*;
use crate::virtio::testing::{
    DATA, Driver, EVENT_IDX, MEMORY, MEMORY_END, Piece, VERSION_1, transport, wait_until,
};
use crate::worker::Worker;

const LIST: u64 = DATA;
/// Pages for giving up, above the lists.
const PAGES: u64 = DATA + 0x1_0000;
const ALL: u64 = STATS_VQ | DEFLATE_ON_OOM | PAGE_POISON | PAGE_REPORTING;

struct Rig {
    driver: Driver,
    balloon: Arc<Balloon>,
    worker: Worker,
}

fn rig(features: u64) -> Rig {
    let (worker, balloon) = (Worker::spawn("balloon").unwrap(), Balloon::new(0).unwrap());
    // The device gives back what its driver's memory is, which exists only with the driver.
    let memory = crate::virtio::testing::guarded_memory(&[MEMORY]);
    let plain = Plain::new(memory.clone(), Vec::new());
    let device = BalloonDevice::new(balloon.clone(), plain, worker.handle());
    let transport = transport("test", Box::new(device), memory.clone());
    let mut driver = Driver { transport, memory, rings: Vec::new() };
    driver.bring_up(features, 16);
    Rig { driver, balloon, worker }
}

impl Rig {
    /// Fills `count` pages from [`PAGES`] on.
    fn fill(&self, count: u64) {
        for n in 0..count {
            self.driver.write(PAGES + n * PAGE, &[7; 8]);
        }
    }

    /// Which of the first `count` pages have kept their bytes.
    fn kept(&self, count: u64) -> Vec<bool> {
        (0..count).map(|n| self.driver.read(PAGES + n * PAGE, 8) == [7; 8]).collect()
    }

    fn give(&mut self, queue: usize, pages: &[u32]) {
        let list: Vec<u8> = pages.iter().flat_map(|page| page.to_le_bytes()).collect();
        self.driver.write(LIST, &list);
        self.driver.send(queue, &[Piece::Out(LIST, list.len() as u32)]);
        assert_eq!(self.driver.wait_used(queue, 1).len(), 1);
    }

    fn errors(&self) -> u64 {
        self.driver.transport.counters().counts().errors
    }
}

#[test]
fn pages_the_guest_gives_up_are_given_back_in_runs_of_either_direction() {
    let mut rig = rig(ALL | EVENT_IDX);
    let first = (PAGES / PAGE) as u32;
    rig.fill(8);
    rig.give(INFLATE, &[first + 1, first + 2, first + 6, first + 5]);
    assert_eq!(rig.kept(8), [true, false, false, true, true, false, false, true]);
    rig.fill(8);
    rig.give(DEFLATE, &[first + 1, first + 2]);
    assert_eq!(rig.kept(8), [true; 8]);
    assert_eq!(rig.errors(), 0);
}

#[test]
fn page_numbers_that_are_no_ram_are_passed_over_and_counted() {
    let mut rig = rig(ALL);
    rig.fill(4);
    let (first, end) = ((PAGES / PAGE) as u32, (MEMORY_END / PAGE) as u32);
    rig.give(INFLATE, &[0, u32::MAX, first, end, 0xd_0000, first + 3, u32::MAX - 1]);
    assert_eq!(rig.kept(4), [false, true, true, false]);
    assert_eq!(rig.errors(), 5);
    // A run that begins in RAM and ends outside.
    rig.give(INFLATE, &[end - 2, end - 1, end, end + 1]);
    assert_eq!(rig.errors(), 7);
    // Half a number is none.
    rig.driver.send(INFLATE, &[Piece::Out(LIST, 3)]);
    assert_eq!(rig.driver.wait_used(INFLATE, 1).len(), 1);
}

#[test]
fn a_request_for_more_pages_than_any_driver_s_breaks_the_device_and_does_not_keep_the_worker() {
    let mut rig = rig(ALL);
    rig.driver.send(INFLATE, &[Piece::Out(DATA, 4 * PAGES_MAX as u32 + 4)]);
    rig.driver.wait_broken();
    rig.driver.bring_up(ALL, 16);
    rig.give(INFLATE, &[(PAGES / PAGE) as u32]);
}

#[test]
fn free_pages_that_are_reported_are_given_back_unless_they_must_keep_what_is_in_them() {
    let mut rig = rig(ALL);
    rig.fill(6);
    let reported = [Piece::In(PAGES + PAGE, 2 * PAGE as u32), Piece::In(PAGES + 4 * PAGE, 4097)];
    rig.driver.send(3, &reported);
    assert_eq!(rig.driver.wait_used(3, 1), [(0, 0)]);
    assert_eq!(rig.kept(6), [true, false, false, true, false, true]);
    rig.fill(6);
    rig.driver.set(0x100 + POISON, 0xaa);
    rig.driver.send(3, &reported);
    assert_eq!(rig.driver.wait_used(3, 1).len(), 1);
    assert_eq!(rig.kept(6), [true; 6]);
}

#[test]
fn the_queues_after_the_first_two_are_those_that_were_agreed_on() {
    // Without statistics Linux has free pages on queue 2; the specification has them on 4.
    for (features, queue, unused) in [(PAGE_REPORTING, 2, vec![]), (ALL, 4, vec![3])] {
        let mut rig = rig(features);
        let queues: Vec<_> = rig.driver.rings.iter().map(|ring| ring.state()).collect();
        rig.driver.negotiate(features | VERSION_1);
        for (n, queue) in queues.iter().enumerate().filter(|(n, _)| !unused.contains(n)) {
            rig.driver.set_queue(n as u32, queue);
        }
        rig.driver.set(0x70, 1 | 2 | 4 | 8);
        rig.fill(1);
        rig.driver.send(queue, &[Piece::In(PAGES, PAGE as u32)]);
        assert_eq!(rig.driver.wait_used(queue, 1).len(), 1);
        assert_eq!(rig.kept(1), [false], "queue {queue}");
    }
}

#[test]
fn what_is_wanted_is_told_and_what_the_guest_says_it_gave_is_heard() {
    let rig = rig(ALL);
    assert_eq!(rig.driver.config(0, 16), [0; 16]);
    rig.balloon.set(3 * PAGE + 1);
    wait_until("a configuration change", || rig.driver.get(0x60) & 2 != 0);
    assert_eq!(rig.driver.config(0, 4), [3, 0, 0, 0]);
    rig.driver.set(0x104, 2);
    assert_eq!((rig.balloon.wanted(), rig.balloon.actual()), (3 * PAGE, 2 * PAGE));
    // Nothing but these two fields can be written.
    rig.driver.set(0x100, 77);
    rig.driver.set(0x108, 77);
    assert_eq!(rig.driver.config(0, 12), [3, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0]);
    // A reboot forgets what the guest gave, and not what is wanted.
    rig.driver.transport.reset();
    assert_eq!((rig.balloon.wanted(), rig.balloon.actual()), (3 * PAGE, 0));
    // Nobody serves it, and what is wanted is to be found all the same.
    rig.balloon.set(4 * PAGE);
    assert_eq!(rig.driver.config(0, 8), [4, 0, 0, 0, 0, 0, 0, 0]);
}

#[test]
fn statistics_are_what_the_guest_tells_after_it_was_asked() {
    let mut rig = rig(ALL | EVENT_IDX);
    let tell = |rig: &Rig, free: u64| {
        let mut list = Vec::new();
        for (tag, value) in [(4u16, free), (99, 1), (5, 1 << 30)] {
            list.extend(tag.to_le_bytes());
            list.extend(value.to_le_bytes());
        }
        rig.driver.write(LIST, &list);
    };
    tell(&rig, 1000);
    rig.driver.send(2, &[Piece::Out(LIST, 30)]);
    assert_eq!(rig.balloon.statistics(Duration::from_millis(1)), None);
    // It was asked in vain: it answers too late, and is asked again.
    rig.driver.wait_used(2, 1);
    let before = rig.balloon.told().times;
    rig.driver.send(2, &[Piece::Out(LIST, 30)]);
    wait_until("what it tells", || rig.balloon.told().times > before);
    let balloon = rig.balloon.clone();
    let asked = std::thread::spawn(move || balloon.statistics(Duration::from_secs(10)));
    assert_eq!(rig.driver.wait_used(2, 1), [(1, 0)]);
    tell(&rig, 2000);
    rig.driver.send(2, &[Piece::Out(LIST, 30)]);
    let told = asked.join().unwrap().unwrap();
    assert_eq!((told.free, told.total, told.caches), (Some(2000), Some(1 << 30), None));
    // A list of nothing, and one of more than there are tags, are lists too.
    rig.driver.transport.pause();
    rig.driver.transport.resume();
    let balloon = rig.balloon.clone();
    let asked = std::thread::spawn(move || balloon.statistics(Duration::from_secs(10)));
    rig.driver.wait_used(2, 1);
    rig.driver.send(2, &[Piece::Out(LIST, 0x1000)]);
    assert!(asked.join().unwrap().is_some());
}

#[test]
fn a_saved_balloon_goes_on_in_another() {
    let rig = rig(ALL);
    rig.balloon.set(5 * PAGE);
    rig.driver.set(0x104, 4);
    rig.driver.transport.pause();
    let saved = serde_json::to_string(&rig.driver.transport.save()).unwrap();
    let state = serde_json::from_str(&saved).unwrap();
    let balloon = Balloon::new(0).unwrap();
    let plain = Plain::new(rig.driver.memory.clone(), Vec::new());
    let device = Box::new(BalloonDevice::new(balloon.clone(), plain, rig.worker.handle()));
    let other = transport("o", device, rig.driver.memory.clone());
    other.restore(&state).unwrap();
    assert_eq!((balloon.wanted(), balloon.actual()), (5 * PAGE, 4 * PAGE));
    assert_eq!(other.save(), state);
    let mut bad = state;
    bad.device = serde_json::json!({ "wanted": -1, "actual": 0, "poison": 0 });
    assert!(other.restore(&bad).is_err());
}
