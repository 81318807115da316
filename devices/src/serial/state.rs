//! The registers of the UART as plain data, for snapshots.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use vm_superio::serial::{Serial, SerialState};

use super::{FifoWatch, Irq, Port, Sink, Uart};

/// What a snapshot keeps of a [`Uart`]: its registers and the bytes the guest has not read. What it
/// wrote and nobody has read yet belongs to the host.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs, reason = "the registers of a 16550A by their names")]
pub struct UartState {
    pub divisor_low: u8,
    pub divisor_high: u8,
    pub interrupt_enable: u8,
    pub interrupt_identification: u8,
    pub line_control: u8,
    pub line_status: u8,
    pub modem_control: u8,
    pub modem_status: u8,
    pub scratch: u8,
    /// Received and not read, at most 64 bytes.
    pub fifo: Vec<u8>,
    /// How often the guest asked in vain for input.
    pub asked: u32,
}

/// The state is of no UART of ours, or the host has no descriptor left for it.
#[derive(Debug, thiserror::Error)]
#[error("the saved state of the serial console cannot be taken over: {0}")]
pub struct UartRestoreError(String);

impl Uart {
    /// The registers. Meaningful while no vCPU runs.
    pub fn save(&self) -> UartState {
        let port = self.port();
        let SerialState {
            baud_divisor_low,
            baud_divisor_high,
            interrupt_enable,
            interrupt_identification,
            line_control,
            line_status,
            modem_control,
            modem_status,
            scratch,
            in_buffer,
        } = port.registers.state();
        UartState {
            divisor_low: baud_divisor_low,
            divisor_high: baud_divisor_high,
            interrupt_enable,
            interrupt_identification,
            line_control,
            line_status,
            modem_control,
            modem_status,
            scratch,
            fifo: in_buffer,
            asked: port.asked,
        }
    }

    /// Takes over saved registers. No vCPU runs.
    ///
    /// # Errors
    /// When the FIFO in it is longer than ours, or the host has no descriptor left; then nothing has
    /// changed.
    pub fn restore(&self, state: &UartState) -> Result<(), UartRestoreError> {
        let refused = |why: &dyn std::fmt::Display| UartRestoreError(why.to_string());
        let saved = SerialState {
            baud_divisor_low: state.divisor_low,
            baud_divisor_high: state.divisor_high,
            interrupt_enable: state.interrupt_enable,
            interrupt_identification: state.interrupt_identification,
            line_control: state.line_control,
            line_status: state.line_status,
            modem_control: state.modem_control,
            modem_status: state.modem_status,
            scratch: state.scratch,
            in_buffer: state.fifo.clone(),
        };
        let irq = Irq(self.irq.try_clone().map_err(|e| refused(&e))?, Arc::clone(&self.counters));
        let watch = FifoWatch(self.fifo_empty.try_clone().map_err(|e| refused(&e))?);
        let registers = Serial::from_state(&saved, irq, watch, Sink(self.output.clone()))
            .map_err(|e| refused(&format_args!("{e:?}")))?;
        *self.port() = Port { registers, asked: state.asked };
        // Whoever types is asked again whether there is room.
        self.ask_for_input();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bus::BusDevice;

    #[test]
    fn a_restored_uart_has_the_registers_and_the_unread_bytes_of_the_saved_one() {
        let (first, second) = (Uart::new().unwrap(), Uart::new().unwrap());
        first.write(1, &[1]);
        first.write(7, &[0x5a]);
        assert_eq!(first.receive(b"typed"), 5);
        let mut byte = [0];
        first.read(0, &mut byte);
        assert_eq!(byte, [b't']);
        let saved = first.save();
        let text = serde_json::to_string(&saved).unwrap();
        second.restore(&serde_json::from_str(&text).unwrap()).unwrap();
        assert_eq!(second.save(), saved);
        let mut read = Vec::new();
        for _ in 0..4 {
            second.read(0, &mut byte);
            read.push(byte[0]);
        }
        assert_eq!(read, b"yped");
        second.read(7, &mut byte);
        assert_eq!(byte, [0x5a]);
    }

    #[test]
    fn a_state_with_more_unread_bytes_than_there_is_room_for_is_refused() {
        let uart = Uart::new().unwrap();
        let before = uart.save();
        let state = UartState { fifo: vec![0; 65], ..before.clone() };
        assert!(uart.restore(&state).is_err());
        assert_eq!(uart.save(), before);
    }
}
