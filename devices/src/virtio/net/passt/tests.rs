use std::net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use super::*;
use crate::skipped::skipped;
use crate::virtio::queue::IovecBuffer;

/// Runs the test with passt, or says that there is none.
fn start(forwards: &[Forward]) -> Option<Passt> {
    match Passt::start(MTU, forwards) {
        Ok(passt) => Some(passt),
        Err(PasstError::Missing) => {
            skipped(PasstError::Missing);
            None
        }
        Err(e) => panic!("{e}"),
    }
}

fn forward(host: u16, guest: u16, udp: bool) -> Forward {
    Forward { address: Some(Ipv4Addr::LOCALHOST.into()), host, guest, udp }
}

/// A port nobody has, for TCP; it may be taken before it is used, but hardly by a test.
fn free_port() -> u16 {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port()
}

fn send(passt: &mut Passt, frame: &mut [u8]) {
    let mut list = IovecBuffer::default();
    passt.send(Iovecs::over(&mut [frame], &mut list)).unwrap();
}

/// Waits for a frame that fits.
fn receive(passt: &mut Passt, what: &str, fits: impl Fn(&[u8]) -> bool) -> Vec<u8> {
    let deadline = Instant::now() + Duration::from_secs(10);
    let (mut list, mut frame, mut begun) = (IovecBuffer::default(), vec![0; 70_000], 0);
    loop {
        match passt.receive(Iovecs::over(&mut [&mut frame[begun..]], &mut list)) {
            Ok(Received::Part(len)) => begun += len,
            Ok(Received::Whole(len)) if fits(&frame[..begun + len]) => {
                frame.truncate(begun + len);
                return frame;
            }
            Ok(Received::Whole(_)) => begun = 0,
            Err(e) => {
                assert_eq!(e.kind(), io::ErrorKind::WouldBlock);
                assert!(Instant::now() < deadline, "no {what}");
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    }
}

const GUEST: [u8; 6] = [0x52, 0, 0, 0, 0, 1];
const GUEST_IP: [u8; 4] = [10, 0, 2, 15];
const GATEWAY_IP: [u8; 4] = [10, 0, 2, 2];

/// Who has the gateway's address?
fn arp() -> Vec<u8> {
    let mut frame = vec![0xff; 6];
    frame.extend(GUEST);
    frame.extend([0x08, 0x06, 0, 1, 0x08, 0, 6, 4, 0, 1]);
    frame.extend(GUEST);
    frame.extend(GUEST_IP);
    frame.extend([0; 6]);
    frame.extend(GATEWAY_IP);
    frame
}

#[test]
fn the_gateway_answers_and_passt_ends_with_the_backend() {
    let Some(mut passt) = start(&[]) else { return };
    send(&mut passt, &mut arp());
    let answer = receive(&mut passt, "answer", |f| f.get(12..14) == Some(&[0x08, 0x06]));
    assert_eq!(answer[20..22], [0, 2]);
    assert_eq!(answer[28..32], GATEWAY_IP);
    let process = format!("/proc/{}", passt.pid());
    assert!(std::path::Path::new(&process).exists());
    drop(passt);
    assert!(!std::path::Path::new(&process).exists());
}

#[test]
fn what_knocks_at_a_published_port_reaches_the_guest() {
    let (tcp, udp) = (free_port(), free_port());
    let forwards = [forward(tcp, 80, false), forward(udp, 53, true)];
    let Some(mut passt) = start(&forwards) else { return };
    // passt learns the guest's address from its first frame.
    send(&mut passt, &mut arp());
    let knock = std::thread::spawn(move || {
        let address = (Ipv4Addr::LOCALHOST, tcp).into();
        TcpStream::connect_timeout(&address, Duration::from_secs(5)).map(drop)
    });
    let is = |frame: &[u8], protocol: u8, port: u16| {
        frame.get(23) == Some(&protocol) && frame.get(36..38) == Some(&port.to_be_bytes())
    };
    let syn = receive(&mut passt, "SYN", |frame| is(frame, 6, 80));
    assert_eq!(syn[47] & 0x3f, 2, "a SYN and nothing else");
    assert_eq!(syn[30..34], GUEST_IP);
    UdpSocket::bind("127.0.0.1:0").unwrap().send_to(b"hello", ("127.0.0.1", udp)).unwrap();
    let datagram = receive(&mut passt, "datagram", |frame| is(frame, 17, 53));
    assert!(datagram.ends_with(b"hello"));
    drop(passt);
    // Connected to passt or refused: it has not hung.
    let _ = knock.join().unwrap();
}

#[test]
fn ipv6_is_had_by_the_first_interface_with_an_address_of_its_own() {
    let list = "\
00000000000000000000000000000001 01 80 10 80       lo
fd000000000000000000000000000002 02 40 00 80     eth0
fe8000000000000000fc00fffe000001 02 40 20 08     eth0
fe80000000000000700022fffe8b29d2 03 40 20 c0     eth1
fe800000000000008c59a5fffec53a86 04 40 20 80     eth2
";
    assert_eq!(link_local(list).as_deref(), Some("eth1"));
    assert_eq!(link_local(&list[..120]), None);
    assert_eq!(link_local("nonsense\n\nx y z 20 ?? name"), None);
}

#[test]
fn without_ipv6_a_port_published_by_it_is_refused_with_the_way_out() {
    // SAFETY: takes no pointers; only this thread is moved, to a network with a loopback and no more.
    if unsafe { libc::unshare(libc::CLONE_NEWNET) } != 0 {
        return skipped("no network namespace");
    }
    let address = Some(std::net::Ipv6Addr::LOCALHOST.into());
    let forward = Forward { address, host: 1080, guest: 80, udp: false };
    let error = Passt::start(MTU, &[forward]).err().unwrap();
    assert!(matches!(error, PasstError::NoIpv6 { .. }), "{error}");
    // What has no address is IPv4's, with IPv6 or without.
    assert_eq!(spec(&Forward { address: None, ..forward }), "0.0.0.0/1080:80");
    assert_eq!(spec(&forward), "::1/1080:80");
}

#[test]
fn a_port_that_is_taken_is_named() {
    let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = taken.local_addr().unwrap().port();
    match Passt::start(MTU, &[forward(port, 80, false)]) {
        Err(PasstError::Missing) => skipped(PasstError::Missing),
        Err(PasstError::Refused(words)) => assert!(words.contains(&port.to_string()), "{words}"),
        Err(e) => panic!("{e}"),
        Ok(_) => panic!("passt has a port that is taken"),
    }
}

#[test]
fn a_passt_that_was_killed_is_noticed() {
    let Some(mut passt) = start(&[]) else { return };
    passt.child.kill().unwrap();
    let (mut list, mut frame) = (IovecBuffer::default(), vec![0; 70_000]);
    let deadline = Instant::now() + Duration::from_secs(10);
    while let Err(e) = passt.receive(Iovecs::over(&mut [&mut frame], &mut list)) {
        if e.kind() == io::ErrorKind::BrokenPipe {
            break;
        }
        assert!(Instant::now() < deadline);
        std::thread::sleep(Duration::from_millis(1));
    }
    assert!(!passt.is_up());
}
