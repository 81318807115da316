//! The serial console: a 16550A on COM1 and the task that carries its bytes to and from the host.
//!
//! ```text
//! vCPU ── port I/O ─▶ Uart ─▶ Output ─▶ ConsoleTask (worker) ─▶ stdout, file, pty
//!                      ▲                      │
//!                      └── 64-byte FIFO ◀─────┘ ◀─ stdin, pty
//! ```
//!
//! The register file is vm-superio's; here stand its bus face, the flow control and the host side.

mod escape;
mod line;
mod output;
mod state;
mod streams;
mod task;

use std::io::{self, Write};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vm_superio::Trigger;
use vm_superio::serial::{Serial, SerialEvents};
use vmm_sys_util::eventfd::EventFd;

use crate::bus::BusDevice;
use crate::counters::Counters;

pub use escape::{EscapeFilter, EscapeHandler, Escapes};
pub use line::Line;
pub use output::Output;
pub use state::{UartRestoreError, UartState};
pub use streams::{ConsoleStreams, open_pty};
pub use task::ConsoleTask;

/// Length of the register file in bytes.
pub const UART_LEN: u64 = 8;

const DATA: u8 = 0;
const IER: u8 = 1;
const LCR: u8 = 3;
const LSR: u8 = 5;
const LCR_DLAB: u8 = 1 << 7;
/// Interrupt when something was received.
const IER_RDI: u8 = 1 << 0;
/// Interrupt when the transmitter is ready.
const IER_THRI: u8 = 1 << 1;
/// "Data ready".
const LSR_DATA_READY: u8 = 1 << 0;
/// "Transmitter holding register empty" and "transmitter empty".
const LSR_TRANSMITTER_EMPTY: u8 = 0b0110_0000;

struct Irq(EventFd, Arc<Counters>);

impl Trigger for Irq {
    type E = io::Error;
    fn trigger(&self) -> io::Result<()> {
        self.1.add_interrupt();
        self.0.write(1)
    }
}

struct Sink(Arc<Output>);

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        bytes.iter().for_each(|b| self.0.push(*b));
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Tells the task that the guest has read the FIFO empty.
struct FifoWatch(EventFd);

impl SerialEvents for FifoWatch {
    fn buffer_read(&self) {}
    fn out_byte(&self) {}
    fn tx_lost_byte(&self) {}
    fn in_buffer_empty(&self) {
        // EAGAIN means that the task has been told already.
        let _ = self.0.write(1);
    }
}

type Registers = Serial<Irq, FifoWatch, Sink>;

/// The register file, and what it tells of the guest's wish for input.
///
/// Linux reads the receiver empty when it opens the port, so that bytes given to it before are lost.
/// They are held back until it enables the interrupt, or asks for the status again and again without
/// writing anything, as nobody does who does not wait for input. All four interrupts at once do not
/// count: so Linux finds out what the port is, and disables them again (`autoconfig` of `8250_port.c`).
struct Port {
    registers: Registers,
    /// Reads of the status since the last byte written, while nothing was received.
    asked: u32,
}

/// Every interrupt that there is.
const IER_ALL: u8 = 0xf;
/// So many are no accident: a driver that writes asks once a byte.
const ASKS_OF_A_READER: u32 = 16;

impl Port {
    fn wants_input(&mut self) -> bool {
        let enabled = self.enabled();
        self.asked >= ASKS_OF_A_READER || enabled & IER_RDI != 0 && enabled != IER_ALL
    }

    /// The interrupts that are enabled; none while the divisor latch hides the register.
    fn enabled(&mut self) -> u8 {
        if self.registers.read(LCR) & LCR_DLAB != 0 { 0 } else { self.registers.read(IER) }
    }
}

/// A 16550A UART.
///
/// Its lock is held for the time of a register access and never across I/O, by vCPU threads and,
/// to put typed bytes into the FIFO, by the worker.
pub struct Uart {
    port: Mutex<Port>,
    irq: EventFd,
    output: Arc<Output>,
    fifo_empty: EventFd,
    counters: Arc<Counters>,
}

impl Uart {
    /// A UART after reset, with nothing connected to it yet.
    ///
    /// # Errors
    /// When the host has no event descriptor left.
    pub fn new() -> io::Result<Arc<Self>> {
        let irq = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?;
        let fifo_empty = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?;
        let output = Arc::new(Output::new()?);
        let counters = Arc::default();
        let port = Mutex::new(Self::fresh(&irq, &fifo_empty, &output, &counters)?);
        Ok(Arc::new(Self { port, irq, output, fifo_empty, counters }))
    }

    fn fresh(
        irq: &EventFd,
        fifo_empty: &EventFd,
        output: &Arc<Output>,
        counters: &Arc<Counters>,
    ) -> io::Result<Port> {
        let watch = FifoWatch(fifo_empty.try_clone()?);
        let irq = Irq(irq.try_clone()?, counters.clone());
        let registers = Serial::with_events(irq, watch, Sink(output.clone()));
        Ok(Port { registers, asked: 0 })
    }

    /// Back to the state after reset, for a reboot; what was written and not yet read stays.
    ///
    /// # Errors
    /// When the host has no event descriptor left; then nothing is changed.
    pub fn reset(&self) -> io::Result<()> {
        *self.port() = Self::fresh(&self.irq, &self.fifo_empty, &self.output, &self.counters)?;
        Ok(())
    }

    /// The interrupt: an edge for each write, to be connected to KVM as an irqfd.
    pub fn irq_fd(&self) -> &EventFd {
        &self.irq
    }

    /// What the UART has done so far: each access to a register is a request. What was lost because
    /// nobody read it is told by [`Output::dropped`].
    pub fn counters(&self) -> &Arc<Counters> {
        &self.counters
    }

    /// What the guest has written.
    pub fn output(&self) -> &Arc<Output> {
        &self.output
    }

    fn port(&self) -> MutexGuard<'_, Port> {
        // Register values are independent bytes; a panic elsewhere leaves them usable.
        self.port.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has the task look again whether the guest takes input.
    pub(crate) fn ask_for_input(&self) {
        // EAGAIN means that it has been told already.
        let _ = self.fifo_empty.write(1);
    }

    /// Rung when the guest may take input that it did not take before.
    pub(crate) fn wants_input(&self) -> &EventFd {
        &self.fifo_empty
    }

    /// Bytes the guest takes now: none as long as it would throw them away.
    pub(crate) fn room(&self) -> usize {
        let mut port = self.port();
        if port.wants_input() { port.registers.fifo_capacity() } else { 0 }
    }

    /// Gives the guest typed bytes; returns how many it took.
    pub(crate) fn receive(&self, typed: &[u8]) -> usize {
        let mut port = self.port();
        if !port.wants_input() {
            return 0;
        }
        let taken = port.registers.enqueue_raw_bytes(typed).unwrap_or(0);
        self.counters.add_requests(0, 0, taken as u64);
        taken
    }

    /// Tells a driver that waits for the transmitter that it is ready again: on a UART the
    /// interrupt is a level, and writing IER re-evaluates it.
    pub(crate) fn transmitter_ready(&self) {
        let mut port = self.port();
        let enabled = port.enabled();
        if enabled != 0 {
            // Fails only when the irqfd does, which nobody could hear of either.
            let _ = port.registers.write(IER, enabled);
        }
    }
}

impl BusDevice for Uart {
    fn read(&self, offset: u64, data: &mut [u8]) {
        self.counters.add_requests(1, 0, 0);
        self.counters.add_exit();
        let mut port = self.port();
        for (offset, value) in (offset as u8..).zip(data) {
            *value = port.registers.read(offset);
            if offset != LSR {
                continue;
            }
            // Only for a driver that waits for the interrupt. One that polls (a kernel's own
            // messages) would do it with its interrupts off and, Linux, write in the end anyway.
            if port.enabled() & IER_THRI != 0 && !self.output.has_room() {
                *value &= !LSR_TRANSMITTER_EMPTY;
            }
            if *value & LSR_DATA_READY == 0 {
                port.asked = port.asked.saturating_add(1);
                if port.asked == ASKS_OF_A_READER {
                    self.ask_for_input();
                }
            }
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let mut port = self.port();
        let wanted = port.wants_input();
        let latched = port.registers.read(LCR) & LCR_DLAB != 0;
        let mut sent = 0;
        for (offset, value) in (offset as u8..).zip(data) {
            if offset == DATA {
                sent += u64::from(!latched);
                port.asked = 0;
            }
            // Fails only when the irqfd does, which the guest could not hear of either.
            let _ = port.registers.write(offset, *value);
        }
        self.counters.add_requests(1, sent, 0);
        self.counters.add_exit();
        if !wanted && port.wants_input() {
            self.ask_for_input();
        }
    }
}

#[cfg(test)]
mod tests;
