//! Tasks come and go, workers fail, end and hang.

use super::*;
use std::os::fd::AsRawFd;
use std::sync::atomic::AtomicU64;
use std::sync::mpsc;

use event_manager::{EventOps, Events, MutEventSubscriber};
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::eventfd::EventFd;

struct Counter {
    doorbell: EventFd,
    rung: u64,
    told: mpsc::Sender<u64>,
}

impl MutEventSubscriber for Counter {
    fn init(&mut self, ops: &mut EventOps) {
        ops.add(Events::new(&self.doorbell, EventSet::IN)).unwrap();
    }
    fn process(&mut self, events: Events, _: &mut EventOps) {
        assert_eq!(events.fd(), self.doorbell.as_raw_fd());
        self.rung += self.doorbell.read().unwrap();
        self.told.send(self.rung).unwrap();
    }
}

#[test]
fn a_task_runs_in_the_loop_and_comes_back_with_its_state() {
    let worker = Worker::spawn("test").unwrap();
    let doorbell = EventFd::new(libc::EFD_NONBLOCK).unwrap();
    let (told, heard) = mpsc::channel();
    let task = Counter { doorbell: doorbell.try_clone().unwrap(), rung: 0, told };
    let task = worker.handle().add(task).unwrap();
    doorbell.write(1).unwrap();
    assert_eq!(heard.recv().unwrap(), 1);
    assert_eq!(task.take().unwrap().rung, 1);
}

/// Panics when its doorbell rings.
struct Panicking(EventFd);

impl MutEventSubscriber for Panicking {
    fn init(&mut self, ops: &mut EventOps) {
        ops.add(Events::new(&self.0, EventSet::IN)).unwrap();
    }
    fn process(&mut self, _: Events, _: &mut EventOps) {
        panic!("rung");
    }
}

#[test]
fn a_worker_whose_task_panics_tells_so_and_one_that_ends_says_nothing() {
    let (tell, told) = mpsc::channel();
    let worker = Worker::spawn_watched("watched", move |why| tell.send(why).unwrap()).unwrap();
    let doorbell = EventFd::new(libc::EFD_NONBLOCK).unwrap();
    let task = worker.handle().add(Panicking(doorbell.try_clone().unwrap())).unwrap();
    doorbell.write(1).unwrap();
    let why = told.recv().unwrap();
    assert!(why.contains("worker thread watched panicked") && why.ends_with("rung"), "{why}");
    assert!(task.take().is_none());

    let (tell, told) = mpsc::channel();
    drop(Worker::spawn_watched("quiet", move |why| tell.send(why).unwrap()).unwrap());
    assert!(told.recv().is_err());
}

#[test]
fn a_task_of_a_worker_that_ended_is_gone_and_says_so() {
    let worker = Worker::spawn("test").unwrap();
    let doorbell = EventFd::new(libc::EFD_NONBLOCK).unwrap();
    let (told, _heard) = mpsc::channel();
    let task = worker.handle().add(Counter { doorbell, rung: 0, told }).unwrap();
    drop(worker);
    assert!(task.take().is_none());
}

/// How long the tests wait for a worker that hangs.
const SHORT: Duration = Duration::from_millis(60);
/// Far more than anything takes that does not wait for ever.
const LONG: Duration = Duration::from_secs(10);

fn bell() -> EventFd {
    EventFd::new(libc::EFD_NONBLOCK).unwrap()
}

/// Hangs in its callback until it is told to go on; then says what it may do still.
struct Hanging {
    doorbell: EventFd,
    lease: Lease,
    /// Whether it lays its lease down meanwhile.
    away: bool,
    entered: mpsc::Sender<()>,
    go_on: mpsc::Receiver<()>,
    may_touch: mpsc::Sender<bool>,
}

impl MutEventSubscriber for Hanging {
    fn init(&mut self, ops: &mut EventOps) {
        ops.add(Events::new(&self.doorbell, EventSet::IN)).unwrap();
    }
    fn process(&mut self, _: Events, _: &mut EventOps) {
        self.doorbell.read().unwrap();
        let Hanging { entered, go_on, lease, .. } = self;
        let hang = || {
            entered.send(()).unwrap();
            let _ = go_on.recv();
        };
        let may_touch = match self.away {
            true => lease.away(hang).is_some(),
            false => {
                hang();
                true
            }
        };
        // Nobody listens in most tests.
        let _ = self.may_touch.send(may_touch);
    }
}

/// A worker with a task that hangs in it.
struct Stuck {
    worker: Worker,
    task: Option<Task<Hanging>>,
    go_on: mpsc::Sender<()>,
    may_touch: mpsc::Receiver<bool>,
}

impl Stuck {
    fn new(away: bool) -> Stuck {
        Stuck::on(Worker::spawn("stuck").unwrap(), SHORT, away)
    }

    fn on(worker: Worker, patience: Duration, away: bool) -> Stuck {
        let doorbell = bell();
        let (entered, has_entered) = mpsc::channel();
        let (go_on, goes_on) = mpsc::channel();
        let (tell, may_touch) = mpsc::channel();
        let ring = doorbell.try_clone().unwrap();
        let task = worker.handle().add_with(|lease| Hanging {
            doorbell,
            lease,
            away,
            entered,
            go_on: goes_on,
            may_touch: tell,
        });
        ring.write(1).unwrap();
        has_entered.recv_timeout(LONG).unwrap();
        // Only now, for a machine that is busy takes its time over what does not hang, too.
        let (worker, mut task) = (worker.with_patience(patience), task.unwrap());
        task.worker.patience = patience;
        Stuck { worker, task: Some(task), go_on, may_touch }
    }

    /// Asks for the task, which is late.
    fn late(&mut self) -> Recall<Hanging> {
        let task = self.task.take().unwrap();
        let deadline = task.deadline();
        match task.recall().wait(deadline) {
            Returned::Late(recall) => recall,
            _ => panic!("it came back"),
        }
    }
}

/// Looks until the task that is late has come back.
fn eventually<T: Run>(mut recall: Recall<T>) -> T {
    let begin = Instant::now();
    loop {
        recall = match recall.poll() {
            Returned::Back(task) => return task,
            Returned::Gone => panic!("it is gone"),
            Returned::Late(recall) => recall,
        };
        assert!(begin.elapsed() < LONG, "it does not come back");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn a_task_whose_worker_hangs_is_given_up_after_a_while_and_had_back_when_it_returns() {
    let mut stuck = Stuck::new(false);
    let begin = Instant::now();
    let late = stuck.late();
    assert!(begin.elapsed() >= SHORT && begin.elapsed() < LONG);
    assert!(late.may_touch(), "it is in the middle of a callback");
    stuck.go_on.send(()).unwrap();
    let task = eventually(late);
    assert!(task.lease.is_recalled());
    // And the worker is one like any other again.
    let (told, heard) = mpsc::channel();
    let doorbell = bell();
    let ring = doorbell.try_clone().unwrap();
    let again = stuck.worker.handle().add(Counter { doorbell, rung: 0, told }).unwrap();
    ring.write(1).unwrap();
    assert_eq!(heard.recv_timeout(LONG).unwrap(), 1);
    assert!(again.take().is_some());
}

#[test]
fn a_call_that_hangs_comes_back_to_a_task_that_may_touch_nothing() {
    let mut stuck = Stuck::new(true);
    let late = stuck.late();
    assert!(!late.may_touch(), "it has laid its lease down");
    stuck.go_on.send(()).unwrap();
    assert!(!stuck.may_touch.recv_timeout(LONG).unwrap());
    assert!(!eventually(late).lease.enter());

    // One that comes back in time notices nothing.
    let mut stuck = Stuck::new(true);
    stuck.go_on.send(()).unwrap();
    assert!(stuck.may_touch.recv_timeout(LONG).unwrap());
    assert!(stuck.task.take().unwrap().take().is_some());
}

#[test]
fn a_worker_that_hangs_is_waited_for_once_and_its_other_tasks_are_not_called_again() {
    let patience = Duration::from_millis(600);
    let worker = Worker::spawn("stuck").unwrap();
    let (told, heard) = mpsc::channel();
    let other = Counter { doorbell: bell(), rung: 0, told };
    let ring = other.doorbell.try_clone().unwrap();
    let mut other = worker.handle().add(other).unwrap();
    other.worker.patience = patience;
    let mut stuck = Stuck::on(worker, patience, false);
    let late = stuck.late();
    let begin = Instant::now();
    let deadline = other.deadline();
    let Returned::Late(other) = other.recall().wait(deadline) else { panic!("it came back") };
    let refused = stuck.worker.handle().add(Panicking(bell()));
    assert!(matches!(refused, Err(WorkerError::Hangs(name)) if name == "stuck"));
    assert!(begin.elapsed() < patience, "waited for again");
    assert!(!other.may_touch());
    ring.write(1).unwrap();
    stuck.go_on.send(()).unwrap();
    eventually(late);
    assert_eq!(eventually(other).rung, 0);
    assert!(heard.try_recv().is_err(), "called after it was given up");
}

#[test]
fn several_workers_that_hang_cost_one_deadline_and_none_that_answers_is_lost() {
    let mut stuck: Vec<_> = (0..6).map(|_| Stuck::new(false)).collect();
    let worker = Worker::spawn("fine").unwrap();
    let (told, _heard) = mpsc::channel();
    let fine = worker.handle().add(Counter { doorbell: bell(), rung: 0, told }).unwrap();
    let limit = Duration::from_millis(300);
    let begin = Instant::now();
    let recalls: Vec<_> = stuck.iter_mut().map(|s| s.task.take().unwrap().recall()).collect();
    let fine = fine.recall();
    for recall in recalls {
        assert!(matches!(recall.wait(begin + limit), Returned::Late(_)));
    }
    assert!(begin.elapsed() < 5 * limit, "{:?}", begin.elapsed());
    assert!(matches!(fine.wait(begin), Returned::Back(_)));
}

#[test]
fn a_worker_that_hangs_does_not_keep_who_drops_it() {
    let stuck = Stuck::new(false);
    let begin = Instant::now();
    drop(stuck.worker);
    assert!(begin.elapsed() >= SHORT && begin.elapsed() < LONG);
    stuck.go_on.send(()).unwrap();
    // It ends all the same.
    assert!(stuck.may_touch.recv_timeout(LONG).unwrap());
    assert!(stuck.may_touch.recv_timeout(LONG).is_err());
}

/// Counts its drops.
struct Dropped(Arc<AtomicU64>);

impl MutEventSubscriber for Dropped {
    fn init(&mut self, _: &mut EventOps) {
        panic!("put into the loop");
    }
    fn process(&mut self, _: Events, _: &mut EventOps) {}
}

impl Drop for Dropped {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

#[test]
fn a_task_that_a_hanging_worker_did_not_take_never_runs() {
    let stuck = Stuck::new(false);
    let drops = Arc::new(AtomicU64::new(0));
    let refused = stuck.worker.handle().add(Dropped(drops.clone()));
    assert!(matches!(refused, Err(WorkerError::Hangs(_))));
    assert_eq!(drops.load(Ordering::Relaxed), 0);
    stuck.go_on.send(()).unwrap();
    let begin = Instant::now();
    while drops.load(Ordering::Relaxed) == 0 {
        assert!(begin.elapsed() < LONG, "it is kept for ever");
        std::thread::sleep(Duration::from_millis(1));
    }
}
