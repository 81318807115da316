//! `husk logs`: what a VM that has a name wrote.

use std::io::{self, IsTerminal, Write};

use clap::Args;
use husk::error::NameError;
use husk::named::{self, LogReader};

use super::Error;
use super::stdout::{nobody_reads, print};

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
            Some(Err(
                NameError::Unknown(_)
                | NameError::Ended { .. }
                | NameError::NoStatus(_)
                | NameError::Nonsense(_),
            )) => None,
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
