//! `cargo xtask test`: formatting, lints, the tests that need no Linux guest (levels 1 and 2), and
//! those that do (level 3, see [`crate::level3`]). Goes on after a failure, counts all of it, and
//! its last line is the count.

use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};

use anyhow::{Context, Result};

use crate::count::Count;
use crate::level3::{self, Wanted};
use crate::{cache, cargo, host};

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
    /// Show the output of tests that boot Linux as it comes
    #[arg(long, short)]
    verbose: bool,
}

/// Runs it; status 0 only if nothing at all went wrong.
pub fn main(args: &Args) -> Result<u8> {
    let mut all = Count::default();
    let names = cargo::integration_tests()?;
    let (linux, other): (Vec<_>, Vec<_>) =
        names.into_iter().partition(|name| name.starts_with("linux_"));
    if !args.linux {
        all.add(on_host(&other, &args.filters)?);
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

/// Checks and tests on this machine.
fn on_host(integration: &[String], filters: &[String]) -> Result<Count> {
    let mut count = Count::default();
    if filters.is_empty() {
        check(&mut count, &["fmt", "--all", "--check"])?;
        check(
            &mut count,
            &["clippy", "--quiet", "--workspace", "--all-targets", "--", "-D", "warnings"],
        )?;
    }
    let mut tests = vec!["test", "--workspace", "--no-fail-fast", "--lib", "--bins"];
    for name in integration {
        tests.extend(["--test", name]);
    }
    run_tests(&mut count, &tests, filters)?;
    run_tests(&mut count, &["test", "--workspace", "--no-fail-fast", "--doc"], filters)?;
    Ok(count)
}

fn check(count: &mut Count, args: &[&str]) -> Result<()> {
    let shown = format!("cargo {}", args.join(" "));
    host::say(&shown);
    let status = cargo::cargo().args(args).status().context("starting cargo")?;
    if !status.success() {
        count.problems.push(shown);
    }
    Ok(())
}

fn run_tests(count: &mut Count, args: &[&str], filters: &[String]) -> Result<()> {
    let shown = format!("cargo {}", args.join(" "));
    host::say(&shown);
    let mut command = cargo::cargo();
    let list = cache::target_dir().join("skipped-tests");
    cache::remove(&list)?;
    command.args(args).arg("--").args(filters).env_remove("HUSK_ASSETS").env("HUSK_SKIPPED", &list);
    let (mut counted, success) = stream_tests(&mut command)?;
    counted.skip(&std::fs::read_to_string(&list).unwrap_or_default());
    let all_accounted = success || counted.failed > 0;
    count.add(counted);
    if !all_accounted {
        count.problems.push(format!("{shown} (it did not build, or a test process died)"));
    }
    Ok(())
}

/// Passes the tests' output on and adds up their result lines.
fn stream_tests(command: &mut Command) -> Result<(Count, bool)> {
    let mut child = command.stdout(Stdio::piped()).spawn().context("starting cargo")?;
    let mut count = Count::default();
    let out = child.stdout.take().context("cargo without an output")?;
    for line in BufReader::new(out).split(b'\n') {
        let line = line.context("reading cargo's output")?;
        let text = String::from_utf8_lossy(&line);
        println!("{text}");
        let _ = std::io::stdout().flush();
        count.add_result(&text);
    }
    Ok((count, child.wait().context("waiting for cargo")?.success()))
}
