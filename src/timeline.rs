//! Where start-up time goes: moments on the monotonic clock, each marked once.

use std::fmt;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// A moment in the life of a VM, named after what has just been done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// The process was started (as far as it can tell).
    ProcessStart,
    /// The configuration is read and checked.
    Configured,
    /// The kernel file is recognised and, if need be, unpacked.
    KernelOpened,
    /// Guest memory is mapped.
    MemoryMapped,
    /// Devices and their backends are open.
    DevicesOpened,
    /// The KVM VM has its memory and its vCPUs, and the devices their doorbells and interrupts.
    KvmVmReady,
    /// Kernel, initrd and tables are in guest memory, and vCPUs know where to begin.
    KernelLoaded,
    /// Just before the first KVM_RUN.
    FirstRun,
    /// The guest's first byte on the console.
    FirstConsoleByte,
    /// The guest's user space wrote to the marker port.
    UserSpaceMarker,
    /// The VM has ended.
    Ended,
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Phase::ProcessStart => "process start",
            Phase::Configured => "configuration",
            Phase::KernelOpened => "kernel opened",
            Phase::MemoryMapped => "memory",
            Phase::DevicesOpened => "devices",
            Phase::KvmVmReady => "KVM VM",
            Phase::KernelLoaded => "kernel load",
            Phase::FirstRun => "first KVM_RUN",
            Phase::FirstConsoleByte => "first console byte",
            Phase::UserSpaceMarker => "user-space marker",
            Phase::Ended => "exit",
        })
    }
}

/// The moments marked so far. Shared by whoever marks one.
#[derive(Debug, Default)]
pub struct Timeline(Mutex<Vec<(Phase, Instant)>>);

impl Timeline {
    /// Marks `phase` as reached now, unless it has been before.
    pub fn mark(&self, phase: Phase) {
        self.mark_at(phase, Instant::now());
    }

    /// Marks `phase` as reached at `at`, unless it has been before.
    pub fn mark_at(&self, phase: Phase, at: Instant) {
        let mut marks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if !marks.iter().any(|(marked, _)| *marked == phase) {
            marks.push((phase, at));
        }
    }

    /// Every mark in the order of time.
    pub fn marks(&self) -> Vec<(Phase, Instant)> {
        let mut marks = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        marks.sort_by_key(|(_, at)| *at);
        marks
    }
}

/// A table: milliseconds since the first mark, and since the one before.
impl fmt::Display for Timeline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let marks = self.marks();
        let Some(&(_, start)) = marks.first() else { return Ok(()) };
        let millis = |d: Duration| d.as_secs_f64() * 1e3;
        writeln!(f, "{:>10}  {:>10}", "ms", "+ms")?;
        let mut before = start;
        for (phase, at) in marks {
            let (total, step) = (millis(at - start), millis(at - before));
            writeln!(f, "{total:>10.3}  {step:>10.3}  {phase}")?;
            before = at;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moment_is_marked_once_and_the_table_is_in_order() {
        let timeline = Timeline::default();
        let start = Instant::now();
        timeline.mark_at(Phase::FirstRun, start + Duration::from_millis(5));
        timeline.mark_at(Phase::ProcessStart, start);
        timeline.mark_at(Phase::FirstRun, start + Duration::from_millis(9));
        let table = timeline.to_string();
        let lines: Vec<_> = table.lines().skip(1).map(str::trim).collect();
        assert_eq!(lines, ["0.000       0.000  process start", "5.000       5.000  first KVM_RUN"]);
    }
}
