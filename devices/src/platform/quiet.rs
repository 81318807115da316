//! Ports whose absence would cost a guest time: reading `0xff` from them looks like a busy device.

use super::{EventSink, GuestEvent};
use crate::bus::BusDevice;

/// Ports 0x60..=0x64: no keyboard controller, but its reset line (Linux' `reboot=k`).
///
/// The status always reads "output full, input empty". Linux' i8042 probe gives up on a controller
/// whose output never empties after 16 reads, and its reset path waits only for an empty input. The
/// data is 0xff, a key on no keyboard, so that memtest86+ goes on to ask the serial line.
pub struct KeyboardReset {
    events: EventSink,
}

impl KeyboardReset {
    /// Offset of the data port from the first port.
    const DATA: u64 = 0;
    /// Offset of the status and command port.
    const COMMAND: u64 = 4;
    const STATUS_OUTPUT_FULL: u8 = 1 << 0;
    const PULSE_RESET: u8 = 0xfe;

    /// A device that reports to `events`.
    pub fn new(events: EventSink) -> Self {
        Self { events }
    }
}

impl BusDevice for KeyboardReset {
    fn read(&self, offset: u64, data: &mut [u8]) {
        for (port, value) in (offset..).zip(data) {
            *value = match port {
                Self::DATA => 0xff,
                Self::COMMAND => Self::STATUS_OUTPUT_FULL,
                _ => 0,
            };
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if (offset..).zip(data).any(|(p, &v)| p == Self::COMMAND && v == Self::PULSE_RESET) {
            (self.events)(GuestEvent::Reset);
        }
    }
}

/// Ports 0x70..=0x71: no CMOS clock. Reads as zero, so that nobody waits for "update in progress".
pub struct AbsentRtc;

impl BusDevice for AbsentRtc {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }
    fn write(&self, _offset: u64, _data: &[u8]) {}
}
