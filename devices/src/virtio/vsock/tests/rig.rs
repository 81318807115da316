//! A device with its socket, and a driver that speaks packets.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::super::packet::{HEADER_LEN, HOST_CID, Header, STREAM, op, shut};
use super::super::{Inside, Vsock};
use crate::virtio::testing::{DATA, Driver, Piece, wait_until};
use crate::worker::Worker;

pub const CID: u64 = 3;
const RING: u16 = 64;
/// Bytes of a receive buffer, header included.
const RX_LEN: u32 = 4096;
/// The most payload of a packet of the guest's here.
pub const CHUNK: usize = 8192 - HEADER_LEN;
const TX_AT: u64 = DATA + RING as u64 * RX_LEN as u64;
/// What the guest says it has room for.
pub const GUEST_ROOM: u32 = 64 << 10;

pub type Packet = (Header, Vec<u8>);

pub struct Rig {
    pub driver: Driver,
    pub dir: tempfile::TempDir,
    came: VecDeque<Packet>,
    sent: u64,
    taken: u64,
    pub worker: Worker,
    pub inside: Arc<Inside>,
}

impl Rig {
    /// A device that no driver has begun with.
    pub fn idle(patience: Duration) -> Rig {
        Rig::on(Worker::spawn("vsock").unwrap(), patience)
    }

    pub fn on(worker: Worker, patience: Duration) -> Rig {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("v.sock");
        let inside = Inside::new().unwrap();
        let (ours, worker_handle) = (inside.clone(), worker.handle());
        let vsock =
            Vsock::with_patience(CID as u32, Some(&path), ours, worker_handle, patience).unwrap();
        let driver = Driver::idle(Box::new(vsock));
        Rig { driver, dir, came: VecDeque::new(), sent: 0, taken: 0, worker, inside }
    }

    pub fn up() -> Rig {
        let mut rig = Rig::idle(Duration::from_secs(60));
        rig.bring_up(0);
        rig
    }

    /// A driver begins, with receive buffers.
    pub fn bring_up(&mut self, features: u64) {
        self.bring_up_starving(features);
        for _ in 0..RING {
            self.give_buffer();
        }
        self.driver.ring(0);
    }

    pub fn bring_up_starving(&mut self, features: u64) {
        self.driver.bring_up(features, RING);
        (self.sent, self.taken) = (0, 0);
        self.came.clear();
    }

    /// The driver of `other`, with its memory, before this device in place of its own; that one is gone then.
    pub fn take_over(&mut self, other: Rig) {
        let Rig { driver: Driver { memory, rings, transport }, sent, taken, came, .. } = other;
        drop(transport);
        let path = self.dir.path().join("heir.sock");
        let worker = self.worker.handle();
        let device = Vsock::new(CID as u32, Some(&path), self.inside.clone(), worker).unwrap();
        let transport = crate::virtio::testing::transport("heir", Box::new(device), memory.clone());
        self.driver = Driver { transport, memory, rings };
        (self.sent, self.taken, self.came) = (sent, taken, came);
        // The socket that was there has gone with its device.
        std::fs::rename(path, self.path()).unwrap();
    }

    /// One more receive buffer. They are filled in order, so each has its place.
    pub fn give_buffer(&mut self) {
        let n = self.driver.rings[0].next_head();
        let addr = DATA + u64::from(n) * u64::from(RX_LEN);
        self.driver.rings[0].push(&[Piece::In(addr, RX_LEN)]);
    }

    pub fn path(&self) -> PathBuf {
        self.dir.path().join("v.sock")
    }

    /// A program of the host's that the guest can reach at `port`.
    pub fn listen(&self, port: u32) -> UnixListener {
        UnixListener::bind(self.dir.path().join(format!("v.sock_{port}"))).unwrap()
    }

    /// A program of the host's that has said its line.
    pub fn dial(&self, port: u32) -> UnixStream {
        let mut stream = self.knock();
        writeln!(stream, "CONNECT {port}").unwrap();
        stream
    }

    pub fn knock(&self) -> UnixStream {
        let stream = UnixStream::connect(self.path()).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        stream
    }

    /// A connection from the host to `port` that the guest has accepted, and its port on the host.
    pub fn connect(&mut self, port: u32) -> (UnixStream, u32) {
        let stream = self.dial(port);
        let (request, _) = self.expect(op::REQUEST);
        assert_eq!((request.dst_port, request.src_cid, request.dst_cid), (port, HOST_CID, CID));
        self.send(op::RESPONSE, port, request.src_port, &[]);
        assert_eq!(line(&stream), format!("OK {}\n", request.src_port));
        (stream, request.src_port)
    }

    /// A packet of the guest's, with all the room there is.
    pub fn header(&self, op: u16, guest: u32, host: u32) -> Header {
        Header {
            src_cid: CID,
            dst_cid: HOST_CID,
            src_port: guest,
            dst_port: host,
            kind: STREAM,
            op,
            buf_alloc: GUEST_ROOM,
            ..Header::default()
        }
    }

    pub fn send(&mut self, op: u16, guest: u32, host: u32, payload: &[u8]) {
        let len = payload.len() as u32;
        self.send_packet(Header { len, ..self.header(op, guest, host) }, payload);
    }

    pub fn send_packet(&mut self, header: Header, payload: &[u8]) {
        let bytes = [&header.encode()[..], payload].concat();
        self.send_raw(&bytes, &[bytes.len()]);
    }

    /// Sends `bytes` in pieces of the given lengths.
    pub fn send_raw(&mut self, bytes: &[u8], lens: &[usize]) {
        assert!(bytes.len() <= HEADER_LEN + CHUNK);
        // Eight places, and at most eight descriptors each.
        wait_until("room in the transmit queue", || {
            self.taken += self.driver.rings[1].used().len() as u64;
            self.sent - self.taken < 8
        });
        let mut at = TX_AT + self.sent % 8 * (HEADER_LEN + CHUNK) as u64;
        self.driver.write(at, bytes);
        let mut pieces = Vec::new();
        for &len in lens {
            pieces.push(Piece::Out(at, len as u32));
            at += len as u64;
        }
        self.sent += 1;
        self.driver.send(1, &pieces);
    }

    /// The next packet for the guest, if it has come.
    pub fn poll(&mut self) -> Option<Packet> {
        for (head, len) in self.driver.rings[0].used() {
            let addr = DATA + u64::from(head) * u64::from(RX_LEN);
            let bytes = self.driver.read(addr, len as usize);
            let (header, payload) = bytes.split_first_chunk().unwrap();
            let header = Header::decode(header);
            assert_eq!(header.len as usize, payload.len());
            self.came.push_back((header, payload.to_vec()));
            self.give_buffer();
            self.driver.ring(0);
        }
        self.came.pop_front()
    }

    pub fn next(&mut self) -> Packet {
        let mut packet = None;
        wait_until("packet", || {
            packet = self.poll();
            packet.is_some()
        });
        packet.unwrap()
    }

    /// The next packet, which does this.
    #[track_caller]
    pub fn expect(&mut self, op: u16) -> Packet {
        let packet = self.next();
        assert_eq!(packet.0.op, op, "{packet:?}");
        packet
    }

    /// The host's side closes: the end of its sending may be told before that of its receiving.
    #[track_caller]
    pub fn expect_end(&mut self) -> Header {
        let (mut end, _) = self.expect(op::SHUTDOWN);
        if end.flags == shut::SEND {
            (end, _) = self.expect(op::SHUTDOWN);
        }
        assert_eq!(end.flags, shut::BOTH);
        end
    }

    /// Nothing comes for a while.
    #[track_caller]
    pub fn expect_silence(&mut self) {
        std::thread::sleep(Duration::from_millis(30));
        assert_eq!(self.poll(), None);
    }
}

/// Reads one line and no more.
pub fn line(mut stream: &UnixStream) -> String {
    let mut line = Vec::new();
    let mut byte = [0];
    while stream.read(&mut byte).unwrap() == 1 {
        line.push(byte[0]);
        if byte == *b"\n" {
            break;
        }
    }
    String::from_utf8(line).unwrap()
}

/// Reads a line, after which the stream ends.
#[track_caller]
pub fn last_line(stream: &UnixStream) -> String {
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line).unwrap();
    let mut rest = Vec::new();
    // What we sent and nobody read may make the end a reset.
    let _ = reader.read_to_end(&mut rest);
    assert!(rest.is_empty());
    line
}

/// Bytes that differ with their place and with `seed`.
pub fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}
