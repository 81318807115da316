//! The controller: one thread that owns a VM from its first boot to its end.
//!
//! ```text
//! running ── pause ──▶ paused ── resume ──▶ running
//!    │ ▲                  │
//!    │ └─ reset: devices reset, memory emptied, booted again
//!    └────────────────────┴── power-off, crash, kill ──▶ ended
//! ```

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use husk_devices::platform::GuestEvent;
use kvm_bindings::CpuId;
use vm_memory::GuestMemoryMmap;

use super::VmError;
use super::devices::Devices;
use super::ending;
use super::firmware::{Loading, Software};
use super::machine::{Machine, Parts};
use super::mailbox::{Command, Mailbox, Message};
use super::panic;
use super::reboots::Reboots;
use crate::config::{OnReboot, VmConfig};
use crate::hypervisor::Hypervisor;
use crate::memory;
use crate::outcome::Outcome;
use crate::timeline::{Phase, Timeline};
use crate::vcpu::{Failure, OnFailure};

/// How long a kernel that reported a panic may go on to write about it before it resets.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// Everything a VM is made of.
pub(super) struct Controller {
    pub hypervisor: Hypervisor,
    /// What KVM can give a guest.
    pub cpuid: CpuId,
    pub config: Arc<VmConfig>,
    /// Whether the guest is held, for whoever asks.
    pub paused: Arc<AtomicBool>,
    pub software: Software,
    pub devices: Devices,
    /// Shared with the devices and the machine, and unmapped with the last of them.
    pub memory: GuestMemoryMmap,
    pub mailbox: Arc<Mailbox>,
    pub timeline: Arc<Timeline>,
}

/// Where a machine is in its life.
enum Life {
    Running,
    Paused,
    /// The guest asked for its reset too late for the pause: it is for when the guest goes on.
    PausedInReset,
}

/// What has to happen to a machine.
enum Next {
    Reboot,
    End(Outcome),
}

impl Controller {
    /// Powers the machine on, its memory as it was mapped but for the kernel; its vCPUs wait.
    ///
    /// # Errors
    /// As [`Machine::boot`].
    pub fn boot(&self, kernel: Loading) -> Result<Machine, VmError> {
        let mailbox = self.mailbox.clone();
        let on_failure: OnFailure = Arc::new(move |failure| {
            mailbox.post(match failure {
                Failure::Crash(report) => Message::Crash(report),
                Failure::Panic(why) => Message::Broken(why),
            });
        });
        let parts = Parts {
            hypervisor: &self.hypervisor,
            cpuid: &self.cpuid,
            config: &self.config,
            memory: &self.memory,
            software: &self.software,
            devices: &self.devices,
            on_failure,
            timeline: &self.timeline,
        };
        Machine::boot(&parts, kernel)
    }

    /// Runs `machine` and its successors to the end.
    pub fn run(self, mut machine: Machine) -> Outcome {
        let mut reboots = Reboots::default();
        let outcome = loop {
            machine.run();
            if let Next::End(outcome) = self.attend(&machine) {
                break outcome;
            }
            if let Some(count) = reboots.note(Instant::now()) {
                log::warn!(
                    "the guest has rebooted {count} times, each within seconds of the last; \
                     its console may say why, and --on-reboot exit ends the VM instead"
                );
            }
            if !machine.turn_off() {
                let why =
                    "the guest asked for a reboot, but a vCPU of it hangs in the host".to_owned();
                return self.end(Outcome::Failed { why });
            }
            machine = match self.reboot() {
                Ok(machine) => machine,
                Err(e) => {
                    let why = format!("the guest asked for a reboot, which failed: {e}");
                    return self.end(Outcome::Failed { why });
                }
            };
        };
        // The guest first: it shall not see its devices go.
        machine.turn_off();
        self.end(outcome)
    }

    /// Closes everything, as far as the host lets it in time.
    fn end(self, outcome: Outcome) -> Outcome {
        self.mailbox.close();
        let timeline = self.timeline.clone();
        let ended = ending::within(ending::LIMIT, move || {
            let mut all = self;
            all.devices.close();
        });
        timeline.mark(Phase::Ended);
        match ended {
            Ok(()) => outcome,
            Err(why) => Outcome::Failed { why },
        }
    }

    fn reboot(&self) -> Result<Machine, VmError> {
        // What the guest said before its reset is about a machine that is gone.
        self.mailbox.forget_guest();
        let host = |source| VmError::Host { what: "reboot".to_owned(), source };
        self.devices.reset().map_err(host)?;
        memory::discard(&self.memory, super::memory_spec(&self.config)).map_err(host)?;
        self.boot(Loading::begin(&self.software.kernel, &self.config, &self.memory)?)
    }

    /// Answers messages until something has to happen to the machine.
    fn attend(&self, machine: &Machine) -> Next {
        let mut life = Life::Running;
        // Of a guest that said it panicked: until when it may write about it.
        let mut last_words: Option<Instant> = None;
        loop {
            let Some(message) = self.mailbox.next(last_words) else {
                return Next::End(self.panic());
            };
            let panicked = || last_words.is_some() || self.console_tells_of_a_panic();
            match message {
                Message::Command(command, reply) => {
                    let next = self.obey(command, machine, &mut life);
                    // Whoever asked may have gone.
                    let _ = reply.send(());
                    if let Some(next) = next {
                        return next;
                    }
                }
                // A kernel that panics may reset, also by a triple fault.
                Message::Crash(_) | Message::Guest(GuestEvent::Reset) if panicked() => {
                    return Next::End(self.panic());
                }
                Message::Crash(report) => {
                    return Next::End(Outcome::Crash { report, console: self.console_tail() });
                }
                Message::Broken(why) => return Next::End(Outcome::Failed { why }),
                Message::Guest(GuestEvent::PowerOff) => return Next::End(Outcome::PowerOff),
                Message::Guest(GuestEvent::Exit(status)) => {
                    return Next::End(Outcome::Exit(status));
                }
                Message::Guest(GuestEvent::Panic) => {
                    last_words.get_or_insert_with(|| Instant::now() + LAST_WORDS);
                }
                Message::Guest(GuestEvent::Marker) => {
                    self.timeline.mark(Phase::UserSpaceMarker);
                }
                // Its agent, and what it ran, do not come back.
                Message::Guest(GuestEvent::Reset) if self.config.guest.is_some() => {
                    return Next::End(Outcome::Reboot);
                }
                Message::Guest(GuestEvent::Reset) => match (self.config.on_reboot, &life) {
                    (OnReboot::Exit, _) => return Next::End(Outcome::Reboot),
                    (OnReboot::Restart, Life::Running) => return Next::Reboot,
                    (OnReboot::Restart, _) => life = Life::PausedInReset,
                },
            }
        }
    }

    fn obey(&self, command: Command, machine: &Machine, life: &mut Life) -> Option<Next> {
        match (command, &*life) {
            (Command::Pause, Life::Running) => {
                machine.hold();
                self.devices.pause();
                *life = Life::Paused;
                self.paused.store(true, Ordering::Release);
            }
            (Command::Resume, Life::Paused) => {
                self.paused.store(false, Ordering::Release);
                self.devices.resume();
                machine.run();
                *life = Life::Running;
            }
            (Command::Resume, Life::PausedInReset) => {
                self.paused.store(false, Ordering::Release);
                self.devices.resume();
                return Some(Next::Reboot);
            }
            (Command::Pause, Life::Paused | Life::PausedInReset)
            | (Command::Resume, Life::Running) => {}
            (Command::PressPowerButton, _) => {
                if let Err(e) = self.devices.power_button.write(1) {
                    log::error!("the power button cannot be pressed: {e}");
                }
            }
            (Command::NewGeneration, _) => {
                if let Err(e) = self.devices.generation.renew(&self.memory) {
                    log::error!("the guest keeps its generation id: {e}");
                }
            }
            (Command::Kill, _) => return Some(Next::End(Outcome::Killed)),
        }
        None
    }

    fn console_tells_of_a_panic(&self) -> bool {
        panic::tells_of_a_panic(&self.devices.uart.output().last_lines(usize::MAX))
    }

    fn console_tail(&self) -> String {
        self.devices.uart.output().last_lines(panic::CONSOLE_LINES)
    }

    fn panic(&self) -> Outcome {
        let all = self.devices.uart.output().last_lines(usize::MAX);
        Outcome::Panic { console: panic::last_words(&all).to_owned() }
    }
}

impl Drop for Controller {
    /// However it came to this: nobody waits for an answer any more.
    fn drop(&mut self) {
        self.mailbox.close();
    }
}
