//! What an instance costs that does nothing: memory, disk; and what stands around it.

use std::time::{Duration, Instant};

use super::contestants::{Family, docker_number};
use super::launch::{Instance, LIMIT};
use super::results::{Idle, Isolation};
use super::workload::{IDLING, Job};
use super::{CompareError, Field, Progress, cancelled, proc, syscalls};

/// How long memory may take to settle after the start.
const SETTLING: Duration = Duration::from_secs(3);
/// How often it is looked at meanwhile.
const LOOK: Duration = Duration::from_millis(100);

/// Starts one idle instance after the other, up to `most`, of every contestant.
pub fn measure(
    field: &Field<'_>,
    most: usize,
    notes: &mut Vec<String>,
    progress: &mut dyn FnMut(Progress),
) -> Result<(Vec<Idle>, Vec<Isolation>), CompareError> {
    let (mut idle, mut isolation) = (Vec::new(), Vec::new());
    if most == 0 {
        return Ok((idle, isolation));
    }
    let total = field.contestants.len() * (most + 1);
    for (entrant, contestant) in field.contestants.iter().enumerate() {
        let name = contestant.kind.name;
        // These keep their own where we do not look.
        let ours = !["podman", "docker"].contains(&name);
        let (available, usage) = (proc::meminfo("MemAvailable:"), field.lab.usage());
        let mut instances: Vec<(Instance, String)> = Vec::new();
        for count in 1..=most {
            let done = entrant * (most + 1) + count - 1;
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
            let pss = settled(field, &instances);
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
                let workload = proc::called(&pids, &IDLING);
                isolation.push(Isolation {
                    entrant,
                    namespaces: proc::namespaces(&pids),
                    filtered: proc::filtered(&pids),
                    workload_filtered: workload.map(|pid| proc::filtered(&[pid]).0 > 0),
                    syscalls: None,
                });
            }
        }
        drop(instances);
        if contestant.kind.family == Family::Vm {
            let done = entrant * (most + 1) + most;
            progress(Progress { done, total, doing: format!("{name}: system calls") });
            let counted = syscalls::count(field, entrant, notes)?;
            let facts = isolation.iter_mut().filter(|facts| facts.entrant == entrant);
            facts.for_each(|facts| facts.syscalls = counted);
        }
    }
    Ok((idle, isolation))
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

/// The memory of all instances once it grows and shrinks no more, by 1 %, from look to look.
fn settled(field: &Field<'_>, instances: &[(Instance, String)]) -> Option<u64> {
    let end = Instant::now() + SETTLING;
    let (mut before, mut calm) = (proc::pss(&pids(field, instances))?, 0);
    while calm < 3 && Instant::now() < end {
        std::thread::sleep(LOOK);
        let now = proc::pss(&pids(field, instances))?;
        calm = if now.abs_diff(before) <= before / 100 { calm + 1 } else { 0 };
        before = now;
    }
    Some(before)
}
