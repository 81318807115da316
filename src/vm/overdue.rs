//! The end of a VM whose time is limited, by a thread that waits for it and goes with the VM.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::sync_channel;
use std::time::Duration;

use super::mailbox::{Command, Message};
use super::running::RunningVm;

/// Bytes of stack of that thread.
const STACK: usize = 64 << 10;

/// A time after which a VM is turned off.
pub(crate) struct Overdue {
    /// How long it may be there.
    pub limit: Duration,
    passed: Arc<AtomicBool>,
}

impl Overdue {
    /// Whether it was turned off for that.
    pub fn has_passed(&self) -> bool {
        self.passed.load(Ordering::Acquire)
    }
}

impl RunningVm {
    /// Turns the VM off after `limit` from now on, unless it has ended by then.
    ///
    /// # Errors
    /// When there is no thread.
    pub(crate) fn end_after(&self, limit: Duration) -> io::Result<Overdue> {
        let (verdict, mailbox) = (self.verdict.clone(), self.mailbox.clone());
        let passed = Arc::new(AtomicBool::new(false));
        let mark = passed.clone();
        let thread = std::thread::Builder::new().name("husk-limit".to_owned()).stack_size(STACK);
        thread.spawn(move || {
            if verdict.wait_timeout(limit).is_none() {
                mark.store(true, Ordering::Release);
                // Nobody waits for the answer: that the VM has ended is what is waited for.
                let (reply, _) = sync_channel(1);
                mailbox.post(Message::Command(Command::Kill, reply));
            }
        })?;
        Ok(Overdue { limit, passed })
    }
}
