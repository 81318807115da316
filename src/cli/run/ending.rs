//! What the signals that ask husk to end do to a VM with a console.

use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use husk::RunningVm;

use crate::cli::life::{end, watch};
use crate::cli::signals::{self, Signals};
use crate::cli::terminal;

/// What the signals that ask husk to end do.
///
/// Before the VM runs there is nothing to end but the process. Then the first presses the power
/// button and, after the grace, ends the VM; a second one at once.
#[derive(Clone, Default)]
pub struct Ending {
    vm: Arc<OnceLock<Arc<RunningVm>>>,
    signal: Arc<AtomicI32>,
}

impl Ending {
    /// Waits for `signals` in a thread of its own.
    pub fn attend(signals: Signals, grace: Duration) -> std::io::Result<Self> {
        let ending = Self::default();
        let this = ending.clone();
        watch(move || {
            let signal = signals.wait();
            let Some(vm) = this.vm.get() else {
                terminal::restore();
                std::process::exit(128 + signal);
            };
            this.signal.store(signal, Ordering::Release);
            tell!(
                "husk: {}: the guest's power button is pressed; it has {} s to turn itself off, and a \
                 second signal ends it at once\n",
                signals::name(signal),
                grace.as_secs_f64()
            );
            let (pressing, patient) = (vm.clone(), vm.clone());
            // In a thread, for even the controller may be waiting. An error means that it has ended.
            let pressed = watch(move || {
                let _ = pressing.press_power_button();
            });
            let granted = pressed.and_then(|()| {
                watch(move || {
                    if patient.wait_timeout(grace).is_none() {
                        end(&patient, 128 + signal);
                    }
                })
            });
            match granted {
                Ok(()) => drop(signals.wait()),
                Err(e) => log::error!("the grace is not granted: {e}"),
            }
            end(vm, 128 + signal);
        })?;
        Ok(ending)
    }

    /// From now on there is a VM to end.
    pub fn started(&self, vm: Arc<RunningVm>) {
        // Called once.
        let _ = self.vm.set(vm);
    }

    /// The signal that came, or 0.
    pub fn signal(&self) -> i32 {
        self.signal.load(Ordering::Acquire)
    }
}
