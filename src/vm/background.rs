//! A part of a start that goes on in a thread of its own while the rest is made.

use std::io;
use std::thread::{Builder, JoinHandle};

use super::STACK;
use super::error::{VmError, host};

/// Work that began; it is waited for, at the latest when this is dropped.
pub(super) struct Background<T> {
    what: &'static str,
    thread: Option<JoinHandle<T>>,
}

impl<T: Send + 'static> Background<T> {
    /// Begins `work` in a thread called `name`; `what` is what errors call it.
    ///
    /// # Errors
    /// When no thread can be started.
    pub fn begin(
        name: &str,
        what: &'static str,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<Self, VmError> {
        let thread = Builder::new().name(name.to_owned()).stack_size(STACK).spawn(work);
        Ok(Self { what, thread: Some(thread.map_err(host(what))?) })
    }

    /// Waits for what came of it.
    ///
    /// # Errors
    /// When it panicked.
    pub fn finish(mut self) -> Result<T, VmError> {
        let failed = |why| host(self.what)(io::Error::other(why));
        let thread = self.thread.take().ok_or_else(|| failed("it was waited for before"))?;
        thread.join().map_err(|_| failed("it panicked"))
    }
}

impl<T> Drop for Background<T> {
    fn drop(&mut self) {
        // The result is not wanted any more, but the thread must have ended before the caller goes on.
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
