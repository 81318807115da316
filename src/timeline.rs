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

/// What stands in the table's first line, before and after the first mark's moment.
const SINCE: (&str, &str) = ("since ", " s of CLOCK_MONOTONIC");

/// The moment on `CLOCK_MONOTONIC`, since it began: for whoever else has that clock. [`Instant`] is of the same
/// clock, but tells differences alone.
pub(crate) fn monotonic(at: Instant) -> Duration {
    let read = || {
        let (before, mut clock) = (Instant::now(), libc::timespec { tv_sec: 0, tv_nsec: 0 });
        // SAFETY: a clock that every Linux has, and a valid place for its value.
        unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut clock) };
        let (sec, nsec) = (clock.tv_sec.try_into(), clock.tv_nsec.try_into());
        let clock = Duration::new(sec.unwrap_or(0), nsec.unwrap_or(0));
        (before.elapsed(), before, clock)
    };
    // The two are read one after the other: the closest of some pairs, should something come between.
    let mut best = read();
    for _ in 0..4 {
        let next = read();
        if next.0 < best.0 {
            best = next;
        }
    }
    let (_, now, clock) = best;
    match at.checked_duration_since(now) {
        Some(after) => clock + after,
        None => clock.saturating_sub(now.duration_since(at)),
    }
}

/// When a phase was reached, on `CLOCK_MONOTONIC`, in a table that was printed ([`Timeline`]'s `Display`).
#[cfg(any(test, feature = "compare"))]
pub(crate) fn read(table: &str, phase: Phase) -> Option<Duration> {
    let start = table.lines().find_map(|line| line.split_once(SINCE.0)?.1.strip_suffix(SINCE.1))?;
    let name = phase.to_string();
    let line = table.lines().find_map(|line| line.trim_end().strip_suffix(name.as_str()))?;
    let ms: f64 = line.split_whitespace().next()?.parse().ok()?;
    let start = Duration::try_from_secs_f64(start.parse().ok()?).ok()?;
    start.checked_add(Duration::try_from_secs_f64(ms / 1e3).ok()?)
}

/// A table: milliseconds since the first mark, which stands in the first line, and since the one before.
impl fmt::Display for Timeline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let marks = self.marks();
        let Some(&(_, start)) = marks.first() else { return Ok(()) };
        let millis = |d: Duration| d.as_secs_f64() * 1e3;
        let since = monotonic(start).as_secs_f64();
        writeln!(f, "{:>10}  {:>10}  {}{since:.6}{}", "ms", "+ms", SINCE.0, SINCE.1)?;
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

    #[test]
    fn a_moment_in_a_table_is_found_on_the_clock_that_everybody_has() {
        let timeline = Timeline::default();
        let begun = Instant::now();
        timeline.mark_at(Phase::ProcessStart, begun + Duration::from_millis(30));
        timeline.mark_at(Phase::FirstRun, begun + Duration::from_millis(35));
        let text = format!("a line before\n{timeline}");
        let moment = read(&text, Phase::FirstRun).unwrap();
        let since = moment.checked_sub(monotonic(begun)).unwrap();
        // The machine may sleep between two readings of a clock, five times in a row.
        assert!(since.abs_diff(Duration::from_millis(35)) < Duration::from_millis(5), "{since:?}");
        assert_eq!(read(&text, Phase::Ended), None);
        assert_eq!(read("5 5 first KVM_RUN\n", Phase::FirstRun), None, "since when?");
        let odd = text.replace(" 5.000", "-5.000");
        assert_eq!(read(&odd, Phase::FirstRun), None, "{odd}");
    }
}
