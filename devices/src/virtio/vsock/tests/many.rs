//! Many at once, and what it costs when nothing happens.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::Duration;

use super::super::MAX_CONNECTIONS;
use super::super::packet::{Header, op, shut};
use super::rig::{Rig, last_line, line, noise};
use crate::worker::Worker;

/// Each connection has a descriptor at each of its ends, and both are ours here.
fn may_have_descriptors(wanted: u64) {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: getrlimit writes an rlimit, setrlimit reads one.
    unsafe {
        assert_eq!(libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit), 0);
        assert!(limit.rlim_max >= wanted, "the limit of descriptors is {}", limit.rlim_max);
        limit.rlim_cur = limit.rlim_max;
        assert_eq!(libc::setrlimit(libc::RLIMIT_NOFILE, &limit), 0);
    }
}

/// Takes all that comes and grants every REQUEST, until `done`. Sends what it gets back, doubled in
/// each byte.
fn serve(rig: &mut Rig, mut done: impl FnMut(&Header, &[u8]) -> bool) {
    loop {
        let (header, payload) = rig.next();
        let (guest, host) = (header.dst_port, header.src_port);
        match header.op {
            op::REQUEST => rig.send(op::RESPONSE, guest, host, &[]),
            op::RW => {
                let answer: Vec<u8> = payload.iter().map(|b| b.wrapping_mul(2)).collect();
                rig.send(op::RW, guest, host, &answer);
            }
            op::SHUTDOWN if header.flags == shut::BOTH => rig.send(op::RST, guest, host, &[]),
            _ => {}
        }
        if done(&header, &payload) {
            return;
        }
    }
}

#[test]
fn a_thousand_connections_at_once_each_get_their_own_bytes() {
    const COUNT: usize = 1000;
    may_have_descriptors(2 * COUNT as u64 + 200);
    let mut rig = Rig::up();
    let streams: Vec<UnixStream> = (0..COUNT).map(|n| rig.dial(n as u32)).collect();
    let mut asked = 0;
    serve(&mut rig, |header, _| {
        asked += usize::from(header.op == op::REQUEST);
        asked == COUNT
    });
    for (stream, n) in streams.iter().zip(0..) {
        assert!(line(stream).starts_with("OK "), "{n}");
    }
    for (mut stream, n) in streams.iter().zip(0..) {
        stream.write_all(&noise(n, 500)).unwrap();
    }
    let mut came = 0;
    serve(&mut rig, |_, payload| {
        came += payload.len();
        came == COUNT * 500
    });
    for (mut stream, n) in streams.iter().zip(0..) {
        let mut got = [0; 500];
        stream.read_exact(&mut got).unwrap();
        let wanted: Vec<u8> = noise(n, 500).iter().map(|b| b.wrapping_mul(2)).collect();
        assert!(got == *wanted, "{n}");
    }
    drop(streams);
    let mut ended = 0;
    serve(&mut rig, |header, _| {
        ended += usize::from(header.op == op::SHUTDOWN && header.flags == shut::BOTH);
        ended == COUNT
    });
    // Their places can be had again.
    let _again: Vec<_> = (0..10).map(|port| rig.connect(port)).collect();
}

#[test]
fn one_connection_too_many_is_told_so_and_gets_in_when_another_ends() {
    may_have_descriptors(2 * MAX_CONNECTIONS as u64 + 200);
    let mut rig = Rig::up();
    let mut streams: Vec<_> = (0..MAX_CONNECTIONS as u32).map(|n| rig.connect(n).0).collect();
    assert_eq!(last_line(&rig.dial(5)), "ERROR there are too many connections\n");
    drop(streams.pop());
    let end = rig.expect_end();
    rig.send(op::RST, end.dst_port, end.src_port, &[]);
    rig.expect_silence();
    rig.connect(5);
}

#[test]
fn more_hosts_than_may_speak_at_once_are_heard_one_after_the_other() {
    let mut rig = Rig::idle(Duration::from_secs(2));
    rig.bring_up(0);
    // These say nothing, and the last one has to wait until they have been given up.
    let silent: Vec<UnixStream> = (0..64).map(|_| rig.knock()).collect();
    let stream = rig.dial(5);
    rig.expect_silence();
    drop(silent);
    let (request, _) = rig.expect(op::REQUEST);
    rig.send(op::RESPONSE, 5, request.src_port, &[]);
    assert!(line(&stream).starts_with("OK "));
}

/// Processor time in ticks (of 10 ms) of the thread called `name`.
fn ticks(name: &str) -> u64 {
    for task in std::fs::read_dir("/proc/self/task").unwrap() {
        let stat = std::fs::read_to_string(task.unwrap().path().join("stat")).unwrap_or_default();
        let Some((head, rest)) = stat.rsplit_once(')') else { continue };
        if head.ends_with(name) {
            // State is field 3; utime and stime are 14 and 15.
            let fields: Vec<&str> = rest.split_whitespace().collect();
            return fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
        }
    }
    panic!("no thread is called {name}");
}

#[test]
fn a_host_and_a_guest_that_are_stuck_cost_no_processor_time() {
    let mut rig = Rig::on(Worker::spawn("vsock-stuck").unwrap(), Duration::from_secs(60));
    rig.bring_up(0);
    // A guest without room, a host that does not read, one that has left, and a queue that is full.
    let (mut unread, _) = rig.connect(1);
    let (_slow, port) = rig.connect(2);
    let (gone, _) = rig.connect(3);
    unread.write_all(&noise(1, 100_000)).unwrap();
    let mut left = 300_000usize;
    while let Some(rest) = left.checked_sub(4000) {
        left = rest;
        if rig.poll().is_none_or(|(header, _)| header.op != op::RST) {
            rig.send(op::RW, 2, port, &noise(2, 4000));
        }
    }
    drop(gone);
    // Nobody takes the packets any more.
    let more = Header { buf_alloc: u32::MAX, ..rig.header(op::CREDIT_UPDATE, 1, port) };
    rig.send_packet(more, &[]);
    thread::sleep(Duration::from_millis(100));
    let before = ticks("vsock-stuck");
    thread::sleep(Duration::from_millis(500));
    let used = ticks("vsock-stuck") - before;
    assert!(used <= 2, "{used} ticks of 10 ms in half a second");
}
