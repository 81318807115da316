//! `cargo xtask soak`: the tests that boot Linux, with as many rounds of everything that can go wrong
//! once in a while as nobody waits for in [`crate::test`], and those that are for this alone,
//! `tests/soak_*.rs`. The tests read the factor from `$HUSK_SOAK`.

use std::num::NonZeroU32;

use anyhow::Result;

use crate::level3::{self, Wanted};

/// `cargo xtask soak`
#[derive(clap::Args)]
pub struct Args {
    /// Only tests whose `binary::name` contains one of these words
    filters: Vec<String>,
    /// Times the rounds of one soak
    #[arg(long, default_value_t = NonZeroU32::MIN, value_name = "N")]
    rounds: NonZeroU32,
    /// Time limit of one test, in seconds, for each of these rounds
    #[arg(long, default_value_t = 3600, value_name = "SECS")]
    limit: u64,
    /// Show the tests' output as it comes
    #[arg(long, short)]
    verbose: bool,
}

/// Runs it; status 0 only if nothing at all went wrong.
pub fn main(args: &Args) -> Result<u8> {
    let mut count = level3::run(&Wanted {
        filters: args.filters.clone(),
        seconds: args.limit.saturating_mul(args.rounds.get().into()),
        show: args.verbose,
        soak: Some(args.rounds.get()),
    })?;
    count.expect_some(&args.filters);
    Ok(count.conclude())
}
