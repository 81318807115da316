//! `husk exec`: a command in a VM that has a name, whose streams, signals and status are husk's.

use std::ffi::OsString;
use std::sync::mpsc::RecvTimeoutError;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use clap::Args;
use husk::GuestChild;
use husk::error::{ExecError, NameError};
use husk::named;

use super::awaited::Awaited;
use super::command::{self, Surroundings, attach, for_terminal, status_of, status_of_error};
use super::life::watch;
use super::signals::Signals;
use super::{Error, terminal};

/// Run a command in a VM that has a name
#[derive(Args)]
pub struct Exec {
    /// The VM
    name: String,
    #[command(flatten)]
    surroundings: Surroundings,
    /// The command [default: a shell]
    #[arg(last = true, value_name = "CMD")]
    command: Vec<OsString>,
}

impl Exec {
    /// Runs the command to its end and returns its exit status.
    pub fn execute(self) -> Result<u8, Error> {
        let vm = named::find(&self.name)?;
        let command = self.surroundings.command(&self.command, command::Place::default())?;
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
        let ended = attached.wait(|| None, Duration::ZERO);
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
    // Longer than its husk is waited for, of which there is something else to say.
    const UNTOLD: Duration = Duration::from_secs(6);
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
