//! Bytes on their way from the guest's UART to whoever reads the console.
//!
//! A vCPU thread pushes bytes, the worker takes them. The buffer is bounded: when nobody reads, it
//! fills, the UART reports a busy transmitter to a driver that waits for its interrupt, and the
//! guest's console stands still; nothing else does. Who polls loses bytes. The last bytes are kept
//! for the report about a guest that died.

use std::collections::VecDeque;
use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use vmm_sys_util::eventfd::EventFd;

/// Bytes that may wait for a reader.
const PENDING_MAX: usize = 128 << 10;
/// Bytes kept of the end of the console.
const TAIL_MAX: usize = 16 << 10;

#[derive(Default)]
struct State {
    pending: VecDeque<u8>,
    tail: VecDeque<u8>,
    dropped: u64,
    first_byte: Option<Instant>,
}

/// The buffer, shared by the UART and the console's task.
pub struct Output {
    state: Mutex<State>,
    /// Rung when the buffer stops being empty.
    wake: EventFd,
}

impl Output {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self {
            state: Mutex::default(),
            wake: EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?,
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // The state is plain bytes; a panic elsewhere cannot leave it inconsistent.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn wake(&self) -> &EventFd {
        &self.wake
    }

    /// Appends one byte; a byte for which there is no room is counted and lost, as on a UART whose
    /// driver does not look whether the transmitter is ready.
    pub(super) fn push(&self, byte: u8) {
        self.append(&[byte]);
    }

    /// Appends bytes; those for which there is no room are counted and lost. Returns how many.
    pub(crate) fn append(&self, bytes: &[u8]) -> usize {
        let mut state = self.state();
        // Of what is longer than the end that is kept, only its own end is.
        let end = bytes.get(bytes.len().saturating_sub(TAIL_MAX)..).unwrap_or_default();
        let surplus = (state.tail.len() + end.len()).saturating_sub(TAIL_MAX);
        state.tail.drain(..surplus);
        state.tail.extend(end);
        if state.first_byte.is_none() && !bytes.is_empty() {
            state.first_byte = Some(Instant::now());
        }
        let room = PENDING_MAX.saturating_sub(state.pending.len());
        let (kept, lost) = bytes.split_at(room.min(bytes.len()));
        state.dropped += lost.len() as u64;
        let was_empty = state.pending.is_empty();
        state.pending.extend(kept);
        if was_empty && !kept.is_empty() {
            // EAGAIN means that the worker has been woken already.
            let _ = self.wake.write(1);
        }
        lost.len()
    }

    /// Counts bytes that are lost without having come here.
    pub(crate) fn lose(&self, bytes: u64) {
        self.state().dropped += bytes;
    }

    /// Whether the transmitter can take another byte.
    pub(super) fn has_room(&self) -> bool {
        self.state().pending.len() < PENDING_MAX
    }

    /// Copies up to `buffer.len()` waiting bytes without removing them.
    pub(crate) fn peek(&self, buffer: &mut [u8]) -> usize {
        let state = self.state();
        let len = buffer.len().min(state.pending.len());
        for (to, from) in buffer.iter_mut().zip(&state.pending) {
            *to = *from;
        }
        len
    }

    /// Removes `len` bytes that were written. True when the buffer had been full.
    pub(super) fn consume(&self, len: usize) -> bool {
        let mut state = self.state();
        let was_full = state.pending.len() >= PENDING_MAX;
        let len = len.min(state.pending.len());
        state.pending.drain(..len);
        was_full
    }

    /// The last `lines` lines of the console, as text.
    pub fn last_lines(&self, lines: usize) -> String {
        let mut bytes: Vec<u8> = self.state().tail.iter().copied().collect();
        while bytes.last().is_some_and(|b| b.is_ascii_whitespace()) {
            bytes.pop();
        }
        let text = String::from_utf8_lossy(&bytes).replace('\r', "");
        let all: Vec<&str> = text.lines().collect();
        all.get(all.len().saturating_sub(lines)..).unwrap_or_default().join("\n")
    }

    /// When the guest's first byte came.
    pub fn first_byte(&self) -> Option<Instant> {
        self.state().first_byte
    }

    /// Bytes lost because nobody read the console and the guest did not wait.
    pub fn dropped(&self) -> u64 {
        self.state().dropped
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_buffer_loses_the_newest_bytes_and_says_so() {
        let output = Output::new().unwrap();
        for _ in 0..PENDING_MAX {
            output.push(b'a');
        }
        assert!(!output.has_room());
        output.push(b'b');
        assert_eq!(output.dropped(), 1);
        assert!(output.consume(10));
        assert!(output.has_room());
    }

    #[test]
    fn of_many_bytes_at_once_those_without_room_are_lost_and_the_end_is_kept() {
        let output = Output::new().unwrap();
        let mut bytes = vec![b'x'; PENDING_MAX + 5];
        bytes.extend(b"\nlast");
        assert_eq!(output.append(&bytes), 10);
        assert_eq!(output.dropped(), 10);
        assert_eq!(output.wake().read().unwrap(), 1);
        assert_eq!(output.last_lines(1), "last");
        assert_eq!(output.state().tail.len(), TAIL_MAX);
        output.consume(PENDING_MAX);
        assert_eq!((output.append(b"y"), output.wake().read().unwrap()), (0, 1));
    }

    #[test]
    fn the_last_lines_are_kept_after_they_were_read() {
        let output = Output::new().unwrap();
        for byte in b"one\r\ntwo\r\nthree\r\n" {
            output.push(*byte);
        }
        output.consume(100);
        assert_eq!(output.last_lines(2), "two\nthree");
        assert_eq!(output.last_lines(9), "one\ntwo\nthree");
    }
}
