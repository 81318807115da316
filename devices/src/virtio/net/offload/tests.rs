use proptest::prelude::*;

use super::*;

/// The header of a frame that is to be cut, as a driver writes it.
fn header(kind: u8, size: u16, start: usize, offset: u16) -> [u8; HEADER_LEN] {
    let mut bytes = [0; HEADER_LEN];
    bytes[0] = 1;
    bytes[1] = kind;
    bytes[4..6].copy_from_slice(&size.to_le_bytes());
    bytes[6..8].copy_from_slice(&(start as u16).to_le_bytes());
    bytes[8..10].copy_from_slice(&offset.to_le_bytes());
    bytes
}

/// A TCP packet in a frame: with a VLAN tag or without, of either IP, with 12 bytes of options, its checksum
/// that of the pseudo-header. And where IP and TCP begin.
fn packet(vlan: bool, ipv6: bool, payload: usize) -> (Vec<u8>, usize, usize) {
    let mut frame = vec![0x52; 12];
    if vlan {
        frame.extend([0x81, 0, 0, 7]);
    }
    let ip = frame.len() + 2;
    let len = 32 + payload;
    if ipv6 {
        frame.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
        frame.extend((len as u16).to_be_bytes());
        frame.extend([TCP, 64]);
        frame.extend(1..=32);
    } else {
        frame.extend([0x08, 0, 0x45, 0]);
        frame.extend(((20 + len) as u16).to_be_bytes());
        frame.extend([0xff, 0xff, 0x40, 0, 64, TCP, 0, 0, 10, 0, 9, 1, 10, 0, 9, 2]);
    }
    let tcp = frame.len();
    // Ports, a sequence number that wraps soon, acknowledgment, 8 words with every flag, window.
    frame.extend([0, 80, 1, 2, 0xff, 0xff, 0xff, 0xf0, 1, 2, 3, 4, 0x80, 0xff, 1, 0]);
    frame.extend(pseudo(&frame, ip, ipv6, len).to_be_bytes());
    frame.extend([0; 2]);
    frame.extend([1; 12]);
    frame.extend((0..payload).map(|n| (n % 251) as u8));
    (frame, ip, tcp)
}

/// The folded sum of a pseudo-header.
fn pseudo(frame: &[u8], ip: usize, ipv6: bool, len: usize) -> u16 {
    let addresses = if ipv6 { &frame[ip + 8..ip + 40] } else { &frame[ip + 12..ip + 20] };
    fold(addresses, len as u32 + 6)
}

fn fold(bytes: &[u8], mut sum: u32) -> u16 {
    for pair in bytes.chunks(2) {
        sum += u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

fn pieces(header: &[u8; HEADER_LEN], frame: &[u8]) -> Option<Vec<Vec<u8>>> {
    let mut frame = frame.to_vec();
    let pieces = Pieces::of(Header::read(header, frame.len())?, &mut frame)?;
    let write = |n| {
        let mut piece = b"before".to_vec();
        let carried = pieces.write(n, &frame, &mut piece);
        assert_eq!(piece.len(), 6 + pieces.headers());
        piece.extend_from_slice(&frame[carried]);
        piece.split_off(6)
    };
    Some((0..pieces.count()).map(write).collect())
}

#[test]
fn a_large_packet_is_cut_into_segments_that_hold_what_it_held() {
    for (vlan, ipv6, payload) in
        [(false, false, 4000), (true, false, 1000), (false, true, 3001), (true, true, 0)]
    {
        let (frame, ip, tcp) = packet(vlan, ipv6, payload);
        let kind = if ipv6 { 4 } else { 1 };
        let cut = pieces(&header(kind, 1000, tcp, 16), &frame).unwrap();
        assert_eq!(cut.len(), payload.div_ceil(1000).max(1));
        let mut together = Vec::new();
        for (n, piece) in cut.iter().enumerate() {
            let (first, last) = (n == 0, n + 1 == cut.len());
            let len = piece.len() - tcp;
            assert_eq!(fold(&piece[tcp..], pseudo(piece, ip, ipv6, len).into()), 0xffff, "{n}");
            assert_eq!(piece[..ip], frame[..ip]);
            if ipv6 {
                assert_eq!(piece[ip + 4..ip + 6], (len as u16).to_be_bytes());
            } else {
                assert_eq!(fold(&piece[ip..tcp], 0), 0xffff);
                assert_eq!(piece[ip + 2..ip + 4], ((len + 20) as u16).to_be_bytes());
                assert_eq!(piece[ip + 4..ip + 6], 0xffffu16.wrapping_add(n as u16).to_be_bytes());
            }
            let number = 0xffff_fff0u32.wrapping_add(n as u32 * 1000);
            assert_eq!(piece[tcp + 4..tcp + 8], number.to_be_bytes());
            let lost = if first { 0 } else { 0x80 } | if last { 0 } else { 0x09 };
            let flags = 0xff - lost;
            assert_eq!(piece[tcp + 13], flags, "{n} of {}", cut.len());
            assert_eq!(piece[tcp + 20..tcp + 32], [1; 12]);
            together.extend_from_slice(&piece[tcp + 32..]);
        }
        assert_eq!(together, frame[tcp + 32..]);
    }
}

#[test]
fn a_checksum_is_completed_where_it_is_wanted_and_nothing_else_changed() {
    let (frame, ip, tcp) = packet(false, false, 777);
    let [done] = &pieces(&header(0, 0, tcp, 16), &frame).unwrap()[..] else { panic!() };
    let len = frame.len() - tcp;
    assert_eq!(fold(&done[tcp..], pseudo(done, ip, false, len).into()), 0xffff);
    assert_eq!(done[..tcp + 16], frame[..tcp + 16]);
    assert_eq!(done[tcp + 18..], frame[tcp + 18..]);
    // Which UDP would take for none.
    let mut frame = vec![0; 60];
    frame[20..22].copy_from_slice(&[0xff, 0xff]);
    let [done] = &pieces(&header(0, 0, 14, 6), &frame).unwrap()[..] else { panic!() };
    assert_eq!(done[20..22], [0xff, 0xff]);
    // Nothing is asked for.
    assert_eq!(pieces(&[0; HEADER_LEN], &frame).unwrap(), [frame]);
}

#[test]
fn what_is_passed_on_is_what_was_understood() {
    let mut given = header(0x81, 1448, 34, 16);
    (given[0], given[2], given[10], given[11]) = (0xff, 66, 9, 9);
    let header = Header::read(&given, 3000).unwrap();
    (given[0], given[10], given[11]) = (1, 0, 0);
    assert_eq!(header.bytes(), given);
    assert_eq!(header.needs(), 1 << 1 | 1 << 7 | 1 << 9, "CSUM, TSO4, ECN");
    assert_eq!(Header::read(&[0; HEADER_LEN], 14).unwrap().needs(), 0);
    // All headers together are not longer than the frame.
    given[3] = 200;
    assert_eq!(Header::read(&given, 3000).unwrap().bytes()[2..4], [0, 0]);
}

#[test]
fn a_header_that_promises_what_the_frame_does_not_hold_is_refused() {
    let (frame, ip, tcp) = packet(false, false, 3000);
    let len = frame.len();
    for (bytes, why) in [
        (header(3, 1000, tcp, 16), "UDP fragments are not offered"),
        (header(5, 1000, tcp, 16), "nor are UDP segments"),
        (header(1, 47, tcp, 16), "segments of next to nothing"),
        (header(1, 1000, tcp, 6), "not TCP's checksum"),
        (header(1, 1000, 20, 16), "no room for IP"),
        (header(4, 1000, tcp, 16), "no room for IPv6"),
        (header(0, 0, 13, 16), "inside the Ethernet header"),
        (header(0, 0, len - 1, 0), "behind the end"),
        (header(0, 0, 20, u16::MAX), "far behind it"),
        (header(1, 1000, len - 19, 16), "no room for TCP"),
    ] {
        assert_eq!(Header::read(&bytes, len), None, "{why}");
    }
    let mut without = header(1, 1000, tcp, 16);
    without[0] = 0;
    assert_eq!(Header::read(&without, len), None, "segments want checksums");

    let good = header(1, 1000, tcp, 16);
    assert!(pieces(&good, &frame).is_some());
    for (at, byte, why) in [
        (12, 0x86, "another protocol"),
        (ip, 0x65, "another version"),
        (ip, 0x46, "another length"),
        (ip + 6, 0x20, "a fragment"),
        (ip + 9, 17, "UDP"),
        (tcp + 12, 0x40, "too short a TCP header"),
    ] {
        let mut frame = frame.clone();
        frame[at] = byte;
        assert!(pieces(&good, &frame).is_none(), "{why}");
    }
    let (mut short, _, tcp) = packet(false, false, 0);
    short[tcp + 12] = 0xf0;
    assert!(pieces(&header(1, 1000, tcp, 16), &short).is_none(), "TCP's options are not there");
}

#[test]
fn of_ipv6_only_short_headers_that_are_known_are_copied_before_every_segment() {
    let (plain, ip, tcp) = packet(false, true, 3000);
    // Extension headers of so many bytes each, the last one before TCP.
    let extended = |kinds: &[(u8, usize)]| {
        let mut frame = plain.clone();
        let mut at = ip + 40;
        for (n, (kind, len)) in kinds.iter().enumerate() {
            let before = if n == 0 { ip + 6 } else { at - kinds[n - 1].1 };
            frame[before] = *kind;
            let mut extension = vec![0; *len];
            (extension[0], extension[1]) = (TCP, (len / 8 - 1) as u8);
            frame.splice(at..at, extension);
            at += len;
        }
        let cut = pieces(&header(4, 1000, at, 16), &frame);
        cut.map(|cut| cut.iter().map(Vec::len).max().unwrap() - at - 32)
    };
    assert_eq!(extended(&[]), Some(1000));
    assert_eq!(extended(&[(0, 8), (43, 24), (60, 16)]), Some(1000));
    // 14 + 40 + 32, and what there is room for.
    assert_eq!(extended(&[(60, 168)]), Some(1000));
    assert_eq!(extended(&[(60, 176)]), None, "longer than 256 bytes");
    assert_eq!(extended(&[(0, 2048), (0, 2048), (0, 2048)]), None);
    for (kind, why) in [(44, "a fragment"), (50, "ESP"), (51, "AH"), (17, "UDP"), (200, "unknown")]
    {
        assert_eq!(extended(&[(kind, 8)]), None, "{why}");
        assert_eq!(extended(&[(0, 8), (kind, 8)]), None, "{why}");
    }
    // Whoever says that TCP begins elsewhere.
    for start in [tcp + 8, tcp + 1, tcp + 100] {
        assert!(pieces(&header(4, 1000, start, 16), &plain).is_none(), "{start}");
    }
}

proptest! {
    #[test]
    fn whatever_is_read_is_cut_without_a_panic(
        bytes in any::<[u8; HEADER_LEN]>(),
        vlan: bool,
        ipv6: bool,
        kind in prop::sample::select(vec![0u8, 1, 4, 0x81]),
        changes in prop::collection::vec((0usize..120, any::<u8>()), 0..6),
        random: bool,
        payload in 0usize..300,
    ) {
        let (mut frame, _, tcp) = packet(vlan, ipv6, payload);
        for (at, byte) in changes {
            if let Some(place) = frame.get_mut(at) {
                *place = byte;
            }
        }
        let bytes = if random { bytes } else { header(kind, u16::from(bytes[0]), tcp, 16) };
        for piece in pieces(&bytes, &frame).unwrap_or_default() {
            prop_assert!(piece.len() <= frame.len());
        }
    }
}
