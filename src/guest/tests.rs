//! The agent as a process of the host's, at the other end of a socket: everything about sessions but
//! the guest. Then peers that are no agents.

mod trees;

use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use husk_guest_protocol::{Frame, HEADER_LEN, WINDOW, stream};

use super::child::Explain;
use super::error::ExecError;
use super::session::send;
use super::*;

/// Nothing here takes that long, on any machine.
const LONG: Duration = Duration::from_secs(60);

fn later() -> Instant {
    Instant::now() + LONG
}

fn explain() -> Explain {
    Arc::new(|| ExecError::AgentLost { console: String::new() })
}

/// The agent's program, in a file.
fn program() -> PathBuf {
    static PROGRAM: OnceLock<(tempfile::TempDir, PathBuf)> = OnceLock::new();
    let (_, path) = PROGRAM.get_or_init(|| {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("husk-agent");
        crate::files::write_renamed(&path, Some(0o755), |file| file.write_all(AGENT)).unwrap();
        (dir, path)
    });
    path.clone()
}

/// An agent that serves one session, and the socket to it.
fn agent() -> (UnixStream, Child) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let fd = theirs.as_raw_fd();
    let mut command = Command::new(program());
    command.args(["--session", &fd.to_string()]);
    // SAFETY: fcntl is a bare system call; nothing is allocated after the fork.
    unsafe {
        command.pre_exec(move || {
            libc::fcntl(fd, libc::F_SETFD, 0);
            Ok(())
        });
    }
    let child = command.spawn().unwrap();
    (ours, child)
}

fn output(command: &GuestCommand) -> Result<Output, ExecError> {
    let (socket, mut child) = agent();
    let output = command.output_on(socket, explain(), later());
    child.wait().unwrap();
    output
}

fn shell(script: &str) -> GuestCommand {
    GuestCommand::new(["sh", "-c", script]).timeout(LONG)
}

fn status_of(script: &str) -> Status {
    output(&shell(script)).unwrap().status
}

#[test]
fn a_command_ends_with_its_own_status_or_that_of_its_signal() {
    for status in [0, 1, 7, 127, 255] {
        assert_eq!(status_of(&format!("exit {status}")), Status::Exited(status));
    }
    let signaled = |signal| Status::Signaled { signal, out_of_memory: false };
    assert_eq!(status_of("kill -TERM $$"), signaled(15));
    assert_eq!(status_of("kill -KILL $$"), signaled(9));
    assert_eq!(signaled(15).code(), 143);
}

#[test]
fn a_signal_never_becomes_success() {
    for signal in 1..=255 {
        assert!(Status::Signaled { signal, out_of_memory: false }.code() > 128);
    }
}

#[test]
fn what_cannot_be_run_is_told_apart() {
    let dir = tempfile::tempdir().unwrap();
    let text = dir.path().join("text");
    std::fs::write(&text, "no program").unwrap();
    let run = |command: &GuestCommand| output(command).unwrap_err();
    let error = run(&GuestCommand::new(["there-is-none"]));
    assert!(matches!(&error, ExecError::NotFound(name) if name == "there-is-none"), "{error}");
    let error = run(&GuestCommand::new([text.as_os_str()]));
    assert!(matches!(error, ExecError::NotExecutable { .. }), "{error}");
    let error = run(&GuestCommand::new(["/"]));
    assert!(matches!(error, ExecError::NotExecutable { .. }), "{error}");
    let error = run(&GuestCommand::new(["true"]).directory("/there-is-none"));
    assert!(matches!(error, ExecError::Directory { .. }), "{error}");
    let error = run(&GuestCommand::new(["true"]).user("there-is-nobody"));
    assert!(matches!(error, ExecError::User { .. }), "{error}");
    let error = run(&GuestCommand::new(["true", "a\0b"]));
    assert!(matches!(error, ExecError::Nul(_)), "{error}");
    let error = run(&GuestCommand::new(["true"]).env("A=B", "c"));
    assert!(matches!(error, ExecError::Variable(_)), "{error}");
    let none: [&str; 0] = [];
    let error = run(&GuestCommand::new(none));
    assert!(matches!(error, ExecError::NotFound(_)), "{error}");
}

#[test]
fn arguments_and_environment_of_any_bytes_arrive_as_they_were() {
    use std::os::unix::ffi::OsStringExt;
    let odd = std::ffi::OsString::from_vec((1..=255).collect());
    let command = shell("printf %s \"$1\"; printf %s \"$ODD\" >&2").arg("sh").arg(&odd);
    let output = output(&command.env("ODD", &odd)).unwrap();
    assert_eq!(output.stdout, odd.clone().into_vec());
    assert_eq!(output.stderr, odd.into_vec());
}

#[test]
fn two_mebibytes_of_environment_are_no_obstacle_and_what_linux_refuses_is_told() {
    // One string may have 128 KiB (MAX_ARG_STRLEN); all of them a quarter of the stack's limit.
    let value = "v".repeat(100 << 10);
    let mut command = shell("env | wc -c");
    for n in 0..19 {
        command = command.env(format!("LONG{n}"), &value);
    }
    let counted = String::from_utf8(output(&command).unwrap().stdout).unwrap();
    let counted: usize = counted.trim().parse().unwrap();
    assert!((19 * value.len()..20 * value.len()).contains(&counted), "{counted}");
    let error = output(&shell("true").env("TOO_LONG", "v".repeat(1 << 20))).unwrap_err();
    assert!(matches!(error, ExecError::NotExecutable { .. }), "{error}");
    let error = output(&shell("true").env("TOO_LONG", "v".repeat(20 << 20))).unwrap_err();
    assert!(matches!(error, ExecError::TooLong(_)), "{error}");
}

#[test]
fn ten_thousand_lines_on_both_streams_arrive_whole() {
    let script = "i=0; while [ $i -lt 10000 ]; do echo out $i; echo err $i >&2; i=$((i+1)); done";
    let output = output(&shell(script)).unwrap();
    let wanted = |name: &str| (0..10000).map(|n| format!("{name} {n}\n")).collect::<String>();
    assert!(output.stdout == wanted("out").as_bytes());
    assert!(output.stderr == wanted("err").as_bytes());
}

#[test]
fn megabytes_pass_through_a_command_unchanged() {
    let bytes: Vec<u8> =
        (0..8u32 << 20).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let output = output(&GuestCommand::new(["cat"]).input(bytes.clone()).timeout(LONG)).unwrap();
    assert!(output.stdout == bytes);
    // And a command that does not read its input has an end all the same.
    let unread = super::tests::output(&shell("exec <&-; exit 3").input(bytes)).unwrap();
    assert_eq!(unread.status, Status::Exited(3));
}

#[test]
fn streams_are_not_held_back_until_the_end() {
    let (socket, mut agent) = agent();
    let mut child = GuestCommand::new(["cat"]).spawn_on(socket, explain(), later()).unwrap();
    let (mut stdin, mut stdout) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
    for line in [&b"one"[..], b"two"] {
        stdin.write_all(line).unwrap();
        let mut back = [0; 3];
        stdout.read_exact(&mut back).unwrap();
        assert_eq!(back, line);
    }
    assert_eq!(child.wait_timeout(Duration::ZERO).unwrap(), None);
    drop(stdin);
    assert_eq!(child.wait().unwrap(), Status::Exited(0));
    agent.wait().unwrap();
}

#[test]
fn a_stream_that_nobody_reads_any_more_is_a_broken_pipe_for_the_command() {
    let (socket, mut agent) = agent();
    let mut child = GuestCommand::new(["yes"]).spawn_on(socket, explain(), later()).unwrap();
    let mut stdout = child.stdout.take().unwrap();
    stdout.read_exact(&mut [0; 1000]).unwrap();
    drop(stdout);
    assert_eq!(child.wait().unwrap(), Status::Signaled { signal: 13, out_of_memory: false });
    agent.wait().unwrap();
}

#[test]
fn a_background_process_that_keeps_a_stream_holds_up_nobody() {
    let begin = Instant::now();
    let output = output(&shell("sleep 100 & echo $!; exit 4")).unwrap();
    assert_eq!(output.status, Status::Exited(4));
    assert!(begin.elapsed() < LONG);
    let id: i32 = String::from_utf8(output.stdout).unwrap().trim().parse().unwrap();
    // SAFETY: kill touches no memory.
    assert_eq!(unsafe { libc::kill(id, libc::SIGKILL) }, 0, "it was there still");
}

#[test]
fn signals_reach_the_command_and_what_it_started() {
    let (socket, mut agent) = agent();
    let command = shell("trap 'echo caught; exit 5' TERM; echo up; sleep 100 & wait");
    let mut child = command.spawn_on(socket, explain(), later()).unwrap();
    let mut stdout = child.stdout.take().unwrap();
    stdout.read_exact(&mut [0; 3]).unwrap();
    child.signal(15).unwrap();
    let mut rest = String::new();
    stdout.read_to_string(&mut rest).unwrap();
    assert_eq!(rest, "caught\n");
    assert_eq!(child.wait().unwrap(), Status::Exited(5));
    agent.wait().unwrap();
}

#[test]
fn a_command_that_never_ends_is_killed_in_time_with_all_it_started() {
    let dir = tempfile::tempdir().unwrap();
    let id = dir.path().join("id");
    let script = format!("trap '' TERM HUP; sleep 1000 & echo $! >{}; wait", id.display());
    let command = shell(&script).timeout(Duration::from_secs(1));
    assert!(matches!(output(&command), Err(ExecError::TimedOut(_))));
    let id: i32 = std::fs::read_to_string(id).unwrap().trim().parse().unwrap();
    let deadline = Instant::now() + LONG;
    // A zombie, if nobody waits for it here, or gone.
    while std::fs::read_to_string(format!("/proc/{id}/stat"))
        .is_ok_and(|stat| !stat.contains(") Z"))
    {
        assert!(Instant::now() < deadline, "process {id} is still there");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn output_beyond_what_is_collected_is_an_error_and_ends_the_command() {
    let command = GuestCommand::new(["yes"]).collect_at_most(1 << 20).timeout(LONG);
    assert!(matches!(output(&command), Err(ExecError::TooMuchOutput(_))));
}

#[test]
fn a_terminal_has_a_size_and_one_stream() {
    let (socket, mut agent) = agent();
    let size = |columns, rows| crate::WindowSize { columns, rows };
    let command = shell("stty size; read line; stty size; [ -t 2 ] && echo $TERM >&2");
    let mut child = command.terminal(size(81, 25)).spawn_on(socket, explain(), later()).unwrap();
    let (mut stdin, mut stdout) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
    let mut first = [0; 7];
    stdout.read_exact(&mut first).unwrap();
    assert_eq!(&first, b"25 81\r\n");
    child.resize(size(100, 30)).unwrap();
    stdin.write_all(b"\n").unwrap();
    let mut rest = String::new();
    stdout.read_to_string(&mut rest).unwrap();
    assert!(rest.contains("30 100\r\n") && rest.ends_with("xterm\r\n"), "{rest:?}");
    assert_eq!(child.wait().unwrap(), Status::Exited(0));
    agent.wait().unwrap();
}

#[test]
fn files_are_copied_whole_or_not_at_all() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let bytes: Vec<u8> = (0..3 << 20).map(|n| (n % 251) as u8).collect();
    std::fs::write(path("from"), &bytes).unwrap();
    std::fs::set_permissions(path("from"), PermissionsExt::from_mode(0o750)).unwrap();
    let (socket, mut child) = agent();
    put(socket, &explain(), &path("from"), &path("in"), &Limits::default()).unwrap();
    child.wait().unwrap();
    assert!(std::fs::read(path("in")).unwrap() == bytes);
    assert_eq!(path("in").metadata().unwrap().permissions().mode() & 0o7777, 0o750);
    // Not the rights of whose file it was.
    std::fs::set_permissions(path("in"), PermissionsExt::from_mode(0o4751)).unwrap();
    let (socket, mut child) = agent();
    get(socket, &explain(), &path("in"), &path("out"), &Limits::default()).unwrap();
    child.wait().unwrap();
    assert!(std::fs::read(path("out")).unwrap() == bytes);
    assert_eq!(path("out").metadata().unwrap().permissions().mode() & 0o7777, 0o751);

    let before = dir.path().read_dir().unwrap().count();
    let (socket, mut child) = agent();
    let error =
        put(socket, &explain(), &path("from"), &path("no/such"), &Limits::default()).unwrap_err();
    child.wait().unwrap();
    assert!(matches!(error, ExecError::GuestFile { .. }), "{error}");
    // In the guest, then on the host: a directory is copied as one, and to where there is none.
    for (wrong, to) in [(path("none"), path("never")), (dir.path().to_owned(), path("no/such"))] {
        let (socket, mut child) = agent();
        let error = get(socket, &explain(), &wrong, &to, &Limits::default()).unwrap_err();
        child.wait().unwrap();
        assert!(
            matches!(error, ExecError::GuestFile { .. } | ExecError::HostFile { .. }),
            "{error}"
        );
    }
    assert_eq!(dir.path().read_dir().unwrap().count(), before, "something was left");
}

#[test]
fn a_sparse_file_takes_no_more_room_where_it_comes_to_lie_and_is_the_same() {
    use std::os::unix::fs::{FileExt, MetadataExt};
    const LEN: u64 = 24 << 20;
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    std::fs::create_dir(path("tree")).unwrap();
    // Data in the middle, at no block's begin, and a hole at the end; and zeros that have their room.
    for (name, zeros) in [("tree/holes", 0), ("tree/zeros", LEN as usize)] {
        let file = std::fs::File::create(path(name)).unwrap();
        file.write_all_at(&vec![0; zeros], 0).unwrap();
        file.write_all_at(&[7; 10_000], (5 << 20) + 3).unwrap();
        file.set_len(LEN + 3).unwrap();
    }
    let wanted = std::fs::read(path("tree/holes")).unwrap();
    // What was there goes, with its length and its contents.
    std::fs::write(path("in"), vec![9; LEN as usize + 100]).unwrap();
    std::fs::write(path("out"), vec![9; LEN as usize + 100]).unwrap();
    let copies = [
        (Copy::In, "tree/holes", "in"),
        (Copy::Out, "in", "out"),
        (Copy::In, "tree/zeros", "full in"),
        (Copy::Out, "tree/zeros", "full out"),
        (Copy::In, "tree", "tree in"),
        (Copy::Out, "tree", "tree out"),
    ];
    for (way, from, to) in copies {
        copy(way, &path(from), &path(to));
    }
    for copy in ["in", "out", "full in", "full out", "tree in/holes", "tree out/zeros"] {
        assert!(std::fs::read(path(copy)).unwrap() == wanted, "{copy}");
        let room = path(copy).metadata().unwrap().blocks() * 512;
        assert!((10_000..1 << 20).contains(&room), "{copy} has {room} bytes");
    }
    // A pipe has no holes.
    assert!(Command::new("mkfifo").arg(path("fifo")).status().unwrap().success());
    let fifo = path("fifo");
    let reader = std::thread::spawn(move || std::fs::read(fifo).unwrap());
    // Until its reader is there it is refused.
    let mut options = std::fs::File::options();
    let writer = options.write(true).open(path("fifo")).unwrap();
    copy(Copy::Out, &path("in"), &path("fifo"));
    drop(writer);
    assert!(reader.join().unwrap() == wanted, "through a pipe");
}

#[derive(Clone, Copy)]
enum Copy {
    In,
    Out,
}

fn copy(way: Copy, from: &Path, to: &Path) {
    let (socket, mut child) = agent();
    let done = match way {
        Copy::In => put(socket, &explain(), from, to, &Limits::default()),
        Copy::Out => get(socket, &explain(), from, to, &Limits::default()),
    };
    child.wait().unwrap();
    done.unwrap();
}

/// Somebody who takes a request, and then says this.
fn impostor(says: impl FnOnce(UnixStream) + Send + 'static) -> UnixStream {
    let (ours, theirs) = UnixStream::pair().unwrap();
    std::thread::spawn(move || {
        let mut header = [0; HEADER_LEN];
        let mut from = &theirs;
        // Begin, and the request in one part.
        for _ in 0..2 {
            from.read_exact(&mut header).unwrap();
            let len = u32::from_le_bytes(header[4..].try_into().unwrap()) as usize;
            from.read_exact(&mut vec![0; len]).unwrap();
        }
        says(theirs);
    });
    ours
}

#[test]
fn a_guest_that_floods_a_stream_nobody_reads_is_cut_off() {
    let socket = impostor(|socket| {
        send(&socket, Frame::Started).unwrap();
        let piece = [0; 1000];
        for _ in 0..WINDOW {
            if send(&socket, Frame::Output(stream::STDOUT, &piece)).is_err() {
                return;
            }
        }
        panic!("all of it was taken");
    });
    let child = shell("").spawn_on(socket, explain(), later()).unwrap();
    let error = child.wait_timeout(LONG).unwrap_err();
    assert!(matches!(error, ExecError::Protocol), "{error}");
}

#[test]
fn a_guest_that_says_what_no_agent_says_is_an_error_and_no_status() {
    for nonsense in [
        &b"HTTP/1.1 400 Bad Request"[..],
        // A signal 0, a status of two bytes, a frame without an end, one of the host's.
        &[37, 0, 0, 0, 2, 0, 0, 0, 0, 0],
        &[36, 0, 0, 0, 2, 0, 0, 0, 0, 1],
        &[34, 0, 0, 0, 255, 255, 255, 255],
        &[5, 0, 0, 0, 0, 0, 0, 0],
    ] {
        let socket = impostor(move |mut socket| {
            send(&socket, Frame::Started).unwrap();
            socket.write_all(nonsense).unwrap();
            // Until it is cut off.
            let _ = socket.read(&mut [0]);
        });
        let child = shell("").spawn_on(socket, explain(), later()).unwrap();
        let error = child.wait_timeout(LONG).unwrap_err();
        assert!(matches!(error, ExecError::Protocol), "{nonsense:?}: {error}");
    }
    let gone = impostor(|socket| send(&socket, Frame::Started).unwrap());
    let child = shell("").spawn_on(gone, explain(), later()).unwrap();
    assert!(matches!(child.wait(), Err(ExecError::AgentLost { .. })));
}

#[test]
fn a_command_tells_of_processes_that_were_killed_for_want_of_memory_beside_its_own_end() {
    for (killed, end) in [(3, Frame::Exited(0)), (1, Frame::Signaled(9, false))] {
        let socket = impostor(move |socket| {
            send(&socket, Frame::Started).unwrap();
            send(&socket, Frame::OutOfMemory(killed)).unwrap();
            send(&socket, end).unwrap();
        });
        let child = shell("").spawn_on(socket, explain(), later()).unwrap();
        let status = child.wait().unwrap();
        assert!(matches!(status.code(), 0 | 137), "{status:?}");
        assert_eq!(child.killed_for_memory(), killed);
    }
    let (socket, mut agent) = agent();
    let child = shell("exit 3").spawn_on(socket, explain(), later()).unwrap();
    assert_eq!((child.wait().unwrap(), child.killed_for_memory()), (Status::Exited(3), 0));
    agent.wait().unwrap();
}

#[test]
fn a_guest_that_answers_a_byte_at_a_time_has_no_longer_for_it() {
    let socket = impostor(|mut socket| {
        let piece = [0; 8000];
        let frame = Frame::Output(stream::STDOUT, &piece).encode();
        socket.write_all(frame.head()).unwrap();
        while socket.write_all(&[0]).is_ok() {
            std::thread::sleep(Duration::from_millis(20));
        }
    });
    let begun = Instant::now();
    let until = begun + Duration::from_millis(200);
    let error = shell("").spawn_on(socket, explain(), until).unwrap_err();
    assert!(matches!(error, ExecError::NotStarted), "{error}");
    assert!(begun.elapsed() < LONG, "{:?}", begun.elapsed());
}

#[test]
fn a_guest_that_never_ends_a_file_or_sends_too_much_of_it_is_left() {
    let dir = tempfile::tempdir().unwrap();
    let sending = |len: usize| {
        impostor(move |mut socket| {
            send(&socket, Frame::Started).unwrap();
            send(&socket, Frame::Output(stream::STDOUT, &vec![7; len])).unwrap();
            // Until it is cut off.
            let _ = socket.read_to_end(&mut Vec::new());
        })
    };
    let copy = |len, idle| {
        let (to, limits) = (dir.path().join("to"), Limits { max: 1000, idle, ..Limits::default() });
        get(sending(len), &explain(), "/file".as_ref(), &to, &limits).unwrap_err()
    };
    let error = copy(1000, Duration::from_millis(100));
    assert!(matches!(&error, ExecError::Stalled { path, .. } if path == "/file"), "{error}");
    let error = copy(1001, LONG);
    assert!(matches!(error, ExecError::TooLarge { max: 1000, .. }), "{error}");
    assert_eq!(dir.path().read_dir().unwrap().count(), 0, "something was left");
}

#[test]
fn a_guest_that_sends_a_file_and_hears_nothing_is_left() {
    let socket = impostor(|socket| {
        send(&socket, Frame::Started).unwrap();
        let grant = Frame::Credit(stream::STDOUT, 1).encode();
        let grant = grant.head().len() + grant.bytes().len();
        let (mut sent, piece) = (0, [7; 8000]);
        loop {
            // What it may send it takes from how much there is to read, and reads none of it.
            let mut unread: libc::c_int = 0;
            let mut poll = libc::pollfd { fd: socket.as_raw_fd(), events: 0, revents: 0 };
            // SAFETY: an open socket and numbers that are written to.
            unsafe { libc::ioctl(socket.as_raw_fd(), libc::FIONREAD, &raw mut unread) };
            // SAFETY: one pollfd, alive through the call.
            if unsafe { libc::poll(&raw mut poll, 1, 1) } != 0 {
                return;
            }
            let may = WINDOW as usize + unread as usize / grant * (WINDOW as usize / 4);
            while sent + piece.len() <= may
                && send(&socket, Frame::Output(stream::STDOUT, &piece)).is_ok()
            {
                sent += piece.len();
            }
        }
    });
    let least: libc::c_int = 1;
    let len = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: an open socket, and a number of that length, which is read.
    let set = unsafe {
        let at = (&raw const least).cast();
        libc::setsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_SNDBUF, at, len)
    };
    assert_eq!(set, 0);
    let dir = tempfile::tempdir().unwrap();
    let limits = Limits { max: u64::MAX, idle: Duration::from_millis(200), ..Limits::default() };
    let to = dir.path().join("to");
    let error = get(socket, &explain(), "/file".as_ref(), &to, &limits).unwrap_err();
    assert!(matches!(error, ExecError::Stalled { .. }), "{error}");
}
