use std::os::fd::FromRawFd;

use super::*;

const ALL: u64 = Header::NEEDS_AT_MOST;

fn sockets() -> (OwnedFd, OwnedFd) {
    let mut fds = [0; 2];
    let kind = libc::SOCK_SEQPACKET | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
    // SAFETY: fds has room for the two descriptors.
    assert_eq!(unsafe { libc::socketpair(libc::AF_UNIX, kind, 0, fds.as_mut_ptr()) }, 0);
    // SAFETY: both are fresh and ours.
    unsafe { (OwnedFd::from_raw_fd(fds[0]), OwnedFd::from_raw_fd(fds[1])) }
}

/// Two ends that have greeted each other.
fn ends(features: u64) -> (Wire, Wire) {
    let (a, b) = sockets();
    let (mut a, mut b) = (Wire::new(a, ALL).unwrap(), Wire::new(b, features).unwrap());
    assert_eq!((receive(&mut a), receive(&mut b)), (None, None));
    (a, b)
}

fn send(wire: &mut Wire, header: &[u8], frame: &[u8]) -> io::Result<()> {
    let (mut list, mut bytes) = (IovecBuffer::default(), [header, frame].concat());
    let (head, tail) = bytes.split_at_mut(5);
    wire.send(Iovecs::over(&mut [head, tail], &mut list))
}

/// A frame behind its header, or nothing.
fn receive(wire: &mut Wire) -> Option<Vec<u8>> {
    let (mut list, mut bytes) = (IovecBuffer::default(), vec![0xee; MAX_FRAME]);
    let (head, tail) = bytes.split_at_mut(40);
    match wire.receive(Iovecs::over(&mut [head, tail], &mut list)) {
        Ok(Received::Whole(len)) => {
            bytes.truncate(len);
            Some(bytes)
        }
        Ok(Received::Part(_)) => panic!("a frame came in parts"),
        Err(e) if e.kind() == io::ErrorKind::WouldBlock => None,
        Err(e) => panic!("{e}"),
    }
}

/// What an end that is no wire gets, and says.
fn read(socket: &OwnedFd) -> Option<Vec<u8>> {
    let mut bytes = vec![0; MAX_FRAME];
    // SAFETY: bytes has room for its length.
    let len = unsafe { libc::read(socket.as_raw_fd(), bytes.as_mut_ptr().cast(), bytes.len()) };
    bytes.truncate(usize::try_from(len).ok()?);
    Some(bytes)
}

fn write(socket: &OwnedFd, bytes: &[u8]) {
    // SAFETY: bytes is readable for its length.
    let len = unsafe { libc::write(socket.as_raw_fd(), bytes.as_ptr().cast(), bytes.len()) };
    assert_eq!(len, bytes.len() as isize);
}

/// TCP over IPv4 in a frame, and the header that leaves its checksum, and perhaps its segmentation, to
/// the other side.
fn large(payload: usize, kind: u8) -> (Vec<u8>, Vec<u8>) {
    let mut frame = vec![0x52; 12];
    frame.extend([8, 0, 0x45, 0, 0, 0, 0, 1, 0, 0, 64, 6, 0, 0, 10, 0, 9, 1, 10, 0, 9, 2]);
    frame.extend([0, 80, 1, 2, 0, 0, 0, 0, 1, 2, 3, 4, 0x50, 0x10, 1, 0, 0, 0, 0, 0]);
    frame.extend((0..payload).map(|n| (n % 251) as u8));
    (vec![1, kind, 54, 0, 0xa8, 5, 34, 0, 16, 0, 0, 0], frame)
}

/// The payload of pieces of such a frame, each behind `skip` bytes, all 0, and an Ethernet header.
fn payload(pieces: &[Vec<u8>], skip: usize) -> Vec<u8> {
    assert!(pieces.iter().all(|piece| piece[..skip].iter().all(|byte| *byte == 0)));
    assert!(pieces.iter().all(|piece| piece.len() <= skip + 14 + 40 + 1448));
    pieces.iter().flat_map(|piece| piece[skip + 54..].to_vec()).collect()
}

#[test]
fn what_the_other_driver_can_do_is_left_to_it() {
    let (mut a, mut b) = ends(ALL);
    let (header, frame) = large(64_000, 1);
    for _ in 0..3 {
        send(&mut a, &header, &frame).unwrap();
        assert_eq!(receive(&mut b), Some([header.clone(), frame.clone()].concat()));
        // Each way is ready for itself.
        send(&mut b, &[0; HEADER_LEN], &frame[..60]).unwrap();
        assert_eq!(receive(&mut a), Some([&[0; HEADER_LEN], &frame[..60]].concat()));
    }
    // The flag that says that a checksum is right is not the other side's to say.
    let mut lies = header.clone();
    lies[0] = 3;
    send(&mut a, &lies, &frame).unwrap();
    assert_eq!(receive(&mut b), Some([header, frame].concat()));
}

#[test]
fn what_the_own_driver_cannot_do_is_done_before_it_sees_the_frame() {
    for (features, kind) in [(0, 1), (1 << 1, 1), (ALL & !(1 << 9), 0x81)] {
        let (mut a, mut b) = ends(features);
        let (header, frame) = large(10_000, kind);
        send(&mut a, &header, &frame).unwrap();
        let pieces: Vec<_> = std::iter::from_fn(|| receive(&mut b)).collect();
        assert_eq!(pieces.len(), 7);
        assert_eq!(payload(&pieces, HEADER_LEN), frame[54..]);
    }
    // The one with checksums, but without large packets, takes the former as they are.
    let (mut a, mut b) = ends(1 << 1);
    let (header, frame) = large(1000, 0);
    send(&mut a, &header, &frame).unwrap();
    let mut plain = header.clone();
    plain[2..6].fill(0);
    assert_eq!(receive(&mut b), Some([&plain[..], &frame].concat()));
    // They go straight to where it wants them.
    assert_eq!(b.came.capacity(), 0);
    // A new driver gets no rest of an old one's frame, and what it can do.
    let (header, frame) = large(5000, 1);
    send(&mut a, &header, &frame).unwrap();
    assert_eq!(receive(&mut b).unwrap().len(), HEADER_LEN + 54 + 1448);
    b.skip();
    b.accept(ALL);
    send(&mut a, &header, &frame).unwrap();
    assert_eq!(receive(&mut b), Some([header, frame].concat()));
    assert_eq!(receive(&mut b), None);
}

#[test]
fn an_older_end_gets_and_gives_frames_alone() {
    let (ours, older) = sockets();
    let mut wire = Wire::new(ours, ALL).unwrap();
    let (header, frame) = large(4000, 1);
    // Before anything is known of it, and after.
    for known in [false, true] {
        send(&mut wire, &header, &frame).unwrap();
        if !known {
            let hello = read(&older).unwrap();
            assert_eq!(hello, HELLO, "a frame, that nobody wants");
        }
        let pieces: Vec<_> = std::iter::from_fn(|| read(&older)).collect();
        assert_eq!((pieces.len(), payload(&pieces, 0)), (3, frame[54..].to_vec()));
        for sent in [&frame[..60], &READY, &HELLO] {
            write(&older, sent);
            assert_eq!(receive(&mut wire), Some([&[0; HEADER_LEN], sent].concat()));
        }
    }
}

#[test]
fn nonsense_of_the_other_end_is_dropped_and_what_follows_comes_through() {
    for features in [ALL, 0] {
        let (ours, hostile) = sockets();
        let mut wire = Wire::new(ours, features).unwrap();
        write(&hostile, &HELLO);
        write(&hostile, &READY);
        let (header, frame) = large(100, 1);
        let with = |at: usize, byte| {
            let mut header = header.clone();
            header[at] = byte;
            [&header[..], &frame].concat()
        };
        let good = [&[0; HEADER_LEN], &frame[..]].concat();
        let mut all = vec![vec![7], good[..HEADER_LEN].to_vec(), good[..25].to_vec()];
        all.extend([with(0, 0), with(1, 5), with(5, 0).split_off(1), with(7, 9), with(9, 1)]);
        // Not a word any more, but a header that makes no sense.
        all.push(READY.to_vec());
        for nonsense in all {
            write(&hostile, &nonsense);
            write(&hostile, &good);
            assert_eq!(receive(&mut wire), Some(Vec::new()), "{nonsense:?}");
            assert_eq!(receive(&mut wire), Some(good.clone()));
        }
        drop(hostile);
        let mut list = IovecBuffer::default();
        let gone = wire.receive(Iovecs::over(&mut [&mut [0; 100]], &mut list));
        assert_ne!(gone.unwrap_err().kind(), io::ErrorKind::WouldBlock);
    }
}

#[test]
fn nonsense_of_the_own_driver_goes_nowhere() {
    let (mut a, mut b) = ends(ALL);
    let (header, frame) = large(100, 1);
    for (at, byte) in [(0, 0), (1, 3), (7, 9)] {
        let mut header = header.clone();
        header[at] = byte;
        let error = send(&mut a, &header, &frame).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    }
    assert_eq!(receive(&mut b), None);
}

#[test]
fn a_frame_larger_than_the_sockets_buffer_goes_in_pieces_and_goes_on_where_it_stopped() {
    let (mut a, mut b) = ends(ALL);
    let bytes: libc::c_int = 4096;
    let len = size_of_val(&bytes) as libc::socklen_t;
    let (fd, value) = (a.socket.as_raw_fd(), (&raw const bytes).cast());
    // SAFETY: SO_SNDBUF takes an int.
    let set = unsafe { libc::setsockopt(fd, libc::SOL_SOCKET, libc::SO_SNDBUF, value, len) };
    assert_eq!(set, 0);
    let (header, frame) = large(60_000, 1);
    let (mut pieces, mut stops) = (Vec::new(), 0);
    while let Err(full) = send(&mut a, &header, &frame) {
        assert_eq!(full.kind(), io::ErrorKind::WouldBlock);
        stops += 1;
        pieces.extend(std::iter::from_fn(|| receive(&mut b)));
    }
    pieces.extend(std::iter::from_fn(|| receive(&mut b)));
    assert!(stops > 3, "{stops}");
    assert_eq!((pieces.len(), payload(&pieces, HEADER_LEN)), (42, frame[54..].to_vec()));
    // What it was more than the frame, however often it stopped.
    assert_eq!((a.surplus(), a.surplus()), ((41 * 54, 41), (0, 0)));
    // The next one begins at its own beginning, also for another driver.
    send(&mut a, &header, &frame).unwrap_err();
    a.accept(ALL);
    while receive(&mut b).is_some() {}
    let (header, frame) = large(1000, 1);
    send(&mut a, &header, &frame).unwrap();
    assert_eq!(receive(&mut b), Some([header, frame].concat()));
}
