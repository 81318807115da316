//! What was measured, as plain data.

use std::path::PathBuf;
use std::time::Duration;

use super::contestants::Family;
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
    /// Just before the first KVM_RUN, as husk itself says.
    pub kvm_run: Option<Duration>,
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
    /// Whether the workload's own process has one; `None` where it is no process of the host.
    pub workload_filtered: Option<bool>,
    /// Distinct system calls a VMM makes in one run, where that was counted.
    pub syscalls: Option<usize>,
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

    /// The good runs of an entrant.
    pub(super) fn good(
        &self,
        entrant: usize,
        parallel: usize,
        cold: bool,
    ) -> impl Iterator<Item = &Moments> {
        let wanted = move |run: &&Run| {
            run.entrant == entrant && run.parallel == parallel && run.cold == cold
        };
        self.runs.iter().filter(wanted).filter_map(|run| run.outcome.as_ref().ok())
    }

    /// How many runs of an entrant failed.
    pub(super) fn failed(&self, entrant: usize, parallel: usize, cold: bool) -> usize {
        let mine = self.runs.iter().filter(|run| run.entrant == entrant && run.cold == cold);
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

    /// Mean lengths of the phases of an entrant's good runs that have them, in ms and in order.
    pub(super) fn phases(&self, entrant: usize) -> Vec<(&'static str, f64)> {
        let Some(level) = self.levels().first().copied() else { return Vec::new() };
        let good: Vec<_> = self.good(entrant, level, false).collect();
        let mean = |pick: &dyn Fn(&Moments) -> Option<f64>| {
            let values: Option<Vec<f64>> = good.iter().map(|moments| pick(moments)).collect();
            let values = values.filter(|values| !values.is_empty())?;
            Some(values.iter().sum::<f64>() / values.len() as f64)
        };
        let run = mean(&|m| m.kvm_run.map(ms));
        let init = mean(&|m| m.init.map(ms));
        let first = mean(&|m| Some(ms(m.first)));
        let exit = mean(&|m| Some(ms(m.exit)));
        let moments = match (run, init) {
            (Some(_), Some(_)) => vec![
                ("start of the VMM", run),
                ("guest kernel", init),
                ("init", first),
                ("workload and end", exit),
            ],
            (None, Some(_)) => {
                vec![("VMM and guest kernel", init), ("init", first), ("workload and end", exit)]
            }
            _ => vec![("start", first), ("workload and end", exit)],
        };
        let mut before = 0.0;
        let mut phases = Vec::new();
        for (name, moment) in moments {
            let Some(moment) = moment else { return Vec::new() };
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
