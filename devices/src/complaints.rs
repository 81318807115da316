//! A bound on what a guest can make us say.

use std::fmt;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Lets one message a second through and counts the others.
#[derive(Debug, Default)]
pub struct Complaints(Mutex<(Option<Instant>, u64)>);

impl Complaints {
    /// Whether the next message may be said now: then how many were not, since the last one was.
    pub fn admit(&self) -> Option<Silent> {
        // Two plain values; a panic elsewhere cannot leave them inconsistent.
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (last, silent) = &mut *state;
        if last.is_some_and(|last| last.elapsed() < Duration::from_secs(1)) {
            *silent += 1;
            return None;
        }
        *last = Some(Instant::now());
        Some(Silent(std::mem::take(silent)))
    }
}

/// How many messages were not said. Displayed behind the next one, as nothing if there were none.
#[derive(Debug, PartialEq, Eq)]
pub struct Silent(u64);

impl fmt::Display for Silent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            0 => Ok(()),
            count => write!(f, " ({count} before were not shown)"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_message_passes_and_the_others_are_counted() {
        let complaints = Complaints::default();
        assert_eq!(complaints.admit(), Some(Silent(0)));
        assert_eq!((complaints.admit(), complaints.admit()), (None, None));
        complaints.0.lock().unwrap().0 = None;
        assert_eq!(complaints.admit(), Some(Silent(2)));
        assert_eq!(format!("x{}x{}", Silent(0), Silent(2)), "xx (2 before were not shown)");
    }
}
