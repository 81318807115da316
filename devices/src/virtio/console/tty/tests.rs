use std::io::Read;
use std::sync::Arc;

use super::*;
use crate::bus::BusDevice;
use crate::serial::{ConsoleStreams, ConsoleTask};
use crate::virtio::testing::{DATA, Driver, EVENT_IDX, Piece, wait_until};
use crate::worker::Worker;

struct Rig {
    driver: Driver,
    tty: Arc<Tty>,
    uart: Arc<Uart>,
    worker: Worker,
}

fn rig(features: u64) -> Rig {
    let worker = Worker::spawn("tty").unwrap();
    let uart = Uart::new().unwrap();
    let tty = Tty::beside(uart.clone()).unwrap();
    let device = TtyDevice::new(tty.clone(), worker.handle());
    let driver = Driver::start(Box::new(device), features, 16);
    Rig { driver, tty, uart, worker }
}

fn pending(output: &Output) -> Vec<u8> {
    let mut bytes = vec![0; 4096];
    let len = output.peek(&mut bytes);
    bytes.truncate(len);
    bytes
}

#[test]
fn a_buffer_of_output_takes_one_doorbell_however_long_it_is() {
    let mut rig = rig(EVENT_IDX);
    let text = vec![b'a'; 3000];
    rig.driver.write(DATA, &text);
    rig.driver.send(1, &[Piece::Out(DATA, 1000), Piece::Out(DATA + 1000, 2000)]);
    assert_eq!(rig.driver.wait_used(1, 1), [(0, 0)]);
    assert_eq!(pending(rig.tty.output()), text);
    let counts = rig.driver.transport.counters().counts();
    assert_eq!((counts.doorbells, counts.requests, counts.bytes_from_guest), (1, 1, 3000));
}

#[test]
fn output_nobody_reads_is_lost_and_counted_and_every_buffer_comes_back() {
    let mut rig = rig(0);
    for round in 0..60 {
        rig.driver.send(1, &[Piece::Out(DATA, 4096)]);
        assert_eq!(rig.driver.wait_used(1, 1).len(), 1, "round {round}");
    }
    let kept = 128 << 10;
    assert_eq!(rig.tty.output().dropped(), 60 * 4096 - kept);
    wait_until("errors", || rig.driver.transport.counters().counts().errors > 0);
}

#[test]
fn a_chain_that_is_longer_than_any_driver_s_is_cut_and_does_not_keep_the_worker() {
    let mut rig = rig(0);
    let pieces = [Piece::Out(DATA, 0x8_0000); 16];
    rig.driver.send(1, &pieces);
    assert_eq!(rig.driver.wait_used(1, 1).len(), 1);
    assert_eq!(rig.tty.output().dropped(), (16 * 0x8_0000) - (128 << 10));
}

/// Bytes of memory that this process has, all its tests together.
fn resident() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    statm.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() * 4096
}

/// A guest writes so many MiB while nobody reads husk's output, which is a pipe; gives how much more memory there
/// was at some time than at first.
fn write_unread(mebibytes: usize) -> usize {
    let mut rig = rig(0);
    let (reader, output) = std::io::pipe().unwrap();
    let mut reader = ConsoleStreams::private_input(reader.into()).unwrap();
    let mut read = |len: usize| {
        let mut got = Vec::new();
        wait_until("what was written", || {
            // The end of what there is for now is an error.
            let _ = (&mut reader).take((len - got.len()) as u64).read_to_end(&mut got);
            got.len() == len
        });
        got
    };
    let output = Some(ConsoleStreams::private_output(output.into()).unwrap());
    let streams = ConsoleStreams { output, ..ConsoleStreams::default() };
    let task = rig.worker.handle().add(ConsoleTask::new(rig.tty.clone(), streams)).unwrap();
    let (before, mut most) = (resident(), 0);
    // A buffer of the guest's comes back although there is nowhere to put what is in it.
    for round in 0..mebibytes {
        rig.driver.write(DATA, format!("{round:08}").as_bytes());
        rig.driver.send(1, &[Piece::Out(DATA, 1 << 16); 16]);
        assert_eq!(rig.driver.wait_used(1, 1).len(), 1, "after {round} MiB");
        most = most.max(resident());
    }
    let kept = (mebibytes << 20) - usize::try_from(rig.tty.output().dropped()).unwrap();
    // What a pipe holds, and what is kept for it.
    assert!((128 << 10..=(128 << 10) + (1 << 20)).contains(&kept), "{kept} bytes are kept");
    // Neither the device nor the worker is held up.
    rig.driver.transport.pause();
    rig.driver.transport.resume();
    let task = task.take().expect("the console's task comes back");
    // A reader that comes at last finds what is kept, from the first byte on, and then what is new.
    let task = rig.worker.handle().add(task).unwrap();
    assert!(read(kept).starts_with(b"00000000"));
    rig.driver.write(DATA, b"new");
    rig.driver.send(1, &[Piece::Out(DATA, 3)]);
    assert_eq!(read(3), b"new");
    drop(task);
    most.saturating_sub(before)
}

#[test]
fn a_guest_that_writes_10_gib_while_nobody_reads_takes_no_memory_and_holds_nothing_up() {
    let more = write_unread(10 << 10);
    // Other tests take some meanwhile.
    assert!(more < 256 << 20, "{more} bytes more");
}

#[test]
fn typed_bytes_go_to_the_console_once_its_driver_is_up_and_to_the_uart_before() {
    let mut rig = rig(0);
    assert_eq!(rig.tty.receive(b"typed"), 5);
    rig.driver.send(0, &[Piece::In(DATA, 3)]);
    assert_eq!(rig.driver.wait_used(0, 1), [(0, 3)]);
    rig.driver.send(0, &[Piece::In(DATA + 3, 64)]);
    assert_eq!(rig.driver.wait_used(0, 1), [(1, 2)]);
    assert_eq!(rig.driver.read(DATA, 5), b"typed");
    // Now a buffer waits for input.
    rig.driver.send(0, &[Piece::In(DATA, 64)]);
    assert_eq!(rig.tty.receive(b"more"), 4);
    assert_eq!(rig.driver.wait_used(0, 1), [(2, 4)]);
    rig.driver.set(0x70, 0);
    rig.uart.write(1, &[1]);
    assert_eq!(rig.tty.receive(b"u"), 1);
    let mut byte = [0];
    rig.uart.read(0, &mut byte);
    assert_eq!(byte, [b'u']);
}

#[test]
fn what_is_typed_and_not_read_is_bounded_and_asked_for_again_when_it_is_read() {
    let mut rig = rig(0);
    assert_eq!(rig.tty.receive(&[b'x'; 5000]), TYPED_MAX);
    assert_eq!((rig.tty.room(), rig.tty.receive(b"y")), (0, 0));
    let _ = rig.tty.wants_input().read();
    rig.driver.send(0, &[Piece::In(DATA, 100)]);
    assert_eq!(rig.driver.wait_used(0, 1), [(0, 100)]);
    wait_until("the wish for input", || rig.tty.wants_input().read().is_ok());
    assert_eq!(rig.tty.room(), 100);
}

#[test]
fn the_window_s_size_is_in_the_config_space_and_a_new_one_is_told() {
    let mut rig = rig(1);
    assert_eq!(rig.driver.config(0, 4), [80, 0, 24, 0]);
    // When it is up and when it speaks for the first time; see Told.
    for _ in 0..2 {
        wait_until("a configuration change", || rig.driver.get(0x60) & 2 != 0);
        rig.driver.set(0x64, 3);
        rig.driver.send(1, &[Piece::Out(DATA, 1)]);
        rig.driver.wait_used(1, 1);
    }
    assert_eq!(rig.driver.get(0x60) & 2, 0);
    rig.tty.resize(WindowSize { columns: 300, rows: 50 });
    wait_until("a configuration change", || rig.driver.get(0x60) & 2 != 0);
    assert_eq!(rig.driver.config(0, 6), [44, 1, 50, 0, 0, 0]);
    rig.driver.set(0x64, 2);
    // The same again is nothing new; a pause in between loses nothing.
    rig.tty.resize(WindowSize { columns: 300, rows: 50 });
    rig.driver.transport.pause();
    assert_eq!(rig.driver.get(0x60) & 2, 0);
    rig.tty.resize(WindowSize::DEFAULT);
    assert_eq!(rig.driver.config(0, 4), [80, 0, 24, 0], "also while nobody serves it");
    rig.driver.transport.resume();
    wait_until("a configuration change", || rig.driver.get(0x60) & 2 != 0);
}

#[test]
fn a_saved_console_goes_on_in_another_with_what_was_typed() {
    let mut rig = rig(0);
    assert_eq!(rig.tty.receive(b"typed"), 5);
    rig.driver.transport.pause();
    let saved = serde_json::to_string(&rig.driver.transport.save()).unwrap();
    let state = serde_json::from_str(&saved).unwrap();

    let tty = Tty::beside(Uart::new().unwrap()).unwrap();
    let device = TtyDevice::new(tty.clone(), rig.worker.handle());
    let memory = rig.driver.memory.clone();
    let other = crate::virtio::testing::transport("o", Box::new(device), memory);
    other.restore(&state).unwrap();
    assert_eq!(other.save(), state);
    other.resume();
    rig.driver.rings[0].push(&[Piece::In(DATA, 64)]);
    other.write(0x50, &[0; 4]);
    assert_eq!(rig.driver.wait_used(0, 1), [(0, 5)]);
    assert_eq!(rig.driver.read(DATA, 5), b"typed");

    let mut bad = state.clone();
    bad.device["typed"] = serde_json::json!(vec![0; TYPED_MAX + 1]);
    assert!(other.restore(&bad).is_err());
}
