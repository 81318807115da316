//! Each way out is taken by a child process on a pseudo-terminal of its own: this test program
//! again, told by a variable to run the one test that plays the child.

use std::fs::File;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::process::{Command, ExitStatus, Stdio};

use super::*;

/// How the child leaves; absent in the test that watches it.
const WAY: &str = "HUSK_TEST_WAY_OUT";
const CHILD: &str = "cli::terminal::tests::a_child_leaves_as_it_is_told";

#[test]
fn a_child_leaves_as_it_is_told() {
    let Ok(way) = std::env::var(WAY) else { return };
    let guard = Restore;
    make_raw();
    assert!(is_raw(), "the child has no terminal");
    match way.as_str() {
        "drop" => drop(guard),
        "panic" => {
            // Not by the guard's drop: only the hook is left.
            std::mem::forget(guard);
            panic!("as told");
        }
        "panic elsewhere" => {
            std::mem::forget(guard);
            assert!(std::thread::spawn(|| panic!("as told")).join().is_err());
        }
        "lend" => lend(),
        "take back" => {
            lend();
            take_back();
        }
        // Without any of them.
        _ => {}
    }
    std::process::exit(0);
}

/// Whether the terminal is raw after a child has left in this way, and the child's status.
fn raw_after(way: &str) -> (bool, ExitStatus) {
    let (mut main, mut line) = (-1, -1);
    let null = std::ptr::null_mut();
    // SAFETY: two places for descriptors; name, settings and size may be null.
    let opened = unsafe { libc::openpty(&mut main, &mut line, null, null.cast(), null.cast()) };
    assert_eq!(opened, 0);
    // SAFETY: openpty succeeded, and nobody else has these descriptors.
    let (_main, line) = unsafe { (OwnedFd::from_raw_fd(main), File::from_raw_fd(line)) };
    let status = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", CHILD, "--test-threads=1"])
        .env(WAY, way)
        .stdin(line.try_clone().unwrap())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .unwrap();
    let mut settings = MaybeUninit::<libc::termios>::uninit();
    // SAFETY: an open terminal and a place for its settings, which tcgetattr fills or fails.
    let settings = unsafe {
        assert_eq!(libc::tcgetattr(line.as_raw_fd(), settings.as_mut_ptr()), 0);
        settings.assume_init()
    };
    (settings.c_lflag & (libc::ICANON | libc::ECHO | libc::ISIG) == 0, status)
}

#[test]
fn a_panic_in_any_thread_and_the_end_of_the_guard_bring_the_terminal_back() {
    // Without either it stays raw: the test can tell.
    assert!(raw_after("nothing").0);
    let (raw, status) = raw_after("panic");
    assert!(!raw && !status.success(), "{status}");
    assert!(!raw_after("panic elsewhere").0);
    let (raw, status) = raw_after("drop");
    assert!(!raw && status.success(), "{status}");
}

#[test]
fn a_terminal_is_lent_as_it_was_and_taken_back_raw() {
    assert!(!raw_after("lend").0);
    assert!(raw_after("take back").0);
}
