//! How much of each direction's traffic passes in a time.

use std::time::{Duration, Instant};

use crate::rate::{Bucket, Budget};

/// The limits of one direction; the default is none.
#[derive(Debug, Clone, Default)]
pub struct Direction {
    /// Bytes of frames, without the virtio header; and frames, of which large ones that somebody else
    /// is to segment count once.
    budget: Budget,
    /// How long the last one that was told to wait has to.
    wait: Duration,
}

/// Limits of a network card.
#[derive(Debug, Clone, Default)]
pub struct Limits {
    /// To the guest.
    pub rx: Direction,
    /// From the guest.
    pub tx: Direction,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Turn {
    Go,
    Wait,
}

impl Direction {
    /// Limits by bytes and by frames.
    pub fn new(bandwidth: Option<Bucket>, ops: Option<Bucket>) -> Direction {
        Direction { budget: Budget { bytes: bandwidth, requests: ops }, wait: Duration::ZERO }
    }

    /// Whether there is any limit.
    pub fn is_limited(&self) -> bool {
        self.budget.is_limited()
    }

    /// How long to wait after [`Turn::Wait`].
    pub(super) fn wait(&self) -> Duration {
        self.wait
    }

    /// Asks for a frame of which nothing is known yet: it passes if anything would, and
    /// [`Direction::count`] says later what it was.
    pub(super) fn may_go(&mut self) -> Turn {
        let turn = self.take_frame(1);
        if turn == Turn::Go {
            self.give_back(1);
        }
        turn
    }

    /// A frame of `len` bytes has passed that [`Direction::may_go`] let through.
    pub(super) fn count(&mut self, len: usize) {
        if self.is_limited() {
            self.budget.spend(len as u64, Instant::now());
        }
    }

    /// So much has gone beside what was asked for.
    pub(super) fn count_surplus(&mut self, (bytes, frames): (usize, usize)) {
        if frames == 0 || !self.is_limited() {
            return;
        }
        let now = Instant::now();
        let Budget { bytes: bandwidth, requests } = &mut self.budget;
        for (bucket, n) in [(bandwidth, bytes), (requests, frames)] {
            if let Some(bucket) = bucket {
                bucket.spend(n as u64, now);
            }
        }
    }

    /// Asks for a frame of `len` bytes.
    pub(super) fn take_frame(&mut self, len: usize) -> Turn {
        if !self.is_limited() {
            return Turn::Go;
        }
        match self.budget.take(len as u64, Instant::now()) {
            Ok(()) => Turn::Go,
            Err(wait) => {
                self.wait = wait;
                Turn::Wait
            }
        }
    }

    /// The frame did not go after all.
    pub(super) fn give_back(&mut self, len: usize) {
        self.budget.give_back(len as u64);
    }
}
