//! Bytes of a guest's stream that have come and were not read yet.
//!
//! Bounded by the protocol's window: a guest that sends more than it was granted breaks its session and
//! fills nothing.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use husk_guest_protocol::WINDOW;

#[derive(Debug, Default)]
struct State {
    bytes: VecDeque<u8>,
    /// Bytes read that the guest has not been granted again.
    owed: u32,
    ended: bool,
    /// Nobody reads any more.
    closed: bool,
}

/// More came than was granted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Overflow;

/// A stream between the session that fills it and its reader.
#[derive(Debug, Default)]
pub struct Pipe {
    state: Mutex<State>,
    more: Condvar,
}

impl Pipe {
    fn state(&self) -> MutexGuard<'_, State> {
        // No code panics while it holds the lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds what came.
    ///
    /// # Errors
    /// When the guest had no leave to send that much.
    pub fn push(&self, bytes: &[u8]) -> Result<(), Overflow> {
        let mut state = self.state();
        if state.closed || state.ended {
            return Ok(());
        }
        let outstanding = state.bytes.len() + state.owed as usize + bytes.len();
        if outstanding > WINDOW as usize {
            return Err(Overflow);
        }
        state.bytes.extend(bytes);
        self.more.notify_all();
        Ok(())
    }

    /// No more comes.
    pub fn end(&self) {
        self.state().ended = true;
        self.more.notify_all();
    }

    /// Nobody reads any more; false when nothing more would have come anyway.
    pub fn close(&self) -> bool {
        let mut state = self.state();
        state.closed = true;
        state.bytes = VecDeque::new();
        !state.ended
    }

    /// Waits for bytes and takes as many as there is room for, 0 at the end. Gives how many bytes the
    /// guest is to be granted now, as well.
    pub fn read(&self, room: &mut [u8]) -> (usize, u32) {
        let mut state = self.state();
        while state.bytes.is_empty() && !state.ended && !room.is_empty() {
            state = self.more.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.take(room)
    }

    /// The same, and `None` when nothing has come in that time.
    pub fn read_within(&self, room: &mut [u8], idle: Duration) -> Option<(usize, u32)> {
        let until = Instant::now().checked_add(idle);
        let mut state = self.state();
        while state.bytes.is_empty() && !state.ended && !room.is_empty() {
            let left = until?.checked_duration_since(Instant::now())?;
            let waited = self.more.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        Some(state.take(room))
    }
}

impl State {
    fn take(&mut self, room: &mut [u8]) -> (usize, u32) {
        let (first, _) = self.bytes.as_slices();
        let count = first.len().min(room.len());
        for (to, from) in room.iter_mut().zip(first) {
            *to = *from;
        }
        self.bytes.drain(..count);
        // At most the window, so the cast keeps the number.
        self.owed += count as u32;
        if self.owed < WINDOW / 4 || self.ended {
            return (count, 0);
        }
        (count, std::mem::take(&mut self.owed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_that_sends_more_than_it_may_is_found_out_and_stored_no_further() {
        let pipe = Pipe::default();
        let piece = vec![1; WINDOW as usize / 2];
        assert_eq!(pipe.push(&piece), Ok(()));
        assert_eq!(pipe.push(&piece), Ok(()));
        assert_eq!(pipe.push(&[1]), Err(Overflow));
        // What was read but not granted again is not to be sent yet either.
        let mut room = vec![0; 10];
        assert_eq!(pipe.read(&mut room), (10, 0));
        assert_eq!(pipe.push(&[1]), Err(Overflow));
        let mut room = vec![0; WINDOW as usize / 4];
        let (count, granted) = pipe.read(&mut room);
        assert_eq!(granted as usize, count + 10);
        assert_eq!(pipe.push(&vec![1; granted as usize]), Ok(()));
        assert_eq!(pipe.push(&[1]), Err(Overflow));
    }

    #[test]
    fn what_came_before_the_end_is_read_and_then_the_end() {
        let pipe = Pipe::default();
        pipe.push(b"all").unwrap();
        pipe.end();
        let mut room = [0; 8];
        assert_eq!(pipe.read(&mut room), (3, 0));
        assert_eq!(pipe.read(&mut room), (0, 0));
    }
}
