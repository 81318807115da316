//! The name of a VM, from when it is taken until it is given up with the VM's exit status; of one that is
//! detached with all that goes by its name.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use husk::RunningVm;
use husk::named::{self, About, Named, Resize};

use crate::cli::Error;
use crate::cli::detach::Detached;

/// A name, if the VM is to have one. Dropping it gives it up.
pub struct Name {
    /// `None` without one, and when whoever ended this first has given it up.
    held: Arc<Mutex<Option<Named>>>,
    name: Option<String>,
}

impl Name {
    /// Takes it. Of a VM that is detached all that is written goes to its log from now on.
    ///
    /// # Errors
    /// When somebody else has it, or the host refuses.
    pub fn take(
        name: Option<String>,
        vm: &Arc<RunningVm>,
        about: About,
        detached: Option<&mut Detached>,
    ) -> Result<Name, Error> {
        let named = match (&name, detached) {
            (None, _) => None,
            (Some(name), None) => Some(named::serve(name, vm, about)?),
            (Some(name), Some(detached)) => {
                let (named, log) = named::serve_kept(name, vm, about)?;
                detached.log_to(log)?;
                Some(named)
            }
        };
        Ok(Name { held: Arc::new(Mutex::new(named)), name })
    }

    /// When the VM's end is asked for by it, in good order, `stop` is called.
    pub fn on_stop(&self, stop: impl Fn() + Send + Sync + 'static) {
        if let Some(named) = &*held(&self.held) {
            named.on_stop(stop);
        }
    }

    /// Whoever detached the VM goes on from here.
    ///
    /// # Errors
    /// The host's, or when that one has gone.
    pub fn is_ready(&self, detached: Option<&mut Detached>, resize: Resize) -> Result<(), Error> {
        if let (Some(named), Some(name), Some(detached)) =
            (&*held(&self.held), &self.name, detached)
        {
            // First: of the end of one that cannot be remembered nobody would hear.
            named.record()?;
            detached.attach(named, resize)?;
            detached.is_ready(name)?;
            named.stay();
        }
        Ok(())
    }

    /// What gives it up, with the exit status, if it is still held then.
    pub fn giving_up(&self) -> impl Fn(u8) + Send + Sync + 'static {
        let weak = Arc::downgrade(&self.held);
        move |status| {
            if let Some(named) = weak.upgrade().and_then(|named| held(&named).take()) {
                named.conclude(status);
            }
        }
    }

    /// The last of a VM: its log is whole when its name is free, and whoever waits is told.
    pub fn conclude(self, status: u8, detached: Option<Detached>) {
        if let Some(detached) = detached {
            detached.finish();
        }
        self.giving_up()(status);
    }
}

/// What is held, by nobody else meanwhile.
fn held(named: &Mutex<Option<Named>>) -> MutexGuard<'_, Option<Named>> {
    // Whoever panicked left it as it was.
    named.lock().unwrap_or_else(PoisonError::into_inner)
}
