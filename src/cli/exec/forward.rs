//! Signals for husk that are meant for the command.
//!
//! Before there is a VM one ends the process, before there is a command the VM. Then the first is the
//! command's, which has the grace to end; a second one ends the VM at once. When the VM was kept after its
//! command, the first asks its guest to turn itself off.

use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use husk::{GuestChild, RunningVm};

use crate::cli::life::{end, kill, watch};
use crate::cli::signals::{self, Signals};
use crate::cli::terminal;

/// How long husk has for its end once nothing is waited for any more.
const LAST: Duration = Duration::from_secs(3);

/// What the signals do.
#[derive(Clone, Default)]
pub struct Forward {
    vm: Arc<OnceLock<Arc<RunningVm>>>,
    child: Arc<OnceLock<Arc<GuestChild>>>,
    signal: Arc<AtomicI32>,
    /// One was passed on to the command.
    passed_on: Arc<AtomicBool>,
    /// The command is no longer what the VM is there for.
    kept: Arc<AtomicBool>,
    last: Arc<OnceLock<Last>>,
}

/// What is still done before the process is ended, which has this exit status.
type Last = Box<dyn Fn(u8) + Send + Sync>;

impl Forward {
    /// Waits for `signals` in a thread of its own.
    ///
    /// # Errors
    /// When there is none.
    pub fn attend(signals: Signals, grace: Duration) -> std::io::Result<Forward> {
        let forward = Forward::default();
        let this = forward.clone();
        watch(move || {
            let signal = signals.wait();
            let Some(vm) = this.vm.get().cloned() else {
                terminal::restore();
                std::process::exit(128 + signal);
            };
            if this.kept.load(Ordering::Acquire) {
                ask(vm.clone(), grace, 128 + signal);
                signals.wait();
            } else if let Some(child) = this.child.get().cloned() {
                this.passed_on.store(true, Ordering::Release);
                this.pass_on(signal, child, vm.clone(), grace);
                signals.wait();
            }
            this.signal.store(signal, Ordering::Release);
            if kill(&vm) {
                // Whoever does not read what the command wrote is not waited for.
                std::thread::sleep(LAST);
            }
            if let Some(last) = this.last.get() {
                last(u8::try_from(128 + signal).unwrap_or(u8::MAX));
            }
            terminal::restore();
            std::process::exit(128 + signal);
        })?;
        Ok(forward)
    }

    /// Sends the command the signal, and ends the VM if the command has not ended after the grace. In
    /// threads: a guest that hangs takes no frame.
    fn pass_on(&self, signal: i32, child: Arc<GuestChild>, vm: Arc<RunningVm>, grace: Duration) {
        let (sending, number) = (child.clone(), u8::try_from(signal).unwrap_or_default());
        let sent = watch(move || {
            // After its end it needs none.
            let _ = sending.signal(number);
        });
        let told = self.signal.clone();
        let granted = sent.and_then(|()| {
            watch(move || {
                if matches!(child.wait_timeout(grace), Ok(None)) {
                    told.store(signal, Ordering::Release);
                    tell!(
                        "husk: the command still ran {} s after {}: the VM is turned off\n",
                        grace.as_secs_f64(),
                        signals::name(signal)
                    );
                    end(&vm, 128 + signal);
                }
            })
        });
        if let Err(e) = granted {
            log::error!("{} is not passed on: {e}", signals::name(signal));
        }
    }

    /// From now on there is a VM to end.
    pub fn has_vm(&self, vm: Arc<RunningVm>) {
        // Called once.
        let _ = self.vm.set(vm);
    }

    /// When the process is ended although something in it goes on, `last` is done before. It does not wait.
    pub fn at_last(&self, last: impl Fn(u8) + Send + Sync + 'static) {
        // Called once.
        let _ = self.last.set(Box::new(last));
    }

    /// From now on there is a command to be told.
    pub fn has_child(&self, child: Arc<GuestChild>) {
        let _ = self.child.set(child);
    }

    /// Whether the command was told to end.
    pub fn has_passed_on(&self) -> bool {
        self.passed_on.load(Ordering::Acquire)
    }

    /// From now on a signal is the VM's, and not the command's.
    pub fn keep(&self) {
        self.kept.store(true, Ordering::Release);
    }

    /// Does what the first SIGTERM does, but for the end after the grace: whoever asks has one of their own.
    pub fn stop(&self) {
        let Some(vm) = self.vm.get().cloned() else { return };
        let child = self.child.get().cloned().filter(|_| !self.kept.load(Ordering::Acquire));
        if child.is_some() {
            self.passed_on.store(true, Ordering::Release);
        }
        // In a thread: a guest that hangs takes no frame.
        let asked = watch(move || match child {
            // After its end it needs none.
            Some(child) => drop(child.signal(libc::SIGTERM as u8)),
            None => vm.ask_to_shut_down(),
        });
        if let Err(e) = asked {
            log::error!("the guest is not asked to end: {e}");
        }
    }

    /// The signal for which the VM was ended, or 0.
    pub fn signal(&self) -> i32 {
        self.signal.load(Ordering::Acquire)
    }
}

/// Asks the guest to turn itself off, and ends the VM if it has not after the grace.
fn ask(vm: Arc<RunningVm>, grace: Duration, status: i32) {
    let asked = watch(move || {
        vm.ask_to_shut_down();
        if vm.wait_timeout(grace).is_none() {
            end(&vm, status);
        }
    });
    if let Err(e) = asked {
        log::error!("the guest is not asked to turn itself off: {e}");
    }
}
