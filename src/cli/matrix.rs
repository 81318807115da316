//! `husk matrix`: the same command under several kernels, each in a `husk run` of its own, and a table of
//! how that went.
//!
//! What is said here is about kernels; all other options are those of `husk run`, checked as there and
//! passed on as they are.

mod output;
mod words;

use std::ffi::OsString;
use std::io;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicI32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, Args, FromArgMatches};

use super::life::watch;
use super::run::Run;
use super::signals::Signals;
use super::stderr::plain;
use super::stdout::print;
use super::{CANNOT, Error};

/// Exit status: under some kernel the command did not succeed.
const FAILED: u8 = 1;
/// What is about one VM, or would be another's at the same time.
const FOR_ONE: [&str; 6] =
    ["name", "detach", "keep_on_failure", "print_config", "metrics", "timeline"];

/// What `husk matrix --help` ends with.
pub const AFTER_HELP: &str = "\
Exit status: 0 when the command succeeded under every kernel, 1 when not, 128+n after signal n, 125 husk \
could not. What `husk run` gives for each kernel stands in the table at the end.";

/// Run a command under several kernels, and tell under which it succeeds
pub struct Matrix {
    kernels: Vec<PathBuf>,
    parallel: usize,
    /// Given, and of no use.
    refused: Option<&'static str>,
}

impl Args for Matrix {
    fn augment_args(command: clap::Command) -> clap::Command {
        let mut command = Run::augment_args(command)
            .about("Run a command under several kernels, and tell under which it succeeds")
            .mut_arg("kernel", |arg| {
                arg.action(ArgAction::Append)
                    .required(true)
                    .help("A kernel, vmlinuz (bzImage) or vmlinux (ELF); repeated for each")
            })
            .mut_arg("command", |arg| {
                arg.required(true).help("The command; its input is empty, and before each line that it writes stands the kernel")
            })
            .arg(
                Arg::new("parallel")
                    .long("parallel")
                    .value_name("N")
                    .help_heading(None::<&str>)
                    .value_parser(clap::value_parser!(u16).range(1..))
                    .help("So many VMs at the same time [default: 1]"),
            );
        for id in FOR_ONE {
            command = command.mut_arg(id, |arg| arg.hide(true));
        }
        command
    }

    fn augment_args_for_update(command: clap::Command) -> clap::Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for Matrix {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let given = |id: &&str| matches.value_source(id) == Some(ValueSource::CommandLine);
        let parallel = matches.get_one::<u16>("parallel").copied().unwrap_or(1);
        Ok(Matrix {
            kernels: matches.get_many::<PathBuf>("kernel").into_iter().flatten().cloned().collect(),
            parallel: parallel.into(),
            refused: FOR_ONE.into_iter().find(given),
        })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

/// How it went under one kernel.
struct Done {
    status: u8,
    took: Duration,
}

/// What all of it share.
struct Runs {
    labels: Vec<String>,
    next: AtomicUsize,
    /// Of each kernel, once it is known.
    done: Mutex<Vec<Option<Done>>>,
    /// Processes that have not been waited for.
    running: Arc<Mutex<Vec<libc::pid_t>>>,
    /// The signal that came, or 0: nothing more is begun.
    signal: Arc<AtomicI32>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What they hold is whole whenever the lock is free.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Matrix {
    /// Runs the command under each of them.
    pub fn execute(self) -> Result<u8, Error> {
        if let Some(option) = self.refused {
            return Err(
                format!("--{} is for `husk run`, of one VM", option.replace('_', "-")).into()
            );
        }
        let options = words::passed_on(std::env::args_os().skip(2), &["--kernel", "--parallel"]);
        let program = std::env::current_exe()?;
        let runs = Runs {
            labels: words::labels(&self.kernels),
            next: AtomicUsize::new(0),
            done: Mutex::new(self.kernels.iter().map(|_| None).collect()),
            running: Arc::default(),
            signal: Arc::default(),
        };
        let signals = Signals::block()?;
        let (running, signal) = (runs.running.clone(), runs.signal.clone());
        watch(move || {
            loop {
                let number = signals.wait();
                signal.store(number, Ordering::Release);
                for pid in lock(&running).iter() {
                    // SAFETY: kill touches no memory; who is in the list has not been waited for.
                    unsafe { libc::kill(*pid, number) };
                }
            }
        })?;
        std::thread::scope(|scope| {
            for _ in 0..self.parallel.min(self.kernels.len()) {
                scope.spawn(|| runs.work(&self.kernels, &program, &options));
            }
        });
        let (table, status) = runs.conclude();
        print(&table)?;
        Ok(status)
    }
}

impl Runs {
    /// Runs one after the other, as long as there are any that nobody has begun.
    fn work(&self, kernels: &[PathBuf], program: &Path, options: &[OsString]) {
        loop {
            let at = self.next.fetch_add(1, Ordering::AcqRel);
            let (Some(kernel), Some(label)) = (kernels.get(at), self.labels.get(at)) else {
                return;
            };
            if self.signal.load(Ordering::Acquire) != 0 {
                return;
            }
            let began = Instant::now();
            let width = self.labels.iter().map(|label| label.chars().count()).max().unwrap_or(0);
            let prefix = format!("{label:<width$} | ");
            let status = self.run(kernel, &prefix, program, options).unwrap_or_else(|e| {
                tell!("husk: {label}: {e}\n");
                CANNOT
            });
            if let Some(done) = lock(&self.done).get_mut(at) {
                *done = Some(Done { status, took: began.elapsed() });
            }
        }
    }

    fn run(
        &self,
        kernel: &Path,
        prefix: &str,
        program: &Path,
        options: &[OsString],
    ) -> io::Result<u8> {
        let mut named = OsString::from("--kernel=");
        named.push(kernel);
        let mut command = Command::new(program);
        command.arg("run").arg(named).args(options);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        // A signal comes to it once, from here, and not from a terminal as well.
        command.process_group(0);
        let mut child = {
            // Whoever passes a signal on has it in the list, or it is not begun.
            let mut running = lock(&self.running);
            if self.signal.load(Ordering::Acquire) != 0 {
                return Err(io::ErrorKind::Interrupted.into());
            }
            let child = command.spawn()?;
            running.push(child.id().cast_signed());
            child
        };
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        std::thread::scope(|scope| {
            scope.spawn(|| stderr.map(|from| output::carry(from, prefix, io::stderr)));
            stdout.map(|from| output::carry(from, prefix, io::stdout))
        });
        self.status(&mut child)
    }

    /// Waits for a process' end, and gives its exit status as a shell does.
    fn status(&self, child: &mut Child) -> io::Result<u8> {
        let pid = child.id();
        // SAFETY: all zeros is a valid one, and waitid writes into it. The process stays, and its number
        // its own, until it is not in the list any more.
        unsafe {
            let mut info: libc::siginfo_t = std::mem::zeroed();
            libc::waitid(libc::P_PID, pid, &mut info, libc::WEXITED | libc::WNOWAIT);
        }
        lock(&self.running).retain(|running| *running != pid.cast_signed());
        let status = child.wait()?;
        let code = status.code().or(status.signal().map(|signal| 128 + signal));
        Ok(code.and_then(|code| u8::try_from(code).ok()).unwrap_or(CANNOT))
    }

    /// The table, and the exit status.
    fn conclude(&self) -> (String, u8) {
        let done = lock(&self.done);
        let width = self.labels.iter().map(|label| label.chars().count()).max().unwrap_or(0).max(6);
        let mut table = format!("{:<width$} {:>8} {:>8}\n", "KERNEL", "STATUS", "SECONDS");
        for (label, done) in self.labels.iter().zip(done.iter()) {
            let (status, seconds) = match done {
                Some(Done { status, took }) => {
                    (status.to_string(), format!("{:.1}", took.as_secs_f64()))
                }
                None => ("not run".to_owned(), "-".to_owned()),
            };
            table += &format!("{label:<width$} {status:>8} {seconds:>8}\n");
        }
        let all = done.iter().all(|done| matches!(done, Some(Done { status: 0, .. })));
        let status = match self.signal.load(Ordering::Acquire) {
            0 if all => 0,
            0 => FAILED,
            signal => 128u8.wrapping_add(signal as u8),
        };
        (plain(&table), status)
    }
}
