//! Guests and hosts that mean harm.

use std::io::{Read, Write};
use std::time::Duration;

use super::super::connection::ROOM;
use super::super::muxer::MAX_REFUSALS;
use super::super::packet::{HEADER_LEN, Header, op};
use super::rig::{CHUNK, Rig, last_line, noise};
use crate::virtio::testing::{DATA, Piece, wait_until};

#[test]
fn a_packet_that_is_not_what_its_header_says_breaks_the_device_until_a_reset() {
    type Harm = fn(&mut Rig);
    let harms: [Harm; 5] = [
        |rig| rig.send_raw(&[0; HEADER_LEN - 1], &[HEADER_LEN - 1]),
        |rig| rig.send_raw(&[], &[]),
        |rig| rig.send_packet(Header { len: 1, ..rig.header(op::RW, 1, 2) }, &[]),
        |rig| rig.send_packet(Header { len: u32::MAX, ..rig.header(op::RW, 1, 2) }, &[1]),
        |rig| {
            // All other receive buffers are used up first.
            rig.driver.bring_up(0, 64);
            rig.driver.send(0, &[Piece::In(DATA, HEADER_LEN as u32)]);
            rig.driver.send(1, &[Piece::Out(DATA + 0x4_0000, HEADER_LEN as u32)]);
            let packet = rig.header(op::RW, 1, 2).encode();
            rig.driver.write(DATA + 0x4_0000, &packet);
            rig.driver.send(1, &[Piece::Out(DATA + 0x4_0000, HEADER_LEN as u32)]);
        },
    ];
    let mut rig = Rig::up();
    for harm in harms {
        let (mut stream, _) = rig.connect(7);
        harm(&mut rig);
        rig.driver.wait_broken();
        // The host's side does not wait for a guest that cannot answer.
        assert_eq!(stream.read(&mut [0]).unwrap_or(0), 0);
        assert_eq!(last_line(&rig.dial(7)), "ERROR the guest is not ready\n");
        rig.bring_up(0);
    }
    rig.connect(7);
}

#[test]
fn a_guest_that_ignores_its_credit_loses_that_connection_only() {
    let mut rig = Rig::up();
    let (mut victim, port) = rig.connect(1);
    let (mut other, other_port) = rig.connect(2);
    let chunk = noise(1, CHUNK);
    let mut sent = 0;
    let end = loop {
        rig.send(op::RW, 1, port, &chunk);
        sent += CHUNK;
        match rig.poll() {
            Some((header, _)) if header.op == op::RST => break header,
            _ => assert!(sent < 64 * ROOM as usize, "nothing stops it"),
        }
    };
    assert_eq!((end.src_port, end.dst_port), (port, 1));
    let mut got = Vec::new();
    victim.read_to_end(&mut got).unwrap();
    // What came before it broke the rules is whole.
    assert!(!got.is_empty() && got.chunks(CHUNK).all(|part| part == chunk));
    rig.send(op::RW, 2, other_port, b"fine");
    let mut got = [0; 4];
    other.read_exact(&mut got).unwrap();
}

#[test]
fn answers_that_the_guest_does_not_take_are_bounded_and_none_is_lost() {
    let mut rig = Rig::up();
    rig.bring_up_starving(0);
    // Packets of nobody's, as many as fit: each is answered, and there is nowhere to put an answer.
    let header = rig.header(op::RW, 1, 2).encode();
    rig.driver.write(DATA + 0x4_0000, &header);
    let total = MAX_REFUSALS + 40;
    let (mut pushed, mut taken) = (0, 0);
    let begin = std::time::Instant::now();
    while begin.elapsed() < Duration::from_millis(300) {
        taken += rig.driver.rings[1].used().len();
        if pushed < total && pushed - taken < 40 {
            rig.driver.send(1, &[Piece::Out(DATA + 0x4_0000, HEADER_LEN as u32)]);
            pushed += 1;
        }
    }
    assert_eq!((pushed, taken), (total, MAX_REFUSALS));
    for _ in 0..64 {
        rig.give_buffer();
    }
    rig.driver.ring(0);
    for n in 0..total {
        assert_eq!(rig.next().0.op, op::RST, "{n}");
    }
    wait_until("all to be taken", || {
        taken += rig.driver.rings[1].used().len();
        taken == total
    });
}

#[test]
fn a_flood_of_lines_that_are_none_leaves_room_for_one_that_is() {
    let mut rig = Rig::up();
    for n in 0..300 {
        let mut stream = rig.knock();
        match n % 3 {
            0 => stream.write_all(&[b'A'; 64]).unwrap(),
            1 => stream.write_all(b"CONNECT nowhere\n").unwrap(),
            _ => {}
        }
        if n % 3 != 2 {
            assert_eq!(last_line(&stream), "ERROR expected CONNECT <port>\n");
        }
    }
    rig.connect(5);
}

#[test]
fn a_host_that_leaves_while_the_guest_is_asked_leaves_nothing_behind() {
    let mut rig = Rig::up();
    for _ in 0..2000 {
        let stream = rig.dial(5);
        let (request, _) = rig.expect(op::REQUEST);
        drop(stream);
        assert_eq!(rig.expect(op::RST).0.src_port, request.src_port);
    }
    rig.connect(5);
}
