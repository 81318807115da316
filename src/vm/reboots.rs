//! Whether a guest reboots again and again without getting anywhere, which costs a whole processor and
//! shows nowhere else. The controller says so in the log.

use std::time::{Duration, Instant};

/// This many reboots, each soon after the one before, are no coincidence.
const MANY: u32 = 10;
/// A guest that got anywhere runs for longer than this between two reboots.
const SOON: Duration = Duration::from_secs(5);
/// It is said at most so often.
const PAUSE: Duration = Duration::from_secs(60);

/// The reboots of one VM.
#[derive(Default)]
pub struct Reboots {
    last: Option<Instant>,
    /// How many came soon after the one before, without a break.
    quick: u32,
    said: Option<Instant>,
}

impl Reboots {
    /// Takes note of a reboot at `now`. When it is time to say something: how many there were, each
    /// soon after the one before.
    pub fn note(&mut self, now: Instant) -> Option<u32> {
        let within = |since: Option<Instant>, span| {
            since.is_some_and(|since| now.saturating_duration_since(since) < span)
        };
        self.quick = if within(self.last, SOON) { self.quick.saturating_add(1) } else { 0 };
        self.last = Some(now);
        if self.quick < MANY || within(self.said, PAUSE) {
            return None;
        }
        self.said = Some(now);
        Some(self.quick)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// When something is said of reboots so many milliseconds apart, and of how many.
    fn said(apart: u64, reboots: u32) -> Vec<(u32, u32)> {
        let (start, mut all) = (Instant::now(), Reboots::default());
        let at = |n: u32| start + Duration::from_millis(apart) * n;
        (0..reboots).filter_map(|n| Some((n, all.note(at(n))?))).collect()
    }

    #[test]
    fn a_guest_that_reboots_for_ever_is_spoken_of_once_a_minute() {
        assert_eq!(said(100, 1300), [(10, 10), (610, 610), (1210, 1210)]);
    }

    #[test]
    fn reboots_now_and_then_are_nothing_to_speak_of() {
        assert_eq!(said(6000, 100), []);
        assert_eq!(said(100, 10), []);
    }
}
