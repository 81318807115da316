//! Either side leaves in the midst of a transfer: the other is told, and other connections go on.

use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;

use super::super::packet::{Header, op, shut};
use super::rig::{CHUNK, GUEST_ROOM, Rig, noise};

/// The guest's ports of a connection that will end, and of one that goes on.
const BROKEN: u32 = 1;
const OTHER: u32 = 2;

/// A connection that has moved bytes each way, and moves more of them.
struct Witness {
    stream: UnixStream,
    port: u32,
    round: u64,
}

impl Witness {
    fn new(rig: &mut Rig) -> Witness {
        let (stream, port) = rig.connect(OTHER);
        Witness { stream, port, round: 0 }
    }

    /// Bytes go each way, whole. What comes of the other connection meanwhile is given back.
    #[track_caller]
    fn goes_on(&mut self, rig: &mut Rig) -> Vec<Header> {
        self.round += 1;
        let (up, down) = (noise(self.round, 3000), noise(self.round + 1000, 2000));
        rig.send(op::RW, OTHER, self.port, &up);
        let mut got = vec![0; up.len()];
        self.stream.read_exact(&mut got).unwrap();
        assert!(got == up);
        self.stream.write_all(&down).unwrap();
        let mut others = Vec::new();
        loop {
            let (header, payload) = rig.next();
            if header.dst_port == OTHER && header.op == op::RW {
                assert!(payload == down);
                return others;
            }
            assert_eq!(header.dst_port, BROKEN, "{header:?}");
            others.push(header);
        }
    }
}

/// Takes packets until the connection has ended for the guest; whether by an RST.
#[track_caller]
fn ended(rig: &mut Rig, came: Vec<Header>) -> bool {
    let mut flags = 0;
    let mut came = came.into_iter();
    loop {
        let header = came.next().unwrap_or_else(|| rig.next().0);
        assert_eq!(header.dst_port, BROKEN, "{header:?}");
        match header.op {
            op::RST => return true,
            op::SHUTDOWN => flags |= header.flags,
            _ => {}
        }
        if flags == shut::BOTH {
            return false;
        }
    }
}

#[test]
fn a_host_that_leaves_while_the_guest_sends_is_an_end_for_the_guest_and_for_no_other() {
    // It has read some of what came, or nothing.
    for read in [0, 50_000] {
        let mut rig = Rig::up();
        let mut other = Witness::new(&mut rig);
        let (mut stream, port) = rig.connect(BROKEN);
        let sent = noise(1, 90_000);
        for chunk in sent.chunks(CHUNK) {
            rig.send(op::RW, BROKEN, port, chunk);
        }
        let mut got = vec![0; read];
        stream.read_exact(&mut got).unwrap();
        assert!(got == sent[..read]);
        drop(stream);
        // The guest does not know yet, and sends on.
        rig.send(op::RW, BROKEN, port, &noise(2, CHUNK));
        let came = other.goes_on(&mut rig);
        if !ended(&mut rig, came) {
            // As Linux answers it.
            rig.send(op::RST, BROKEN, port, &[]);
        }
        other.goes_on(&mut rig);
        // What still comes is of no connection's.
        rig.send(op::RW, BROKEN, port, b"?");
        assert_eq!(rig.expect(op::RST).0.dst_port, BROKEN);
        other.goes_on(&mut rig);
    }
}

#[test]
fn a_host_that_leaves_while_the_guest_has_no_room_is_an_end_behind_what_it_sent() {
    let mut rig = Rig::up();
    let mut other = Witness::new(&mut rig);
    let (mut stream, port) = rig.connect(BROKEN);
    let sent = noise(3, GUEST_ROOM as usize + 30_000);
    stream.write_all(&sent).unwrap();
    drop(stream);
    let mut got = Vec::new();
    while got.len() < GUEST_ROOM as usize {
        got.extend(rig.expect(op::RW).1);
    }
    let came = other.goes_on(&mut rig);
    assert!(came.iter().all(|header| header.op == op::CREDIT_REQUEST), "{came:?}");
    let fwd_cnt = got.len() as u32;
    let credit = Header { fwd_cnt, ..rig.header(op::CREDIT_UPDATE, BROKEN, port) };
    rig.send_packet(credit, &[]);
    while got.len() < sent.len() {
        let (header, payload) = rig.next();
        assert!(matches!(header.op, op::RW | op::CREDIT_REQUEST), "{header:?}");
        got.extend(payload);
    }
    assert!(got == sent);
    assert!(!ended(&mut rig, Vec::new()));
    rig.send(op::RST, BROKEN, port, &[]);
    other.goes_on(&mut rig);
}

#[test]
fn a_guest_that_leaves_while_the_host_sends_is_an_end_for_the_host_and_for_no_other() {
    // A program of the guest's that is killed, and one that closes.
    for (op, flags) in [(op::RST, 0), (op::SHUTDOWN, shut::BOTH)] {
        let mut rig = Rig::up();
        let mut other = Witness::new(&mut rig);
        let (mut stream, port) = rig.connect(BROKEN);
        stream.set_nonblocking(true).unwrap();
        let much = noise(4, 4 << 20);
        // Until neither socket nor guest have room: it is in the midst of it.
        let mut at = 0;
        let mut came = 0;
        while came < GUEST_ROOM {
            match stream.write(&much[at..]) {
                Ok(count) => at += count,
                Err(e) => assert_eq!(e.kind(), ErrorKind::WouldBlock),
            }
            came += rig.expect(op::RW).0.len;
        }
        assert!(at < much.len());
        rig.send(op::RW, BROKEN, port, b"last words");
        rig.send_packet(Header { flags, ..rig.header(op, BROKEN, port) }, &[]);
        let came = other.goes_on(&mut rig);
        let answered = came.iter().any(|header| header.op == op::RST);
        assert_eq!(answered, op == op::SHUTDOWN, "{came:?}");
        stream.set_nonblocking(false).unwrap();
        let mut got = [0; 10];
        stream.read_exact(&mut got).unwrap();
        assert_eq!(&got, b"last words");
        // What the device had not read of it yet may make the end a reset.
        match stream.read(&mut got) {
            Ok(count) => assert_eq!(count, 0),
            Err(e) => assert_eq!(e.kind(), ErrorKind::ConnectionReset),
        }
        assert_eq!(stream.write(b"x").unwrap_err().kind(), ErrorKind::BrokenPipe);
        other.goes_on(&mut rig);
        // Its ports can be had again.
        rig.connect(BROKEN);
    }
}

#[test]
fn each_side_leaves_half_of_it_while_bytes_are_on_their_way_and_none_is_lost() {
    let mut rig = Rig::up();
    let mut other = Witness::new(&mut rig);
    let (mut stream, port) = rig.connect(BROKEN);
    let (up, down) = (noise(5, 90_000), noise(6, 40_000));
    stream.write_all(&down).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    for chunk in up.chunks(CHUNK) {
        rig.send(op::RW, BROKEN, port, chunk);
    }
    let end = Header { flags: shut::SEND, ..rig.header(op::SHUTDOWN, BROKEN, port) };
    rig.send_packet(end, &[]);
    let (mut got, mut flags) = (Vec::new(), 0);
    while flags & shut::SEND == 0 {
        let (header, payload) = rig.next();
        got.extend(payload);
        flags |= if header.op == op::SHUTDOWN { header.flags } else { 0 };
    }
    assert!(got == down);
    other.goes_on(&mut rig);
    let mut got = Vec::new();
    stream.read_to_end(&mut got).unwrap();
    assert!(got == up);
}
