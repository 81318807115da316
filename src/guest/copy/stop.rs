//! Ending a copy before its end, from another thread: what was made of it goes, here and in the guest.

use std::sync::{Arc, Mutex, PoisonError};

use crate::guest::session::Session;

/// Ends a copy that another thread makes. One is for one copy.
#[derive(Debug, Clone, Default)]
pub struct CopyStop(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    stopped: bool,
    /// The copy, from when it has begun.
    session: Option<Arc<Session>>,
}

impl CopyStop {
    /// Has the copy end with [`ExecError::Stopped`](crate::error::ExecError::Stopped), at once or as soon as it
    /// begins. False when it has not begun yet: then it has made nothing.
    pub fn stop(&self) -> bool {
        let session = self.with(|state| {
            state.stopped = true;
            state.session.clone()
        });
        session.inspect(|session| session.cut()).is_some()
    }

    /// Whether it was stopped.
    pub(super) fn is_stopped(&self) -> bool {
        self.with(|state| state.stopped)
    }

    /// The copy has begun.
    pub(super) fn began(&self, session: &Arc<Session>) {
        let stopped = self.with(|state| {
            state.session = Some(session.clone());
            state.stopped
        });
        if stopped {
            session.cut();
        }
    }

    fn with<T>(&self, work: impl FnOnce(&mut State) -> T) -> T {
        // No code panics while it holds the lock.
        work(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
