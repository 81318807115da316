//! `husk ps`, `exec`, `cp`, `logs`, `wait`, `stop` and `kill`: VMs that run with a name.

use std::ffi::OsString;
use std::fmt::Write as _;
use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;
use std::sync::mpsc::RecvTimeoutError;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

use clap::Args;
use husk::GuestChild;
use husk::error::{ExecError, NameError};
use husk::named::{self, LogReader, Remote};

use super::awaited::Awaited;
use super::exec::{self, Surroundings, attach, for_terminal, status_of, status_of_error};
use super::life::watch;
use super::signals::Signals;
use super::stdout::{nobody_reads, print};
use super::values::parse_seconds;
use super::{Error, terminal};

/// What a VM that did not stop in time leaves as exit status.
const STILL_THERE: u8 = 1;

/// List the VMs that have a name
#[derive(Args)]
pub struct Ps {
    /// Print them as JSON
    #[arg(long)]
    json: bool,
    /// List those that have ended, too, as far as they were detached and are remembered
    #[arg(long, conflicts_with = "json")]
    all: bool,
}

impl Ps {
    /// Prints the list.
    pub fn execute(self) -> Result<u8, Error> {
        let all = named::list()?;
        if self.json {
            print(&(serde_json::to_string_pretty(&all)? + "\n"))?;
            return Ok(0);
        }
        let now = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default().as_secs();
        let mut text = format!("{:<20} {:>8} {:>10}  KERNEL\n", "NAME", "PID", "SECONDS");
        for vm in all {
            let (age, kernel) = match vm.answers {
                true => (now.saturating_sub(vm.since).to_string(), &vm.kernel[..]),
                false => ("-".to_owned(), "(does not answer)"),
            };
            writeln!(text, "{:<20} {:>8} {age:>10}  {kernel}", vm.name, vm.pid)?;
        }
        for vm in if self.all { named::ended()? } else { Vec::new() } {
            let age = vm.ended.map(|ended| ended.saturating_sub(vm.since).to_string());
            let how = match vm.status {
                Some(status) => format!("ended with {status}"),
                None => "its husk was killed".to_owned(),
            };
            let age = age.as_deref().unwrap_or("-");
            writeln!(text, "{:<20} {:>8} {age:>10}  ({how})", vm.name, "-")?;
        }
        print(&text)?;
        Ok(0)
    }
}

/// Run a command in a VM that has a name
#[derive(Args)]
pub struct ExecIn {
    /// The VM
    name: String,
    #[command(flatten)]
    surroundings: Surroundings,
    /// The command [default: a shell]
    #[arg(last = true, value_name = "CMD")]
    command: Vec<OsString>,
}

impl ExecIn {
    /// Runs the command to its end and returns its exit status.
    pub fn execute(self) -> Result<u8, Error> {
        let vm = named::find(&self.name)?;
        let command = self.surroundings.command(&self.command, exec::Place::default())?;
        let (command, interactive) = for_terminal(command, false);
        let _restore = terminal::Restore;
        let resized = Awaited::block(libc::SIGWINCH)?;
        let begun = Arc::new(OnceLock::new());
        pass_on(Signals::block()?, begun.clone())?;
        let child = match told_of_a_wait(&self.name, || vm.spawn(&command)) {
            Ok(child) => child,
            Err(NameError::Exec(e)) => return Ok(failed(&e)),
            Err(e) => return Err(e.into()),
        };
        let attached = attach(child, interactive.then_some(resized), None, |_| Ok(()))?;
        let _ = begun.set(attached.child.clone());
        let ended = attached.wait(|| None);
        terminal::restore();
        match ended {
            Ok(Some(end)) => Ok(status_of(&end)),
            // There is no limit of time.
            Ok(None) => Ok(super::CANNOT),
            Err(e) => Ok(failed(&e)),
        }
    }
}

/// Does what waits for the guest's agent, and says so when it takes long: it may have to come up first.
fn told_of_a_wait<T>(name: &str, work: impl FnOnce() -> T) -> T {
    const UNTOLD: Duration = Duration::from_secs(3);
    let (done, waited) = std::sync::mpsc::channel::<()>();
    let name = name.to_owned();
    // Who cannot be told waits all the same.
    let _ = watch(move || {
        if waited.recv_timeout(UNTOLD) == Err(RecvTimeoutError::Timeout) {
            tell!(
                "husk: the agent in the guest of {name} has not answered yet, and is waited for\n"
            );
        }
    });
    let result = work();
    drop(done);
    result
}

fn failed(error: &ExecError) -> u8 {
    tell!("husk: {error}\n");
    status_of_error(error)
}

/// The first signal is the command's, once it has begun; with a second one it is killed, and husk ends.
fn pass_on(signals: Signals, begun: Arc<OnceLock<Arc<GuestChild>>>) -> std::io::Result<()> {
    watch(move || {
        let signal = signals.wait();
        let Some(child) = begun.get() else {
            terminal::restore();
            std::process::exit(128 + signal);
        };
        let (sending, number) = (child.clone(), u8::try_from(signal).unwrap_or_default());
        let sent = watch(move || {
            // After its end it needs none.
            let _ = sending.signal(number);
        });
        if sent.is_ok() {
            signals.wait();
        }
        child.kill();
        terminal::restore();
        std::process::exit(128 + signal);
    })
}

/// Copy a file or a directory into a VM that has a name, or out of one
///
/// What is copied to a directory that is there goes into it, by its name; of DIR/. only what is in it. Links
/// in a directory stay links; one that is named itself is followed.
#[derive(Args)]
pub struct Cp {
    /// NAME:PATH in a VM, or a path here
    from: OsString,
    /// NAME:PATH in a VM, or a path here; one of both is in a VM
    to: OsString,
}

impl Cp {
    /// Copies.
    pub fn execute(self) -> Result<u8, Error> {
        match (Place::of(&self.from), Place::of(&self.to)) {
            (Place::Here(from), Place::There(name, to)) => {
                named::find(&name)?.copy_in(&from, &to)?;
            }
            (Place::There(name, from), Place::Here(to)) => {
                named::find(&name)?.copy_out(&from, &to)?;
            }
            _ => {
                return Err(
                    "one of both is a file or directory in a VM, NAME:PATH, and the other one here"
                        .into(),
                );
            }
        }
        Ok(0)
    }
}

enum Place {
    Here(PathBuf),
    There(String, PathBuf),
}

impl Place {
    /// With a colon, and a name before it, it is there; a path here that has one begins with `./`.
    fn of(text: &OsString) -> Place {
        let split = text.to_str().and_then(|text| text.split_once(':'));
        match split {
            Some((name, path)) if named::check(name).is_ok() => {
                Place::There(name.to_owned(), path.into())
            }
            _ => Place::Here(text.into()),
        }
    }
}

/// Print what a VM that has a name wrote: one that was detached all that is kept, of another the end of its
/// console
#[derive(Args)]
pub struct Logs {
    /// The VM
    name: String,
    /// Go on with what it writes, until its end
    #[arg(long, short)]
    follow: bool,
    /// Print the end of its console, also of one that was detached
    #[arg(long, conflicts_with = "follow")]
    console: bool,
}

impl Logs {
    /// Prints them.
    pub fn execute(self) -> Result<u8, Error> {
        let kept = if self.console { None } else { LogReader::open(&self.name)? };
        let Some(mut log) = kept else {
            let vm = named::find(&self.name)?;
            if self.follow {
                return Err(format!(
                    "{}: it was not started with --detach, and what it writes goes elsewhere",
                    self.name
                )
                .into());
            }
            let mut console = super::stderr::plain(&vm.log()?.replace('\r', ""));
            // As it is, but the prompt of whoever looks at it is to stand in a line of its own.
            if io::stdout().is_terminal() && !console.is_empty() && !console.ends_with('\n') {
                console.push('\n');
            }
            print(&console)?;
            return Ok(0);
        };
        // None: it has ended, which it may do also while it is asked.
        let end = match self.follow.then(|| named::find(&self.name)?.end()) {
            Some(Ok(end)) => Some(end),
            None => None,
            Some(Err(NameError::Unknown(_) | NameError::NoStatus(_) | NameError::Nonsense(_))) => {
                None
            }
            // What there is is of use also when it cannot be followed.
            Some(Err(e)) => {
                log.carry(show).map(|()| false).or_else(nobody_reads)?;
                return Err(e.into());
            }
        };
        let mut goes_on = true;
        while goes_on {
            goes_on = match &end {
                Some(end) => log.carry(show).and_then(|()| log.wait(end)),
                None => Ok(false),
            }
            .or_else(nobody_reads)?;
        }
        // What was written last.
        log.carry(show).map(|()| false).or_else(nobody_reads)?;
        Ok(0)
    }
}

/// Writes a part of a log: as it is, but not to a terminal, to which it could do anything.
fn show(bytes: &[u8]) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    if stdout.is_terminal() {
        let text = String::from_utf8_lossy(bytes).replace('\r', "");
        stdout.write_all(super::stderr::plain(&text).as_bytes())?;
    } else {
        stdout.write_all(bytes)?;
    }
    stdout.flush()
}

/// Wait for the end of a VM that has a name, and print its exit status
#[derive(Args)]
pub struct Wait {
    /// The VM. Of one that was detached the status is known after its end, too
    name: String,
}

impl Wait {
    /// Prints it.
    pub fn execute(self) -> Result<u8, Error> {
        let status = named::wait(&self.name)?;
        print(&format!("{status}\n"))?;
        Ok(0)
    }
}

/// Turn off VMs that have a name, in good order
#[derive(Args)]
pub struct Stop {
    /// The VMs
    #[arg(required = true, value_name = "NAME")]
    names: Vec<String>,
    /// Seconds until one that has not turned itself off is turned off
    #[arg(long, value_name = "SECONDS", default_value = "10", value_parser = parse_seconds)]
    grace: Duration,
}

impl Stop {
    /// Turns them off, one after the other.
    pub fn execute(self) -> Result<u8, Error> {
        Ok(each(&self.names, |vm| Ok(vm.stop(self.grace)? || vm.kill()?)))
    }
}

/// Turn off VMs that have a name, at once
#[derive(Args)]
pub struct Kill {
    /// The VMs
    #[arg(required = true, value_name = "NAME")]
    names: Vec<String>,
}

impl Kill {
    /// Turns them off.
    pub fn execute(self) -> Result<u8, Error> {
        Ok(each(&self.names, Remote::kill))
    }
}

/// Ends each of them, and the others when one cannot be.
fn each(names: &[String], end: impl Fn(&Remote) -> Result<bool, NameError>) -> u8 {
    let mut status = 0;
    for name in names {
        match named::find(name).and_then(|vm| end(&vm)) {
            Ok(true) => {}
            Ok(false) => {
                tell!("husk: {name} is still there\n");
                status = status.max(STILL_THERE);
            }
            Err(e) => {
                tell!("husk: {e}\n");
                status = super::CANNOT;
            }
        }
    }
    status
}
