//! What an instance costs that does nothing: memory, disk; and what stands around it.

use std::time::{Duration, Instant};

use super::contestants::{Family, docker_number};
use super::launch::{Instance, LIMIT};
use super::reach;
use super::results::{Daemon, Idle, Isolation};
use super::stats::Order;
use super::workload::{IDLING, Job};
use super::{CompareError, Contestant, Field, Plan, Progress, cancelled, proc, syscalls};

/// How long memory may take to settle after the start.
const SETTLING: Duration = Duration::from_secs(3);
/// How often it is looked at meanwhile.
const LOOK: Duration = Duration::from_millis(100);
/// How many looks it must have been calm for.
const CALM: usize = 3;
/// By how much the host's available memory may change from look to look when it is calm, in bytes.
const NOISE: u64 = 256 << 10;

/// What was measured.
#[derive(Default)]
pub struct Measured {
    /// Memory and disk.
    pub idle: Vec<Idle>,
    /// What stands around each.
    pub isolation: Vec<Isolation>,
    /// What serves all of one entrant.
    pub daemons: Vec<Daemon>,
}

/// Starts one idle instance after the other, up to `most`, of every contestant, in an order of their own.
pub fn measure(
    field: &Field<'_>,
    Plan { idle: most, seed, .. }: &Plan,
    notes: &mut Vec<String>,
    progress: &mut dyn FnMut(Progress),
) -> Result<Measured, CompareError> {
    let Measured { mut idle, mut isolation, mut daemons } = Measured::default();
    let most = *most;
    if most == 0 {
        return Ok(Measured::default());
    }
    let total = field.contestants.len() * (most + 1);
    let mut order: Vec<(usize, &Contestant)> = field.contestants.iter().enumerate().collect();
    Order::of(*seed).shuffle(&mut order);
    for (turn, (entrant, contestant)) in order.into_iter().enumerate() {
        let name = contestant.kind.name;
        // These keep their own where we do not look.
        let ours = !["podman", "docker"].contains(&name);
        // What the one before had is given back some time after its end.
        let available = settled(|| proc::meminfo("MemAvailable:"), |_| NOISE);
        let usage = field.lab.usage();
        let served = contestant.kind.daemons.iter().copied();
        let shared: Vec<_> = served.map(|name| (name, daemon(name, &[]))).collect();
        let mut instances: Vec<(Instance, String)> = Vec::new();
        for count in 1..=most {
            let done = turn * (most + 1) + count - 1;
            progress(Progress { done, total, doing: format!("{name}: {count} idle") });
            let (call, id) = field.call(entrant, Job::Idle)?;
            let started = Instance::start(&call).and_then(|mut instance| {
                instance.until_first(LIMIT, field.cancel)?;
                Ok(instance)
            });
            match started {
                Ok(instance) => instances.push((instance, id)),
                Err(failure) => {
                    let why = cancelled(failure)?;
                    notes.push(format!("{name}: idle instance {count}: {why}"));
                    break;
                }
            }
            let pss = settled(|| proc::pss(&pids(field, &instances)), |pss| pss / 100);
            let taken = available.zip(proc::meminfo("MemAvailable:"));
            idle.push(Idle {
                entrant,
                count,
                pss,
                taken: taken.map(|(before, now)| before.cast_signed() - now.cast_signed()),
                disk: ours.then(|| field.lab.usage().saturating_sub(usage)),
            });
            if count == 1 {
                let pids = pids(field, &instances);
                // Looked for after memory has settled: its shell has become what it is by then.
                let workload = match contestant.kind.family {
                    Family::Vm => Some(pids.clone()),
                    _ => proc::called(&pids, &IDLING).map(|pid| vec![pid]),
                };
                isolation.push(Isolation {
                    entrant,
                    namespaces: proc::namespaces(&pids),
                    filtered: proc::filtered(&pids),
                    reach: workload.map(|pids| reach::reach(&pids)),
                    syscalls: None,
                });
            }
        }
        let pids = pids(field, &instances);
        daemons.extend(shared.into_iter().map(|(name, before)| {
            let (count, pss) = (instances.len(), (before, daemon(name, &pids)));
            Daemon { entrant, name, count, pss }
        }));
        drop(instances);
        if contestant.kind.family == Family::Vm {
            let done = turn * (most + 1) + most;
            progress(Progress { done, total, doing: format!("{name}: system calls") });
            let counted = syscalls::count(field, entrant, notes)?;
            let facts = isolation.iter_mut().filter(|facts| facts.entrant == entrant);
            facts.for_each(|facts| facts.syscalls = counted);
        }
    }
    Ok(Measured { idle, isolation, daemons })
}

/// Memory of the processes of this program, but for those `but`; `None` if there is none, or where it is not
/// to be read.
fn daemon(name: &str, but: &[u32]) -> Option<u64> {
    let pids = proc::programs(name, but);
    if pids.is_empty() { None } else { proc::pss(&pids) }
}

fn pids(field: &Field<'_>, instances: &[(Instance, String)]) -> Vec<u32> {
    let of = |(instance, id): &(Instance, String)| {
        // Who else knows it by another name.
        let number = std::fs::read_to_string(docker_number(&field.lab, id)).unwrap_or_default();
        let names = [id.as_str()].into_iter().chain(number.split_whitespace());
        proc::members(instance.pid(), &names.collect::<Vec<_>>())
    };
    instances.iter().flat_map(of).collect()
}

/// What `look` sees once that grows and shrinks no more, or is not to be had, or has had its time:
/// from look to look by at most what `noise` makes of it.
fn settled(look: impl Fn() -> Option<u64>, noise: impl Fn(u64) -> u64) -> Option<u64> {
    let end = Instant::now() + SETTLING;
    let (mut before, mut calm) = (look()?, 0);
    while calm < CALM && Instant::now() < end {
        std::thread::sleep(LOOK);
        let now = look()?;
        calm = if now.abs_diff(before) <= noise(before) { calm + 1 } else { 0 };
        before = now;
    }
    Some(before)
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[test]
    fn memory_is_read_when_it_is_calm_and_that_is_not_waited_for_without_end() {
        let seen = Cell::new(0);
        // Given back bit by bit, and then no more.
        let shrinking = || {
            seen.set(seen.get() + 1);
            Some(1000 - 100 * seen.get().min(5))
        };
        assert_eq!(settled(shrinking, |_| 10), Some(500));
        assert_eq!(seen.get(), 5 + CALM as u64);
        let begun = Instant::now();
        let restless = || {
            seen.set(seen.get() + 1);
            Some(1000 * seen.get())
        };
        assert!(settled(restless, |_| 10).is_some());
        assert!(begun.elapsed() >= SETTLING);
        assert_eq!(settled(|| None, |_| 10), None);
    }
}
