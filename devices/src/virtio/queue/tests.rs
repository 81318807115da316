mod file;

use super::*;
use crate::virtio::registers::Registers;
use crate::virtio::testing::{Desc, INDIRECT, NEXT, Piece, Ring, WRITE, guarded_memory};

const BASE: u64 = 0x1_0000;
const DATA: u64 = 0x2_0000;
const END: u64 = 0x4_0000;
const NEEDS_RESET: u32 = 0x40;

struct Rig {
    ring: Ring,
    queue: Queue,
    line: Interrupt,
    memory: GuestMemoryMmap,
}

impl Rig {
    fn new(size: u16) -> Rig {
        Rig::with(size, false)
    }

    fn with(size: u16, event_idx: bool) -> Rig {
        let memory = guarded_memory(&[(0x1_0000, 0x2_0000), (0x3_0000, 0x1_0000)]);
        let ring = Ring::new(&memory, BASE, size);
        let doorbell = EventFd::new(libc::EFD_NONBLOCK).unwrap();
        let queue = Queue::new(QueueState { event_idx, ..ring.state() }, doorbell);
        Rig {
            ring,
            queue,
            line: Interrupt::new("test", Registers::alone().unwrap()).unwrap(),
            memory,
        }
    }

    fn process(&mut self, f: impl FnMut(&mut Chain<'_>) -> Answer) -> Round {
        self.queue.process(&self.memory, &self.line, f)
    }

    /// The ring is refused, the device broken, and the closure never called.
    fn assert_malformed(&mut self) {
        assert_eq!(self.process(|_| panic!("a malformed chain came through")), Round::Broken);
        assert_ne!(self.line.device_status() & NEEDS_RESET, 0);
        assert_eq!(self.process(|_| panic!("a broken queue goes on")), Round::Broken);
        assert!(self.ring.used().is_empty());
    }

    fn waiting(&self) -> usize {
        self.queue.waiting(&self.memory)
    }

    fn interrupts(&self) -> u64 {
        self.line.event().read().unwrap_or(0)
    }
}

#[test]
fn a_chain_is_read_filled_and_returned_with_its_length() {
    let mut rig = Rig::new(8);
    rig.ring.write(DATA, b"hello, device");
    let head = rig.ring.push(&[
        Piece::Out(DATA, 5),
        Piece::Out(DATA + 5, 8),
        Piece::In(DATA + 0x100, 2),
        Piece::In(DATA + 0x200, 4),
    ]);
    let round = rig.process(|chain| {
        assert_eq!((chain.head(), chain.readable_len(), chain.writable_len()), (head, 13, 6));
        let mut text = [0; 8];
        chain.copy_to(3, &mut text).unwrap();
        assert_eq!(&text, b"lo, devi");
        assert_eq!(chain.read_obj::<u16>(4).unwrap(), u16::from_le_bytes(*b"o,"));
        assert_eq!(chain.copy_to(6, &mut text), Err(OutOfChain));
        chain.copy_from(1, b"abc").unwrap();
        assert_eq!(chain.copy_from(4, b"abc"), Err(OutOfChain));
        assert_eq!(chain.writable_iovecs(1, 5).unwrap().len(), 5);
        assert!(chain.readable_iovecs(1, 13).is_err());
        Answer::Done(4)
    });
    assert_eq!(round, Round::Idle);
    assert_eq!(rig.ring.used(), [(head.into(), 4)]);
    assert_eq!(rig.ring.read(DATA + 0x101, 1), b"a");
    assert_eq!(rig.ring.read(DATA + 0x200, 2), b"bc");
    assert_eq!(rig.interrupts(), 1);
}

#[test]
fn the_indices_wrap_around_and_survive_a_stop() {
    let mut rig = Rig::new(4);
    for i in 0..70_000u32 {
        let head = rig.ring.push(&[Piece::In(DATA, 4)]);
        if i % 1000 == 0 {
            let doorbell = EventFd::new(libc::EFD_NONBLOCK).unwrap();
            rig.queue = Queue::new(rig.queue.state(), doorbell);
        }
        assert_eq!(rig.process(|_| Answer::Done(i)), Round::Idle);
        assert_eq!(rig.ring.used(), [(head.into(), i)]);
    }
}

#[test]
fn a_chain_put_back_is_seen_again_and_a_deferred_one_completes_later() {
    let mut rig = Rig::new(8);
    let (a, b) = (rig.ring.push(&[Piece::In(DATA, 4)]), rig.ring.push(&[Piece::In(DATA, 4)]));
    assert_eq!(rig.process(|_| Answer::Stop), Round::Stopped);
    let mut heads = Vec::new();
    rig.process(|chain| {
        heads.push(chain.head());
        Answer::Deferred
    });
    assert_eq!(heads, [a, b]);
    assert!(rig.ring.used().is_empty());
    assert_eq!(rig.interrupts(), 0);
    rig.queue.complete(&rig.memory, &rig.line, [(b, 3)]);
    rig.queue.complete(&rig.memory, &rig.line, [(a, 1)]);
    assert_eq!(rig.ring.used(), [(b.into(), 3), (a.into(), 1)]);
    assert_eq!(rig.interrupts(), 2);
}

#[test]
fn a_round_ends_at_its_budget_and_rings_for_the_next() {
    let mut rig = Rig::new(8);
    rig.queue.set_budget(2);
    for _ in 0..5 {
        rig.ring.push(&[Piece::In(DATA, 4)]);
    }
    let mut rounds = Vec::new();
    loop {
        rig.queue.quiet();
        let mut count = 0;
        let round = rig.process(|_| {
            count += 1;
            Answer::Done(0)
        });
        rounds.push((round, count));
        if rig.queue.doorbell().read().is_err() {
            break;
        }
    }
    assert_eq!(rounds, [(Round::More, 2), (Round::More, 2), (Round::Idle, 1)]);
}

#[test]
fn without_event_idx_the_flags_silence_both_sides() {
    let mut rig = Rig::new(8);
    rig.ring.set_avail_flags(1);
    rig.ring.push(&[Piece::In(DATA, 4)]);
    let flags = rig.ring.used;
    let memory = rig.memory.clone();
    rig.process(|_| {
        let seen: u16 =
            vm_memory::Bytes::read_obj(&memory, vm_memory::GuestAddress(flags)).unwrap();
        assert_eq!(seen, 1, "doorbells are not wanted during a round");
        Answer::Done(0)
    });
    assert_eq!(rig.ring.used_flags(), 0);
    assert_eq!(rig.interrupts(), 0);
}

#[test]
fn with_event_idx_an_interrupt_comes_when_the_event_is_passed_and_not_before() {
    let mut rig = Rig::with(8, true);
    rig.ring.set_used_event(2);
    for expected in [0, 0, 1, 0] {
        rig.ring.push(&[Piece::In(DATA, 4)]);
        assert_eq!(rig.process(|_| Answer::Done(0)), Round::Idle);
        assert_eq!(rig.interrupts(), expected);
    }
    assert_eq!(rig.ring.avail_event(), 4, "the next chain rings the doorbell");
    rig.ring.set_used_event(5);
    for _ in 0..3 {
        rig.ring.push(&[Piece::In(DATA, 4)]);
    }
    rig.process(|_| Answer::Done(0));
    assert_eq!(rig.interrupts(), 1, "the event lies among the three");
}

#[test]
fn a_chain_that_arrives_while_doorbells_are_enabled_again_is_found() {
    for event_idx in [false, true] {
        let mut rig = Rig::with(8, event_idx);
        rig.ring.push(&[Piece::In(DATA, 4)]);
        let mut seen = 0;
        let Rig { ring, queue, line, memory } = &mut rig;
        queue.process(memory, line, |_| {
            seen += 1;
            if seen < 5 {
                ring.push(&[Piece::In(DATA, 4)]);
            }
            Answer::Done(0)
        });
        assert_eq!(seen, 5);
    }
}

#[test]
fn a_prompt_queue_interrupts_after_each_chain() {
    let mut rig = Rig::new(8);
    rig.queue.set_prompt(true);
    rig.ring.push(&[Piece::In(DATA, 4)]);
    rig.ring.push(&[Piece::In(DATA, 4)]);
    rig.process(|_| Answer::Done(0));
    assert_eq!(rig.interrupts(), 2);
}

#[test]
fn what_is_done_is_told_before_a_chain_that_wants_it_so_and_untold_when_all_is_given_up() {
    let mut rig = Rig::new(8);
    for _ in 0..4 {
        rig.ring.push(&[Piece::In(DATA, 4)]);
    }
    assert_eq!(rig.waiting(), 4);
    let mut offered = Vec::new();
    rig.process(|chain| {
        offered.push(chain.head());
        match offered.len() {
            3 => Answer::TellFirst,
            5 => Answer::Gone,
            _ => Answer::Done(0),
        }
    });
    assert_eq!(offered, [0, 1, 2, 2, 3]);
    assert_eq!((rig.interrupts(), rig.ring.used().len(), rig.waiting()), (1, 3, 1));
    // Who goes on tells of all of it.
    rig.process(|_| Answer::Done(0));
    assert_eq!((rig.interrupts(), rig.waiting()), (1, 0));
}

#[test]
fn an_indirect_table_may_end_a_chain() {
    let mut rig = Rig::new(8);
    let table = DATA + 0x1000;
    rig.ring.write(table, &Desc { addr: DATA, len: 7, flags: NEXT, next: 2 }.bytes());
    rig.ring.write(table + 32, &Desc { addr: DATA, len: 9, flags: WRITE, next: 0 }.bytes());
    rig.ring.set_desc(0, Desc { addr: DATA, len: 1, flags: NEXT, next: 5 });
    rig.ring.set_desc(5, Desc { addr: table, len: 48, flags: INDIRECT | WRITE, next: 0 });
    rig.ring.stage(0);
    rig.ring.publish();
    rig.process(|chain| {
        assert_eq!((chain.readable_len(), chain.writable_len()), (8, 9));
        Answer::Done(9)
    });
    assert_eq!(rig.ring.used(), [(0, 9)]);
}

#[test]
fn a_buffer_may_span_adjoining_regions_and_be_empty() {
    let mut rig = Rig::new(8);
    rig.ring.push(&[Piece::Out(u64::MAX, 0), Piece::In(0x2_fffe, 4)]);
    rig.process(|chain| {
        chain.copy_from(0, b"abcd").unwrap();
        assert_eq!((chain.readable_len(), chain.writable_len()), (0, 4));
        Answer::Done(4)
    });
    assert_eq!(rig.ring.read(0x2_fffe, 4), b"abcd");
}

fn one(desc: &[(u16, Desc)]) -> Rig {
    let mut rig = Rig::new(8);
    for (index, desc) in desc {
        rig.ring.set_desc(*index, *desc);
    }
    rig.ring.stage(0);
    rig.ring.publish();
    rig
}

#[test]
fn loops_are_malformed() {
    // Empty descriptors add no segment, so that nothing but the steps bounds them.
    for len in [0, 1] {
        let link = |next| Desc { addr: DATA, len, flags: NEXT, next };
        one(&[(0, link(0))]).assert_malformed();
        one(&[(0, link(1)), (1, link(0))]).assert_malformed();
    }
}

#[test]
fn descriptors_that_do_not_exist_are_malformed() {
    one(&[(0, Desc { addr: DATA, len: 1, flags: NEXT, next: 8 })]).assert_malformed();
    let mut rig = Rig::new(8);
    rig.ring.stage(8);
    rig.ring.publish();
    rig.assert_malformed();
}

#[test]
fn buffers_outside_memory_are_malformed() {
    for (addr, len) in [
        (END, 1),
        (END - 1, 2),
        (0, 1),
        (BASE - 1, 2),
        (u64::MAX, 1),
        (u64::MAX, u32::MAX),
        (DATA, u32::MAX),
    ] {
        one(&[(0, Desc { addr, len, flags: 0, next: 0 })]).assert_malformed();
    }
}

#[test]
fn a_readable_buffer_after_a_writable_one_is_malformed() {
    let first = Desc { addr: DATA, len: 1, flags: NEXT | WRITE, next: 1 };
    one(&[(0, first), (1, Desc { addr: DATA, len: 1, flags: 0, next: 0 })]).assert_malformed();
}

#[test]
fn bad_indirect_tables_are_malformed() {
    let table = |len, flags| Desc { addr: DATA, len, flags: INDIRECT | flags, next: 1 };
    one(&[(0, table(0, 0))]).assert_malformed();
    one(&[(0, table(15, 0))]).assert_malformed();
    one(&[(0, table(24, 0))]).assert_malformed();
    one(&[(0, table(16 * 1025, 0))]).assert_malformed();
    one(&[(0, table(16, NEXT))]).assert_malformed();
    one(&[(0, Desc { addr: END - 16, len: 32, flags: INDIRECT, next: 0 })]).assert_malformed();
    let mut nested = one(&[(0, table(16, 0))]);
    nested.ring.write(DATA, &Desc { addr: DATA, len: 16, flags: INDIRECT, next: 0 }.bytes());
    nested.assert_malformed();
    let mut looped = one(&[(0, table(16, 0))]);
    looped.ring.write(DATA, &Desc { addr: DATA, len: 1, flags: NEXT, next: 0 }.bytes());
    looped.assert_malformed();
    let mut refused = one(&[(0, table(16, 0))]);
    let state = QueueState { indirect: false, ..refused.queue.state() };
    refused.queue = Queue::new(state, EventFd::new(libc::EFD_NONBLOCK).unwrap());
    refused.assert_malformed();
}

#[test]
fn a_chain_of_more_than_four_gib_is_malformed() {
    let memory = guarded_memory(&[(0x1_0000, 0x8000_0000)]);
    let mut ring = Ring::new(&memory, BASE, 8);
    let half = |flags, next| Desc { addr: DATA, len: 0x7000_0000, flags, next };
    ring.set_desc(0, half(NEXT, 1));
    ring.set_desc(1, half(NEXT, 2));
    ring.set_desc(2, half(0, 0));
    ring.stage(0);
    ring.publish();
    let doorbell = EventFd::new(libc::EFD_NONBLOCK).unwrap();
    let queue = Queue::new(ring.state(), doorbell);
    Rig { ring, queue, line: Interrupt::new("test", Registers::alone().unwrap()).unwrap(), memory }
        .assert_malformed();
}

#[test]
fn an_available_index_that_jumps_is_malformed() {
    let mut rig = Rig::new(8);
    rig.ring.set_avail_idx(9);
    rig.assert_malformed();
    let mut rig = Rig::new(8);
    rig.ring.set_avail_idx(u16::MAX);
    rig.assert_malformed();
}

#[test]
fn rings_outside_memory_or_out_of_line_are_refused() {
    let rig = Rig::new(8);
    let good = rig.queue.state();
    assert_eq!(good.validate(&rig.memory, 8), Ok(()));
    for bad in [
        QueueState { size: 0, ..good.clone() },
        QueueState { size: 7, ..good.clone() },
        QueueState { size: 16, ..good.clone() },
        QueueState { desc: good.desc + 8, ..good.clone() },
        QueueState { avail: good.avail + 1, ..good.clone() },
        QueueState { used: good.used + 2, ..good.clone() },
        QueueState { desc: END - 64, ..good.clone() },
        QueueState { used: u64::MAX - 3, ..good.clone() },
        // From one region into the next: not one piece of host memory.
        QueueState { desc: 0x2_ffc0, ..good.clone() },
    ] {
        assert!(bad.validate(&rig.memory, 8).is_err(), "{bad:?}");
        let doorbell = EventFd::new(libc::EFD_NONBLOCK).unwrap();
        let mut queue = Queue::new(bad.clone(), doorbell);
        if bad.size != 16 {
            assert_eq!(queue.process(&rig.memory, &rig.line, |_| Answer::Stop), Round::Broken);
        }
    }
}

#[test]
fn several_chains_are_filled_as_one_and_published_together() {
    let mut rig = Rig::with(8, true);
    for i in 0..4 {
        rig.ring.push(&[Piece::In(DATA + 0x100 * i, 6)]);
    }
    let Rig { ring, queue, line, memory } = &mut rig;
    let mut ahead = queue.look_ahead(memory, line).unwrap();
    assert_eq!(ahead.gather(10, 8, 4), Some(12));
    assert_eq!((ahead.chains(), ahead.chains_for(6), ahead.chains_for(7)), (2, 1, 2));
    ahead.copy_from(4, b"abcd").unwrap();
    assert_eq!(ahead.iovecs().unwrap().len(), 12);
    assert!(ring.used().is_empty());
    ahead.consume(8);
    assert_eq!(ring.used(), [(0, 6), (1, 2)]);
    assert_eq!(ahead.gather(100, 8, 4), Some(12));
    ahead.consume(1);
    assert!(!ahead.listen());
    ahead.signal();
    assert_eq!(ring.used(), [(2, 1)]);
    assert_eq!(ring.avail_event(), 4);
    assert_eq!(ring.read(DATA + 4, 2), b"ab");
    assert_eq!(ring.read(DATA + 0x100, 2), b"cd");
    // What was looked at and not consumed is still there.
    let mut heads = Vec::new();
    rig.process(|chain| {
        heads.push(chain.head());
        Answer::Done(0)
    });
    assert_eq!(heads, [3]);
}

#[test]
fn a_chain_that_arrives_just_before_doorbells_are_enabled_is_not_missed() {
    for event_idx in [false, true] {
        let mut rig = Rig::with(8, event_idx);
        rig.ring.push(&[Piece::In(DATA, 6)]);
        let Rig { ring, queue, line, memory } = &mut rig;
        let mut ahead = queue.look_ahead(memory, line).unwrap();
        assert_eq!(ahead.gather(10, 8, 4), Some(6));
        ring.push(&[Piece::In(DATA, 6)]);
        assert!(ahead.listen());
        assert_eq!(ahead.gather(100, 8, 4), Some(12));
        assert!(!ahead.listen());
    }
}

#[test]
fn a_receive_buffer_that_holds_no_header_is_malformed() {
    let mut rig = Rig::new(8);
    rig.ring.push(&[Piece::Out(DATA, 100)]);
    let Rig { queue, line, memory, .. } = &mut rig;
    assert_eq!(queue.look_ahead(memory, line).unwrap().gather(10, 8, 4), None);
    assert_ne!(line.device_status() & NEEDS_RESET, 0);
    assert!(queue.look_ahead(memory, line).is_none());
}

#[test]
fn chains_in_hand_are_named_and_served_first_by_whoever_takes_over() {
    let mut rig = Rig::new(8);
    for n in 0..4 {
        rig.ring.push(&[Piece::In(DATA + 16 * n, 4)]);
    }
    let mut left = 3;
    rig.process(|_| {
        left -= 1;
        if left >= 0 { Answer::Deferred } else { Answer::Stop }
    });
    rig.queue.complete(&rig.memory, &rig.line, [(1, 4)]);
    let state = rig.queue.state();
    assert_eq!((&state.pending[..], state.next_avail), (&[0, 2][..], 3));
    rig.queue = Queue::new(state.clone(), EventFd::new(libc::EFD_NONBLOCK).unwrap());
    assert_eq!(rig.queue.state(), state);
    let mut heads = Vec::new();
    rig.process(|chain| {
        heads.push(chain.head());
        Answer::Done(1)
    });
    assert_eq!(heads, [0, 2, 3]);
    assert_eq!(rig.ring.used(), [(1, 4), (0, 1), (2, 1), (3, 1)]);
    assert!(rig.queue.state().pending.is_empty());
    // A device that still has them in hand does not get them twice.
    rig.queue = Queue::new(state, EventFd::new(libc::EFD_NONBLOCK).unwrap());
    rig.queue.keep_pending();
    let mut heads = Vec::new();
    rig.process(|chain| {
        heads.push(chain.head());
        Answer::Deferred
    });
    assert_eq!(heads, [3]);
    assert_eq!(rig.queue.state().pending, [0, 2, 3]);
}

#[test]
fn more_requests_at_once_than_there_are_descriptors_are_malformed() {
    let mut rig = Rig::new(8);
    for _ in 0..8 {
        rig.ring.push(&[Piece::In(DATA, 4)]);
    }
    let mut taken = 0;
    rig.process(|_| {
        taken += 1;
        Answer::Deferred
    });
    rig.ring.push(&[Piece::In(DATA, 4)]);
    let round = rig.queue.process(&rig.memory, &rig.line, |_| {
        taken += 1;
        Answer::Deferred
    });
    assert_eq!((round, taken), (Round::Broken, 8));
    let state = QueueState { pending: vec![0; 9], ..rig.ring.state() };
    assert_eq!(state.validate(&rig.memory, 8), Err(Malformed::TooManyPending));
}
