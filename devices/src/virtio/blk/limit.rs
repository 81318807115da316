//! What a disk may cost its host, shared by its lanes; and a lane that waits for it.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use vmm_sys_util::timerfd::TimerFd;

use crate::rate::Budget;

/// A disk's budget. It outlives stops and resets: a guest cannot leave its debts behind.
pub(super) struct Limiter {
    /// Only a disk with limits has one, and no lane keeps the lock for longer than some sums.
    budget: Mutex<Budget>,
}

impl Limiter {
    pub(super) fn new(budget: Budget) -> Limiter {
        Limiter { budget: Mutex::new(budget) }
    }

    /// Pays for a request, or says how long to wait.
    fn take(&self, bytes: u64) -> Result<(), Duration> {
        // Plain numbers: a panic elsewhere leaves them as consistent as they are.
        let mut budget = self.budget.lock().unwrap_or_else(PoisonError::into_inner);
        budget.take(bytes, Instant::now())
    }
}

/// A lane's share.
pub(super) struct Throttle {
    limiter: Arc<Limiter>,
    timer: TimerFd,
}

impl Throttle {
    pub(super) fn new(limiter: Arc<Limiter>) -> io::Result<Throttle> {
        let timer = TimerFd::new().map_err(io::Error::from)?;
        Ok(Throttle { limiter, timer })
    }

    /// Whether a request of `bytes` bytes may begin; if not, the timer rings when it may.
    pub(super) fn admits(&mut self, bytes: u64) -> bool {
        match self.limiter.take(bytes) {
            Ok(()) => true,
            // A timer that cannot be set would leave the request for ever.
            Err(wait) => self.timer.reset(wait, None).is_err(),
        }
    }

    /// Takes notice of the timer. Never waits, even if it was set again meanwhile.
    pub(super) fn quiet(&mut self) {
        // Disarming a timer that is ours does not fail.
        let _ = self.timer.clear();
    }
}

impl AsRawFd for Throttle {
    fn as_raw_fd(&self) -> RawFd {
        self.timer.as_raw_fd()
    }
}
