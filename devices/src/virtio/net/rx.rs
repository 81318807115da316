//! From the TAP to the guest (virtio 1.3 §5.1.6.3, §5.1.6.4).
//!
//! A frame is read straight into the chains at the front of the receive queue, and only then is it
//! known how many it fills. What does not fit goes into a buffer of the host's: the frame waits
//! there until the driver has given more chains (with `MRG_RXBUF`), or is dropped. That buffer is
//! no more than address space until it is needed.

use std::io;
use std::sync::Arc;

use vm_memory::GuestMemoryMmap;

use super::backend::NetBackend;
use super::{HEADER_LEN, MAX_FRAME, is_gone};
use crate::virtio::interrupt::Interrupt;
use crate::virtio::queue::{Lookahead, Queue};

/// Frames of one round.
const ROUND: usize = 64;
/// Where `num_buffers` stands in the header.
const NUM_BUFFERS: usize = 10;

/// A frame of which only the front fitted into the chains there were.
struct Waiting {
    /// Bytes of the frame that are in the front chains.
    placed: usize,
    /// Its length.
    len: usize,
}

pub(super) struct Rx {
    pub(super) queue: Queue,
    tap: Arc<dyn NetBackend>,
    mergeable: bool,
    spill: Box<[u8]>,
    waiting: Option<Waiting>,
    /// There are no buffers: nothing is read until the driver rings.
    starved: bool,
    /// The TAP was deleted.
    gone: bool,
    dropped: u64,
}

enum Step {
    /// A frame came through, or was dropped.
    Frame,
    /// No frame, for now.
    Idle,
    /// The driver must give more.
    Starved,
    /// The ring is malformed.
    Broken,
    /// The TAP was deleted.
    Gone,
}

impl Rx {
    pub(super) fn new(queue: Queue, tap: Arc<dyn NetBackend>, mergeable: bool) -> Rx {
        let spill = vec![0; MAX_FRAME].into_boxed_slice();
        let (waiting, starved, gone, dropped) = (None, false, false, 0);
        Rx { queue, tap, mergeable, spill, waiting, starved, gone, dropped }
    }

    /// The driver has given buffers.
    pub(super) fn refilled(&mut self) {
        self.starved = false;
    }

    /// Passes frames on until there are no more, no buffers, or others must have their turn.
    pub(super) fn run(&mut self, memory: &GuestMemoryMmap, interrupt: &Interrupt) {
        if self.starved || self.gone {
            return;
        }
        let chains = if self.mergeable { usize::from(self.queue.size()) } else { 1 };
        let Rx { queue, tap, spill, waiting, dropped, .. } = self;
        let mut frame = Frame { tap: tap.as_ref(), spill, waiting, dropped, chains };
        let Some(mut ahead) = queue.look_ahead(memory, interrupt) else { return };
        for _ in 0..ROUND {
            match frame.step(&mut ahead) {
                Step::Frame => {}
                Step::Idle => {
                    ahead.signal();
                    return;
                }
                Step::Starved if ahead.listen() => {}
                Step::Starved => {
                    self.starved = true;
                    ahead.signal();
                    return;
                }
                Step::Broken => return,
                Step::Gone => {
                    ahead.signal();
                    self.gone = true;
                    log::warn!(
                        "{}: TAP {} is gone; no more frames are received",
                        interrupt.name(),
                        self.tap.name()
                    );
                    return;
                }
            }
        }
        ahead.signal();
        ahead.ring();
    }
}

impl Drop for Rx {
    fn drop(&mut self) {
        if self.dropped > 0 {
            log::debug!("TAP {}: {} frames to the guest dropped", self.tap.name(), self.dropped);
        }
    }
}

struct Frame<'a> {
    tap: &'a dyn NetBackend,
    spill: &'a mut [u8],
    waiting: &'a mut Option<Waiting>,
    dropped: &'a mut u64,
    /// The most chains of one frame.
    chains: usize,
}

impl Frame<'_> {
    fn step(&mut self, ahead: &mut Lookahead<'_>) -> Step {
        let Some(room) = ahead.gather(MAX_FRAME, self.chains, HEADER_LEN) else {
            return Step::Broken;
        };
        if room == 0 {
            return Step::Starved;
        }
        if let Some(waiting) = self.waiting.take() {
            return self.finish(ahead, room, waiting);
        }
        let Some(mut iovecs) = ahead.iovecs() else { return Step::Broken };
        iovecs.push(self.spill);
        match self.tap.receive(&iovecs) {
            Ok(0) => Step::Idle,
            Ok(len) if len < HEADER_LEN => {
                *self.dropped += 1;
                Step::Frame
            }
            Ok(len) if len <= room => deliver(ahead, len),
            Ok(len) => self.finish(ahead, room, Waiting { placed: room, len }),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => Step::Frame,
            Err(e) if is_gone(&e) => Step::Gone,
            // WouldBlock, and whatever else: the next event says more.
            Err(_) => Step::Idle,
        }
    }

    /// Goes on with a frame that did not fit into `placed` bytes, now that there are `room`.
    fn finish(&mut self, ahead: &mut Lookahead<'_>, room: usize, waiting: Waiting) -> Step {
        let Waiting { placed, len } = waiting;
        if room < len {
            if ahead.chains() >= self.chains || ahead.is_full() {
                // More room there will not be.
                *self.dropped += 1;
                return Step::Frame;
            }
            *self.waiting = Some(waiting);
            return Step::Starved;
        }
        let rest = self.spill.get(..len - placed).unwrap_or_default();
        if ahead.copy_from(placed, rest).is_err() {
            *self.dropped += 1;
            return Step::Frame;
        }
        deliver(ahead, len)
    }
}

/// Says how many chains the frame of `len` bytes takes, and gives them to the driver.
fn deliver(ahead: &mut Lookahead<'_>, len: usize) -> Step {
    // At most the queue's size, so the cast keeps the number.
    let count = ahead.chains_for(len) as u16;
    if ahead.copy_from(NUM_BUFFERS, &count.to_le_bytes()).is_err() {
        return Step::Broken;
    }
    ahead.consume(len);
    Step::Frame
}
