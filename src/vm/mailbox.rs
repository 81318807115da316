//! The controller's mailbox: what happened in the guest, and what the embedder wants.

use std::collections::VecDeque;
use std::sync::mpsc::SyncSender;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use husk_devices::platform::GuestEvent;

use crate::vcpu::report::CrashReport;

/// A message to the controller.
pub(super) enum Message {
    /// The guest said something.
    Guest(GuestEvent),
    /// A vCPU cannot go on.
    Crash(Box<CrashReport>),
    /// A thread of husk's own has failed, and the VM cannot go on without it. In words.
    Broken(String),
    /// The embedder wants something; the answer goes into the channel.
    Command(Command, SyncSender<()>),
}

/// What an embedder can want of a running VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Command {
    Pause,
    Resume,
    PressPowerButton,
    NewGeneration,
    Kill,
}

#[derive(Default)]
struct State {
    queue: VecDeque<Message>,
    closed: bool,
}

/// A queue with one reader. Posting never waits.
#[derive(Default)]
pub(super) struct Mailbox {
    state: Mutex<State>,
    posted: Condvar,
}

impl Mailbox {
    fn state(&self) -> MutexGuard<'_, State> {
        // No code panics while it holds the lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a message; it is dropped when the mailbox is closed. What the guest says again while it
    /// still waits to be heard tells nothing new: a guest that shouts cannot fill the host's memory,
    /// and none of its other words is lost.
    pub fn post(&self, message: Message) {
        let mut state = self.state();
        let waits = |said: &GuestEvent| {
            state.queue.iter().any(|m| matches!(m, Message::Guest(other) if other == said))
        };
        let again = matches!(&message, Message::Guest(said) if waits(said));
        if !state.closed && !again {
            state.queue.push_back(message);
            self.posted.notify_one();
        }
    }

    /// The next message, or `None` when `deadline` passes first.
    pub fn next(&self, deadline: Option<Instant>) -> Option<Message> {
        let mut state = self.state();
        loop {
            if let Some(message) = state.queue.pop_front() {
                return Some(message);
            }
            state = match deadline {
                None => self.posted.wait(state).unwrap_or_else(PoisonError::into_inner),
                Some(deadline) => {
                    let left = deadline.checked_duration_since(Instant::now())?;
                    self.posted.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0
                }
            }
        }
    }

    /// Forgets what the guest said and how it died; commands stay, and what broke stays broken.
    pub fn forget_guest(&self) {
        let stays = |m: &Message| matches!(m, Message::Command(..) | Message::Broken(_));
        self.state().queue.retain(stays);
    }

    /// Drops everything, now and from now on: whoever waits for an answer gets none.
    pub fn close(&self) {
        let mut state = self.state();
        state.closed = true;
        state.queue.clear();
    }

    /// Whether it is: the VM is ending, or has.
    pub fn is_closed(&self) -> bool {
        self.state().closed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_that_shouts_does_not_fill_the_hosts_memory_nor_drown_commands() {
        let mailbox = Mailbox::default();
        for _ in 0..100_000 {
            mailbox.post(Message::Guest(GuestEvent::Marker));
        }
        mailbox.post(Message::Guest(GuestEvent::PowerOff));
        let (reply, _) = std::sync::mpsc::sync_channel(1);
        mailbox.post(Message::Command(Command::Kill, reply));
        assert_eq!(mailbox.state().queue.len(), 1 + 2);
        mailbox.forget_guest();
        assert!(matches!(mailbox.next(None), Some(Message::Command(Command::Kill, _))));
        assert!(mailbox.next(Some(Instant::now())).is_none());
    }
}
