//! VMs against containers and against one another: the measurement behind `husk compare`.
//!
//! [`compare`] starts the same small workload with the same files under every contestant, in turn and
//! in random order, and times each on one clock, from the fork of its launcher. It finds what is
//! installed, says what is not, starts nothing that it does not end, and leaves nothing behind,
//! whether it is done or given up. [`Results`] are what was measured, as a table, as CSV and as one
//! page of HTML. Nothing here knows how husk boots a guest: husk is a program among the others.

mod bundle;
mod contestants;
mod environment;
mod error;
mod idle;
mod kernel;
mod lab;
mod launch;
mod phases;
mod proc;
mod program;
mod python;
mod reach;
mod report;
mod results;
mod rounds;
mod seccomp;
mod stats;
mod syscalls;
mod trace;
mod workload;

use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

pub use environment::{Environment, Kvm};
pub use error::CompareError;
pub use reach::Reach;
pub use report::{Prepared, prepare as prepare_directory};
pub use results::{Daemon, Entrant, Idle, Isolation, Moments, Results, Run};
pub use stats::Percentiles;
pub use workload::Workload;

pub use contestants::Family;

use serde_json::Value;

use contestants::{KINDS, Kind, Start};
use lab::Lab;
use launch::{Call, Failure};
use workload::Job;

/// What is to be compared, and how often.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The husk program.
    pub husk: PathBuf,
    /// The contestants by name; all that are installed if there is none.
    pub with: Vec<String>,
    /// How often each is measured, at each level of parallelism.
    pub runs: usize,
    /// How many instances are started at once.
    pub parallel: Vec<usize>,
    /// How many idle instances memory is measured with; 0 leaves memory, disk and isolation out.
    pub idle: usize,
    /// Whether to measure with cold caches as well, where that is permitted.
    pub cold: bool,
    /// What each instance does.
    pub workload: Workload,
    /// The kernel of the VMs; the one `husk run` takes if none is given.
    pub kernel: Option<PathBuf>,
    /// What is added to the kernel's command line in all VMs.
    pub append: String,
    /// What the random order comes from.
    pub seed: u64,
}

/// The most runs, instances at once, and idle instances that are believed to be meant.
const MOST: (usize, usize, usize) = (100_000, 1000, 1000);

impl Plan {
    /// Whether the plan can be carried out at all, as far as that can be said without the host.
    ///
    /// # Errors
    /// What in it cannot.
    pub fn check(&self) -> Result<(), CompareError> {
        let within = |what, range, value: usize, least: usize, most: usize| {
            let ok = (least..=most).contains(&value);
            ok.then_some(()).ok_or(CompareError::Range { what, range, value })
        };
        within("--runs", "from 1 to 100000", self.runs, 1, MOST.0)?;
        within("the number of levels of --parallel", "from 1 to 16", self.parallel.len(), 1, 16)?;
        for level in &self.parallel {
            within("a level of --parallel", "from 1 to 1000", *level, 1, MOST.1)?;
        }
        within("--idle", "from 0 to 1000", self.idle, 0, MOST.2)?;
        self.with.iter().try_for_each(|name| Kind::named(name).map(drop))
    }

    /// Who was asked for, each once.
    fn wanted(&self) -> Result<Vec<&'static Kind>, CompareError> {
        let mut wanted: Vec<&'static Kind> = Vec::new();
        for name in &self.with {
            let kind = Kind::named(name)?;
            if !wanted.iter().any(|other| other.name == kind.name) {
                wanted.push(kind);
            }
        }
        Ok(if wanted.is_empty() { KINDS.iter().collect() } else { wanted })
    }
}

/// How far a comparison is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Progress {
    /// Steps done.
    pub done: usize,
    /// All of them.
    pub total: usize,
    /// What is being done.
    pub doing: String,
}

/// A contestant that takes part.
struct Contestant {
    kind: &'static Kind,
    program: PathBuf,
    /// What was made ready for all its instances, for as long as it takes part.
    _prepared: Made,
}

/// The command that removes what was made for a contestant; run when this is dropped.
#[derive(Default)]
struct Made(Option<Vec<OsString>>);

impl Drop for Made {
    fn drop(&mut self) {
        if let Some(undo) = &self.0 {
            // It may be gone, or whoever keeps it.
            let _ = launch::quietly(undo, launch::UNDO_LIMIT);
        }
    }
}

/// All that a measurement needs.
struct Field<'a> {
    lab: Lab,
    contestants: Vec<Contestant>,
    cancel: &'a AtomicBool,
    /// For names of instances that nobody else has.
    started: std::cell::Cell<usize>,
}

impl Field<'_> {
    /// The call of a new instance of contestant `n`, and the instance's name.
    fn call(&self, n: usize, job: Job) -> Result<(Call, String), CompareError> {
        let count = self.started.replace(self.started.get() + 1);
        let id = format!("husk-compare-{}-{count}", std::process::id());
        let Some(contestant) = self.contestants.get(n) else {
            return Err(CompareError::NobodyLeft(Vec::new()));
        };
        let (kind, program) = (contestant.kind, contestant.program.as_path());
        let call = kind.call(&Start { lab: &self.lab, program, id: &id, job })?;
        Ok((call, id))
    }

    fn name(&self, n: usize) -> &'static str {
        self.contestants.get(n).map_or("", |contestant| contestant.kind.name)
    }
}

/// Carries out `plan`; gives up when `cancel` becomes true. `progress` is told of each step.
///
/// # Errors
/// [`CompareError`]; a contestant that does not do its work is left out instead, and the results say
/// why.
pub fn compare(
    plan: &Plan,
    cancel: &AtomicBool,
    progress: &mut dyn FnMut(Progress),
) -> Result<Results, CompareError> {
    plan.check()?;
    let (mut installed, mut absent) = installed(plan)?;
    let environment = Environment::of(&crate::doctor::examine());
    if let Some(why) = &environment.no_linux {
        let of = |family: fn(&Family) -> bool| {
            let some = installed.iter().filter(|contestant| family(&contestant.kind.family));
            some.map(|contestant| contestant.kind.name).collect::<Vec<_>>()
        };
        let (vms, others) = (of(|f| *f == Family::Vm), of(|f| *f != Family::Vm));
        // What was asked for by name is not left out in silence.
        if !plan.with.is_empty() && !vms.is_empty() {
            let (vms, others) = (vms.join(", "), others.join(","));
            return Err(CompareError::NoLinux { vms, why: why.clone(), others });
        }
        absent.extend(vms.into_iter().map(|name| (name, why.clone())));
        installed.retain(|contestant| contestant.kind.family != Family::Vm);
    }
    let vms = || installed.iter().filter(|c| c.kind.family == Family::Vm).map(|c| c.kind.name);
    let kernel = match (&plan.kernel, vms().next()) {
        (_, None) => None,
        (Some(kernel), _) => Some(kernel.clone()),
        (None, _) => Some(crate::kernels::default_kernel()?),
    };
    let mut notes = Vec::new();
    let bundled = installed.iter().filter(|contestant| contestant.kind.bundled);
    let bundled: Vec<_> = bundled.map(|contestant| contestant.kind.name).collect();
    let filter = (!bundled.is_empty())
        .then(|| default_filter(&bundled.join(", "), &environment.kernel, &mut notes))
        .flatten();
    let mut lab = Lab::make(plan.workload, kernel, filter)?;
    lab.append.clone_from(&plan.append);
    let mut contestants = Vec::new();
    for mut contestant in installed {
        match contestant.kind.prepare(&lab, &contestant.program, cancel) {
            Ok(undo) => {
                contestant._prepared = Made(undo);
                contestants.push(contestant);
            }
            Err(why) => absent.push((contestant.kind.name, why)),
        }
    }
    let mut field = Field { lab, contestants, cancel, started: std::cell::Cell::new(0) };

    let warm = rounds::warm_up(&field, progress)?;
    let mut entrants = Vec::new();
    let mut taking_part = Vec::new();
    for (contestant, outcome) in std::mem::take(&mut field.contestants).into_iter().zip(warm) {
        match outcome {
            Ok(line) => {
                entrants.push(Entrant {
                    name: contestant.kind.name,
                    family: contestant.kind.family,
                    version: version(&contestant),
                    command: line,
                });
                taking_part.push(contestant);
            }
            Err(why) => absent.push((contestant.kind.name, why)),
        }
    }
    field.contestants = taking_part;
    if field.contestants.is_empty() {
        let why = absent.iter().map(|(name, why)| format!("{name}: {why}"));
        return Err(CompareError::NobodyLeft(why.collect()));
    }

    let mut runs = rounds::run(&field, plan, &mut notes, progress)?;
    runs.extend(phases::measure(&field, plan, &mut notes, progress)?);
    let idle::Measured { idle, isolation, daemons } =
        idle::measure(&field, plan, &mut notes, progress)?;
    let kernel_bytes = field
        .lab
        .kernel
        .as_ref()
        .map(|kernel| std::fs::metadata(&kernel.given).map_or(0, |metadata| metadata.len()));
    Ok(Results {
        environment,
        workload: plan.workload,
        plan: plan.clone(),
        kernel: field.lab.kernel.as_ref().map(|kernel| kernel.given.clone()),
        kernel_release: field.lab.kernel.as_ref().and_then(|kernel| kernel.has.release.clone()),
        kernel_bytes,
        files_bytes: field.lab.files,
        entrants,
        absent,
        runs,
        idle,
        isolation,
        daemons,
        notes,
    })
}

/// The filter of system calls for the bundles of the `bundled`, and a note about what it is.
fn default_filter(bundled: &str, release: &str, notes: &mut Vec<String>) -> Option<Value> {
    match seccomp::default_filter(&bundle::CAPABILITIES, release) {
        Ok(Some(filter)) => {
            notes.push(format!(
                "{bundled}: with the filter of system calls that containers have by default, {}",
                filter.profile.display()
            ));
            return Some(filter.oci);
        }
        Ok(None) => notes.push(format!(
            "{bundled}: without the filter of system calls that containers have by default; what \
             brings its profile is {}",
            seccomp::PACKAGE
        )),
        Err(why) => notes.push(format!("{bundled}: without a filter of system calls: {why}")),
    }
    None
}

/// Those of the wanted that are here, and the others with the reason.
#[allow(clippy::type_complexity, reason = "two lists")]
fn installed(plan: &Plan) -> Result<(Vec<Contestant>, Vec<(&'static str, String)>), CompareError> {
    let (mut here, mut absent) = (Vec::new(), Vec::new());
    for kind in plan.wanted()? {
        match kind.find(&plan.husk) {
            Some(program) => here.push(Contestant { kind, program, _prepared: Made::default() }),
            // What was asked for by name is not left out in silence.
            None if !plan.with.is_empty() => {
                return Err(CompareError::NotInstalled { name: kind.name, package: kind.package });
            }
            None => absent.push((kind.name, format!("not on PATH: {}", kind.package))),
        }
    }
    Ok((here, absent))
}

/// What a contestant's program says of itself.
fn version(contestant: &Contestant) -> String {
    if contestant.kind.name == "process" {
        return "fork and exec of the workload itself".to_owned();
    }
    let command = [OsString::from(&contestant.program), "--version".into()];
    let said = launch::quietly(&command, Duration::from_secs(10)).unwrap_or_default();
    let line = said.lines().map(str::trim).find(|line| !line.is_empty());
    line.unwrap_or("version unknown").chars().take(100).collect()
}

/// A failure that is not the instance's own.
fn cancelled(failure: Failure) -> Result<String, CompareError> {
    match failure {
        Failure::Cancelled => Err(CompareError::Cancelled),
        Failure::Failed(why) => Ok(why),
    }
}

#[cfg(test)]
mod tests;
