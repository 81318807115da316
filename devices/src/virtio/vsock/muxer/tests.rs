use std::collections::HashSet;

use proptest::prelude::*;

use super::super::packet::shut;
use super::*;

const CID: u64 = 3;

fn from_guest(op: u16, guest: u32, host: u32) -> Header {
    Header {
        src_cid: CID,
        dst_cid: HOST_CID,
        src_port: guest,
        dst_port: host,
        kind: STREAM,
        op,
        buf_alloc: 1 << 20,
        ..Header::default()
    }
}

/// A connection the guest began, and the host has granted.
fn accepted(muxer: &mut Muxer, guest: u32, host: u32) -> Id {
    let request = from_guest(op::REQUEST, guest, host);
    assert_eq!(muxer.receive(&request), Incoming::Connect(host));
    let id = muxer.accept(&request);
    assert_eq!(control(muxer).op, op::RESPONSE);
    id
}

/// The next packet, which carries no payload.
fn control(muxer: &mut Muxer) -> Header {
    match muxer.next() {
        Some(Next::Control(header)) => header,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_connection_of_the_hosts_is_asked_for_and_answered() {
    let mut muxer = Muxer::new(CID);
    let id = muxer.connect(5000).unwrap();
    let request = control(&mut muxer);
    assert_eq!((request.op, request.dst_port, request.dst_cid), (op::REQUEST, 5000, CID));
    assert_eq!((request.src_cid, request.kind), (HOST_CID, STREAM));
    assert!(request.src_port >= FIRST_PORT && request.buf_alloc > 0);
    let answer = from_guest(op::RESPONSE, 5000, request.src_port);
    assert_eq!(muxer.receive(&answer), Incoming::Heard(id, Heard::Opened));
    assert_eq!(muxer.next(), None);
    muxer.readable(id, true);
    assert_eq!(muxer.next(), Some(Next::Data { id, limit: 1 << 20 }));
    let header = muxer.sent(id, 77).unwrap();
    assert_eq!((header.op, header.len, header.src_port), (op::RW, 77, request.src_port));
}

#[test]
fn what_belongs_to_no_connection_is_answered_by_an_rst_and_an_rst_is_not() {
    let mut muxer = Muxer::new(CID);
    for op in [0, op::RESPONSE, op::SHUTDOWN, op::RW, op::CREDIT_UPDATE, op::CREDIT_REQUEST, 99] {
        assert_eq!(muxer.receive(&from_guest(op, 1, 2)), Incoming::Nothing);
        let answer = control(&mut muxer);
        assert_eq!((answer.op, answer.src_port, answer.dst_port), (op::RST, 2, 1), "{op}");
        assert_eq!((answer.src_cid, answer.dst_cid, answer.kind), (HOST_CID, CID, STREAM));
    }
    assert_eq!(muxer.receive(&from_guest(op::RST, 1, 2)), Incoming::Nothing);
    assert_eq!(muxer.next(), None);
    assert_eq!(muxer.len(), 0);
}

#[test]
fn another_cid_or_kind_reaches_no_connection() {
    let mut muxer = Muxer::new(CID);
    let id = accepted(&mut muxer, 1, 2);
    let rw = Header { len: 1, ..from_guest(op::RW, 1, 2) };
    // Sent in another's name: not answered.
    assert_eq!(muxer.receive(&Header { src_cid: 4, ..rw }), Incoming::Nothing);
    assert_eq!(muxer.receive(&Header { src_cid: CID | 1 << 32, ..rw }), Incoming::Nothing);
    assert_eq!(muxer.next(), None);
    assert_eq!(muxer.receive(&Header { dst_cid: 5, ..rw }), Incoming::Nothing);
    let answer = control(&mut muxer);
    assert_eq!((answer.op, answer.src_cid), (op::RST, 5));
    // SOCK_SEQPACKET was not offered.
    assert_eq!(muxer.receive(&Header { kind: 2, ..rw }), Incoming::Nothing);
    let answer = control(&mut muxer);
    assert_eq!((answer.op, answer.kind), (op::RST, 2));
    assert_eq!(muxer.receive(&rw), Incoming::Heard(id, Heard::Data));
}

#[test]
fn connections_take_turns_packet_by_packet() {
    let mut muxer = Muxer::new(CID);
    let ids: Vec<Id> = (0..3).map(|n| accepted(&mut muxer, n, 9)).collect();
    ids.iter().for_each(|&id| muxer.readable(id, true));
    let mut turns = Vec::new();
    for _ in 0..9 {
        let Some(Next::Data { id, .. }) = muxer.next() else { panic!() };
        turns.push(id);
        muxer.sent(id, 10);
    }
    assert_eq!(turns, [ids.clone(), ids.clone(), ids].concat());
}

#[test]
fn a_connection_without_credit_stands_in_nobodys_way() {
    let mut muxer = Muxer::new(CID);
    let request = Header { buf_alloc: 5, ..from_guest(op::REQUEST, 1, 2) };
    muxer.receive(&request);
    let poor = muxer.accept(&request);
    control(&mut muxer);
    let rich = accepted(&mut muxer, 3, 4);
    muxer.readable(poor, true);
    muxer.readable(rich, true);
    assert_eq!(muxer.next(), Some(Next::Data { id: poor, limit: 5 }));
    muxer.sent(poor, 5);
    for _ in 0..10 {
        let next = muxer.next();
        if let Some(Next::Control(header)) = next {
            assert_eq!((header.op, header.dst_port), (op::CREDIT_REQUEST, 1));
            continue;
        }
        assert!(matches!(next, Some(Next::Data { id, .. }) if id == rich), "{next:?}");
        muxer.sent(rich, 10);
    }
    muxer.receive(&Header { fwd_cnt: 5, buf_alloc: 5, ..from_guest(op::CREDIT_UPDATE, 1, 2) });
    muxer.readable(rich, false);
    assert_eq!(muxer.next(), Some(Next::Data { id: poor, limit: 5 }));
}

#[test]
fn ports_in_use_are_not_given_away_and_their_reuse_ends_the_connection() {
    let mut muxer = Muxer::new(CID);
    let id = accepted(&mut muxer, 1, 2);
    let again = from_guest(op::REQUEST, 1, 2);
    assert_eq!(muxer.receive(&again), Incoming::Heard(id, Heard::Closed));
    assert_eq!(control(&mut muxer).op, op::RST);
    muxer.host_closed(id);
    assert_eq!(muxer.len(), 0);
    assert_eq!(muxer.receive(&again), Incoming::Connect(2));
    // The host's own ports go round without meeting one in use.
    muxer.next_port = FIRST_PORT * 2 - 1;
    let last = muxer.connect(7).unwrap();
    let first = muxer.connect(7).unwrap();
    let ports = [last, first].map(|id| muxer.key(id).unwrap().host);
    assert_eq!(ports, [FIRST_PORT * 2 - 1, FIRST_PORT]);
    muxer.next_port = FIRST_PORT * 2 - 1;
    let third = muxer.connect(7).unwrap();
    assert_eq!(muxer.key(third).unwrap().host, FIRST_PORT + 1);
}

#[test]
fn a_slot_is_free_when_both_sides_are_done_with_it() {
    let mut muxer = Muxer::new(CID);
    let id = accepted(&mut muxer, 1, 2);
    let close = Header { flags: shut::BOTH, ..from_guest(op::SHUTDOWN, 1, 2) };
    assert_eq!(muxer.receive(&close), Incoming::Heard(id, Heard::Closed));
    assert_eq!(control(&mut muxer).op, op::RST);
    // The host still reads what was kept; the guest may have its ports again.
    let second = accepted(&mut muxer, 1, 2);
    assert_ne!(id, second);
    muxer.forwarded(id, 100);
    assert_eq!(muxer.next(), None);
    muxer.host_closed(id);
    assert_eq!(muxer.len(), 1);
    assert_eq!(muxer.receive(&from_guest(op::RW, 1, 2)), Incoming::Heard(second, Heard::Nothing));
    // The other way round: the host goes first.
    muxer.host_ends(second, shut::BOTH);
    muxer.host_closed(second);
    assert_eq!(control(&mut muxer).op, op::SHUTDOWN);
    assert_eq!(muxer.len(), 1);
    muxer.receive(&from_guest(op::RST, 1, 2));
    assert_eq!(muxer.len(), 0);
}

#[test]
fn a_flood_of_requests_is_refused_beyond_the_limit() {
    let mut muxer = Muxer::new(CID);
    for n in 0..MAX_CONNECTIONS as u32 {
        accepted(&mut muxer, n, 2);
    }
    assert_eq!(muxer.connect(1), None);
    assert_eq!(muxer.receive(&from_guest(op::REQUEST, 5000, 2)), Incoming::Nothing);
    assert_eq!(control(&mut muxer).op, op::RST);
    assert!(muxer.may_receive());
    for _ in 0..MAX_REFUSALS {
        assert!(muxer.may_receive());
        muxer.receive(&from_guest(op::REQUEST, 5000, 2));
    }
    assert!(!muxer.may_receive());
    control(&mut muxer);
    assert!(muxer.may_receive());
}

#[derive(Debug, Clone)]
enum Step {
    Guest { op: u16, guest: u32, host: u32, len: u32, flags: u32, accept: bool },
    Connect(u32),
    Readable(usize, bool),
    Forwarded(usize, u32),
    HostEnds(usize, u32),
    HostClosed(usize),
    Reset(usize),
    Next(u32),
}

fn step() -> impl Strategy<Value = Step> {
    let which = || 0..8usize;
    prop_oneof![
        6 => (0..9u16, 0..3u32, 0..3u32, prop_oneof![0..100u32, any::<u32>()], 0..4u32, any::<bool>())
            .prop_map(|(op, guest, host, len, flags, accept)| Step::Guest {
                op, guest, host, len, flags, accept
            }),
        1 => (0..3u32).prop_map(Step::Connect),
        2 => (which(), any::<bool>()).prop_map(|(n, readable)| Step::Readable(n, readable)),
        1 => (which(), 0..100u32).prop_map(|(n, count)| Step::Forwarded(n, count)),
        1 => (which(), 0..4u32).prop_map(|(n, flags)| Step::HostEnds(n, flags)),
        1 => which().prop_map(Step::HostClosed),
        1 => which().prop_map(Step::Reset),
        6 => (1..50u32).prop_map(Step::Next),
    ]
}

proptest! {
    /// Whatever happens in whatever order: no place is lost or given out twice, the line has nobody
    /// in it who is owed nothing for ever, and at the end everything can be brought to its end.
    #[test]
    fn no_order_of_events_loses_a_place(steps in prop::collection::vec(step(), 1..200)) {
        let mut muxer = Muxer::new(CID);
        // Connections whose host side is open, as whoever owns the sockets knows them.
        let mut open: Vec<Id> = Vec::new();
        for step in steps {
            let pick = |n: usize| open.get(n % open.len().max(1)).copied();
            match step {
                Step::Guest { op, guest, host, len, flags, accept } => {
                    let packet = Header { len, flags, ..from_guest(op, guest, host) };
                    match muxer.receive(&packet) {
                        Incoming::Connect(_) if accept => {
                            let id = muxer.accept(&packet);
                            prop_assert!(!open.contains(&id));
                            open.push(id);
                        }
                        Incoming::Connect(_) => muxer.refuse(&packet),
                        Incoming::Heard(id, heard) => {
                            // As long as there is a host to hear it, its place is there.
 prop_assert!(muxer.key(id).is_some() || heard == Heard::Nothing || !open.contains(&id));
                        }
                        Incoming::Nothing => {}
                    }
                }
                Step::Connect(port) => {
                    let id = muxer.connect(port).unwrap();
                    prop_assert!(!open.contains(&id));
                    open.push(id);
                }
                Step::Readable(n, readable) => {
                    if let Some(id) = pick(n) {
                        muxer.readable(id, readable);
                    }
                }
                Step::Forwarded(n, count) => {
                    if let Some(id) = pick(n) {
                        muxer.forwarded(id, count);
                    }
                }
                Step::HostEnds(n, flags) => {
                    if let Some(id) = pick(n) {
                        muxer.host_ends(id, flags);
                    }
                }
                Step::HostClosed(n) => {
                    if let Some(id) = pick(n) {
                        open.retain(|&other| other != id);
                        muxer.host_ends(id, shut::BOTH);
                        muxer.host_closed(id);
                    }
                }
                Step::Reset(n) => {
                    if let Some(id) = pick(n) {
                        muxer.reset(id);
                    }
                }
                Step::Next(count) => {
                    if let Some(Next::Data { id, limit }) = muxer.next() {
                        prop_assert!(open.contains(&id));
                        prop_assert!(muxer.sent(id, count.min(limit)).is_some());
                    }
                }
            }
            let line: HashSet<_> = muxer.line.iter().collect();
            prop_assert_eq!(line.len(), muxer.line.len());
            prop_assert!(muxer.keys.len() <= muxer.len());
            prop_assert!(open.len() <= muxer.len());
        }
        for id in open {
            muxer.reset(id);
            muxer.host_closed(id);
        }
        while let Some(next) = muxer.next() {
            prop_assert!(matches!(next, Next::Control(_)));
        }
        // Those whose host has gone and whose guest owes an RST.
        for key in muxer.keys.keys().copied().collect::<Vec<_>>() {
            muxer.receive(&from_guest(op::RST, key.guest, key.host));
        }
        prop_assert_eq!((muxer.len(), muxer.keys.len(), muxer.line.len()), (0, 0, 0));
    }
}
