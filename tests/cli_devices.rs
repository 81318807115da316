//! The options of `husk run` that are about devices, with the binary.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "test code: a failure is a panic"
)]

mod fixture;

use std::time::{Duration, Instant};

use fixture::husk::{Running, Sandbox, refuses_run};
use fixture::{Emit, LIMIT};

/// `com1`'s bytes from the guest, in the metrics at `metrics` in the sandbox.
fn console_bytes(sandbox: &Sandbox) -> Option<u64> {
    let text = std::fs::read_to_string(sandbox.path().join("metrics")).unwrap();
    let metrics: husk::Metrics = serde_json::from_str(&text).ok()?;
    Some(metrics.devices["com1"].counts.bytes_from_guest)
}

#[test]
fn metrics_are_written_at_the_start_when_asked_for_and_at_the_end() {
    needs_kvm!();
    let sandbox = Sandbox::new();
    sandbox.file(
        "kernel",
        fixture::kernel::image(32, |a| {
            a.say("waiting")?;
            a.typed()?;
            a.say("bye")?;
            a.power_off()
        }),
    );
    let mut command = sandbox.husk(&["run", "--kernel", "kernel", "--metrics", "metrics"]);
    let mut running = Running::start(command.stdin(std::process::Stdio::piped()));
    let deadline = Instant::now() + LIMIT;
    let mut last = None;
    while last != Some(7) {
        assert!(Instant::now() < deadline, "{last:?}");
        std::thread::sleep(Duration::from_millis(20));
        if sandbox.path().join("metrics").exists() {
            last = console_bytes(&sandbox);
        }
        // It is there with something in it: SIGUSR1 is waited for.
        if last.is_some() {
            running.signal(libc::SIGUSR1);
        }
    }
    use std::io::Write;
    running.child.stdin.take().unwrap().write_all(b"x").unwrap();
    let finished = running.finish();
    assert_eq!((finished.status, &finished.stdout[..]), (0, "waitingbye"), "{finished:?}");
    assert_eq!(console_bytes(&sandbox), Some(10));
    assert_eq!(sandbox.contents().len(), 2, "{:?}", sandbox.contents());
}

#[test]
fn metrics_that_cannot_be_written_are_refused_before_the_vm_starts() {
    needs_kvm!();
    let sandbox = Sandbox::with_kernel();
    refuses_run(
        &sandbox,
        &["--kernel", "kernel", "--metrics", "no/such/place"],
        &["--metrics no/such/place", "No such file"],
    );
}
