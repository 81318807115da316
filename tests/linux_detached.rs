//! VMs that go on without who started them, reached by their names.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests"
)]

mod guest;

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::MetadataExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use guest::command::{cli, finish};
use guest::terminal::Terminal;
use guest::user::User;
use guest::{Lab, PATIENCE, TINY, husk};

/// A detached VM with these options and the tiny initramfs, called `one`; and how others call husk. All of it by
/// `user`, if there is one, else by whoever runs the tests.
fn detached(
    lab: &Lab,
    user: Option<User>,
    args: &[&str],
) -> impl Fn(&[&str], &[u8]) -> (i32, String, String) + use<> {
    let initrd = lab.asset(TINY);
    let options = ["--detach", "--name", "one", "--initrd", initrd.to_str().unwrap()];
    let runtime = lab.path("runtime");
    match user {
        Some(user) => drop(user.directory(runtime.clone())),
        None => std::fs::create_dir(&runtime).unwrap(),
    }
    let mut command = cli(lab, &[&options[..], args].concat());
    command.env("XDG_RUNTIME_DIR", &runtime);
    if let Some(user) = user {
        user.run(&mut command);
    }
    // It has none of the streams any more, or this would last as long as the VM.
    assert_eq!(finish(command, b""), (0, "one\n".to_owned(), String::new()));
    move |args, input| {
        let mut command = Command::new(husk());
        command.env("XDG_RUNTIME_DIR", &runtime).args(args);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        if let Some(user) = user {
            user.run(&mut command);
        }
        finish(command, input)
    }
}

/// Waits until the log of the VM says that.
fn wait_for_log(call: &impl Fn(&[&str], &[u8]) -> (i32, String, String), words: &str) -> String {
    let begin = Instant::now();
    loop {
        let (status, log, stderr) = call(&["logs", "one"], b"");
        if log.contains(words) {
            return log;
        }
        assert!(status == 0 && begin.elapsed() < PATIENCE, "{log}{stderr}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn a_detached_command_of_a_user_is_looked_at_and_stopped_in_good_order() {
    let Some(lab) = Lab::open() else { return };
    let Some(user) = User::other(&lab) else { return };
    let script = "trap 'echo stops; exit 3' TERM; echo said; echo told >&2; read none || echo end; \
                  while :; do /bin/busybox sleep 0.1; done";
    // That it is told to end is no failure of its own.
    let command = ["--keep-on-failure", "--", "/bin/busybox", "sh", "-c", script];
    let call = detached(&lab, Some(user), &command);
    // Of two streams: either may come last.
    wait_for_log(&call, "told\n");
    let log = wait_for_log(&call, "end\n");
    assert!(log.contains("said\n"), "{log}");
    others_have_commands_with_ends_of_their_own(&call);
    one_has_streams_of_any_bytes_and_one_a_terminal(&lab, user);
    files_go_in_and_come_out_as_the_users(&lab, user, &call);
    // Somebody else has nothing to do with these names, not even root.
    let mut others = Command::new(husk());
    let others = others.env("XDG_RUNTIME_DIR", lab.path("runtime")).arg("ps").output().unwrap();
    let words = String::from_utf8_lossy(&others.stderr);
    assert!(others.status.code() == Some(125) && words.contains("somebody else"), "{words}");
    let (_, facts, stderr) = call(&["inspect", "one"], b"");
    assert!(facts.contains("ready for commands") && facts.contains("echo said"), "{facts}{stderr}");
    assert!(facts.contains("root       the initramfs\n"), "{facts}");
    let (status, _, stderr) = call(&["stop", "one", "--grace", "60"], b"");
    assert_eq!(status, 0, "{stderr}");
    assert_eq!(call(&["wait", "one"], b""), (0, "3\n".to_owned(), String::new()));
    let log = call(&["logs", "one"], b"").1;
    assert!(log.contains("stops\n"), "{log}");
}

fn others_have_commands_with_ends_of_their_own(
    call: &impl Fn(&[&str], &[u8]) -> (i32, String, String),
) {
    for (script, wanted) in [
        ("exit 0", 0),
        ("exit 1", 1),
        ("exit 7", 7),
        ("kill -KILL $$", 128 + libc::SIGKILL),
        ("kill -TERM $$", 128 + libc::SIGTERM),
    ] {
        let (status, _, stderr) =
            call(&["exec", "one", "--", "/bin/busybox", "sh", "-c", script], b"");
        assert_eq!((status, stderr.as_str()), (wanted, ""), "{script}");
    }
    for (command, wanted, words) in
        [("/proc/1/comm", 126, "cannot be executed"), ("there-is-none", 127, "no such command")]
    {
        let (status, _, stderr) = call(&["exec", "one", "--", command], b"");
        assert!(status == wanted && stderr.contains(words), "{command}: {status} {stderr}");
    }
}

fn files_go_in_and_come_out_as_the_users(
    lab: &Lab,
    user: User,
    call: &impl Fn(&[&str], &[u8]) -> (i32, String, String),
) {
    let place = user.directory(lab.path("copies"));
    let path = |name: &str| place.join(name).to_str().unwrap().to_owned();
    std::fs::write(path("from"), "copied").unwrap();
    for (from, to) in [(path("from"), "one:/in".to_owned()), ("one:/in".to_owned(), path("back"))] {
        assert_eq!(call(&["cp", &from, &to], b""), (0, String::new(), String::new()));
    }
    assert_eq!(std::fs::read(path("back")).unwrap(), b"copied");
    assert_eq!(std::fs::metadata(path("back")).unwrap().uid(), user.uid);
}

fn one_has_streams_of_any_bytes_and_one_a_terminal(lab: &Lab, user: User) {
    let exec = |command: &[&str]| {
        let mut husk = Command::new(husk());
        husk.env("XDG_RUNTIME_DIR", lab.path("runtime"));
        husk.args(["exec", "one", "--", "/bin/busybox"]).args(command);
        user.run(&mut husk);
        husk
    };
    let bytes: Vec<u8> =
        (0..16u32 << 20).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let (from, back) = (lab.path("from"), lab.path("back"));
    std::fs::write(&from, &bytes).unwrap();
    let (input, output) = (File::open(&from).unwrap(), File::create(&back).unwrap());
    let begin = Instant::now();
    let status = exec(&["cat"]).stdin(input).stdout(output).status().unwrap();
    eprintln!("16 MiB came back through `husk exec` after {:.1?}", begin.elapsed());
    assert!(status.success() && std::fs::read(&back).unwrap() == bytes);
    std::fs::remove_file(from).and_then(|()| std::fs::remove_file(back)).unwrap();

    let mut terminal = Terminal::start(exec(&["sh"]), (25, 81));
    // What is typed is seen as well, but for the words' result.
    terminal.ask_until("/bin/busybox stty size\n", "25 81\r\n");
    terminal.resize((30, 100));
    terminal.ask_until("/bin/busybox stty size\n", "30 100\r\n");
    terminal.type_in("exit 7\n");
    let (status, screen) = terminal.end();
    assert_eq!(status, 7, "{screen}");
}

#[test]
fn a_vm_whose_command_cannot_begin_is_kept_for_a_look_into_it() {
    let Some(lab) = Lab::open() else { return };
    let initrd = lab.asset(TINY);
    let options = ["--keep-on-failure", "--name", "one", "--initrd", initrd.to_str().unwrap()];
    let runtime = lab.path("runtime");
    std::fs::create_dir(&runtime).unwrap();
    let mut command = cli(&lab, &[&options[..], &["--", "there-is-none"]].concat());
    let mut vm = command.env("XDG_RUNTIME_DIR", &runtime).spawn().unwrap();
    let mut said = BufReader::new(vm.stderr.take().unwrap()).lines();
    let mut next = || said.next().expect("husk says that").unwrap();
    let words = next();
    assert!(words.contains("there is no such command"), "{words}");
    let words = next();
    assert!(words.contains("did not begin, and the VM stays: `husk exec one`"), "{words}");
    let call = |args: &[&str]| {
        let mut command = Command::new(husk());
        command.env("XDG_RUNTIME_DIR", &runtime).args(args);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        finish(command, b"")
    };
    let done = call(&["exec", "one", "--", "/bin/busybox", "echo", "inside"]);
    assert_eq!(done, (0, "inside\n".to_owned(), String::new()));
    assert_eq!(call(&["stop", "one"]).0, 0);
    assert_eq!(guest::process::status(vm.wait().unwrap()), 127);
}

#[test]
fn a_shell_on_a_terminal_is_typed_to_by_who_attaches_and_kept_when_it_fails() {
    let Some(lab) = Lab::open() else { return };
    let call = detached(&lab, None, &["--tty", "--keep-on-failure", "--", "/bin/busybox", "sh"]);
    let (status, screen, stderr) = std::thread::scope(|scope| {
        let typed = b"echo on $(/bin/busybox tty); exit 3\n";
        let attached = scope.spawn(|| call(&["attach", "one"], typed));
        wait_for_log(&call, "the VM stays");
        let done = call(&["exec", "one", "--", "/bin/busybox", "echo", "inside"], b"");
        assert_eq!(done, (0, "inside\n".to_owned(), String::new()));
        let facts = call(&["inspect", "--json", "one"], b"").1;
        let pid = facts.split("\"pid\": ").nth(1).unwrap().split(',').next().unwrap();
        let pid: libc::pid_t = pid.parse().unwrap();
        // SAFETY: kill touches no memory; the VM's husk has just told its id, and ends by nothing else.
        assert_eq!(unsafe { libc::kill(pid, libc::SIGTERM) }, 0);
        attached.join().unwrap()
    });
    assert!(status == 0 && screen.contains("\non /dev/pts/"), "{screen}{stderr}");
    assert!(screen.contains("status 3"), "{screen}");
    assert_eq!(call(&["wait", "one"], b""), (0, "3\n".to_owned(), String::new()));
}
