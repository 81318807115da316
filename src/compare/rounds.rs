//! The runs that are timed: every contestant in every round, at every level, in an order drawn anew.
//! What a machine does in the course of an hour thus befalls everyone alike. Runs with cold caches come
//! after all others, for caches are everybody's: who ran next would find them empty too.

use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::sync::{Condvar, Mutex, PoisonError};
use std::thread::Builder;
use std::time::Instant;

use super::launch::{Call, Failure, Instance, LIMIT};
use super::results::{Moments, Run};
use super::stats::Order;
use super::workload::Job;
use super::{CompareError, Field, Plan, Progress, cancelled};
use crate::timeline::{self, Phase};

/// Bytes of stack of a thread that watches an instance.
const STACK: usize = 512 << 10;
/// The most runs with cold caches: each costs reading everything anew.
const MOST_COLD: usize = 10;
/// `linux/magic.h`.
const RAMFS_MAGIC: libc::c_long = 0x8584_58f6;

/// Lets every contestant run once, which is not counted: what it reads is in the caches then. Gives
/// its command, or why it cannot take part.
pub fn warm_up(
    field: &Field<'_>,
    progress: &mut dyn FnMut(Progress),
) -> Result<Vec<Result<String, String>>, CompareError> {
    let total = field.contestants.len();
    let mut outcomes = Vec::new();
    for n in 0..total {
        progress(Progress { done: n, total, doing: format!("warm-up of {}", field.name(n)) });
        let (call, _) = field.call(n, Job::Work)?;
        outcomes.push(match once(&call, field) {
            Ok(_) => Ok(call.line()),
            Err(failure) => Err(cancelled(failure)?),
        });
    }
    Ok(outcomes)
}

/// What is run in a round.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Task {
    entrant: usize,
    parallel: usize,
    cold: bool,
    round: usize,
}

/// The tasks of all rounds, those with cold caches last. A level of ten needs a tenth of the rounds.
fn schedule(contestants: usize, plan: &Plan, cold: bool) -> Vec<Task> {
    let mut order = Order::of(plan.seed);
    let mut levels = plan.parallel.clone();
    levels.sort_unstable();
    levels.dedup();
    let mut all = Vec::new();
    for round in 0..plan.runs {
        let mut tasks = Vec::new();
        for entrant in 0..contestants {
            for &parallel in &levels {
                if round < plan.runs.div_ceil(parallel) {
                    tasks.push(Task { entrant, parallel, cold: false, round });
                }
            }
        }
        order.shuffle(&mut tasks);
        all.extend(tasks);
    }
    for round in 0..if cold { plan.runs.min(MOST_COLD) } else { 0 } {
        let task = |entrant| Task { entrant, parallel: 1, cold: true, round };
        let mut tasks: Vec<Task> = (0..contestants).map(task).collect();
        order.shuffle(&mut tasks);
        all.extend(tasks);
    }
    all
}

/// Runs all of it.
pub fn run(
    field: &Field<'_>,
    plan: &Plan,
    notes: &mut Vec<String>,
    progress: &mut dyn FnMut(Progress),
) -> Result<Vec<Run>, CompareError> {
    let cold = plan.cold
        && match drop_caches() {
            Ok(()) => true,
            Err(e) => {
                notes.push(format!("cold caches: not measured, /proc/sys/vm/drop_caches: {e}"));
                false
            }
        };
    if cold && in_memory(&field.lab.path("")) {
        notes.push(
            "cold caches: the workload's files and the unpacked kernel lie in memory (tmpfs) and are \
             never cold; with $TMPDIR on a disk they are"
                .to_owned(),
        );
    }
    let tasks = schedule(field.contestants.len(), plan, cold);
    let mut runs = Vec::new();
    for (done, task) in tasks.iter().enumerate() {
        let doing =
            format!("round {} of {}: {}", task.round + 1, plan.runs, field.name(task.entrant));
        progress(Progress { done, total: tasks.len(), doing });
        let calls = (0..task.parallel).map(|_| Ok(field.call(task.entrant, Job::Work)?.0));
        let calls = calls.collect::<Result<Vec<Call>, CompareError>>()?;
        if task.cold {
            drop_caches().map_err(CompareError::host("writing /proc/sys/vm/drop_caches"))?;
        }
        for (instance, outcome) in at_once(&calls, field).into_iter().enumerate() {
            let outcome = match outcome {
                Ok(moments) => Ok(moments),
                Err(failure) => Err(cancelled(failure)?),
            };
            let Task { entrant, parallel, cold, round } = *task;
            runs.push(Run { entrant, cold, traced: false, parallel, round, instance, outcome });
        }
    }
    Ok(runs)
}

/// Holds back threads until all are there, or until one cannot be made.
#[derive(Default)]
struct Start {
    /// Whether to go on; nothing while it is open.
    go: Mutex<Option<bool>>,
    said: Condvar,
}

impl Start {
    fn say(&self, go: bool) {
        *self.go.lock().unwrap_or_else(PoisonError::into_inner) = Some(go);
        self.said.notify_all();
    }

    fn wait(&self) -> bool {
        let mut go = self.go.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            match *go {
                Some(go) => return go,
                None => go = self.said.wait(go).unwrap_or_else(PoisonError::into_inner),
            }
        }
    }
}

/// Does `work` on each of `all` in a thread of its own with this stack, all from the same moment on, and
/// gives what came of each. Nothing is begun unless there are threads for all.
fn together<T: Sync, R: Send>(
    all: &[T],
    stack: usize,
    work: impl Fn(&T) -> Result<R, Failure> + Sync,
) -> Vec<Result<R, Failure>> {
    let (start, work) = (&Start::default(), &work);
    std::thread::scope(|scope| {
        let spawn = |one| {
            let waiting = move || if start.wait() { work(one) } else { Err(Failure::Cancelled) };
            Builder::new().stack_size(stack).spawn_scoped(scope, waiting)
        };
        match all.iter().map(spawn).collect::<std::io::Result<Vec<_>>>() {
            Ok(threads) => {
                start.say(true);
                let panicked = || Err(Failure::Failed("its watcher panicked".to_owned()));
                threads.into_iter().map(|one| one.join().unwrap_or_else(|_| panicked())).collect()
            }
            Err(e) => {
                start.say(false);
                let why = format!("no thread to watch it: {e}");
                all.iter().map(|_| Err(Failure::Failed(why.clone()))).collect()
            }
        }
    })
}

/// Starts one instance for each call, all at the same moment, and waits for their ends.
fn at_once(calls: &[Call], field: &Field<'_>) -> Vec<Result<Moments, Failure>> {
    if let [call] = calls {
        return vec![once(call, field)];
    }
    let cancel = field.cancel;
    together(calls, STACK, |call| Ok(watched(call, cancel)?.0))
}

/// Starts one instance and waits for its end.
fn once(call: &Call, field: &Field<'_>) -> Result<Moments, Failure> {
    Ok(watched(call, field.cancel)?.0)
}

/// Its moments, and when it was started.
pub fn watched(call: &Call, cancel: &AtomicBool) -> Result<(Moments, Instant), Failure> {
    let mut instance = Instance::start(call)?;
    instance.until_end(LIMIT, cancel)?;
    let (Some(first), Some(exit)) = (instance.seen.first, instance.seen.exit) else {
        return Err(Failure::Failed("it said nothing".to_owned()));
    };
    // husk says it, in the table of its `--timeline`.
    let at = timeline::read(&instance.errors(), Phase::FirstRun);
    let kvm_run = at.and_then(|at| at.checked_sub(timeline::monotonic(instance.begun())));
    Ok((Moments { kvm_run, kernel: None, init: instance.seen.init, first, exit }, instance.begun()))
}

/// Drops what the host has cached of files (`Documentation/admin-guide/sysctl/vm.rst`). What has yet to
/// be written is not dropped, and is written first.
fn drop_caches() -> std::io::Result<()> {
    // SAFETY: takes nothing, touches no memory of ours and cannot fail.
    unsafe { libc::sync() };
    std::fs::write("/proc/sys/vm/drop_caches", "3")
}

/// Whether what is at `path` is in memory and nowhere else (tmpfs, ramfs).
fn in_memory(path: &Path) -> bool {
    let Ok(path) = CString::new(path.as_os_str().as_bytes()) else { return false };
    // SAFETY: all zeros is a valid statfs, of integers alone; the path is a C string, and both are alive
    // through the call.
    let (failed, of) = unsafe {
        let mut of: libc::statfs = std::mem::zeroed();
        (libc::statfs(path.as_ptr(), &mut of), of)
    };
    failed == 0 && [libc::TMPFS_MAGIC, RAMFS_MAGIC].contains(&of.f_type)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::compare::tests::plan;

    #[test]
    fn every_contestant_runs_equally_often_at_every_level_and_in_no_fixed_order() {
        let mut plan = plan();
        (plan.runs, plan.parallel) = (20, vec![10, 1, 1]);
        let tasks = schedule(3, &plan, true);
        for entrant in 0..3 {
            let count = |parallel, cold| {
                let same = |task: &&Task| {
                    task.entrant == entrant && task.parallel == parallel && task.cold == cold
                };
                tasks.iter().filter(same).count()
            };
            assert_eq!((count(1, false), count(10, false), count(1, true)), (20, 2, MOST_COLD));
        }
        let order = |round| {
            let of = tasks.iter().filter(move |task| task.round == round && !task.cold);
            of.map(|task| task.entrant).collect::<Vec<_>>()
        };
        assert!((3..20).any(|round| order(round) != order(2)));
        // Nobody is warm once the caches were emptied.
        assert!(tasks.is_sorted_by_key(|task| task.cold), "{tasks:?}");
        assert_eq!(tasks, schedule(3, &plan, true));
        plan.seed += 1;
        assert_ne!(tasks, schedule(3, &plan, true));
    }

    #[test]
    fn what_lies_in_memory_is_known_to_be_never_cold() {
        let mounts = std::fs::read_to_string("/proc/mounts").unwrap();
        let mut known = 0;
        for line in mounts.lines() {
            let mut words = line.split(' ').skip(1);
            let (Some(path), Some(kind)) = (words.next(), words.next()) else { continue };
            // The last of those that are mounted at the same place is the one to be seen.
            let seen = mounts.lines().rfind(|line| line.split(' ').nth(1) == Some(path));
            if seen == Some(line) && ["tmpfs", "proc", "sysfs"].contains(&kind) {
                let there = Path::new(path).metadata().is_ok();
                known += usize::from(there);
                assert_eq!(in_memory(Path::new(path)), kind == "tmpfs" && there, "{line}");
            }
        }
        assert!(known > 0, "{mounts}");
        assert!(!in_memory(Path::new("/no/such/directory")));
    }

    #[test]
    fn all_work_together_or_none_when_there_is_no_thread_for_one() {
        let (here, all) = (std::sync::atomic::AtomicUsize::new(0), [1, 2, 3, 4]);
        let outcomes = together(&all, STACK, |n| {
            here.fetch_add(1, std::sync::atomic::Ordering::AcqRel);
            // Until everybody is there.
            while here.load(std::sync::atomic::Ordering::Acquire) < all.len() {
                std::thread::yield_now();
            }
            Ok(n * n)
        });
        assert_eq!(outcomes, [1, 4, 9, 16].map(Ok));
        // More than there are addresses for: the second or third cannot be made.
        let outcomes = together(&all, 1 << 46, |_| -> Result<(), _> { panic!("it was begun") });
        assert_eq!(outcomes.len(), all.len());
        for outcome in outcomes {
            assert!(matches!(outcome, Err(Failure::Failed(why)) if why.contains("no thread")));
        }
    }

    #[test]
    fn the_first_entry_into_the_guest_is_counted_from_the_fork_of_the_launcher() {
        // A husk that takes its time before it is one, and says what its timeline said.
        let timeline = crate::timeline::Timeline::default();
        timeline.mark(Phase::ProcessStart);
        timeline.mark(Phase::FirstRun);
        let words = ["printf", "%s\\n", &timeline.to_string()].map(std::ffi::OsString::from);
        let script = "echo @work; \"$@\" >&2".into();
        let command = ["sh".into(), "-c".into(), script, "sh".into()].into_iter().chain(words);
        let call = Call { command: command.collect(), undo: None, directory: None };
        let cancel = AtomicBool::new(false);
        // It was there before the fork.
        assert_eq!(watched(&call, &cancel).unwrap().0.kvm_run, None);
        // And long after it.
        let later = Instant::now() + Duration::from_secs(3600);
        let timeline = crate::timeline::Timeline::default();
        timeline.mark_at(Phase::ProcessStart, later - Duration::from_secs(5));
        timeline.mark_at(Phase::FirstRun, later);
        let mut call = call;
        *call.command.last_mut().unwrap() = timeline.to_string().into();
        let kvm_run = watched(&call, &cancel).unwrap().0.kvm_run.unwrap();
        let most = Duration::from_secs(3601);
        assert!(kvm_run > Duration::from_secs(3000) && kvm_run < most, "{kvm_run:?}");
    }
}
