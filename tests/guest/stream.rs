//! What a process writes, followed by a thread and waited for.

use std::io::Read;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Instant;

/// What a process has written so far.
#[derive(Default)]
pub struct Stream {
    state: Mutex<(Vec<u8>, bool)>,
    more: Condvar,
}

impl Stream {
    /// What has come, and whether that is all.
    pub fn state(&self) -> MutexGuard<'_, (Vec<u8>, bool)> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads all of `from`, in a thread.
    pub fn follow(self: &Arc<Self>, mut from: impl Read + Send + 'static) {
        let stream = self.clone();
        thread::spawn(move || {
            let mut chunk = [0; 4096];
            while let Ok(got @ 1..) = from.read(&mut chunk) {
                stream.state().0.extend_from_slice(chunk.get(..got).unwrap_or_default());
                stream.more.notify_all();
            }
            stream.state().1 = true;
            stream.more.notify_all();
        });
    }

    /// All of it, without the carriage returns of a console.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.state().0).replace('\r', "")
    }

    /// The end of the first `text` at or after `from`; `None` when the stream ends or the time is
    /// up without it.
    pub fn find(&self, text: &str, from: usize, deadline: Instant) -> Option<usize> {
        let mut state = self.state();
        loop {
            let rest = state.0.get(from..).unwrap_or_default();
            if let Some(at) = rest.windows(text.len()).position(|w| w == text.as_bytes()) {
                return Some(from + at + text.len());
            }
            let left = deadline.checked_duration_since(Instant::now())?;
            if state.1 {
                return None;
            }
            let waited = self.more.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Waits until the writer has closed it.
    pub fn wait_end(&self, deadline: Instant) {
        let mut state = self.state();
        while !state.1 {
            let Some(left) = deadline.checked_duration_since(Instant::now()) else { return };
            let waited = self.more.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}
