mod hostile;
mod inside;
mod leaving;
mod many;
mod rig;

use std::io::{Read, Write};
use std::net::Shutdown;
use std::thread;
use std::time::Duration;

use super::connection::ROOM;
use super::packet::{Header, op, shut};
use crate::virtio::testing::{EVENT_IDX, Piece};
use rig::{CHUNK, CID, GUEST_ROOM, Rig, last_line, line, noise};

#[test]
fn the_guest_finds_a_socket_device_with_its_cid() {
    let rig = Rig::up();
    assert_eq!(rig.driver.get(0x08), 19);
    assert_eq!(rig.driver.offered() & 7, 1);
    assert_eq!(rig.driver.config(0, 8), CID.to_le_bytes());
}

#[test]
fn bytes_pass_both_ways_over_a_connection_of_the_hosts() {
    for features in [0, EVENT_IDX] {
        let mut rig = Rig::idle(Duration::from_secs(60));
        rig.bring_up(features);
        let (mut stream, port) = rig.connect(5000);
        stream.write_all(b"to the guest").unwrap();
        let (header, payload) = rig.expect(op::RW);
        assert_eq!((payload.as_slice(), header.dst_port), (&b"to the guest"[..], 5000));
        // Header and payload may be cut anywhere.
        let bytes = b"to the host";
        let header = Header { len: 11, ..rig.header(op::RW, 5000, port) }.encode();
        rig.send_raw(&[&header[..], bytes].concat(), &[1, 42, 4, 0, 3, 5]);
        let mut got = [0; 11];
        stream.read_exact(&mut got).unwrap();
        assert_eq!(&got, bytes);
    }
}

#[test]
fn what_the_host_sends_before_the_answer_reaches_the_guest_after_it() {
    let mut rig = Rig::up();
    let mut stream = rig.knock();
    stream.write_all(b"CONNECT 7\nearly").unwrap();
    let (request, _) = rig.expect(op::REQUEST);
    rig.expect_silence();
    rig.send(op::RESPONSE, 7, request.src_port, &[]);
    assert_eq!(rig.expect(op::RW).1, b"early");
}

#[test]
fn the_guest_reaches_whoever_listens_for_its_port_and_nobody_else() {
    let mut rig = Rig::up();
    let listener = rig.listen(52);
    rig.send(op::REQUEST, 1024, 52, &[]);
    let (answer, _) = rig.expect(op::RESPONSE);
    assert_eq!((answer.src_port, answer.dst_port, answer.buf_alloc), (52, 1024, ROOM));
    let (mut stream, _) = listener.accept().unwrap();
    rig.send(op::RW, 1024, 52, b"hello");
    let mut got = [0; 5];
    stream.read_exact(&mut got).unwrap();
    assert_eq!(&got, b"hello");
    stream.write_all(b"and back").unwrap();
    assert_eq!(rig.expect(op::RW).1, b"and back");

    rig.send(op::REQUEST, 1024, 53, &[]);
    let (answer, _) = rig.expect(op::RST);
    assert_eq!((answer.src_port, answer.dst_port), (53, 1024));
    // One that died left its path.
    drop(rig.listen(54));
    rig.send(op::REQUEST, 1024, 54, &[]);
    rig.expect(op::RST);
}

#[test]
fn a_guest_that_is_not_ready_is_an_error_and_not_a_silence() {
    let mut rig = Rig::idle(Duration::from_secs(60));
    assert_eq!(last_line(&rig.dial(1)), "ERROR the guest is not ready\n");
    rig.bring_up(0);
    let (mut open, _) = rig.connect(1);
    let asking = rig.dial(2);
    rig.expect(op::REQUEST);
    rig.driver.transport.reset();
    assert_eq!(open.read(&mut [0]).unwrap(), 0);
    assert_eq!(last_line(&asking), "ERROR the guest is not ready\n");
    assert_eq!(last_line(&rig.dial(1)), "ERROR the guest is not ready\n");
    rig.bring_up(0);
    rig.connect(1);
}

#[test]
fn a_refusal_names_the_port() {
    let mut rig = Rig::up();
    let stream = rig.dial(99);
    let (request, _) = rig.expect(op::REQUEST);
    rig.send(op::RST, 99, request.src_port, &[]);
    assert_eq!(last_line(&stream), "ERROR the guest refuses port 99\n");
}

#[test]
fn a_guest_that_does_not_answer_and_a_host_that_says_nothing_are_given_up() {
    let mut rig = Rig::idle(Duration::from_millis(200));
    rig.bring_up(0);
    let silent = rig.knock();
    assert_eq!(last_line(&silent), "ERROR no CONNECT line came in time\n");
    let mut slow = rig.knock();
    slow.write_all(b"CONNECT 1").unwrap();
    assert_eq!(last_line(&slow), "ERROR no CONNECT line came in time\n");
    let stream = rig.dial(5);
    let (request, _) = rig.expect(op::REQUEST);
    assert_eq!(last_line(&stream), "ERROR the guest does not answer\n");
    // Should it accept after all, it learns that nobody is there.
    assert_eq!(rig.expect(op::RST).0.src_port, request.src_port);
    // An answer in time ends the patience for good.
    let (mut stream, _) = rig.connect(5);
    thread::sleep(Duration::from_millis(400));
    stream.write_all(b"x").unwrap();
    rig.expect(op::RW);
}

#[test]
fn an_end_of_the_guests_sending_is_an_end_for_the_host_who_may_go_on() {
    let mut rig = Rig::up();
    let (mut stream, port) = rig.connect(5000);
    rig.send(op::RW, 5000, port, b"last words");
    rig.send_packet(Header { flags: shut::SEND, ..rig.header(op::SHUTDOWN, 5000, port) }, &[]);
    let mut got = String::new();
    stream.read_to_string(&mut got).unwrap();
    assert_eq!(got, "last words");
    stream.write_all(b"an answer").unwrap();
    assert_eq!(rig.expect(op::RW).1, b"an answer");
    drop(stream);
    rig.expect_end();
}

#[test]
fn an_end_of_the_hosts_sending_is_told_and_the_guest_may_go_on() {
    let mut rig = Rig::up();
    let (mut stream, port) = rig.connect(5000);
    stream.write_all(b"question").unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    assert_eq!(rig.expect(op::RW).1, b"question");
    assert_eq!(rig.expect(op::SHUTDOWN).0.flags, shut::SEND);
    rig.send(op::RW, 5000, port, b"answer");
    rig.send_packet(Header { flags: shut::BOTH, ..rig.header(op::SHUTDOWN, 5000, port) }, &[]);
    rig.expect(op::RST);
    let mut got = String::new();
    stream.read_to_string(&mut got).unwrap();
    assert_eq!(got, "answer");
}

#[test]
fn a_guest_that_receives_no_more_makes_the_hosts_writes_fail() {
    let mut rig = Rig::up();
    let (mut stream, port) = rig.connect(5000);
    rig.send_packet(Header { flags: shut::RECEIVE, ..rig.header(op::SHUTDOWN, 5000, port) }, &[]);
    rig.send(op::RW, 5000, port, b"still sending");
    let mut got = [0; 13];
    stream.read_exact(&mut got).unwrap();
    assert_eq!(stream.write(b"x").unwrap_err().kind(), std::io::ErrorKind::BrokenPipe);
}

#[test]
fn what_the_host_wrote_before_it_closed_still_reaches_the_guest() {
    let mut rig = Rig::up();
    let (mut stream, port) = rig.connect(5000);
    let sent = noise(1, 20_000);
    stream.write_all(&sent).unwrap();
    drop(stream);
    let mut got = Vec::new();
    while got.len() < sent.len() {
        got.extend(rig.expect(op::RW).1);
    }
    assert!(got == sent);
    rig.expect_end();
    rig.send(op::RST, 5000, port, &[]);
    rig.expect_silence();
}

#[test]
fn what_the_guest_sent_before_it_closed_still_reaches_a_slow_host() {
    let mut rig = Rig::up();
    let (mut stream, port) = rig.connect(5000);
    // More than the host's socket holds, so that some of it has to be kept.
    let sent = noise(2, 100_000 + ROOM as usize);
    let mut stuck = Sender::new(5000, port, sent.clone());
    while stuck.at < sent.len() {
        stuck.go(&mut rig);
    }
    rig.send_packet(Header { flags: shut::BOTH, ..rig.header(op::SHUTDOWN, 5000, port) }, &[]);
    // The guest need not wait for the host.
    while rig.next().0.op != op::RST {}
    let mut got = Vec::new();
    stream.read_to_end(&mut got).unwrap();
    assert!(got == sent);
}

/// A program in the guest that sends as fast as its credit lets it.
struct Sender {
    guest: u32,
    host: u32,
    bytes: Vec<u8>,
    at: usize,
    /// What the device says it has taken.
    taken: u32,
}

impl Sender {
    fn new(guest: u32, host: u32, bytes: Vec<u8>) -> Sender {
        Sender { guest, host, bytes, at: 0, taken: 0 }
    }

    /// Sends what the credit allows, or takes in one packet. Gives false when neither can be done.
    fn go(&mut self, rig: &mut Rig) -> bool {
        let credit = ROOM - (self.at as u32).wrapping_sub(self.taken);
        let count = (credit as usize).min(CHUNK).min(self.bytes.len() - self.at);
        if count > 0 {
            let chunk = self.bytes[self.at..self.at + count].to_vec();
            rig.send(op::RW, self.guest, self.host, &chunk);
            self.at += count;
            return true;
        }
        let Some((header, _)) = rig.poll() else { return false };
        assert_eq!(header.op, op::CREDIT_UPDATE);
        if header.src_port == self.host {
            self.taken = header.fwd_cnt;
        }
        true
    }
}

#[test]
fn a_megabyte_each_way_arrives_as_it_was_sent() {
    let mut rig = Rig::up();
    let (stream, port) = rig.connect(5000);
    let (down, up) = (noise(3, 1 << 20), noise(4, 1 << 20));
    let (to_guest, expected) = (down.clone(), up.clone());
    let mut writer = stream.try_clone().unwrap();
    let writer = thread::spawn(move || writer.write_all(&to_guest).unwrap());
    let mut reader = stream;
    let reader = thread::spawn(move || {
        let mut got = vec![0; expected.len()];
        reader.read_exact(&mut got).unwrap();
        assert!(got == expected);
    });
    let (mut got, mut at, mut taken) = (Vec::new(), 0usize, 0u32);
    let begin = std::time::Instant::now();
    while got.len() < down.len() || at < up.len() {
        assert!(begin.elapsed() < Duration::from_secs(20), "{} {at}", got.len());
        let count = CHUNK.min(up.len() - at).min((ROOM - (at as u32 - taken)) as usize);
        if count > 0 {
            let fwd_cnt = got.len() as u32;
            let header = rig.header(op::RW, 5000, port);
            let header = Header { len: count as u32, fwd_cnt, ..header };
            rig.send_packet(header, &up[at..at + count]);
            at += count;
        }
        while let Some((header, payload)) = rig.poll() {
            taken = header.fwd_cnt;
            got.extend(payload);
            if header.op == op::CREDIT_REQUEST || count == 0 {
                let fwd_cnt = got.len() as u32;
                let header = rig.header(op::CREDIT_UPDATE, 5000, port);
                rig.send_packet(Header { fwd_cnt, ..header }, &[]);
            }
        }
    }
    assert!(got == down);
    writer.join().unwrap();
    reader.join().unwrap();
}

#[test]
fn a_slow_host_stalls_neither_another_nor_the_guest() {
    let mut rig = Rig::up();
    let (mut slow, slow_port) = rig.connect(1);
    let (mut fast, fast_port) = rig.connect(2);
    // More than a socket and all our room hold: it comes to a stop.
    let much = noise(5, 4 << 20);
    let mut stuck = Sender::new(1, slow_port, much.clone());
    while stuck.go(&mut rig) || stuck.go_after(&mut rig) {}
    assert!(stuck.at < much.len());

    let some = noise(6, 1 << 20);
    let mut sender = Sender::new(2, fast_port, some.clone());
    let reader = thread::spawn(move || {
        let mut got = vec![0; 1 << 20];
        fast.read_exact(&mut got).unwrap();
        (fast, got)
    });
    while sender.at < some.len() {
        sender.go(&mut rig);
    }
    let (_fast, got) = reader.join().unwrap();
    assert!(got == some);

    // And what was stuck is whole.
    let reader = thread::spawn(move || {
        let mut got = vec![0; 4 << 20];
        slow.read_exact(&mut got).unwrap();
        (slow, got)
    });
    while stuck.at < much.len() {
        stuck.go(&mut rig);
    }
    let (_slow, got) = reader.join().unwrap();
    assert!(got == much);
}

impl Sender {
    /// The same, after some patience.
    fn go_after(&mut self, rig: &mut Rig) -> bool {
        thread::sleep(Duration::from_millis(30));
        self.go(rig)
    }
}

#[test]
fn a_slow_guest_stalls_no_other_connection() {
    let mut rig = Rig::up();
    let (mut slow, slow_port) = rig.connect(1);
    let (mut fast, fast_port) = rig.connect(2);
    slow.write_all(&noise(7, 2 * GUEST_ROOM as usize)).unwrap();
    let mut got = 0;
    // Until its credit is used up; then it asks for more, once.
    while got < GUEST_ROOM {
        got += rig.expect(op::RW).0.len;
    }
    assert_eq!(rig.expect(op::CREDIT_REQUEST).0.src_port, slow_port);
    fast.write_all(b"quick").unwrap();
    let (header, payload) = rig.expect(op::RW);
    assert_eq!((header.src_port, payload.as_slice()), (fast_port, &b"quick"[..]));
    rig.expect_silence();
    let more = Header { fwd_cnt: 1000, ..rig.header(op::CREDIT_UPDATE, 1, slow_port) };
    rig.send_packet(more, &[]);
    let (header, _) = rig.expect(op::RW);
    assert_eq!((header.src_port, header.len), (slow_port, 1000));
}

#[test]
fn connections_outlast_a_pause_and_what_came_meanwhile_is_there() {
    let mut rig = Rig::up();
    let (mut stream, port) = rig.connect(5000);
    rig.driver.transport.pause();
    stream.write_all(b"in the pause").unwrap();
    let waiting = rig.dial(6000);
    thread::sleep(Duration::from_millis(20));
    rig.driver.transport.resume();
    let mut came = [rig.next(), rig.next()];
    came.sort_by_key(|(header, _)| header.op);
    assert_eq!(came[1].1, b"in the pause");
    assert_eq!((came[0].0.op, came[0].0.dst_port), (op::REQUEST, 6000));
    rig.send(op::RESPONSE, 6000, came[0].0.src_port, &[]);
    assert!(line(&waiting).starts_with("OK "));
    rig.send(op::RW, 5000, port, b"after it");
    let mut got = [0; 8];
    stream.read_exact(&mut got).unwrap();
    assert_eq!(&got, b"after it");
}

#[test]
fn a_restored_driver_is_told_that_its_connections_are_gone() {
    let mut rig = Rig::up();
    let (mut stream, port) = rig.connect(5000);
    rig.driver.transport.pause();
    let saved = serde_json::to_string(&rig.driver.transport.save()).unwrap();
    let state = serde_json::from_str(&saved).unwrap();
    rig.driver.transport.restore(&state).unwrap();
    assert_eq!(rig.driver.transport.save(), state);
    assert_eq!(stream.read(&mut [0]).unwrap(), 0);
    rig.driver.transport.resume();
    // There is no event buffer yet: it waits for one, and over a pause.
    rig.driver.transport.pause();
    rig.driver.transport.resume();
    rig.send(op::RW, 5000, port, b"?");
    rig.expect(op::RST);
    let place = crate::virtio::testing::MEMORY_END - 16;
    rig.driver.write(place, &[0xff; 4]);
    rig.driver.send(2, &[Piece::In(place, 4)]);
    assert_eq!(rig.driver.wait_used(2, 1)[0].1, 4);
    assert_eq!(rig.driver.read(place, 4), [0; 4]);
    let _stream = rig.connect(5000);
    // Only once.
    rig.driver.send(2, &[Piece::In(place, 4)]);
    rig.expect_silence();
    assert!(rig.driver.rings[2].used().is_empty());
}

#[test]
fn a_saved_driver_goes_on_at_another_device_whose_state_is_the_same() {
    let mut rig = Rig::up();
    let (mut stream, _) = rig.connect(5000);
    stream.write_all(b"before").unwrap();
    rig.expect(op::RW);
    rig.driver.transport.pause();
    let saved = serde_json::to_string(&rig.driver.transport.save()).unwrap();
    let state = serde_json::from_str(&saved).unwrap();
    let mut heir = Rig::idle(Duration::from_secs(60));
    heir.take_over(rig);
    heir.driver.transport.restore(&state).unwrap();
    assert_eq!(heir.driver.transport.save(), state);
    heir.driver.transport.resume();
    // Its connections stayed behind, and it can have others.
    assert_eq!(stream.read(&mut [0]).unwrap(), 0);
    let (mut stream, port) = heir.connect(5000);
    stream.write_all(b"after").unwrap();
    assert_eq!(heir.expect(op::RW).1, b"after");
    heir.send(op::RW, 5000, port, b"and back");
    let mut got = [0; 8];
    stream.read_exact(&mut got).unwrap();
    assert_eq!(&got, b"and back");
}

#[test]
fn the_path_goes_with_the_device() {
    let rig = Rig::up();
    let path = rig.path();
    let Rig { driver, dir: _dir, worker: _worker, .. } = rig;
    assert!(path.exists());
    drop(driver);
    assert!(!path.exists());
}
