use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use super::*;
use crate::virtio::testing::{DATA, Driver, EVENT_IDX, Piece, transport, wait_until};
use crate::worker::Worker;

const MULTIPORT: u64 = 1 << VIRTIO_CONSOLE_F_MULTIPORT;
const READY: [u8; 8] = [0xff, 0xff, 0xff, 0xff, 0, 0, 1, 0];
/// Where messages of and for the driver lie.
const SAID: u64 = DATA;
const HEARD: u64 = DATA + 0x1000;
const BYTES: u64 = DATA + 0x2000;

struct Rig {
    driver: Driver,
    dir: tempfile::TempDir,
    worker: Worker,
}

impl Rig {
    /// A driver of two ports, `sock` and `log`.
    fn new() -> Rig {
        let (dir, worker) = (tempfile::tempdir().unwrap(), Worker::spawn("ports").unwrap());
        let ports = Ports::new(endpoints(&dir), worker.handle());
        let driver = Driver::start(Box::new(ports), MULTIPORT | EVENT_IDX, 16);
        Rig { driver, dir, worker }
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("sock")
    }

    fn connect(&self) -> UnixStream {
        let client = UnixStream::connect(self.socket()).unwrap();
        client.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        client
    }

    fn say(&mut self, message: &[u8]) {
        self.driver.write(SAID, message);
        self.driver.send(3, &[Piece::Out(SAID, message.len() as u32)]);
        assert_eq!(self.driver.wait_used(3, 1).len(), 1);
    }

    /// The next message of the device's.
    fn hear(&mut self) -> Vec<u8> {
        self.driver.send(2, &[Piece::In(HEARD, 64)]);
        let (_, len) = self.driver.wait_used(2, 1)[0];
        self.driver.read(HEARD, len as usize)
    }

    /// As Linux does it, until both ports are open in the guest.
    fn handshake(&mut self) {
        self.say(&READY);
        assert_eq!(self.hear(), [0, 0, 0, 0, 1, 0, 1, 0]);
        assert_eq!(self.hear(), [1, 0, 0, 0, 1, 0, 1, 0]);
        self.say(&[0, 0, 0, 0, 3, 0, 1, 0]);
        assert_eq!(self.hear(), b"\0\0\0\0\x07\0\x01\0sock");
        self.say(&[1, 0, 0, 0, 3, 0, 1, 0]);
        assert_eq!(self.hear(), b"\x01\0\0\0\x07\0\x01\0log");
        // The file is open, the socket has no client yet.
        assert_eq!(self.hear(), [1, 0, 0, 0, 6, 0, 1, 0]);
        self.open(0, true);
        self.open(1, true);
    }

    fn open(&mut self, id: u8, open: bool) {
        self.say(&[id, 0, 0, 0, 6, 0, open.into(), 0]);
    }
}

fn endpoints(dir: &tempfile::TempDir) -> Vec<(String, Endpoint)> {
    let socket = Endpoint::socket(&dir.path().join("sock")).unwrap();
    let log = Endpoint::file(&dir.path().join("log")).unwrap();
    vec![("sock".into(), socket), ("log".into(), log)]
}

#[test]
fn a_port_is_added_named_and_opened_as_clients_come_and_go() {
    let mut rig = Rig::new();
    assert_eq!(rig.driver.config(4, 4), [2, 0, 0, 0]);
    rig.handshake();
    let client = rig.connect();
    assert_eq!(rig.hear(), [0, 0, 0, 0, 6, 0, 1, 0]);
    drop(client);
    assert_eq!(rig.hear(), [0, 0, 0, 0, 6, 0, 0, 0]);
    let _again = rig.connect();
    assert_eq!(rig.hear(), [0, 0, 0, 0, 6, 0, 1, 0]);
}

#[test]
fn bytes_go_both_ways_and_what_the_client_wrote_before_it_went_arrives() {
    let mut rig = Rig::new();
    rig.handshake();
    let mut client = rig.connect();
    assert_eq!(rig.hear()[4..], [6, 0, 1, 0]);
    rig.driver.write(BYTES, b"to the host");
    rig.driver.send(1, &[Piece::Out(BYTES, 3), Piece::Out(BYTES + 3, 8)]);
    let mut got = [0; 11];
    client.read_exact(&mut got).unwrap();
    assert_eq!(&got, b"to the host");
    assert_eq!(rig.driver.wait_used(1, 1), [(0, 0)]);

    client.write_all(b"to the guest").unwrap();
    drop(client);
    rig.driver.send(0, &[Piece::In(BYTES, 6)]);
    assert_eq!(rig.driver.wait_used(0, 1), [(0, 6)]);
    rig.driver.send(0, &[Piece::In(BYTES + 6, 100)]);
    assert_eq!(rig.driver.wait_used(0, 1), [(1, 6)]);
    assert_eq!(rig.driver.read(BYTES, 12), b"to the guest");
    assert_eq!(rig.hear()[4..], [6, 0, 0, 0]);
}

#[test]
fn what_comes_before_the_guest_opens_the_port_waits_for_it() {
    let mut rig = Rig::new();
    let mut client = rig.connect();
    client.write_all(b"early").unwrap();
    drop(client);
    rig.say(&READY);
    rig.driver.send(0, &[Piece::In(BYTES, 100)]);
    rig.say(&[0, 0, 0, 0, 3, 0, 1, 0]);
    assert!(rig.driver.rings[0].used().is_empty());
    rig.open(0, true);
    assert_eq!(rig.driver.wait_used(0, 1), [(0, 5)]);
    assert_eq!(rig.driver.read(BYTES, 5), b"early");
}

#[test]
fn a_reader_that_stops_holds_up_its_own_port_only_and_loses_nothing() {
    let mut rig = Rig::new();
    rig.handshake();
    let mut client = rig.connect();
    rig.hear();
    let block: Vec<u8> = (0..0x10000u32).map(|n| (n % 251) as u8).collect();
    rig.driver.write(BYTES, &block);
    // More than a socket takes.
    for _ in 0..8 {
        rig.driver.rings[1].push(&[Piece::Out(BYTES, 0x1_0000); 2]);
    }
    rig.driver.ring(1);
    let mut done = 0;
    std::thread::sleep(Duration::from_millis(100));
    done += rig.driver.rings[1].used().len();
    assert!(done < 8, "a megabyte went into a socket nobody reads");
    // The other port, and the control queues, go on; so does this one after a pause.
    rig.driver.write(SAID + 0x800, b"line\n");
    rig.driver.send(5, &[Piece::Out(SAID + 0x800, 5)]);
    assert_eq!(rig.driver.wait_used(5, 1).len(), 1);
    assert_eq!(std::fs::read(rig.dir.path().join("log")).unwrap(), b"line\n");
    rig.driver.transport.pause();
    rig.driver.transport.resume();
    let mut got = vec![0; 8 * 2 * block.len()];
    client.read_exact(&mut got).unwrap();
    assert!(got.chunks(block.len()).all(|piece| piece == block));
    wait_until("the chains", || {
        done += rig.driver.rings[1].used().len();
        done == 8
    });
}

#[test]
fn what_is_kept_for_a_client_that_goes_is_given_back_and_the_next_one_begins_anew() {
    let mut rig = Rig::new();
    rig.handshake();
    let client = rig.connect();
    rig.hear();
    for _ in 0..8 {
        rig.driver.rings[1].push(&[Piece::Out(BYTES, 0x1_0000); 2]);
    }
    rig.driver.ring(1);
    let mut next = rig.connect();
    drop(client);
    rig.driver.wait_used(1, 8);
    assert_eq!(rig.hear()[4..], [6, 0, 0, 0]);
    assert_eq!(rig.hear()[4..], [6, 0, 1, 0]);
    rig.driver.write(BYTES, b"new");
    rig.driver.send(1, &[Piece::Out(BYTES, 3)]);
    let mut got = [0; 3];
    next.read_exact(&mut got).unwrap();
    assert_eq!(&got, b"new");
}

#[test]
fn without_a_client_what_the_guest_writes_is_lost_and_the_guest_goes_on() {
    let mut rig = Rig::new();
    rig.handshake();
    rig.driver.send(1, &[Piece::Out(BYTES, 0x1_0000), Piece::Out(BYTES, 0)]);
    assert_eq!(rig.driver.wait_used(1, 1), [(0, 0)]);
    rig.driver.send(1, &[Piece::Out(BYTES, 0)]);
    assert_eq!(rig.driver.wait_used(1, 1).len(), 1);
}

#[test]
fn a_file_that_cannot_be_written_is_an_error_and_the_guest_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let worker = Worker::spawn("ports").unwrap();
    let full = Endpoint::file(std::path::Path::new("/dev/full")).unwrap();
    let ports = Ports::new(vec![("full".into(), full)], worker.handle());
    let mut driver = Driver::start(Box::new(ports), MULTIPORT, 16);
    for _ in 0..3 {
        driver.send(1, &[Piece::Out(BYTES, 100)]);
        assert_eq!(driver.wait_used(1, 1).len(), 1);
    }
    assert_eq!(driver.transport.counters().counts().errors, 3);
    drop(dir);
}

#[test]
fn a_driver_that_says_nonsense_hurts_nobody() {
    let mut rig = Rig::new();
    for id in [0, 1, 2, 7, 0xff] {
        for event in 0..=255 {
            rig.say(&[id, 0, 0, id, event, 0, 1, 0]);
        }
    }
    // It asks a thousand times and is answered once; a port it says it has is no news to it.
    for _ in 0..1000 {
        rig.say(&READY);
        rig.say(&[0, 0, 0, 0, 3, 0, 1, 0]);
    }
    assert_eq!(rig.hear(), b"\0\0\0\0\x07\0\x01\0sock");
    assert_eq!(rig.hear(), [1, 0, 0, 0, 1, 0, 1, 0]);
    rig.driver.bring_up(MULTIPORT, 16);
    rig.handshake();
    rig.driver.send(2, &[Piece::In(HEARD, 3)]);
    let _client = rig.connect();
    rig.driver.wait_broken();
    rig.driver.bring_up(MULTIPORT, 16);
    rig.driver.send(3, &[Piece::Out(SAID, 7)]);
    rig.driver.wait_broken();
    rig.driver.bring_up(MULTIPORT, 16);
    rig.say(&READY);
    assert_eq!(rig.hear(), [0, 0, 0, 0, 1, 0, 1, 0]);
}

#[test]
fn a_driver_of_one_port_gets_nothing_and_clients_wait() {
    let mut rig = Rig::new();
    let mut client = rig.connect();
    client.write_all(b"patient").unwrap();
    rig.driver.bring_up(0, 16);
    rig.driver.send(1, &[Piece::Out(BYTES, 10)]);
    rig.driver.send(0, &[Piece::In(BYTES, 10)]);
    std::thread::sleep(Duration::from_millis(50));
    assert!(rig.driver.rings[0].used().is_empty() && rig.driver.rings[1].used().is_empty());
    rig.driver.bring_up(MULTIPORT, 16);
    rig.handshake_with_client();
    rig.driver.send(0, &[Piece::In(BYTES, 10)]);
    assert_eq!(rig.driver.wait_used(0, 1), [(0, 7)]);
}

impl Rig {
    fn handshake_with_client(&mut self) {
        self.say(&READY);
        self.say(&[0, 0, 0, 0, 3, 0, 1, 0]);
        self.open(0, true);
    }
}

#[test]
fn a_saved_device_knows_its_ports_in_another_and_that_its_clients_are_gone() {
    let mut rig = Rig::new();
    rig.handshake();
    let _client = rig.connect();
    assert_eq!(rig.hear()[4..], [6, 0, 1, 0]);
    rig.driver.transport.pause();
    let saved = serde_json::to_string(&rig.driver.transport.save()).unwrap();
    let state = serde_json::from_str(&saved).unwrap();

    let dir = tempfile::tempdir().unwrap();
    let device = Box::new(Ports::new(endpoints(&dir), rig.worker.handle()));
    let other = transport("o", device, rig.driver.memory.clone());
    other.restore(&state).unwrap();
    assert_eq!(other.save(), state);
    other.resume();
    rig.driver.transport = other;
    assert_eq!(rig.hear(), [0, 0, 0, 0, 6, 0, 0, 0]);
    let mut client = UnixStream::connect(dir.path().join("sock")).unwrap();
    assert_eq!(rig.hear(), [0, 0, 0, 0, 6, 0, 1, 0]);
    client.write_all(b"hello").unwrap();
    rig.driver.send(0, &[Piece::In(BYTES, 10)]);
    assert_eq!(rig.driver.wait_used(0, 1), [(0, 5)]);

    let (dir, handle) = (tempfile::tempdir().unwrap(), rig.worker.handle());
    let one = Box::new(Ports::new(endpoints(&dir).into_iter().rev().collect(), handle));
    let other = transport("o", one, rig.driver.memory.clone());
    let refused = other.restore(&state).unwrap_err().to_string();
    assert!(refused.contains("log, sock"), "{refused}");
}

#[test]
fn a_socket_that_is_alive_is_refused_and_a_dead_one_replaced_and_removed_at_the_end() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("sock");
    let alive = std::os::unix::net::UnixListener::bind(&path).unwrap();
    assert!(Endpoint::socket(&path).err().unwrap().to_string().contains("in use"));
    drop(alive);
    drop(Endpoint::socket(&path).unwrap());
    assert!(!path.exists());
    std::fs::write(&path, "precious").unwrap();
    assert!(Endpoint::socket(&path).err().unwrap().to_string().contains("something else"));
    assert!(Endpoint::file(&dir.path().join("no/file")).is_err());
}
