//! A console with one port (virtio 1.3 §5.3.4 "Device Configuration", without `F_MULTIPORT`).
//!
//! ```text
//! hvc0 ── transmitq ─▶ Tty ─▶ Output ─▶ ConsoleTask (worker) ─▶ stdout, file, pty
//!                       ▲ typed            │
//!                       └──────────────────┘ ◀─ stdin, pty
//! ```
//!
//! It shares the output with the UART: what the kernel says before its driver for this device is up
//! comes there, and both are one console to the host. Linux writes to a console with its interrupts
//! off and waits until the device has the buffer, so a buffer is always taken at once: what finds no
//! room is lost and counted, and never stops the guest.

use std::collections::VecDeque;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use event_manager::{EventOps, Events, MutEventSubscriber};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::{DEVICE_TYPE, QUEUE_SIZE, VIRTIO_CONSOLE_F_SIZE};
use crate::serial::{Line, Output, Uart};
use crate::virtio::device::{Activation, StartError, VirtioDevice};
use crate::virtio::interrupt::Interrupt;
use crate::virtio::queue::{Answer, Chain, Queue, QueueState};
use crate::virtio::seat::Seat;
use crate::worker::WorkerHandle;

const QUEUE_SIZES: [u16; 2] = [QUEUE_SIZE, QUEUE_SIZE];
/// Typed bytes that may wait for the guest.
const TYPED_MAX: usize = 1024;
/// Bytes of one chain that are looked at: Linux gives at most a page. The rest is lost.
const CHAIN_MAX: usize = 1 << 20;
/// Chains of one round of output.
const TX_ROUND: u16 = 16;

/// A window's size in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "what they are is their names")]
pub struct WindowSize {
    pub columns: u16,
    pub rows: u16,
}

impl WindowSize {
    /// What a terminal has when nobody says otherwise.
    pub const DEFAULT: WindowSize = WindowSize { columns: 80, rows: 24 };

    fn to_word(self) -> u32 {
        u32::from(self.rows) << 16 | u32::from(self.columns)
    }

    fn from_word(word: u32) -> WindowSize {
        // The two halves of the word.
        WindowSize { columns: word as u16, rows: (word >> 16) as u16 }
    }
}

/// What the console device and the host's side of it share.
pub struct Tty {
    uart: Arc<Uart>,
    typed: Mutex<VecDeque<u8>>,
    size: AtomicU32,
    /// A driver has given the device its queues: it gets the input, not the UART.
    up: AtomicBool,
    /// Rung for the device when there is input, or another size.
    wake: EventFd,
    /// Where the guest finds the size, once there is a device.
    line: OnceLock<Interrupt>,
}

impl Tty {
    /// A console that shares `uart`'s output, and gets its input once its driver is up.
    ///
    /// # Errors
    /// When the host has no event descriptor left.
    pub fn beside(uart: Arc<Uart>) -> io::Result<Arc<Tty>> {
        Ok(Arc::new(Tty {
            uart,
            typed: Mutex::default(),
            size: AtomicU32::new(WindowSize::DEFAULT.to_word()),
            up: AtomicBool::new(false),
            wake: EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?,
            line: OnceLock::new(),
        }))
    }

    /// The window has another size now; the guest is told.
    pub fn resize(&self, size: WindowSize) {
        self.size.store(size.to_word(), Ordering::Release);
        if let Some(line) = self.line.get() {
            line.set_config(0, || self.config());
        }
        self.ring();
    }

    fn size(&self) -> WindowSize {
        WindowSize::from_word(self.size.load(Ordering::Acquire))
    }

    /// The fields of `virtio_console_config` that a console without ports has (virtio 1.3 §5.3.4).
    fn config(&self) -> [u8; 4] {
        let WindowSize { columns, rows } = self.size();
        let ([a, b], [c, d]) = (columns.to_le_bytes(), rows.to_le_bytes());
        [a, b, c, d]
    }

    fn typed(&self) -> MutexGuard<'_, VecDeque<u8>> {
        // Plain bytes; a panic elsewhere cannot leave them inconsistent.
        self.typed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ring(&self) {
        // Fails only when it rings already.
        let _ = self.wake.write(1);
    }

    fn set_up(&self, up: bool) {
        self.up.store(up, Ordering::Release);
        self.uart.ask_for_input();
    }
}

impl Line for Tty {
    fn output(&self) -> &Arc<Output> {
        self.uart.output()
    }

    fn wants_input(&self) -> &EventFd {
        self.uart.wants_input()
    }

    fn room(&self) -> usize {
        if !self.up.load(Ordering::Acquire) {
            return self.uart.room();
        }
        TYPED_MAX.saturating_sub(self.typed().len())
    }

    fn receive(&self, bytes: &[u8]) -> usize {
        if !self.up.load(Ordering::Acquire) {
            return self.uart.receive(bytes);
        }
        let mut typed = self.typed();
        let taken = bytes.len().min(TYPED_MAX.saturating_sub(typed.len()));
        typed.extend(bytes.get(..taken).unwrap_or_default());
        drop(typed);
        if taken > 0 {
            self.ring();
        }
        taken
    }

    fn output_has_room(&self) {
        self.uart.transmitter_ready();
    }
}

/// The device; it runs on a worker between start and stop.
pub struct TtyDevice {
    tty: Arc<Tty>,
    worker: WorkerHandle,
    told: Told,
    seat: Seat<Serve>,
}

/// What the driver was told of the window. Linux reads the config space only when it is told that it
/// has changed, and forgets it when it is told too early; so it is told when it is up, and once more
/// when it says its first word.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Told {
    size: Option<WindowSize>,
    after_its_first_word: bool,
}

/// What a snapshot keeps of the console.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct State {
    told: Told,
    typed: Vec<u8>,
}

impl TtyDevice {
    /// The device behind which `tty` is, served by `worker`.
    pub fn new(tty: Arc<Tty>, worker: WorkerHandle) -> TtyDevice {
        TtyDevice { tty, worker, told: Told::default(), seat: Seat::default() }
    }
}

impl VirtioDevice for TtyDevice {
    fn device_type(&self) -> u32 {
        DEVICE_TYPE
    }

    fn features(&self) -> u64 {
        1 << VIRTIO_CONSOLE_F_SIZE
    }

    fn connect(&mut self, interrupt: &Interrupt) {
        // A console has one device.
        let _ = self.tty.line.set(interrupt.clone());
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn config(&self) -> Vec<u8> {
        self.tty.config().to_vec()
    }

    fn start(&mut self, activation: Activation) -> Result<(), StartError> {
        let Activation { queues, memory, interrupt, .. } = activation;
        let mut queues = queues.into_iter();
        let (rx, mut tx) = (queues.next().flatten(), queues.next().flatten());
        if let Some(tx) = &mut tx {
            tx.set_budget(TX_ROUND);
            tx.ring();
        }
        let up = rx.is_some();
        let serve = Serve { tty: self.tty.clone(), rx, tx, memory, interrupt, told: self.told };
        self.seat.start(&self.worker, |_| serve)?;
        // For what was typed and for a size that changed meanwhile.
        self.tty.ring();
        self.tty.set_up(up);
        Ok(())
    }

    fn recall(&mut self) {
        self.seat.recall();
    }

    fn stop(&mut self) -> Vec<QueueState> {
        let Some(serve) = self.seat.stop() else { return Vec::new() };
        self.told = serve.told;
        serve.rx.iter().chain(&serve.tx).map(Queue::state).collect()
    }

    fn is_busy(&mut self) -> bool {
        self.seat.may_touch()
    }

    fn save(&self) -> Value {
        let typed = self.tty.typed().iter().copied().collect();
        // A struct of plain data always has a JSON form.
        serde_json::to_value(State { told: self.told, typed }).unwrap_or_default()
    }

    fn restore(&mut self, state: &Value) -> Result<(), String> {
        let State { told, typed } = State::deserialize(state).map_err(|e| e.to_string())?;
        if typed.len() > TYPED_MAX {
            return Err(format!("{} typed bytes wait in it, at most {TYPED_MAX} do", typed.len()));
        }
        self.told = told;
        *self.tty.typed() = typed.into();
        Ok(())
    }

    fn reset(&mut self) {
        self.told = Told::default();
        self.tty.set_up(false);
    }
}

/// What runs in the worker.
struct Serve {
    tty: Arc<Tty>,
    rx: Option<Queue>,
    tx: Option<Queue>,
    memory: GuestMemoryMmap,
    interrupt: Interrupt,
    told: Told,
}

impl Serve {
    /// From the guest. Every chain is finished at once; see the top.
    fn transmit(&mut self) {
        let Serve { tty, tx: Some(tx), memory, interrupt, .. } = self else { return };
        tx.quiet();
        let mut spoken = false;
        tx.process(memory, interrupt, |chain| {
            spoken = true;
            if write_out(chain, tty.output()) > 0 {
                interrupt.counters().add_error();
            }
            Answer::Done(0)
        });
        if spoken && !self.told.after_its_first_word {
            self.told = Told { size: None, after_its_first_word: true };
            self.tell_size();
        }
    }

    /// To the guest, as far as it has given buffers.
    fn receive(&mut self) {
        let Serve { tty, rx: Some(rx), memory, interrupt, .. } = self else { return };
        rx.quiet();
        let mut typed = tty.typed();
        let before = typed.len();
        rx.process(memory, interrupt, |chain| {
            if typed.is_empty() {
                return Answer::Stop;
            }
            let len = typed.len().min(chain.writable_len());
            let bytes = typed.make_contiguous().get(..len).unwrap_or_default();
            if chain.copy_from(0, bytes).is_err() {
                return Answer::Broken("a console's receive buffer is shorter than it says");
            }
            typed.drain(..len);
            // At most TYPED_MAX, so the cast keeps the number.
            Answer::Done(len as u32)
        });
        let taken = before != typed.len();
        drop(typed);
        if taken {
            tty.uart.ask_for_input();
        }
    }

    fn tell_size(&mut self) {
        let now = Some(self.tty.size());
        if now != self.told.size {
            self.told.size = now;
            self.interrupt.config_changed(0, || self.tty.config());
        }
    }
}

/// Copies what the driver wrote to the output; returns how many bytes were lost.
fn write_out(chain: &Chain<'_>, output: &Output) -> usize {
    let mut piece = [0; 4096];
    let len = chain.readable_len();
    let mut lost = len.saturating_sub(CHAIN_MAX);
    output.lose(lost as u64);
    let mut at = 0;
    while at < len.min(CHAIN_MAX) {
        let now = piece.len().min(len - at);
        let Some(bytes) = piece.get_mut(..now) else { break };
        if chain.copy_to(at, bytes).is_err() {
            break;
        }
        lost += output.append(bytes);
        at += now;
    }
    lost
}

impl MutEventSubscriber for Serve {
    fn init(&mut self, ops: &mut EventOps) {
        let bells = self.rx.iter().chain(&self.tx).map(Queue::doorbell);
        for fd in bells.chain([&self.tty.wake]) {
            if let Err(e) = ops.add(Events::new(fd, EventSet::IN)) {
                self.interrupt.needs_reset(&e);
            }
        }
    }

    fn process(&mut self, events: Events, _ops: &mut EventOps) {
        let is = |queue: &Option<Queue>| {
            queue.as_ref().is_some_and(|q| q.doorbell().as_raw_fd() == events.fd())
        };
        if is(&self.tx) {
            self.transmit();
        } else if is(&self.rx) {
            self.receive();
        } else {
            // Fails when nobody rang.
            let _ = self.tty.wake.read();
            self.tell_size();
            self.receive();
        }
    }
}

#[cfg(test)]
mod tests;
