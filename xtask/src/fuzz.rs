//! `cargo xtask fuzz TARGET SECONDS`: libFuzzer, with AddressSanitizer, on one of `fuzz/targets`.
//!
//! What is found stays under the target directory, with what was learnt on the way (the corpus, which
//! the next run begins with); the tree has a few small inputs to begin with, `fuzz/corpus/TARGET`.
//! The compiler is the workspace's own, told to take the sanitizer's unstable flags.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::{apt, cache, cargo, host};

/// What to run.
#[derive(clap::Args)]
pub struct Args {
    /// One of fuzz/targets, or `all` of them one after the other
    target: String,
    /// Seconds for each
    #[arg(default_value_t = 60)]
    seconds: u64,
}

/// Coverage as libFuzzer reads it, and AddressSanitizer.
const FLAGS: &str = "--cfg fuzzing -Zsanitizer=address -Cpasses=sancov-module \
     -Cllvm-args=-sanitizer-coverage-level=4 -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
     -Cllvm-args=-sanitizer-coverage-pc-table -Cllvm-args=-sanitizer-coverage-trace-compares";
/// In the workspace.
const MANIFEST: &str = "fuzz/Cargo.toml";
const TRIPLE: &str = "x86_64-unknown-linux-gnu";
/// An input that takes longer than this, in seconds, is a finding: devices answer in milliseconds.
const SLOWEST: u32 = 30;
/// The most memory of the process, in MiB; more is a finding.
const MOST_MEMORY: u32 = 2048;

/// Runs the fuzzer; 0 if it found nothing.
pub fn main(args: &Args) -> Result<u8> {
    let known = targets()?;
    let chosen: Vec<&String> = match args.target.as_str() {
        "all" => known.iter().collect(),
        one => known.iter().filter(|name| *name == one).collect(),
    };
    if chosen.is_empty() {
        bail!("there is no fuzz target {}; there are: all, {}", args.target, known.join(", "));
    }
    // libFuzzer itself is C++.
    apt::need(&[("g++", "g++")])?;
    let build = cache::target_dir().join("fuzz");
    let mut found = 0;
    for name in chosen {
        let program = compile(name, &build)?;
        found |= run(name, &program, &build, args.seconds)?;
    }
    Ok(found)
}

/// How cargo checks all targets as any other program: with no sanitizer, and without libFuzzer's C++,
/// which only a linker would miss. What the workspace's own check has made is used again.
pub fn check_args() -> Vec<String> {
    // In libFuzzer's place: no more than its name is looked at.
    let none = cache::workspace().join(MANIFEST);
    let none = format!("env.CUSTOM_LIBFUZZER_PATH={none:?}");
    let target = cache::target_dir().display().to_string();
    let args = ["clippy", "--quiet", "--locked", "--bins", "--manifest-path", MANIFEST];
    let more = ["--config", &none, "--target-dir", &target, "--", "-D", "warnings"];
    [&args[..], &more].concat().into_iter().map(str::to_owned).collect()
}

/// The names of all targets, sorted.
fn targets() -> Result<Vec<String>> {
    let dir = cache::workspace().join("fuzz/targets");
    let entries = fs::read_dir(&dir).with_context(|| format!("reading {}", dir.display()))?;
    let mut names: Vec<String> = entries
        .flatten()
        .filter_map(|entry| Some(entry.path().file_stem()?.to_str()?.to_owned()))
        .collect();
    names.sort();
    Ok(names)
}

fn compile(name: &str, build: &Path) -> Result<PathBuf> {
    host::say(format!("building the fuzz target {name}"));
    let status = cargo::cargo()
        .args(["build", "--quiet", "--release", "--manifest-path", MANIFEST])
        .args(["--target", TRIPLE, "--bin", name])
        .env("CARGO_TARGET_DIR", build)
        .env("RUSTFLAGS", FLAGS)
        .env("RUSTC_BOOTSTRAP", "1")
        .stdin(Stdio::null())
        .status()
        .context("starting cargo")?;
    if !status.success() {
        bail!("the fuzz target {name} does not build: {status}");
    }
    Ok(build.join(TRIPLE).join("release").join(name))
}

fn run(name: &str, program: &Path, build: &Path, seconds: u64) -> Result<u8> {
    let corpus = build.join("corpus").join(name);
    let findings = build.join("findings");
    for dir in [&corpus, &findings] {
        fs::create_dir_all(dir).with_context(|| format!("making {}", dir.display()))?;
    }
    host::say(format!("fuzzing {name} for {seconds} s"));
    let seeds = cache::workspace().join("fuzz/corpus").join(name);
    let status = Command::new(program)
        .arg(format!("-max_total_time={seconds}"))
        .arg(format!("-timeout={SLOWEST}"))
        .arg(format!("-rss_limit_mb={MOST_MEMORY}"))
        .arg(format!("-artifact_prefix={}/{name}-", findings.display()))
        .args(["-verbosity=0", "-print_final_stats=1", "-max_len=16384"])
        .arg(&corpus)
        .args(seeds.is_dir().then_some(&seeds))
        .stdin(Stdio::null())
        .status()
        .with_context(|| format!("starting {}", program.display()))?;
    if status.success() {
        return Ok(0);
    }
    host::say(format!("{name} ended with {status}; what it found is in {}", findings.display()));
    Ok(1)
}
