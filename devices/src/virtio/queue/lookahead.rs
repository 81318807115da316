//! Several available chains at once, for receive queues (virtio 1.3 §5.1.6.4).
//!
//! A frame's size is known only when it has been read, and with `MRG_RXBUF` it may fill several
//! chains. [`Lookahead`] is a window that slides over the available ring: chains enter it with
//! [`Lookahead::gather`], each walked once, and leave it with [`Lookahead::consume`], which
//! publishes all chains of one frame with one step of the used index. What is still in the window
//! when it is dropped was never taken.

use vm_memory::GuestMemoryMmap;

use super::chain::{self, OutOfChain};
use super::ring::Rings;
use super::{Interrupt, Malformed, Queue};
use crate::backing::Backing;
use crate::iovec::{IOV_MAX, Iovecs};

/// A chain in the window.
pub(super) struct Ahead {
    head: u16,
    /// How many of the queue's segments are its own; those of the chains before it come first.
    segments: usize,
    /// Writable bytes.
    len: usize,
}

/// A window over the available chains of a [`Queue`]; see [`Queue::look_ahead`].
pub struct Lookahead<'q> {
    queue: &'q mut Queue,
    memory: &'q GuestMemoryMmap,
    interrupt: &'q Interrupt,
    rings: Rings<'q>,
    /// Bytes of the chains in the window.
    len: usize,
    /// The window has as many segments as one system call takes.
    full: bool,
    /// The worst of all segments there were in it.
    backing: Backing,
}

impl<'q> Lookahead<'q> {
    pub(super) fn new(
        queue: &'q mut Queue,
        memory: &'q GuestMemoryMmap,
        interrupt: &'q Interrupt,
        rings: Rings<'q>,
    ) -> Lookahead<'q> {
        queue.segments.clear();
        queue.ahead.clear();
        Lookahead { queue, memory, interrupt, rings, len: 0, full: false, backing: Backing::Ram }
    }

    /// Widens the window until it has `bytes` bytes or `chains` chains or nothing more is
    /// available, and says how many bytes it has. A chain of fewer than `least` bytes breaks the
    /// device's rules. `None`: the ring is malformed and the queue broken.
    pub fn gather(&mut self, bytes: usize, chains: usize, least: usize) -> Option<usize> {
        if self.queue.broken {
            return None;
        }
        match self.widen(bytes, chains, least) {
            Ok(()) => Some(self.len),
            Err(why) => {
                self.queue.fail(self.interrupt, why);
                None
            }
        }
    }

    /// Chains in the window.
    pub fn chains(&self) -> usize {
        self.queue.ahead.len()
    }

    /// Whether no chain can enter before one leaves: a system call takes no more segments.
    pub fn is_full(&self) -> bool {
        self.full
    }

    /// How many chains of the window hold its first `len` bytes.
    pub fn chains_for(&self, len: usize) -> usize {
        let mut left = len;
        self.queue.ahead.iter().take_while(|c| take(&mut left, c.len)).count()
    }

    /// Copies `data` to byte `offset` of the window.
    ///
    /// # Errors
    /// When the window ends before, or cannot be had.
    pub fn copy_from(&self, offset: usize, data: &[u8]) -> Result<(), OutOfChain> {
        // SAFETY: walk put there only segments of `memory`, which is borrowed.
        unsafe { chain::copy_into(&self.queue.segments, self.backing, offset, data) }
    }

    /// Copies the bytes at `offset` of the window to `data`: what has been put there, unless the
    /// driver has written to its buffers since.
    ///
    /// # Errors
    /// When the window ends before, or cannot be had.
    pub fn copy_to(&self, offset: usize, data: &mut [u8]) -> Result<(), OutOfChain> {
        // SAFETY: walk put there only segments of `memory`, which is borrowed.
        unsafe { chain::copy_out(&self.queue.segments, self.backing, offset, data) }
    }

    /// All bytes of the window, for a system call that fills them.
    pub fn iovecs(&mut self) -> Option<Iovecs<'_>> {
        let Queue { segments, scratch, .. } = &mut *self.queue;
        // SAFETY: walk put there only segments of `memory`, which is borrowed.
        unsafe { Iovecs::slice(segments, self.backing, 0, self.len, scratch) }
    }

    /// Takes the chains that hold the first `len` bytes, says of each how much was written, and
    /// publishes them together.
    pub fn consume(&mut self, len: usize) {
        if let Err(why) = self.take(len) {
            self.queue.fail(self.interrupt, why);
        }
    }

    /// Asks for a doorbell at the next chain behind the window; true when there is one already.
    pub fn listen(&mut self) -> bool {
        let seen = self.seen();
        match self.queue.listen(&self.rings, seen) {
            Ok(more) => more,
            Err(why) => {
                self.queue.fail(self.interrupt, why);
                false
            }
        }
    }

    /// Interrupts for what was consumed, if the driver wants that.
    pub fn signal(&mut self) {
        if let Err(why) = self.queue.signal(&self.rings, self.interrupt) {
            self.queue.fail(self.interrupt, why);
        }
    }

    /// Rings the queue's own doorbell, to be called again.
    pub fn ring(&self) {
        self.queue.ring();
    }

    /// The position behind the window. It has at most `size` chains, so the cast keeps the number.
    fn seen(&self) -> u16 {
        self.queue.state.next_avail.wrapping_add(self.queue.ahead.len() as u16)
    }

    fn widen(&mut self, bytes: usize, chains: usize, least: usize) -> Result<(), Malformed> {
        if self.len >= bytes || self.chains() >= chains {
            return Ok(());
        }
        self.queue.mute(&self.rings)?;
        let mut pending = self.queue.available(&self.rings, self.seen())?;
        while pending > 0 && self.len < bytes && self.chains() < chains {
            let before = self.queue.segments.len();
            let head = self.rings.avail_entry(self.seen())?;
            let Queue { state, segments, ahead, .. } = &mut *self.queue;
            let extent =
                chain::walk(self.memory, &self.rings, state.size, state.indirect, head, segments)?;
            self.backing = self.backing.max(extent.backing);
            // Readable bytes mean nothing here.
            segments.drain(before..before + extent.readable);
            if extent.writable_len < least {
                return Err(Malformed::Device("a receive buffer is too small for a header"));
            }
            // One piece is left for the device's own.
            if segments.len() >= IOV_MAX && !ahead.is_empty() {
                segments.truncate(before);
                self.full = true;
                return Ok(());
            }
            ahead.push(Ahead { head, segments: extent.writable, len: extent.writable_len });
            self.len += extent.writable_len;
            pending -= 1;
        }
        Ok(())
    }

    fn take(&mut self, len: usize) -> Result<(), Malformed> {
        self.full = false;
        let count = self.chains_for(len);
        let mut left = len;
        let mut used_segments = 0;
        for i in 0..count {
            let Some(chain) = self.queue.ahead.get(i) else { break };
            let written = left.min(chain.len);
            let head = chain.head;
            left -= written;
            self.len -= chain.len;
            used_segments += chain.segments;
            // A chain has at most u32::MAX bytes, so the cast keeps the number.
            self.queue.put_used(&self.rings, head, written as u32)?;
        }
        self.queue.ahead.drain(..count);
        self.queue.segments.drain(..used_segments);
        // At most `size` chains, so the cast keeps the number.
        self.queue.state.next_avail = self.queue.state.next_avail.wrapping_add(count as u16);
        self.rings.publish(self.queue.state.next_used)
    }
}

/// Takes a chain of `len` bytes off `left`; false when nothing was left.
fn take(left: &mut usize, len: usize) -> bool {
    let more = *left > 0;
    *left = left.saturating_sub(len);
    more
}
