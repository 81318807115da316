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
    /// It asked for its end with this exit status, through the debug-exit port.
    Exit(u8),
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

/// Length of the debug-exit port's range in bytes.
pub const DEBUG_EXIT_LEN: u64 = 4;

/// A port through which a test that runs as a kernel ends its machine with a status, as QEMU's
/// `isa-debug-exit` does: writing `n` gives `n << 1 | 1`, of which an exit status has 8 bits. It is
/// never 0, which means that the guest turned itself off.
pub struct DebugExit(pub EventSink);

impl crate::bus::BusDevice for DebugExit {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }
    fn write(&self, offset: u64, data: &[u8]) {
        // A write of any width to the first port: its low byte is all that a status has room for.
        if let (0, Some(value)) = (offset, data.first()) {
            (self.0)(GuestEvent::Exit(value << 1 | 1));
        }
    }
}

#[cfg(test)]
mod tests;
