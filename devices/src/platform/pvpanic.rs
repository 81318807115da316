//! pvpanic: the guest kernel's own word that it panicked (QEMU `docs/specs/pvpanic.rst`).

use super::{EventSink, GuestEvent};
use crate::bus::BusDevice;

/// Length of the register in bytes.
pub const PVPANIC_LEN: u64 = 1;

/// A panic that nothing in the guest handles.
const PANICKED: u8 = 1 << 0;

/// The one-byte register; reading it tells which events the device knows.
pub struct PvPanic {
    events: EventSink,
}

impl PvPanic {
    /// A device that reports to `events`.
    pub fn new(events: EventSink) -> Self {
        Self { events }
    }
}

impl BusDevice for PvPanic {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
        if let Some(events) = data.first_mut() {
            *events = PANICKED;
        }
    }

    fn write(&self, _offset: u64, data: &[u8]) {
        if data.first().is_some_and(|bits| bits & PANICKED != 0) {
            (self.events)(GuestEvent::Panic);
        }
    }
}
