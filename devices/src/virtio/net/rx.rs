//! From the host to the guest (virtio 1.3 §5.1.6.3, §5.1.6.4).
//!
//! A frame is read straight into the chains at the front of the receive queue, and for most backends
//! it is only then known how many it fills. What does not fit goes into a buffer of the host's: the
//! frame waits there until the driver has given more chains (with `MRG_RXBUF`), or is dropped. That
//! buffer is no more than address space until it is needed.

use std::io;

use vm_memory::GuestMemoryMmap;

use super::backend::{Backend, ETHERNET_HEADER, Received, VLAN_TAG};
use super::limit::{Direction, Turn};
use super::{HEADER_LEN, MAX_FRAME};
use crate::counters::Counters;
use crate::virtio::interrupt::Interrupt;
use crate::virtio::queue::{Lookahead, Queue};

/// Frames of one round.
const ROUND: usize = 64;
/// Where `gso_type` and `num_buffers` stand in the header.
const GSO_TYPE: usize = 1;
const NUM_BUFFERS: usize = 10;
/// `VIRTIO_NET_HDR_GSO_NONE`; `VIRTIO_NET_HDR_GSO_ECN` is a bit beside the type.
const GSO_NONE: u8 = 0;
const GSO_ECN: u8 = 0x80;

/// A frame of which only the front fitted into the chains there were.
struct Waiting {
    /// Bytes of the frame that are in the front chains.
    placed: usize,
    /// Its length.
    len: usize,
}

pub(super) struct Rx {
    pub(super) queue: Queue,
    mergeable: bool,
    /// The longest frame the driver takes that is not to be segmented, with its header.
    longest: usize,
    spill: Box<[u8]>,
    waiting: Option<Waiting>,
    /// Bytes that have come of a frame which comes in parts, with the header; they are in the front
    /// chains.
    begun: usize,
    /// There are no buffers: nothing is read until the driver rings.
    starved: bool,
}

/// How a round ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// Everything that can be done has been done.
    Idle,
    /// Not before the limit allows more.
    Limited,
    /// The backend has failed for good.
    Gone,
}

enum Step {
    /// A frame came through, or a part of one, or was dropped.
    Frame,
    /// No frame, for now.
    Idle,
    /// The driver must give more.
    Starved,
    /// The ring is malformed.
    Broken,
    /// There is nothing any more to read from.
    Gone,
}

impl Rx {
    /// `mtu` is what the driver was told, if it listened.
    pub(super) fn new(queue: Queue, mergeable: bool, mtu: Option<u16>) -> Rx {
        let spill = vec![0; MAX_FRAME].into_boxed_slice();
        let longest =
            mtu.map_or(MAX_FRAME, |mtu| HEADER_LEN + ETHERNET_HEADER + VLAN_TAG + usize::from(mtu));
        let (waiting, begun, starved) = (None, 0, false);
        Rx { queue, mergeable, longest, spill, waiting, begun, starved }
    }

    /// The driver has given buffers.
    pub(super) fn refilled(&mut self) {
        self.starved = false;
    }

    /// Passes frames on until there are no more, no buffers, or others must have their turn.
    pub(super) fn run(
        &mut self,
        backend: &mut dyn Backend,
        limit: &mut Direction,
        memory: &GuestMemoryMmap,
        interrupt: &Interrupt,
    ) -> End {
        if self.starved {
            return End::Idle;
        }
        let chains = if self.mergeable { usize::from(self.queue.size()) } else { 1 };
        let Rx { queue, longest, spill, waiting, begun, .. } = self;
        let counters = interrupt.counters();
        let mut frame =
            Frame { backend, limit, spill, waiting, begun, counters, chains, longest: *longest };
        let Some(mut ahead) = queue.look_ahead(memory, interrupt) else { return End::Idle };
        for _ in 0..ROUND {
            if frame.limit.may_go() == Turn::Wait {
                ahead.signal();
                return End::Limited;
            }
            match frame.step(&mut ahead) {
                Step::Frame => {}
                Step::Idle => {
                    ahead.signal();
                    return End::Idle;
                }
                Step::Starved if ahead.listen() => {}
                Step::Starved => {
                    self.starved = true;
                    ahead.signal();
                    return End::Idle;
                }
                Step::Broken => return End::Idle,
                Step::Gone => {
                    ahead.signal();
                    return End::Gone;
                }
            }
        }
        ahead.signal();
        ahead.ring();
        End::Idle
    }
}

struct Frame<'a> {
    backend: &'a mut dyn Backend,
    limit: &'a mut Direction,
    spill: &'a mut [u8],
    waiting: &'a mut Option<Waiting>,
    begun: &'a mut usize,
    counters: &'a Counters,
    /// The most chains of one frame.
    chains: usize,
    longest: usize,
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
        // A backend without headers leaves room for one, which is all zeroes.
        let start = match *self.begun {
            0 if self.backend.has_headers() => 0,
            0 => HEADER_LEN,
            begun => begun,
        };
        if start + self.backend.expects() > room {
            if self.is_all(ahead) {
                self.backend.skip();
                return self.drop();
            }
            return Step::Starved;
        }
        let Some(mut iovecs) = ahead.iovecs() else { return Step::Broken };
        iovecs.push(self.spill);
        iovecs.advance(start);
        match self.backend.receive(iovecs) {
            Ok(Received::Part(len)) => {
                *self.begun = start + len;
                Step::Frame
            }
            Ok(Received::Whole(len)) => {
                *self.begun = 0;
                let len = start + len;
                self.limit.count(len - HEADER_LEN.min(len));
                if len < HEADER_LEN {
                    self.drop()
                } else if len <= room {
                    self.deliver(ahead, len)
                } else {
                    self.finish(ahead, room, Waiting { placed: room, len })
                }
            }
            Err(e) if is_gone(&e) => Step::Gone,
            // WouldBlock, and whatever else: the next event says more.
            Err(_) => Step::Idle,
        }
    }

    /// Whether there will be no more room than there is.
    fn is_all(&self, ahead: &Lookahead<'_>) -> bool {
        ahead.chains() >= self.chains || ahead.is_full()
    }

    fn drop(&mut self) -> Step {
        *self.begun = 0;
        self.counters.add_error();
        Step::Frame
    }

    /// Goes on with a frame that did not fit into `placed` bytes, now that there are `room`.
    fn finish(&mut self, ahead: &mut Lookahead<'_>, room: usize, waiting: Waiting) -> Step {
        let Waiting { placed, len } = waiting;
        if room < len {
            if self.is_all(ahead) {
                return self.drop();
            }
            *self.waiting = Some(waiting);
            return Step::Starved;
        }
        let rest = self.spill.get(..len - placed).unwrap_or_default();
        if ahead.copy_from(placed, rest).is_err() {
            return self.drop();
        }
        self.deliver(ahead, len)
    }

    /// Says how many chains the frame of `len` bytes takes, and gives them to the driver.
    fn deliver(&mut self, ahead: &mut Lookahead<'_>, len: usize) -> Step {
        let mut gso_type = [GSO_NONE];
        let mut written = Ok(());
        if !self.backend.has_headers() {
            written = ahead.copy_from(0, &[0; HEADER_LEN]);
        } else if len > self.longest {
            written = ahead.copy_to(GSO_TYPE, &mut gso_type);
        }
        // virtio 1.3 §5.1.4.1: what is longer than the MTU must be there to be segmented.
        if len > self.longest && gso_type[0] & !GSO_ECN == GSO_NONE {
            return self.drop();
        }
        // At most the queue's size, so the cast keeps the number.
        let count = ahead.chains_for(len) as u16;
        // Their memory may be such as cannot be had.
        if written.and_then(|()| ahead.copy_from(NUM_BUFFERS, &count.to_le_bytes())).is_err() {
            return self.drop();
        }
        ahead.consume(len);
        Step::Frame
    }
}

/// Whether the host says that there is nothing any more at the other end.
fn is_gone(error: &io::Error) -> bool {
    // The first two are a TAP's that was deleted.
    matches!(error.raw_os_error(), Some(libc::EBADFD | libc::ENODEV))
        || error.kind() == io::ErrorKind::BrokenPipe
}
