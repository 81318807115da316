//! Both directions of every frame, and what no peer should have said.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]

use proptest::prelude::*;

use super::*;

/// What a frame is on its way, and what comes out of that.
fn through(frame: Frame<'_>, check: impl FnOnce(Frame<'_>)) {
    let encoded = frame.encode();
    let all = [encoded.head(), encoded.bytes()].concat();
    let (header, payload) = all.split_first_chunk::<HEADER_LEN>().unwrap();
    let header = Header::decode(*header).unwrap();
    assert_eq!(header.len, payload.len());
    check(Frame::decode(header, payload).unwrap());
}

#[test]
fn every_frame_comes_out_as_it_went_in() {
    let begin = Begin {
        version: 0x1234,
        action: Action::Put,
        tty: true,
        window: (80, 24),
        mode: 0o755,
        len: REQUEST_MAX,
    };
    let exec = Begin { action: Action::Exec, tty: false, ..begin };
    let get = Begin { action: Action::Get, ..begin };
    let bytes = [7; Frame::PIECE];
    for frame in [
        Frame::Hello(0x1234),
        Frame::Setup(b"records"),
        Frame::Ready,
        Frame::Failed(b"why"),
        Frame::Shutdown,
        Frame::Begin(begin),
        Frame::Begin(exec),
        Frame::Begin(get),
        Frame::Part(&bytes),
        Frame::Input(b""),
        Frame::InputEnd,
        Frame::Signal(15),
        Frame::Resize(300, 2),
        Frame::Credit(stream::STDERR, u32::MAX),
        Frame::Close(stream::STDOUT),
        Frame::Started,
        Frame::Cannot(Stage::Command, 2),
        Frame::Cannot(Stage::Directory, 2),
        Frame::Cannot(Stage::User, 2),
        Frame::Cannot(Stage::File, 2),
        Frame::Cannot(Stage::Agent, u32::MAX),
        Frame::Cannot(Stage::Special, tree::TYPE),
        Frame::Output(stream::STDOUT, &bytes),
        Frame::OutputEnd(stream::STDOUT),
        Frame::Mode(0o750),
        Frame::OutOfMemory(0x1234_5678),
        Frame::Exited(255),
        Frame::Signaled(9, true),
        Frame::Signaled(127, false),
    ] {
        through(frame, |back| assert_eq!(back, frame));
    }
}

#[test]
fn a_frame_never_has_more_bytes_than_its_receiver_has_room_for() {
    let bytes = [0; PAYLOAD_MAX + 100];
    for frame in [Frame::Output(1, &bytes), Frame::Part(&bytes), Frame::Failed(&bytes)] {
        let encoded = frame.encode();
        assert!(encoded.head().len() + encoded.bytes().len() <= HEADER_LEN + PAYLOAD_MAX);
    }
}

#[test]
fn a_header_that_promises_too_much_and_a_signal_that_is_none_are_refused() {
    let len = (PAYLOAD_MAX as u32 + 1).to_le_bytes();
    assert_eq!(Header::decode([1, 0, 0, 0, len[0], len[1], len[2], len[3]]), Err(Malformed));
    assert_eq!(Header::decode([1, 0, 1, 0, 0, 0, 0, 0]), Err(Malformed));
    let two = Header::decode([37, 0, 0, 0, 2, 0, 0, 0]).unwrap();
    assert_eq!(Frame::decode(two, &[0, 0]), Err(Malformed), "signal 0");
    assert_eq!(Frame::decode(two, &[9, 2]), Err(Malformed), "neither true nor false");
    assert_eq!(Frame::decode(two, &[9]), Err(Malformed), "less than the header says");
}

fn record(tag: u8, bytes: &[u8]) -> Vec<u8> {
    let mut all = record_head(tag, bytes.len() as u32).to_vec();
    all.extend(bytes);
    all.push(0);
    all
}

#[test]
fn records_follow_each_other_until_one_is_malformed() {
    let mut all = record(tag::ARGUMENT, b"ls");
    all.extend(record(tag::VARIABLE, b""));
    let records: Vec<_> = Records(&all).map(Result::unwrap).collect();
    assert_eq!(records.len(), 2);
    assert_eq!((records[0].bytes(), records[0].with_zero), (&b"ls"[..], &b"ls\0"[..]));
    assert_eq!((records[1].tag, records[1].bytes()), (tag::VARIABLE, &b""[..]));
    all.extend(record_head(tag::ARGUMENT, u32::MAX));
    all.extend(record(tag::ARGUMENT, b"never"));
    let records: Vec<_> = Records(&all).collect();
    assert_eq!(records.len(), 3);
    assert_eq!(records[2], Err(Malformed));
}

#[test]
fn what_is_sent_of_a_directory_comes_out_as_it_went_in_and_has_a_length_of_its_kind() {
    use tree::{Head, Kind};
    for (kind, least, most) in [
        (Kind::Directory, 1, tree::NAME_MAX),
        (Kind::Leave, 0, 0),
        (Kind::File, 1, tree::NAME_MAX),
        (Kind::Data, 1, tree::DATA_MAX),
        (Kind::Link, 3, tree::NAME_MAX + 1 + tree::TARGET_MAX),
        (Kind::End, 0, 0),
    ] {
        for (len, fine) in [(least, true), (most, true), (most + 1, false)] {
            let head = Head { kind, mode: 0o100_755, len };
            assert_eq!(Head::decode(head.encode()), if fine { Ok(head) } else { Err(Malformed) });
        }
    }
    assert_eq!(Head::decode([7, 0, 0, 0, 0, 0, 0, 0, 0]), Err(Malformed));
}

#[test]
fn a_name_is_never_a_path_and_a_link_leads_somewhere() {
    for name in [&b"a"[..], b"...", b"a b", b"\xff", &[b'n'; 255]] {
        assert!(tree::is_name(name), "{name:?}");
    }
    for wrong in [&b""[..], b".", b"..", b"/", b"a/b", b"/etc", b"a\0b", &[b'n'; 256]] {
        assert!(!tree::is_name(wrong), "{wrong:?}");
    }
    assert_eq!(tree::link(b"name\0../../etc"), Ok((&b"name"[..], &b"../../etc"[..])));
    for wrong in [&b"name"[..], b"name\0", b"\0target", b"..\0target", b"n\0t\0"] {
        assert_eq!(tree::link(wrong), Err(Malformed), "{wrong:?}");
    }
}

proptest! {
    #[test]
    fn no_bytes_are_ever_more_than_an_error(
        header: [u8; HEADER_LEN],
        bytes in prop::collection::vec(any::<u8>(), 0..64),
    ) {
        let mut header = header;
        // As often as not what could be a frame.
        if header[7] & 1 == 0 {
            header = [header[0] % 40, 0, 0, 0, bytes.len() as u8, 0, 0, 0];
        }
        if let Ok(decoded) = Header::decode(header)
            && let Ok(frame) = Frame::decode(decoded, &bytes)
        {
            through(frame, |back| assert_eq!(back, frame));
        }
        for record in Records(&bytes).flatten() {
            prop_assert!(record.bytes().len() < bytes.len());
        }
        if let Some(Ok(head)) = bytes.first_chunk().map(|head| tree::Head::decode(*head)) {
            prop_assert_eq!(bytes.first_chunk(), Some(&head.encode()));
        }
        if let Ok((name, target)) = tree::link(&bytes) {
            prop_assert!(tree::is_name(name) && !target.contains(&0));
        }
    }

    #[test]
    fn records_come_out_as_they_went_in(
        words in prop::collection::vec((any::<u8>(), prop::collection::vec(any::<u8>(), 0..40)), 0..9),
    ) {
        let all: Vec<u8> = words.iter().flat_map(|(tag, bytes)| record(*tag, bytes)).collect();
        let back = Records(&all).map(|r| r.map(|r| (r.tag, r.bytes().to_vec())));
        prop_assert_eq!(back.collect::<Result<Vec<_>, _>>().unwrap(), words);
    }
}

/// What of `bytes`, which lie at `at`, is written, with its place in the file.
fn written(at: u64, bytes: &[u8]) -> Vec<(u64, usize)> {
    let mut place = at;
    let mut all = Vec::new();
    for run in holes::runs(at, bytes) {
        let len = match run {
            holes::Run::Data(run) => {
                all.push((place, run.len()));
                run.len()
            }
            holes::Run::Hole(len) => len,
        };
        place += len as u64;
    }
    assert_eq!(place, at + bytes.len() as u64);
    all
}

#[test]
fn blocks_of_zeros_are_left_out_and_all_that_is_beside_them_is_written_together() {
    const BLOCK: usize = holes::BLOCK;
    let mut bytes = [0; 4 * BLOCK];
    assert_eq!(written(0, &bytes), []);
    assert_eq!(written(7, &[]), []);
    bytes[2 * BLOCK - 1] = 1;
    bytes[2 * BLOCK] = 1;
    assert_eq!(written(0, &bytes), [(BLOCK as u64, 2 * BLOCK)]);
    // The file's blocks are other ones when its bytes come in other pieces.
    assert_eq!(written(1, &bytes), [(2 * BLOCK as u64, BLOCK)]);
    assert_eq!(written(4095, &bytes), [(2 * BLOCK as u64, BLOCK)]);
    let full = [7; 3 * BLOCK + 5];
    assert_eq!(written(u64::MAX / 2 - 3, &full), [(u64::MAX / 2 - 3, full.len())]);
}

proptest! {
    #[test]
    fn what_is_left_out_of_a_file_is_zero_and_nothing_else_is(
        at in 0..20_000u64,
        ones in proptest::collection::vec(0..40_000usize, 0..6),
        len in 0..40_000usize,
    ) {
        let mut bytes = vec![0; len];
        for one in ones {
            if let Some(byte) = bytes.get_mut(one) {
                *byte = 1;
            }
        }
        let mut made = vec![0; len];
        let (mut place, mut before) = (0, None);
        for run in holes::runs(at, &bytes) {
            let is_hole = matches!(run, holes::Run::Hole(_));
            prop_assert_ne!(before.replace(is_hole), Some(is_hole), "one run in two");
            place += match run {
                holes::Run::Hole(zeros) => zeros,
                holes::Run::Data(data) => {
                    made[place..place + data.len()].copy_from_slice(data);
                    data.len()
                }
            };
        }
        prop_assert!(place == len && made == bytes);
    }
}
