//! The few legacy ports a Linux guest needs: power, panic, the keyboard controller's reset line.
//!
//! Each is a handful of registers. What the guest says through them travels as a [`GuestEvent`] to
//! the VM's controller; none of them acts by itself.

use std::sync::Arc;

mod power;
mod pvpanic;
mod quiet;

pub use power::{POWER_LEN, PowerControl};
pub use pvpanic::{PVPANIC_LEN, PvPanic};
pub use quiet::{AbsentRtc, KeyboardReset};

/// What a guest says about its own life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GuestEvent {
    /// It turned itself off (ACPI S5).
    PowerOff,
    /// It asks for a reset.
    Reset,
    /// Its kernel panicked (pvpanic).
    Panic,
    /// Its user space wrote to the marker port.
    Marker,
}

/// Where events go. Called on a vCPU thread: it only passes the event on.
pub type EventSink = Arc<dyn Fn(GuestEvent) + Send + Sync>;

/// A write-only port through which a guest's user space marks a moment of its start-up.
///
/// One byte wide; any value will do. `printf '\1' | dd of=/dev/port bs=1 seek=$((0x510))` reaches it from a shell.
pub struct MarkerPort(pub EventSink);

impl crate::bus::BusDevice for MarkerPort {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }
    fn write(&self, _offset: u64, _data: &[u8]) {
        (self.0)(GuestEvent::Marker);
    }
}

#[cfg(test)]
mod tests;
