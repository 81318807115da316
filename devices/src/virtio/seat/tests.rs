//! What becomes of a device of each kind when the worker it is on hangs.

use std::sync::mpsc;
use std::time::{Duration, Instant};

use event_manager::{EventOps, Events, MutEventSubscriber};
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::eventfd::EventFd;

use crate::virtio::testing::subject::{Kind, SIZE, Subject};
use crate::virtio::testing::wait_until;
use crate::worker::Worker;

/// Says so and hangs, until nobody is at the other end any more.
struct Hangs(EventFd, mpsc::Sender<()>, mpsc::Receiver<()>);

impl MutEventSubscriber for Hangs {
    fn init(&mut self, ops: &mut EventOps) {
        ops.add(Events::new(&self.0, EventSet::IN)).unwrap();
    }
    fn process(&mut self, _: Events, _: &mut EventOps) {
        self.0.read().unwrap();
        self.1.send(()).unwrap();
        let _ = self.2.recv();
    }
}

/// How long a worker is waited for. One that only has no processor just now should have one meanwhile.
const PATIENCE: Duration = Duration::from_secs(1);

/// A device that works, on a worker that hangs until the sender is dropped.
fn hung(kind: Kind) -> (Subject, mpsc::Sender<()>) {
    let worker = Worker::spawn("subject").unwrap().with_patience(PATIENCE);
    let mut subject = Subject::on(worker, kind);
    subject.assert_works_after_reset();
    let (release, released) = mpsc::channel();
    let (tell, told) = mpsc::channel();
    let bell = EventFd::new(libc::EFD_NONBLOCK).unwrap();
    let hangs = Hangs(bell.try_clone().unwrap(), tell, released);
    drop(subject.worker.handle().add(hangs).unwrap());
    bell.write(1).unwrap();
    told.recv().unwrap();
    (subject, release)
}

/// It is no fault of the device's, which is given up in bounded time.
fn outlives_a_worker_that_hangs(kind: Kind) {
    let (mut subject, release) = hung(kind);
    let driver = &mut subject.driver;
    let begin = Instant::now();
    driver.set(0x70, 0);
    assert_eq!(driver.status(), 0);
    assert!(!driver.transport.is_busy(), "{kind:?}: nothing of it was running");
    driver.bring_up(subject.kind.features(), SIZE);
    assert_ne!(driver.status() & 0x40, 0, "{kind:?} started on a worker that hangs");
    driver.transport.pause();
    driver.transport.resume();
    driver.set(0x70, 0);
    assert!(begin.elapsed() < Duration::from_secs(10), "{kind:?}: {:?}", begin.elapsed());
    // What the guest has there now stays as it is.
    let used = driver.rings[0].used;
    driver.write(used, &[0xaa; 64]);
    drop(release);
    wait_until("return of the worker", || {
        assert_eq!(driver.read(used, 64), [0xaa; 64], "{kind:?}");
        driver.bring_up(subject.kind.features(), SIZE);
        let broken = driver.status() & 0x40 != 0;
        driver.set(0x70, 0);
        driver.write(used, &[0xaa; 64]);
        !broken
    });
    subject.assert_works_after_reset();
}

#[test]
fn a_device_whose_worker_hangs_is_given_up_and_serves_again_when_the_worker_returns() {
    use Kind::*;
    std::thread::scope(|scope| {
        // A disk has workers of its own.
        for kind in [Rng, Net, NetStream, Vsock, Tty, Ports, Balloon, Pmem, Fs] {
            scope.spawn(move || outlives_a_worker_that_hangs(kind));
        }
    });
}

#[test]
fn devices_that_are_stopped_together_are_waited_for_together() {
    use Kind::*;
    std::thread::scope(|scope| {
        for kind in [Rng, Net, Vsock, Tty, Ports, Balloon, Pmem, Fs] {
            scope.spawn(move || {
                let (subjects, releases): (Vec<_>, Vec<_>) =
                    std::iter::repeat_with(|| hung(kind)).take(6).unzip();
                let begin = Instant::now();
                subjects.iter().for_each(|subject| subject.driver.transport.recall());
                subjects.iter().for_each(|subject| subject.driver.transport.reset());
                assert!(begin.elapsed() < 5 * PATIENCE, "{kind:?}: {:?}", begin.elapsed());
                drop(releases);
            });
        }
    });
    // And those that do not hang go on after it as after any stop.
    let mut subject = Subject::new(Vsock);
    subject.assert_works_after_reset();
    subject.driver.transport.recall();
    subject.driver.transport.pause();
    subject.assert_works_after_reset();
}
