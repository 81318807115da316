//! Benchmarks: they print ratios of what was run in turn, in one session, and assert nothing.

mod first_run;
mod guests;
mod process;
mod rivals;
mod startup;
mod stats;

pub use guests::{InnerArgs, inner};

use anyhow::Result;
use clap::Subcommand;

/// What is measured.
#[derive(Subcommand)]
pub enum Bench {
    /// Start-up: exec to first KVM_RUN, exec to the guest's init, memory and idle CPU
    Startup(startup::Args),
}

/// Runs `cargo xtask bench …`; gives the exit status.
pub fn main(bench: &Bench) -> Result<u8> {
    match bench {
        Bench::Startup(args) => startup::main(args),
    }
}
