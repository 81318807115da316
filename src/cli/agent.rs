//! `husk agent`: the program for guests that have an init of their own, and how systemd starts it.

use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;

use clap::Args;

use super::Error;
use super::stdout::{print, was_closed};

/// How systemd starts the agent.
const UNIT: &str = include_str!("../../resources/husk-agent.service");

/// Write husk's agent, for guests with an init of their own
///
/// The agent is one static program, which needs nothing else in the guest. Its init starts it without
/// arguments, as root. The VM is started with `husk run --agent`; then `husk exec` and `husk cp` work in it.
#[derive(Args)]
pub struct Agent {
    /// Write it to this file, executable [default: standard output]
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Print the unit by which systemd starts it, as /usr/local/sbin/husk-agent
    #[arg(long, conflicts_with = "output")]
    unit: bool,
}

impl Agent {
    /// Writes one of both.
    pub fn execute(self) -> Result<u8, Error> {
        match &self.output {
            _ if self.unit => print(UNIT)?,
            Some(path) => husk::write_agent(path)
                .map_err(|e| format!("cannot write the agent to {}: {e}", path.display()))?,
            None if io::stdout().is_terminal() => {
                return Err("it is a program, and nothing for a terminal: --output FILE".into());
            }
            // All of it or an error: half a program is none.
            None if was_closed() => {
                return Err(
                    "it is written to standard output, which is closed: --output FILE".into()
                );
            }
            None => {
                let mut stdout = io::stdout().lock();
                stdout.write_all(husk::agent_program()).and_then(|()| stdout.flush())?;
            }
        }
        Ok(0)
    }
}
