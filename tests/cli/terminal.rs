//! `husk run` on a terminal: raw while the guest has it, as it was on every way out.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use iced_x86::code_asm::{al, dx, edx};

use crate::fixture::husk::{Running, Sandbox};
use crate::fixture::kernel::{image, linux_without_initramfs};
use crate::fixture::process::is_stopped;
use crate::fixture::pty::open_terminal;
use crate::fixture::{self, Code, Emit, LIMIT};
use crate::needs_kvm;

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

impl Terminal {
    /// Runs a kernel with `code` on a new terminal, and waits until the guest has said "up".
    fn run(code: impl FnOnce(&mut Code) -> fixture::assembly::Assembled, args: &[&str]) -> Self {
        let sandbox = Sandbox::new();
        sandbox.file("kernel", image(32, code));
        let least = ["run", "--kernel", "kernel", "--memory", "32M", "--rng", "off"];
        let command = sandbox.husk(&[&least[..], args].concat());
        Self::start(sandbox, command)
    }

    /// Runs a husk on a new terminal, and waits until a guest has said "up".
    fn start(sandbox: Sandbox, command: std::process::Command) -> Self {
        let terminal = Self::begin(sandbox, command);
        terminal.wait_for("up");
        terminal
    }

    /// Runs a husk on a new terminal.
    fn begin(sandbox: Sandbox, mut command: std::process::Command) -> Self {
        let (keyboard, line) = open_terminal();
        command
            .stdin(line.try_clone().unwrap())
            .stdout(line.try_clone().unwrap())
            .stderr(line.try_clone().unwrap())
            // Not an orphaned group, whatever this test's is: such a one cannot be stopped.
            .process_group(0);
        let screen = Arc::new(Mutex::new(Vec::new()));
        let (mut glass, seen) = (keyboard.try_clone().unwrap(), screen.clone());
        std::thread::spawn(move || {
            let mut chunk = [0; 1024];
            // EIO when husk and this test have let go of the other end.
            while let Ok(len @ 1..) = glass.read(&mut chunk) {
                seen.lock().unwrap().extend(&chunk[..len]);
            }
        });
        assert!(!is_raw(&line), "a new terminal is not raw");
        let before = settings(&line);
        let running = Running::start(&mut command);
        Self { _sandbox: sandbox, running, keyboard: Some(keyboard), line, screen, before }
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
        within_the_limit("the terminal is raw", || is_raw(&self.line));
    }

    /// Fails unless husk is stopped; the signal may still be on its way there.
    fn is_stopped(&self) {
        within_the_limit("husk is stopped", || is_stopped(self.running.child.id()));
    }

    /// Fails unless the settings are those from before husk.
    fn is_as_before(&self) {
        let (before, now) = (self.before, settings(&self.line));
        assert_eq!(
            (now.c_iflag, now.c_oflag, now.c_lflag, now.c_cc),
            (before.c_iflag, before.c_oflag, before.c_lflag, before.c_cc),
        );
    }

    /// Waits for husk's end, after which the terminal must be as it was, and returns the status and
    /// what was on the screen.
    fn end(mut self) -> (Option<i32>, String) {
        let status = self.running.status();
        assert!(!is_raw(&self.line), "the terminal is still raw after {status:?}");
        self.is_as_before();
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

/// Fails unless `what` comes true in time.
fn within_the_limit(what: &str, mut is_true: impl FnMut() -> bool) {
    let deadline = Instant::now() + LIMIT;
    while !is_true() {
        assert!(Instant::now() < deadline, "not so: {what}");
        std::thread::sleep(Duration::from_millis(5));
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
fn ctrl_a_x_ends_husk_also_when_the_vm_waits_for_the_host() {
    needs_kvm!();
    let disk = tempfile::NamedTempFile::new().unwrap();
    disk.as_file().set_len(512).unwrap();
    let mut terminal = Terminal::run(deaf, &["--disk", disk.path().to_str().unwrap()]);
    terminal.is_raw();
    let tid = terminal.running.make_stuck("husk-vm");
    terminal.type_in(b"\x01x");
    terminal.running.end_of_stuck(tid);
    let (status, screen) = terminal.end();
    assert_eq!(status, Some(0), "{screen}");
    assert!(screen.contains("the host does not answer"), "{screen}");
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
fn who_sits_before_a_silent_guest_is_told_the_keys_and_nobody_else_is() {
    needs_kvm!();
    let silent = |more: &[&str]| {
        let sandbox = Sandbox::new();
        sandbox.file(
            "kernel",
            image(32, |a| {
                a.typed()?;
                a.say("up")?;
                a.power_off()
            }),
        );
        let least = ["run", "--kernel", "kernel", "--memory", "32M", "--rng", "off"];
        let command = sandbox.husk(&[&least[..], more].concat());
        (sandbox, command)
    };
    // Those that hear nothing of it have begun before.
    let talking = Terminal::run(deaf, &["--grace", "0"]);
    let (_sandbox, mut command) = silent(&[]);
    command.stdin(Stdio::piped());
    let mut piped = Running::start(&mut command);
    let (sandbox, command) = silent(&["--root", "none", "--", "true"]);
    let starting = Terminal::begin(sandbox, command);
    let (sandbox, command) = silent(&[]);
    let mut terminal = Terminal::begin(sandbox, command);
    terminal.wait_for("Ctrl-a x ends the VM, Ctrl-a h helps");
    terminal.is_raw();
    terminal.type_in(b"!");
    let (status, screen) = terminal.end();
    assert_eq!(status, Some(0), "{screen}");
    assert!(screen.starts_with("husk: nothing has come") && screen.ends_with("helps\r\nup"));

    // Before a command has begun the terminal is not the guest's.
    starting.wait_for("the guest is still starting; Ctrl-C ends it");
    starting.running.signal(libc::SIGINT);
    let (status, screen) = starting.end();
    assert_eq!(status, Some(130), "{screen}");
    piped.child.stdin.take().unwrap().write_all(b"!").unwrap();
    let piped = piped.finish();
    assert_eq!((piped.stdout.as_str(), piped.stderr.as_str()), ("up", ""));
    talking.running.signal(libc::SIGTERM);
    let (_, screen) = talking.end();
    assert!(screen.starts_with("up") && !screen.contains("Ctrl-a"), "{screen}");
}

#[test]
fn a_linux_with_nothing_to_run_gets_a_shell_on_a_terminal_unless_its_console_is_wanted() {
    needs_kvm!();
    let linux = |more: &[&str]| {
        let sandbox = Sandbox::new();
        sandbox.file("kernel", linux_without_initramfs(deaf));
        let least = ["run", "--kernel", "kernel", "--memory", "32M"];
        let command = sandbox.husk(&[&least[..], more].concat());
        (sandbox, command)
    };
    // Also with options that only a command has.
    for more in [&[][..], &["--hostname", "box", "--volume", ".:/src"]] {
        let (sandbox, command) = linux(more);
        let terminal = Terminal::begin(sandbox, command);
        // It has no agent, and no shell comes to be.
        terminal.wait_for("the guest is still starting; Ctrl-C ends it");
        terminal.running.signal(libc::SIGINT);
        let (status, screen) = terminal.end();
        assert!(status == Some(130) && !screen.contains("nothing for it"), "{screen}");
    }
    for more in [["--console", "stdio"], ["--cmdline", "console=ttyS0"]] {
        let (sandbox, command) = linux(&more);
        let (status, screen) = Terminal::begin(sandbox, command).end();
        assert!(status == Some(125) && screen.contains("nothing for it to run"), "{screen}");
    }
    let (sandbox, command) = linux(&["--print-config"]);
    let (status, screen) = Terminal::begin(sandbox, command).end();
    assert!(status == Some(0) && !screen.contains("guest"), "{screen}");
    // Where it has something it is its own.
    for more in [["--append", "root=/dev/nfs"], ["--initrd", "kernel"]] {
        let (sandbox, command) = linux(&more);
        let terminal = Terminal::start(sandbox, command);
        terminal.running.signal(libc::SIGTERM);
    }
}

#[test]
fn who_sits_in_front_of_a_detached_vm_types_leaves_and_comes_back() {
    needs_kvm!();
    let attach = |sandbox: &Sandbox| {
        let mut command = sandbox.husk(&["attach", "one"]);
        command.env("XDG_RUNTIME_DIR", sandbox.path());
        command
    };
    let sandbox = Sandbox::new();
    sandbox.file("kernel", image(32, echoing));
    let start = ["run", "--detach", "--name", "one", "--kernel", "kernel", "--memory", "32M"];
    let mut command = sandbox.husk(&[&start[..], &["--timeout", "600"]].concat());
    let started = Running::start(command.env("XDG_RUNTIME_DIR", sandbox.path())).finish();
    assert_eq!((started.status, started.stdout.as_str()), (0, "one\n"), "{started:?}");
    let command = attach(&sandbox);
    let runtime = sandbox.path().to_owned();
    let mut terminal = Terminal::start(sandbox, command);
    terminal.is_raw();
    terminal.type_in(b"a");
    terminal.wait_for("[a]");
    let mut second = std::process::Command::new(env!("CARGO_BIN_EXE_husk"));
    second.args(["attach", "one"]).env("XDG_RUNTIME_DIR", &runtime).stdin(Stdio::null());
    let refused = second.output().unwrap();
    let words = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(refused.status.code() == Some(125) && words.contains("somebody else"), "{words}");
    terminal.type_in(b"\x01h");
    terminal.wait_for("leave the VM");
    // What was typed just before is the guest's, and what comes after is nobody's.
    terminal.type_in(b"c\x01dq");
    let status = terminal.running.status();
    assert_eq!(status.code(), Some(0));
    terminal.is_as_before();
    // What it has said ends no line, and the shell's prompt is to begin one.
    let mut logs = std::process::Command::new(env!("CARGO_BIN_EXE_husk"));
    logs.args(["logs", "--console", "one"]).env("XDG_RUNTIME_DIR", &runtime);
    within_the_limit("[c] is on the console", || logs.output().unwrap().stdout.ends_with(b"[c]"));
    let (status, screen) = Terminal::start(Sandbox::new(), logs).end();
    assert!(status == Some(0) && screen.ends_with("[c]\r\n"), "{screen:?}");

    // It has gone on, and what it wrote last is there again.
    let mut again = std::process::Command::new(env!("CARGO_BIN_EXE_husk"));
    again.args(["attach", "one"]).env("XDG_RUNTIME_DIR", &runtime);
    again.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut again = Running::start(&mut again);
    let mut keyboard = again.child.stdin.take().unwrap();
    keyboard.write_all(b"bq").unwrap();
    let ended = again.finish();
    assert_eq!((ended.status, ended.stdout.as_str()), (0, "up[a][c][b]"), "{ended:?}");
}

#[test]
fn a_signal_that_asks_husk_to_end_restores_the_terminal() {
    needs_kvm!();
    for (signal, status) in [(libc::SIGTERM, 143), (libc::SIGQUIT, 131)] {
        let terminal = Terminal::run(deaf, &["--grace", "0.2"]);
        terminal.is_raw();
        terminal.running.signal(signal);
        assert_eq!(terminal.end().0, Some(status));
    }
}

#[test]
fn a_stopped_husk_lends_the_terminal_and_takes_it_back() {
    needs_kvm!();
    let mut terminal = Terminal::run(echoing, &[]);
    terminal.is_raw();
    for round in 0..3 {
        terminal.running.signal(libc::SIGTSTP);
        terminal.is_stopped();
        terminal.is_as_before();
        terminal.running.signal(libc::SIGCONT);
        terminal.is_raw();
        let key = b'a' + round;
        terminal.type_in(&[key]);
        terminal.wait_for(&format!("[{}]", char::from(key)));
    }
    // Nobody is told of a SIGSTOP; a shell puts the terminal right by itself then.
    terminal.running.signal(libc::SIGSTOP);
    terminal.is_stopped();
    // SAFETY: an open terminal and settings that came from tcgetattr.
    let set = unsafe { libc::tcsetattr(terminal.line.as_raw_fd(), 0, &terminal.before) };
    assert_eq!(set, 0);
    terminal.running.signal(libc::SIGCONT);
    terminal.is_raw();
    terminal.type_in(b"q");
    let (status, screen) = terminal.end();
    assert_eq!(status, Some(0), "{screen}");
}

#[test]
fn a_stopped_husk_that_is_told_to_end_ends_when_it_goes_on() {
    needs_kvm!();
    let terminal = Terminal::run(deaf, &["--grace", "0.2"]);
    terminal.is_raw();
    terminal.running.signal(libc::SIGTSTP);
    terminal.is_stopped();
    terminal.running.signal(libc::SIGTERM);
    terminal.running.signal(libc::SIGCONT);
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
    assert!(report.lines().count() > 2 && !report.replace("\r\n", "").contains('\n'), "{screen:?}");
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
fn a_console_on_a_pseudo_terminal_is_named_and_works_both_ways() {
    needs_kvm!();
    let sandbox = Sandbox::new();
    sandbox.file("kernel", image(32, echoing));
    let args = ["--kernel", "kernel", "--memory", "32M", "--rng", "off", "--console", "pty"];
    let mut command = sandbox.husk(&[&["run"], &args[..]].concat());
    let (stderr, husks_end) = std::io::pipe().unwrap();
    let running = Running::start(command.stderr(husks_end));
    drop(command);
    let mut named = String::new();
    BufReader::new(stderr).read_line(&mut named).unwrap();
    let path = named.trim_end().strip_prefix("husk: the console is at ").unwrap();
    assert!(path.starts_with("/dev/pts/"), "{named}");
    let mut pty = File::options()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NOCTTY | libc::O_NONBLOCK)
        .open(path)
        .unwrap();
    let mut said = Vec::new();
    let mut wait_for = |pty: &mut File, text: &str| {
        within_the_limit(text, || {
            let mut chunk = [0; 256];
            match pty.read(&mut chunk) {
                Ok(len) => said.extend(&chunk[..len]),
                Err(e) => assert_eq!(e.kind(), std::io::ErrorKind::WouldBlock),
            }
            String::from_utf8_lossy(&said).contains(text)
        });
    };
    wait_for(&mut pty, "up");
    // One at a time: the line discipline must not wait for the end of a line.
    for key in ["a", "b"] {
        pty.write_all(key.as_bytes()).unwrap();
        wait_for(&mut pty, &format!("[{key}]"));
    }
    pty.write_all(b"q").unwrap();
    let finished = running.finish();
    assert_eq!((finished.status, finished.stdout.as_str()), (0, ""), "{finished:?}");
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
    assert!(!is_raw(&line));
    drop(main);
}

#[test]
fn a_husk_in_the_background_says_why_it_stops_and_goes_on_in_the_foreground() {
    needs_kvm!();
    let sandbox = Sandbox::new();
    sandbox.file(
        "kernel",
        image(32, |a| {
            a.say("up")?;
            a.power_off()
        }),
    );
    let (mut keyboard, line) = open_terminal();
    // A shell that controls jobs, as a person has it.
    let script = r#"set -m; "$0" run --kernel kernel --memory 32M --rng off &
        echo "PID $!."; read go; fg; echo "ENDED $?.""#;
    let mut shell = sandbox.program("sh", &["-c", script, env!("CARGO_BIN_EXE_husk")]);
    shell.stdin(line.try_clone().unwrap());
    shell.stdout(line.try_clone().unwrap()).stderr(line.try_clone().unwrap());
    // SAFETY: bare system calls; nothing is allocated between fork and exec.
    unsafe {
        shell.pre_exec(|| {
            libc::setsid();
            match libc::ioctl(0, libc::TIOCSCTTY, 0) {
                0 => Ok(()),
                _ => Err(std::io::Error::last_os_error()),
            }
        });
    }
    let mut running = Running::start(&mut shell);
    drop(line);
    let mut glass = BufReader::new(keyboard.try_clone().unwrap());
    let mut screen = String::new();
    let mut wait_for = |text: &str| {
        while !screen.contains(text) {
            let len = glass.read_line(&mut screen).unwrap_or(0);
            assert!(len > 0, "{text:?} does not appear: {screen:?}");
        }
        screen.clone()
    };
    let seen = wait_for("PID ");
    let pid = seen.split("PID ").nth(1).and_then(|rest| rest.split('.').next());
    let pid: u32 = pid.unwrap().parse().unwrap();
    let seen = wait_for("in the background");
    assert!(seen.contains("fg") && seen.contains("</dev/null"), "{seen}");
    within_the_limit("husk is stopped", || is_stopped(pid));
    assert!(!seen.contains("up"), "{seen}");
    keyboard.write_all(b"\n").unwrap();
    assert!(wait_for("ENDED 0.").contains("up"));
    assert_eq!(running.status().code(), Some(0));
}
