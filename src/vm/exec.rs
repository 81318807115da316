//! Commands in a running VM's guest: what [`RunningVm`] can do when its configuration has a `guest`, or
//! an `agent`.

use std::ffi::OsStr;
use std::io::ErrorKind;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::mailbox::Mailbox;
use super::panic::CONSOLE_LINES;
use super::running::{RunningVm, Verdict};
use super::{Ended, Outcome, ending};
use crate::guest::control::{Agent, Known};
use crate::guest::error::ExecError;
use crate::guest::{self, GuestChild, GuestCommand, Output};

/// How long a guest whose connection has ended may take to end itself.
const LAST_WORDS: Duration = Duration::from_secs(5);
/// How long a guest may take to be ready, when nobody has said.
const BOOT_PATIENCE: Duration = Duration::from_secs(120);

impl RunningVm {
    /// Waits until commands can be run, at most for `limit`.
    ///
    /// # Errors
    /// Why they cannot.
    pub fn wait_ready(&self, limit: Duration) -> Result<(), ExecError> {
        self.dialler()?.wait_ready(limit)
    }

    /// Runs a command to its end, and collects what it writes. Waits until the guest is ready first.
    ///
    /// # Errors
    /// See [`ExecError`]; a command that ends with another status than 0 is none.
    pub fn exec<S: AsRef<OsStr>>(
        &self,
        arguments: impl IntoIterator<Item = S>,
    ) -> Result<Output, ExecError> {
        self.output(&GuestCommand::new(arguments))
    }

    /// As [`RunningVm::exec`], with all that can be said about a command.
    ///
    /// # Errors
    /// See [`ExecError`].
    pub fn output(&self, command: &GuestCommand) -> Result<Output, ExecError> {
        let socket = self.dial(None)?;
        command.output_on(socket, self.explain(), Instant::now() + guest::PATIENCE)
    }

    /// Starts a command, whose streams are the caller's. Waits until the guest is ready first.
    ///
    /// # Errors
    /// See [`ExecError`].
    pub fn spawn(&self, command: &GuestCommand) -> Result<GuestChild, ExecError> {
        let socket = self.dial(None)?;
        command.spawn_on(socket, self.explain(), Instant::now() + guest::PATIENCE)
    }

    /// As [`RunningVm::spawn`], all of it within `limit`: the wait for the guest, and the command's start.
    ///
    /// # Errors
    /// See [`ExecError`]; [`ExecError::NotReady`] or [`ExecError::NotStarted`] when the time is up.
    pub fn spawn_within(
        &self,
        command: &GuestCommand,
        limit: Duration,
    ) -> Result<GuestChild, ExecError> {
        let Some(end) = Instant::now().checked_add(limit) else { return self.spawn(command) };
        let socket = self.dial(Some(end))?;
        command.spawn_on(socket, self.explain(), end.min(Instant::now() + guest::PATIENCE))
    }

    /// Copies the file or directory `from` of the host's to `to` in the guest, with its permissions. If
    /// `to` is a directory it goes into that, by its name (of `DIR/.` what is in it). It appears when all of it is
    /// there; where a directory was before, one file after the other does. Links in a directory are copied as
    /// links; `from` itself is followed. It is an error when the guest takes nothing of it for 60 s.
    ///
    /// # Errors
    /// See [`ExecError`].
    pub fn copy_in(&self, from: &Path, to: &Path) -> Result<(), ExecError> {
        guest::put(self.dial(None)?, &self.explain(), from, to, &guest::Limits::default())
    }

    /// Copies the file or directory `from` of the guest's to `to` on the host, as [`RunningVm::copy_in`]
    /// does, with the `rwx` of its permissions. At most 64 GiB, of which each file takes 4 KiB more than
    /// it has, and an error when the guest sends nothing of it for 60 s, or names that are none.
    ///
    /// # Errors
    /// See [`ExecError`].
    pub fn copy_out(&self, from: &Path, to: &Path) -> Result<(), ExecError> {
        guest::get(self.dial(None)?, &self.explain(), from, to, &guest::Limits::default())
    }

    /// As [`RunningVm::copy_out`], with `max` bytes at most: a guest may send as much as it likes.
    ///
    /// # Errors
    /// See [`ExecError`]; [`ExecError::TooLarge`] when there are more.
    pub fn copy_out_at_most(&self, from: &Path, to: &Path, max: u64) -> Result<(), ExecError> {
        let limits = guest::Limits { max, ..guest::Limits::default() };
        guest::get(self.dial(None)?, &self.explain(), from, to, &limits)
    }

    /// A stream to a program of the guest's that listens at the vsock port `port`. Waits until the guest
    /// is ready first, and not for the program.
    ///
    /// # Errors
    /// See [`ExecError`]; [`ExecError::Refused`] when nobody listens there.
    pub fn vsock(&self, port: u32) -> Result<UnixStream, ExecError> {
        self.wait_ready(BOOT_PATIENCE)?;
        let dialled = self.agent()?.connect(port, guest::PATIENCE);
        dialled.map_err(|e| match e.kind() {
            ErrorKind::ConnectionRefused => ExecError::Refused(port),
            _ if guest::is_late(&e) => ExecError::NotStarted,
            _ => self.explain()(),
        })
    }

    /// Asks the agent to end all processes of the guest, write everything to the disks and turn the
    /// machine off. One that the guest's own init started has that do it; before there is one the power
    /// button is pressed.
    pub fn ask_to_shut_down(&self) {
        match &self.agent {
            Some(agent) if self.has_agent() => agent.shut_down(),
            // If it has ended meanwhile that is as well.
            Some(_) => drop(self.press_power_button()),
            None => {}
        }
    }

    /// Has the agent end all processes of the guest, write everything to the disks and turn the machine
    /// off; turns it off after `grace` if it has not.
    pub fn shut_down(&self, grace: Duration) -> Outcome {
        if self.agent.is_some() {
            self.ask_to_shut_down();
            if let Some(outcome) = self.wait_timeout(grace) {
                return outcome;
            }
        }
        // An error means that the guest was faster.
        let _: Result<(), Ended> = self.kill();
        self.wait()
    }

    fn agent(&self) -> Result<&Arc<Agent>, ExecError> {
        self.agent.as_ref().ok_or(ExecError::NoAgent)
    }

    /// Whether its agent can be asked to turn it off. husk's own init is, whenever it comes; another init
    /// need never start one.
    pub(crate) fn has_agent(&self) -> bool {
        let ready = |agent: &Agent| agent.wait(Duration::ZERO) == Known::Ready;
        self.agent.as_ref().is_some_and(|agent| !agent.is_service() || ready(agent))
    }

    /// What is known of its agent, if it is to have one.
    pub(crate) fn agent_state(&self) -> Option<Known> {
        self.agent.as_ref().map(|agent| agent.wait(Duration::ZERO))
    }

    /// A connection for a session, when the guest is ready; until `end`, if there is one.
    pub(crate) fn dial(&self, end: Option<Instant>) -> Result<UnixStream, ExecError> {
        self.dialler()?.dial(end)
    }

    /// What makes such connections, also for one who does not hold the VM meanwhile.
    pub(crate) fn dialler(&self) -> Result<Dialler, ExecError> {
        Ok(Dialler { agent: self.agent()?.clone(), explain: self.explain() })
    }

    /// How it has ended, which may be a moment off, unless it goes on.
    pub(crate) fn ending(&self) -> Option<Outcome> {
        end_of(&self.verdict, &self.mailbox, LAST_WORDS)
    }

    /// Tells why the guest does not answer any more: the VM's end, which may be a moment off.
    fn explain(&self) -> Explain {
        let (verdict, console) = (self.verdict.clone(), self.console.clone());
        let mailbox = self.mailbox.clone();
        Arc::new(move || match end_of(&verdict, &mailbox, LAST_WORDS) {
            Some(outcome) => ExecError::Ended(Box::new(outcome)),
            None => ExecError::AgentLost { console: console.last_lines(CONSOLE_LINES) },
        })
    }
}

type Explain = Arc<dyn Fn() -> ExecError + Send + Sync>;

/// Makes connections to a VM's agent, and holds nothing else of the VM.
pub(crate) struct Dialler {
    agent: Arc<Agent>,
    explain: Explain,
}

impl Dialler {
    fn wait_ready(&self, limit: Duration) -> Result<(), ExecError> {
        match self.agent.wait(limit) {
            Known::Ready => Ok(()),
            Known::Waiting if self.agent.is_service() => Err(ExecError::NoService(limit)),
            Known::Waiting => Err(ExecError::NotReady(limit)),
            Known::Failed(words) => Err(ExecError::SetUp(words)),
            Known::Gone => Err((self.explain)()),
        }
    }

    /// A connection for a session, when the guest is ready; until `end`, if there is one.
    pub fn dial(&self, end: Option<Instant>) -> Result<UnixStream, ExecError> {
        let left = end.map(|end| end.saturating_duration_since(Instant::now()));
        self.wait_ready(left.unwrap_or(BOOT_PATIENCE))?;
        let patience = Instant::now() + guest::PATIENCE;
        let dialled = self.agent.dial(end.map_or(patience, |end| end.min(patience)));
        dialled.map_err(|e| match guest::is_late(&e) {
            true => ExecError::NotStarted,
            false => (self.explain)(),
        })
    }
}

/// How a VM has ended whose guest does not answer any more: within `patience`, or, when its devices are
/// already being closed, which ends their connections first, as soon as they are. On a busy host that can be
/// later, and does not mean that a VM goes on without its agent.
fn end_of(verdict: &Verdict, mailbox: &Mailbox, patience: Duration) -> Option<Outcome> {
    let outcome = verdict.wait_timeout(patience);
    if outcome.is_some() || !mailbox.is_closed() {
        return outcome;
    }
    verdict.wait_timeout(ending::LIMIT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_that_has_begun_is_waited_for_and_one_that_has_not_is_not() {
        let (verdict, mailbox) = (Verdict::default(), Mailbox::default());
        assert!(end_of(&verdict, &mailbox, Duration::ZERO).is_none());
        mailbox.close();
        let outcome = std::thread::scope(|scope| {
            let waiting = scope.spawn(|| end_of(&verdict, &mailbox, Duration::ZERO));
            std::thread::sleep(Duration::from_millis(20));
            verdict.give(|| Outcome::PowerOff);
            waiting.join().unwrap()
        });
        assert!(matches!(outcome, Some(Outcome::PowerOff)));
    }
}
