//! A VM of `husk run`, from its start to its end: everything that was asked for on the command line is known
//! by then.
//!
//! There are two kinds: one whose console is husk's terminal, or goes where the configuration says, and one
//! made for a command, whose streams are husk's. Both can have a name, and be detached.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use husk::config::{ConsoleConfig, VmConfig};
use husk::named::About;
use husk::timeline::{Phase, Timeline};
use husk::{ConsoleStreams, GuestChild, GuestCommand, Outcome, RunningVm, Vm};

use super::name::Name;
use crate::cli::awaited::Awaited;
use crate::cli::command;
use crate::cli::course::{Course, Way};
use crate::cli::detach::Detached;
use crate::cli::escape::{self, Escape};
use crate::cli::life::{
    Escapes, TIMED_OUT, attend_disks, attend_escapes, attend_metrics, attend_window, conclude,
    kill, report,
};
use crate::cli::signals::Signals;
use crate::cli::{Error, failed, footprint, hint, metrics, terminal};

/// A VM from here on: what it is made of, and what is asked of husk while it runs.
pub struct Session {
    pub config: VmConfig,
    /// Its start so far.
    pub timeline: Arc<Timeline>,
    /// What it is called, if it is.
    pub name: Option<String>,
    /// `--keep-on-failure`.
    pub keep: bool,
    /// `--tty`.
    pub tty: bool,
    /// Whoever started it goes on when it runs.
    pub detached: Option<Detached>,
    /// `--metrics`.
    pub metrics_path: Option<PathBuf>,
    /// `--grace`.
    pub grace: Duration,
    /// `--timeout`.
    pub timeout: Option<Duration>,
    /// `--timeline`.
    pub show: bool,
    /// The terminal is of another size.
    pub resized: Awaited,
    /// For the metrics, if they are wanted.
    pub asked: Option<Awaited>,
    /// Some disks are, perhaps.
    pub larger: Awaited,
    /// Those that ask for its end.
    pub signals: Signals,
}

impl Session {
    /// A guest for one command.
    ///
    /// # Errors
    /// What husk itself could not do.
    pub fn run_command(mut self, command: GuestCommand) -> Result<u8, Error> {
        let course = Course::begin(self.signals, self.grace, Way::Agent)?;
        if let Some(detached) = self.detached.as_mut().filter(|_| !self.tty) {
            detached.close_input()?;
        }
        let vm = Vm::with(self.config, None, self.timeline)?;
        let metrics = self.metrics_path.as_deref().map(metrics::File::make).transpose()?;
        let timeout = self.timeout.map(|limit| (limit, Instant::now()));
        let vm = Arc::new(vm.start()?);
        course.starts(vm.clone());
        attend(&vm, metrics.as_ref(), self.asked, self.larger)?;
        footprint::release();
        let words = command.arguments().iter().map(|word| word.to_string_lossy().into_owned());
        let about = About { command: Some(words.collect()), ..About::default() };
        let name = Name::take(self.name.clone(), &vm, about, self.detached.as_mut())?;
        let stopped = course.clone();
        name.on_stop(move || stopped.stop());
        // Whoever ends this first gives it up.
        course.at_last(name.giving_up());
        let job = command::Job {
            command,
            limits: command::Limits { timeout, grace: self.grace },
            resized: self.resized,
            keep: self.name.as_deref().filter(|_| self.keep),
            detached: self.detached.is_some(),
            tty: self.tty,
        };
        let has_begun = |child: &Arc<GuestChild>| {
            let child = Arc::downgrade(child);
            let resize = move |size| {
                if let Some(child) = child.upgrade() {
                    // After its end it has none.
                    let _ = child.resize(size);
                }
            };
            name.is_ready(self.detached.as_mut(), Box::new(resize))
        };
        let status = command::run(&vm, job, &course, has_begun);
        let status = status.unwrap_or_else(|e| failed(&e));
        report(self.show, metrics.as_ref(), &vm);
        name.conclude(status, self.detached);
        Ok(status)
    }

    /// A guest whose console is ours.
    ///
    /// # Errors
    /// What husk itself could not do.
    pub fn run_console(mut self) -> Result<u8, Error> {
        let course = Course::begin(self.signals, self.grace, Way::PowerButton)?;
        let reads_stdin = self.config.console == ConsoleConfig::Stdio;
        let (console, escapes) = console(&self.config)?;
        let vm = Vm::with(self.config, console, self.timeline)?;
        let metrics = self.metrics_path.as_deref().map(metrics::File::make).transpose()?;
        if escapes.is_some() {
            if terminal::is_anothers() {
                tell!(
                    "husk: this job is in the background and the terminal, its guest's console, is \
                     not: it stops until the shell's `fg` (or leave the terminal alone: \
                     </dev/null, or --console file=PATH)\n"
                );
            }
            terminal::make_raw();
        }
        let vm = Arc::new(vm.start()?);
        // Before anything that may wait: from now on a signal asks the guest.
        course.starts_alone(vm.clone());
        let name = Name::take(self.name, &vm, About::default(), self.detached.as_mut())?;
        course.at_last(name.giving_up());
        if let Some(path) = vm.console_path() {
            tell!("husk: the console is at {}\n", path.display());
        }
        let hint = escapes.is_some().then(|| hint_at_keys(&vm));
        if let Some(escapes) = escapes {
            attend_escapes(escapes, vm.clone())?;
            attend_window(self.resized, &vm)?;
        }
        attend(&vm, metrics.as_ref(), self.asked, self.larger)?;
        if let Some(detached) = self.detached.as_mut().filter(|_| !reads_stdin) {
            detached.close_input()?;
        }
        let weak = Arc::downgrade(&vm);
        let resize = move |size| {
            if let Some(vm) = weak.upgrade() {
                vm.resize_console(size);
            }
        };
        name.is_ready(self.detached.as_mut(), Box::new(resize))?;

        let outcome = wait(&vm, self.timeout);
        drop(hint);
        let ended = outcome.is_some() || kill(&vm);
        terminal::restore();
        let status = match outcome {
            Some(outcome) => conclude(&outcome, course.signal()),
            None => {
                let limit = self.timeout.unwrap_or_default();
                tell!("husk: the VM still ran after {} s\n", limit.as_secs_f64());
                TIMED_OUT
            }
        };
        report(self.show, metrics.as_ref(), &vm);
        name.conclude(status, self.detached);
        if !ended {
            std::process::exit(status.into());
        }
        Ok(status)
    }
}

/// Attends to what may be asked of husk while any VM runs.
fn attend(
    vm: &Arc<RunningVm>,
    metrics: Option<&metrics::File>,
    asked: Option<Awaited>,
    larger: Awaited,
) -> std::io::Result<()> {
    if let (Some(file), Some(asked)) = (metrics, asked) {
        attend_metrics(file.clone(), asked, vm)?;
    }
    attend_disks(larger, vm)
}

/// Tells the keys that are husk's where a guest is silent after its start: nothing on the screen would.
fn hint_at_keys(vm: &Arc<RunningVm>) -> hint::Hint {
    let vm = Arc::downgrade(vm);
    let is_first = |(phase, _): &(Phase, Instant)| *phase == Phase::FirstConsoleByte;
    let has_come = move || vm.upgrade().is_none_or(|vm| vm.timeline().marks().iter().any(is_first));
    hint::after_silence(
        "nothing has come from the guest so far; Ctrl-a x ends the VM, Ctrl-a h helps",
        has_come,
    )
}

/// Waits until the VM ends, at most for `limit`, and gives back meanwhile what only its start needed:
/// at once, and after ever longer times, for how long a guest takes to come up nobody knows.
fn wait(vm: &RunningVm, limit: Option<Duration>) -> Option<Outcome> {
    const FIRST: Duration = Duration::from_secs(1);
    let began = Instant::now();
    let mut pause = FIRST;
    loop {
        footprint::release();
        let left = limit.map(|limit| limit.saturating_sub(began.elapsed()));
        let step = left.map_or(pause, |left| left.min(pause));
        if let Some(outcome) = vm.wait_timeout(step) {
            return Some(outcome);
        }
        if left == Some(step) {
            return None;
        }
        pause = pause.saturating_mul(2);
    }
}

/// On a terminal, standard streams with the escape key; otherwise what the configuration says.
fn console(config: &VmConfig) -> Result<(Option<ConsoleStreams>, Option<Escapes>), Error> {
    use std::io::IsTerminal;
    if config.console != ConsoleConfig::Stdio || !std::io::stdin().is_terminal() {
        return Ok((None, None));
    }
    let (typed, escapes) = std::sync::mpsc::channel();
    let mut streams = husk::stdio_streams()?;
    let handler = Box::new(move |key| {
        // Nobody listens any more when the VM is ending anyway.
        let _ = Escape::of(key).map(|escape| typed.send(escape));
    });
    streams.escapes = Some(husk::Escapes { keys: escape::OWNER, handler });
    Ok((Some(streams), Some(escapes)))
}
