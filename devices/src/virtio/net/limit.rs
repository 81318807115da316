//! How much of each direction's traffic passes in a time.

use std::time::{Duration, Instant};

use crate::rate::Bucket;

/// The limits of one direction; the default is none.
#[derive(Debug, Clone, Default)]
pub struct Direction {
    /// Tokens are bytes of frames, without the virtio header.
    pub bandwidth: Option<Bucket>,
    /// Tokens are frames (large ones that are yet to be segmented count once).
    pub ops: Option<Bucket>,
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
        Direction { bandwidth, ops, wait: Duration::ZERO }
    }

    /// Whether there is any limit.
    pub fn is_limited(&self) -> bool {
        self.bandwidth.is_some() || self.ops.is_some()
    }

    /// How long to wait after [`Turn::Wait`].
    pub(super) fn wait(&self) -> Duration {
        self.wait
    }

    /// Asks for a frame of which nothing is known yet: it passes if anything would, and
    /// [`Direction::count`] says later what it was.
    pub(super) fn may_go(&mut self) -> Turn {
        let turn = self.take(1, 1);
        if turn == Turn::Go {
            self.give_back(1);
        }
        turn
    }

    /// A frame of `len` bytes has passed that [`Direction::may_go`] let through.
    pub(super) fn count(&mut self, len: usize) {
        if !self.is_limited() {
            return;
        }
        let now = Instant::now();
        if let Some(bandwidth) = &mut self.bandwidth {
            bandwidth.spend(len as u64, now);
        }
        if let Some(ops) = &mut self.ops {
            ops.spend(1, now);
        }
    }

    /// Asks for a frame of `len` bytes.
    pub(super) fn take_frame(&mut self, len: usize) -> Turn {
        self.take(len as u64, 1)
    }

    /// The frame did not go after all.
    pub(super) fn give_back(&mut self, len: usize) {
        if let Some(bandwidth) = &mut self.bandwidth {
            bandwidth.give_back(len as u64);
        }
        if let Some(ops) = &mut self.ops {
            ops.give_back(1);
        }
    }

    fn take(&mut self, bytes: u64, frames: u64) -> Turn {
        if !self.is_limited() {
            return Turn::Go;
        }
        let now = Instant::now();
        if let Some(bandwidth) = &mut self.bandwidth
            && let Err(wait) = bandwidth.take(bytes, now)
        {
            self.wait = wait;
            return Turn::Wait;
        }
        if let Some(ops) = &mut self.ops
            && let Err(wait) = ops.take(frames, now)
        {
            if let Some(bandwidth) = &mut self.bandwidth {
                bandwidth.give_back(bytes);
            }
            self.wait = wait;
            return Turn::Wait;
        }
        Turn::Go
    }
}
