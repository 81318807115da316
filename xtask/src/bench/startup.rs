//! `cargo xtask bench startup`: how fast a machine starts, against a floor and against rivals.
//!
//! 1. exec → first KVM_RUN, on this machine's /dev/kvm, whatever it can run.
//! 2. exec → a line from the guest's init, where KVM runs Linux: here or in the testbed.
//! 3. memory of its own and CPU of a guest that idles after it has used its disk and network card.
//!
//! Everything compared runs in one session, in an order shuffled anew for each round.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use serde::Deserialize;

use super::guests;
use super::rivals::{self, Subject};
use super::stats::{Summary, shuffle};
use super::{Place, inside};
use crate::{assets, cargo, host};

/// `cargo xtask bench startup`
#[derive(clap::Args)]
pub struct Args {
    /// Rounds; each runs every subject once
    #[arg(long, default_value_t = 15, value_name = "N")]
    rounds: usize,
    /// Which parts: first-run, init, cost
    #[arg(long, value_delimiter = ',', default_value = "first-run,init,cost")]
    parts: Vec<String>,
    /// A kernel that `husk kernel build` made, with which husk and Firecracker are measured as well
    /// [default: the one in husk's kernel directory, if it is there]
    #[arg(long, value_name = "FILE")]
    fast_kernel: Option<PathBuf>,
    #[command(flatten)]
    place: Place,
}

/// Runs the parts that were asked for.
pub fn main(args: &Args) -> Result<u8> {
    let husk = cargo::build_husk()?;
    let floor = cargo::build_bin("xtask", "kvm-floor")?;
    let assets = assets::all()?;
    let wanted = |part: &str| args.parts.iter().any(|p| p == part);
    if wanted("first-run") {
        first_run(&rivals::first_run(&husk, &floor, &assets), args.rounds)?;
    }
    if !wanted("init") && !wanted("cost") {
        return Ok(0);
    }
    let fast = fast_kernel(&husk, args.fast_kernel.as_deref())?;
    let inner = guests::Inner {
        rounds: args.rounds,
        husk: husk.clone(),
        assets,
        fast,
        init: wanted("init"),
        cost: wanted("cost"),
        noxsave: args.place.xsave,
    };
    inside(&husk, &args.place, "__bench-guests", &inner, 4096)
}

/// The kernel built for speed: the one `given`, or the newest of husk's own.
pub(super) fn fast_kernel(husk: &Path, given: Option<&Path>) -> Result<Option<PathBuf>> {
    let fast = match given {
        Some(given) => Some(
            given.canonicalize().with_context(|| format!("--fast-kernel {}", given.display()))?,
        ),
        None => built(husk)?,
    };
    if fast.is_none() {
        host::say("no kernel of `husk kernel build` is here: measuring without one");
    }
    Ok(fast)
}

/// The newest of the kernels that `husk kernel build` made for speed.
fn built(husk: &Path) -> Result<Option<PathBuf>> {
    let known = host::output(Command::new(husk).args(["kernel", "list", "--json"]))?;
    let known: Vec<Known> = serde_json::from_slice(&known).context("reading husk's kernels")?;
    Ok(known.into_iter().find(|kernel| kernel.version.ends_with("-husk-fast")).map(|k| k.path))
}

/// What of `husk kernel list --json` matters here.
#[derive(Deserialize)]
struct Known {
    version: String,
    path: PathBuf,
}

/// Part 1.
fn first_run(subjects: &[Subject], rounds: usize) -> Result<()> {
    const LIMIT: Duration = Duration::from_secs(20);
    host::say(format!("exec to first KVM_RUN: {} subjects, {rounds} rounds", subjects.len()));
    let mut times = vec![Vec::new(); subjects.len()];
    let mut faults = vec![Vec::new(); subjects.len()];
    let mut order: Vec<usize> = (0..subjects.len()).collect();
    for round in 0..=rounds {
        shuffle(&mut order);
        for &n in &order {
            let Some(subject) = subjects.get(n) else { continue };
            super::first_run::take_memory_back()?;
            let run = super::first_run::measure(&subject.command, LIMIT)
                .with_context(|| subject.name.clone())?;
            // The first round warms the caches.
            if let (1.., Some(times), Some(faults)) = (round, times.get_mut(n), faults.get_mut(n)) {
                times.push(run.elapsed.as_secs_f64() * 1e3);
                faults.push(run.faults as f64);
            }
        }
    }
    let median = |n: usize| times.get(n).map_or(1.0, |t| Summary::of(t).median);
    let (floor, usual) = (median(0), median(1));
    println!("\nexec → first KVM_RUN, ms: 1 vCPU, 512 MiB, {rounds} rounds, in turn");
    println!(
        "{:<34} {:>8} {:>8} {:>8} {:>8} {:>8} {:>8}",
        "", "median", "min", "max", "/ floor", "/ usual", "faults"
    );
    for ((subject, times), faults) in subjects.iter().zip(&times).zip(&faults) {
        let Summary { median, min, max, .. } = Summary::of(times);
        let (faults, name) = (Summary::of(faults).median, &subject.name);
        println!(
            "{name:<34} {median:>8.2} {min:>8.2} {max:>8.2} {:>8.2} {:>8.2} {faults:>8.0}",
            median / floor,
            median / usual
        );
    }
    Ok(())
}
