//! Conversations of a guest's sockets with the host's: packets that mean something, host programs that
//! come, speak, are slow and go, in any order.
//!
//! Whatever either side does, bytes that arrive are those that were sent on that connection, without a gap,
//! and to the guest from the first on: each side sends bytes that count up. The whole device is driven, its
//! sockets included, on the fuzzer's own thread.

use std::collections::HashMap;
use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;

use husk_devices::virtio::testing::subject::{INDIRECT_DESC, Kind, SIZE, Subject};
use husk_devices::virtio::testing::{DATA, EVENT_IDX, Piece};

use crate::{MOST_ACTS, Script, finish};

/// Bytes of a packet's header (virtio 1.3 §5.10.6).
const HEADER: usize = 44;
const CID: u32 = 3;
/// Operations (virtio 1.3 §5.10.6).
const REQUEST: u16 = 1;
const RESPONSE: u16 = 2;
const RW: u16 = 5;
/// Ports on either side that there is something at, and host programs at once.
const PORTS: u8 = 4;
const MOST_HOSTS: usize = 12;
/// Where receive buffers are, and packets of the guest's.
const RX_AT: u64 = DATA + 0x1_0000;
const RX_LEN: u64 = 0x1000;
const TX_AT: u64 = DATA + 0x4_0000;
const TX_LEN: u64 = 0x2000;

/// A program of the host's.
struct Host {
    stream: UnixStream,
    /// The next byte it sends, and the one it expects.
    says: u8,
    hears: Option<u8>,
    /// Of its answer's line, which is not a connection's byte; `None` behind it.
    line: Option<Vec<u8>>,
}

/// The two ports by which the guest knows a connection: its own, the host's.
type Key = (u32, u32);

struct Scene {
    subject: Subject,
    features: u64,
    hosts: Vec<Host>,
    listeners: HashMap<u8, UnixListener>,
    path: PathBuf,
    /// The host's ports of connections that it began.
    asked: Vec<u32>,
    /// The next byte the guest expects, and sends.
    expects: HashMap<Key, u8>,
    says: HashMap<Key, u8>,
    /// Bytes that it took, in all.
    taken: HashMap<Key, u32>,
    sent: u64,
}

/// Plays `input`.
pub fn converse(input: &[u8]) {
    let mut script = Script::new(input);
    let subject = Subject::here(Kind::Vsock);
    let features = INDIRECT_DESC | if script.byte() & 1 == 0 { 0 } else { EVENT_IDX };
    let path = subject.door().expect("vsock has a door").to_owned();
    let mut scene = Scene {
        subject,
        features,
        hosts: Vec::new(),
        listeners: HashMap::new(),
        path,
        asked: Vec::new(),
        expects: HashMap::new(),
        says: HashMap::new(),
        taken: HashMap::new(),
        sent: 0,
    };
    scene.begin();
    for _ in 0..2 * MOST_ACTS {
        if script.is_over() {
            break;
        }
        scene.act(&mut script);
    }
    scene.subject.driver.transport.resume();
    scene.rest();
    for n in 0..scene.hosts.len() {
        scene.hear(n, usize::MAX);
    }
    scene.hosts.clear();
    scene.rest();
    finish(scene.subject);
}

impl Scene {
    /// A driver begins, with some room for packets.
    fn begin(&mut self) {
        self.subject.driver.bring_up(self.features, SIZE);
        self.asked.clear();
        self.expects.clear();
        self.taken.clear();
        self.give(8, 0xfff);
        self.rest();
    }

    fn act(&mut self, script: &mut Script<'_>) {
        let what = script.byte();
        match what & 0x1f {
            0..=9 => self.packet(script),
            10..=12 => self.dial(script),
            13..=16 => self.speak(script),
            17..=19 => {
                let (n, len) = (script.byte(), script.u16());
                if let Some(n) = usize::from(n).checked_rem(self.hosts.len()) {
                    self.hear(n, len.into());
                }
            }
            20 | 21 => {
                let (n, how) = (script.byte(), script.byte());
                if let Some(n) = usize::from(n).checked_rem(self.hosts.len()) {
                    let how =
                        [Shutdown::Write, Shutdown::Read, Shutdown::Both][usize::from(how) % 3];
                    // The device may have closed it.
                    let _ = self.hosts[n].stream.shutdown(how);
                }
            }
            22 => {
                if let Some(n) = usize::from(script.byte()).checked_rem(self.hosts.len()) {
                    drop(self.hosts.swap_remove(n));
                }
            }
            23..=26 => self.give(script.byte() % SIZE as u8 + 1, script.u16()),
            27 => self.listen(script.byte() % PORTS),
            28 | 29 => self.admit(script.byte()),
            30 => match what & 0x40 {
                0 => self.subject.driver.transport.pause(),
                _ => self.subject.driver.transport.resume(),
            },
            _ if script.byte() & 7 == 0 => {
                self.subject.driver.transport.resume();
                self.begin();
            }
            _ => {}
        }
        // Otherwise it finds several things at once.
        if what & 0x80 == 0 {
            self.rest();
        }
    }

    /// The device comes to rest, and the guest takes what it has got.
    fn rest(&mut self) {
        self.subject.worker.turn();
        self.take();
    }

    /// The guest takes what it has got.
    fn take(&mut self) {
        let used = match self.subject.driver.rings.first_mut() {
            Some(ring) => ring.used(),
            None => return,
        };
        for (head, len) in used {
            let bytes = self.subject.driver.read(RX_AT + u64::from(head) * RX_LEN, len as usize);
            self.receive(&bytes);
        }
    }

    /// A packet for the guest.
    fn receive(&mut self, bytes: &[u8]) {
        let word = |at: usize| {
            u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
        };
        assert!(bytes.len() >= HEADER && word(24) as usize == bytes.len() - HEADER, "{bytes:?}");
        assert_eq!((word(8), word(12)), (CID, 0), "a packet for somebody else");
        let (host, guest, op) = (word(16), word(20), (word(28) >> 16) as u16);
        let key = (guest, host);
        match op {
            REQUEST | RESPONSE => {
                if op == REQUEST && self.asked.len() < MOST_HOSTS {
                    self.asked.push(host);
                }
                self.expects.insert(key, 0);
                self.taken.insert(key, 0);
            }
            RW => {
                let next = self.expects.get_mut(&key).expect("bytes of no connection");
                for byte in &bytes[HEADER..] {
                    assert_eq!(byte, next, "the guest hears what the host did not say");
                    *next = next.wrapping_add(1);
                }
                *self.taken.entry(key).or_default() += word(24);
            }
            _ => {}
        }
    }

    /// A packet of the guest's.
    fn packet(&mut self, script: &mut Script<'_>) {
        let op = [1u16, 2, 3, 4, 5, 5, 5, 6, 7, 0][usize::from(script.byte()) % 10];
        let guest = u32::from(script.byte() % PORTS);
        let pick = usize::from(script.byte());
        let host = match self.asked.get((pick >> 1) % self.asked.len().max(1)) {
            Some(host) if pick & 1 == 0 => *host,
            _ => (pick >> 1) as u32 % u32::from(PORTS),
        };
        let how = script.byte();
        let len = if op == RW { script.u16() & 0xfff } else { 0 };
        let key = (guest, host);
        let room = match how & 7 {
            0 => script.u32(),
            1 => 0,
            2 => u32::MAX,
            n => 1 << (3 * n),
        };
        let taken = match how >> 3 & 3 {
            0 => script.u32(),
            _ => self.taken.get(&key).copied().unwrap_or_default(),
        };
        // Now and then somebody else's, or not what its header says.
        let (cid, kind) = if how >> 5 == 7 { (script.u32(), script.u16()) } else { (CID, 1) };
        let claimed = if how >> 5 == 6 { script.u32() } else { len.into() };
        let words = [
            cid,
            0,
            2,
            0,
            guest,
            host,
            claimed,
            u32::from(kind) | u32::from(op) << 16,
            u32::from(how >> 5 & 3),
            room,
            taken,
        ];
        let mut bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        let mut next = self.says.get(&key).copied().unwrap_or_default();
        for n in 0..len {
            bytes.push(next.wrapping_add(n as u8));
        }
        if claimed <= len.into() && (cid, kind) == (CID, 1) {
            next = next.wrapping_add(claimed as u8);
            self.says.insert(key, next);
        }
        let at = TX_AT + self.sent % u64::from(SIZE) * TX_LEN;
        self.sent += 1;
        self.subject.driver.write(at, &bytes);
        self.subject.driver.send(1, &[Piece::Out(at, bytes.len() as u32)]);
    }

    /// A program of the host's connects to the guest.
    fn dial(&mut self, script: &mut Script<'_>) {
        let port = script.byte() % PORTS;
        if self.hosts.len() == MOST_HOSTS {
            return;
        }
        let Ok(stream) = UnixStream::connect(&self.path) else { return };
        self.enter(stream, true);
        let Some(host) = self.hosts.last_mut() else { return };
        // The device may have gone away from it.
        let _ = match script.byte() & 7 {
            0 => host.stream.write_all(b"CONNECT"),
            1 => host.stream.write_all(script.bytes(40)),
            _ => host.stream.write_all(format!("CONNECT {port}\n").as_bytes()),
        };
    }

    fn enter(&mut self, stream: UnixStream, dialled: bool) {
        stream.set_nonblocking(true).expect("a socket can be set not to block");
        let line = dialled.then(Vec::new);
        self.hosts.push(Host { stream, says: 0, hears: None, line });
    }

    /// A program of the host's sends something.
    fn speak(&mut self, script: &mut Script<'_>) {
        let (n, len) = (usize::from(script.byte()), script.u16());
        let Some(n) = n.checked_rem(self.hosts.len()) else { return };
        let Some(host) = self.hosts.get_mut(n) else { return };
        // What it says before it is connected may be anything's.
        if host.line.is_some() {
            self.hear(n, 0);
        }
        let Some(host) = self.hosts.get_mut(n).filter(|host| host.line.is_none()) else { return };
        let bytes: Vec<u8> = (0..len).map(|n| host.says.wrapping_add(n as u8)).collect();
        if let Ok(count) = host.stream.write(&bytes) {
            host.says = host.says.wrapping_add(count as u8);
        }
    }

    /// A program of the host's reads its line, and up to `most` bytes behind it.
    fn hear(&mut self, n: usize, most: usize) {
        let Some(host) = self.hosts.get_mut(n) else { return };
        let mut byte = [0];
        while let Some(line) = &mut host.line {
            match host.stream.read(&mut byte) {
                Ok(1) => line.push(byte[0]),
                _ => return,
            }
            if byte == *b"\n" {
                let said = String::from_utf8_lossy(line).into_owned();
                assert!(said.starts_with("OK ") || said.starts_with("ERROR "), "{said}");
                host.line = None;
            }
        }
        let mut left = most;
        let mut bytes = [0; 4096];
        while left > 0 {
            let room = left.min(bytes.len());
            let count = match host.stream.read(&mut bytes[..room]) {
                Ok(0) => return,
                Ok(count) => count,
                Err(e) if e.kind() == ErrorKind::Interrupted => continue,
                Err(_) => return,
            };
            left -= count;
            for byte in &bytes[..count] {
                let next = host.hears.unwrap_or(*byte);
                assert_eq!(*byte, next, "the host hears what the guest did not say");
                host.hears = Some(next.wrapping_add(1));
            }
        }
    }

    /// Receive buffers for the guest.
    fn give(&mut self, count: u8, len: u16) {
        // A pause has let the device come to rest, too, and what it used may be given to it again.
        self.take();
        let Some(ring) = self.subject.driver.rings.first_mut() else { return };
        let len = u32::from(len) % RX_LEN as u32 + 1;
        for _ in 0..count {
            let at = RX_AT + u64::from(ring.next_head()) * RX_LEN;
            ring.push(&[Piece::In(at, len)]);
        }
        self.subject.driver.ring(0);
    }

    /// A program of the host's listens at a port, or does not any more.
    fn listen(&mut self, port: u8) {
        let place = format!("{}_{port}", self.path.display());
        if self.listeners.remove(&port).is_none() {
            // The last one left its path behind.
            let _ = std::fs::remove_file(&place);
            let listener = UnixListener::bind(&place).expect("a directory of our own");
            listener.set_nonblocking(true).expect("a socket can be set not to block");
            self.listeners.insert(port, listener);
        }
    }

    /// It takes whoever has come.
    fn admit(&mut self, port: u8) {
        if self.hosts.len() == MOST_HOSTS {
            return;
        }
        let listener = self.listeners.get(&(port % PORTS));
        if let Some(Ok((stream, _))) = listener.map(UnixListener::accept) {
            self.enter(stream, false);
        }
    }
}
