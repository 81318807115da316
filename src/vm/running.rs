//! A VM that runs: what an embedder holds.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::sync_channel;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use husk_devices::panics::caught;
use husk_devices::serial::Output;
use husk_devices::virtio::balloon::Balloon;
use husk_devices::virtio::balloon::stats::MemoryStatistics;
use husk_devices::virtio::console::tty::{Tty, WindowSize};
use serde::{Deserialize, Serialize};

use super::disks::{Disks, ResizeDiskError};
use super::mailbox::{Command, Mailbox, Message};
use super::metrics::{Collector, Metrics};
use crate::config::{OVERLAY, VmConfig};
use crate::guest::control::Agent;
use crate::outcome::Outcome;
use crate::timeline::Timeline;

/// The VM has ended, and cannot do what was asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the VM has ended")]
pub struct Ended;

/// Where a VM is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Its guest runs.
    Running,
    /// Its guest is held.
    Paused,
    /// It is over.
    Ended,
}

/// The balloon cannot do what was asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BalloonError {
    /// The VM has no balloon.
    #[error("the VM has no balloon; give it one with --balloon")]
    Absent,
    /// The guest would have nothing left.
    #[error("a balloon of {wanted} bytes, but the guest has {memory} and needs some of them")]
    TooLarge {
        /// What was asked for, in bytes.
        wanted: u64,
        /// What the guest has, in bytes.
        memory: u64,
    },
    /// It did not answer.
    #[error("the guest does not tell of its memory: it has no driver for the balloon, or hangs")]
    Silent,
}

/// The outcome, once there is one.
#[derive(Default)]
pub(super) struct Verdict {
    outcome: Mutex<Option<Outcome>>,
    known: Condvar,
}

impl Verdict {
    /// Gives the verdict that `reach` comes to. Whatever happens in there, whoever waits for the VM
    /// hears of its end.
    pub fn give(&self, reach: impl FnOnce() -> Outcome) {
        let outcome = caught("the controller of the VM", reach);
        let outcome = outcome.unwrap_or_else(|why| Outcome::Failed { why });
        *self.outcome.lock().unwrap_or_else(PoisonError::into_inner) = Some(outcome);
        self.known.notify_all();
    }

    fn wait(&self) -> Outcome {
        let mut outcome = self.outcome.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if let Some(outcome) = &*outcome {
                return outcome.clone();
            }
            outcome = self.known.wait(outcome).unwrap_or_else(PoisonError::into_inner);
        }
    }

    pub fn wait_timeout(&self, limit: Duration) -> Option<Outcome> {
        let outcome = self.outcome.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.known.wait_timeout_while(outcome, limit, |outcome| outcome.is_none());
        waited.unwrap_or_else(PoisonError::into_inner).0.clone()
    }
}

/// A VM that runs, or has ended. Dropping it ends the VM, its threads, and everything it held.
///
/// Every method may be called from any thread.
pub struct RunningVm {
    pub(super) mailbox: Arc<Mailbox>,
    pub(super) verdict: Arc<Verdict>,
    pub(super) timeline: Arc<Timeline>,
    pub(super) console: Arc<Output>,
    pub(super) console_path: Option<PathBuf>,
    pub(super) metrics: Collector,
    pub(super) tty: Option<Arc<Tty>>,
    pub(super) balloon: Option<Arc<Balloon>>,
    pub(super) agent: Option<Arc<Agent>>,
    pub(super) config: Arc<VmConfig>,
    pub(super) paused: Arc<AtomicBool>,
    pub(super) disks: Disks,
    pub(super) controller: Option<JoinHandle<()>>,
}

impl RunningVm {
    /// Waits until the VM ends.
    pub fn wait(&self) -> Outcome {
        self.verdict.wait()
    }

    /// Waits until the VM ends, at most for `limit`. `None` when it still runs.
    pub fn wait_timeout(&self, limit: Duration) -> Option<Outcome> {
        self.verdict.wait_timeout(limit)
    }

    /// Where it is in its life at this moment.
    pub fn state(&self) -> State {
        match self.wait_timeout(Duration::ZERO) {
            Some(_) => State::Ended,
            None if self.paused.load(Ordering::Acquire) => State::Paused,
            None => State::Running,
        }
    }

    /// What it is made of, as it was started; each device has its id.
    pub fn config(&self) -> &VmConfig {
        &self.config
    }

    /// Holds the guest: when this returns no vCPU executes guest code and no device has a request
    /// in flight. The guest's clocks go on. Pausing a paused VM does nothing.
    ///
    /// # Errors
    /// [`Ended`], when it has ended before it was paused.
    pub fn pause(&self) -> Result<(), Ended> {
        self.command(Command::Pause)
    }

    /// Lets a paused guest go on. Resuming a running VM does nothing.
    ///
    /// # Errors
    /// [`Ended`], when it has.
    pub fn resume(&self) -> Result<(), Ended> {
        self.command(Command::Resume)
    }

    /// Presses the power button. Whether and when the guest turns itself off is up to it; a machine
    /// without ACPI has no button, and its guest notices nothing.
    ///
    /// # Errors
    /// [`Ended`], when the VM has.
    pub fn press_power_button(&self) -> Result<(), Ended> {
        self.command(Command::PressPowerButton)
    }

    /// Gives the guest another VM generation id and tells it so: it has been copied or set back, and
    /// must make new random numbers. A machine without ACPI has none, and its guest notices nothing.
    ///
    /// # Errors
    /// [`Ended`], when the VM has.
    pub fn renew_generation(&self) -> Result<(), Ended> {
        self.command(Command::NewGeneration)
    }

    /// Presses the power button, waits for `grace`, then turns the VM off.
    pub fn stop(&self, grace: Duration) -> Outcome {
        if self.press_power_button().is_ok() {
            if let Some(outcome) = self.wait_timeout(grace) {
                return outcome;
            }
            // An error means that the guest was faster.
            let _ = self.kill();
        }
        self.wait()
    }

    /// Turns the VM off at once.
    ///
    /// # Errors
    /// [`Ended`], when it was off already.
    pub fn kill(&self) -> Result<(), Ended> {
        self.command(Command::Kill)
    }

    /// The moments of its start-up and life so far.
    pub fn timeline(&self) -> &Timeline {
        if let Some(at) = self.console.first_byte() {
            self.timeline.mark_at(crate::timeline::Phase::FirstConsoleByte, at);
        }
        &self.timeline
    }

    /// The end of what the guest wrote to its console, at most `lines` lines.
    pub fn console_tail(&self, lines: usize) -> String {
        self.console.last_lines(lines)
    }

    /// What its devices have done so far, also after its end.
    pub fn metrics(&self) -> Metrics {
        self.metrics.collect()
    }

    /// How many requests for the disk of its guest's overlays failed ([`OverlayConfig::Disk`]), as when the host's own
    /// is full. Linux tells only the programs that sync: the others believe that what they wrote is there.
    ///
    /// [`OverlayConfig::Disk`]: crate::config::OverlayConfig::Disk
    pub fn failed_overlay_requests(&self) -> u64 {
        match self.config.overlay_disk() {
            Some(_) => self.metrics().devices.get(OVERLAY).map_or(0, |disk| disk.counts.errors),
            None => 0,
        }
    }

    /// Asks the guest to give up `bytes` of its memory in all, so that the host has them: more than now
    /// inflates the balloon, less deflates it. The guest does it as far and as fast as it can, and takes
    /// memory back when it would otherwise run out.
    ///
    /// # Errors
    /// See [`BalloonError`].
    pub fn set_balloon(&self, bytes: u64) -> Result<(), BalloonError> {
        let balloon = self.balloon.as_ref().ok_or(BalloonError::Absent)?;
        let memory = self.config.memory.size.0;
        if bytes >= memory {
            return Err(BalloonError::TooLarge { wanted: bytes, memory });
        }
        balloon.set(bytes);
        Ok(())
    }

    /// Bytes the guest says that it has given up.
    ///
    /// # Errors
    /// [`BalloonError::Absent`].
    pub fn balloon(&self) -> Result<u64, BalloonError> {
        Ok(self.balloon.as_ref().ok_or(BalloonError::Absent)?.actual())
    }

    /// Asks the guest how its memory is used, and waits for the answer at most for `patience`.
    ///
    /// # Errors
    /// See [`BalloonError`].
    pub fn memory_statistics(&self, patience: Duration) -> Result<MemoryStatistics, BalloonError> {
        let balloon = self.balloon.as_ref().ok_or(BalloonError::Absent)?;
        balloon.statistics(patience).ok_or(BalloonError::Silent)
    }

    /// Tells the guest the size of its console's window, now and whenever it changes. With a serial
    /// console it does nothing: a serial line has no size.
    pub fn resize_console(&self, size: WindowSize) {
        if let Some(tty) = &self.tty {
            tty.resize(size);
        }
    }

    /// The ids of the disks.
    pub fn disks(&self) -> &[String] {
        self.disks.ids()
    }

    /// Makes a disk `bytes` long, or, without, as long as its file is by now, tells the guest, and gives
    /// the size. Between two requests the file is made longer or shorter, or a qcow2 image or an overlay
    /// its disk. Whether the guest does anything with more sectors, and what it says of fewer, is up to
    /// it. A VM that is paused stays so.
    ///
    /// # Errors
    /// See [`ResizeDiskError`]. Then the disk has the size it had, unless the host has just not answered
    /// yet: [`SizeError::Late`](crate::error::SizeError::Late).
    pub fn resize_disk(&self, id: &str, bytes: Option<u64>) -> Result<u64, ResizeDiskError> {
        self.disks.resize(id, bytes)
    }

    /// The pseudo-terminal to attach to, with [`crate::config::ConsoleConfig::Pty`].
    pub fn console_path(&self) -> Option<&Path> {
        self.console_path.as_deref()
    }

    fn command(&self, command: Command) -> Result<(), Ended> {
        let (reply, answer) = sync_channel(1);
        self.mailbox.post(Message::Command(command, reply));
        answer.recv().map_err(|_| Ended)
    }
}

impl Drop for RunningVm {
    fn drop(&mut self) {
        let _ = self.kill();
        if let Some(controller) = self.controller.take()
            && controller.join().is_err()
        {
            log::error!("the controller thread panicked");
        }
    }
}
