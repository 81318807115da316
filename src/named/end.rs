//! The end of a named VM as others hear of it: by a connection that is answered then, and why it came.

use std::io::{self, BufRead, BufReader, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::LINE_MAX;
use super::error::NameError;
use crate::guest::error::{EndedBy, ExecError, told};
use crate::outcome::Outcome;

/// Why the agent of a VM does not answer any more. The console's last lines follow it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Why {
    /// How the VM has ended, if it has.
    pub ended: Option<String>,
    /// The guest died.
    pub died: bool,
    /// The host ended it. An older husk does not say.
    #[serde(default)]
    pub killed: bool,
}

impl Why {
    /// Of a VM that has come to that, or has not ended.
    pub fn of(outcome: Option<&Outcome>) -> Why {
        let died = matches!(outcome, Some(Outcome::Panic { .. } | Outcome::Crash { .. }));
        let killed = matches!(outcome, Some(Outcome::Killed));
        Why { ended: outcome.map(|outcome| told(outcome).to_owned()), died, killed }
    }

    /// Of a VM whose husk has gone without a word, as nothing goes that is not killed.
    fn unsaid() -> Why {
        Why { ended: Some("its husk was killed".to_owned()), died: false, killed: true }
    }

    /// In an error's words.
    pub fn error(self, console: String) -> ExecError {
        let by = self.by();
        match self.ended {
            Some(_) => ExecError::VmGone { how: self.ended, by, console },
            None => ExecError::AgentLost { console },
        }
    }

    /// Whose doing it was.
    pub fn by(&self) -> EndedBy {
        match (self.died, self.killed) {
            (true, _) => EndedBy::Death,
            (false, true) => EndedBy::Kill,
            (false, false) => EndedBy::Other,
        }
    }
}

/// A connection that tells when a VM ends.
#[derive(Debug)]
pub struct End {
    name: String,
    socket: UnixStream,
}

impl End {
    /// Of the VM called `name`, whose husk has said over `socket` that it will tell.
    pub(super) fn of(name: String, socket: UnixStream) -> End {
        End { name, socket }
    }

    /// Waits for it, and gives the status that the VM was concluded with.
    ///
    /// # Errors
    /// When its husk ends without a word.
    pub fn status(self) -> Result<u8, NameError> {
        let mut line = String::new();
        // An error is an end without a word as well.
        let _ = BufReader::new((&self.socket).take(LINE_MAX)).read_line(&mut line);
        match (line.trim_end(), line.trim_end().parse()) {
            (_, Ok(status)) => Ok(status),
            ("", _) => Err(NameError::NoStatus(self.name)),
            _ => Err(NameError::Nonsense(self.name)),
        }
    }

    /// Waits for it, at most for `patience`, and gives the reason; `None` when it is not told.
    pub(super) fn why(&self, patience: Duration) -> Option<Why> {
        self.socket.set_read_timeout(Some(patience)).ok()?;
        let mut lines = BufReader::new((&self.socket).take(LINE_MAX)).lines();
        let told = match (lines.next(), lines.next()) {
            (None, _) => return Some(Why::unsaid()),
            (Some(Err(e)), _) if e.kind() == io::ErrorKind::ConnectionReset => {
                return Some(Why::unsaid());
            }
            // An older husk says nothing but the status.
            (_, told) => told?.ok()?,
        };
        serde_json::from_str(&told).ok()
    }
}

impl AsFd for End {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
