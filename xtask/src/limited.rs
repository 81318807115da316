//! A child process with a time limit, whose output is passed on or kept as it comes. Its whole
//! process group ends with it, so that a test cut short leaves no machine running. No limit goes
//! beyond the end of the whole run, see [`crate::deadline`].

use std::io::{Read, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::deadline;

/// How a child ended.
pub enum Ended {
    /// By itself.
    With(ExitStatus),
    /// Its time was up, or it was to stop; it was killed.
    TimedOut,
}

/// Where a child's standard error goes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Errors {
    /// Into the output, in the order of what is written.
    Joined,
    /// Kept apart from it.
    Apart,
    /// To our own standard error, unread.
    Ours,
}

/// A child's output and its end.
pub struct Finished {
    pub ended: Ended,
    pub output: Vec<u8>,
    /// Standard error, if it was kept apart.
    pub errors: Vec<u8>,
    pub took: Duration,
}

impl Finished {
    /// The exit status as a shell gives it: 128 + n for a signal n, 124 when its time was up.
    pub fn status(&self) -> u8 {
        match &self.ended {
            Ended::With(status) => shell_status(*status),
            Ended::TimedOut => 124,
        }
    }

    /// The output as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.output).into_owned()
    }
}

/// An exit status as a shell gives it.
pub fn shell_status(status: ExitStatus) -> u8 {
    use std::os::unix::process::ExitStatusExt;
    let code = status.code().or_else(|| status.signal().map(|n| 128 + n));
    code.and_then(|code| u8::try_from(code).ok()).unwrap_or(125)
}

/// Runs `command` for at most `limit`, standard input empty. Its output is kept whole, both
/// streams in one; with `show` it is also passed on to ours as it comes.
pub fn run(command: &mut Command, limit: Duration, show: bool) -> Result<Finished> {
    run_with(command, limit, show, Errors::Joined)
}

/// As [`run`], with its standard error where it is wanted.
pub fn run_with(
    command: &mut Command,
    limit: Duration,
    show: bool,
    errors: Errors,
) -> Result<Finished> {
    run_until(command, limit, show, errors, &AtomicBool::new(false))
}

/// As [`run_with`]; the child is also killed once `stop` is set.
pub fn run_until(
    command: &mut Command,
    limit: Duration,
    show: bool,
    errors: Errors,
    stop: &AtomicBool,
) -> Result<Finished> {
    let name = command.get_program().to_string_lossy().into_owned();
    let limit = deadline::within(limit);
    let (sender, pieces) = mpsc::channel();
    let (reader, writer) = std::io::pipe().context("making a pipe")?;
    let mut readers = vec![(From::Output, reader)];
    match errors {
        Errors::Joined => {
            command.stderr(writer.try_clone().context("sharing a pipe")?);
        }
        Errors::Apart => {
            let (reader, writer) = std::io::pipe().context("making a pipe")?;
            readers.push((From::Errors, reader));
            command.stderr(writer);
        }
        Errors::Ours => {
            command.stderr(Stdio::inherit());
        }
    }
    command.stdin(Stdio::null()).stdout(writer).process_group(0);
    // SAFETY: prctl is a bare system call; nothing is allocated between fork and exec.
    unsafe {
        // Should we be killed, the child goes too.
        command.pre_exec(|| match libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) {
            0 => Ok(()),
            _ => Err(std::io::Error::last_os_error()),
        });
    }
    let started = Instant::now();
    let child = command.spawn().with_context(|| format!("starting {name}"))?;
    let mut group = Group { leader: child, status: None };
    // Our ends of the pipe are still in the command; the reader waits for all of them to close.
    command.stdout(Stdio::null()).stderr(Stdio::null());

    for (from, reader) in readers {
        let sender = sender.clone();
        thread::spawn(move || pump(from, reader, &sender));
    }
    drop(sender);
    let (mut output, mut errors) = (Vec::new(), Vec::new());
    let finished =
        |ended, output, errors| Finished { ended, output, errors, took: started.elapsed() };
    let deadline = started + limit;
    let mut ended = false;
    loop {
        // After the child's own end its descendants may still hold the pipe: only a moment more.
        let tick = Duration::from_millis(if ended { 200 } else { 50 });
        match pieces.recv_timeout(tick) {
            Ok((From::Errors, piece)) => errors.extend(piece),
            Ok((From::Output, piece)) => {
                if show {
                    // Nobody reading our output is no reason to stop a test.
                    let _ = std::io::stdout().write_all(&piece);
                    let _ = std::io::stdout().flush();
                }
                output.extend(piece);
            }
            Err(RecvTimeoutError::Timeout) if ended => break,
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) if ended => break,
            Err(RecvTimeoutError::Disconnected) => thread::sleep(tick / 10),
        }
        if !ended {
            ended = group.leader_has_ended().with_context(|| format!("waiting for {name}"))?;
            let up = Instant::now() > deadline || stop.load(Ordering::Relaxed);
            if !ended && up {
                drop(group);
                return Ok(finished(Ended::TimedOut, output, errors));
            }
        }
    }
    let status = group.end().with_context(|| format!("waiting for {name}"))?;
    Ok(finished(Ended::With(status), output, errors))
}

/// Which of a child's streams.
#[derive(Clone, Copy)]
enum From {
    Output,
    Errors,
}

fn pump(from: From, mut reader: impl Read, to: &mpsc::Sender<(From, Vec<u8>)>) {
    let mut buffer = vec![0; 16384];
    while let Ok(got @ 1..) = reader.read(&mut buffer) {
        if to.send((from, buffer.get(..got).unwrap_or_default().to_vec())).is_err() {
            return;
        }
    }
}

/// A child that leads its process group, all of which is killed when this is dropped. The leader is
/// not waited for before that: as long as it is not, neither its id nor the group's is anybody
/// else's.
struct Group {
    leader: Child,
    /// Once it has been waited for.
    status: Option<ExitStatus>,
}

impl Group {
    /// Whether the leader has ended; it is left to be waited for.
    fn leader_has_ended(&self) -> std::io::Result<bool> {
        let flags = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
        // SAFETY: an all-zero siginfo_t is a valid one, and waitid writes to nothing else.
        let (done, info) = unsafe {
            let mut info: libc::siginfo_t = std::mem::zeroed();
            (libc::waitid(libc::P_PID, self.leader.id(), &mut info, flags), info)
        };
        if done != 0 {
            return Err(std::io::Error::last_os_error());
        }
        // SAFETY: waitid has filled it in, or left it zero.
        Ok(unsafe { info.si_pid() } != 0)
    }

    /// Kills what is left of the group, waits for the leader's end and gives its status.
    fn end(&mut self) -> std::io::Result<ExitStatus> {
        if let Some(status) = self.status {
            return Ok(status);
        }
        if let Ok(id) = libc::pid_t::try_from(self.leader.id()) {
            // SAFETY: kill touches no memory. The leader has not been waited for (see above).
            unsafe { libc::kill(-id, libc::SIGKILL) };
        }
        let status = self.leader.wait()?;
        self.status = Some(status);
        Ok(status)
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // Nobody is left to be told.
        let _ = self.end();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sh(script: &str, limit: Duration) -> Finished {
        run(Command::new("sh").args(["-c", script]), limit, false).unwrap()
    }

    #[test]
    fn both_streams_and_the_status_come_back() {
        let done = sh("echo a; echo b >&2; exit 3", Duration::from_secs(10));
        assert_eq!(done.text(), "a\nb\n");
        assert_eq!(done.status(), 3);
        assert_eq!(sh("kill -9 $$", Duration::from_secs(10)).status(), 137);
    }

    #[test]
    fn standard_error_is_kept_apart_when_asked_for() {
        let mut sh = Command::new("sh");
        sh.args(["-c", "echo a; echo b >&2; echo c"]);
        let done = run_with(&mut sh, Duration::from_secs(10), false, Errors::Apart).unwrap();
        assert_eq!((done.text().as_str(), done.errors.as_slice()), ("a\nc\n", &b"b\n"[..]));
    }

    #[test]
    fn what_takes_too_long_is_killed_with_all_it_started() {
        let done = sh("sleep 77 & echo $!; sleep 77", Duration::from_millis(300));
        assert!(matches!(done.ended, Ended::TimedOut));
        assert!(is_gone(&done.text()));
    }

    /// Whether the process of this id has ended, or does so at once.
    fn is_gone(id: &str) -> bool {
        thread::sleep(Duration::from_millis(100));
        let state = std::fs::read_to_string(format!("/proc/{}/stat", id.trim()));
        state.map_or(true, |state| state.contains(" Z "))
    }

    #[test]
    fn a_grandchild_that_keeps_the_pipe_does_not_keep_us() {
        let done = sh("sleep 77 & echo $!; exit 0", Duration::from_secs(20));
        assert_eq!(done.status(), 0);
        assert!(done.took < Duration::from_secs(10));
        assert!(is_gone(&done.text()));
    }
}
