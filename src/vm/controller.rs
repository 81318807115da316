//! The controller: one thread that owns a VM from its first boot to its end.
//!
//! ```text
//!            pause          resume
//! running ─────────▶ paused ────────▶ running
//!    │ reset: devices reset, memory emptied, booted again
//!    └──────────────────────────────────────────────▶ ended
//! ```

use std::sync::Arc;
use std::time::{Duration, Instant};

use husk_devices::platform::GuestEvent;
use vm_memory::GuestMemoryMmap;

use super::VmError;
use super::devices::Devices;
use super::firmware::Software;
use super::machine::{Machine, Parts};
use super::mailbox::{Command, Mailbox, Message};
use super::making::Making;
use super::outcome::Outcome;
use crate::config::{OnReboot, VmConfig};
use crate::hypervisor::Hypervisor;
use crate::memory;
use crate::timeline::{Phase, Timeline};
use crate::vcpu::OnCrash;

/// How long a kernel that reported a panic may go on to write about it before it resets.
const LAST_WORDS: Duration = Duration::from_secs(2);
/// Lines of the console in a report.
const CONSOLE_LINES: usize = 40;
/// How a Linux panic begins.
const PANIC_WORDS: &str = "Kernel panic - not syncing";

/// Whether the end of a console is that of a Linux that panicked: the words, and behind them only the
/// kernel's own lines (which have a time in brackets), or in any case not more than a report's worth.
fn tells_of_a_panic(console: &str) -> bool {
    let Some((_, after)) = console.rsplit_once(PANIC_WORDS) else { return false };
    let mut others = after.lines().skip(1).filter(|line| !line.trim_start().starts_with('['));
    others.nth(CONSOLE_LINES - 1).is_none()
}

/// The end of a console: its last lines, and more when the panic's own first line lies before them.
fn last_words(console: &str) -> &str {
    let line_before =
        |at: usize| console.get(..at).and_then(|s| s.rfind('\n')).map_or(0, |n| n + 1);
    let tail = console.rmatch_indices('\n').nth(CONSOLE_LINES - 1).map_or(0, |(at, _)| at + 1);
    let start = console.rfind(PANIC_WORDS).map_or(tail, |at| line_before(at).min(tail));
    console.get(start..).unwrap_or_default()
}

/// Everything a VM is made of.
pub(super) struct Controller {
    pub hypervisor: Arc<Hypervisor>,
    pub config: VmConfig,
    pub software: Software,
    pub devices: Devices,
    /// After the devices, which hold it too; dropped last of all by its count.
    pub memory: GuestMemoryMmap,
    pub mailbox: Arc<Mailbox>,
    pub timeline: Arc<Timeline>,
}

/// Whether the machine goes on.
enum Next {
    Continue,
    Reboot,
    End(Outcome),
}

impl Controller {
    /// Powers the machine on; its vCPUs wait.
    pub fn boot(&self, making: Making, memory_is_zero: bool) -> Result<Machine, VmError> {
        let mailbox = self.mailbox.clone();
        let on_crash: OnCrash = Arc::new(move |report| mailbox.post(Message::Crash(report.into())));
        let parts = Parts {
            hypervisor: &self.hypervisor,
            config: &self.config,
            memory: &self.memory,
            software: &self.software,
            devices: &self.devices,
            on_crash,
            timeline: &self.timeline,
        };
        Machine::boot(&parts, making, memory_is_zero)
    }

    /// Runs `machine` and its successors to the end.
    pub fn run(mut self, mut machine: Machine) -> Outcome {
        let outcome = loop {
            machine.run();
            match self.attend(&machine) {
                Next::Reboot => {}
                Next::End(outcome) => break outcome,
                Next::Continue => continue,
            }
            drop(machine);
            machine = match self.reboot() {
                Ok(machine) => machine,
                Err(e) => {
                    let why = format!("the guest asked for a reboot, which failed: {e}");
                    return self.end(Outcome::Failed { why });
                }
            };
        };
        // The guest first: devices must not lose their memory under them.
        drop(machine);
        self.end(outcome)
    }

    fn end(&mut self, outcome: Outcome) -> Outcome {
        self.mailbox.close();
        self.devices.close();
        self.timeline.mark(Phase::Ended);
        outcome
    }

    fn reboot(&self) -> Result<Machine, VmError> {
        // What the guest said before its reset is about a machine that is gone.
        self.mailbox.forget_guest();
        let host = |source| VmError::Host { what: "reboot".to_owned(), source };
        self.devices.reset().map_err(host)?;
        memory::discard(&self.memory).map_err(host)?;
        self.boot(Making::begin(&self.hypervisor, &self.memory)?, true)
    }

    /// Answers messages until something has to happen to the machine.
    fn attend(&self, machine: &Machine) -> Next {
        let mut paused = false;
        // A reset that came too late for a pause: it is for when the guest goes on.
        let mut reset_when_resumed = false;
        let mut panicked: Option<Instant> = None;
        loop {
            let Some(message) = self.mailbox.next(panicked.map(|at| at + LAST_WORDS)) else {
                return Next::End(self.panic());
            };
            let next = match message {
                Message::Command(command, reply) => {
                    let next = self.obey(command, machine, &mut paused);
                    // Whoever asked may have gone.
                    let _ = reply.send(());
                    next
                }
                Message::Crash(report) => {
                    let console = self.console_tail();
                    // A kernel that panics may reset by a triple fault.
                    if panicked.is_some() || self.console_tells_of_a_panic() {
                        Next::End(self.panic())
                    } else {
                        Next::End(Outcome::Crash { report, console })
                    }
                }
                Message::Guest(GuestEvent::PowerOff) => Next::End(Outcome::PowerOff),
                Message::Guest(GuestEvent::Exit(status)) => Next::End(Outcome::Exit(status)),
                Message::Guest(GuestEvent::Panic) => {
                    panicked.get_or_insert_with(Instant::now);
                    Next::Continue
                }
                Message::Guest(GuestEvent::Marker(_)) => {
                    self.timeline.mark(Phase::UserSpaceMarker);
                    Next::Continue
                }
                Message::Guest(GuestEvent::Reset) => {
                    if panicked.is_some() || self.console_tells_of_a_panic() {
                        Next::End(self.panic())
                    } else if self.config.on_reboot == OnReboot::Exit {
                        Next::End(Outcome::Reboot)
                    } else if paused {
                        reset_when_resumed = true;
                        Next::Continue
                    } else {
                        Next::Reboot
                    }
                }
            };
            if !matches!(next, Next::Continue) {
                return next;
            }
            if reset_when_resumed && !paused {
                return Next::Reboot;
            }
        }
    }

    fn obey(&self, command: Command, machine: &Machine, paused: &mut bool) -> Next {
        match command {
            Command::Pause if !*paused => {
                machine.hold();
                self.devices.pause();
                *paused = true;
            }
            Command::Resume if *paused => {
                self.devices.resume();
                machine.run();
                *paused = false;
            }
            Command::Pause | Command::Resume => {}
            Command::PressPowerButton => {
                if let Err(e) = self.devices.power_button.write(1) {
                    log::error!("the power button cannot be pressed: {e}");
                }
            }
            Command::NewGeneration => {
                if let Err(e) = self.devices.generation.renew(&self.memory) {
                    log::error!("the guest keeps its generation id: {e}");
                }
            }
            Command::Kill => return Next::End(Outcome::Killed),
        }
        Next::Continue
    }

    fn console_tells_of_a_panic(&self) -> bool {
        tells_of_a_panic(&self.devices.uart.output().last_lines(usize::MAX))
    }

    fn console_tail(&self) -> String {
        self.devices.uart.output().last_lines(CONSOLE_LINES)
    }

    fn panic(&self) -> Outcome {
        let all = self.devices.uart.output().last_lines(usize::MAX);
        Outcome::Panic { console: last_words(&all).to_owned() }
    }
}

impl Drop for Controller {
    /// However it came to this: nobody waits for an answer any more.
    fn drop(&mut self) {
        self.mailbox.close();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_known_by_its_words_however_long_its_trace() {
        let words = "[    1.7] Kernel panic - not syncing: why\n";
        assert!(tells_of_a_panic(&format!("before\n{words}")));
        assert!(tells_of_a_panic(&format!(
            "{words}{}",
            "[    1.8]  ? a_function+0x1/0x2\n".repeat(90)
        )));
        // A kernel that prints no times.
        assert!(tells_of_a_panic(&format!("{words}{}", " ? a_function+0x1/0x2\n".repeat(30))));
        // Somebody showed an old log and went on.
        assert!(!tells_of_a_panic(&format!("{words}{}", "all is well\n".repeat(50))));
        assert!(!tells_of_a_panic("nothing of the kind"));
    }

    #[test]
    fn a_report_begins_with_the_panic_or_forty_lines_before_the_end() {
        let lines = |n: usize| (0..n).map(|n| format!("line {n}")).collect::<Vec<_>>().join("\n");
        assert_eq!(last_words(&lines(3)), lines(3));
        assert!(last_words(&lines(100)).starts_with("line 60\n"));
        let panic = "[    1.7] Kernel panic - not syncing: why";
        let long = format!("{}\n{panic}\n{}", lines(10), lines(60));
        assert!(last_words(&long).starts_with(panic));
        let short = format!("{}\n{panic}\n{}", lines(100), lines(5));
        assert!(last_words(&short).starts_with("line 66\n"));
    }
}
