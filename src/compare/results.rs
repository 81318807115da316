//! What was measured, as plain data.

use std::path::PathBuf;
use std::time::Duration;

use super::contestants::Family;
use super::reach::Reach;
use super::stats::Percentiles;
use super::{Environment, Plan, Workload};

/// One who took part.
#[derive(Debug, Clone, PartialEq)]
pub struct Entrant {
    /// Its name.
    pub name: &'static str,
    /// What it is.
    pub family: Family,
    /// What its program says of its version.
    pub version: String,
    /// The command of one instance.
    pub command: String,
}

/// Moments of one run, from the fork of its launcher.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Moments {
    /// The first KVM_RUN, as KVM says in a traced run, and husk itself in any.
    pub kvm_run: Option<Duration>,
    /// The guest's kernel has begun, as KVM says in a traced run.
    pub kernel: Option<Duration>,
    /// The guest's init has begun.
    pub init: Option<Duration>,
    /// The first line of the workload has come.
    pub first: Duration,
    /// The launcher has been reaped.
    pub exit: Duration,
}

/// One run.
#[derive(Debug, Clone, PartialEq)]
pub struct Run {
    /// Which of the entrants.
    pub entrant: usize,
    /// Whether the host's caches were dropped before.
    pub cold: bool,
    /// Whether KVM was traced: such a run tells phases and is in no table of times.
    pub traced: bool,
    /// How many instances were started at once.
    pub parallel: usize,
    /// Which round, from 0.
    pub round: usize,
    /// Which of the instances, from 0.
    pub instance: usize,
    /// When what happened, or why not.
    pub outcome: Result<Moments, String>,
}

/// Memory and disk with some idle instances.
#[derive(Debug, Clone, PartialEq)]
pub struct Idle {
    /// Which of the entrants.
    pub entrant: usize,
    /// How many instances idle.
    pub count: usize,
    /// Proportional share of memory of all their processes, in bytes.
    pub pss: Option<u64>,
    /// What of the host's available memory is gone since there was none of them, in bytes.
    pub taken: Option<i64>,
    /// What they have written to their directories, in bytes, where those are ours to look at.
    pub disk: Option<u64>,
}

/// Facts about what stands between a workload and the host.
#[derive(Debug, Clone, PartialEq)]
pub struct Isolation {
    /// Which of the entrants.
    pub entrant: usize,
    /// The kinds of namespaces it does not share with us.
    pub namespaces: Vec<String>,
    /// Threads with a filter of system calls, and all, of every process of an instance: its runtime's,
    /// monitor's or VMM's included.
    pub filtered: (usize, usize),
    /// What filters leave to the workload's own process, and of a VM, whose workload is no process of the
    /// host, to its VMM; `None` where that process was not found.
    pub reach: Option<Reach>,
    /// Distinct system calls a VMM makes in one run, where that was counted.
    pub syscalls: Option<usize>,
}

/// Memory of a program that runs whether or not there are instances, and serves all of them.
#[derive(Debug, Clone, PartialEq)]
pub struct Daemon {
    /// Which of the entrants it serves.
    pub entrant: usize,
    /// The program.
    pub name: &'static str,
    /// How many instances idled.
    pub count: usize,
    /// Proportional share of memory of its processes, in bytes: without an instance, and with those.
    pub pss: (Option<u64>, Option<u64>),
}

/// A moment that is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Clock {
    /// Fork of the launcher → the first line of the workload.
    First,
    /// Fork of the launcher → it has been reaped.
    Exit,
}

/// All of it.
#[derive(Debug, Clone)]
pub struct Results {
    /// Where.
    pub environment: Environment,
    /// What each instance did.
    pub workload: Workload,
    /// What was asked for.
    pub plan: Plan,
    /// The kernel of the VMs.
    pub kernel: Option<PathBuf>,
    /// Its release, if it is a Linux that says it.
    pub kernel_release: Option<String>,
    /// Its size, in bytes.
    pub kernel_bytes: Option<u64>,
    /// The size of the workload's files, in bytes.
    pub files_bytes: u64,
    /// Who took part.
    pub entrants: Vec<Entrant>,
    /// Who did not, and why.
    pub absent: Vec<(&'static str, String)>,
    /// Every run.
    pub runs: Vec<Run>,
    /// Every measurement of idle instances.
    pub idle: Vec<Idle>,
    /// Facts about each.
    pub isolation: Vec<Isolation>,
    /// What runs besides, for all instances of an entrant.
    pub daemons: Vec<Daemon>,
    /// What else is to be said.
    pub notes: Vec<String>,
}

impl Results {
    /// The kernel of the VMs, if there are some: which Linux, and where.
    pub(super) fn guest_kernel(&self) -> Option<String> {
        let path = self.kernel.as_ref()?.display();
        Some(match &self.kernel_release {
            Some(release) => format!("Linux {release}, {path}"),
            None => path.to_string(),
        })
    }

    /// The good runs of an entrant whose times count.
    pub(super) fn good(
        &self,
        entrant: usize,
        parallel: usize,
        cold: bool,
    ) -> impl Iterator<Item = &Moments> {
        let wanted = move |run: &&Run| {
            run.entrant == entrant && run.parallel == parallel && run.cold == cold && !run.traced
        };
        self.runs.iter().filter(wanted).filter_map(|run| run.outcome.as_ref().ok())
    }

    /// How many runs of an entrant failed.
    pub(super) fn failed(&self, entrant: usize, parallel: usize, cold: bool) -> usize {
        let timed = self.runs.iter().filter(|run| !run.traced);
        let mine = timed.filter(|run| run.entrant == entrant && run.cold == cold);
        mine.filter(|run| run.parallel == parallel && run.outcome.is_err()).count()
    }

    /// A clock's values in the good runs of an entrant, in ms.
    pub fn values(&self, entrant: usize, parallel: usize, cold: bool, clock: Clock) -> Vec<f64> {
        let pick = |moments: &Moments| match clock {
            Clock::First => moments.first,
            Clock::Exit => moments.exit,
        };
        self.good(entrant, parallel, cold).map(|moments| ms(pick(moments))).collect()
    }

    /// Their percentiles.
    pub fn percentiles(
        &self,
        entrant: usize,
        parallel: usize,
        cold: bool,
        clock: Clock,
    ) -> Option<Percentiles> {
        Percentiles::of(&self.values(entrant, parallel, cold, clock))
    }

    /// The levels of parallelism, each once, from the lowest.
    pub(super) fn levels(&self) -> Vec<usize> {
        let mut levels = self.plan.parallel.clone();
        levels.sort_unstable();
        levels.dedup();
        levels
    }

    /// Whether there are runs with cold caches.
    pub(super) fn has_cold(&self) -> bool {
        self.runs.iter().any(|run| run.cold)
    }

    /// The last measurement, with most instances, of an entrant's idle ones.
    pub(super) fn most_idle(&self, entrant: usize) -> Option<&Idle> {
        self.idle.iter().filter(|idle| idle.entrant == entrant).max_by_key(|idle| idle.count)
    }

    /// The good runs that tell an entrant's phases: those in which KVM was traced, if there are some.
    fn telling(&self, entrant: usize) -> Vec<&Moments> {
        let traced = self.runs.iter().filter(|run| run.entrant == entrant && run.traced);
        let traced: Vec<_> = traced.filter_map(|run| run.outcome.as_ref().ok()).collect();
        match self.levels().first() {
            Some(level) if traced.is_empty() => self.good(entrant, *level, false).collect(),
            _ => traced,
        }
    }

    /// Whether KVM was traced in some good runs.
    pub(super) fn has_traced(&self) -> bool {
        self.runs.iter().any(|run| run.traced && run.outcome.is_ok())
    }

    /// Mean lengths of the phases of an entrant's good runs that have them, in ms and in order.
    pub(super) fn phases(&self, entrant: usize) -> Vec<(&'static str, f64)> {
        let good = self.telling(entrant);
        let mean = |pick: &dyn Fn(&Moments) -> Option<Duration>| {
            let values: Option<Vec<f64>> = good.iter().map(|m| pick(m).map(ms)).collect();
            let values = values.filter(|values| !values.is_empty())?;
            Some(values.iter().sum::<f64>() / values.len() as f64)
        };
        let (run, kernel, init) = (mean(&|m| m.kvm_run), mean(&|m| m.kernel), mean(&|m| m.init));
        // What is not known is part of what comes after it.
        let entered = run.or(kernel).is_some();
        let moments = [
            ("start of the VMM", run),
            ("to the kernel's entry", kernel),
            (if entered { "guest kernel" } else { "VMM and guest kernel" }, init),
            (if init.is_some() { "init" } else { "start" }, mean(&|m| Some(m.first))),
            ("workload and end", mean(&|m| Some(m.exit))),
        ];
        let mut before = 0.0;
        let mut phases = Vec::new();
        for (name, moment) in moments {
            let Some(moment) = moment else { continue };
            phases.push((name, (moment - before).max(0.0)));
            before = moment;
        }
        phases
    }
}

/// A length of time in ms.
pub(super) fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}
