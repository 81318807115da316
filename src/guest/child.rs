//! A command that runs in a guest, as an embedder holds it: like [`std::process::Child`].

use std::fmt;
use std::io::{self, Read, Write};
use std::sync::Arc;
use std::time::{Duration, Instant};

use husk_devices::virtio::console::tty::WindowSize;
use husk_guest_protocol::{Frame, stream};

use super::error::ExecError;
use super::session::{End, Session};

/// Tells why a guest does not answer any more.
pub(crate) type Explain = Arc<dyn Fn() -> ExecError + Send + Sync>;

/// How a command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// By itself.
    Exited(u8),
    /// By a signal.
    Signaled {
        /// Its number, not 0.
        signal: u8,
        /// The guest's kernel sent it because memory ran out.
        out_of_memory: bool,
    },
}

impl Status {
    /// Whether it ended by itself with status 0.
    pub fn success(self) -> bool {
        self == Status::Exited(0)
    }

    /// As a shell tells it in `$?`: 128 + n for signal n, and never 0 for one.
    pub fn code(self) -> u8 {
        match self {
            Status::Exited(status) => status,
            Status::Signaled { signal, .. } => 128u8.saturating_add(signal),
        }
    }
}

/// A command that runs in a guest, or has ended. Dropping it ends the command.
pub struct GuestChild {
    session: Arc<Session>,
    explain: Explain,
    /// What the command reads, until it is taken. Dropping it is the end of the command's input.
    pub stdin: Option<ChildInput>,
    /// What the command writes, until it is taken. One that nobody reads holds the command up when it
    /// is full; one that is dropped is a pipe without a reader.
    pub stdout: Option<ChildOutput>,
    /// The same, for its errors. Empty when it has a terminal.
    pub stderr: Option<ChildOutput>,
}

impl fmt::Debug for GuestChild {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GuestChild").finish_non_exhaustive()
    }
}

impl GuestChild {
    pub(crate) fn new(session: Arc<Session>, explain: Explain) -> GuestChild {
        let output = |name| Some(ChildOutput { session: session.clone(), name });
        GuestChild {
            stdin: Some(ChildInput { session: session.clone() }),
            stdout: output(stream::STDOUT),
            stderr: output(stream::STDERR),
            session,
            explain,
        }
    }

    /// Waits for the command's end; what it wrote is still to be read then.
    ///
    /// # Errors
    /// When the guest has gone before.
    pub fn wait(&self) -> Result<Status, ExecError> {
        self.conclude(self.session.wait(None).unwrap_or(End::Lost))
    }

    /// Waits for the command's end, at most so long. `None` when it still runs.
    ///
    /// # Errors
    /// When the guest has gone before.
    pub fn wait_timeout(&self, limit: Duration) -> Result<Option<Status>, ExecError> {
        let deadline = Instant::now().checked_add(limit);
        self.session.wait(deadline).map(|end| self.conclude(end)).transpose()
    }

    /// Whether it ends in that time.
    pub(super) fn ends_within(&self, limit: Option<Duration>) -> bool {
        let deadline = limit.and_then(|limit| Instant::now().checked_add(limit));
        self.session.wait(deadline).is_some()
    }

    fn conclude(&self, end: End) -> Result<Status, ExecError> {
        match end {
            End::Exited(status) => Ok(Status::Exited(status)),
            End::Signaled(signal, out_of_memory) => Ok(Status::Signaled { signal, out_of_memory }),
            End::Lost => Err((self.explain)()),
            End::Cannot(..) | End::Late | End::Nonsense => Err(ExecError::Protocol),
        }
    }

    /// How many processes the guest's kernel ended because memory ran out while the command ran: its own, or
    /// another's that ran beside it. Known when it has ended; 0 with an agent that does not tell, which one in
    /// a guest with an init of its own may be.
    pub fn killed_for_memory(&self) -> u32 {
        self.session.starved()
    }

    /// Sends the command, and all others of its process group, the signal with this number.
    ///
    /// # Errors
    /// `BrokenPipe` after its end.
    pub fn signal(&self, signal: u8) -> io::Result<()> {
        self.session.say(Frame::Signal(signal))
    }

    /// Ends the command at once.
    pub fn kill(&self) {
        self.session.cut();
    }

    /// Tells the command's terminal its size.
    ///
    /// # Errors
    /// `BrokenPipe` after its end.
    pub fn resize(&self, size: WindowSize) -> io::Result<()> {
        self.session.say(Frame::Resize(size.columns, size.rows))
    }
}

impl Drop for GuestChild {
    fn drop(&mut self) {
        self.session.cut();
    }
}

/// A command's standard input. A write waits until the guest takes it.
#[derive(Debug)]
pub struct ChildInput {
    session: Arc<Session>,
}

impl Write for ChildInput {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.session.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for ChildInput {
    fn drop(&mut self) {
        // After its end nobody needs to be told.
        let _ = self.session.say(Frame::InputEnd);
    }
}

/// A command's standard output or standard error.
#[derive(Debug)]
pub struct ChildOutput {
    session: Arc<Session>,
    name: u8,
}

impl Read for ChildOutput {
    fn read(&mut self, room: &mut [u8]) -> io::Result<usize> {
        Ok(self.session.read(self.name, room))
    }
}

impl Drop for ChildOutput {
    fn drop(&mut self) {
        self.session.close(self.name);
    }
}
