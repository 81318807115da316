//! `cargo xtask test`: formatting, lints, the tests that need no Linux guest (levels 1 and 2), and
//! those that do (level 3, see [`crate::level3`]). Goes on after a failure, counts all of it, and
//! its last line is the count. It ends in time whatever hangs, see [`crate::deadline`].

use std::time::Duration;

use anyhow::Result;

use crate::count::Count;
use crate::level3::{self, Wanted};
use crate::{cargo, deadline, host, host_tests};

/// `cargo xtask test`
#[derive(clap::Args)]
pub struct Args {
    /// Only tests whose name contains one of these words (of level 3: `binary::name`)
    filters: Vec<String>,
    /// Only the tests that boot Linux
    #[arg(long, conflicts_with = "host")]
    linux: bool,
    /// Only what runs without booting Linux
    #[arg(long)]
    host: bool,
    /// Time limit of one test that boots Linux, in seconds
    #[arg(long, default_value_t = 300, value_name = "SECS")]
    limit: u64,
    /// Time limit of everything together, in minutes
    #[arg(long, default_value_t = 85, value_name = "MIN")]
    within: u64,
    /// Show the output of tests that boot Linux as it comes
    #[arg(long, short)]
    verbose: bool,
}

/// Runs it; status 0 only if nothing at all went wrong.
pub fn main(args: &Args) -> Result<u8> {
    deadline::set(Duration::from_secs(args.within.saturating_mul(60)));
    let mut all = Count::default();
    let names = cargo::integration_tests()?;
    // `soak_` is for `cargo xtask soak` alone.
    let names = names.into_iter().filter(|name| !name.starts_with("soak_"));
    let (linux, other): (Vec<_>, Vec<_>) = names.partition(|name| name.starts_with("linux_"));
    if !args.linux {
        all.add(host_tests::run(&other, &args.filters)?);
    }
    if !args.host && linux.is_empty() {
        host::say("there is no test that boots Linux (tests/linux_*.rs)");
    } else if !args.host {
        // What was counted before must not get lost if this cannot be done.
        let wanted = Wanted {
            filters: args.filters.clone(),
            seconds: args.limit,
            show: args.verbose,
            soak: None,
        };
        match level3::run(&wanted) {
            Ok(count) => all.add(count),
            Err(error) => all.problems.push(format!("the tests that boot Linux: {error:#}")),
        }
    }
    all.expect_some(&args.filters);
    Ok(all.conclude())
}
