//! `husk run --detach`: a VM that goes on when whoever started it goes on.
//!
//! ```text
//! husk run --detach … ── starts itself anew, in a session of its own ──▶ husk run --detached --detach …
//!    waits at a pipe ◀── the VM's name, when it runs ─────────────────── stdout, at first
//!    stderr ◀── what goes wrong until then ───────────────────────────── stderr, at first
//!                                               NAME.log ◀── thread ◀─── then both
//! ```
//!
//! It is a new program and no fork of this one, so that there are no threads that it lacks.

use std::fs::File;
use std::io::{self, PipeReader, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use husk::error::NameError;
use husk::named::{self, Log, Named, Resize, Terminal};

use super::Error;
use super::life::watch;
use super::signals::Signals;
use super::stdout::print;

/// The option, no user's, by which the second husk knows what it is.
pub const DETACHED: &str = "--detached";
/// How long what was written last may take into the log.
const LAST: Duration = Duration::from_secs(2);

/// Starts this very command line as a husk of its own, and waits until its VM runs, or for its end.
///
/// # Errors
/// When it cannot be started.
pub fn start() -> Result<u8, Error> {
    let signals = Signals::block()?;
    let mut words = std::env::args_os();
    let own = words.next().unwrap_or_else(|| "husk".into());
    let mut command = Command::new(std::env::current_exe()?);
    command.arg0(own).args(words.next()).arg(DETACHED).args(words);
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    // SAFETY: setsid is one system call without memory, which may be made between fork and exec.
    unsafe {
        command.pre_exec(|| match libc::setsid() {
            -1 => Err(io::Error::last_os_error()),
            _ => Ok(()),
        })
    };
    let mut child = command.spawn()?;
    let pid = child.id().cast_signed();
    // Until its VM runs it is this one's, as is what ends this one.
    watch(move || {
        loop {
            let signal = signals.wait();
            // SAFETY: kill touches no memory. It is waited for only where this process ends.
            unsafe { libc::kill(pid, signal) };
        }
    })?;
    let mut name = String::new();
    if let Some(said) = child.stdout.take() {
        said.take(named::NAME_MAX as u64 + 1).read_to_string(&mut name)?;
    }
    if name.ends_with('\n') {
        return match print(&name) {
            Ok(()) => Ok(0),
            Err(e) => {
                // Nobody would know of the VM.
                // SAFETY: kill touches no memory, and the child was not waited for.
                unsafe { libc::kill(pid, libc::SIGTERM) };
                Err(e.into())
            }
        };
    }
    let status = child.wait()?;
    let signal = status.signal().map(|signal| 128 + signal);
    let code = status.code().or(signal).and_then(|code| u8::try_from(code).ok());
    Ok(code.filter(|code| *code != 0).unwrap_or(super::CANNOT))
}

/// A name for a VM that was given none, which no other has.
///
/// # Errors
/// When names cannot be looked for.
pub fn made_up() -> Result<String, Error> {
    const LETTERS: &[u8; 32] = b"abcdefghijkmnpqrstuvwxyz23456789";
    loop {
        let mut random = [0u8; 6];
        File::open("/dev/urandom")?.read_exact(&mut random)?;
        let letters =
            random.iter().filter_map(|byte| LETTERS.get(usize::from(*byte) % LETTERS.len()));
        let name = format!("vm-{}", letters.map(|byte| char::from(*byte)).collect::<String>());
        match named::find(&name) {
            Err(NameError::Unknown(_)) => return Ok(name),
            Ok(_) | Err(NameError::Silent { .. } | NameError::Ended { .. }) => {}
            Err(e) => return Err(e.into()),
        }
    }
}

/// This husk, when it is the second one.
pub struct Detached {
    stage: Stage,
    /// Where what is typed to the VM goes: its standard input, until somebody else has it, or nobody.
    typed: Option<File>,
}

/// How far it is.
enum Stage {
    /// Whoever started it waits at `ready`; what is written to standard output waits, too.
    Begun { ready: File, written: PipeReader },
    /// What is written is kept. `logged` hears of its end.
    Kept { ready: File, logged: Receiver<()> },
    /// Whoever started it has gone, and standard error is kept as well.
    Alone { logged: Receiver<()> },
    /// It could not go on.
    Failed,
}

impl Detached {
    /// Begins to be that. Nothing has been written yet.
    ///
    /// # Errors
    /// The host's.
    pub fn begin() -> io::Result<Detached> {
        let ready = File::from(io::stdout().as_fd().try_clone_to_owned()?);
        let (written, writer) = io::pipe()?;
        redirect(writer.as_fd(), libc::STDOUT_FILENO)?;
        let (reader, typed) = io::pipe()?;
        redirect(reader.as_fd(), libc::STDIN_FILENO)?;
        let typed = Some(File::from(OwnedFd::from(typed)));
        Ok(Detached { stage: Stage::Begun { ready, written }, typed })
    }

    /// Nothing is ever typed: the input of what runs is at its end.
    ///
    /// # Errors
    /// The host's.
    pub fn close_input(&mut self) -> io::Result<()> {
        self.typed = None;
        redirect(File::open("/dev/null")?.as_fd(), libc::STDIN_FILENO)
    }

    /// From now on one can sit in front of what runs.
    ///
    /// # Errors
    /// The host's.
    pub fn attach(&mut self, named: &Named, resize: Resize) -> io::Result<()> {
        if let Some(typed) = self.typed.take() {
            named.attach(Terminal::new(typed, resize)?);
        }
        Ok(())
    }

    /// From now on what is written is kept in `log`.
    ///
    /// # Errors
    /// When there is no thread for it.
    pub fn log_to(&mut self, log: Log) -> io::Result<()> {
        self.stage = match std::mem::replace(&mut self.stage, Stage::Failed) {
            Stage::Begun { ready, written } => Stage::Kept { ready, logged: keep(written, log)? },
            further => further,
        };
        Ok(())
    }

    /// Says that the VM called `name` runs, whose output is kept: from now on whoever started it has gone.
    ///
    /// # Errors
    /// When that one has gone before, and knows nothing of a VM.
    pub fn is_ready(&mut self, name: &str) -> io::Result<()> {
        self.stage = match std::mem::replace(&mut self.stage, Stage::Failed) {
            Stage::Kept { mut ready, logged } => {
                ready.write_all(format!("{name}\n").as_bytes())?;
                redirect(io::stdout().as_fd(), libc::STDERR_FILENO)?;
                Stage::Alone { logged }
            }
            other => other,
        };
        Ok(())
    }

    /// Everything that was written is in the log when this returns; what comes now is lost. Does nothing
    /// of a VM that never ran: whoever started it reads that.
    pub fn finish(self) {
        let Stage::Alone { logged } = self.stage else { return };
        let Ok(null) = File::options().write(true).open("/dev/null") else { return };
        for fd in [libc::STDOUT_FILENO, libc::STDERR_FILENO] {
            // Then the log's end is not waited for, below.
            let _ = redirect(null.as_fd(), fd);
        }
        // A copy of a stream that somebody has still keeps it open: what was written is there then.
        let _ = logged.recv_timeout(LAST);
    }
}

/// Writes what comes to `log`, in a thread, and sends word at its end.
fn keep(mut written: PipeReader, mut log: Log) -> io::Result<Receiver<()>> {
    let (done, logged) = channel();
    watch(move || {
        let mut room = vec![0; 32 << 10];
        while let Ok(count @ 1..) = written.read(&mut room) {
            // What the disk does not take is lost; the guest is not held up for it.
            let _ = log.write_all(room.get(..count).unwrap_or_default());
        }
        // Nobody waits for it who does not end.
        let _ = done.send(());
    })?;
    Ok(logged)
}

/// Makes the standard stream `to` the same as `from`.
fn redirect(from: BorrowedFd<'_>, to: RawFd) -> io::Result<()> {
    // SAFETY: an open descriptor, and a standard stream, which nobody in this process owns.
    match unsafe { libc::dup2(from.as_raw_fd(), to) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}
