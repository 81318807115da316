//! What a task in a worker may still do: a lease on guest memory that can be called in.
//!
//! A worker whose thread hangs in the host cannot be asked to let go of anything. So every callback of
//! a task takes its lease first and gives it back after; a task that makes a system call which may hang
//! lays the lease down meanwhile ([`Lease::away`]). Whoever gives the task up revokes the lease: then no
//! callback begins any more, and a call that comes back at last finds that it may touch nothing.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};

/// Between two callbacks.
const IDLE: u8 = 0;
/// In a callback, which may touch guest memory.
const BUSY: u8 = 1;
/// In a system call within a callback.
const AWAY: u8 = 2;
/// Given up for good. With [`BUSY`], as soon as the callback is over.
const REVOKED: u8 = 4;

#[derive(Default)]
struct Shared {
    state: AtomicU8,
    recalled: AtomicBool,
}

/// A task's right to touch what its device was given. A clone is the same lease.
#[derive(Clone, Default)]
pub struct Lease {
    shared: Arc<Shared>,
}

impl Lease {
    /// Whether the task is wanted back: it should finish nothing it can put back.
    pub fn is_recalled(&self) -> bool {
        self.shared.recalled.load(Ordering::Acquire)
    }

    /// Makes a call that may hang in the host and touches no guest memory; called in a callback of the
    /// task. `None` when the lease is revoked: the task must touch nothing any more, and return.
    pub fn away<R>(&self, call: impl FnOnce() -> R) -> Option<R> {
        if !self.change(BUSY, AWAY) {
            return None;
        }
        let result = call();
        self.change(AWAY, BUSY).then_some(result)
    }

    pub(super) fn recall(&self) {
        self.shared.recalled.store(true, Ordering::Release);
    }

    /// Begins a callback; false when there must be none.
    pub(super) fn enter(&self) -> bool {
        self.change(IDLE, BUSY)
    }

    /// Ends a callback.
    pub(super) fn leave(&self) {
        if !self.change(BUSY, IDLE) {
            self.shared.state.store(REVOKED, Ordering::Release);
        }
    }

    /// Revokes it. False when the task is in the middle of a callback, at whose end it takes effect.
    pub(super) fn revoke(&self) -> bool {
        for from in [IDLE, AWAY, REVOKED] {
            if self.change(from, REVOKED) {
                return true;
            }
        }
        // It is, or was, in a callback: where it is again by now may have changed.
        if self.change(BUSY, BUSY | REVOKED) {
            return false;
        }
        match self.shared.state.load(Ordering::Acquire) {
            REVOKED => true,
            state if state == BUSY | REVOKED => false,
            _ => self.revoke(),
        }
    }

    /// Whether it is revoked, and nothing of the task is in the middle of anything.
    pub(super) fn is_over(&self) -> bool {
        self.shared.state.load(Ordering::Acquire) == REVOKED
    }

    fn change(&self, from: u8, to: u8) -> bool {
        let state = &self.shared.state;
        state.compare_exchange(from, to, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_revoked_lease_lets_no_callback_begin() {
        let lease = Lease::default();
        assert!(lease.enter());
        lease.leave();
        assert!(!lease.is_recalled());
        assert!(lease.revoke() && lease.is_over());
        assert!(!lease.enter());
        assert!(lease.revoke());
    }

    #[test]
    fn a_call_that_comes_back_to_a_revoked_lease_hears_of_it() {
        let lease = Lease::default();
        assert!(lease.enter());
        assert_eq!(lease.away(|| 5), Some(5));
        assert_eq!(lease.away(|| lease.revoke()), None);
        assert!(lease.is_over());
        assert_eq!(lease.away(|| panic!("called in spite of that")), None::<()>);
        lease.leave();
        assert!(lease.is_over() && !lease.enter());
    }

    #[test]
    fn a_callback_in_the_middle_of_something_is_over_when_it_returns() {
        let lease = Lease::default();
        assert!(lease.enter());
        assert!(!lease.revoke() && !lease.is_over());
        assert!(!lease.revoke());
        assert_eq!(lease.away(|| panic!("called in spite of that")), None::<()>);
        lease.leave();
        assert!(lease.is_over() && !lease.enter());
    }
}
