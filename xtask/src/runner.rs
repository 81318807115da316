//! Runs the tests that boot Linux, one process a test, each with a time limit; in the testbed or
//! beside a KVM that needs none. It does nothing clever: what is known about a test is in the
//! journal before the next one starts.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::cargo::Executable;
use crate::count::SKIPPED;
use crate::journal::{Journal, Record, State};
use crate::limited::{self, Ended, Finished};
use crate::{assets, host};

/// What is to be run.
#[derive(Serialize, Deserialize)]
pub struct Plan {
    /// Test executables: (name, path).
    pub binaries: Vec<(String, PathBuf)>,
    /// The husk binary, for `HUSK_BIN`.
    pub husk: PathBuf,
    /// The assets, for `HUSK_ASSETS`.
    pub assets: PathBuf,
    /// Only tests whose `binary::name` contains one of these; all if there is none.
    pub filters: Vec<String>,
    /// Time limit of one test.
    pub seconds: u64,
    /// For `HUSK_SOAK`.
    pub soak: Option<u32>,
    /// Show the tests' output as it comes, not only that of a failed one.
    pub show: bool,
    /// Copy everything to RAM first.
    pub to_ram: bool,
    /// Assets that could not be had: a test that wants one of them may skip itself wherever it runs.
    pub missing: Vec<String>,
    /// Where the journal is kept.
    pub journal: PathBuf,
}

/// `xtask __run-tests`
#[derive(clap::Args)]
pub struct Args {
    plan: PathBuf,
}

/// Runs what the plan says and the journal has not. Status 0 only if all of it passed.
pub fn main(args: &Args) -> Result<u8> {
    let text = fs::read_to_string(&args.plan)
        .with_context(|| format!("reading {}", args.plan.display()))?;
    let plan: Plan = serde_json::from_str(&text).context("reading the plan of tests")?;
    let plan = if plan.to_ram { into_ram(plan)? } else { plan };
    let before = Record::read(&plan.journal);
    let mut journal = Journal::open(&plan.journal)?;
    let mut todo = Vec::new();
    for (binary, path) in &plan.binaries {
        for test in list(path)? {
            let name = format!("{binary}::{test}");
            match before.state(&name) {
                _ if !is_wanted(&name, &plan.filters) => {}
                None => {
                    journal.write(&name, State::Planned, 0.0)?;
                    todo.push((name, path, test));
                }
                Some(State::Planned | State::Running) => todo.push((name, path, test)),
                Some(_) => {}
            }
        }
    }
    // What was running when the machine stalled comes last: it may stall again.
    todo.sort_by_key(|(name, ..)| before.state(name) == Some(State::Running));
    let mut failed = false;
    for (name, path, test) in &todo {
        journal.write(name, State::Running, 0.0)?;
        let done = run(&plan, path, test)?;
        let state = judge(&plan, &done);
        journal.write(name, state, done.took.as_secs_f64())?;
        report(&plan, name, state, &done);
        failed |= state == State::Failed;
    }
    Ok(u8::from(failed))
}

/// Whether one of the filters, or none at all, fits a test.
fn is_wanted(name: &str, filters: &[String]) -> bool {
    filters.is_empty() || filters.iter().any(|filter| name.contains(filter))
}

/// Whether any test of the executable `binary` is wanted.
pub fn wants(binaries: &[Executable], filters: &[String], binary: &str) -> Result<bool> {
    for executable in binaries.iter().filter(|executable| executable.name == binary) {
        let tests = list(&executable.path)?;
        if tests.iter().any(|test| is_wanted(&format!("{binary}::{test}"), filters)) {
            return Ok(true);
        }
    }
    Ok(false)
}

fn into_ram(plan: Plan) -> Result<Plan> {
    host::say("copying the tests and what their guests need to memory");
    let ram = Path::new("/dev/shm/husk-tests");
    let names = assets::names_in(&plan.assets)?;
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    assets::copy_to_ram(&plan.assets, &names, &ram.join("assets"))?;
    assets::link_modules(&plan.assets, &ram.join("assets"))?;
    let copy = |from: &Path, name: &str| -> Result<PathBuf> {
        let to = ram.join(name);
        fs::copy(from, &to).with_context(|| format!("copying {}", from.display()))?;
        Ok(to)
    };
    let husk = copy(&plan.husk, "husk")?;
    let mut binaries = Vec::new();
    for (name, path) in &plan.binaries {
        binaries.push((name.clone(), copy(path, name)?));
    }
    Ok(Plan { assets: ram.join("assets"), husk, binaries, ..plan })
}

/// Where tests keep what they need fast, as `tests/guest/mod.rs` does.
fn ram() -> PathBuf {
    let shm = Path::new("/dev/shm");
    if shm.is_dir() { shm.to_owned() } else { std::env::temp_dir() }
}

/// The names of a test executable's tests.
fn list(binary: &Path) -> Result<Vec<String>> {
    let text = host::text(host::command(binary).args(["--list", "--format", "terse"]))?;
    Ok(parse_list(&text))
}

fn parse_list(text: &str) -> Vec<String> {
    text.lines().filter_map(|line| line.strip_suffix(": test")).map(str::to_owned).collect()
}

fn run(plan: &Plan, binary: &Path, test: &str) -> Result<Finished> {
    let mut command = host::command(binary);
    command
        .args([test, "--exact", "--test-threads=1", "--nocapture"])
        .env("HUSK_ASSETS", &plan.assets)
        .env("HUSK_BIN", &plan.husk)
        // For the test of the demo.
        .env("HUSK_XTASK", std::env::current_exe().context("finding xtask's own executable")?)
        // Those that start VMs with the library's builder need no more than a user does.
        .env("HUSK_KERNEL", plan.assets.join(assets::VMLINUZ_CLOUD))
        .env("XDG_CACHE_HOME", ram().join("husk-test-kernels"));
    if let Some(factor) = plan.soak {
        command.env("HUSK_SOAK", factor.to_string());
    }
    limited::run(&mut command, Duration::from_secs(plan.seconds), plan.show)
}

fn judge(plan: &Plan, done: &Finished) -> State {
    match &done.ended {
        Ended::With(status) if status.success() => match verdict_of(&done.text()) {
            // In the testbed nothing else is missing for whose want a test may skip itself.
            State::Skipped if plan.to_ram && !lacks(&done.text(), &plan.missing) => State::Failed,
            verdict => verdict,
        },
        _ => State::Failed,
    }
}

/// libtest's own word, and the test's. An executable that ran no test at all has not passed.
fn verdict_of(text: &str) -> State {
    let skipped = text.lines().any(|line| line.contains(SKIPPED));
    let result = text.lines().rev().find(|line| line.contains("test result: ")).unwrap_or_default();
    if result.contains(" 1 passed") {
        if skipped { State::Skipped } else { State::Passed }
    } else if result.contains(" 1 ignored") {
        State::Ignored
    } else {
        State::Failed
    }
}

/// Whether a test that was skipped says that it was so for want of one of `missing`, and for nothing else.
fn lacks(text: &str, missing: &[String]) -> bool {
    let excused = |line: &str| missing.iter().any(|name| line.ends_with(&assets::absent(name)));
    text.lines().filter(|line| line.contains(SKIPPED)).all(excused)
}

fn report(plan: &Plan, name: &str, state: State, done: &Finished) {
    if state == State::Failed && !plan.show {
        println!("---- {name}\n{}\n----", done.text().trim_end());
    }
    let word = match (state, &done.ended) {
        (_, Ended::TimedOut) => format!("FAILED: not done after {} s", plan.seconds),
        (State::Passed, _) => "ok".to_owned(),
        (State::Skipped, _) => "skipped".to_owned(),
        (State::Ignored, _) => "ignored".to_owned(),
        _ => format!("FAILED (exit status {})", done.status()),
    };
    println!("test {name} ... {word} ({:.1} s)", done.took.as_secs_f64());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_of_tests_is_read() {
        let text = "boots: test\nnet::pings: test\nfast: benchmark\n\n2 tests, 1 benchmark\n";
        assert_eq!(parse_list(text), ["boots", "net::pings"]);
    }

    #[test]
    fn a_test_passed_only_if_libtest_says_so() {
        let line = |n: &str| format!("x\ntest result: ok. {n}; 0 measured; 9 filtered out\n");
        assert_eq!(verdict_of(&line("1 passed; 0 failed; 0 ignored")), State::Passed);
        assert_eq!(verdict_of(&line("0 passed; 0 failed; 1 ignored")), State::Ignored);
        assert_eq!(verdict_of(&line("0 passed; 0 failed; 0 ignored")), State::Failed);
        assert_eq!(verdict_of("exited early"), State::Failed);
        let skipped = format!("SKIPPED no /dev/kvm\n{}", line("1 passed; 0 failed; 0 ignored"));
        assert_eq!(verdict_of(&skipped), State::Skipped);
    }

    #[test]
    fn in_the_testbed_only_a_test_that_lacks_what_could_not_be_had_may_skip_itself() {
        let plan = |to_ram: bool, missing: &[&str]| -> Plan {
            serde_json::from_value(serde_json::json!({
                "binaries": [], "husk": "", "assets": "", "filters": [], "seconds": 1, "soak": 1,
                "show": false, "to_ram": to_ram, "missing": missing, "journal": "",
            }))
            .unwrap()
        };
        let done = |why: &str| {
            let script = format!("echo '{SKIPPED}x::y: {why}'; echo 'test result: ok. 1 passed;'");
            let mut sh = std::process::Command::new("sh");
            limited::run(sh.args(["-c", &script]), Duration::from_secs(20), false).unwrap()
        };
        let built = assets::absent(assets::BUILT);
        assert_eq!(judge(&plan(true, &[assets::BUILT]), &done(&built)), State::Skipped);
        for missing in [&[][..], &[assets::FETCHED]] {
            assert_eq!(judge(&plan(true, missing), &done(&built)), State::Failed);
        }
        // What something else lacks is no excuse.
        let other = done("there is no qemu-img");
        assert_eq!(judge(&plan(true, &[assets::BUILT]), &other), State::Failed);
        assert_eq!(judge(&plan(false, &[]), &other), State::Skipped);
    }
}
