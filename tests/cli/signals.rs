//! `husk run` and the signals that ask it to end: the power button, the grace, the second one, and
//! those it was started to ignore.

use std::time::{Duration, Instant};

use crate::fixture::Emit;
use crate::fixture::husk::{Running, Sandbox, deaf, start_and_wait, wait_for_text};
use crate::fixture::interrupts::counting_input;
use crate::needs_kvm;

#[test]
fn sigterm_to_a_guest_that_ignores_the_power_button_ends_it_after_the_grace() {
    needs_kvm!();
    for (signal, status) in [(libc::SIGTERM, 143), (libc::SIGINT, 130), (libc::SIGHUP, 129)] {
        let sandbox = deaf();
        let running = start_and_wait(&sandbox, &["--grace", "0.5"]);
        let start = Instant::now();
        running.signal(signal);
        let finished = running.finish();
        assert_eq!(finished.status, status, "{finished:?}");
        assert!(start.elapsed() >= Duration::from_millis(500), "{:?}", start.elapsed());
    }
}

#[test]
fn a_signal_that_husk_was_started_to_ignore_is_ignored() {
    needs_kvm!();
    let sandbox = deaf();
    for (ignored, name) in [(libc::SIGHUP, "HUP"), (libc::SIGINT, "INT"), (libc::SIGQUIT, "QUIT")] {
        let husk = env!("CARGO_BIN_EXE_husk");
        let script = format!(r#"trap "" {name}; exec "$0" "$@""#);
        let args = ["run", "--kernel", "kernel", "--memory", "32M", "--rng", "off"];
        let more = ["--console", "file=log", "--grace", "0"];
        let args = [&["-c", &script, husk], &args[..], &more].concat();
        let mut running = Running::start(&mut sandbox.program("sh", &args));
        wait_for_text(&sandbox.path().join("log"), "up");
        running.signal(ignored);
        std::thread::sleep(Duration::from_millis(300));
        assert!(running.child.try_wait().unwrap().is_none(), "SIG{name} has ended it");
        running.signal(libc::SIGTERM);
        assert_eq!(running.finish().status, 143);
        std::fs::remove_file(sandbox.path().join("log")).unwrap();
    }
}

#[test]
fn a_first_signal_is_answered_with_what_it_did_and_what_a_second_will_do() {
    needs_kvm!();
    let sandbox = deaf();
    let running = start_and_wait(&sandbox, &["--grace", "0.5"]);
    running.signal(libc::SIGINT);
    let finished = running.finish();
    for words in ["SIGINT", "power button", "0.5 s", "second signal", "at once"] {
        assert!(finished.stderr.contains(words), "{words:?} is missing: {finished:?}");
    }
    assert_eq!(finished.stderr.lines().count(), 1, "{finished:?}");
}

#[test]
fn a_vm_that_waits_for_the_host_does_not_keep_husk_from_ending_at_a_signal() {
    needs_kvm!();
    let sandbox = deaf();
    sandbox.file("disk", [0; 512]);
    // The grace passes; or a second signal comes.
    for (grace, signals) in [("0.2", 1), ("600", 2)] {
        let running = start_and_wait(&sandbox, &["--disk", "disk", "--grace", grace]);
        let tid = running.make_stuck("husk-vm");
        for _ in 0..signals {
            running.signal(libc::SIGTERM);
            std::thread::sleep(Duration::from_millis(200));
        }
        running.end_of_stuck(tid);
        let finished = running.finish();
        assert_eq!(finished.status, 143, "{finished:?}");
        assert!(finished.stderr.contains("the host does not answer"), "{finished:?}");
        std::fs::remove_file(sandbox.path().join("log")).unwrap();
    }
}

#[test]
fn a_second_signal_ends_the_guest_at_once() {
    needs_kvm!();
    let sandbox = deaf();
    let mut running = start_and_wait(&sandbox, &["--grace", "600"]);
    running.signal(libc::SIGTERM);
    std::thread::sleep(Duration::from_millis(200));
    assert!(running.child.try_wait().unwrap().is_none(), "the first one must not end it");
    running.signal(libc::SIGTERM);
    assert_eq!(running.finish().status, 143);
}

#[test]
fn sigterm_to_a_guest_that_listens_is_its_power_button() {
    needs_kvm!();
    let sandbox = Sandbox::new();
    let listening = counting_input(5, |a| {
        a.say("up")?;
        a.hlt()?;
        a.say("bye")
    });
    std::fs::copy(listening.path(), sandbox.path().join("kernel")).unwrap();
    let running = start_and_wait(&sandbox, &["--grace", "60"]);
    std::thread::sleep(Duration::from_millis(100));
    running.signal(libc::SIGTERM);
    let finished = running.finish();
    assert_eq!(finished.status, 0, "{finished:?}");
    let said = std::fs::read(sandbox.path().join("log")).unwrap();
    assert_eq!(said, b"upbye\x01");
}
