use super::*;
use crate::worker::Worker;
use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

const DATA: u64 = super::DATA as u64;

fn pipe() -> (File, File) {
    let (reader, writer) = std::io::pipe().unwrap();
    (File::from(OwnedFd::from(reader)), File::from(OwnedFd::from(writer)))
}

fn status(uart: &Uart) -> u8 {
    let mut data = [0];
    uart.read(LSR.into(), &mut data);
    data[0]
}

fn eventually(mut condition: impl FnMut() -> bool) -> bool {
    let end = Instant::now() + Duration::from_secs(10);
    while Instant::now() < end {
        if condition() {
            return true;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    false
}

#[test]
fn every_width_and_offset_is_answered() {
    let uart = Uart::new().unwrap();
    for width in [1, 2, 4, 8] {
        for offset in 0..UART_LEN {
            let mut data = vec![0xa5; width];
            uart.write(offset, &data);
            uart.read(offset, &mut data);
        }
    }
}

#[test]
fn what_the_guest_writes_reaches_the_output_and_what_is_typed_reaches_the_guest() {
    let uart = Uart::new().unwrap();
    let worker = Worker::spawn("test").unwrap();
    let (mut shown, output) = pipe();
    let (input, typed) = pipe();
    let streams = ConsoleStreams {
        input: Some(input),
        output: Some(ConsoleStreams::private_output(output.into()).unwrap()),
        escapes: None,
    };
    let task = worker.handle().add(ConsoleTask::new(uart.clone(), streams)).unwrap();

    for byte in b"hello" {
        uart.write(DATA, &[*byte]);
    }
    let mut read = [0; 5];
    shown.read_exact(&mut read).unwrap();
    assert_eq!(&read, b"hello");

    // More than one FIFO of input, and then its end.
    let long: Vec<u8> = (0..200).map(|n| b'a' + n % 26).collect();
    (&typed).write_all(&long).unwrap();
    drop(typed);
    let mut got = Vec::new();
    assert!(eventually(|| {
        while status(&uart) & 1 != 0 {
            let mut byte = [0];
            uart.read(DATA, &mut byte);
            got.push(byte[0]);
        }
        got.len() == long.len()
    }));
    assert_eq!(got, long);
    assert!(task.take().is_some());
}

#[test]
fn input_from_a_file_is_read_as_the_guest_takes_it() {
    let uart = Uart::new().unwrap();
    let worker = Worker::spawn("test").unwrap();
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&[b'x'; 150]).unwrap();
    std::io::Seek::rewind(&mut file).unwrap();
    let streams = ConsoleStreams { input: Some(file), ..Default::default() };
    let _task = worker.handle().add(ConsoleTask::new(uart.clone(), streams)).unwrap();
    let mut got = 0;
    assert!(eventually(|| {
        while status(&uart) & 1 != 0 {
            uart.read(DATA, &mut [0]);
            got += 1;
        }
        got == 150
    }));
}

#[test]
fn an_output_that_nobody_reads_makes_the_transmitter_busy_and_a_reader_makes_it_ready_again() {
    let uart = Uart::new().unwrap();
    uart.write(IER.into(), &[IER_THRI]);
    let worker = Worker::spawn("test").unwrap();
    let (mut shown, output) = pipe();
    let output = Some(ConsoleStreams::private_output(output.into()).unwrap());
    let streams = ConsoleStreams { output, ..Default::default() };
    let _task = worker.handle().add(ConsoleTask::new(uart.clone(), streams)).unwrap();

    let mut written: u64 = 0;
    while status(&uart) & LSR_TRANSMITTER_EMPTY != 0 {
        uart.write(DATA, b"z");
        written += 1;
        assert!(written < 8 << 20, "the transmitter never gets busy");
    }
    // A driver that does not look loses bytes, and the device goes on.
    uart.write(DATA, b"!");
    let mut iir = [0];
    uart.read(2, &mut iir);
    let _ = uart.irq_fd().read();

    let mut chunk = vec![0; 1 << 16];
    shown.read_exact(&mut chunk).unwrap();
    assert!(eventually(|| status(&uart) & LSR_TRANSMITTER_EMPTY != 0));
    assert!(eventually(|| uart.irq_fd().read().is_ok()), "no interrupt when there is room again");
}

#[test]
fn a_driver_that_polls_never_waits_for_a_reader() {
    let uart = Uart::new().unwrap();
    while uart.output().has_room() {
        uart.write(DATA, b"p");
    }
    assert_ne!(status(&uart) & LSR_TRANSMITTER_EMPTY, 0);
    uart.write(IER.into(), &[IER_THRI]);
    assert_eq!(status(&uart) & LSR_TRANSMITTER_EMPTY, 0);
}

#[test]
fn the_end_of_the_console_waits_for_a_slow_reader_but_not_for_ever() {
    let uart = Uart::new().unwrap();
    let (mut shown, output) = pipe();
    for _ in 0..100_000 {
        uart.write(DATA, b"q");
    }
    let output = Some(ConsoleStreams::private_output(output.into()).unwrap());
    let streams = ConsoleStreams { output, ..Default::default() };
    let task = ConsoleTask::new(uart.clone(), streams);
    let reader = std::thread::spawn(move || {
        let mut all = Vec::new();
        shown.read_to_end(&mut all).unwrap();
        all.len()
    });
    task.finish(Duration::from_secs(5), Duration::from_secs(60));
    assert_eq!(reader.join().unwrap(), 100_000);

    let (_nobody, output) = pipe();
    for _ in 0..100_000 {
        uart.write(DATA, b"q");
    }
    let output = Some(ConsoleStreams::private_output(output.into()).unwrap());
    let streams = ConsoleStreams { output, ..Default::default() };
    ConsoleTask::new(uart, streams).finish(Duration::from_millis(50), Duration::from_secs(60));
}

#[test]
fn a_reader_that_leaves_costs_the_guest_nothing() {
    let uart = Uart::new().unwrap();
    let worker = Worker::spawn("test").unwrap();
    let (shown, output) = pipe();
    let output = Some(ConsoleStreams::private_output(output.into()).unwrap());
    let streams = ConsoleStreams { output, ..Default::default() };
    let _task = worker.handle().add(ConsoleTask::new(uart.clone(), streams)).unwrap();
    drop(shown);
    for _ in 0..3 << 20 {
        if status(&uart) & LSR_TRANSMITTER_EMPTY != 0 {
            uart.write(DATA, b"w");
        }
    }
    assert!(eventually(|| uart.output().peek(&mut [0]) == 0));
}

#[test]
fn a_reset_forgets_the_guests_settings() {
    let uart = Uart::new().unwrap();
    uart.write(IER.into(), &[IER_RDI | IER_THRI]);
    uart.reset().unwrap();
    let mut enabled = [0xff];
    uart.read(IER.into(), &mut enabled);
    assert_eq!(enabled, [0]);
}

#[test]
fn a_pseudo_terminal_carries_both_ways() {
    let (mut streams, path, _other) = open_pty().unwrap();
    let mut side = std::fs::OpenOptions::new().read(true).write(true).open(path).unwrap();
    side.write_all(b"typed\n").unwrap();
    let mut line = [0; 6];
    assert!(eventually(|| streams.input.as_mut().unwrap().read_exact(&mut line).is_ok()));
    assert_eq!(&line, b"typed\n");
}

#[test]
fn a_socket_that_nobody_reads_does_not_block_the_worker() {
    let uart = Uart::new().unwrap();
    let worker = Worker::spawn("test").unwrap();
    let (_nobody, output) = std::os::unix::net::UnixStream::pair().unwrap();
    let output = Some(File::from(OwnedFd::from(output)));
    let streams = ConsoleStreams { output, ..Default::default() };
    let task = worker.handle().add(ConsoleTask::new(uart.clone(), streams)).unwrap();
    assert!(eventually(|| {
        (0..10_000).for_each(|_| uart.write(DATA, b"s"));
        !uart.output().has_room()
    }));
    // The loop still answers.
    assert!(task.take().is_some());
}

#[test]
fn a_pipe_that_could_not_be_opened_anew_does_not_block_the_worker_either() {
    let uart = Uart::new().unwrap();
    let worker = Worker::spawn("test").unwrap();
    let (_nobody, output) = pipe();
    let streams = ConsoleStreams { output: Some(output), ..Default::default() };
    let task = worker.handle().add(ConsoleTask::new(uart.clone(), streams)).unwrap();
    assert!(eventually(|| {
        (0..10_000).for_each(|_| uart.write(DATA, b"s"));
        !uart.output().has_room()
    }));
    assert!(task.take().is_some());
}

#[test]
fn an_escape_is_heard_when_the_guest_has_stopped_reading() {
    let uart = Uart::new().unwrap();
    let worker = Worker::spawn("test").unwrap();
    let (input, mut typed) = pipe();
    let (tell, heard) = std::sync::mpsc::channel();
    let handler: EscapeHandler = Box::new(move |key| tell.send(key).unwrap());
    let escapes = Some(Escapes { keys: b"x", handler });
    let streams = ConsoleStreams { input: Some(input), output: None, escapes };
    let _task = worker.handle().add(ConsoleTask::new(uart, streams)).unwrap();
    typed.write_all(&[b'k'; 20_000]).unwrap();
    typed.write_all(b"\x01x").unwrap();
    assert_eq!(heard.recv_timeout(Duration::from_secs(10)), Ok(b'x'));
}

#[test]
fn what_was_typed_before_a_reset_and_after_it_reaches_the_guest() {
    let uart = Uart::new().unwrap();
    let worker = Worker::spawn("test").unwrap();
    let (input, mut typed) = pipe();
    let streams = ConsoleStreams { input: Some(input), ..Default::default() };
    let _task = worker.handle().add(ConsoleTask::new(uart.clone(), streams)).unwrap();
    uart.write(IER.into(), &[IER_RDI]);
    typed.write_all(&[b'a'; 100]).unwrap();
    assert!(eventually(|| uart.room() == 0));
    uart.reset().unwrap();
    uart.write(IER.into(), &[IER_RDI]);
    typed.write_all(&[b'b'; 100]).unwrap();
    let mut got = Vec::new();
    assert!(eventually(|| {
        while status(&uart) & 1 != 0 {
            let mut byte = [0];
            uart.read(DATA, &mut byte);
            got.push(byte[0]);
        }
        got.ends_with(&[b'b'; 100])
    }));
    // The first FIFO went down with the old guest.
    assert_eq!(got.len(), 36 + 100);
}

#[test]
fn a_slow_reader_of_the_end_is_waited_for_only_so_long_in_all() {
    let uart = Uart::new().unwrap();
    let (mut shown, output) = pipe();
    for _ in 0..100_000 {
        uart.write(DATA, b"q");
    }
    let reader = std::thread::spawn(move || {
        while shown.read(&mut [0; 1024]).is_ok_and(|n| n > 0) {
            std::thread::sleep(Duration::from_millis(20));
        }
    });
    let output = Some(ConsoleStreams::private_output(output.into()).unwrap());
    let begun = Instant::now();
    let task = ConsoleTask::new(uart, ConsoleStreams { output, ..Default::default() });
    task.finish(Duration::from_secs(5), Duration::from_millis(200));
    assert!(begun.elapsed() < Duration::from_secs(4));
    reader.join().unwrap();
}

#[test]
fn input_waits_until_the_guest_wants_it_by_interrupt_or_by_asking() {
    let uart = Uart::new().unwrap();
    let worker = Worker::spawn("test").unwrap();
    let (input, mut typed) = pipe();
    let streams = ConsoleStreams { input: Some(input), ..Default::default() };
    let _task = worker.handle().add(ConsoleTask::new(uart.clone(), streams)).unwrap();
    typed.write_all(b"early").unwrap();
    // As Linux opens a port: it asks, and reads the receiver empty, a few times.
    for _ in 0..4 {
        assert_eq!(status(&uart) & LSR_DATA_READY, 0);
        uart.read(DATA, &mut [0]);
        std::thread::sleep(Duration::from_millis(5));
    }
    // As it writes its messages: it asks once a byte.
    for _ in 0..100 {
        assert_eq!(status(&uart) & LSR_DATA_READY, 0);
        uart.write(DATA, b"m");
    }
    // As it finds out what the port is.
    for _ in 0..4 {
        let mut enabled = [0];
        uart.write(IER.into(), &[0xf]);
        std::thread::sleep(Duration::from_millis(5));
        uart.read(IER.into(), &mut enabled);
        assert_eq!(enabled, [0xf]);
        uart.write(IER.into(), &[0]);
        uart.read(DATA, &mut [0]);
        assert_eq!(status(&uart) & LSR_DATA_READY, 0);
    }
    uart.write(IER.into(), &[IER_RDI]);
    assert!(eventually(|| status(&uart) & LSR_DATA_READY != 0));
    let mut byte = [0];
    uart.read(DATA, &mut byte);
    assert_eq!(&byte, b"e");
}
