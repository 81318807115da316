//! `cargo xtask test`: formatting, lints, the tests that need no Linux guest (levels 1 and 2), and
//! those that do (level 3, see [`crate::level3`]). Goes on after a failure, counts all of it, and
//! its last line is the count.

use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};

use anyhow::{Context, Result};

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

/// Tests and checks that passed and failed.
#[derive(Default, Debug, PartialEq, Eq)]
pub struct Count {
    pub passed: usize,
    pub failed: usize,
    pub ignored: usize,
    /// Passed as far as the harness knows, but said that they lack something here.
    pub skipped: usize,
    pub not_run: usize,
    /// What failed that is no single test: a check, a crash, a build.
    pub problems: Vec<String>,
}

impl Count {
    fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.ignored += other.ignored;
        self.skipped += other.skipped;
        self.not_run += other.not_run;
        self.problems.extend(other.problems);
    }

    /// So many of those that passed were skipped.
    fn skip(&mut self, skipped: usize) {
        self.passed = self.passed.saturating_sub(skipped);
        self.skipped += skipped;
    }

    fn is_good(&self) -> bool {
        self.failed == 0 && self.not_run == 0 && self.problems.is_empty()
    }

    /// Filters that fit no test at all are a mistake.
    pub fn expect_some(&mut self, filters: &[String]) {
        if !filters.is_empty() && self.passed + self.failed + self.ignored + self.not_run == 0 {
            self.problems.push(format!("no test is called anything like {}", filters.join(", ")));
        }
    }

    /// Prints the problems and the count; gives the exit status.
    pub fn conclude(&self) -> u8 {
        for problem in &self.problems {
            println!("FAILED: {problem}");
        }
        println!("{}", self.words());
        u8::from(!self.is_good())
    }

    /// `12 passed, 1 failed`, and what else there is to say.
    fn words(&self) -> String {
        let mut words = format!("{} passed, {} failed", self.passed, self.failed);
        for (count, what) in
            [(self.ignored, "ignored"), (self.skipped, "skipped"), (self.not_run, "not run")]
        {
            if count > 0 {
                words.push_str(&format!(", {count} {what}"));
            }
        }
        words
    }
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
    counted.skip(std::fs::read_to_string(&list).unwrap_or_default().lines().count());
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
        add_result(&mut count, &text);
    }
    Ok((count, child.wait().context("waiting for cargo")?.success()))
}

/// `test result: ok. 3 passed; 0 failed; 1 ignored; …`
fn add_result(count: &mut Count, line: &str) {
    let Some((_, result)) = line.split_once("test result: ") else { return };
    let Some((_, numbers)) = result.split_once(". ") else { return };
    for part in numbers.split(';') {
        let mut words = part.split_whitespace();
        let number = words.next().and_then(|n| n.parse::<usize>().ok()).unwrap_or(0);
        match words.next() {
            Some("passed") => count.passed += number,
            Some("failed") => count.failed += number,
            Some("ignored") => count.ignored += number,
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn result_lines_add_up() {
        let mut count = Count::default();
        add_result(&mut count, "test result: ok. 13 passed; 0 failed; 2 ignored; 0 measured; x");
        add_result(&mut count, "test result: FAILED. 1 passed; 3 failed; 0 ignored; 0 measured");
        add_result(&mut count, "test a ... ok");
        assert_eq!((count.passed, count.failed, count.ignored), (14, 3, 2));
        assert_eq!(count.words(), "14 passed, 3 failed, 2 ignored");
        count.skip(4);
        assert_eq!(count.words(), "10 passed, 3 failed, 2 ignored, 4 skipped");
        assert!(!count.is_good());
    }

    #[test]
    fn a_problem_that_is_no_test_is_no_success() {
        let count = Count { problems: vec!["cargo fmt".to_owned()], ..Count::default() };
        assert!(!count.is_good());
    }
}
