use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use proptest::prelude::*;

use super::*;

/// Our end, and what speaks to it byte by byte.
fn pair() -> (Stream, UnixStream) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    ours.set_nonblocking(true).unwrap();
    theirs.set_nonblocking(true).unwrap();
    (Stream::new(ours.into()), theirs)
}

fn wire(frame: &[u8]) -> Vec<u8> {
    let mut bytes = (frame.len() as u32).to_be_bytes().to_vec();
    bytes.extend_from_slice(frame);
    bytes
}

fn frame(len: usize, seed: u8) -> Vec<u8> {
    (0..len).map(|i| (i % 251) as u8 ^ seed).collect()
}

/// A receiver as the device is one: goes on where the last part ended.
#[derive(Default)]
struct Receiver {
    frame: Vec<u8>,
    begun: usize,
}

impl Receiver {
    /// All frames that have come whole.
    fn take(&mut self, stream: &mut Stream) -> Vec<Vec<u8>> {
        let mut frames = Vec::new();
        let mut list = IovecBuffer::default();
        loop {
            self.frame.resize(LONGEST, 0);
            let (_, rest) = self.frame.split_at_mut(self.begun);
            let middle = rest.len().min(13);
            let (head, tail) = rest.split_at_mut(middle);
            match stream.receive(Iovecs::over(&mut [head, tail], &mut list)) {
                Ok(Received::Part(len)) => self.begun += len,
                Ok(Received::Whole(len)) => {
                    frames.push(self.frame[..self.begun + len].to_vec());
                    self.begun = 0;
                }
                Err(e) => {
                    assert_eq!(e.kind(), io::ErrorKind::WouldBlock);
                    return frames;
                }
            }
        }
    }
}

fn send(stream: &mut Stream, frame: &[u8]) -> io::Result<()> {
    let (mut list, mut frame) = (IovecBuffer::default(), frame.to_vec());
    let (head, tail) = frame.split_at_mut(9);
    stream.send(Iovecs::over(&mut [head, tail], &mut list))
}

fn drain(peer: &mut UnixStream) -> Vec<u8> {
    let mut all = Vec::new();
    match peer.read_to_end(&mut all) {
        Err(e) if e.kind() == io::ErrorKind::WouldBlock => all,
        done => panic!("{done:?}"),
    }
}

/// Sends until the socket is full in the midst of a frame. What has been read meanwhile, what the
/// whole frames make, and the frame that is cut.
fn fill(stream: &mut Stream, peer: &mut UnixStream) -> (Vec<u8>, Vec<u8>, Vec<u8>) {
    let (mut read, mut sent) = (Vec::new(), Vec::new());
    for round in 0..1000usize {
        let frame = frame(40_000 + round * 997 % 25_000, round as u8);
        match send(stream, &frame) {
            Ok(()) => sent.extend(wire(&frame)),
            Err(e) => {
                assert_eq!(e.kind(), io::ErrorKind::WouldBlock);
                if stream.is_sending() {
                    return (read, sent, frame);
                }
                let mut some = vec![0; 30_000];
                peer.read_exact(&mut some).unwrap();
                read.extend(some);
            }
        }
    }
    panic!("no frame was ever cut");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn frames_come_whole_however_the_bytes_come(
        lens in prop::collection::vec(ETHERNET_HEADER..3000usize, 1..20),
        cuts in prop::collection::vec(1usize..4000, 1..60),
    ) {
        let (mut stream, mut peer) = pair();
        let frames: Vec<_> = lens.iter().zip(0..).map(|(len, seed)| frame(*len, seed)).collect();
        let bytes: Vec<u8> = frames.iter().flat_map(|f| wire(f)).collect();
        let (mut receiver, mut got) = (Receiver::default(), Vec::new());
        let (mut rest, mut cuts) = (bytes.as_slice(), cuts.iter().cycle());
        while !rest.is_empty() {
            let (now, later) = rest.split_at((*cuts.next().unwrap()).min(rest.len()));
            peer.write_all(now).unwrap();
            got.extend(receiver.take(&mut stream));
            rest = later;
        }
        prop_assert_eq!(got, frames);
    }
}

#[test]
fn the_next_length_comes_with_a_frame_and_says_how_much_room_is_needed() {
    let (mut stream, mut peer) = pair();
    peer.write_all(&wire(&frame(100, 0))).unwrap();
    peer.write_all(&wire(&frame(2000, 1))).unwrap();
    let (mut list, mut buffer) = (IovecBuffer::default(), [0; 100]);
    let got = stream.receive(Iovecs::over(&mut [&mut buffer], &mut list)).unwrap();
    assert_eq!((got, stream.expects()), (Received::Whole(100), 2000));
}

#[test]
fn lengths_that_no_frame_has_are_passed_over() {
    let (mut stream, mut peer) = pair();
    for len in [0, 1, 13, LONGEST + 1, 100_000] {
        peer.write_all(&wire(&vec![0xee; len])).unwrap();
        peer.write_all(&wire(&frame(99, 3))).unwrap();
        assert_eq!(Receiver::default().take(&mut stream), [frame(99, 3)], "{len}");
    }
}

#[test]
fn the_rest_of_a_frame_that_is_given_up_does_not_become_another() {
    let (mut stream, mut peer) = pair();
    let bytes = wire(&frame(1000, 1));
    peer.write_all(&bytes[..500]).unwrap();
    let mut receiver = Receiver::default();
    assert!(receiver.take(&mut stream).is_empty());
    stream.skip();
    peer.write_all(&bytes[500..]).unwrap();
    peer.write_all(&wire(&frame(77, 2))).unwrap();
    assert_eq!(Receiver::default().take(&mut stream), [frame(77, 2)]);
}

#[test]
fn a_frame_of_which_a_part_has_gone_goes_on_where_it_was() {
    let (mut stream, mut peer) = pair();
    let (mut got, mut wanted, cut) = fill(&mut stream, &mut peer);
    got.extend(drain(&mut peer));
    send(&mut stream, &cut).unwrap();
    assert!(!stream.is_sending());
    wanted.extend(wire(&cut));
    got.extend(drain(&mut peer));
    assert!(got == wanted, "{} bytes instead of {}", got.len(), wanted.len());
}

#[test]
fn a_frame_that_is_taken_back_in_its_midst_still_goes_whole() {
    let (mut stream, mut peer) = pair();
    let (mut got, mut wanted, mut cut) = fill(&mut stream, &mut peer);
    wanted.extend(wire(&cut));
    let mut list = IovecBuffer::default();
    stream.keep(Iovecs::over(&mut [&mut cut], &mut list));
    assert!(!stream.is_sending());
    got.extend(drain(&mut peer));
    send(&mut stream, &frame(64, 5)).unwrap();
    wanted.extend(wire(&frame(64, 5)));
    got.extend(drain(&mut peer));
    assert!(got == wanted, "{} bytes instead of {}", got.len(), wanted.len());
}

#[test]
fn a_driver_that_changes_a_frame_on_its_way_spoils_that_frame_only() {
    let (mut stream, mut peer) = pair();
    let (mut got, wanted, cut) = fill(&mut stream, &mut peer);
    got.extend(drain(&mut peer));
    let error = send(&mut stream, &frame(99, 0)).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    send(&mut stream, &frame(64, 5)).unwrap();
    got.extend(drain(&mut peer));
    assert_eq!(got.len(), wanted.len() + PREFIX + cut.len() + PREFIX + 64);
    assert!(got.ends_with(&wire(&frame(64, 5))));
}

#[test]
fn the_end_of_the_other_is_noticed_both_ways() {
    let (mut stream, peer) = pair();
    drop(peer);
    assert!(stream.is_up());
    assert_eq!(send(&mut stream, &frame(64, 0)).unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    assert!(!stream.is_up());
    let (mut stream, peer) = pair();
    drop(peer);
    let (mut list, mut buffer) = (IovecBuffer::default(), [0; 100]);
    let end = stream.receive(Iovecs::over(&mut [&mut buffer], &mut list)).unwrap_err();
    assert_eq!(end.kind(), io::ErrorKind::BrokenPipe);
}
