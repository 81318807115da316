//! A command's life on the command line: from the guest's start to husk's exit status.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::time::{Duration, Instant};

use husk::error::{EndedBy, ExecError};
use husk::{GuestChild, GuestCommand, Outcome, RunningVm, Status};

use super::connect::{self, End};
use crate::cli::awaited::Awaited;
use crate::cli::course::Course;
use crate::cli::escape::Escape;
use crate::cli::life::{self, GUEST_DIED, TIMED_OUT, conclude, end, kill, report_console};
use crate::cli::{CANNOT, Error, hint, terminal};

/// Exit statuses of a shell for a command that cannot be run.
const NOT_EXECUTABLE: u8 = 126;
const NOT_FOUND: u8 = 127;
/// Exit status: somebody else ended the VM under the command, as SIGKILL ends a process.
const KILLED: u8 = 128 + libc::SIGKILL as u8;
/// Lines of the console that are shown when something failed.
const CONSOLE_LINES: usize = 40;

/// How long things may take.
pub struct Limits {
    /// `--timeout`, and when it began.
    pub timeout: Option<(Duration, Instant)>,
    /// `--grace`.
    pub grace: Duration,
}

impl Limits {
    /// What is left of the time that there was.
    fn left(&self) -> Option<Duration> {
        self.timeout.map(|(limit, begin)| limit.saturating_sub(begin.elapsed()))
    }
}

/// A command, and how it is to be run.
pub struct Job<'a> {
    /// What is run.
    pub command: GuestCommand,
    /// How long things may take.
    pub limits: Limits,
    /// Tells when the terminal has another size.
    pub resized: Awaited,
    /// `--keep-on-failure`, and what the VM is called.
    pub keep: Option<&'a str>,
    /// `--detach`: who started it is told of a command that does not begin, and of no VM then.
    pub detached: bool,
    /// `--tty`.
    pub tty: bool,
}

/// Runs `job` in `vm` to its end, turns the VM off, and gives the exit status. `has_begun` is called when the
/// command has.
///
/// # Errors
/// What husk itself could not do.
pub fn run(
    vm: &Arc<RunningVm>,
    job: Job<'_>,
    course: &Course,
    has_begun: impl FnOnce(&Arc<GuestChild>) -> Result<(), Error>,
) -> Result<u8, Error> {
    let Job { command, limits, resized, keep, detached, tty } = job;
    let limits = &limits;
    let (command, interactive) = connect::for_terminal(command, tty);
    // Until it has the terminal the keys that are husk's are not read.
    let words = "the guest is still starting; Ctrl-C ends it";
    let hint = interactive.then(|| hint::after_silence(words, || false));
    let started = match limits.left() {
        Some(left) => vm.spawn_within(&command, left),
        None => vm.spawn(&command),
    };
    drop(hint);
    let child = match started {
        Ok(child) => child,
        Err(e) => {
            let name = keep.filter(|_| !detached && is_commands(&e) && !course.is_end_wanted());
            let Some(name) = name else { return Ok(failed(&e, vm, course, limits)) };
            tell!("husk: {e}\n");
            return Ok(stay(vm, name, course, Kept::NotBegun(status_of_error(&e))));
        }
    };
    let escapes = interactive.then(|| attend_escapes(vm.clone())).transpose()?;
    let (typed, is_end) = escapes.unzip();
    let begun = |child: &Arc<GuestChild>| {
        // First, for whoever hears that it has begun may ask at once for its end.
        course.begins(child.clone());
        has_begun(child)
    };
    let attached = connect::attach(child, interactive.then_some(resized), typed, begun)?;
    let ended = attached.wait(|| limits.left(), limits.grace);
    terminal::restore();
    let end = match (ended, keep) {
        (Ok(Some(end)), _) => end,
        (Ok(None), Some(name)) => return Ok(stay(vm, name, course, Kept::StillRuns)),
        (Ok(None), None) => return Ok(timed_out(vm, limits)),
        // Ctrl-a x is how a user leaves, and no failure.
        (Err(ExecError::Ended(outcome)), _)
            if matches!(*outcome, Outcome::Killed)
                && is_end.is_some_and(|is_end| is_end.load(Ordering::Acquire)) =>
        {
            return Ok(conclude(&outcome, course.signal()));
        }
        (Err(e), _) => return Ok(failed(&e, vm, course, limits)),
    };
    let mut status = status_of(&end);
    // Most programs have not heard of it.
    if vm.failed_overlay_requests() > 0 {
        tell!(
            "husk: what was written above the root or a volume is not all there: --overlay disk could not \
             take it; give it a dir= with more room\n"
        );
        status = CANNOT;
    }
    // One that was told to end has not failed.
    if let Some(name) = keep.filter(|_| status != 0 && !course.is_end_wanted()) {
        return Ok(stay(vm, name, course, Kept::Ended(status)));
    }
    conclude_vm(vm, limits.grace);
    Ok(status)
}

/// Why a VM stays after its command.
#[derive(Clone, Copy)]
enum Kept {
    /// It did not begin, which is this exit status.
    NotBegun(u8),
    /// It ended with this exit status.
    Ended(u8),
    /// Its time is up.
    StillRuns,
}

/// Keeps the VM until somebody ends it, and gives the command's exit status.
fn stay(vm: &Arc<RunningVm>, name: &str, course: &Course, kept: Kept) -> u8 {
    let (how, status) = match kept {
        Kept::NotBegun(status) => ("did not begin".to_owned(), status),
        Kept::Ended(status) => (format!("ended with status {status}"), status),
        Kept::StillRuns => ("still runs, and its time is up".to_owned(), TIMED_OUT),
    };
    course.stays();
    tell!(
        "husk: the command {how}, and the VM stays: `husk exec {name}` is a shell in it, and \
         `husk stop {name}` its end, as is Ctrl-C here\n"
    );
    match vm.wait() {
        Outcome::PowerOff | Outcome::Killed | Outcome::Reboot | Outcome::Exit(_) => {}
        outcome => {
            conclude(&outcome, course.signal());
        }
    }
    status
}

/// The exit status for a command's end, and a word about one that needs it. What is not whole is no success
/// of the command's, whatever its own status is.
pub fn status_of(end: &End) -> u8 {
    if let Some(whom) = starved(end) {
        tell!(
            "husk: the guest ran out of memory, and its kernel killed {whom}: give the guest more with \
             --memory\n"
        );
    }
    if end.is_whole { end.status.code() } else { CANNOT }
}

/// Whom the guest's kernel killed because memory ran out, if anybody.
fn starved(end: &End) -> Option<String> {
    match (end.status, end.starved) {
        (Status::Signaled { out_of_memory: true, .. }, _) => Some("the command".to_owned()),
        (_, 0) => None,
        (_, 1) => Some("a process while the command ran".to_owned()),
        (_, count) => Some(format!("{count} processes while the command ran")),
    }
}

/// Turns the VM off in good order; at once if that takes too long.
fn conclude_vm(vm: &Arc<RunningVm>, grace: Duration) {
    vm.ask_to_shut_down();
    if vm.wait_timeout(grace).is_none() {
        tell!("husk: the guest did not turn itself off after the command, and is turned off\n");
        kill(vm);
    }
}

/// The exit status for a command that did not run.
pub fn status_of_error(error: &ExecError) -> u8 {
    match error {
        ExecError::NotFound(_) => NOT_FOUND,
        ExecError::NotExecutable { .. } => NOT_EXECUTABLE,
        ExecError::VmGone { by: EndedBy::Death, .. } => GUEST_DIED,
        ExecError::VmGone { by: EndedBy::Kill, .. } => KILLED,
        _ => CANNOT,
    }
}

fn timed_out(vm: &Arc<RunningVm>, limits: &Limits) -> u8 {
    let limit = limits.timeout.map_or(Duration::ZERO, |(limit, _)| limit);
    end(vm, TIMED_OUT.into());
    tell!("husk: the command still ran after {} s\n", limit.as_secs_f64());
    TIMED_OUT
}

/// Whether the command cannot be run as it was given, in a guest with which all is well.
fn is_commands(error: &ExecError) -> bool {
    matches!(
        error,
        ExecError::NotFound(_)
            | ExecError::NotExecutable { .. }
            | ExecError::Directory { .. }
            | ExecError::User { .. }
            | ExecError::Nul(_)
            | ExecError::Variable(_)
            | ExecError::TooLong(_)
    )
}

/// Says why the command did not run, or not to its end, and gives the exit status.
fn failed(error: &ExecError, vm: &Arc<RunningVm>, course: &Course, limits: &Limits) -> u8 {
    terminal::restore();
    let status = match error {
        ExecError::Ended(outcome) => match &**outcome {
            Outcome::PowerOff | Outcome::Reboot | Outcome::Exit(_) => CANNOT,
            // By `husk kill`, or by `husk stop` after its grace.
            Outcome::Killed if course.signal().is_none() => {
                tell!("husk: {error}\n");
                return KILLED;
            }
            outcome => return conclude(outcome, course.signal()),
        },
        ExecError::NotReady(_) | ExecError::NotStarted
            if limits.left().is_some_and(|left| left.is_zero()) =>
        {
            TIMED_OUT
        }
        error => status_of_error(error),
    };
    tell!("husk: {error}\n");
    // The loss of the agent has told the console itself.
    if !is_commands(error) && !matches!(error, ExecError::AgentLost { .. }) {
        report_console(&vm.console_tail(CONSOLE_LINES));
    }
    end(vm, status.into());
    status
}

/// The escapes' way to the thread that does what they ask, and whether that was the VM's end.
type Escapes = (Sender<Escape>, Arc<AtomicBool>);

fn attend_escapes(vm: Arc<RunningVm>) -> std::io::Result<Escapes> {
    let (typed, escapes) = channel();
    let is_end = life::attend_escapes(escapes, vm)?;
    Ok((typed, is_end))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_was_killed_for_want_of_memory_is_told_whatever_the_commands_status_is() {
        let told = |status, starved| {
            super::starved(&End { status, starved, is_whole: true }).unwrap_or_default()
        };
        let killed = |out_of_memory| Status::Signaled { signal: 9, out_of_memory };
        assert_eq!(told(killed(true), 1), "the command");
        // By an agent that does not count.
        assert_eq!(told(killed(true), 0), "the command");
        assert_eq!(told(killed(false), 1), "a process while the command ran");
        assert_eq!(told(Status::Exited(0), 2), "2 processes while the command ran");
        assert_eq!(told(Status::Exited(1), 0), "");
    }

    #[test]
    fn a_vm_is_kept_for_an_error_of_its_commands_and_for_none_of_its_own() {
        let name = || "it".to_owned();
        let source = || std::io::Error::from_raw_os_error(libc::EACCES);
        for error in [
            ExecError::NotFound(name()),
            ExecError::NotExecutable { command: name(), source: source() },
            ExecError::Directory { directory: name(), source: source() },
            ExecError::User { user: name(), source: source() },
            ExecError::Nul(name()),
        ] {
            assert!(is_commands(&error), "{error}");
        }
        let ended = ExecError::Ended(Box::new(Outcome::PowerOff));
        let lost = ExecError::AgentLost { console: String::new() };
        for error in [ended, lost, ExecError::NotStarted, ExecError::NotReady(Duration::ZERO)] {
            assert!(!is_commands(&error), "{error}");
        }
    }

    #[test]
    fn a_vm_that_has_gone_gives_its_command_the_status_of_what_ended_it() {
        let status =
            |by| status_of_error(&ExecError::VmGone { how: None, by, console: String::new() });
        assert_eq!(status(EndedBy::Kill), 137);
        assert_eq!(status(EndedBy::Death), 134);
        assert_eq!(status(EndedBy::Other), 125);
    }
}
