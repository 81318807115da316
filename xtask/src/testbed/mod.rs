//! The testbed: an outer machine under QEMU's TCG whose /dev/kvm runs kernel code natively, on a
//! machine that has no such thing. A command runs in it as it would outside (same files, same
//! directory, its own exit status), except that what it writes stays in RAM unless it is written
//! to the results directory. See `resources/README.md`.

mod image;
mod job;
mod monitor;
mod qemu;
mod session;
mod stream;
mod terminal;
#[cfg(test)]
mod tests;

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::host;

/// Exit status when the outer machine stalled, twice.
pub const STALLED: u8 = 121;
/// Exit status when the time limit passed, as of timeout(1).
pub const TIMED_OUT: u8 = 124;

/// What to run and in what machine.
#[derive(Clone)]
pub struct Options {
    /// The command and its arguments.
    pub command: Vec<OsString>,
    /// The directory it starts in; the same path as outside.
    pub directory: PathBuf,
    /// More environment for it; the later entry of one name wins.
    pub env: Vec<(OsString, OsString)>,
    /// The whole run may take so long.
    pub timeout: Duration,
    /// So long without output and heartbeat is a stall. Slow storage or a busy machine is not.
    pub stall: Duration,
    /// Memory of the outer machine in MiB, its RAM disks included.
    pub memory_mib: u64,
    /// Its processors.
    pub smp: u32,
    /// Its processor model.
    pub cpu: String,
    /// Time is a count of instructions: for measurements. Single-threaded, one processor.
    pub icount: bool,
    /// Pass our standard input (else it reads the end of file at once).
    pub stdin: bool,
    /// A stall is followed by one fresh start, unless input has been consumed.
    pub retry: bool,
    /// The emulator.
    pub qemu: PathBuf,
}

impl Options {
    /// A run of `command` in the current directory with the ordinary machine.
    pub fn new(command: Vec<OsString>) -> Result<Self> {
        Ok(Self {
            command,
            directory: std::env::current_dir().context("finding the current directory")?,
            env: Vec::new(),
            timeout: Duration::from_secs(1800),
            stall: Duration::from_secs(60),
            memory_mib: 4096,
            // Two run guests no faster and lock up more often: TCG's threads race in what they emulate.
            smp: 1,
            cpu: "qemu64,+svm,+npt".to_owned(),
            icount: false,
            stdin: false,
            retry: true,
            qemu: "qemu-system-x86_64".into(),
        })
    }
}

/// How a run ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// The command's exit status (128 + n for a signal n).
    Exited(u8),
    /// The time limit passed.
    TimedOut,
    /// The outer machine stalled or died; the text says what was seen. Not the command's failure.
    Stalled(String),
    /// Nobody reads our output any more.
    Unread,
    /// The user ended it from the terminal.
    HungUp,
}

impl End {
    /// The exit status of ours that says this.
    pub fn status(&self) -> u8 {
        match self {
            Self::Exited(status) => *status,
            Self::TimedOut => TIMED_OUT,
            Self::Stalled(_) => STALLED,
            Self::Unread => 141,
            Self::HungUp => 130,
        }
    }
}

/// A run that took place.
#[derive(Debug)]
pub struct Outcome {
    /// How it ended.
    pub end: End,
    /// From the start of QEMU to the first heartbeat.
    pub up: Option<Duration>,
    /// From the start of QEMU to its end.
    pub total: Duration,
    /// Times that it stood still until it was woken.
    pub revivals: u32,
    /// Some of our standard input has been read, so that a second run would not see it.
    pub stdin_consumed: bool,
}

/// Runs a command in the testbed, making first what is missing of it. A stall is said on standard
/// error and retried once.
///
/// # Errors
/// When there is no testbed to be had here; what becomes of the command is no error.
pub fn run(options: &Options) -> Result<Outcome> {
    if std::env::var_os("HUSK_TESTBED").is_some() {
        bail!("this already runs inside the testbed, where there is no second one");
    }
    let image = image::get()?;
    let available = host::available_memory_mib()?;
    if available < options.memory_mib + 256 {
        bail!(
            "the testbed wants {} MiB of memory and this machine has {available} MiB to spare; \
             free some, or give it less with --memory",
            options.memory_mib
        );
    }
    retried(options, || session(options, &image))
}

/// Starts it, and once more if it stalls and nothing speaks against that.
fn retried(options: &Options, mut start: impl FnMut() -> Result<Outcome>) -> Result<Outcome> {
    let outcome = start()?;
    let End::Stalled(why) = &outcome.end else { return Ok(outcome) };
    host::say(format!("the testbed stalled: {why}"));
    if !options.retry {
        return Ok(outcome);
    }
    if outcome.stdin_consumed {
        host::say("not started again: its input has been consumed");
        return Ok(outcome);
    }
    host::say("starting the testbed once more");
    let outcome = start()?;
    if let End::Stalled(why) = &outcome.end {
        host::say(format!("the testbed stalled again: {why}"));
    }
    Ok(outcome)
}

/// One start, and a word on what the emulator got wrong: it explains a test that took too long.
fn session(options: &Options, image: &image::Image) -> Result<Outcome> {
    let outcome = session::run(options, image)?;
    if outcome.revivals > 0 {
        host::say(format!("the testbed stood still and was woken {} times", outcome.revivals));
    }
    Ok(outcome)
}

/// `cargo xtask testbed`
#[derive(clap::Args)]
pub struct Args {
    /// Time limit for the whole run in seconds; exit status 124 when it passes
    #[arg(long, default_value_t = 1800, value_name = "SECS")]
    timeout: u64,
    /// Seconds without output and heartbeat after which the machine counts as stalled (status 121)
    #[arg(long, default_value_t = 60, value_name = "SECS")]
    stall: u64,
    /// Memory of the outer machine, its RAM disks included
    #[arg(long, default_value_t = 4096, value_name = "MIB")]
    memory: u64,
    /// Processors of the outer machine
    #[arg(long, default_value_t = 1, value_name = "N")]
    smp: u32,
    /// Processor model of the outer machine, as of QEMU's -cpu
    #[arg(long, default_value = "qemu64,+svm,+npt", value_name = "MODEL")]
    cpu: String,
    /// Environment for the command (PATH, HOME, HUSK_* and a few more are passed anyway)
    #[arg(long = "env", value_name = "NAME=VALUE")]
    env: Vec<OsString>,
    /// Time is a count of instructions: measurements repeat, with one processor and slowly
    #[arg(long)]
    icount: bool,
    /// Say how long the start and the whole run took
    #[arg(long, short)]
    verbose: bool,
    /// The command and its arguments
    #[arg(last = true, required = true, value_name = "CMD")]
    command: Vec<OsString>,
}

impl Args {
    fn options(self) -> Result<Options> {
        let env = self.env.iter().map(|word| {
            job::parse_env(word)
                .map_err(|e| anyhow::anyhow!("--env {}: {e}", word.to_string_lossy()))
        });
        Ok(Options {
            env: env.collect::<Result<_>>()?,
            timeout: Duration::from_secs(self.timeout),
            stall: Duration::from_secs(self.stall),
            memory_mib: self.memory,
            smp: self.smp,
            cpu: self.cpu,
            icount: self.icount,
            stdin: true,
            ..Options::new(self.command)?
        })
    }
}

/// Runs `cargo xtask testbed`; gives the exit status.
pub fn main(args: Args) -> Result<u8> {
    let verbose = args.verbose;
    let options = args.options()?;
    let outcome = run(&options)?;
    match &outcome.end {
        End::TimedOut => host::say(format!(
            "the time limit of {} s has passed (--timeout)",
            options.timeout.as_secs()
        )),
        End::HungUp => host::say("ended from the terminal"),
        _ => {}
    }
    if verbose {
        let up = outcome.up.map_or("never".to_owned(), |up| format!("{:.1} s", up.as_secs_f64()));
        let total = outcome.total.as_secs_f64();
        host::say(format!("the testbed was up after {up}, the whole run took {total:.1} s"));
    }
    Ok(outcome.end.status())
}
