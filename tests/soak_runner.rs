//! husk as cargo's runner under crates that others have published, for `cargo xtask soak` alone: `cargo test`, a
//! guest for each test program, and cargo-nextest, a guest for each test and four at a time. What passes without
//! husk passes with it; what fails fails with its words.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod guest;

use std::process::{Command, Stdio};

use guest::{CRATES, Lab, VMLINUZ_CLOUD, husk, kernel_cache};

/// How many guests nextest has at a time.
const AT_ONCE: usize = 4;
/// What cargo knows a runner by.
const RUNNER: &str = "CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUNNER";

/// What a cargo said.
struct Said {
    status: Option<i32>,
    stdout: String,
    stderr: String,
}

impl Said {
    /// The tests of which it said `verdict`, in an order; those of several programs may have one name.
    fn tests(&self, verdict: &str) -> Vec<&str> {
        let lines = self.stdout.lines().filter_map(|line| line.strip_prefix("test "));
        let lines = lines.filter_map(|line| line.strip_suffix(verdict));
        let mut tests: Vec<_> = lines.map(|line| line.trim_end_matches(" ... ")).collect();
        tests.sort_unstable();
        tests
    }
}

/// Runs cargo in the workspace of crates, whose tests are built; with husk as its runner, or without.
fn cargo(lab: &Lab, with_husk: bool, args: &[&str]) -> Said {
    let workspace = lab.asset(CRATES).canonicalize().unwrap();
    let mut cargo = Command::new("cargo");
    cargo.args(args).current_dir(&workspace).stdin(Stdio::null());
    // As they were built; see xtask/src/assets/crates.rs. There is no network.
    cargo.env("CARGO_TARGET_DIR", workspace.join("target")).env("RUSTFLAGS", "--cap-lints=allow");
    cargo.env("CARGO_NET_OFFLINE", "true").env("CARGO_TERM_COLOR", "never");
    // What the cargo that runs this test may have told it.
    for name in ["RUSTUP_TOOLCHAIN", "CARGO_MANIFEST_DIR", "CARGO_MANIFEST_PATH", RUNNER] {
        cargo.env_remove(name);
    }
    if with_husk {
        let husk = husk().display().to_string();
        cargo.env(RUNNER, format!("{husk} run --cwd --env CARGO_MANIFEST_DIR --"));
        cargo.env("HUSK_KERNEL", lab.asset(VMLINUZ_CLOUD)).env("XDG_CACHE_HOME", kernel_cache());
    }
    let done = cargo.output().expect("cargo can be started");
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    let status = done.status.code();
    let said = Said { status, stdout: text(done.stdout), stderr: text(done.stderr) };
    eprintln!("cargo {args:?}: {status:?}\n{}\n{}", said.stdout, said.stderr);
    said
}

#[test]
fn cargo_test_runs_the_tests_of_published_crates_in_guests() {
    let Some(lab) = Lab::open() else { return };
    let crates = ["test", "--tests", "-p", "tempfile", "-p", "semver"];
    let (without, with) = (cargo(&lab, false, &crates), cargo(&lab, true, &crates));
    assert_eq!((without.status, with.status), (Some(0), Some(0)));
    let passed = with.tests("ok");
    assert_eq!(passed, without.tests("ok"));
    assert!(passed.len() > 90, "{passed:?}");
    // In the same way, and what knows whether it was in a guest.
    let ours = cargo(&lab, true, &["test", "--tests", "-p", "in-guest"]);
    assert_eq!((ours.status, ours.tests("ok").len()), (Some(0), 2));
    let fails = ["test", "--tests", "-p", "in-guest", "--", "--ignored", "it_fails"];
    let fails = cargo(&lab, true, &fails);
    assert_eq!((fails.status, fails.tests("FAILED").len()), (Some(101), 1));
    assert!(fails.stdout.contains("as it should"));
}

#[test]
fn nextest_runs_each_test_of_a_published_crate_in_a_guest_of_its_own() {
    let Some(lab) = Lab::open() else { return };
    let nextest = |with_husk, args: &[&str]| {
        let said = cargo(&lab, with_husk, &[&["nextest"], args].concat());
        let installed = !said.stderr.contains("no such command");
        assert!(installed, "cargo-nextest is missing: cargo install --locked cargo-nextest");
        said
    };
    let jobs = AT_ONCE.to_string();
    let tests = ["-p", "semver", "-p", "in-guest"];
    // The list is what its guests say, and nothing besides.
    let list = [&["list", "--message-format", "oneline"][..], &tests].concat();
    let (without, with) = (nextest(false, &list), nextest(true, &list));
    assert_eq!(with.stdout, without.stdout);
    assert_eq!((without.status, with.status), (Some(0), Some(0)));
    let run = nextest(true, &[&["run", "--no-fail-fast", "-j", &jobs][..], &tests].concat());
    assert_eq!(run.status, Some(0));
    let took: Vec<f64> = run.stderr.lines().filter_map(|line| seconds(line, "PASS [")).collect();
    // Those that are ignored it does not list.
    assert_eq!(took.len(), with.stdout.lines().count());
    let all = run.stderr.lines().find_map(|line| seconds(line, "Summary [")).unwrap();
    let at_once = took.iter().sum::<f64>() / all;
    eprintln!("{at_once:.1} of {AT_ONCE} guests ran at a time, {} in all", took.len());
    assert!(at_once > 2.0);
    let fails = ["run", "--no-fail-fast", "--run-ignored", "only", "-p", "in-guest"];
    let fails = nextest(true, &fails);
    // 100: tests have failed.
    assert_eq!(fails.status, Some(100));
    assert!(fails.stderr.contains("as it should"));
    assert!(fails.stderr.contains("2 failed"));
}

/// The time after `word` in a line of nextest's: `PASS [  21.226s] …`.
fn seconds(line: &str, word: &str) -> Option<f64> {
    let (time, _) = line.split_once(word)?.1.split_once("s]")?;
    time.trim().parse().ok()
}
