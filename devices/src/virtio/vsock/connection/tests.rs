use proptest::prelude::*;

use super::super::packet::STREAM;
use super::*;

const KEY: Key = Key { guest: 10, host: 20 };

fn packet(op: u16) -> Header {
    Header { kind: STREAM, op, buf_alloc: 1000, ..Header::default() }
}

fn data(len: u32) -> Header {
    Header { len, ..packet(op::RW) }
}

fn shutdown(flags: u32) -> Header {
    Header { flags, ..packet(op::SHUTDOWN) }
}

/// Says everything that is owed but data, and gives the operations.
fn drain(connection: &mut Connection) -> Vec<u16> {
    let mut said = Vec::new();
    while let Some(Owed::Control(op, flags)) = connection.owed() {
        connection.say(op, flags, 0);
        said.push(op);
    }
    said
}

fn open() -> Connection {
    let mut connection = Connection::answer(KEY, &packet(op::REQUEST));
    assert_eq!(drain(&mut connection), [op::RESPONSE]);
    connection
}

fn asked() -> Connection {
    let mut connection = Connection::ask(KEY);
    assert_eq!(drain(&mut connection), [op::REQUEST]);
    connection
}

#[test]
fn every_operation_in_every_phase_has_its_one_meaning() {
    use Heard::*;
    let resetting = || {
        let mut connection = open();
        connection.reset();
        connection
    };
    let over = || {
        let mut connection = resetting();
        drain(&mut connection);
        connection
    };
    type Make<'a> = &'a dyn Fn() -> Connection;
    let answering = || Connection::answer(KEY, &packet(op::REQUEST));
    let asking = || Connection::ask(KEY);
    // Phase, operation, what it means, what is said then.
    let rst: &[u16] = &[op::RST];
    let table: &[(&str, Make<'_>, u16, Heard, &[u16])] = &[
        ("asking", &asking, op::RESPONSE, Closed, &[]),
        ("asking", &asking, op::RST, Refused, &[]),
        ("asked", &asked, op::RESPONSE, Opened, &[]),
        ("asked", &asked, op::RST, Refused, &[]),
        ("asked", &asked, op::RW, Closed, rst),
        ("asked", &asked, op::REQUEST, Closed, rst),
        ("asked", &asked, op::SHUTDOWN, Closed, rst),
        ("answering", &answering, op::RW, Closed, rst),
        ("answering", &answering, op::RST, Closed, &[]),
        ("open", &open, op::RW, Data, &[]),
        ("open", &open, op::CREDIT_UPDATE, Nothing, &[]),
        ("open", &open, op::CREDIT_REQUEST, Nothing, &[op::CREDIT_UPDATE]),
        ("open", &open, op::RST, Closed, &[]),
        ("open", &open, op::REQUEST, Closed, rst),
        ("open", &open, op::RESPONSE, Closed, rst),
        ("open", &open, 0, Closed, rst),
        ("open", &open, 8, Closed, rst),
        ("open", &open, u16::MAX, Closed, rst),
        ("resetting", &resetting, op::RW, Nothing, rst),
        ("resetting", &resetting, op::REQUEST, Nothing, rst),
        ("resetting", &resetting, op::RST, Nothing, &[]),
        ("over", &over, op::RW, Nothing, &[]),
        ("over", &over, op::RST, Nothing, &[]),
    ];
    for (phase, make, op, heard, said) in table {
        let mut connection = make();
        let len = u32::from(*op == op::RW);
        assert_eq!(connection.hear(&Header { len, ..packet(*op) }), *heard, "{phase}, {op}");
        assert_eq!(drain(&mut connection), *said, "{phase}, {op}");
    }
}

#[test]
fn a_guest_that_sends_more_than_its_credit_is_reset() {
    let mut connection = open();
    assert_eq!(connection.hear(&data(ROOM)), Heard::Data);
    connection.forwarded(10);
    assert_eq!(connection.hear(&data(10)), Heard::Data);
    assert_eq!(connection.hear(&data(1)), Heard::Closed);
    assert_eq!(drain(&mut connection), [op::RST]);
    assert_eq!(open().hear(&data(u32::MAX)), Heard::Closed);
}

#[test]
fn the_guest_hears_of_room_before_it_can_run_out_of_it() {
    let mut connection = open();
    connection.hear(&data(ROOM / 2));
    connection.forwarded(ROOM / 2);
    assert_eq!(connection.owed(), None);
    connection.hear(&data(1));
    connection.forwarded(1);
    assert_eq!(connection.owed(), Some(Owed::Control(op::CREDIT_UPDATE, 0)));
    assert_eq!(connection.say(op::CREDIT_UPDATE, 0, 0), (ROOM, ROOM / 2 + 1));
    assert_eq!(connection.owed(), None);
}

#[test]
fn the_host_sends_as_much_as_the_guest_has_room_for_and_asks_once_for_more() {
    let mut connection = open();
    connection.set_readable(true);
    assert_eq!(connection.owed(), Some(Owed::Data(1000)));
    connection.say(op::RW, 0, 1000);
    assert_eq!(drain(&mut connection), [op::CREDIT_REQUEST]);
    connection.hear(&Header { fwd_cnt: 400, ..packet(op::CREDIT_UPDATE) });
    assert_eq!(connection.owed(), Some(Owed::Data(400)));
    connection.set_readable(false);
    assert_eq!(connection.owed(), None);
}

#[test]
fn a_guest_that_answers_that_it_has_no_room_is_not_asked_again() {
    let mut connection = open();
    connection.set_readable(true);
    connection.say(op::RW, 0, 1000);
    assert_eq!(drain(&mut connection), [op::CREDIT_REQUEST]);
    for _ in 0..3 {
        connection.hear(&packet(op::CREDIT_UPDATE));
        assert_eq!(connection.owed(), None);
    }
    // When it has had some and has none again, it is.
    connection.hear(&Header { fwd_cnt: 1, ..packet(op::CREDIT_UPDATE) });
    assert_eq!(connection.owed(), Some(Owed::Data(1)));
    connection.say(op::RW, 0, 1);
    assert_eq!(drain(&mut connection), [op::CREDIT_REQUEST]);
}

#[test]
fn credit_that_wraps_or_lies_gives_the_guest_no_more_than_its_room() {
    let mut connection = open();
    connection.set_readable(true);
    // Claims to have consumed what was never sent.
    connection.hear(&Header { fwd_cnt: 1, ..packet(op::CREDIT_UPDATE) });
    assert_eq!(drain(&mut connection), [op::CREDIT_REQUEST]);
    connection.hear(&Header { buf_alloc: 0, ..packet(op::CREDIT_UPDATE) });
    assert_eq!(connection.owed(), None);
    // Far into a connection the counts go round.
    connection.sent = u32::MAX - 100;
    connection.hear(&Header { fwd_cnt: u32::MAX - 100, ..packet(op::CREDIT_UPDATE) });
    assert_eq!(connection.owed(), Some(Owed::Data(1000)));
    connection.say(op::RW, 0, 600);
    assert_eq!(connection.owed(), Some(Owed::Data(400)));
    connection.hear(&Header { fwd_cnt: 499, ..packet(op::CREDIT_UPDATE) });
    assert_eq!(connection.owed(), Some(Owed::Data(1000)));
}

#[test]
fn each_direction_ends_by_itself_and_both_end_the_connection() {
    let mut connection = open();
    connection.set_readable(true);
    assert_eq!(connection.hear(&shutdown(shut::SEND)), Heard::Shut(shut::SEND));
    assert_eq!(connection.owed(), Some(Owed::Data(1000)));
    assert_eq!(connection.hear(&shutdown(shut::SEND)), Heard::Shut(0));
    assert_eq!(connection.hear(&shutdown(shut::RECEIVE)), Heard::Closed);
    assert_eq!(drain(&mut connection), [op::RST]);

    let mut connection = open();
    connection.hear(&shutdown(shut::SEND));
    assert_eq!(connection.hear(&data(1)), Heard::Closed);

    let mut connection = open();
    connection.set_readable(true);
    connection.hear(&shutdown(shut::RECEIVE));
    assert!(connection.is_deaf());
    assert_eq!(connection.owed(), None);
    assert_eq!(connection.hear(&data(1)), Heard::Data);
}

#[test]
fn what_the_host_ends_is_told_once_and_late_data_is_dropped() {
    let mut connection = open();
    connection.host_ends(shut::SEND);
    assert_eq!(connection.owed(), Some(Owed::Control(op::SHUTDOWN, shut::SEND)));
    assert_eq!(drain(&mut connection), [op::SHUTDOWN]);
    assert_eq!(connection.hear(&data(5)), Heard::Data);
    connection.host_ends(shut::BOTH);
    assert_eq!(connection.owed(), Some(Owed::Control(op::SHUTDOWN, shut::BOTH)));
    assert_eq!(drain(&mut connection), [op::SHUTDOWN]);
    // It crossed the SHUTDOWN. The guest must not run out of credit over it.
    for _ in 0..10 {
        assert_eq!(connection.hear(&data(ROOM / 2)), Heard::Nothing);
    }
    assert_eq!(connection.hear(&packet(op::RST)), Heard::Closed);
    assert!(connection.is_over());
}

#[test]
fn a_host_that_does_not_wait_for_the_answer_leaves_nothing_open_in_the_guest() {
    let mut connection = asked();
    connection.host_ends(shut::BOTH);
    assert_eq!(drain(&mut connection), [op::RST]);
    // The guest never heard of this one.
    let mut connection = Connection::ask(KEY);
    connection.host_ends(shut::BOTH);
    assert!(connection.is_over());
    assert_eq!(connection.owed(), None);
}

/// What can happen to a connection.
#[derive(Debug, Clone)]
enum Step {
    Hear(Header),
    Say(u32),
    Readable(bool),
    Take(u32),
    HostEnds(u32),
    Reset,
}

fn step() -> impl Strategy<Value = Step> {
    let number = || prop_oneof![0..4u32, any::<u32>(), Just(ROOM), Just(u32::MAX)];
    let header = (0..10u16, number(), number(), number(), 0..5u32).prop_map(
        |(op, len, buf_alloc, fwd_cnt, flags)| {
            Step::Hear(Header { op, len, buf_alloc, fwd_cnt, flags, ..packet(op) })
        },
    );
    prop_oneof![
        4 => header,
        3 => number().prop_map(Step::Say),
        1 => any::<bool>().prop_map(Step::Readable),
        2 => number().prop_map(Step::Take),
        1 => (0..4u32).prop_map(Step::HostEnds),
        1 => Just(Step::Reset),
    ]
}

proptest! {
    /// Whatever the guest writes: what is kept for the host fits into the room there is, no more goes
    /// to the guest than it has room for, and an end is an end.
    #[test]
    fn no_sequence_of_packets_breaks_the_bounds(
        steps in prop::collection::vec(step(), 1..60),
        ours in any::<bool>(),
    ) {
        let mut connection =
            if ours { asked() } else { Connection::answer(KEY, &packet(op::REQUEST)) };
        let (mut kept, mut was_over) = (0u32, false);
        for step in steps {
            match step {
                Step::Hear(header) => {
                    if connection.hear(&header) == Heard::Data {
                        kept = kept.checked_add(header.len).unwrap();
                    }
                    prop_assert!(kept <= ROOM);
                }
                Step::Say(len) => match connection.owed() {
                    None => {}
                    Some(Owed::Control(op, flags)) => {
                        let (room, _) = connection.say(op, flags, 0);
                        prop_assert_eq!(room, ROOM);
                    }
                    Some(Owed::Data(limit)) => {
                        prop_assert!(limit > 0 && limit <= connection.room);
                        prop_assert!(!connection.is_deaf());
                        connection.say(op::RW, 0, len.min(limit));
                        let way = connection.sent.wrapping_sub(connection.consumed);
                        prop_assert!(way <= connection.room);
                    }
                },
                Step::Readable(readable) => connection.set_readable(readable),
                Step::Take(count) => {
                    let count = count.min(kept);
                    kept -= count;
                    connection.forwarded(count);
                }
                Step::HostEnds(flags) => connection.host_ends(flags),
                Step::Reset => connection.reset(),
            }
            prop_assert!(!was_over || connection.is_over());
            was_over = connection.is_over();
            prop_assert!(!was_over || connection.owed().is_none());
        }
        // Control packets come to an end by themselves.
        prop_assert!(drain(&mut connection).len() <= 3);
    }
}
