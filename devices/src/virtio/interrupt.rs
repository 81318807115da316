//! The device's interrupt line and the status words it shares with its driver.
//!
//! [`Interrupt`] is what a device's worker and the transport have in common: three of its registers, which
//! the guest reads while they change, what changes of its config space, and the event descriptor that
//! the machine floor turns into an irqfd. Nothing here knows a register's offset.
//!
//! In one thing it departs from the specification, on purpose: used buffers stay a cause of interrupt from
//! the first on until the device is reset, and acknowledging them (virtio 1.3 §4.2.2 `InterruptACK`) does
//! nothing. A driver's handler reads the causes and then looks at its rings, always (Linux `vm_interrupt`,
//! and the BSDs'); one that looks for used buffers in vain has only looked. So nobody need hear of the
//! acknowledgement, and whoever raises the line without setting a cause, as the host's kernel does, has
//! one. A change of configuration is rare, and is pending until it is acknowledged.

use std::fmt::Display;
use std::io;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};

use crate::complaints::Complaints;
use crate::counters::Counters;
use virtio_bindings::bindings::virtio_config::{
    VIRTIO_CONFIG_S_DRIVER_OK, VIRTIO_CONFIG_S_NEEDS_RESET,
};
use virtio_bindings::bindings::virtio_mmio::{VIRTIO_MMIO_INT_CONFIG, VIRTIO_MMIO_INT_VRING};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::registers::Registers;

struct Shared {
    name: Arc<str>,
    registers: Registers,
    /// Held while the config space is read from the device and put into the registers: of two who do,
    /// the last finds what is so now.
    config: Mutex<()>,
    event: EventFd,
    complaints: Complaints,
    /// Of why the device stops, which must not be lost among the others.
    breaks: Complaints,
    counters: Arc<Counters>,
}

/// A device's interrupt line and status words. A clone is another handle to the same line.
#[derive(Clone)]
pub struct Interrupt {
    shared: Arc<Shared>,
}

impl Interrupt {
    /// A line nobody listens to yet, for the device called `name`, which has these `registers`.
    ///
    /// # Errors
    /// When the host has no event descriptor left.
    pub fn new(name: &str, registers: Registers) -> io::Result<Interrupt> {
        Ok(Interrupt {
            shared: Arc::new(Shared {
                name: name.into(),
                registers,
                config: Mutex::new(()),
                event: EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?,
                complaints: Complaints::default(),
                breaks: Complaints::default(),
                counters: Arc::default(),
            }),
        })
    }

    /// The name the user knows the device by.
    pub fn name(&self) -> &Arc<str> {
        &self.shared.name
    }

    /// What the device has done so far.
    pub fn counters(&self) -> &Arc<Counters> {
        &self.shared.counters
    }

    /// The descriptor that is written once for each interrupt (one edge each).
    pub fn event(&self) -> &EventFd {
        &self.shared.event
    }

    /// A used buffer notification (virtio 1.3 §2.7.8, §4.2.2 `InterruptStatus` bit 0).
    pub fn signal_queue(&self) {
        self.raise(VIRTIO_MMIO_INT_VRING);
    }

    /// Used buffers are a cause of interrupt from now on, though the line is raised by somebody else,
    /// through [`Interrupt::event`].
    pub fn expect_queue(&self) {
        self.shared.registers.causes().fetch_or(VIRTIO_MMIO_INT_VRING, Ordering::AcqRel);
    }

    /// The config space has what `now` gives from its byte `at` on, one field. Tells the driver of it: a
    /// configuration change notification (virtio 1.3 §2.3, §4.2.2 `InterruptStatus` bit 1); the config
    /// generation goes up by one.
    pub fn config_changed<B: AsRef<[u8]>>(&self, at: u64, now: impl FnOnce() -> B) {
        self.set_config(at, now);
        self.signal_config();
    }

    /// The same without a notification, for a driver that has yet to look.
    pub fn set_config<B: AsRef<[u8]>>(&self, at: u64, now: impl FnOnce() -> B) {
        // Nothing is half done when somebody panics with it.
        let _turn = self.shared.config.lock().unwrap_or_else(PoisonError::into_inner);
        self.shared.registers.set_config(at, now().as_ref());
    }

    /// A change that the registers show already.
    pub(super) fn signal_config(&self) {
        self.shared.registers.generation().fetch_add(1, Ordering::AcqRel);
        self.raise(VIRTIO_MMIO_INT_CONFIG);
    }

    /// The device cannot go on: sets `DEVICE_NEEDS_RESET` and, when the driver is up, tells it
    /// (virtio 1.3 §2.1.2). The reason is logged, at most once a second: a guest may break and reset its
    /// device as often as it likes.
    pub fn needs_reset(&self, why: &dyn Display) {
        let before =
            self.shared.registers.status().fetch_or(VIRTIO_CONFIG_S_NEEDS_RESET, Ordering::AcqRel);
        if before & VIRTIO_CONFIG_S_NEEDS_RESET != 0 {
            return;
        }
        let what = format_args!("the device stops until the guest resets it: {why}");
        self.tell(&self.shared.breaks, &what);
        if before & VIRTIO_CONFIG_S_DRIVER_OK != 0 {
            self.signal_config();
        }
    }

    /// Counts an error, and tells the user of it: at most once a second, however often the guest causes it
    /// or resets the device.
    pub fn complain(&self, what: &dyn Display) {
        self.tell(&self.shared.complaints, what);
    }

    fn tell(&self, limit: &Complaints, what: &dyn Display) {
        self.shared.counters.add_error();
        if let Some(silent) = limit.admit() {
            log::warn!("{}: {what}{silent}", self.shared.name);
        }
    }

    /// The device status (virtio 1.3 §2.1).
    pub fn device_status(&self) -> u32 {
        self.shared.registers.status().load(Ordering::Acquire)
    }

    /// The pending causes of interrupt: bit 0 used buffers, bit 1 configuration.
    pub fn interrupt_status(&self) -> u32 {
        self.shared.registers.causes().load(Ordering::Acquire)
    }

    /// The config space's generation (virtio 1.3 §2.5).
    pub fn config_generation(&self) -> u32 {
        self.shared.registers.generation().load(Ordering::Acquire)
    }

    /// The registers of the device.
    pub(super) fn registers(&self) -> &Registers {
        &self.shared.registers
    }

    /// The driver has seen these causes (virtio 1.3 §4.2.2 `InterruptACK`), see the top.
    pub(super) fn acknowledge(&self, causes: u32) {
        let causes = causes & !VIRTIO_MMIO_INT_VRING;
        self.shared.registers.causes().fetch_and(!causes, Ordering::AcqRel);
    }

    /// Adds bits to the device status; only a reset clears any.
    pub(super) fn add_status(&self, bits: u32) {
        self.shared.registers.status().fetch_or(bits, Ordering::AcqRel);
    }

    /// As after power-on. The device is stopped: nothing raises the line meanwhile.
    pub(super) fn reset(&self) {
        self.set(0, 0, 0);
        // An edge nobody has taken would be a stray interrupt for the next driver.
        let _ = self.shared.event.read();
    }

    /// Puts saved words back.
    pub(super) fn set(&self, device_status: u32, interrupt_status: u32, config_generation: u32) {
        self.shared.registers.causes().store(interrupt_status, Ordering::Release);
        self.shared.registers.generation().store(config_generation, Ordering::Release);
        // Last: who waits for a reset reads this (virtio 1.3 §2.4).
        self.shared.registers.status().store(device_status, Ordering::Release);
    }

    /// Raises the line again when a cause is pending, after a restore: an edge may have been lost.
    pub(super) fn raise_pending(&self) {
        if self.interrupt_status() != 0 {
            let _ = self.shared.event.write(1);
        }
    }

    fn raise(&self, cause: u32) {
        self.shared.counters.add_interrupt();
        self.shared.registers.causes().fetch_or(cause, Ordering::AcqRel);
        // Fails only when 2^64 - 2 edges are pending: then the line is raised already.
        let _ = self.shared.event.write(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line() -> Interrupt {
        Interrupt::new("d", Registers::alone().unwrap()).unwrap()
    }

    #[test]
    fn used_buffers_are_pending_from_the_first_on_and_a_change_until_it_is_acknowledged() {
        let line = line();
        line.config_changed(0, || [1]);
        assert_eq!(line.interrupt_status(), 2);
        line.signal_queue();
        assert_eq!(line.interrupt_status(), 3);
        assert_eq!(line.event().read().unwrap(), 2);
        line.acknowledge(1);
        assert_eq!(line.interrupt_status(), 3);
        line.acknowledge(3);
        assert_eq!(line.interrupt_status(), 1);
        line.config_changed(0, || [2]);
        assert_eq!((line.interrupt_status(), line.config_generation()), (3, 2));
        line.reset();
        assert_eq!((line.interrupt_status(), line.config_generation()), (0, 0));
        assert!(line.event().read().is_err());
        // Whoever raises the line from outside has a cause, too.
        line.expect_queue();
        assert_eq!(line.interrupt_status(), 1);
        assert!(line.event().read().is_err());
    }

    #[test]
    fn a_guest_that_resets_its_device_again_and_again_does_not_fill_the_log() {
        let line = line();
        for _ in 0..100 {
            line.reset();
            line.complain(&"a guest did something");
        }
        assert_eq!(line.counters().counts().errors, 100);
        // One was said, less than a second ago.
        assert_eq!(line.shared.complaints.admit(), None);
    }

    #[test]
    fn why_a_device_stops_is_said_whatever_was_said_just_before() {
        let line = line();
        line.complain(&"the host's disk is full");
        line.needs_reset(&"a ring outside memory");
        // It was: the next in this second is not.
        assert_eq!(line.shared.breaks.admit(), None);
    }

    #[test]
    fn a_driver_finds_what_has_changed_in_its_registers() {
        let line = line();
        line.set_config(1, || [7, 8]);
        assert_eq!(line.interrupt_status(), 0);
        line.config_changed(2, || [9]);
        let mut config = [0xaa; 4];
        line.registers().read(0x100, &mut config);
        assert_eq!(config, [0, 7, 9, 0]);
        let mut words = [0; 0x10];
        line.registers().read(0x60, &mut words);
        assert_eq!(words[..4], [2, 0, 0, 0]);
    }

    #[test]
    fn a_broken_device_tells_a_running_driver_once_and_a_sleeping_one_never() {
        let line = line();
        line.needs_reset(&"early");
        assert_eq!((line.device_status(), line.interrupt_status()), (0x40, 0));
        line.reset();
        line.add_status(VIRTIO_CONFIG_S_DRIVER_OK);
        line.needs_reset(&"first");
        line.needs_reset(&"second");
        assert_eq!((line.device_status(), line.interrupt_status()), (0x44, 2));
        assert_eq!(line.event().read().unwrap(), 1);
    }
}
