//! `husk run` on a terminal: raw while the guest has it, as it was on every way out.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "test code: a failure is a panic"
)]

mod fixture;

use std::fs::File;
use std::io::{Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use fixture::husk::{Running, Sandbox};
use fixture::kernel::image;
use fixture::{Code, Emit, LIMIT};
use iced_x86::code_asm::{al, dx, edx};

/// A pseudo-terminal with husk on it. It is not husk's controlling terminal: at the end of a
/// session's leader Linux itself would put the terminal's settings back.
struct Terminal {
    _sandbox: Sandbox,
    running: Running,
    /// Where a person sits.
    keyboard: Option<File>,
    /// Where husk sits, kept to look at its settings.
    line: File,
    screen: Arc<Mutex<Vec<u8>>>,
    /// The settings before husk had it.
    before: libc::termios,
}

/// The settings of the terminal behind `line`.
fn settings(line: &File) -> libc::termios {
    let mut settings = MaybeUninit::uninit();
    // SAFETY: an open terminal and a place for its settings, which tcgetattr fills or fails.
    unsafe {
        assert_eq!(libc::tcgetattr(line.as_raw_fd(), settings.as_mut_ptr()), 0);
        settings.assume_init()
    }
}

/// Both ends of a new pseudo-terminal: the person's and the program's.
fn open_terminal() -> (OwnedFd, OwnedFd) {
    let (mut main, mut line) = (-1, -1);
    let null = std::ptr::null_mut();
    // SAFETY: two places for descriptors; name, settings and size may be null.
    let opened = unsafe { libc::openpty(&mut main, &mut line, null, null.cast(), null.cast()) };
    assert_eq!(opened, 0);
    for fd in [main, line] {
        // SAFETY: sets a flag of a descriptor that was just made; no pointer is involved.
        assert_eq!(unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) }, 0);
    }
    // SAFETY: openpty succeeded, and nobody else has these descriptors.
    unsafe { (OwnedFd::from_raw_fd(main), OwnedFd::from_raw_fd(line)) }
}

impl Terminal {
    /// Runs a kernel with `code` on a new terminal, and waits until the guest has said "up".
    fn run(code: impl FnOnce(&mut Code) -> fixture::assembly::Assembled, args: &[&str]) -> Self {
        let sandbox = Sandbox::new();
        sandbox.file("kernel", image(32, code));
        let (main, line) = open_terminal();
        let least = ["run", "--kernel", "kernel", "--memory", "32M", "--rng", "off"];
        let mut command = sandbox.husk(&[&least[..], args].concat());
        command
            .stdin(line.try_clone().unwrap())
            .stdout(line.try_clone().unwrap())
            .stderr(line.try_clone().unwrap());
        let keyboard = File::from(main);
        let screen = Arc::new(Mutex::new(Vec::new()));
        let (mut glass, seen) = (keyboard.try_clone().unwrap(), screen.clone());
        std::thread::spawn(move || {
            let mut chunk = [0; 1024];
            // EIO when husk and this test have let go of the other end.
            while let Ok(len @ 1..) = glass.read(&mut chunk) {
                seen.lock().unwrap().extend(&chunk[..len]);
            }
        });
        let line = File::from(line);
        assert!(!is_raw(&line), "a new terminal is not raw");
        let before = settings(&line);
        let running = Running::start(&mut command);
        let terminal =
            Self { _sandbox: sandbox, running, keyboard: Some(keyboard), line, screen, before };
        terminal.wait_for("up");
        terminal
    }

    fn type_in(&mut self, text: &[u8]) {
        self.keyboard.as_mut().unwrap().write_all(text).unwrap();
    }

    fn wait_for(&self, text: &str) {
        let deadline = Instant::now() + LIMIT;
        loop {
            let seen = String::from_utf8_lossy(&self.screen.lock().unwrap()).into_owned();
            if seen.contains(text) {
                return;
            }
            assert!(Instant::now() < deadline, "{text:?} does not appear: {seen:?}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Fails unless the terminal is raw; husk may still be on its way there.
    fn is_raw(&self) {
        let deadline = Instant::now() + LIMIT;
        while !is_raw(&self.line) {
            assert!(Instant::now() < deadline, "the terminal is not raw");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Waits for husk's end, after which the terminal must be as it was, and returns the status and
    /// what was on the screen.
    fn end(mut self) -> (Option<i32>, String) {
        let status = self.running.status();
        assert!(!is_raw(&self.line), "the terminal is still raw after {status:?}");
        let after = settings(&self.line);
        let before = self.before;
        assert_eq!(
            (after.c_iflag, after.c_oflag, after.c_lflag, after.c_cc),
            (before.c_iflag, before.c_oflag, before.c_lflag, before.c_cc),
        );
        std::thread::sleep(Duration::from_millis(50));
        (status.code(), String::from_utf8_lossy(&self.screen.lock().unwrap()).into_owned())
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // Of a test that failed; it is gone already after one that did not.
        let _ = self.running.child.kill();
        let _ = self.running.child.wait();
    }
}

fn is_raw(line: &File) -> bool {
    settings(line).c_lflag & (libc::ICANON | libc::ECHO | libc::ISIG) == 0
}

/// Says "up", then shows what is typed in brackets, until a `q`.
fn echoing(a: &mut Code) -> fixture::assembly::Assembled {
    let (mut again, mut end) = (a.create_label(), a.create_label());
    a.say("up")?;
    a.set_label(&mut again)?;
    a.typed()?;
    a.cmp(al, i32::from(b'q'))?;
    a.je(end)?;
    a.push(iced_x86::code_asm::eax)?;
    a.say("[")?;
    a.pop(iced_x86::code_asm::eax)?;
    a.mov(edx, fixture::assembly::COM1)?;
    a.out(dx, al)?;
    a.say("]")?;
    a.jmp(again)?;
    a.set_label(&mut end)?;
    a.power_off()
}

fn deaf(a: &mut Code) -> fixture::assembly::Assembled {
    a.say("up")?;
    a.spin()
}

#[test]
fn the_terminal_is_raw_while_the_guest_runs_and_as_before_after_its_power_off() {
    needs_kvm!();
    let mut terminal = Terminal::run(echoing, &[]);
    terminal.is_raw();
    // Also what a terminal would otherwise keep for itself: Ctrl-c, Ctrl-z, Ctrl-s.
    for key in [b"a", b"\x03", b"\x1a", b"\x13", b"\r"] {
        terminal.type_in(key);
        let shown = String::from_utf8([b"[", &key[..], b"]"].concat()).unwrap();
        terminal.wait_for(&shown);
    }
    terminal.type_in(b"q");
    let (status, screen) = terminal.end();
    assert_eq!(status, Some(0), "{screen}");
}

#[test]
fn ctrl_a_x_ends_the_guest_and_restores_the_terminal() {
    needs_kvm!();
    let mut terminal = Terminal::run(deaf, &[]);
    terminal.is_raw();
    terminal.type_in(b"\x01x");
    assert_eq!(terminal.end().0, Some(0));
}

#[test]
fn ctrl_a_h_shows_the_keys_and_the_guest_goes_on() {
    needs_kvm!();
    let mut terminal = Terminal::run(echoing, &[]);
    terminal.is_raw();
    terminal.type_in(b"\x01h");
    terminal.wait_for("Ctrl-a x");
    terminal.type_in(b"\x01a");
    terminal.wait_for("[\x01]");
    terminal.type_in(b"q");
    let (status, screen) = terminal.end();
    assert_eq!(status, Some(0), "{screen}");
    assert!(!screen.contains("[h]"), "the guest does not see the escape: {screen:?}");
}

#[test]
fn sigterm_restores_the_terminal() {
    needs_kvm!();
    let terminal = Terminal::run(deaf, &["--grace", "0.2"]);
    terminal.is_raw();
    terminal.running.signal(libc::SIGTERM);
    assert_eq!(terminal.end().0, Some(143));
}

#[test]
fn a_guest_that_dies_leaves_a_report_on_a_terminal_in_order() {
    needs_kvm!();
    let mut terminal = Terminal::run(
        |a| {
            a.say("up")?;
            a.typed()?;
            a.ud2()
        },
        &[],
    );
    terminal.is_raw();
    terminal.type_in(b"!");
    let (status, screen) = terminal.end();
    assert_eq!(status, Some(134), "{screen}");
    let report = screen.split("husk: the guest died").nth(1).unwrap();
    assert!(report.contains("triple fault"), "{screen}");
    // A cooked terminal turns every newline into a new line at the left.
    assert!(report.lines().count() > 5 && !report.replace("\r\n", "").contains('\n'), "{screen:?}");
}

#[test]
fn a_time_out_restores_the_terminal() {
    needs_kvm!();
    let terminal = Terminal::run(deaf, &["--timeout", "0.5"]);
    assert_eq!(terminal.end().0, Some(124));
}

#[test]
fn a_terminal_that_hangs_up_ends_the_guest() {
    needs_kvm!();
    let mut terminal = Terminal::run(deaf, &["--grace", "0.2"]);
    terminal.is_raw();
    // What the kernel sends when the person's end is closed; the reader here keeps that open.
    terminal.running.signal(libc::SIGHUP);
    let status = terminal.running.status();
    assert_eq!(status.code(), Some(129), "{status:?}");
}

#[test]
fn a_bad_configuration_leaves_the_terminal_alone() {
    needs_kvm!();
    let (main, line) = open_terminal();
    let sandbox = Sandbox::new();
    sandbox.file("kernel", image(32, |a| a.power_off()));
    sandbox.file("initrd", vec![0; 40 << 20]);
    let args = ["run", "--kernel", "kernel", "--memory", "32M", "--initrd", "initrd"];
    let mut command = sandbox.husk(&args);
    command.stdin(line.try_clone().unwrap());
    let finished = Running::start(&mut command).finish();
    assert_eq!(finished.status, 125, "{finished:?}");
    assert!(!is_raw(&File::from(line)));
    drop(main);
}
