//! Property tests: a driver that does anything at all.
//!
//! Whatever is written to registers and rings, nothing panics, runs on for ever, or touches memory
//! that is not the guest's (which stands between forbidden pages, see `testing`); a malformed ring
//! ends in `DEVICE_NEEDS_RESET`; and after a reset the device serves a well-behaved driver.

use std::time::Duration;

use proptest::prelude::*;
use vmm_sys_util::eventfd::EventFd;

use super::interrupt::Interrupt;
use super::queue::{Answer, Queue, QueueState, Round};
use super::registers::Registers;
use super::testing::subject::{INDIRECT_DESC, Kind, SIZE, Subject};
use super::testing::{DATA, Desc, EVENT_IDX, MEMORY, MEMORY_END, Ring, guarded_memory};
use crate::bus::BusDevice;

fn kinds() -> impl Strategy<Value = Kind> {
    prop::sample::select(&Kind::ALL[..])
}

#[derive(Debug, Clone)]
enum Act {
    Read(u64, usize),
    Write(u64, Vec<u8>),
    Set(u64, u32),
    Negotiate(u64),
    Pause,
    Resume,
    Reset,
}

fn register() -> impl Strategy<Value = u64> {
    prop_oneof![
        8 => (0u64..0x40).prop_map(|r| r * 4),
        1 => 0u64..0x100,
        2 => 0x100u64..0x140,
        1 => 0x140u64..0x1000,
    ]
}

fn value() -> impl Strategy<Value = u32> {
    let low = |a: u64| a as u32;
    prop_oneof![
        4 => 0u32..20,
        2 => prop::sample::select(vec![0xf, 0xb, 0x80, 0x40, 256, 1 << 28, 1 << 29]),
        4 => (low(MEMORY.0)..low(MEMORY_END) + 0x2000).prop_map(|a| a & !0xf),
        1 => any::<u32>(),
    ]
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        3 => (register(), 1usize..9).prop_map(|(r, width)| Act::Read(r, width)),
        3 => (register(), prop::collection::vec(any::<u8>(), 1..9))
            .prop_map(|(r, data)| Act::Write(r, data)),
        12 => (register(), value()).prop_map(|(r, v)| Act::Set(r, v)),
        2 => (0u64..4).prop_map(|f| Act::Negotiate(1 << 32 | f << 28)),
        1 => Just(Act::Pause),
        1 => Just(Act::Resume),
        1 => Just(Act::Reset),
    ]
}

fn address() -> impl Strategy<Value = u64> {
    prop_oneof![
        6 => DATA..DATA + 0x8000,
        2 => (0u64..64).prop_map(|n| DATA + n * 16),
        1 => MEMORY.0..MEMORY.0 + 0x2000,
        1 => MEMORY_END - 64..MEMORY_END + 64,
        1 => prop::sample::select(vec![0, MEMORY.0 - 1, u64::MAX, u64::MAX - 15, 1 << 63]),
    ]
}

fn length() -> impl Strategy<Value = u32> {
    prop_oneof![
        4 => 0u32..2000,
        3 => (0u32..40).prop_map(|n| n * 16),
        1 => prop::sample::select(vec![0, 1, 0x1_0000, 0x10_0000, 1 << 31, u32::MAX, 16 * 1025]),
    ]
}

fn desc() -> impl Strategy<Value = Desc> {
    let flags = prop_oneof![4 => 0u16..4, 1 => 0u16..8, 1 => any::<u16>()];
    let next = prop_oneof![8 => 0u16..SIZE, 1 => 0..SIZE + 4, 1 => any::<u16>()];
    (address(), length(), flags, next).prop_map(|(addr, len, flags, next)| Desc {
        addr,
        len,
        flags,
        next,
    })
}

/// What a hostile driver puts into one ring.
#[derive(Debug, Clone)]
struct Hostile {
    /// The queue's table, and what indirect descriptors may point to.
    table: Vec<Desc>,
    data: Vec<Desc>,
    heads: Vec<u16>,
    idx: Option<u16>,
    used_event: u16,
    flags: u16,
}

/// A table of sound chains, readable parts first, with a few entries spoilt: what gets far.
fn table(len: u16) -> impl Strategy<Value = Vec<Desc>> {
    let sound = (DATA + 0x1000..DATA + 0x8000, 1u32..3000, any::<bool>());
    let sound = prop::collection::vec(sound, usize::from(len));
    let spoilt = prop::collection::vec((0..len, desc()), 0..4);
    (sound, spoilt).prop_map(move |(sound, spoilt)| {
        let mut table: Vec<Desc> = (0..len)
            .zip(sound)
            .map(|(i, (addr, size, more))| {
                let write = if i % 8 > 3 { 2 } else { 0 };
                let next = if more && i % 8 != 7 { 1 } else { 0 };
                Desc { addr, len: size, flags: write | next, next: i + 1 }
            })
            .collect();
        for (index, desc) in spoilt {
            table[usize::from(index)] = desc;
        }
        table
    })
}

fn hostile() -> impl Strategy<Value = Hostile> {
    let wild = |len: u16| prop::collection::vec(desc(), usize::from(len));
    (
        prop_oneof![3 => table(SIZE), 1 => wild(SIZE)],
        prop_oneof![3 => table(64), 1 => wild(64)],
        prop::collection::vec(prop_oneof![60 => 0u16..SIZE, 1 => any::<u16>()], 1..16),
        prop::option::weighted(0.1, any::<u16>()),
        any::<u16>(),
        0u16..3,
    )
        .prop_map(|(table, data, heads, idx, used_event, flags)| Hostile {
            table,
            data,
            heads,
            idx,
            used_event,
            flags,
        })
}

impl Hostile {
    fn put(&self, ring: &mut Ring) {
        for (index, desc) in (0..).zip(&self.table) {
            ring.set_desc(index, *desc);
        }
        for (index, desc) in (0u64..).zip(&self.data) {
            ring.write(DATA + 16 * index, &desc.bytes());
        }
        ring.set_avail_flags(self.flags);
        ring.set_used_event(self.used_event);
        for head in &self.heads {
            ring.stage(*head);
        }
        match self.idx {
            Some(idx) => ring.set_avail_idx(idx),
            None => ring.publish(),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    #[test]
    fn any_register_access_is_answered(
        kind in kinds(),
        table in prop::collection::vec(desc(), 64),
        acts in prop::collection::vec(act(), 1..120),
    ) {
        let mut subject = Subject::new(kind);
        for (index, desc) in (0u64..).zip(&table) {
            subject.driver.write(MEMORY.0 + 16 * index, &desc.bytes());
        }
        for act in acts {
            let transport = &subject.driver.transport;
            match act {
                Act::Read(offset, width) => {
                    let width = width.min((super::mmio::MMIO_WINDOW - offset) as usize);
                    transport.read(offset, &mut [0; 8][..width]);
                }
                Act::Write(offset, data) => transport.write(offset, &data),
                Act::Set(offset, value) => subject.driver.set(offset, value),
                Act::Negotiate(features) => subject.driver.negotiate(features),
                Act::Pause => transport.pause(),
                Act::Resume => transport.resume(),
                Act::Reset => transport.reset(),
            }
            subject.stir();
        }
        subject.assert_works_after_reset();
    }

    #[test]
    fn a_hostile_ring_breaks_its_own_device_at_most(
        kind in kinds(),
        rings in prop::collection::vec(hostile(), 2),
        event_idx in any::<bool>(),
    ) {
        let mut subject = Subject::new(kind);
        let features = INDIRECT_DESC | kind.features() | if event_idx { EVENT_IDX } else { 0 };
        subject.driver.bring_up(features, SIZE);
        for (ring, hostile) in subject.driver.rings.iter_mut().zip(rings.iter().cycle()) {
            hostile.put(ring);
        }
        for _ in 0..3 {
            (0..subject.driver.rings.len() as u32).for_each(|queue| subject.driver.ring(queue));
            subject.stir();
            std::thread::sleep(Duration::from_micros(300));
        }
        subject.driver.transport.pause();
        subject.driver.transport.resume();
        subject.assert_works_after_reset();
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn a_hostile_ring_ends_a_round_and_stays_in_memory(
        hostile in hostile(),
        event_idx in any::<bool>(),
        window in any::<bool>(),
    ) {
        let memory = guarded_memory(&[MEMORY]);
        let mut ring = Ring::new(&memory, MEMORY.0, SIZE);
        hostile.put(&mut ring);
        let state = QueueState { event_idx, ..ring.state() };
        let mut queue = Queue::new(state, EventFd::new(libc::EFD_NONBLOCK).unwrap());
        let line = Interrupt::new("hostile", Registers::alone().unwrap()).unwrap();
        let mut chains = 0;
        let mut broken = false;
        if window {
            match queue.look_ahead(&memory, &line) {
                Some(mut ahead) => {
                    while let Some(len) = ahead.gather(100_000, SIZE.into(), 0) {
                        chains += 1;
                        if ahead.chains() == 0 || chains > SIZE {
                            break;
                        }
                        let take = len.min(5000);
                        ahead.copy_from(0, &vec![0xaa; take]).unwrap();
                        if let Some(mut iovecs) = ahead.iovecs() {
                            iovecs.truncate(1 << 20);
                            iovecs.fill_zero().unwrap();
                        }
                        ahead.consume(take.max(1));
                    }
                    ahead.listen();
                    ahead.signal();
                    broken = line.device_status() & 0x40 != 0;
                }
                None => broken = true,
            }
        } else {
            let round = queue.process(&memory, &line, |chain| {
                chains += 1;
                let mut data = vec![0; chain.readable_len().min(1 << 20)];
                chain.copy_to(0, &mut data).unwrap();
                data.resize(chain.writable_len().min(1 << 20), 0x55);
                chain.copy_from(0, &data).unwrap();
                chain.copy_from(chain.writable_len(), &[1]).unwrap_err();
                if let Ok(mut iovecs) = chain.writable_iovecs(data.len() / 2, data.len() / 2) {
                    iovecs.fill_zero().unwrap();
                }
                Answer::Done(data.len() as u32)
            });
            prop_assert!(chains <= SIZE);
            broken |= round == Round::Broken;
        }
        prop_assert_eq!(line.device_status() & 0x40 != 0, broken);
        if hostile.idx.is_some_and(|idx| idx > SIZE) {
            prop_assert!(broken);
        }
        // Guest memory is not unmapped by itself, and there are many cases.
        super::testing::release(memory);
    }
}
