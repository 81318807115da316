//! What can go wrong with commands in a guest.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use crate::outcome::{Outcome, quote};

/// The initramfs cannot be made.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the fields are the path and the cause in each")]
pub enum ImageError {
    /// The kernel has no driver for something.
    #[error(
        "kernel {}: it has no {module}, neither built in nor in {}, and needs it for {purpose}: take a \
         kernel with {option}, or name all modules of this one with --modules DIR",
        .kernel.display(), .modules.display()
    )]
    MissingDriver {
        kernel: PathBuf,
        module: &'static str,
        option: &'static str,
        purpose: &'static str,
        modules: PathBuf,
    },
    /// The kernel has no driver for something in itself, and its modules are not where they are looked for.
    #[error(
        "kernel {}: {module}, which it needs for {purpose}, is not built in, and its modules are not there{}: \
         name their directory with --modules DIR, or take a kernel with {option}=y",
        .kernel.display(), looked_for(.looked)
    )]
    NoModules {
        kernel: PathBuf,
        module: &'static str,
        option: &'static str,
        purpose: &'static str,
        looked: Vec<PathBuf>,
    },
    /// The modules or their index cannot be read.
    #[error("kernel modules: {}: {source}", .path.display())]
    Modules { path: PathBuf, r#source: io::Error },
    /// An index names a file outside of the modules' directory.
    #[error(
        "kernel modules: {}, line {line}: `{path}` does not lie in that directory: make the index anew \
         with depmod",
        .index.display()
    )]
    ModulePath { index: PathBuf, line: usize, path: String },
    /// The root cannot be written to, whoever wants to.
    #[error(
        "the guest's root is to be written to, and is {file_system}, which never is: without `:rw` what the \
         guest writes is kept in an overlay"
    )]
    OnlyRead { file_system: &'static str },
    /// The user's own initrd cannot be read.
    #[error("initrd {}: {source}", .path.display())]
    Initrd { path: PathBuf, r#source: io::Error },
    /// There is no memory for it.
    #[error("the guest's initramfs: {source}")]
    Memory { r#source: io::Error },
}

fn looked_for(places: &[PathBuf]) -> String {
    let mut places: Vec<_> = places.iter().map(|place| place.display().to_string()).collect();
    places.dedup();
    if places.is_empty() {
        String::new()
    } else {
        format!(" (looked for in {})", places.join(", "))
    }
}

/// A command could not be run in the guest, or not to its end.
#[derive(Debug, thiserror::Error)]
pub enum ExecError {
    /// The VM was not made to run commands.
    #[error(
        "the VM runs no commands: start it with one of its own (`husk run … -- CMD`), or, where its guest's \
         init starts husk's agent, with `--agent`"
    )]
    NoAgent,
    /// The guest has an init of its own, which has not started the agent in time.
    #[error(
        "no agent of husk's runs in the guest after {} s: its init has to start one, which `husk agent` \
         writes, and its kernel needs CONFIG_VIRTIO_VSOCKETS",
        tenths(.0)
    )]
    NoService(Duration),
    /// The agent was not ready in time.
    #[error("the guest was not ready to run a command after {} s", tenths(.0))]
    NotReady(Duration),
    /// The guest was ready and did not begin in time.
    #[error("the guest's agent was ready and did not begin in time")]
    NotStarted,
    /// The guest could not be set up; in its own words.
    #[error("the guest cannot be set up: {0}")]
    SetUp(String),
    /// The command does not exist in the guest.
    #[error("{name}: there is no such command in the guest", name = name(.0))]
    NotFound(String),
    /// The command exists and cannot be executed.
    #[error("{command}: it cannot be executed in the guest: {source}", command = name(command))]
    NotExecutable {
        /// The command.
        command: String,
        /// Why.
        r#source: io::Error,
    },
    /// The working directory cannot be entered.
    #[error("working directory {directory}: {source}, in the guest", directory = name(directory))]
    Directory {
        /// The directory.
        directory: String,
        /// Why.
        r#source: io::Error,
    },
    /// There is no such user or group, or the agent may not become it.
    #[error("user {user}: {source}, in the guest", user = name(user))]
    User {
        /// The user.
        user: String,
        /// Why.
        r#source: io::Error,
    },
    /// A file of the guest's cannot be read or written.
    #[error("{path}: {source}, in the guest", path = name(path))]
    GuestFile {
        /// The file.
        path: String,
        /// Why.
        r#source: io::Error,
    },
    /// What is to be copied out of the guest is neither file nor directory nor link.
    #[error("{path}: it is {what}, in the guest, which is not copied")]
    Special {
        /// Where it is.
        path: String,
        /// What it is.
        what: &'static str,
    },
    /// The guest sends a file of a name that no file is given here.
    #[error("{path}: the guest sends a file called `{name}`, which is refused")]
    BadName {
        /// What is copied.
        path: String,
        /// The name, escaped.
        name: String,
    },
    /// A file of the guest's is longer than what is taken from one.
    #[error(
        "{path}: it has more than {max} bytes, which is the most that is copied out of the guest"
    )]
    TooLarge {
        /// The file.
        path: String,
        /// The most, in bytes.
        max: u64,
    },
    /// The guest has stopped in the middle of a copy.
    #[error("{path}: the guest has sent or taken nothing more of it in {} s", .idle.as_secs_f64())]
    Stalled {
        /// The file.
        path: String,
        /// How long it was waited for.
        idle: Duration,
    },
    /// Somebody has [stopped](crate::CopyStop) the copy.
    #[error("the copy was stopped")]
    Stopped,
    /// A file of the host's cannot be read or written.
    #[error("{path}: {source}", path = .path.display())]
    HostFile {
        /// The file.
        path: PathBuf,
        /// Why.
        r#source: io::Error,
    },
    /// An argument that no command can be given.
    #[error("{0}: there is a NUL byte in it, which no command can be given")]
    Nul(String),
    /// A variable without a name.
    #[error("`{0}` is no variable of an environment: NAME=VALUE")]
    Variable(String),
    /// Arguments and environment are larger than the protocol takes.
    #[error("arguments and environment have {0} bytes; together they may have {max}",
        max = husk_guest_protocol::REQUEST_MAX)]
    TooLong(usize),
    /// The agent has no means to run it.
    #[error("the guest's agent cannot run it: {0}")]
    Agent(io::Error),
    /// Nobody listens there.
    #[error("nobody in the guest listens at vsock port {0}")]
    Refused(u32),
    /// The command ran longer than it may, and was killed.
    #[error("the command still ran after {} s", .0.as_secs_f64())]
    TimedOut(Duration),
    /// The command wrote more than was to be collected, and was killed.
    #[error("the command wrote more than {0} bytes")]
    TooMuchOutput(usize),
    /// The VM has ended before the command.
    #[error("the VM ended before the command did: {}", told(.0))]
    Ended(Box<Outcome>),
    /// The agent has gone and the VM is still there.
    #[error("the agent in the guest has gone{said}", said = said(.console))]
    AgentLost {
        /// The console's last lines.
        console: String,
    },
    /// A VM of another process has ended before the command.
    #[error("the VM has ended{how}{said}", how = told_how(.how), said = said(.console))]
    VmGone {
        /// How, if that is known.
        how: Option<String>,
        /// Whose doing that was.
        by: EndedBy,
        /// The console's last lines.
        console: String,
    },
    /// The guest says what no agent says.
    #[error("the guest does not speak the agent's protocol")]
    Protocol,
    /// The host has no means.
    #[error("{what}: {source}")]
    Host {
        /// What was tried.
        what: &'static str,
        /// Why.
        r#source: io::Error,
    },
}

/// Whose doing the end of a VM of another process was, as far as that is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EndedBy {
    /// Its guest died, by a panic of its kernel or otherwise.
    Death,
    /// The host ended it.
    Kill,
    /// The guest turned itself off, or husk could not go on; or nobody has said.
    Other,
}

/// A name as it stands in a sentence, also one that is empty.
fn name(name: &str) -> &str {
    if name.is_empty() { "''" } else { name }
}

fn told_how(how: &Option<String>) -> String {
    how.as_ref().map(|how| format!(": {how}")).unwrap_or_default()
}

fn said(console: &str) -> String {
    if console.is_empty() {
        return String::new();
    }
    format!("; its console said last:\n{}", quote(console))
}

/// Seconds, as exact as anybody wants them of a wait.
fn tenths(duration: &Duration) -> f64 {
    (duration.as_secs_f64() * 10.0).round() / 10.0
}

/// An end, in a few words.
pub(crate) fn told(outcome: &Outcome) -> &'static str {
    match outcome {
        Outcome::PowerOff => "the guest turned itself off",
        Outcome::Reboot => "the guest wanted to be restarted",
        Outcome::Exit(_) => "the guest ended itself by the debug-exit port",
        Outcome::Panic { .. } => "the guest's kernel panicked",
        Outcome::Crash { .. } => "the guest died",
        Outcome::Killed => "it was killed",
        Outcome::Failed { .. } => "husk could not go on",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_name_is_seen() {
        let words = "'': there is no such command in the guest";
        assert_eq!(ExecError::NotFound(String::new()).to_string(), words);
        assert!(ExecError::NotFound("x".to_owned()).to_string().starts_with("x: there"));
    }

    #[test]
    fn a_place_is_named_once() {
        let places = ["/a", "/lib", "/lib"].map(PathBuf::from);
        assert_eq!(looked_for(&places), " (looked for in /a, /lib)");
    }

    #[test]
    fn a_wait_is_told_in_tenths_of_a_second() {
        let error = ExecError::NotReady(Duration::from_nanos(2_976_857_145)).to_string();
        assert!(error.ends_with("after 3 s"), "{error}");
    }
}
