//! The tests that boot Linux, `tests/linux_*.rs`, in a soak `tests/soak_*.rs` too, and in the testbed the
//! payloads of level 2 again.
//! All of them run in one session, in the testbed unless this machine's KVM can do it. Should the
//! testbed stall, what is not done yet runs in a fresh start, up to [`MOST_STARTS`] in all. All
//! starts share one time limit: what is left of the whole run's, see [`crate::deadline`].

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::count::Count;
use crate::doctor::{self, Place};
use crate::journal::{Record, State};
use crate::limited::{self, Ended, Errors};
use crate::runner::{self, Plan};
use crate::testbed::{self, End};
use crate::{apt, assets, cache, cargo, deadline, host};

/// The outer machine's memory: the largest guest, everything in RAM, and room.
const MEMORY_MIB: u64 = 8192;

/// Which tests to run, and how.
pub struct Wanted {
    /// Only those whose `binary::name` contains one of these; all if there is none.
    pub filters: Vec<String>,
    /// Time limit of one test.
    pub seconds: u64,
    /// Show their output as it comes.
    pub show: bool,
    /// `$HUSK_SOAK` for them: the factor of their rounds.
    pub soak: Option<u32>,
}

/// Builds, prepares and runs the tests that boot Linux.
pub fn run(wanted: &Wanted) -> Result<Count> {
    host::say("building the tests that boot Linux");
    let mut build = vec!["test", "--no-run", "--quiet", "--package", "husk-vmm"];
    build.extend(["--test", "linux_*", "--test", "payload"]);
    if wanted.soak.is_some() {
        build.extend(["--test", "soak_*"]);
    }
    let binaries = cargo::executables(&build)?;
    let husk = cargo::build_husk()?;
    apt::need(NEEDED)?;
    let (assets, brought) = match wanted.soak {
        Some(_) => {
            let kernels = runner::wants(&binaries, &wanted.filters, KERNELS)?;
            assets::soak(&husk, kernels)?
        }
        None => (assets::all()?, assets::Brought::default()),
    };
    let place = doctor::ask(&husk);
    let emulated = matches!(place, Place::Testbed(_));
    // Where this machine's KVM interprets, or is missing, the payloads have yet to meet a real one.
    let wanted_there = |name: &str| {
        ["linux_", "soak_"].iter().any(|kind| name.starts_with(kind))
            || (emulated && name == "payload")
    };
    let binaries: Vec<_> = binaries
        .into_iter()
        .filter(|binary| binary.is_test && wanted_there(&binary.name))
        .map(|binary| (binary.name, binary.path))
        .collect();
    let results = cache::results_dir();
    std::fs::create_dir_all(&results).with_context(|| format!("making {}", results.display()))?;
    let journal = results.join("level3.jsonl");
    cache::remove(&journal)?;
    let plan = Plan {
        binaries,
        husk,
        assets,
        filters: wanted.filters.clone(),
        seconds: wanted.seconds,
        soak: wanted.soak,
        show: wanted.show,
        to_ram: emulated,
        missing: brought.missing,
        journal,
    };
    let file = results.join("level3-plan.json");
    let text = serde_json::to_string_pretty(&plan).context("writing the plan of tests")?;
    std::fs::write(&file, text).with_context(|| format!("writing {}", file.display()))?;
    let limit = match plan.soak {
        None => LIMIT,
        // Each test has a limit of its own; this one only ends what got past that.
        Some(_) => Duration::from_secs(plan.seconds.saturating_mul(100)),
    };
    let end = match place {
        Place::Here => here(&file, limit)?,
        Place::Testbed(why) => {
            host::say(format!("running the tests that boot Linux in the testbed: {why}"));
            in_testbed(&file, &plan.journal, limit)?
        }
    };
    let record = Record::read(&plan.journal);
    let slowest: Vec<_> = record.slowest(10).into_iter().map(slow).collect();
    if !slowest.is_empty() {
        host::say(format!("the slowest of them: {}", slowest.join(", ")));
    }
    let mut count = count(&record, end.as_ref());
    count.problems.extend(brought.problems);
    Ok(count)
}

/// What husk itself starts, what a guest takes from the host, what husk is compared with and by, and what makes
/// images for roots: programs, and their packages.
const NEEDED: &[(&str, &str)] = &[
    ("passt", "passt"),
    ("iperf3", "iperf3"),
    ("crun", "crun"),
    ("strace", "strace"),
    ("mkfs.erofs", "erofs-utils"),
    ("mksquashfs", "squashfs-tools"),
    ("qemu-img", "qemu-utils"),
];

/// The soak that wants kernels which husk brings, and which take their time.
const KERNELS: &str = "soak_kernels";

/// All of them together, however often the testbed is started; less when less is left of the run.
const LIMIT: Duration = Duration::from_secs(3 * 3600);

fn slow((test, took): (&str, Duration)) -> String {
    format!("{test} {:.0} s", took.as_secs_f64())
}

/// What ended the tests, if it was not their own end.
type Trouble = String;

fn here(plan: &Path, limit: Duration) -> Result<Option<Trouble>> {
    host::say("running the tests that boot Linux on this machine's own KVM");
    let mut runner = std::process::Command::new(xtask()?);
    runner.arg("__run-tests").arg(plan).current_dir(cache::workspace());
    let done = limited::run_with(&mut runner, limit, true, Errors::Ours)?;
    let end = match done.ended {
        Ended::With(_) => End::Exited(done.status()),
        Ended::TimedOut => End::TimedOut,
    };
    Ok(trouble(&end))
}

fn in_testbed(plan: &Path, journal: &Path, limit: Duration) -> Result<Option<Trouble>> {
    let command = vec![xtask()?.into(), "__run-tests".into(), plan.into()];
    let mut options = testbed::Options {
        directory: cache::workspace(),
        memory_mib: memory()?,
        // The journal says better than a blind second start what is left to do.
        retry: false,
        ..testbed::Options::new(command)?
    };
    // An emulator under an emulator locks up now and then. That is not the tests' failure, as long as
    // each start gets further than the one before.
    let mut finished = 0;
    let mut start = 1;
    let until = Instant::now() + deadline::within(limit);
    loop {
        options.timeout = until.saturating_duration_since(Instant::now());
        let end = testbed::run(&options)?.end;
        if !matches!(end, End::Stalled(_)) || start == MOST_STARTS {
            return Ok(trouble(&end));
        }
        let record = Record::read(journal);
        let running = record.all(State::Running).join(", ");
        let running = if running.is_empty() { "no test" } else { &running };
        let done = [State::Passed, State::Skipped, State::Failed, State::Ignored];
        let now = done.map(|state| record.all(state).len()).iter().sum();
        if start > 1 && now == finished {
            return Ok(trouble(&end));
        }
        (finished, start) = (now, start + 1);
        host::say(format!("it stalled during {running}; going on in a fresh start"));
    }
}

/// The most times the testbed is started for one batch of tests.
const MOST_STARTS: usize = 5;

/// 0 and 1 are the runner's own; everything else means that not all tests were run.
fn trouble(end: &End) -> Option<Trouble> {
    match end {
        End::Exited(0 | 1) => None,
        End::Exited(status) => Some(format!("the test runner ended with status {status}")),
        End::TimedOut => Some("the tests that boot Linux were not done in time".to_owned()),
        End::Stalled(_) => Some("the testbed stalled again and again".to_owned()),
        End::Unread | End::HungUp => Some("interrupted".to_owned()),
    }
}

fn memory() -> Result<u64> {
    let available = host::available_memory_mib()?;
    if available < MEMORY_MIB + 1024 {
        let less = testbed::Options::new(Vec::new())?.memory_mib;
        host::say(format!(
            "this machine has {available} MiB to spare: the testbed gets {less} MiB instead of \
             {MEMORY_MIB}, and tests with larger guests will fail"
        ));
        return Ok(less);
    }
    Ok(MEMORY_MIB)
}

fn xtask() -> Result<PathBuf> {
    std::env::current_exe().context("finding xtask's own executable")
}

fn count(record: &Record, trouble: Option<&Trouble>) -> Count {
    let running = record.all(State::Running);
    let mut problems: Vec<String> = trouble.into_iter().cloned().collect();
    problems.extend(running.iter().map(|test| format!("{test} was started and never done")));
    Count {
        passed: record.all(State::Passed).len(),
        failed: record.all(State::Failed).len(),
        ignored: record.all(State::Ignored).len(),
        skipped: record.all(State::Skipped).len(),
        not_run: running.len() + record.all(State::Planned).len(),
        problems,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_test_that_was_never_done_is_neither_passed_nor_forgotten() {
        let mut record = Record::default();
        record.tests.insert("a".to_owned(), State::Passed);
        record.tests.insert("b".to_owned(), State::Running);
        record.tests.insert("c".to_owned(), State::Planned);
        let count = count(&record, Some(&"the testbed stalled twice".to_owned()));
        assert_eq!((count.passed, count.failed, count.not_run), (1, 0, 2));
        assert_eq!(count.problems.len(), 2);
    }

    #[test]
    fn only_the_runners_own_statuses_are_no_trouble() {
        assert!(trouble(&End::Exited(0)).is_none());
        assert!(trouble(&End::Exited(1)).is_none());
        assert!(trouble(&End::Exited(127)).is_some());
        assert!(trouble(&End::Stalled(String::new())).is_some());
    }
}
