//! Frames, through a socket that stands for a network, and through real TAPs.

mod card;

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::Duration;

use super::backend::Plain;
use super::tap::{TapError, is_interface_name};
use super::*;
use crate::skipped::skipped;
use crate::virtio::testing::{
    DATA, Desc, Driver, EVENT_IDX, INDIRECT, NEXT, Piece, WRITE, wait_until,
};
use crate::worker::Worker;
use std::os::fd::AsFd;

struct Rig {
    driver: Driver,
    wire: OwnedFd,
    _worker: Worker,
}

fn socketpair() -> (OwnedFd, OwnedFd) {
    let mut fds = [0; 2];
    let kind = libc::SOCK_SEQPACKET | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
    // SAFETY: fds has room for the two descriptors.
    assert_eq!(unsafe { libc::socketpair(libc::AF_UNIX, kind, 0, fds.as_mut_ptr()) }, 0);
    // SAFETY: both are fresh and ours.
    unsafe { (OwnedFd::from_raw_fd(fds[0]), OwnedFd::from_raw_fd(fds[1])) }
}

const MERGEABLE: u64 = 1 << VIRTIO_NET_F_MRG_RXBUF;

impl Rig {
    fn new(features: u64, size: u16) -> Rig {
        let worker = Worker::spawn("net").unwrap();
        let (ours, wire) = socketpair();
        let net = Net::new("net0", Box::new(Plain(ours)), Card::default(), worker.handle());
        Rig { driver: Driver::start(Box::new(net), features, size), wire, _worker: worker }
    }

    /// The host sends a frame (with its header) to the guest.
    fn host_sends(&self, frame: &[u8]) {
        // SAFETY: frame is readable for its length.
        let sent =
            unsafe { libc::write(self.wire.as_raw_fd(), frame.as_ptr().cast(), frame.len()) };
        assert_eq!(sent, frame.len() as isize);
    }

    fn try_host_receives(&self) -> Option<Vec<u8>> {
        let mut frame = vec![0; MAX_FRAME];
        // SAFETY: frame is writable for its length.
        let len =
            unsafe { libc::read(self.wire.as_raw_fd(), frame.as_mut_ptr().cast(), frame.len()) };
        frame.truncate(usize::try_from(len).ok()?);
        Some(frame)
    }

    fn host_receives(&self) -> Vec<u8> {
        let mut frame = None;
        wait_until("frame", || {
            frame = self.try_host_receives();
            frame.is_some()
        });
        frame.unwrap()
    }
}

fn frame(len: usize) -> Vec<u8> {
    (0..len).map(|i| if i < HEADER_LEN { 0 } else { (i % 251) as u8 }).collect()
}

#[test]
fn a_frame_of_the_guest_reaches_the_host_whole() {
    for features in [0, EVENT_IDX] {
        let mut rig = Rig::new(features, 16);
        let sent = frame(1512);
        rig.driver.write(DATA, &sent);
        let pieces =
            [Piece::Out(DATA, 12), Piece::Out(DATA + 12, 100), Piece::Out(DATA + 112, 1400)];
        for _ in 0..40 {
            let head = rig.driver.send(1, &pieces);
            assert_eq!(rig.driver.wait_used(1, 1), [(head.into(), 0)]);
            assert_eq!(rig.host_receives(), sent);
        }
    }
}

#[test]
fn a_frame_of_the_host_fills_one_buffer_and_says_so() {
    for features in [0, MERGEABLE, MERGEABLE | EVENT_IDX] {
        let mut rig = Rig::new(features, 16);
        let sent = frame(1000);
        for round in 0..40 {
            let head = rig.driver.send(0, &[Piece::In(DATA, 12), Piece::In(DATA + 12, 1514)]);
            rig.host_sends(&sent);
            assert_eq!(rig.driver.wait_used(0, 1), [(head.into(), 1000)], "{round}");
            assert_eq!(rig.driver.read(DATA + 10, 2), [1, 0]);
            assert_eq!(rig.driver.read(DATA + 12, 988), sent[12..]);
        }
    }
}

#[test]
fn a_large_frame_is_merged_from_several_buffers() {
    let mut rig = Rig::new(MERGEABLE, 16);
    for i in 0..16 {
        rig.driver.rings[0].push(&[Piece::In(DATA + 0x1000 * i, 1500)]);
    }
    rig.driver.ring(0);
    let sent = frame(4000);
    rig.host_sends(&sent);
    rig.host_sends(&frame(60));
    let used = rig.driver.wait_used(0, 4);
    assert_eq!(used, [(0, 1500), (1, 1500), (2, 1000), (3, 60)]);
    assert_eq!(rig.driver.read(DATA + 10, 2), [3, 0]);
    assert_eq!(rig.driver.read(DATA + 0x1000, 1500), sent[1500..3000]);
    assert_eq!(rig.driver.read(DATA + 0x2000, 1000), sent[3000..]);
    assert_eq!(rig.driver.read(DATA + 0x3000 + 10, 2), [1, 0]);
}

#[test]
fn a_frame_waits_for_the_buffers_it_lacks() {
    for features in [MERGEABLE, MERGEABLE | EVENT_IDX] {
        let mut rig = Rig::new(features, 16);
        let sent = frame(4000);
        rig.driver.send(0, &[Piece::In(DATA, 1500)]);
        rig.host_sends(&sent);
        std::thread::sleep(Duration::from_millis(20));
        assert!(rig.driver.rings[0].used().is_empty());
        rig.driver.send(0, &[Piece::In(DATA + 0x1000, 1500)]);
        std::thread::sleep(Duration::from_millis(20));
        assert!(rig.driver.rings[0].used().is_empty());
        rig.driver.send(0, &[Piece::In(DATA + 0x2000, 1500)]);
        assert_eq!(rig.driver.wait_used(0, 3), [(0, 1500), (1, 1500), (2, 1000)]);
        assert_eq!(rig.driver.read(DATA + 10, 2), [3, 0]);
        assert_eq!(rig.driver.read(DATA + 0x1000, 1500), sent[1500..3000]);
        assert_eq!(rig.driver.read(DATA + 0x2000, 1000), sent[3000..]);
    }
}

#[test]
fn a_frame_that_never_fits_is_dropped_and_the_next_comes_through() {
    let mut rig = Rig::new(0, 16);
    rig.driver.send(0, &[Piece::In(DATA, 1000)]);
    rig.host_sends(&frame(1001));
    rig.host_sends(&frame(1000));
    assert_eq!(rig.driver.wait_used(0, 1), [(0, 1000)]);
    assert_eq!(rig.driver.transport.counters().counts().errors, 1);
}

/// Otherwise the device would go round and round: chains are there, but never enough of them.
#[test]
fn a_frame_for_which_no_system_call_has_enough_segments_is_dropped() {
    let mut rig = Rig::new(MERGEABLE | 1 << 28, 256);
    rig.driver.rings[0].push(&[Piece::In(DATA, 36)]);
    for i in 0..6u64 {
        let table: Vec<u8> = (0..250u16)
            .flat_map(|next| {
                Desc { addr: DATA, len: 1, flags: WRITE | NEXT, next: next + 1 }.bytes()
            })
            .chain(Desc { addr: DATA, len: 1, flags: WRITE, next: 0 }.bytes())
            .collect();
        let at = DATA + 0x1_0000 + 0x2000 * i;
        rig.driver.write(at, &table);
        let indirect = Desc { addr: at, len: 251 * 16, flags: INDIRECT, next: 0 };
        rig.driver.rings[0].set_desc(250 + i as u16, indirect);
        rig.driver.rings[0].stage(250 + i as u16);
    }
    rig.driver.rings[0].publish();
    rig.driver.ring(0);
    rig.host_sends(&frame(5000));
    rig.host_sends(&frame(36));
    assert_eq!(rig.driver.wait_used(0, 1)[0].1, 36);
}

#[test]
fn frames_that_come_before_there_are_buffers_are_kept_by_the_host() {
    for features in [0, EVENT_IDX | MERGEABLE] {
        let mut rig = Rig::new(features, 16);
        for len in [100, 200, 300] {
            rig.host_sends(&frame(len));
        }
        std::thread::sleep(Duration::from_millis(20));
        for len in [100, 200, 300] {
            let head = rig.driver.send(0, &[Piece::In(DATA, 2000)]);
            assert_eq!(rig.driver.wait_used(0, 1), [(head.into(), len)]);
        }
    }
}

#[test]
fn a_frame_the_host_cannot_take_is_dropped_and_a_full_host_is_waited_for() {
    let mut rig = Rig::new(0, 256);
    rig.driver.send(1, &[Piece::Out(DATA, 11)]);
    rig.driver.send(1, &[Piece::Out(DATA, 0x10_000), Piece::Out(DATA, 0x1_000)]);
    assert_eq!(rig.driver.wait_used(1, 2).len(), 2);
    assert!(rig.try_host_receives().is_none());
    // More than the socket holds.
    for _ in 0..40 {
        rig.driver.rings[1].push(&[Piece::Out(DATA, 30_000)]);
    }
    rig.driver.ring(1);
    std::thread::sleep(Duration::from_millis(20));
    assert!(rig.driver.rings[1].used().len() < 40);
    for _ in 0..40 {
        assert_eq!(rig.host_receives().len(), 30_000);
    }
}

#[test]
fn a_burst_longer_than_a_round_comes_through() {
    let mut rig = Rig::new(EVENT_IDX | MERGEABLE, 256);
    for _ in 0..200 {
        rig.driver.rings[0].push(&[Piece::In(DATA, 100)]);
    }
    for _ in 0..200 {
        rig.driver.rings[1].push(&[Piece::Out(DATA, 100)]);
    }
    rig.driver.ring(0);
    rig.driver.ring(1);
    for _ in 0..200 {
        rig.host_receives();
    }
    rig.driver.wait_used(1, 200);
    for _ in 0..200 {
        wait_until("room", || {
            let data = [0u8; 64];
            // SAFETY: data is readable for its length.
            unsafe { libc::write(rig.wire.as_raw_fd(), data.as_ptr().cast(), 64) == 64 }
        });
    }
    rig.driver.wait_used(0, 200);
}

#[test]
fn a_pause_loses_no_buffer() {
    let mut rig = Rig::new(EVENT_IDX | MERGEABLE, 16);
    rig.driver.send(0, &[Piece::In(DATA, 100)]);
    rig.driver.send(0, &[Piece::In(DATA, 100)]);
    rig.host_sends(&frame(50));
    rig.driver.wait_used(0, 1);
    rig.driver.transport.pause();
    rig.host_sends(&frame(60));
    rig.driver.transport.resume();
    assert_eq!(rig.driver.wait_used(0, 1), [(1, 60)]);
}

#[test]
fn a_wire_that_is_cut_ends_nothing_but_the_frames() {
    let mut rig = Rig::new(0, 16);
    rig.driver.send(0, &[Piece::In(DATA, 100)]);
    rig.wire = socketpair().0;
    rig.driver.send(1, &[Piece::Out(DATA, 100)]);
    rig.driver.wait_used(1, 1);
    assert_eq!(rig.driver.status(), 15);
}

#[test]
fn a_malformed_receive_ring_breaks_the_device_until_a_reset() {
    let mut rig = Rig::new(0, 16);
    rig.driver.send(0, &[Piece::In(DATA, 11)]);
    rig.driver.wait_broken();
    rig.driver.bring_up(0, 16);
    rig.driver.send(0, &[Piece::In(DATA, 100)]);
    rig.host_sends(&frame(50));
    assert_eq!(rig.driver.wait_used(0, 1), [(0, 50)]);
}

#[test]
fn the_address_follows_from_the_id_and_is_local_unicast() {
    assert_eq!(mac_of("net0"), mac_of("net0"));
    assert_ne!(mac_of("net0"), mac_of("net1"));
    assert_eq!(mac_of("net0")[0] & 3, 2);
    let rig = Rig::new(0, 16);
    assert_eq!(rig.driver.config(0, 6), mac_of("net0"));
    // The link is up, there is one pair of queues, and no MTU.
    assert_eq!(rig.driver.config(6, 8), [1, 0, 1, 0, 0, 0, 0, 0]);
    assert_eq!(rig.driver.offered() & (1 << VIRTIO_NET_F_MTU | 1 << VIRTIO_NET_F_MQ), 0);
}

#[test]
fn an_interface_is_called_what_linux_takes() {
    for good in ["tap0", "a", "fifteen-bytes-x", "br0.100", "...", "ta\u{fc}p"] {
        assert!(is_interface_name(good), "{good:?}");
    }
    // The last one's UTF-8 ends in 0xa0.
    let bad =
        ["", ".", "..", "sixteen-bytes-xx", "a/b", "a:b", "a b", "a\tb", "a\n", "tap%d", "\u{e0}"];
    for bad in bad.into_iter().chain(["a\0b"]) {
        assert!(!is_interface_name(bad), "{bad:?}");
    }
}

#[test]
fn what_is_no_tap_is_refused_with_a_remedy() {
    assert!(matches!(Tap::open(""), Err(TapError::Name(_))));
    assert!(matches!(Tap::open("a-very-long-name"), Err(TapError::Name(_))));
    assert!(matches!(Tap::open("a/b"), Err(TapError::Name(_))));
    assert!(matches!(Tap::from_fd(socketpair().0), Err(TapError::NotATap { .. })));
}

/// A network of our own with a TAP in it, as far as the host lets us; says so when it has to do
/// without. The namespace is the calling thread's.
pub(super) fn real_tap(name: &str) -> Option<Tap> {
    // SAFETY: takes no pointers; only this thread is moved.
    if unsafe { libc::unshare(libc::CLONE_NEWNET) } != 0 {
        skipped(format!("no network namespace: {}", io::Error::last_os_error()));
        return None;
    }
    match Tap::open(name) {
        Ok(tap) => Some(tap),
        Err(e @ (TapError::Device { .. } | TapError::Permission { .. })) => {
            skipped(e);
            None
        }
        Err(e) => panic!("{e}"),
    }
}

/// Brings the interface up and gives a socket that carries its raw frames.
fn raw_socket(name: &str) -> OwnedFd {
    // SAFETY: a new descriptor, ours when the call succeeded, which is checked.
    let socket = unsafe {
        let fd = libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_NONBLOCK, 0);
        assert!(fd >= 0);
        OwnedFd::from_raw_fd(fd)
    };
    let mut request = [0u8; 40];
    request[..name.len()].copy_from_slice(name.as_bytes());
    request[16..18].copy_from_slice(&(libc::IFF_UP as u16).to_ne_bytes());
    // SAFETY: the ioctl reads an ifreq of 40 bytes; if_nametoindex the name, which ends in 0.
    let index = unsafe {
        assert_eq!(libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &request), 0);
        libc::if_nametoindex(request.as_ptr().cast())
    };
    // SAFETY: all zeroes is a sockaddr_ll.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = (libc::ETH_P_ALL as u16).to_be();
    address.sll_ifindex = index as i32;
    // SAFETY: the address lives through the call and is as long as said.
    let bound = unsafe {
        let len = size_of_val(&address) as u32;
        libc::bind(socket.as_raw_fd(), (&raw const address).cast(), len)
    };
    assert_eq!(bound, 0);
    socket
}

#[test]
fn a_real_tap_opens_once_and_refuses_frames_while_it_is_down() {
    let Some(tap) = real_tap("husktest0") else { return };
    assert_eq!(tap.name(), "husktest0");
    tap.set_offloads(FEATURES | OFFLOADS).unwrap();
    assert!(matches!(Tap::open("husktest0"), Err(TapError::InUse { .. })));
    let copy = Tap::from_fd(tap.as_fd().try_clone_to_owned().unwrap()).unwrap();
    assert_eq!(copy.name(), "husktest0");
    let worker = Worker::spawn("net").unwrap();
    let net = Net::over_tap("net0", vec![tap], Card::default(), vec![worker.handle()]);
    let mut driver = Driver::start(Box::new(net), MERGEABLE | EVENT_IDX, 16);
    driver.write(DATA, &frame(100));
    driver.send(1, &[Piece::Out(DATA, 100)]);
    assert_eq!(driver.wait_used(1, 1), [(0, 0)]);
    assert_eq!(driver.status(), 15);
}

#[test]
fn a_real_tap_carries_frames_both_ways() {
    let Some(tap) = real_tap("husktest1") else { return };
    let wire = raw_socket("husktest1");
    let worker = Worker::spawn("net").unwrap();
    let net = Net::over_tap("net0", vec![tap], Card::default(), vec![worker.handle()]);
    let mut rig = Rig {
        driver: Driver::start(Box::new(net), FEATURES | OFFLOADS, 64),
        wire,
        _worker: worker,
    };
    for i in 0..32 {
        rig.driver.rings[0].push(&[Piece::In(DATA + 0x10000 + 0x800 * i, 0x800)]);
    }
    rig.driver.ring(0);
    // An experimental EtherType, so that nobody else answers or sends such a frame.
    let mut sent = frame(512);
    sent[12..24].copy_from_slice(&[0xff; 12]);
    sent[24..26].copy_from_slice(&[0x88, 0xb5]);
    rig.driver.write(DATA, &sent);
    rig.driver.send(1, &[Piece::Out(DATA, 512)]);
    wait_until("our frame", || rig.try_host_receives().is_some_and(|f| f == sent[12..]));
    sent[100] ^= 0xff;
    rig.host_sends(&sent[12..]);
    let mut seen = 0;
    wait_until("the host's frame", || {
        let new = rig.driver.rings[0].used();
        let mut hit = false;
        for (_, len) in new {
            let got = rig.driver.read(DATA + 0x10000 + 0x800 * seen, len as usize);
            seen += 1;
            hit |= got[12..] == sent[12..] && got[10..12] == [1, 0];
        }
        hit
    });
}

#[test]
fn a_tap_that_is_deleted_stops_receiving_and_nothing_else() {
    let Some(tap) = real_tap("husktest2") else { return };
    let wire = raw_socket("husktest2");
    let worker = Worker::spawn("net").unwrap();
    let net = Net::over_tap("net0", vec![tap], Card::default(), vec![worker.handle()]);
    let mut rig = Rig { driver: Driver::start(Box::new(net), 0, 16), wire, _worker: worker };
    rig.driver.send(0, &[Piece::In(DATA, 2000)]);
    let deleted = std::process::Command::new("ip").args(["link", "del", "husktest2"]).status();
    if !deleted.is_ok_and(|status| status.success()) {
        skipped("no ip(8) to delete the TAP with");
        return;
    }
    rig.driver.send(1, &[Piece::Out(DATA + 0x1000, 100)]);
    assert_eq!(rig.driver.wait_used(1, 1), [(0, 0)]);
    rig.driver.ring(0);
    assert_eq!(rig.driver.status(), 15);
    rig.driver.transport.pause();
    rig.driver.transport.resume();
    assert_eq!(rig.driver.status(), 15 | 0x40, "offloads cannot be set any more");
}
