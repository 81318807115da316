//! A named VM of another process, from outside.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use husk_devices::virtio::console::tty::WindowSize;
use serde::{Deserialize, Serialize};

use super::directory::Directory;
use super::end::{End, Why};
use super::error::{NameError, host};
use super::inspection::Inspection;
use super::record;
use super::{LINE_MAX, PATIENCE, fds, request};
use crate::guest::error::{EndedBy, ExecError};
use crate::guest::{self, CopyStop, GuestChild, GuestCommand, Limits};
use crate::runtime::user;

/// The most of a log that is read, in bytes.
const LOG_MAX: u64 = 16 << 20;
/// The most that a VM can tell of itself, in bytes.
const INSPECTION_MAX: u64 = 16 << 20;
/// An agent that is not ready yet may take that long until it is.
const DIAL_PATIENCE: Duration = Duration::from_secs(190);

/// What a VM says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Info {
    /// What it is called.
    pub name: String,
    /// Of the process that runs it.
    pub pid: u32,
    /// Its kernel's version, as [`kernels::list`](crate::kernels::list) has it, or the file's name where that is
    /// not known.
    pub kernel: String,
    /// When it got its name, in seconds since the epoch.
    pub since: u64,
    /// False of one whose husk does not answer, of which no more is known than name and process.
    #[serde(default = "yes")]
    pub answers: bool,
}

fn yes() -> bool {
    true
}

/// The most of a console's last lines that is read with an end, in bytes.
const CONSOLE_MAX: u64 = 64 << 10;
/// How long the end of a VM whose agent has gone may take to be told.
const WHY_PATIENCE: Duration = Duration::from_secs(15);

/// Tells why a guest does not answer any more.
type Explain = Arc<dyn Fn() -> ExecError + Send + Sync>;

/// A named VM.
#[derive(Debug, Clone)]
pub struct Remote {
    pub(super) name: String,
    pub(super) path: PathBuf,
}

/// The VM called `name`.
///
/// # Errors
/// When there is none, or it has ended.
pub fn find(name: &str) -> Result<Remote, NameError> {
    find_in(&Directory::open()?, name)
}

pub(super) fn find_in(directory: &Directory, name: &str) -> Result<Remote, NameError> {
    let remote = Remote { name: name.to_owned(), path: directory.socket(name)? };
    match remote.open() {
        Ok(_) => Ok(remote),
        // What cannot be read is not remembered.
        Err(unknown @ NameError::Unknown(_)) => match record::read(directory, name) {
            Ok(Some(ended)) => {
                let is_logged = directory.log(name).exists();
                Err(NameError::Ended { name: ended.name, status: ended.status, is_logged })
            }
            _ => Err(unknown),
        },
        Err(e) => Err(e),
    }
}

/// Waits for the end of the VM called `name`, and gives the status that it was [concluded](super::Named::conclude)
/// with. Of one that was kept it is known after its end, too.
///
/// # Errors
/// When there is none and none is remembered, or it ended without a word.
pub fn wait(name: &str) -> Result<u8, NameError> {
    wait_in(&Directory::open()?, name)
}

pub(super) fn wait_in(directory: &Directory, name: &str) -> Result<u8, NameError> {
    let told = find_in(directory, name).and_then(|vm| vm.end()?.status());
    match told {
        // It has ended before it was asked, or while it was.
        Err(
            gone @ (NameError::Unknown(_)
            | NameError::Ended { .. }
            | NameError::NoStatus(_)
            | NameError::Nonsense(_)),
        ) => {
            let known = record::read(directory, name)?.ok_or(gone)?;
            known.status.ok_or_else(|| NameError::NoStatus(name.to_owned()))
        }
        told => told,
    }
}

impl Remote {
    /// A connection to the VM's husk, whoever that is proved to be.
    fn open(&self) -> Result<UnixStream, NameError> {
        self.open_within(PATIENCE)
    }

    fn open_within(&self, patience: Duration) -> Result<UnixStream, NameError> {
        let socket = fds::connect(&self.path, Some(patience)).map_err(|e| match e.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
                NameError::Unknown(self.name.clone())
            }
            // So many wait for it that it can take no more.
            io::ErrorKind::WouldBlock => NameError::Silent { name: self.name.clone(), pid: 0 },
            _ => host(&self.path, "connect")(e),
        })?;
        let failed = host(&self.path, "ask");
        if fds::peer(&socket).map_err(&failed)?.uid != user() {
            return Err(NameError::Unknown(self.name.clone()));
        }
        socket.set_read_timeout(Some(PATIENCE)).map_err(&failed)?;
        socket.set_write_timeout(Some(PATIENCE)).map_err(&failed)?;
        Ok(socket)
    }

    /// Asks, and gives the answer, what else comes, and the connection.
    fn ask(
        &self,
        what: &str,
        patience: Duration,
    ) -> Result<(String, Option<UnixStream>, UnixStream), NameError> {
        let until = Instant::now().checked_add(patience);
        let mut socket = self.open_within(patience.min(PATIENCE))?;
        let failed = host(&self.path, "ask");
        match socket.write_all(format!("{what}\n").as_bytes()) {
            // It may have said no before it was asked.
            Err(e) if e.kind() == io::ErrorKind::BrokenPipe => {}
            written => written.map_err(&failed)?,
        }
        let mut line = Vec::new();
        let mut passed = None;
        // Byte by byte, for what follows the line is somebody else's.
        while !line.ends_with(b"\n") {
            let mut byte = [0];
            // All of the line, however many bytes come one by one.
            let left = until.map(|until| until.saturating_duration_since(Instant::now()));
            if left.is_some_and(|left| left.is_zero()) {
                return Err(self.silent(&socket));
            }
            socket.set_read_timeout(left).map_err(&failed)?;
            let (count, fd) = fds::receive(&socket, &mut byte).map_err(|e| match e.kind() {
                io::ErrorKind::WouldBlock => self.silent(&socket),
                // It gave the name up before it had read what was asked.
                io::ErrorKind::ConnectionReset => NameError::Unknown(self.name.clone()),
                _ => failed(e),
            })?;
            passed = passed.or(fd.map(UnixStream::from));
            if count == 0 || line.len() as u64 > LINE_MAX {
                return Err(NameError::Nonsense(self.name.clone()));
            }
            line.extend(byte);
        }
        // What follows it has a time of its own.
        socket.set_read_timeout(Some(patience)).map_err(&failed)?;
        let line = String::from_utf8_lossy(&line);
        let line = line.trim_end();
        if let Some(why) = line.strip_prefix("ERROR ") {
            return Err(NameError::Refused { name: self.name.clone(), why: why.to_owned() });
        }
        if let Some(why) = line.strip_prefix("GONE ") {
            return Err(NameError::Exec(self.reason(why, socket)?));
        }
        if line == "NONE" {
            return Err(NameError::NoTerminal(self.name.clone()));
        }
        match line.strip_prefix("OK") {
            Some(rest) => Ok((rest.trim_start().to_owned(), passed, socket)),
            None => Err(NameError::Nonsense(self.name.clone())),
        }
    }

    /// Whoever is at the other end does not answer.
    fn silent(&self, socket: &UnixStream) -> NameError {
        let pid = fds::peer(socket).map_or(0, |peer| peer.pid.cast_unsigned());
        NameError::Silent { name: self.name.clone(), pid }
    }

    /// What it says of itself.
    ///
    /// # Errors
    /// See [`NameError`].
    pub fn info(&self) -> Result<Info, NameError> {
        self.info_within(PATIENCE)
    }

    pub(super) fn info_within(&self, patience: Duration) -> Result<Info, NameError> {
        let (answer, ..) = self.ask(request::INFO, patience)?;
        serde_json::from_str(&answer).map_err(|_| NameError::Nonsense(self.name.clone()))
    }

    /// All that it tells of itself.
    ///
    /// # Errors
    /// See [`NameError`].
    pub fn inspect(&self) -> Result<Inspection, NameError> {
        let (_, _, socket) = self.ask(request::INSPECT, PATIENCE)?;
        let mut bytes = Vec::new();
        socket.take(INSPECTION_MAX).read_to_end(&mut bytes).map_err(host(&self.path, "read"))?;
        serde_json::from_slice(&bytes).map_err(|_| NameError::Nonsense(self.name.clone()))
    }

    /// What its console has said last.
    ///
    /// # Errors
    /// See [`NameError`].
    pub fn log(&self) -> Result<String, NameError> {
        let (_, _, socket) = self.ask(request::LOG, PATIENCE)?;
        let mut bytes = Vec::new();
        socket.take(LOG_MAX).read_to_end(&mut bytes).map_err(host(&self.path, "read"))?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// Sits down in front of it: what is sent over the connection is typed, until it is closed. It is closed
    /// by the VM's end.
    ///
    /// # Errors
    /// See [`NameError`]; when somebody else sits there.
    pub fn attach(&self) -> Result<UnixStream, NameError> {
        let (_, _, socket) = self.ask(request::ATTACH, PATIENCE)?;
        socket.set_read_timeout(None).map_err(host(&self.path, "ask"))?;
        socket.set_write_timeout(None).map_err(host(&self.path, "ask"))?;
        Ok(socket)
    }

    /// Tells it the size of the window of who sits in front of it.
    ///
    /// # Errors
    /// See [`NameError`].
    pub fn resize(&self, size: WindowSize) -> Result<(), NameError> {
        let WindowSize { columns, rows } = size;
        self.ask(&format!("{}{columns} {rows}", request::RESIZE), PATIENCE).map(|_| ())
    }

    /// Asks to be told of its end.
    ///
    /// # Errors
    /// See [`NameError`].
    pub fn end(&self) -> Result<End, NameError> {
        let (_, _, socket) = self.ask(request::WAIT, PATIENCE)?;
        socket.set_read_timeout(None).map_err(host(&self.path, "ask"))?;
        Ok(End::of(self.name.clone(), socket))
    }

    /// Asks its guest to turn itself off, and waits for that, at most for `grace`. False when it is
    /// still there.
    ///
    /// # Errors
    /// See [`NameError`].
    pub fn stop(&self, grace: Duration) -> Result<bool, NameError> {
        self.ask(request::SHUT_DOWN, PATIENCE)?;
        Ok(self.is_gone_within(grace))
    }

    /// Turns it off at once, and waits until its name is free.
    ///
    /// # Errors
    /// See [`NameError`].
    pub fn kill(&self) -> Result<bool, NameError> {
        self.ask(request::KILL, PATIENCE)?;
        Ok(self.is_gone_within(PATIENCE))
    }

    fn is_gone_within(&self, limit: Duration) -> bool {
        const PAUSE: Duration = Duration::from_millis(20);
        let begin = Instant::now();
        loop {
            if matches!(self.open(), Err(NameError::Unknown(_))) {
                return true;
            }
            if begin.elapsed() >= limit {
                return false;
            }
            std::thread::sleep(PAUSE);
        }
    }

    /// A connection to its agent; `explain` tells why there is none when its husk goes meanwhile.
    fn agent(&self, explain: &Explain) -> Result<UnixStream, NameError> {
        let gone = |e: NameError| match e {
            NameError::Unknown(_) | NameError::Nonsense(_) if self.is_gone_within(PATIENCE) => {
                NameError::Exec(explain())
            }
            other => other,
        };
        let (_, passed, _) = self.ask(request::CONNECT, DIAL_PATIENCE).map_err(gone)?;
        passed.ok_or_else(|| NameError::Nonsense(self.name.clone()))
    }

    fn why(&self) -> Result<ExecError, NameError> {
        let (answer, _, socket) = self.ask(request::WHY, WHY_PATIENCE)?;
        self.reason(&answer, socket)
    }

    /// Why the guest does not answer, of which the console's last lines still come.
    fn reason(&self, why: &str, socket: UnixStream) -> Result<ExecError, NameError> {
        let why: Why =
            serde_json::from_str(why).map_err(|_| NameError::Nonsense(self.name.clone()))?;
        let mut console = Vec::new();
        // What has come of it is told even if the rest does not.
        let _ = socket.take(CONSOLE_MAX).read_to_end(&mut console);
        Ok(why.error(String::from_utf8_lossy(&console).into_owned()))
    }

    /// Tells why the guest does not answer any more. From now on it hears of the VM's end, so that it knows
    /// that also when the VM's husk is gone before it can be asked.
    ///
    /// # Errors
    /// When its husk does not answer: the agent is not waited for then.
    pub(super) fn explain(&self) -> Result<Explain, NameError> {
        let this = self.clone();
        let end = match self.end() {
            Err(silent @ NameError::Silent { .. }) => return Err(silent),
            // Where too many wait for it already it goes without.
            end => end.ok(),
        };
        let told = OnceLock::new();
        Ok(Arc::new(move || {
            let gone = || {
                let why = end.as_ref().and_then(|end| end.why(PATIENCE));
                why.map_or((None, EndedBy::Other), |why| (why.ended.clone(), why.by()))
            };
            this.why().unwrap_or_else(|_| match this.is_gone_within(PATIENCE) {
                // Its husk has ended with it, or while it was asked.
                true => {
                    let (how, by) = told.get_or_init(gone).clone();
                    ExecError::VmGone { how, by, console: String::new() }
                }
                false => ExecError::AgentLost { console: String::new() },
            })
        }))
    }

    /// Starts a command in it.
    ///
    /// # Errors
    /// See [`NameError`].
    pub fn spawn(&self, command: &GuestCommand) -> Result<GuestChild, NameError> {
        let explain = self.explain()?;
        let agent = self.agent(&explain)?;
        Ok(command.spawn_on(agent, explain, Instant::now() + guest::PATIENCE)?)
    }

    /// As [`crate::RunningVm::copy_in`], until it is stopped.
    ///
    /// # Errors
    /// See [`NameError`].
    pub fn copy_in(&self, from: &Path, to: &Path, stop: &CopyStop) -> Result<(), NameError> {
        let explain = self.explain()?;
        let limits = Limits { stop: stop.clone(), ..Limits::default() };
        Ok(guest::put(self.agent(&explain)?, &explain, from, to, &limits)?)
    }

    /// As [`crate::RunningVm::copy_out`], until it is stopped.
    ///
    /// # Errors
    /// See [`NameError`].
    pub fn copy_out(&self, from: &Path, to: &Path, stop: &CopyStop) -> Result<(), NameError> {
        let explain = self.explain()?;
        let limits = Limits { stop: stop.clone(), ..Limits::default() };
        Ok(guest::get(self.agent(&explain)?, &explain, from, to, &limits)?)
    }
}
