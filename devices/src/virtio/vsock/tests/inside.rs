//! The process' own end of the device.

use std::io::{ErrorKind, Read, Write};
use std::thread;
use std::time::Duration;

use super::super::packet::{HOST_CID, op};
use super::rig::Rig;

const LONG: Duration = Duration::from_secs(60);

#[test]
fn the_process_itself_reaches_a_port_of_the_guests_and_hears_of_a_refusal() {
    let mut rig = Rig::up();
    let inside = rig.inside.clone();
    let dialling = thread::spawn(move || (inside.dial(7, LONG), inside.dial(8, LONG)));
    let (request, _) = rig.expect(op::REQUEST);
    assert_eq!((request.dst_port, request.src_cid), (7, HOST_CID));
    rig.send(op::RESPONSE, 7, request.src_port, &[]);
    let (refused, _) = rig.expect(op::REQUEST);
    assert_eq!(refused.dst_port, 8);
    rig.send(op::RST, 8, refused.src_port, &[]);
    let (connected, refusal) = dialling.join().unwrap();
    let refusal = refusal.unwrap_err();
    assert_eq!(refusal.kind(), ErrorKind::ConnectionRefused, "{refusal}");
    let mut connected = connected.unwrap();
    connected.write_all(b"to the guest").unwrap();
    assert_eq!(rig.expect(op::RW).1, b"to the guest");
    rig.send(op::RW, 7, request.src_port, b"back");
    let mut back = [0; 4];
    connected.read_exact(&mut back).unwrap();
    assert_eq!(&back, b"back");
}

#[test]
fn the_guest_reaches_this_process_before_a_socket_of_the_same_port_and_only_while_it_listens() {
    let mut rig = Rig::up();
    let _never = rig.listen(52);
    let ours = rig.inside.listen(52);
    rig.send(op::REQUEST, 1024, 52, &[]);
    rig.expect(op::RESPONSE);
    let mut stream = ours.recv_timeout(LONG).unwrap();
    rig.send(op::RW, 1024, 52, b"hello");
    let mut got = [0; 5];
    stream.read_exact(&mut got).unwrap();
    assert_eq!(&got, b"hello");
    drop(ours);
    rig.send(op::REQUEST, 1025, 53, &[]);
    rig.expect(op::RST);
}

#[test]
fn a_guest_that_connects_and_connects_does_not_fill_the_process() {
    let mut rig = Rig::up();
    let _ours = rig.inside.listen(60);
    let answers: Vec<_> = (0..100)
        .map(|n| {
            rig.send(op::REQUEST, 2000 + n, 60, &[]);
            rig.next().0.op
        })
        .collect();
    let accepted = answers.iter().filter(|answer| **answer == op::RESPONSE).count();
    let refused = answers.iter().filter(|answer| **answer == op::RST).count();
    assert_eq!((accepted, refused), (8, 92));
}

#[test]
fn after_the_devices_end_nobody_waits_for_it() {
    let rig = Rig::up();
    let (inside, ours) = (rig.inside.clone(), rig.inside.listen(52));
    drop(rig);
    assert!(ours.recv_timeout(LONG).is_err());
    assert_eq!(inside.dial(7, LONG).unwrap_err().kind(), ErrorKind::NotConnected);
    assert!(inside.listen(53).recv_timeout(LONG).is_err());
}
