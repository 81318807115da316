//! The command line: arguments in, exit status out; one file a subcommand.
//!
//! Everything of substance is the library's. Here stand parsing, the terminal, signals, and what is
//! said on stderr. stdout belongs to the guest.

/// Says something to the user on stderr; gives up when nobody reads it.
macro_rules! tell {
    ($($words:tt)*) => {
        $crate::cli::stderr::say(&format!($($words)*), std::time::Duration::from_secs(1))
    };
}

mod agent;
mod attach;
mod awaited;
mod command;
#[cfg(feature = "compare")]
mod compare;
mod course;
mod cp;
mod detach;
mod doctor;
mod escape;
mod exec;
mod footprint;
mod hint;
mod inspect;
mod kernel;
mod keyvalue;
mod life;
mod limits;
mod logging;
mod logs;
mod matrix;
mod metrics;
mod net;
mod ps;
mod run;
mod signals;
mod stderr;
mod stdout;
mod stop;
mod terminal;
mod tips;
mod values;
mod wait;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Exit status when husk itself could not (bad configuration, no KVM, a missing file).
const CANNOT: u8 = 125;

/// What `husk --help` ends with.
const AFTER_HELP: &str = "\
To begin: `husk doctor`, `husk kernel fetch`, then `husk run -- uname -a` runs a command in a VM of its own, \
with the files that you have here.";

/// Run Linux kernels in microVMs on KVM.
#[derive(Parser)]
#[command(name = "husk", version, max_term_width = 100, after_help = AFTER_HELP)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

// What the others can be told is not built for one of them.
#[derive(Subcommand)]
#[command(defer = true)]
enum Command {
    #[command(after_help = run::AFTER_HELP)]
    Run(Box<run::Run>),
    #[command(after_help = matrix::AFTER_HELP)]
    Matrix(matrix::Matrix),
    Doctor(doctor::Doctor),
    Kernel(kernel::Kernel),
    Ps(ps::Ps),
    Inspect(inspect::Inspect),
    Exec(exec::Exec),
    Cp(cp::Cp),
    Agent(agent::Agent),
    Attach(attach::Attach),
    Logs(logs::Logs),
    Wait(wait::Wait),
    Stop(stop::Stop),
    Kill(stop::Kill),
    #[cfg(feature = "compare")]
    Compare(compare::Compare),
}

/// Runs the command line and returns the process' exit status.
pub fn main() -> ExitCode {
    let started = run::process_start();
    limits::ignore_file_size_signal();
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(mut e) => {
            let words = std::env::args_os().map(|word| word.to_string_lossy().into_owned());
            tips::amend(&mut e, &words.collect::<Vec<_>>());
            if e.use_stderr() {
                // It quotes what was typed.
                tell!("{}", e.render());
                return ExitCode::from(CANNOT);
            }
            // A closed stdout leaves nobody to tell.
            let _ = e.print();
            return ExitCode::SUCCESS;
        }
    };
    let result = match cli.command {
        Command::Run(run) => run.execute(started),
        Command::Matrix(matrix) => matrix.execute(),
        Command::Doctor(doctor) => doctor.execute(),
        Command::Kernel(kernel) => kernel.execute(),
        Command::Ps(ps) => ps.execute(),
        Command::Inspect(inspect) => inspect.execute(),
        Command::Exec(exec) => exec.execute(),
        Command::Cp(cp) => cp.execute(),
        Command::Agent(agent) => agent.execute(),
        Command::Attach(attach) => attach.execute(),
        Command::Logs(logs) => logs.execute(),
        Command::Wait(wait) => wait.execute(),
        Command::Stop(stop) => stop.execute(),
        Command::Kill(kill) => kill.execute(),
        #[cfg(feature = "compare")]
        Command::Compare(compare) => compare.execute(),
    };
    match result {
        Ok(status) => ExitCode::from(status),
        Err(e) => ExitCode::from(failed(&e)),
    }
}

/// Says what husk could not do, and gives the exit status for that.
fn failed(error: &Error) -> u8 {
    terminal::restore();
    let words = error.to_string();
    tell!("husk: {words}\n");
    if let Some(remedy) = limits::remedy(&words) {
        tell!("husk: {remedy}\n");
    }
    CANNOT
}

/// What a subcommand says when it could not do its work: a sentence for the user.
type Error = Box<dyn std::error::Error>;
