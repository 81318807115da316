//! Where a VM's time goes, in a few runs of its own: in these KVM is traced, and their times are in no table of
//! times. Of a host that does not let itself be traced only what a VMM says of itself is known.

use super::contestants::Family;
use super::launch::Failure;
use super::results::{Moments, Run};
use super::stats::Order;
use super::trace::Tracer;
use super::workload::Job;
use super::{CompareError, Field, Plan, Progress, cancelled, rounds};
use crate::timeline;

/// The most such runs of each VM: they tell a mean and no distribution.
const MOST: usize = 5;

/// Runs every VM a few times, in an order drawn anew each time; none where there is no VM or no tracing.
pub fn measure(
    field: &Field<'_>,
    plan: &Plan,
    notes: &mut Vec<String>,
    progress: &mut dyn FnMut(Progress),
) -> Result<Vec<Run>, CompareError> {
    let all = field.contestants.iter().enumerate();
    let mut vms: Vec<usize> =
        all.filter(|(_, c)| c.kind.family == Family::Vm).map(|(n, _)| n).collect();
    let Some(kernel) = field.lab.kernel.as_ref().filter(|_| !vms.is_empty()) else {
        return Ok(Vec::new());
    };
    let made = match &kernel.has.physical {
        Some(physical) => Tracer::make(physical),
        None => Err("where the kernel lies in memory is not known".to_owned()),
    };
    let tracer = match made {
        Ok(tracer) => tracer,
        Err(why) => {
            notes.push(format!(
                "the first KVM_RUN of VMMs other than husk, and the entry of the kernel: not measured, {why}"
            ));
            return Ok(Vec::new());
        }
    };
    let count = plan.runs.min(MOST);
    let (mut runs, mut order) = (Vec::new(), Order::of(plan.seed));
    // After runs with cold caches one more, which counts for nothing, warms them again.
    let warming = usize::from(plan.cold);
    let total = (warming + count) * vms.len();
    let mut done = 0;
    for round in 0..warming + count {
        order.shuffle(&mut vms);
        for &entrant in &vms {
            let doing = format!("phases: {}", field.name(entrant));
            progress(Progress { done, total, doing });
            done += 1;
            let outcome = match traced(field, entrant, &tracer)? {
                Ok(moments) => Ok(moments),
                Err(failure) => Err(cancelled(failure)?),
            };
            let Some(round) = round.checked_sub(warming) else { continue };
            let (cold, parallel, instance) = (false, 1, 0);
            runs.push(Run { entrant, cold, traced: true, parallel, round, instance, outcome });
        }
    }
    vms.sort_unstable();
    for entrant in vms {
        let mine = runs.iter().filter(|run: &&Run| run.entrant == entrant);
        let (mut told, mut why) = (false, None);
        for outcome in mine.map(|run| &run.outcome) {
            match outcome {
                Ok(m) => told |= m.kvm_run.is_some() && m.kernel.is_some(),
                Err(failure) => why = Some(failure),
            }
        }
        let name = field.name(entrant);
        match why {
            Some(why) => notes.push(format!("{name}: a run with KVM traced failed: {why}")),
            None if told => {}
            None => notes.push(format!(
                "{name}: KVM's tracepoints did not tell when its kernel was entered"
            )),
        }
    }
    Ok(runs)
}

fn traced(
    field: &Field<'_>,
    entrant: usize,
    tracer: &Tracer,
) -> Result<Result<Moments, Failure>, CompareError> {
    let host = |e| CompareError::host("tracing KVM")(e);
    let (call, _) = field.call(entrant, Job::Work)?;
    tracer.clear().map_err(host)?;
    let (mut moments, begun) = match rounds::watched(&call, field.cancel) {
        Ok(seen) => seen,
        Err(failure) => return Ok(Err(failure)),
    };
    let seen = tracer.entries().map_err(host)?;
    let since = |at: std::time::Duration| at.checked_sub(timeline::monotonic(begun));
    moments.kvm_run = seen.kvm_run.and_then(since);
    moments.kernel = seen.kernel.and_then(since);
    Ok(Ok(moments))
}
