//! One instance: started, watched and ended, on one clock for everyone.
//!
//! The clock starts just before the fork of the launcher. One poll waits for its output and for its
//! end (by a pidfd), so that a moment is read when it comes and nothing else runs meanwhile. What an
//! instance leaves behind when it is given up is killed, and deleted by the contestant's own words.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStderr, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::workload::{INIT, MARK};
use crate::config::quoted;

/// How long an instance may take to do its work.
pub const LIMIT: Duration = Duration::from_secs(120);
/// How long deleting what one left may take.
pub const UNDO_LIMIT: Duration = Duration::from_secs(20);
/// How soon a comparison that is given up ends.
const TICK: Duration = Duration::from_millis(100);
/// How much of the end of an output is kept for an error's words, in bytes.
const KEPT: usize = 8 << 10;

/// How a contestant starts one instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    /// Program and arguments.
    pub command: Vec<OsString>,
    /// What deletes an instance that was killed.
    pub undo: Option<Vec<OsString>>,
    /// Its directory, if that matters.
    pub directory: Option<std::path::PathBuf>,
}

impl Call {
    /// Its command as a shell takes it.
    pub fn line(&self) -> String {
        let words = self.command.iter().map(|word| quoted(&word.to_string_lossy()));
        words.collect::<Vec<_>>().join(" ")
    }
}

/// Why an instance did not do its work.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// The comparison is given up.
    #[error("given up")]
    Cancelled,
    /// Its own fault, in a sentence.
    #[error("{0}")]
    Failed(String),
}

fn failed(what: &str) -> impl FnOnce(io::Error) -> Failure + '_ {
    move |e| Failure::Failed(format!("{what}: {e}"))
}

/// Moments of an instance, from the fork of its launcher.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Seen {
    /// A guest's init said its line.
    pub init: Option<Duration>,
    /// The workload said its line.
    pub first: Option<Duration>,
    /// The launcher was reaped.
    pub exit: Option<Duration>,
}

/// A running instance. Killed, and deleted, when dropped before its end.
pub struct Instance {
    child: Child,
    undo: Option<Vec<OsString>>,
    pidfd: OwnedFd,
    output: Option<ChildStdout>,
    errors: Option<ChildStderr>,
    begun: Instant,
    /// What was seen so far.
    pub seen: Seen,
    /// The end of its output.
    said: Tail,
    /// The end of its standard error.
    complained: Tail,
    ended: Option<ExitStatus>,
}

impl Instance {
    /// Starts one.
    ///
    /// # Errors
    /// The host's.
    pub fn start(call: &Call) -> Result<Self, Failure> {
        let (program, args) =
            call.command.split_first().ok_or(Failure::Failed("no command".into()))?;
        let mut command = Command::new(program);
        command.args(args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        // Of its own, to be killed as a whole; and Ctrl-C is ours to answer.
        command.process_group(0);
        if let Some(directory) = &call.directory {
            command.current_dir(directory);
        }
        let begun = Instant::now();
        let mut child = command.spawn().map_err(failed("it cannot be started"))?;
        let (output, errors) = (child.stdout.take(), child.stderr.take());
        let pidfd = match pidfd(&child) {
            Ok(pidfd) => pidfd,
            Err(e) => {
                // Both fail only when it is gone.
                let _ = child.kill();
                let _ = child.wait();
                return Err(failed("pidfd_open")(e));
            }
        };
        let instance = Self {
            child,
            undo: call.undo.clone(),
            pidfd,
            output,
            errors,
            begun,
            seen: Seen::default(),
            said: Tail::default(),
            complained: Tail::default(),
            ended: None,
        };
        for fd in instance.descriptors().into_iter().take(2).flatten() {
            nonblocking(fd).map_err(failed("a pipe"))?;
        }
        Ok(instance)
    }

    /// The launcher's process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Just before the fork of its launcher: where its clock starts.
    pub fn begun(&self) -> Instant {
        self.begun
    }

    /// Waits until the workload has said its line.
    ///
    /// # Errors
    /// It ends before, or takes too long, or all is given up.
    pub fn until_first(&mut self, limit: Duration, cancel: &AtomicBool) -> Result<(), Failure> {
        while self.seen.first.is_none() {
            if self.ended.is_some() {
                return Err(self.silent());
            }
            self.wait(limit, cancel)?;
        }
        Ok(())
    }

    /// Waits for its end, which must be a good one.
    ///
    /// # Errors
    /// It fails, says nothing, or takes too long, or all is given up.
    pub fn until_end(&mut self, limit: Duration, cancel: &AtomicBool) -> Result<(), Failure> {
        while self.ended.is_none() {
            self.wait(limit, cancel)?;
        }
        if self.seen.first.is_none() {
            return Err(self.silent());
        }
        match self.ended {
            Some(status) if !status.success() => {
                Err(self.words(&format!("it ended with {status}")))
            }
            _ => Ok(()),
        }
    }

    /// What it said on standard error, the end of it.
    pub fn errors(&self) -> String {
        self.complained.text()
    }

    fn silent(&self) -> Failure {
        self.words(&match self.ended {
            Some(status) => format!("it ended ({status}) before the workload began"),
            None => "the workload never began".to_owned(),
        })
    }

    /// A failure with the last line of what it said.
    fn words(&self, what: &str) -> Failure {
        Failure::Failed(match self.complained.last_line().or_else(|| self.said.last_line()) {
            Some(said) => format!("{what}: {said}"),
            None => what.to_owned(),
        })
    }

    /// Output, errors, pidfd: those that are still of interest.
    fn descriptors(&self) -> [Option<RawFd>; 3] {
        [
            self.output.as_ref().map(AsRawFd::as_raw_fd),
            self.errors.as_ref().map(AsRawFd::as_raw_fd),
            Some(self.pidfd.as_raw_fd()),
        ]
    }

    /// Waits for something to happen, and takes it in.
    fn wait(&mut self, limit: Duration, cancel: &AtomicBool) -> Result<(), Failure> {
        if cancel.load(Ordering::Acquire) {
            return Err(Failure::Cancelled);
        }
        if self.begun.elapsed() > limit {
            return Err(self.words(&format!("not done after {} s", limit.as_secs())));
        }
        let mut fds = self.descriptors().map(|fd| libc::pollfd {
            // A negative one is passed over.
            fd: fd.unwrap_or(-1),
            events: libc::POLLIN,
            revents: 0,
        });
        // SAFETY: an array of pollfds and its length, alive through the call.
        let ready = unsafe { libc::poll(fds.as_mut_ptr(), 3, TICK.as_millis() as libc::c_int) };
        let now = self.begun.elapsed();
        if ready <= 0 {
            return Ok(());
        }
        self.take(now);
        if fds.last().is_some_and(|fd| fd.revents != 0) {
            let status = self.child.wait().map_err(failed("waiting for it"))?;
            self.seen.exit = Some(self.begun.elapsed());
            self.ended = Some(status);
            // What it said last may still be in the pipes.
            self.take(now);
        }
        Ok(())
    }

    /// Reads what has come.
    fn take(&mut self, now: Duration) {
        if drain(&mut self.output, &mut self.said) {
            self.output = None;
        }
        if drain(&mut self.errors, &mut self.complained) {
            self.errors = None;
        }
        if self.seen.init.is_none() && self.said.has(INIT) {
            self.seen.init = Some(now);
        }
        if self.seen.first.is_none() && self.said.has(MARK) {
            self.seen.first = Some(now);
        }
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        if self.ended.is_none() {
            kill_group(&mut self.child);
        }
        let clean = self.ended.is_some_and(|status| status.success());
        if let (false, Some(undo)) = (clean, &self.undo) {
            // There may be nothing to delete.
            let _ = quietly(undo, UNDO_LIMIT);
        }
    }
}

/// Kills the leader of a process group, which has not been reaped, with its group, and reaps it.
fn kill_group(leader: &mut Child) {
    if let Ok(group) = libc::pid_t::try_from(leader.id()) {
        // SAFETY: touches no memory. The leader has not been reaped, so its number, and that of its
        // group, is nobody else's.
        unsafe { libc::kill(-group, libc::SIGKILL) };
    }
    // Both fail only when it is gone.
    let _ = leader.kill();
    let _ = leader.wait();
}

/// The leader of a process group; it and all of the group are killed, unless it was reaped before.
struct Group {
    child: Child,
    reaped: bool,
}

impl Drop for Group {
    fn drop(&mut self) {
        if !self.reaped {
            kill_group(&mut self.child);
        }
    }
}

/// Runs a command whose output matters only when asked for: its standard output, if it ended well
/// within `limit`.
pub fn quietly(command: &[OsString], limit: Duration) -> Option<String> {
    told(command, limit, &AtomicBool::new(false)).ok()
}

/// Runs a command and gives its standard output.
///
/// # Errors
/// It did not end well within `limit`, or `cancel` became true meanwhile; what it said last on standard
/// error, if it said something.
pub fn told(command: &[OsString], limit: Duration, cancel: &AtomicBool) -> Result<String, String> {
    let (program, args) = command.split_first().ok_or("no command")?;
    let child = Command::new(program)
        .args(args)
        .process_group(0)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|e| format!("{}: {e}", program.display()))?;
    let mut group = Group { child, reaped: false };
    let pidfd = pidfd(&group.child).ok();
    let (mut output, mut errors) = (group.child.stdout.take(), group.child.stderr.take());
    let pipes = [output.as_ref().map(AsRawFd::as_raw_fd), errors.as_ref().map(AsRawFd::as_raw_fd)];
    for pipe in pipes.into_iter().flatten() {
        nonblocking(pipe).map_err(|e| format!("a pipe: {e}"))?;
    }
    let (begun, mut said, mut complained) = (Instant::now(), Tail::default(), Tail::default());
    let status = loop {
        let ended = group.child.try_wait().ok().flatten();
        group.reaped = ended.is_some();
        if drain(&mut output, &mut said) {
            output = None;
        }
        if drain(&mut errors, &mut complained) {
            errors = None;
        }
        if ended.is_some() || begun.elapsed() > limit || cancel.load(Ordering::Relaxed) {
            break ended;
        }
        let fds = [
            output.as_ref().map(AsRawFd::as_raw_fd),
            errors.as_ref().map(AsRawFd::as_raw_fd),
            pidfd.as_ref().map(AsRawFd::as_raw_fd),
        ];
        let mut fds =
            fds.map(|fd| libc::pollfd { fd: fd.unwrap_or(-1), events: libc::POLLIN, revents: 0 });
        // SAFETY: an array of pollfds and its length, alive through the call.
        unsafe { libc::poll(fds.as_mut_ptr(), 3, TICK.as_millis() as libc::c_int) };
    };
    drop(group);
    let what = match status {
        Some(status) if status.success() => return Ok(said.text()),
        Some(status) => format!("it ended with {status}"),
        None => format!("not done after {} s", limit.as_secs()),
    };
    Err(complained.last_line().unwrap_or(what))
}

/// Reads what is in the pipe; true at its end.
fn drain(from: &mut Option<impl Read>, to: &mut Tail) -> bool {
    let Some(from) = from else { return false };
    let mut buffer = [0; 4096];
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return true,
            Ok(n) => to.push(buffer.get(..n).unwrap_or_default()),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return false,
        }
    }
}

/// The last bytes of an output, of which there may be any number.
#[derive(Default)]
struct Tail(VecDeque<u8>);

impl Tail {
    fn push(&mut self, bytes: &[u8]) {
        self.0.extend(bytes);
        let excess = self.0.len().saturating_sub(KEPT);
        self.0.drain(..excess);
    }

    /// Whether `mark` is in it.
    fn has(&self, mark: &str) -> bool {
        let (a, b) = self.0.as_slices();
        // It is short unless somebody floods us.
        [a, b].concat().windows(mark.len()).any(|window| window == mark.as_bytes())
    }

    /// The last line that is not empty, shortened.
    fn last_line(&self) -> Option<String> {
        let text = self.text();
        let line = text.lines().map(str::trim).rfind(|line| !line.is_empty());
        line.map(|line| line.chars().take(200).collect())
    }

    fn text(&self) -> String {
        let (a, b) = self.0.as_slices();
        String::from_utf8_lossy(&[a, b].concat()).into_owned()
    }
}

fn pidfd(child: &Child) -> io::Result<OwnedFd> {
    // SAFETY: takes plain numbers and returns a new descriptor, which is close-on-exec, or fails.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, child.id() as libc::pid_t, 0) };
    match RawFd::try_from(fd) {
        // SAFETY: it is new and nobody else's.
        Ok(fd) if fd >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        _ => Err(io::Error::last_os_error()),
    }
}

fn nonblocking(fd: RawFd) -> io::Result<()> {
    // SAFETY: plain numbers; the descriptor is one of ours, and of this end of the pipe only.
    let set = unsafe {
        let flags = libc::fcntl(fd, libc::F_GETFL);
        flags >= 0 && libc::fcntl(fd, libc::F_SETFL, flags | libc::O_NONBLOCK) == 0
    };
    if set { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests;
