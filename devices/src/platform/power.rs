//! Sleep and reset registers of hardware-reduced ACPI (ACPI 6.5 §4.8.3.7, §4.8.3.6).
//!
//! ```text
//! 0  sleep control   SLP_TYP in bits 2..=4, SLP_EN bit 5
//! 1  sleep status    WAK_STS bit 7, always clear: we never wake a guest
//! 2  reset           writing RESET_VALUE resets
//! ```

use super::{EventSink, GuestEvent};
use crate::bus::BusDevice;

/// Length of the register block in bytes.
pub const POWER_LEN: u64 = 3;

const SLEEP_CONTROL: u64 = 0;
const RESET: u64 = 2;
const SLP_EN: u8 = 1 << 5;
const SLP_TYP_SHIFT: u8 = 2;
const SLP_TYP_MASK: u8 = 7;

/// The register block.
pub struct PowerControl {
    events: EventSink,
}

impl PowerControl {
    /// The SLP_TYP that turns the machine off; the DSDT's `_S5` names it.
    pub const S5: u8 = 5;
    /// Offset of the sleep control register.
    pub const SLEEP_CONTROL_OFFSET: u16 = 0;
    /// Offset of the sleep status register.
    pub const SLEEP_STATUS_OFFSET: u16 = 1;
    /// Offset of the reset register.
    pub const RESET_OFFSET: u16 = 2;
    /// What the reset register wants; the FADT names it.
    pub const RESET_VALUE: u8 = 1;

    /// A block that reports to `events`.
    pub fn new(events: EventSink) -> Self {
        Self { events }
    }
}

impl BusDevice for PowerControl {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        for (register, &value) in (offset..).zip(data) {
            match register {
                SLEEP_CONTROL
                    if value & SLP_EN != 0
                        && (value >> SLP_TYP_SHIFT) & SLP_TYP_MASK == Self::S5 =>
                {
                    (self.events)(GuestEvent::PowerOff);
                }
                RESET if value == Self::RESET_VALUE => (self.events)(GuestEvent::Reset),
                _ => {}
            }
        }
    }
}
