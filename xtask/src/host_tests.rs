//! Formatting, lints and the tests that need no Linux guest (levels 1 and 2), on this machine. Test
//! executables run one after the other, each with a time limit: one that hangs costs its own tests
//! and no other's, and the test that hung is named.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::cargo::Executable;
use crate::count::Count;
use crate::limited::{Ended, Finished};
use crate::{apt, cache, cargo, deadline, fuzz, host, limited};

/// So long may one executable take with all its tests. The slowest takes less than a minute.
const LIMIT: Duration = Duration::from_secs(15 * 60);

/// Checks, builds and runs them, those in the executables `integration` of the workspace included.
pub fn run(integration: &[String], filters: &[String]) -> Result<Count> {
    let mut count = Count::default();
    if filters.is_empty() {
        check(&mut count, &["fmt", "--all", "--check"]);
        check(
            &mut count,
            &["clippy", "--quiet", "--workspace", "--all-targets", "--", "-D", "warnings"],
        );
        // What is built otherwise only by those who want less, and by fuzzers.
        let packages = ["--package", "husk-vmm", "--package", "husk-devices"];
        let least = ["--no-default-features", "--", "-D", "warnings"];
        check(&mut count, &[&["clippy", "--quiet"], &packages[..], &least].concat());
        let fuzz = fuzz::check_args();
        check(&mut count, &fuzz.iter().map(String::as_str).collect::<Vec<_>>());
    }
    // What tests start that skip themselves without it.
    if let Err(error) = apt::need(&[("passt", "passt"), ("qemu-img", "qemu-utils")]) {
        host::say(format!("tests that want more will be skipped: {error:#}"));
    }
    let mut build = vec!["test", "--no-run", "--workspace", "--lib", "--bins"];
    for name in integration {
        build.extend(["--test", name]);
    }
    host::say("building the tests");
    match cargo::executables(&build) {
        Ok(executables) => {
            for executable in executables.iter().filter(|made| made.is_test) {
                run_one(&mut count, executable, filters)?;
            }
        }
        Err(error) => count.problems.push(format!("{error:#}")),
    }
    let mut doc = cargo::cargo();
    doc.args(["test", "--workspace", "--no-fail-fast", "--doc", "--"]).args(filters);
    run_tests(&mut count, "cargo test --doc", &mut doc)?;
    Ok(count)
}

fn check(count: &mut Count, args: &[&str]) {
    host::say(format!("cargo {}", args.join(" ")));
    match cargo::build(args) {
        Ok(said) => print!("{said}"),
        Err(error) => count.problems.push(format!("{error:#}")),
    }
}

/// Runs one executable as cargo would.
fn run_one(count: &mut Count, executable: &Executable, filters: &[String]) -> Result<()> {
    let mut command = host::command(&executable.path);
    command.args(filters).current_dir(&executable.package);
    command.env("CARGO_MANIFEST_DIR", &executable.package);
    let name = executable.path.file_name().unwrap_or(executable.path.as_os_str());
    run_tests(count, &name.to_string_lossy(), &mut command)
}

fn run_tests(count: &mut Count, name: &str, command: &mut std::process::Command) -> Result<()> {
    let limit = deadline::within(LIMIT);
    if limit.is_zero() {
        count.problems.push(format!("{name} was not run: the time for everything is over"));
        return Ok(());
    }
    host::say(name);
    let list = cache::target_dir().join("skipped-tests");
    cache::remove(&list)?;
    command.env_remove("HUSK_ASSETS").env("HUSK_SKIPPED", &list);
    let done = limited::run(command, limit, true)?;
    let mut counted = judge(name, limit, &done);
    counted.skip(&read(&list)?);
    count.add(counted);
    Ok(())
}

/// What the tests wrote, if any wrote something.
fn read(list: &Path) -> Result<String> {
    match std::fs::read_to_string(list) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(String::new()),
        text => text.with_context(|| format!("reading {}", list.display())),
    }
}

/// Counts the tests of one executable, and names those that did not come to an end.
fn judge(name: &str, limit: Duration, done: &Finished) -> Count {
    let text = done.text();
    let mut count = Count::of_output(&text);
    match done.ended {
        Ended::With(status) if status.success() => {}
        Ended::With(_) if count.failed > 0 => {}
        Ended::With(status) => {
            count.problems.push(format!("{name} (it did not build, or died: {status})"));
        }
        Ended::TimedOut => {
            let hung = hung(&text);
            let which = match hung.as_slice() {
                [] => "no single test had run for more than a minute".to_owned(),
                hung => format!("these hung: {}", hung.join(", ")),
            };
            let limit = deadline::shown(limit);
            count.problems.push(format!("{name} was not done after {limit}; {which}"));
        }
    }
    count
}

/// The tests that libtest says have been running for long, and of which it says no more.
fn hung(text: &str) -> Vec<&str> {
    let long = |line: &'_ str| line.contains(" has been running for over ");
    let slow = text.lines().filter(|line| long(line)).filter_map(|line| {
        line.strip_prefix("test ")?.split_once(" has been running for over ").map(|(name, _)| name)
    });
    let done = |name: &str| {
        let start = format!("test {name} ... ");
        text.lines().any(|line| line.starts_with(&start))
    };
    slow.filter(|name| !done(name)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    const HALF: &str = "running 5 tests\n\
        test a ... ok\n\
        test m::slow has been running for over 60 seconds\n\
        test m::hangs has been running for over 60 seconds\n\
        test m::slow ... FAILED\n\
        test b ... ignored, why\n";

    fn judged(text: &str, end: &str) -> Count {
        let script = format!("cat <<'END'\n{text}END\n{end}");
        let mut sh = Command::new("sh");
        let limit = Duration::from_millis(700);
        judge("x-1", limit, &limited::run(sh.args(["-c", &script]), limit, false).unwrap())
    }

    #[test]
    fn a_test_that_hangs_is_named_and_those_beside_it_are_counted() {
        let count = judged(HALF, "sleep 77");
        assert_eq!((count.passed, count.failed, count.ignored, count.not_run), (1, 1, 1, 2));
        assert_eq!(count.problems, ["x-1 was not done after 0 s; these hung: m::hangs"]);
    }

    #[test]
    fn a_test_process_that_dies_is_a_problem_and_a_failed_test_is_told_by_its_own_line() {
        let count = judged("running 2 tests\ntest a ... ok\n", "kill -ABRT $$");
        assert_eq!((count.passed, count.not_run), (1, 1));
        assert_eq!(count.problems.len(), 1);
        let count = judged("test result: FAILED. 1 passed; 1 failed; 0 ignored", "exit 101");
        assert_eq!((count.failed, count.problems.len()), (1, 0));
    }
}
