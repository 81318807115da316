//! A command's life on the command line: from the guest's start to husk's exit status.

use std::io::IsTerminal;
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use husk::error::ExecError;
use husk::{Escape, GuestChild, GuestCommand, Outcome, RunningVm, Status, WindowSize};

use super::forward::Forward;
use super::streams::{self, To};
use crate::cli::awaited::Awaited;
use crate::cli::run::{TIMED_OUT, conclude, end, kill, report_console, watch};
use crate::cli::{CANNOT, Error, terminal};

/// Exit statuses of a shell for a command that cannot be run.
const NOT_EXECUTABLE: u8 = 126;
const NOT_FOUND: u8 = 127;
/// How long a guest may take to be ready when no --timeout says less.
const BOOT: Duration = Duration::from_secs(120);
/// Lines of the console that are shown when something failed.
const CONSOLE_LINES: usize = 40;
/// How long what the command wrote is waited for after its end without --timeout: for ever, nearly.
const EVER: Duration = Duration::from_secs(1 << 32);

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

/// Runs `command` in `vm` to its end, turns the VM off, and gives the exit status.
///
/// # Errors
/// What husk itself could not do.
pub fn run(
    vm: &Arc<RunningVm>,
    command: GuestCommand,
    signals: &Forward,
    resized: Awaited,
    limits: &Limits,
) -> Result<u8, Error> {
    signals.has_vm(vm.clone());
    let interactive = std::io::stdin().is_terminal() && std::io::stdout().is_terminal();
    let size = terminal::size().unwrap_or(WindowSize { columns: 80, rows: 24 });
    let command = match interactive {
        true => {
            let command = command.terminal(size);
            match std::env::var_os("TERM") {
                Some(kind) => command.env("TERM", kind),
                None => command,
            }
        }
        false => command,
    };
    let started = vm
        .wait_ready(limits.left().map_or(BOOT, |left| left.min(BOOT)))
        .and_then(|()| vm.spawn(&command));
    let mut child = match started {
        Ok(child) => child,
        Err(e) => return Ok(failed(&e, vm, signals, limits)),
    };
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let child = Arc::new(child);
    signals.has_child(child.clone());
    let mut escapes = None;
    if interactive {
        terminal::make_raw();
        attend_window(resized, &child)?;
        escapes = Some(attend_escapes(vm.clone())?);
    }
    let (done, all_done) = channel();
    let mut shown = 0;
    for (from, to) in [(stdout, To::Stdout), (stderr, To::Stderr)] {
        if let Some(from) = from {
            streams::show(from, to, done.clone())?;
            shown += 1;
        }
    }
    if let Some(stdin) = stdin {
        streams::feed(stdin, escapes)?;
    }

    let status = match limits.left() {
        None => child.wait().map(Some),
        Some(left) => child.wait_timeout(left),
    };
    let deadline = limits.left();
    let in_time = !matches!(status, Ok(None))
        && (0..shown).all(|_| all_done.recv_timeout(deadline.unwrap_or(EVER)).is_ok());
    terminal::restore();
    let status = match status {
        Ok(Some(status)) if in_time => status,
        Err(e) => return Ok(failed(&e, vm, signals, limits)),
        Ok(_) => return Ok(timed_out(vm, limits)),
    };
    if let Status::Signaled { out_of_memory: true, .. } = status {
        tell!(
            "husk: the guest ran out of memory, and its kernel killed the command: give the guest more \
             with --memory\n"
        );
    }
    conclude_vm(vm, limits.grace);
    Ok(status.code())
}

/// Turns the VM off in good order; at once if that takes too long.
fn conclude_vm(vm: &Arc<RunningVm>, grace: Duration) {
    vm.ask_to_shut_down();
    if vm.wait_timeout(grace).is_none() {
        tell!("husk: the guest did not turn itself off after the command, and is turned off\n");
        kill(vm);
    }
}

fn timed_out(vm: &Arc<RunningVm>, limits: &Limits) -> u8 {
    let limit = limits.timeout.map_or(Duration::ZERO, |(limit, _)| limit);
    end(vm, TIMED_OUT.into());
    tell!("husk: the command still ran after {} s\n", limit.as_secs_f64());
    TIMED_OUT
}

/// Says why the command did not run, or not to its end, and gives the exit status.
fn failed(error: &ExecError, vm: &Arc<RunningVm>, signals: &Forward, limits: &Limits) -> u8 {
    terminal::restore();
    let status = match error {
        ExecError::Ended(outcome) => match &**outcome {
            Outcome::PowerOff | Outcome::Reboot | Outcome::Exit(_) => CANNOT,
            Outcome::Killed => return conclude(&Outcome::Killed, signals.signal()),
            outcome => return conclude(outcome, signals.signal()),
        },
        ExecError::NotReady(_) if limits.left().is_some_and(|left| left.is_zero()) => TIMED_OUT,
        ExecError::NotFound(_) => NOT_FOUND,
        ExecError::NotExecutable { .. } => NOT_EXECUTABLE,
        _ => CANNOT,
    };
    tell!("husk: {error}\n");
    let is_commands = matches!(
        error,
        ExecError::NotFound(_)
            | ExecError::NotExecutable { .. }
            | ExecError::Directory { .. }
            | ExecError::User { .. }
            | ExecError::Nul(_)
            | ExecError::Variable(_)
            | ExecError::TooLong(_)
            // It has told the console itself.
            | ExecError::AgentLost { .. }
    );
    if !is_commands {
        report_console(&vm.console_tail(CONSOLE_LINES));
    }
    end(vm, status.into());
    status
}

/// Tells the command's terminal its size whenever that changes, as long as there is a command.
fn attend_window(resized: Awaited, child: &Arc<GuestChild>) -> std::io::Result<()> {
    let child = Arc::downgrade(child);
    watch(move || {
        loop {
            resized.wait();
            let Some(child) = child.upgrade() else { return };
            if let Some(size) = terminal::size() {
                // After its end it has none.
                let _ = child.resize(size);
            }
        }
    })
}

fn attend_escapes(vm: Arc<RunningVm>) -> std::io::Result<std::sync::mpsc::Sender<Escape>> {
    let (typed, escapes) = channel();
    crate::cli::run::attend_escapes(escapes, vm)?;
    Ok(typed)
}
