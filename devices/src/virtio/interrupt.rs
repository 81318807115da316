//! The device's interrupt line and the status words it shares with its driver.
//!
//! [`Interrupt`] is what a device's worker and the transport have in common: three words the guest
//! reads and writes through registers, without any lock, and the event descriptor that the machine
//! floor turns into an irqfd. Nothing here knows a register's offset.

use std::fmt::Display;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::complaints::Complaints;
use crate::counters::Counters;
use virtio_bindings::bindings::virtio_config::{
    VIRTIO_CONFIG_S_DRIVER_OK, VIRTIO_CONFIG_S_NEEDS_RESET,
};
use virtio_bindings::bindings::virtio_mmio::{VIRTIO_MMIO_INT_CONFIG, VIRTIO_MMIO_INT_VRING};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

struct Shared {
    name: Arc<str>,
    interrupt_status: AtomicU32,
    /// Causes that count as pending all the time.
    assumed: AtomicU32,
    device_status: AtomicU32,
    config_generation: AtomicU32,
    event: EventFd,
    complaints: Complaints,
    counters: Arc<Counters>,
}

/// A device's interrupt line and status words. A clone is another handle to the same line.
#[derive(Clone)]
pub struct Interrupt {
    shared: Arc<Shared>,
}

impl Interrupt {
    /// A line nobody listens to yet, for the device called `name`.
    ///
    /// # Errors
    /// When the host has no event descriptor left.
    pub fn new(name: &str) -> io::Result<Interrupt> {
        Ok(Interrupt {
            shared: Arc::new(Shared {
                name: name.into(),
                interrupt_status: AtomicU32::new(0),
                assumed: AtomicU32::new(0),
                device_status: AtomicU32::new(0),
                config_generation: AtomicU32::new(0),
                event: EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?,
                complaints: Complaints::default(),
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

    /// A configuration change notification (virtio 1.3 §2.3, §4.2.2 `InterruptStatus` bit 1): the
    /// config generation goes up by one.
    pub fn signal_config(&self) {
        self.shared.config_generation.fetch_add(1, Ordering::AcqRel);
        self.raise(VIRTIO_MMIO_INT_CONFIG);
    }

    /// The device cannot go on: sets `DEVICE_NEEDS_RESET` and, when the driver is up, tells it
    /// (virtio 1.3 §2.1.2). The reason is logged the first time after each reset, and at most once a
    /// second: a guest may break and reset its device as often as it likes.
    pub fn needs_reset(&self, why: &dyn Display) {
        let before =
            self.shared.device_status.fetch_or(VIRTIO_CONFIG_S_NEEDS_RESET, Ordering::AcqRel);
        if before & VIRTIO_CONFIG_S_NEEDS_RESET != 0 {
            return;
        }
        self.shared.counters.add_error();
        if let Some(silent) = self.shared.complaints.admit() {
            let name = &self.shared.name;
            log::warn!("{name}: the device stops until the guest resets it: {why}{silent}");
        }
        if before & VIRTIO_CONFIG_S_DRIVER_OK != 0 {
            self.signal_config();
        }
    }

    /// The device status (virtio 1.3 §2.1).
    pub fn device_status(&self) -> u32 {
        self.shared.device_status.load(Ordering::Acquire)
    }

    /// The pending causes of interrupt: bit 0 used buffers, bit 1 configuration.
    pub fn interrupt_status(&self) -> u32 {
        let status = &self.shared.interrupt_status;
        status.load(Ordering::Acquire) | self.shared.assumed.load(Ordering::Acquire)
    }

    /// The same for the driver, who has heard of used buffers by that; of the configuration not before
    /// it says so. Why is said in [`super::mmio`].
    pub(super) fn read_interrupt_status(&self) -> u32 {
        let status = &self.shared.interrupt_status;
        let pending = status.fetch_and(!VIRTIO_MMIO_INT_VRING, Ordering::AcqRel);
        pending | self.shared.assumed.load(Ordering::Acquire)
    }

    /// Whether used buffers count as a cause of every interrupt: for as long as somebody raises the
    /// line through [`Interrupt::event`] who cannot set the cause, such as the host's kernel. A driver
    /// that looks for used buffers in vain has only looked.
    pub fn assume_queue(&self, on: bool) {
        let causes = if on { VIRTIO_MMIO_INT_VRING } else { 0 };
        self.shared.assumed.store(causes, Ordering::Release);
    }

    /// The config space's generation (virtio 1.3 §2.5).
    pub fn config_generation(&self) -> u32 {
        self.shared.config_generation.load(Ordering::Acquire)
    }

    /// The driver has seen these causes (virtio 1.3 §4.2.2 `InterruptACK`). That of used buffers went
    /// when it was read; one that has come since is to be read.
    pub(super) fn acknowledge(&self, causes: u32) {
        let causes = causes & !VIRTIO_MMIO_INT_VRING;
        self.shared.interrupt_status.fetch_and(!causes, Ordering::AcqRel);
    }

    /// Adds bits to the device status; only a reset clears any.
    pub(super) fn add_status(&self, bits: u32) {
        self.shared.device_status.fetch_or(bits, Ordering::AcqRel);
    }

    /// As after power-on. The device is stopped: nothing raises the line meanwhile.
    pub(super) fn reset(&self) {
        self.set(0, 0, 0);
        // An edge nobody has taken would be a stray interrupt for the next driver.
        let _ = self.shared.event.read();
    }

    /// Puts saved words back.
    pub(super) fn set(&self, device_status: u32, interrupt_status: u32, config_generation: u32) {
        self.shared.device_status.store(device_status, Ordering::Release);
        self.shared.interrupt_status.store(interrupt_status, Ordering::Release);
        self.shared.config_generation.store(config_generation, Ordering::Release);
    }

    /// Raises the line again when a cause is pending, after a restore: an edge may have been lost.
    pub(super) fn raise_pending(&self) {
        if self.interrupt_status() != 0 {
            let _ = self.shared.event.write(1);
        }
    }

    fn raise(&self, cause: u32) {
        self.shared.counters.add_interrupt();
        self.shared.interrupt_status.fetch_or(cause, Ordering::AcqRel);
        // Fails only when 2^64 - 2 edges are pending: then the line is raised already.
        let _ = self.shared.event.write(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn used_buffers_are_pending_until_they_are_read_of_and_a_change_until_it_is_acknowledged() {
        let line = Interrupt::new("d").unwrap();
        line.signal_queue();
        line.signal_config();
        assert_eq!(line.interrupt_status(), 3);
        assert_eq!(line.event().read().unwrap(), 2);
        assert_eq!((line.read_interrupt_status(), line.interrupt_status()), (3, 2));
        // More used buffers before the driver acknowledges what it has read.
        line.signal_queue();
        line.acknowledge(3);
        assert_eq!((line.read_interrupt_status(), line.read_interrupt_status()), (1, 0));
        line.signal_config();
        line.acknowledge(1);
        assert_eq!((line.read_interrupt_status(), line.read_interrupt_status()), (2, 2));
        line.acknowledge(2);
        assert_eq!(line.interrupt_status(), 0);
        assert_eq!(line.config_generation(), 2);
    }

    #[test]
    fn whoever_raises_the_line_from_outside_has_a_cause_all_the_time() {
        let line = Interrupt::new("d").unwrap();
        line.assume_queue(true);
        line.signal_config();
        line.acknowledge(3);
        assert_eq!((line.read_interrupt_status(), line.interrupt_status()), (1, 1));
        line.assume_queue(false);
        assert_eq!(line.interrupt_status(), 0);
    }

    #[test]
    fn a_broken_device_tells_a_running_driver_once_and_a_sleeping_one_never() {
        let line = Interrupt::new("d").unwrap();
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
