//! A split virtqueue, from the device's side (virtio 1.3 §2.7).
//!
//! One loop owns the ring: [`Queue::process`] takes chains, checks them, gives each to a closure
//! and publishes what it answers; interrupts and doorbells are suppressed as `EVENT_IDX` or the
//! flags say. Nothing the driver writes is believed, read twice, or able to make this loop for
//! longer than a budget: a malformed ring marks the device `DEVICE_NEEDS_RESET` and the queue is
//! left alone from then on. What must outlive the process is in [`QueueState`].

mod chain;
mod lookahead;
mod ring;
mod state;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering, fence};

use vm_memory::GuestMemoryMmap;
use vmm_sys_util::eventfd::EventFd;

pub use crate::iovec::{IOV_MAX, IovecBuffer, Iovecs};
pub(crate) use chain::Place;
pub use chain::{Chain, MAX_SEGMENTS, OutOfChain};
pub use lookahead::Lookahead;
pub use state::{Malformed, QueueState};

use super::interrupt::Interrupt;
use crate::counters::Counters;
use crate::segment::Segment;
use lookahead::Ahead;
use ring::Rings;

/// What a device says of a chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// Finished; so many bytes of the writable part were filled.
    Done(u32),
    /// Taken; the device calls [`Queue::complete`] later. Until then its head is in
    /// [`QueueState::pending`].
    Deferred,
    /// Not now: the chain is put back and the round ends. Whoever says so calls
    /// [`Queue::process`] again by itself, for the driver is not asked for a doorbell.
    Stop,
    /// Not before the driver has been told of what is done: then the chain is offered again.
    TellFirst,
    /// The round ends, and the queue touches guest memory no more, which is somebody else's by now.
    Gone,
    /// The chain breaks the device's rules beyond answering: the device needs a reset.
    Broken(&'static str),
}

/// How a round of [`Queue::process`] ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Round {
    /// Nothing is left; the driver will ring.
    Idle,
    /// The budget is spent and the queue has rung its own doorbell, so that others get their turn.
    More,
    /// The device answered [`Answer::Stop`].
    Stopped,
    /// The ring is malformed: nothing happens here until the device is reset.
    Broken,
}

/// A queue that is being served.
pub struct Queue {
    state: QueueState,
    doorbell: EventFd,
    /// Chains a round takes before it lets others run.
    budget: u16,
    /// Look at the driver's wish for an interrupt after each chain, not after each round.
    prompt: bool,
    broken: bool,
    /// Chains that were taken before this queue was made, to be served again; the last one first.
    again: Vec<u16>,
    /// Used elements since that look.
    unsignalled: u16,
    segments: Vec<Segment>,
    scratch: IovecBuffer,
    ahead: Vec<Ahead>,
    counters: Arc<Counters>,
    /// How often the queue rang for itself since its doorbell was last read.
    own_rings: AtomicU64,
    /// Bytes of chains that are not in the counters yet: from the guest, to the guest.
    moved: (u64, u64),
}

impl Queue {
    /// A queue that continues from `state`; the driver rings `doorbell`.
    pub fn new(mut state: QueueState, doorbell: EventFd) -> Queue {
        let mut again = std::mem::take(&mut state.pending);
        again.reverse();
        Queue {
            doorbell,
            again,
            budget: state.size,
            state,
            prompt: false,
            broken: false,
            unsignalled: 0,
            segments: Vec::new(),
            scratch: IovecBuffer::default(),
            ahead: Vec::new(),
            counters: Arc::default(),
            own_rings: AtomicU64::new(0),
            moved: (0, 0),
        }
    }

    /// Counts in `counters` what it does from now on.
    pub fn counted_by(mut self, counters: Arc<Counters>) -> Queue {
        self.counters = counters;
        self
    }

    /// Ends a round after `chains` chains (at first: as many as the queue has entries).
    pub fn set_budget(&mut self, chains: u16) {
        self.budget = chains.max(1);
    }

    /// Interrupts as soon as a chain is done: for devices that take long over each.
    pub fn set_prompt(&mut self, prompt: bool) {
        self.prompt = prompt;
    }

    /// What the driver writes to.
    pub fn doorbell(&self) -> &EventFd {
        &self.doorbell
    }

    /// Rings the queue's own doorbell, to be called again.
    pub fn ring(&self) {
        // Fails only when it rings already.
        if self.doorbell.write(1).is_ok() {
            self.own_rings.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Takes notice of the doorbell: to be called before a round, never after.
    pub fn quiet(&self) {
        // Before the doorbell is read: what rings for itself between the two counts next time.
        let own = self.own_rings.swap(0, Ordering::Relaxed);
        // Fails when nobody rang.
        if let Ok(rung) = self.doorbell.read() {
            self.counters.add_doorbells(rung.saturating_sub(own));
        }
    }

    /// Chains that wait to be taken; 0 if the ring is malformed, which the next round will find.
    pub fn waiting(&self, memory: &GuestMemoryMmap) -> usize {
        let rings = Rings::resolve(memory, &self.state);
        let new = rings.and_then(|rings| self.available(&rings, self.state.next_avail));
        usize::from(new.unwrap_or(0)) + self.again.len()
    }

    /// Entries.
    pub fn size(&self) -> u16 {
        self.state.size
    }

    /// Where the queue stands, with all that is pending.
    pub fn state(&self) -> QueueState {
        let mut state = self.state.clone();
        state.pending.extend(self.again.iter().rev());
        state
    }

    /// The device still has what was pending when the queue was stopped: it is not served again,
    /// and [`Queue::complete`] answers it.
    pub fn keep_pending(&mut self) {
        let again = self.again.drain(..).rev();
        self.state.pending.extend(again);
    }

    /// Where the rings are in this process' memory, for somebody else who is to serve them:
    /// descriptor table, available and used ring.
    ///
    /// # Errors
    /// What the driver did wrong.
    pub fn host_addresses(&self, memory: &GuestMemoryMmap) -> Result<[u64; 3], Malformed> {
        Rings::resolve(memory, &self.state).map(|rings| rings.addresses())
    }

    /// Goes on where somebody else has left the rings, who would have taken the chain at position
    /// `next_avail` next.
    ///
    /// # Errors
    /// What the driver did wrong; nothing has changed then.
    pub fn adopt(&mut self, memory: &GuestMemoryMmap, next_avail: u16) -> Result<(), Malformed> {
        self.state.next_used = Rings::resolve(memory, &self.state)?.used_idx()?;
        self.state.next_avail = next_avail;
        Ok(())
    }

    /// Gives the available chains to `f`, in order, and publishes its answers.
    pub fn process(
        &mut self,
        memory: &GuestMemoryMmap,
        interrupt: &Interrupt,
        f: impl FnMut(&mut Chain<'_>) -> Answer,
    ) -> Round {
        if self.broken {
            return Round::Broken;
        }
        match self.round(memory, interrupt, f) {
            Ok(round) => round,
            Err(why) => self.fail(interrupt, why),
        }
    }

    /// Publishes chains that were [`Answer::Deferred`], each with the bytes of it that were filled.
    pub fn complete(
        &mut self,
        memory: &GuestMemoryMmap,
        interrupt: &Interrupt,
        chains: impl IntoIterator<Item = (u16, u32)>,
    ) {
        if self.broken {
            return;
        }
        let done = Rings::resolve(memory, &self.state).and_then(|rings| {
            for (head, len) in chains {
                let pending = &mut self.state.pending;
                if let Some(at) = pending.iter().position(|other| *other == head) {
                    pending.swap_remove(at);
                }
                self.put_used(&rings, head, len)?;
            }
            rings.publish(self.state.next_used)?;
            self.signal(&rings, interrupt)
        });
        if let Err(why) = done {
            self.fail(interrupt, why);
        }
    }

    /// A view of several available chains at once, none of them taken yet; `None` when the ring is
    /// malformed. For receive queues, where one frame may need many.
    pub fn look_ahead<'q>(
        &'q mut self,
        memory: &'q GuestMemoryMmap,
        interrupt: &'q Interrupt,
    ) -> Option<Lookahead<'q>> {
        if self.broken {
            return None;
        }
        match Rings::resolve(memory, &self.state) {
            Ok(rings) => Some(Lookahead::new(self, memory, interrupt, rings)),
            Err(why) => {
                self.fail(interrupt, why);
                None
            }
        }
    }

    fn round(
        &mut self,
        memory: &GuestMemoryMmap,
        interrupt: &Interrupt,
        mut f: impl FnMut(&mut Chain<'_>) -> Answer,
    ) -> Result<Round, Malformed> {
        let rings = Rings::resolve(memory, &self.state)?;
        let mut budget = self.budget;
        let round = 'round: loop {
            self.mute(&rings)?;
            let mut pending = self.available(&rings, self.state.next_avail)?;
            while pending > 0 || !self.again.is_empty() {
                if budget == 0 {
                    self.ring();
                    break 'round Round::More;
                }
                budget -= 1;
                let repeated = self.again.last().copied();
                if self.state.pending.len() >= usize::from(self.state.size) {
                    return Err(Malformed::TooManyPending);
                }
                let head = match repeated {
                    Some(head) => head,
                    None => rings.avail_entry(self.state.next_avail)?,
                };
                self.segments.clear();
                let state = &self.state;
                let extent = chain::walk(
                    memory,
                    &rings,
                    state.size,
                    state.indirect,
                    head,
                    &mut self.segments,
                )?;
                // SAFETY: walk put there only segments of `memory`, which is borrowed meanwhile.
                let mut chain =
                    unsafe { Chain::new(head, &self.segments, extent, &mut self.scratch) };
                let answer = f(&mut chain);
                match answer {
                    Answer::Done(_) | Answer::Deferred => match repeated {
                        Some(_) => drop(self.again.pop()),
                        None => {
                            self.state.next_avail = self.state.next_avail.wrapping_add(1);
                            pending -= 1;
                            self.moved.0 += extent.readable_len as u64;
                        }
                    },
                    Answer::Stop => break 'round Round::Stopped,
                    Answer::TellFirst => {
                        self.signal(&rings, interrupt)?;
                        continue;
                    }
                    Answer::Gone => return Ok(Round::Stopped),
                    Answer::Broken(why) => return Err(Malformed::Device(why)),
                }
                if let Answer::Done(len) = answer {
                    self.put_used(&rings, head, len)?;
                    rings.publish(self.state.next_used)?;
                    if self.prompt {
                        self.signal(&rings, interrupt)?;
                    }
                } else {
                    self.state.pending.push(head);
                }
                if pending == 0 {
                    pending = self.available(&rings, self.state.next_avail)?;
                }
            }
            if !self.listen(&rings, self.state.next_avail)? {
                break Round::Idle;
            }
        };
        self.signal(&rings, interrupt)?;
        Ok(round)
    }

    /// Chains the driver has made available from position `from` on.
    fn available(&self, rings: &Rings<'_>, from: u16) -> Result<u16, Malformed> {
        let to = rings.avail_idx()?;
        let taken = from.wrapping_sub(self.state.next_avail);
        let count = to.wrapping_sub(self.state.next_avail);
        if count > self.state.size || count < taken {
            return Err(Malformed::AvailJump { from, to });
        }
        Ok(count - taken)
    }

    fn put_used(&mut self, rings: &Rings<'_>, head: u16, len: u32) -> Result<(), Malformed> {
        rings.put_used(self.state.next_used, head, len)?;
        self.moved.1 += u64::from(len);
        self.state.next_used = self.state.next_used.wrapping_add(1);
        self.unsignalled = self.unsignalled.saturating_add(1);
        Ok(())
    }

    /// Asks for no doorbells while we look anyway. With `EVENT_IDX` an `avail_event` that lies
    /// behind says so by itself.
    fn mute(&self, rings: &Rings<'_>) -> Result<(), Malformed> {
        if self.state.event_idx { Ok(()) } else { rings.set_doorbells(false) }
    }

    /// Asks for a doorbell at the next chain after position `seen`; true when there is one already,
    /// for which the driver may not have rung (virtio 1.3 §2.7.10, §2.7.13.3.1).
    fn listen(&self, rings: &Rings<'_>, seen: u16) -> Result<bool, Malformed> {
        if self.state.event_idx {
            rings.set_avail_event(seen)?;
        } else {
            rings.set_doorbells(true)?;
        }
        // The driver moves the index and then reads our wish; we write the wish and then read the
        // index. Both fences full, one of us sees the other.
        fence(Ordering::SeqCst);
        Ok(self.available(rings, seen)? > 0)
    }

    /// Interrupts when there is something new and the driver wants to know (virtio 1.3 §2.7.7.2).
    fn signal(&mut self, rings: &Rings<'_>, interrupt: &Interrupt) -> Result<(), Malformed> {
        let new = std::mem::take(&mut self.unsignalled);
        if new == 0 {
            return Ok(());
        }
        let (from_guest, to_guest) = std::mem::take(&mut self.moved);
        self.counters.add_requests(new.into(), from_guest, to_guest);
        // We move the used index and then read the driver's wish; it writes the wish and then
        // reads the index.
        fence(Ordering::SeqCst);
        let wanted = if self.state.event_idx {
            // Its event lies among the `new` last positions.
            self.state.next_used.wrapping_sub(rings.used_event()?).wrapping_sub(1) < new
        } else {
            !rings.interrupts_off()?
        };
        if wanted {
            interrupt.signal_queue();
        }
        Ok(())
    }

    fn fail(&mut self, interrupt: &Interrupt, why: Malformed) -> Round {
        self.broken = true;
        interrupt.needs_reset(&why);
        Round::Broken
    }
}
