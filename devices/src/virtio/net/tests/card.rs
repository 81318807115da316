//! What a card is beside its frames: queues, control queue, MTU, limits, link.

use std::os::unix::net::UnixStream;

use std::time::Instant;

use super::super::backend::ETHERNET_HEADER;
use super::super::limit::Direction;
use super::super::stream::Stream;
use super::*;
use crate::rate::Bucket;

const MTU: u64 = 1 << VIRTIO_NET_F_MTU;
const MQ: u64 = 1 << VIRTIO_NET_F_MQ;
const CTRL_VQ: u64 = 1 << VIRTIO_NET_F_CTRL_VQ;

fn rig(card: Card, features: u64) -> Rig {
    let worker = Worker::spawn("net").unwrap();
    let (ours, wire) = socketpair();
    let net = Net::new("net0", Box::new(Plain(ours)), card, worker.handle());
    Rig { driver: Driver::start(Box::new(net), features, 64), wire, _worker: worker }
}

#[test]
fn the_mtu_is_told_and_no_longer_packet_passes_unless_it_is_to_be_segmented() {
    let card = Card { mtu: Some(1400), ..Card::default() };
    let mut rig = rig(card.clone(), MTU | MERGEABLE);
    assert_eq!(rig.driver.config(10, 2), 1400u16.to_le_bytes());
    for i in 0..8 {
        rig.driver.rings[0].push(&[Piece::In(DATA + 0x1000 * i, 0x1000)]);
    }
    rig.driver.ring(0);
    let longest = HEADER_LEN + ETHERNET_HEADER + 4 + 1400;
    let mut large = frame(3000);
    // VIRTIO_NET_HDR_GSO_TCPV4, with the bit for ECN.
    large[1] = 0x81;
    for sent in [frame(longest), frame(longest + 1), large, frame(60)] {
        rig.host_sends(&sent);
    }
    let lens: Vec<_> = rig.driver.wait_used(0, 3).iter().map(|(_, len)| *len).collect();
    assert_eq!(lens, [longest as u32, 3000, 60]);
    // A driver that did not ask for the MTU has not promised anything.
    let mut deaf = super::card::rig(card, MERGEABLE);
    deaf.driver.send(0, &[Piece::In(DATA, 4000)]);
    deaf.host_sends(&frame(3000));
    assert_eq!(deaf.driver.wait_used(0, 1), [(0, 3000)]);
}

/// Such a bucket gains nothing to speak of after its first `size` tokens.
fn once(size: u64) -> Option<Bucket> {
    Some(Bucket::new(size, 1))
}

/// All frames that come within a while in which nothing else should.
fn count_after_a_while(rig: &Rig) -> usize {
    std::thread::sleep(Duration::from_millis(50));
    std::iter::from_fn(|| rig.try_host_receives()).count()
}

#[test]
fn a_limit_holds_frames_back_each_way_and_loses_none() {
    for (bandwidth, ops) in [(None, once(5)), (once(500 - 5), None), (once(500), once(5))] {
        let limits = Limits {
            rx: Direction::new(bandwidth.clone(), ops.clone()),
            tx: Direction::new(bandwidth.clone(), ops.clone()),
        };
        let began = Instant::now();
        let mut rig = rig(Card { limits, ..Card::default() }, EVENT_IDX);
        for _ in 0..20 {
            rig.driver.rings[1].push(&[Piece::Out(DATA, (HEADER_LEN + 100) as u32)]);
            rig.driver.rings[0].push(&[Piece::In(DATA + 0x1000, 2000)]);
            rig.host_sends(&frame(HEADER_LEN + 100));
        }
        rig.driver.ring(1);
        rig.driver.ring(0);
        // 5 frames of 100 bytes, or 4 and then one on credit towards the guest.
        let sent = count_after_a_while(&rig);
        let expected = if ops.is_some() { 5 } else { 4 };
        let (tx, rx) = (rig.driver.rings[1].used().len(), rig.driver.rings[0].used().len());
        // What a slow machine's clock may have brought.
        let more = began.elapsed().as_secs() as usize;
        let said = format!("{bandwidth:?} {ops:?}: {sent}, {tx}, {rx}");
        assert!((expected..=expected + more).contains(&sent), "{said}");
        assert!((expected..=expected + more).contains(&tx), "{said}");
        assert!((5..=5 + more).contains(&rx), "{said}");
    }
}

#[test]
fn what_a_limit_held_back_comes_when_its_time_has_come() {
    let fast = Bucket::new(2, 2000);
    let limits = Limits {
        rx: Direction::new(None, Some(fast.clone())),
        tx: Direction::new(None, Some(fast)),
    };
    let mut rig = rig(Card { limits, ..Card::default() }, 0);
    for _ in 0..60 {
        rig.driver.rings[1].push(&[Piece::Out(DATA, 100)]);
        rig.driver.rings[0].push(&[Piece::In(DATA + 0x1000, 2000)]);
    }
    rig.driver.ring(1);
    rig.driver.ring(0);
    for _ in 0..60 {
        rig.host_receives();
    }
    for _ in 0..60 {
        rig.host_sends(&frame(100));
    }
    rig.driver.wait_used(0, 60);
    rig.driver.wait_used(1, 60);
}

fn stream_rig(features: u64) -> (Driver, UnixStream, Worker) {
    let worker = Worker::spawn("net").unwrap();
    let (ours, wire) = UnixStream::pair().unwrap();
    ours.set_nonblocking(true).unwrap();
    let backend = Box::new(Stream::new(ours.into()));
    let net = Net::new("net0", backend, Card::default(), worker.handle());
    (Driver::start(Box::new(net), features, 64), wire, worker)
}

#[test]
fn a_backend_without_headers_sees_none_and_the_driver_gets_empty_ones() {
    use std::io::{Read, Write};
    for features in [0, MERGEABLE, MERGEABLE | EVENT_IDX] {
        let (mut driver, mut wire, _worker) = stream_rig(features);
        assert_eq!(driver.offered() & OFFLOADS, 0);
        driver.write(DATA, &frame(112));
        driver.send(1, &[Piece::Out(DATA, 50), Piece::Out(DATA + 50, 62)]);
        let mut sent = [0; 104];
        wire.read_exact(&mut sent).unwrap();
        assert_eq!(sent[..4], 100u32.to_be_bytes());
        assert_eq!(sent[4..], frame(112)[12..]);
        driver.write(DATA, &[0xee; 0x2000]);
        driver.send(0, &[Piece::In(DATA, 30), Piece::In(DATA + 30, 2000)]);
        driver.send(0, &[Piece::In(DATA + 0x1000, 2000)]);
        // In three parts, and a piece of the next.
        for part in sent.chunks(40) {
            wire.write_all(part).unwrap();
            std::thread::sleep(Duration::from_millis(5));
        }
        wire.write_all(&sent).unwrap();
        assert_eq!(driver.wait_used(0, 2).iter().map(|u| u.1).collect::<Vec<_>>(), [112, 112]);
        for at in [DATA, DATA + 0x1000] {
            let got = driver.read(at, 112);
            assert_eq!(got[..12], [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0]);
            assert_eq!(got[12..], sent[4..]);
        }
    }
}

#[test]
fn a_stream_stays_in_step_over_resets_and_pauses_in_the_midst_of_frames() {
    use std::io::Write;
    let (mut driver, mut wire, _worker) = stream_rig(MERGEABLE);
    let mut whole = 500u32.to_be_bytes().to_vec();
    whole.extend(frame(500));
    for round in 0..6 {
        driver.send(0, &[Piece::In(DATA, 2000)]);
        wire.write_all(&whole[..300]).unwrap();
        std::thread::sleep(Duration::from_millis(10));
        if round % 2 == 0 {
            driver.bring_up(MERGEABLE, 64);
            driver.send(0, &[Piece::In(DATA, 2000)]);
        } else {
            driver.transport.pause();
            driver.transport.resume();
        }
        wire.write_all(&whole[300..]).unwrap();
        // The interrupted one is lost, and nothing else.
        wire.write_all(&whole).unwrap();
        assert_eq!(driver.wait_used(0, 1)[0].1, 512);
        assert_eq!(driver.read(DATA + 12, 500), frame(500));
    }
}

/// Fills the stream from the guest until a frame is cut, does `what` to the device, and reads it all:
/// the stream is a row of whole frames, and the driver's new one comes last.
fn cut_short(what: impl Fn(&mut Driver)) {
    use std::io::Read;
    let (mut driver, mut wire, _worker) = stream_rig(0);
    for _ in 0..63 {
        driver.rings[1].push(&[Piece::Out(DATA, 60_000)]);
    }
    driver.ring(1);
    std::thread::sleep(Duration::from_millis(50));
    assert!(driver.rings[1].used().len() < 63, "the socket holds more than was thought");
    what(&mut driver);
    driver.write(DATA, &[0x77; 100]);
    driver.send(1, &[Piece::Out(DATA, 100)]);
    wire.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    loop {
        let mut len = [0; 4];
        wire.read_exact(&mut len).unwrap();
        let mut frame = vec![0; u32::from_be_bytes(len) as usize];
        wire.read_exact(&mut frame).unwrap();
        if frame == [0x77; 88] {
            return;
        }
        assert_eq!(frame.len(), 60_000 - HEADER_LEN, "out of step");
    }
}

#[test]
fn a_stream_stays_in_step_when_a_frame_of_the_guest_is_cut_short() {
    cut_short(|driver| {
        driver.transport.pause();
        driver.transport.resume();
    });
    cut_short(|driver| driver.bring_up(0, 64));
    cut_short(|driver| {
        driver.rings[1].set_avail_idx(40_000);
        driver.ring(1);
        driver.transport.pause();
        driver.transport.resume();
        driver.bring_up(0, 64);
    });
}

#[test]
fn the_driver_is_told_when_the_other_end_goes() {
    let (mut driver, wire, _worker) = stream_rig(0);
    driver.send(0, &[Piece::In(DATA, 2000)]);
    assert_eq!(driver.config(6, 2), [1, 0]);
    drop(wire);
    wait_until("the link to go down", || driver.config(6, 2) == [0, 0]);
    wait_until("a configuration change", || driver.get(0x60) & 2 != 0);
    assert_eq!(driver.status(), 15);
    driver.send(1, &[Piece::Out(DATA, 100)]);
    assert_eq!(driver.wait_used(1, 1).len(), 1);
}

/// A card over a TAP of several queues.
fn queues(name: &str, count: u16, features: u64) -> Option<(Driver, OwnedFd, Vec<Worker>)> {
    drop(real_tap(name)?);
    let taps = Tap::open_queues(name, count).unwrap();
    let wire = raw_socket(name);
    let workers: Vec<_> = (0..2).map(|_| Worker::spawn("net").unwrap()).collect();
    let handles = workers.iter().map(Worker::handle).collect();
    let net = Net::over_tap("net0", taps, Card::default(), handles);
    Some((Driver::start(Box::new(net), features, 16), wire, workers))
}

/// Sends a command and gives the answer's byte.
fn command(driver: &mut Driver, queue: usize, bytes: &[u8]) -> u8 {
    driver.write(DATA, bytes);
    driver.write(DATA + 0x100, &[0xee]);
    let out = Piece::Out(DATA, bytes.len() as u32);
    driver.send(queue, &[out, Piece::In(DATA + 0x100, 1)]);
    assert_eq!(driver.wait_used(queue, 1)[0].1, 1);
    driver.read(DATA + 0x100, 1)[0]
}

/// Frames with different addresses in them, which the host spreads over the queues.
fn flows(wire: &OwnedFd, count: u8) {
    for port in 0..count {
        let mut frame = vec![0xff; 6];
        frame.extend([0x52, 0, 0, 0, 0, 9, 0x08, 0x00, 0x45, 0, 0, 28, 0, 0, 0, 0, 64, 17, 0, 0]);
        frame.extend([10, 9, 0, 1, 10, 9, 0, port, 0x40, port, 0x50, port, 0, 8, 0, 0]);
        frame.resize(60, 0);
        // SAFETY: frame is readable for its length.
        let sent = unsafe { libc::write(wire.as_raw_fd(), frame.as_ptr().cast(), frame.len()) };
        assert_eq!(sent, 60);
    }
}

fn received(driver: &mut Driver, queue: usize) -> usize {
    driver.rings[queue].used().iter().filter(|(_, len)| *len == 72).count()
}

#[test]
fn the_number_of_pairs_is_part_of_the_saved_state_where_there_are_several() {
    let worker = Worker::spawn("net").unwrap();
    let card = |pairs: usize| {
        let home = |_| {
            let (ours, _) = socketpair();
            PairHome::new(Box::new(Plain(ours)), Limits::default())
        };
        let homes = (0..pairs).map(home).collect();
        Net::with("n", homes, Vec::new(), &Card::default(), vec![worker.handle()])
    };
    let saved = card(3);
    saved.pairs_used.store(2, Ordering::Release);
    let state = saved.save();
    let mut heir = card(3);
    heir.restore(&state).unwrap();
    assert_eq!((heir.save(), state), (saved.save(), serde_json::json!({ "pairs": 2 })));
    let wrong = [r#"{"pairs":0}"#, r#"{"pairs":4}"#, r#"{"pairs":1,"x":1}"#, "{}", "null", "2"];
    for wrong in wrong.map(|text| serde_json::from_str(text).unwrap()) {
        heir.restore(&wrong).unwrap_err();
        assert_eq!(heir.save(), saved.save(), "{wrong} has changed something");
    }
    let mut single = card(1);
    assert!(single.save().is_null());
    single.restore(&serde_json::Value::Null).unwrap();
    single.restore(&saved.save()).unwrap_err();
}

#[test]
fn the_driver_says_how_many_pairs_it_uses_and_the_host_gives_frames_to_no_others() {
    let Some((mut driver, wire, _workers)) = queues("husktest3", 2, MQ | CTRL_VQ) else { return };
    assert_eq!(driver.config(8, 2), [2, 0]);
    assert_eq!(driver.rings.len(), 5);
    let refill = |driver: &mut Driver| {
        for queue in [0, 2] {
            for n in 0..16 {
                driver.rings[queue].push(&[Piece::In(DATA + 0x1000 + 0x100 * n, 0x100)]);
            }
            driver.ring(queue as u32);
        }
    };
    refill(&mut driver);
    flows(&wire, 8);
    let mut first = 0;
    wait_until("frames of the first pair", || {
        first += received(&mut driver, 0);
        first == 8
    });
    assert_eq!(received(&mut driver, 2), 0);

    for (bytes, answer) in [
        (&[4, 0, 2, 0][..], 0),
        (&[4, 0, 0, 0], 1),
        (&[4, 0, 3, 0], 1),
        (&[4, 0, 0xff, 0xff], 1),
        (&[4, 1, 2, 0], 1),
        (&[0, 0, 1], 1),
        (&[4, 0, 2], 1),
        (&[4, 0, 2, 0], 0),
    ] {
        assert_eq!(command(&mut driver, 4, bytes), answer, "{bytes:?}");
    }
    // A pause keeps the choice, and so does a state that is saved and taken over.
    driver.transport.pause();
    let state = driver.transport.save();
    assert_eq!(state.device, serde_json::json!({ "pairs": 2 }));
    driver.transport.reset();
    assert_eq!(driver.transport.save().device, serde_json::json!({ "pairs": 1 }));
    driver.transport.restore(&state).unwrap();
    assert_eq!(driver.transport.save(), state);
    driver.transport.resume();
    let (mut first, mut second) = (0, 0);
    for _ in 0..50 {
        flows(&wire, 8);
        std::thread::sleep(Duration::from_millis(10));
        for (queue, count) in [(0, &mut first), (2, &mut second)] {
            let new = received(&mut driver, queue);
            *count += new;
            for n in 0..new as u64 {
                driver.rings[queue].push(&[Piece::In(DATA + 0x1000 + 0x100 * n, 0x100)]);
            }
            driver.ring(queue as u32);
        }
        if second > 0 {
            break;
        }
    }
    assert!(second > 0, "all {first} frames went to the first pair");

    // A reset does not.
    driver.bring_up(MQ | CTRL_VQ, 16);
    refill(&mut driver);
    flows(&wire, 8);
    let mut first = 0;
    wait_until("frames of the first pair", || {
        first += received(&mut driver, 0);
        first >= 8
    });
    assert_eq!(received(&mut driver, 2), 0);
    assert_eq!(driver.status(), 15);
}

#[test]
fn without_mq_the_control_queue_is_the_third_and_a_pause_keeps_every_queue() {
    let Some((mut driver, _wire, _workers)) = queues("husktest4", 3, CTRL_VQ) else { return };
    for _ in 0..3 {
        assert_eq!(command(&mut driver, 2, &[4, 0, 1, 0]), 0);
        driver.transport.pause();
        driver.transport.resume();
        driver.send(1, &[Piece::Out(DATA, 100)]);
        driver.wait_used(1, 1);
    }
    assert_eq!(driver.status(), 15);
    // Without an answer's place it is no command.
    driver.send(2, &[Piece::Out(DATA, 4)]);
    driver.wait_broken();
}

#[test]
fn a_tap_of_one_queue_is_refused_for_more_and_its_mtu_is_known() {
    let Some(tap) = real_tap("husktest5") else { return };
    assert_eq!(tap.mtu(), Some(1500));
    assert!(matches!(Tap::open_queues("husktest5", 2), Err(TapError::Queues { .. })));
}

/// A card whose two pairs the host's kernel serves, where it can.
fn kernels(name: &str, features: u64) -> Option<(Driver, OwnedFd, Worker)> {
    drop(real_tap(name)?);
    let vhosts: Vec<_> = match (0..2).map(|_| Vhost::open()).collect() {
        Ok(vhosts) => vhosts,
        Err(e) => {
            let e: io::Error = e;
            skipped(format!("no vhost-net: {e}"));
            return None;
        }
    };
    let taps = Tap::open_queues(name, 2).unwrap().into_iter().zip(vhosts).collect();
    let wire = raw_socket(name);
    let worker = Worker::spawn("net").unwrap();
    let net = Net::over_vhost("net0", taps, Card::default(), worker.handle());
    Some((Driver::start(Box::new(net), features, 16), wire, worker))
}

#[test]
fn the_hosts_kernel_serves_the_rings_and_gives_them_back() {
    let features = MERGEABLE | MQ | CTRL_VQ;
    let Some((mut driver, wire, _worker)) = kernels("husktest6", features) else { return };
    for round in 0..40u64 {
        // The kernel's interrupts have a cause, and no other comes with them.
        assert_eq!(driver.get(0x60), 1);
        let refill = |driver: &mut Driver| {
            driver.rings[0].push(&[Piece::In(DATA + 0x1000, 0x100)]);
            driver.ring(0);
        };
        (0..8).for_each(|_| refill(&mut driver));
        flows(&wire, 2);
        let mut got = 0;
        wait_until(&format!("frames in round {round}"), || {
            // Besides ours there is what the host has to say by itself.
            for (_, len) in driver.rings[0].used() {
                got += usize::from(len == 72);
                refill(&mut driver);
            }
            got >= 2
        });
        driver.bring_up(features, 16);
        driver.write(DATA, &frame(100));
        for _ in 0..=round % 5 {
            driver.send(1, &[Piece::Out(DATA, 100)]);
            driver.wait_used(1, 1);
            driver.transport.pause();
            driver.send(1, &[Piece::Out(DATA, 100)]);
            assert_eq!(driver.get(0x60) & 2, 0);
            driver.transport.resume();
            driver.wait_used(1, 1);
        }
        assert_eq!(command(&mut driver, 4, &[4, 0, 2, 0]), 0);
        assert_eq!(driver.status(), 15);
        driver.bring_up(features, 16);
    }
}

#[test]
fn a_ring_the_hosts_kernel_finds_malformed_breaks_the_device_until_a_reset() {
    let Some((mut driver, _wire, _worker)) = kernels("husktest7", 0) else { return };
    driver.rings[1].set_avail_idx(1000);
    driver.ring(1);
    driver.wait_broken();
    driver.bring_up(0, 16);
    driver.write(DATA, &frame(100));
    driver.send(1, &[Piece::Out(DATA, 100)]);
    driver.wait_used(1, 1);
    assert_eq!(driver.status(), 15);
}
