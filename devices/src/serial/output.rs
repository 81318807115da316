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
        let mut state = self.state();
        if state.tail.len() == TAIL_MAX {
            state.tail.pop_front();
        }
        state.tail.push_back(byte);
        if state.first_byte.is_none() {
            state.first_byte = Some(Instant::now());
        }
        if state.pending.len() >= PENDING_MAX {
            state.dropped += 1;
            return;
        }
        state.pending.push_back(byte);
        if state.pending.len() == 1 {
            // EAGAIN means that the worker has been woken already.
            let _ = self.wake.write(1);
        }
    }

    /// Whether the transmitter can take another byte.
    pub(super) fn has_room(&self) -> bool {
        self.state().pending.len() < PENDING_MAX
    }

    /// Copies up to `buffer.len()` waiting bytes without removing them.
    pub(super) fn peek(&self, buffer: &mut [u8]) -> usize {
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
