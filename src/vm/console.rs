//! The serial console's connection to the host.
//!
//! Made when nothing else can fail any more, so that a start that fails leaves no file behind and
//! empties none.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use husk_devices::serial::{self, ConsoleStreams, ConsoleTask, Line};
use husk_devices::worker::{Task, Worker};

use super::error::{VmError, host};
use crate::config::{ConsoleConfig, VmConfig};

/// What a console is to be connected to.
pub(super) enum Source {
    /// What the configuration names.
    Config(ConsoleConfig),
    /// Streams of the embedder's.
    Streams(ConsoleStreams),
}

/// A console that is connected.
pub(super) struct Console {
    task: Task<ConsoleTask>,
    /// The pseudo-terminal to attach to, and its other side, kept open so that it is not hung up
    /// while nobody is attached.
    pty: Option<(PathBuf, OwnedFd)>,
}

impl Console {
    /// Connects `line` to `source`; `worker` carries the bytes.
    ///
    /// # Errors
    /// When what `source` names cannot be opened, or the worker has ended.
    pub fn connect(source: Source, line: Arc<dyn Line>, worker: &Worker) -> Result<Self, VmError> {
        let (streams, pty) = match source {
            Source::Streams(streams) => (streams, None),
            Source::Config(config) => open(&config)?,
        };
        let task = worker.handle().add(ConsoleTask::new(line, streams))?;
        Ok(Self { task, pty })
    }

    /// The pseudo-terminal to attach to.
    pub fn path(&self) -> Option<&Path> {
        self.pty.as_ref().map(|(path, _)| path.as_path())
    }

    /// Writes what is left, as long as somebody reads it.
    pub fn close(self) {
        const PATIENCE: Duration = Duration::from_secs(1);
        const LIMIT: Duration = Duration::from_secs(3);
        if let Some(task) = self.task.take() {
            task.finish(PATIENCE, LIMIT);
        }
    }
}

/// Refuses a file for what the guest writes (its console, a port) that is one of the files the VM is
/// made of: it would be emptied. Called before any of them is opened.
///
/// # Errors
/// That refusal.
pub(super) fn check(config: &VmConfig) -> Result<(), VmError> {
    let disks = config.disks.iter().map(|disk| disk.path.as_path());
    let pmem = config.pmem.iter().map(|pmem| pmem.path.as_path());
    let kernel = [config.kernel.as_path()].into_iter().chain(config.initrd.as_deref());
    match config.written_over(disks.chain(pmem).chain(kernel)) {
        Some((what, written, other)) => {
            let source = io::Error::other(format!("the VM needs it as {}", other.display()));
            Err(host(format!("{what}: cannot write to {}", written.display()))(source))
        }
        None => Ok(()),
    }
}

type Opened = (ConsoleStreams, Option<(PathBuf, OwnedFd)>);

fn open(config: &ConsoleConfig) -> Result<Opened, VmError> {
    let streams = match config {
        ConsoleConfig::None => ConsoleStreams::default(),
        ConsoleConfig::Stdio => stdio_streams().map_err(host("console"))?,
        ConsoleConfig::File(path) => {
            // Non-blocking, or a FIFO without a reader would hang here.
            let file = OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(true)
                .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
                .open(path)
                .map_err(host(format!("console: cannot write to {}", path.display())))?;
            ConsoleStreams { output: Some(file), ..Default::default() }
        }
        ConsoleConfig::Pty => {
            let (streams, path, other) = serial::open_pty().map_err(host("console: pty"))?;
            return Ok((streams, Some((path, other))));
        }
    };
    Ok((streams, None))
}

/// The process' standard input and output, without an escape key.
///
/// # Errors
/// The host's, when one of them is closed.
pub fn stdio_streams() -> io::Result<ConsoleStreams> {
    let input = io::stdin().as_fd().try_clone_to_owned()?;
    let output = io::stdout().as_fd().try_clone_to_owned()?;
    Ok(ConsoleStreams {
        input: Some(ConsoleStreams::private_input(input)?),
        output: Some(ConsoleStreams::private_output(output)?),
        escapes: None,
    })
}
