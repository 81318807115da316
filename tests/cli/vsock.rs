//! The socket of `--vsock`: what is refused, what is replaced, what is answered without a driver, and
//! what is left behind.

use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::Duration;

use crate::fixture::Emit;
use crate::fixture::husk::{Running, Sandbox, refuses_run, wait_for_text};
use crate::fixture::kernel::image;
use crate::needs_kvm;

/// A sandbox with a guest that says `up` and stays, `spin`.
fn sandbox() -> Sandbox {
    let sandbox = Sandbox::with_kernel();
    sandbox.file(
        "spin",
        image(32, |a| {
            a.say("up")?;
            a.spin()
        }),
    );
    sandbox
}

fn start(sandbox: &Sandbox) -> Running {
    let args = ["run", "--kernel", "spin", "--console", "file=log", "--vsock", "socket=v.sock"];
    let running = Running::start(sandbox.husk(&args).args(["--grace", "0"]));
    wait_for_text(&sandbox.path().join("log"), "up");
    std::fs::remove_file(sandbox.path().join("log")).unwrap();
    running
}

/// What a peer that wants port 1 is told, to its end.
fn ask(socket: &Path) -> String {
    let mut stream = UnixStream::connect(socket).unwrap();
    stream.write_all(b"CONNECT 1\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

#[test]
fn a_socket_that_cannot_be_used_is_named_with_the_way_out() {
    let sandbox = sandbox();
    let run = |vsock: &str, words: &[&str]| {
        refuses_run(&sandbox, &["--kernel", "kernel", "--vsock", vsock], words);
    };
    run("cid=2,socket=v.sock", &["cid 2", "3 to 4294967294"]);
    run(&format!("socket={}", "x".repeat(97)), &["xxx", "96 bytes"]);
    run("cid=3", &["--vsock socket=PATH"]);
    needs_kvm!();
    sandbox.file("file", "precious");
    run("socket=file", &["vsock socket file", "something else"]);
    run("socket=no/v.sock", &["vsock socket no/v.sock", "No such file"]);
    let _listener = UnixListener::bind(sandbox.path().join("busy")).unwrap();
    run("socket=busy", &["vsock socket busy", "in use"]);
}

#[test]
fn a_guest_without_a_driver_is_not_ready_and_the_socket_goes_with_husk() {
    needs_kvm!();
    let sandbox = sandbox();
    let socket = sandbox.path().join("v.sock");
    let running = start(&sandbox);
    assert_eq!(socket.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(ask(&socket), "ERROR the guest is not ready\n");
    refuses_run(&sandbox, &["--kernel", "kernel", "--vsock", "v.sock"], &["v.sock", "in use"]);
    assert_eq!(ask(&socket), "ERROR the guest is not ready\n");
    running.signal(libc::SIGTERM);
    assert_eq!(running.finish().status, 128 + libc::SIGTERM);
    assert!(!socket.exists());
}

#[test]
fn what_a_killed_husk_left_behind_is_replaced() {
    needs_kvm!();
    let sandbox = sandbox();
    let socket = sandbox.path().join("v.sock");
    let mut running = start(&sandbox);
    running.child.kill().unwrap();
    running.status();
    assert!(socket.exists());
    let running = start(&sandbox);
    assert_eq!(ask(&socket), "ERROR the guest is not ready\n");
    running.signal(libc::SIGTERM);
    running.finish();
    assert!(!socket.exists());
}

#[test]
fn without_descriptors_peers_wait_and_are_answered_when_there_are_some_again() {
    needs_kvm!();
    let sandbox = sandbox();
    let socket = sandbox.path().join("v.sock");
    let command = "ulimit -n 40; exec \"$0\" run --kernel spin --console file=log \
                   --vsock v.sock --grace 0";
    let husk = env!("CARGO_BIN_EXE_husk");
    let running = Running::start(&mut sandbox.program("sh", &["-c", command, husk]));
    wait_for_text(&sandbox.path().join("log"), "up");
    let silent: Vec<_> = (0..50).map(|_| UnixStream::connect(&socket).unwrap()).collect();
    let mut waiting = UnixStream::connect(&socket).unwrap();
    waiting.write_all(b"CONNECT 1\n").unwrap();
    waiting.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    assert!(waiting.read(&mut [0]).is_err(), "it had descriptors to spare");
    drop(silent);
    waiting.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let mut answer = String::new();
    waiting.read_to_string(&mut answer).unwrap();
    assert_eq!(answer, "ERROR the guest is not ready\n");
    running.signal(libc::SIGTERM);
    let finished = running.finish();
    assert!(finished.stderr.contains("a connection has to wait"), "{}", finished.stderr);
}
