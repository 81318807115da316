use std::os::unix::fs::PermissionsExt;

use super::*;
use crate::rate::Bucket;
use crate::virtio::net::{Card, Direction, Limits, Net};
use crate::virtio::queue::IovecBuffer;
use crate::virtio::testing::{DATA, Driver, Piece};
use crate::worker::Worker;

/// A directory of our own.
fn place() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    std::fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o700)).unwrap();
    dir
}

fn open(dir: &tempfile::TempDir) -> Link {
    Link::open(dir.path(), "wire").unwrap()
}

/// Sends a frame behind an empty header.
fn send(link: &mut Link, frame: &[u8]) -> io::Result<()> {
    send_headed(link, &[&[0; 12], frame].concat())
}

/// Sends what stands behind its own header.
fn send_headed(link: &mut Link, frame: &[u8]) -> io::Result<()> {
    let (mut list, mut frame) = (IovecBuffer::default(), frame.to_vec());
    let (head, tail) = frame.split_at_mut(7);
    link.send(Iovecs::over(&mut [head, tail], &mut list))
}

/// Receives a frame that must stand behind an empty header.
fn receive(link: &mut Link) -> Option<Vec<u8>> {
    let mut frame = receive_headed(link)?;
    let rest = frame.split_off(12);
    assert_eq!(frame, [0; 12]);
    Some(rest)
}

fn receive_headed(link: &mut Link) -> Option<Vec<u8>> {
    let (mut list, mut frame) = (IovecBuffer::default(), vec![0xee; 70_000]);
    let (head, tail) = frame.split_at_mut(10);
    let got = link.receive(Iovecs::over(&mut [head, tail], &mut list));
    match got {
        Ok(Received::Whole(len)) => {
            frame.truncate(len);
            Some(frame)
        }
        Ok(Received::Part(_)) => panic!("a frame came in parts"),
        Err(e) => {
            assert_eq!(e.kind(), io::ErrorKind::WouldBlock);
            None
        }
    }
}

/// Waits for an event of the link's descriptor, edge-triggered as the worker does; true when one came.
struct Watcher(Epoll);

impl Watcher {
    fn new(link: &Link) -> Watcher {
        let epoll = Epoll::new().unwrap();
        let edges = EventSet::IN | EventSet::OUT | EventSet::EDGE_TRIGGERED;
        let event = EpollEvent::new(edges, 0);
        epoll.ctl(ControlOperation::Add, link.descriptor(), event).unwrap();
        Watcher(epoll)
    }

    fn wait(&self, millis: i32) -> bool {
        self.0.wait(millis, &mut [EpollEvent::default()]).unwrap() > 0
    }

    /// Receives at each event, and only then, until `done`.
    fn until(
        &self,
        link: &mut Link,
        what: &str,
        mut done: impl FnMut(&Link, Option<Vec<u8>>) -> bool,
    ) {
        loop {
            let frame = receive(link);
            let more = frame.is_some();
            if done(link, frame) {
                return;
            }
            assert!(more || self.wait(10_000), "no {what}");
        }
    }
}

#[test]
fn frames_go_both_ways_whole_whoever_came_first() {
    let dir = place();
    let (mut a, mut b) = (open(&dir), open(&dir));
    assert!(!a.is_up() && b.is_up());
    let watcher = Watcher::new(&a);
    watcher.until(&mut a, "peer", |a, _| a.is_up());
    for len in [14, 1514, 65_550] {
        let frame: Vec<u8> = (0..len).map(|i| (i % 251) as u8).collect();
        send(&mut a, &frame).unwrap();
        send(&mut b, &frame).unwrap();
        assert_eq!(receive(&mut b), Some(frame.clone()));
        assert_eq!(receive(&mut a), Some(frame));
    }
    assert_eq!(receive(&mut a), None);
}

#[test]
fn either_may_leave_and_come_back() {
    let dir = place();
    let (mut a, mut b) = (open(&dir), open(&dir));
    for round in 0..6u8 {
        receive(&mut a);
        // In turn the one that listened and the one that connected.
        let (stays, leaves) = if round % 2 == 0 { (&mut a, &mut b) } else { (&mut b, &mut a) };
        receive(stays);
        let watcher = Watcher::new(stays);
        let gone = std::mem::replace(leaves, open(&place()));
        drop(gone);
        watcher.until(stays, "farewell", |link, _| !link.is_up());
        assert!(send(stays, &[0; 64]).is_err(), "nobody is there");
        *leaves = open(&dir);
        watcher.until(stays, "return", |link, _| link.is_up());
        receive(leaves);
        send(leaves, &[round; 64]).unwrap();
        watcher.until(stays, "frame", |_, frame| frame.is_some_and(|f| f == [round; 64]));
        send(stays, &[round; 20]).unwrap();
        assert_eq!(receive(leaves), Some(vec![round; 20]));
    }
}

#[test]
fn the_cards_at_both_ends_have_different_addresses_whoever_comes_back() {
    let dir = place();
    let (mut a, mut b) = (open(&dir), open(&dir));
    let (first, second) = (a.mac_of("net0"), b.mac_of("net0"));
    assert_eq!(first, mac_of("net0"));
    assert_ne!(first, second);
    assert_eq!(second[0] & 3, 2, "local, unicast");
    receive(&mut a);
    for leaves_first in [true, true, false, true, false] {
        let (stays, leaves) = if leaves_first { (&mut b, &mut a) } else { (&mut a, &mut b) };
        drop(std::mem::replace(leaves, open(&place())));
        // It listens from now on if it did not.
        receive(stays);
        *leaves = open(&dir);
        receive(stays);
        assert!(stays.is_up() && leaves.is_up());
        assert_eq!((a.mac_of("net0"), b.mac_of("net0")), (first, second));
    }
}

#[test]
fn a_third_is_refused_and_told_why() {
    let dir = place();
    let (mut a, b) = (open(&dir), open(&dir));
    // Also while nobody serves the first.
    let error = Link::open(dir.path(), "wire").err().unwrap();
    assert!(matches!(error, LinkError::Taken { .. }), "{error}");
    receive(&mut a);
    assert!(a.is_up() && b.is_up());
    let error = Link::open(dir.path(), "wire").err().unwrap();
    assert!(matches!(error, LinkError::Taken { .. }), "{error}");
    assert!(error.to_string().contains("another name"));
    drop(a);
    // The one that stays may not have noticed yet that it has to listen now.
    let mut b = b;
    receive(&mut b);
    Link::open(dir.path(), "wire").unwrap();
}

#[test]
fn a_socket_that_was_left_behind_is_replaced() {
    let dir = place();
    let left = listen(&dir.path().join("wire.link")).unwrap();
    drop(left);
    assert!(dir.path().join("wire.link").exists());
    let mut a = open(&dir);
    let b = open(&dir);
    receive(&mut a);
    assert!(a.is_up() && b.is_up());
    drop((a, b));
    assert!(!dir.path().join("wire.link").exists());
}

#[test]
fn whoever_does_not_read_stops_the_other_and_lets_it_go_on() {
    let dir = place();
    let (mut a, mut b) = (open(&dir), open(&dir));
    receive(&mut a);
    let watcher = Watcher::new(&a);
    while watcher.wait(0) {}
    let mut sent = 0;
    let full = loop {
        match send(&mut a, &[7; 1514]) {
            Ok(()) => sent += 1,
            Err(e) => break e,
        }
    };
    assert_eq!(full.kind(), io::ErrorKind::WouldBlock);
    assert!(sent > 10 && !watcher.wait(0));
    for _ in 0..sent {
        assert_eq!(receive(&mut b).map(|f| f.len()), Some(1514));
    }
    assert!(watcher.wait(10_000), "no event when there was room again");
    send(&mut a, &[8; 20]).unwrap();
    assert_eq!(receive(&mut b), Some(vec![8; 20]));
}

#[test]
fn a_directory_that_others_could_use_is_refused() {
    let dir = place();
    std::fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o750)).unwrap();
    let error = Link::open(dir.path(), "wire").err().unwrap();
    assert!(matches!(error, LinkError::Unsafe { .. }), "{error}");
    assert!(error.to_string().contains("XDG_RUNTIME_DIR"), "{error}");
    let link = dir.path().join("link");
    std::os::unix::fs::symlink(place().path(), &link).unwrap();
    assert!(matches!(Link::open(&link, "wire"), Err(LinkError::Unsafe { .. })));
    let others = place();
    // Only root can give one away.
    if std::os::unix::fs::chown(others.path(), Some(65534), None).is_ok() {
        assert!(matches!(Link::open(others.path(), "wire"), Err(LinkError::Unsafe { .. })));
    }
    // One that is made is not.
    let made = dir.path().join("husk");
    let _end = Link::open(&made, "wire").unwrap();
    assert_eq!(made.metadata().unwrap().mode() & 0o777, 0o700);
    let long = place();
    let error = Link::open(long.path(), &"x".repeat(100)).err().unwrap();
    assert!(matches!(error, LinkError::TooLong { .. }), "{error}");
}

#[test]
fn a_limit_counts_the_headers_of_every_piece() {
    let dir = place();
    let mut link = open(&dir);
    // An end to which nothing can be left.
    let _older = connect(&dir.path().join("wire.link")).unwrap().unwrap();
    assert_eq!(receive(&mut link), None);
    let worker = Worker::spawn("net").unwrap();
    // For a frame of 10054 bytes and one of 60, if it were not for the headers of 6 more pieces. It gains
    // nothing to speak of.
    let tx = Direction::new(Some(Bucket::new(10_200, 1)), None);
    let limits = Limits { tx, ..Limits::default() };
    let card = Card { limits, ..Card::default() };
    let net = Net::new("net0", Box::new(link), card, worker.handle());
    let mut driver = Driver::start(Box::new(net), 0, 16);
    let mut large = vec![1, 1, 54, 0, 0xa8, 5, 34, 0, 16, 0, 0, 0];
    large.extend([0x52; 12]);
    large.extend([8, 0, 0x45, 0, 0, 0, 0, 1, 0, 0, 64, 6, 0, 0, 10, 0, 9, 1, 10, 0, 9, 2]);
    large.extend([0, 80, 1, 2, 0, 0, 0, 0, 1, 2, 3, 4, 0x50, 0x10, 1, 0, 0, 0, 0, 0]);
    large.resize(12 + 10_054, 7);
    driver.write(DATA, &large);
    driver.send(1, &[Piece::Out(DATA, large.len() as u32)]);
    driver.wait_used(1, 1);
    driver.write(DATA, &[0; 72]);
    driver.send(1, &[Piece::Out(DATA, 72)]);
    std::thread::sleep(Duration::from_millis(100));
    assert!(driver.rings[1].used().is_empty(), "it was not charged");
}

#[test]
fn the_last_end_takes_everything_along_and_whoever_comes_meanwhile_finds_the_same_file() {
    const TIMES: usize = 200;
    let dir = place();
    let (one, two) = (open(&dir), open(&dir));
    drop(one);
    assert!(dir.path().join("wire.lock").exists(), "there is another end");
    drop(two);
    assert_eq!(dir.path().read_dir().unwrap().count(), 0);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                for _ in 0..TIMES {
                    let link = open(&dir);
                    assert!(is_at(&link.lock, &link.place).unwrap());
                    assert!(link.side.is_some());
                }
            });
        }
    });
    // Two that went at the same time may have left it.
    drop(open(&dir));
    assert_eq!(dir.path().read_dir().unwrap().count(), 0);
    // A third takes nothing along.
    let (_one, _two) = (open(&dir), open(&dir));
    assert!(matches!(Link::open(dir.path(), "wire"), Err(LinkError::Taken { .. })));
    assert!(dir.path().join("wire.lock").exists());
}
