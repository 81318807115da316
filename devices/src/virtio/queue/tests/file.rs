//! Rings and buffers in memory that is a file's.

use super::*;

/// Two pages of a file, which has lost the second one.
const FILE: u64 = 0x10_0000;
const LOST: u64 = FILE + 0x1000;

fn with_file(size: u16) -> Rig {
    let mut rig = Rig::with(size, false);
    let file = Arc::new(tempfile::tempfile().unwrap());
    file.set_len(0x2000).unwrap();
    rig.memory = crate::backing::tests::with_file(&rig.memory, &file, FILE, 0x2000);
    file.set_len(0x1000).unwrap();
    rig.ring.memory = rig.memory.clone();
    rig
}

#[test]
fn rings_and_tables_of_descriptors_in_a_file_are_malformed_also_where_it_has_the_page() {
    for at in [FILE, LOST] {
        for area in 0..3 {
            let mut rig = with_file(8);
            let mut state = rig.ring.state();
            *[&mut state.desc, &mut state.avail, &mut state.used][area] = at;
            let refused = state.validate(&rig.memory, 8);
            assert!(matches!(refused, Err(Malformed::InFile { address, .. }) if address == at));
            rig.queue = Queue::new(state, EventFd::new(libc::EFD_NONBLOCK).unwrap());
            assert_eq!(rig.waiting(), 0);
            assert!(rig.queue.host_addresses(&rig.memory).is_err());
            rig.assert_malformed();
        }
        let mut rig = with_file(8);
        let state = QueueState { indirect: true, ..rig.ring.state() };
        rig.queue = Queue::new(state, EventFd::new(libc::EFD_NONBLOCK).unwrap());
        rig.ring.set_desc(0, Desc { addr: at, len: 16, flags: INDIRECT, next: 0 });
        rig.ring.stage(0);
        rig.ring.publish();
        rig.assert_malformed();
    }
}

#[test]
fn buffers_in_a_file_are_copied_from_and_to_and_a_page_it_has_lost_is_an_error() {
    let mut rig = with_file(8);
    rig.ring.write(FILE, b"in the file");
    // Each time with a piece in RAM, too, which is the second half.
    rig.ring.push(&[Piece::Out(FILE, 11), Piece::Out(DATA, 8)]);
    rig.ring.push(&[Piece::In(FILE + 0x800, 8), Piece::In(DATA + 0x100, 8)]);
    rig.ring.push(&[Piece::Out(LOST - 8, 16), Piece::Out(DATA, 8)]);
    rig.ring.push(&[Piece::In(LOST - 8, 16), Piece::In(DATA + 0x200, 8)]);
    let mut nth = 0;
    let round = rig.process(|chain| {
        nth += 1;
        let mut bytes = [0; 16];
        match nth {
            1 => {
                chain.copy_to(0, &mut bytes).unwrap();
                assert_eq!(&bytes, b"in the file\0\0\0\0\0");
                let mut appended = Vec::new();
                chain.readable_iovecs(3, 8).unwrap().append_to(&mut appended).unwrap();
                assert_eq!(appended, b"the file");
            }
            2 => {
                chain.copy_from(4, b"across").unwrap();
                // SAFETY: the memory lives as long as the rig.
                assert!(unsafe { chain.place(0).unwrap().put(b'!') });
                chain.writable_iovecs(10, 6).unwrap().fill_zero().unwrap();
            }
            3 => {
                assert_eq!(chain.copy_to(0, &mut bytes), Err(OutOfChain));
                assert!(chain.read_obj::<u64>(8).is_err());
                let all = chain.readable_iovecs(0, 24).unwrap();
                assert_eq!(all.copy_to(&mut bytes).unwrap_err().raw_os_error(), Some(libc::EFAULT));
                chain.copy_to(16, &mut bytes[..8]).unwrap();
            }
            _ => {
                assert_eq!(chain.copy_from(0, &bytes), Err(OutOfChain));
                // SAFETY: the memory lives as long as the rig.
                assert!(unsafe { !chain.place(8).unwrap().put(b'!') });
                let mut all = chain.writable_iovecs(0, 24).unwrap();
                assert_eq!(all.copy_from(&bytes).unwrap_err().raw_os_error(), Some(libc::EFAULT));
                assert_eq!(all.fill_zero().unwrap_err().raw_os_error(), Some(libc::EFAULT));
                chain.copy_from(16, b"RAM").unwrap();
            }
        }
        Answer::Done(0)
    });
    assert_eq!((round, nth), (Round::Idle, 4));
    assert_eq!(rig.ring.read(FILE + 0x800, 8), b"!\0\0\0acro");
    assert_eq!(rig.ring.read(DATA + 0x100, 8), b"ss\0\0\0\0\0\0");
    assert_eq!(rig.ring.read(DATA + 0x200, 3), b"RAM");
}

#[test]
fn a_window_over_chains_in_a_file_takes_copies_where_the_file_has_the_page() {
    let mut rig = with_file(8);
    rig.ring.push(&[Piece::In(DATA, 8)]);
    rig.ring.push(&[Piece::In(LOST - 8, 16)]);
    let Rig { queue, line, memory, .. } = &mut rig;
    let mut ahead = queue.look_ahead(memory, line).unwrap();
    assert_eq!(ahead.gather(24, 8, 4), Some(24));
    ahead.copy_from(0, b"0123456789abcdef").unwrap();
    let mut bytes = [0; 4];
    ahead.copy_to(10, &mut bytes).unwrap();
    assert_eq!(&bytes, b"abcd");
    assert_eq!(ahead.copy_from(14, &bytes), Err(OutOfChain));
    assert_eq!(ahead.copy_to(20, &mut bytes), Err(OutOfChain));
    assert_eq!(rig.ring.read(LOST - 8, 6), b"89abcd");
}
