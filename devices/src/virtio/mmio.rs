//! virtio over MMIO, version 2 (virtio 1.3 §4.2).
//!
//! ```text
//! 000 MagicValue     010 DeviceFeatures     020 DriverFeatures     030 QueueSel
//! 004 Version        014 DeviceFeaturesSel  024 DriverFeaturesSel  034 QueueSizeMax
//! 008 DeviceID       044 QueueReady         050 QueueNotify        038 QueueSize
//! 00c VendorID       060 InterruptStatus    064 InterruptACK       070 Status
//! 080 QueueDesc      090 QueueDriver        0a0 QueueDevice        (low, high)
//! 0ac SHMSel         0b0 SHMLen             0b8 SHMBase            0c0 QueueReset
//! 0fc ConfigGeneration                      100 the device's config space
//! ```
//!
//! [`MmioTransport`] translates writes to the operations of [`Core`], and keeps what is read of it in
//! [`Registers`]. What a guest does while it runs — ring, read and acknowledge interrupts — takes no
//! lock; and where the guest has the registers' page, and the doorbells and acknowledgements
//! ([`ACK_USED`]: used buffers alone, which is nearly every one) are taken by the host's kernel, it is
//! not left for it either. Why nobody need hear of an acknowledgement stands in [`super::interrupt`].

use std::io;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard};

use virtio_bindings::bindings::virtio_mmio as reg;
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::eventfd::EventFd;

use super::core::{Area, Core, CoreState, RestoreError};
use super::device::{SizeError, VirtioDevice};
use super::interrupt::Interrupt;
use super::registers::{REGISTERS_LEN, Registers};
use super::resize;
use crate::bus::BusDevice;
use crate::counters::Counters;

/// Bytes of address space a transport takes.
pub const MMIO_WINDOW: u64 = REGISTERS_LEN;

/// Where in the window a driver rings a doorbell: a 32-bit write of the queue's index.
pub const QUEUE_NOTIFY: u64 = reg::VIRTIO_MMIO_QUEUE_NOTIFY as u64;

/// Where in the window a driver acknowledges interrupts: a 32-bit write of their causes.
pub const INTERRUPT_ACK: u64 = reg::VIRTIO_MMIO_INTERRUPT_ACK as u64;

/// What it writes there for used buffers alone, of which nobody need hear.
pub const ACK_USED: u32 = reg::VIRTIO_MMIO_INT_VRING;

/// "virt", little-endian.
const MAGIC: u32 = 0x7472_6976;
const VERSION: u32 = 2;
/// "husk", little-endian. Linux shows it and nobody compares it.
const VENDOR: u32 = 0x6b73_7568;
const CONFIG: u64 = reg::VIRTIO_MMIO_CONFIG as u64;

/// The register file in front of a virtio device.
pub struct MmioTransport {
    interrupt: Interrupt,
    doorbells: Vec<EventFd>,
    device_type: u32,
    core: Arc<Mutex<Core>>,
}

impl MmioTransport {
    /// Puts `registers` in front of `device`, which the user knows as `name`.
    ///
    /// # Errors
    /// When the host has no event descriptor left.
    pub fn new(
        name: &str,
        device: Box<dyn VirtioDevice>,
        memory: GuestMemoryMmap,
        registers: Registers,
    ) -> io::Result<MmioTransport> {
        let interrupt = Interrupt::new(name, registers)?;
        let core = Core::new(device, memory, interrupt.clone())?;
        let doorbells =
            core.doorbells().iter().map(EventFd::try_clone).collect::<io::Result<_>>()?;
        let device_type = core.device_type();
        let core = Arc::new(Mutex::new(core));
        let transport = MmioTransport { interrupt, doorbells, device_type, core };
        transport.fill();
        Ok(transport)
    }

    /// What never changes, and the rest as it is after power-on.
    fn fill(&self) {
        // No shared memory regions: all ones (virtio 1.3 §4.2.2.1).
        let no_region = (reg::VIRTIO_MMIO_SHM_LEN_LOW..=reg::VIRTIO_MMIO_SHM_BASE_HIGH).step_by(4);
        let constant = [
            (reg::VIRTIO_MMIO_MAGIC_VALUE, MAGIC),
            (reg::VIRTIO_MMIO_VERSION, VERSION),
            (reg::VIRTIO_MMIO_DEVICE_ID, self.device_type),
            (reg::VIRTIO_MMIO_VENDOR_ID, VENDOR),
        ];
        for (register, value) in constant.into_iter().chain(no_region.map(|at| (at, u32::MAX))) {
            self.put(register, value);
        }
        self.show(&self.core());
    }

    /// What `core` has to show of itself: the registers that follow what the driver selects. The others that
    /// change are in their registers anyway.
    fn show(&self, core: &Core) {
        self.put(reg::VIRTIO_MMIO_DEVICE_FEATURES, core.device_features());
        self.put(reg::VIRTIO_MMIO_QUEUE_NUM_MAX, core.queue_max().into());
        self.put(reg::VIRTIO_MMIO_QUEUE_READY, core.queue_ready().into());
    }

    fn put(&self, register: u32, value: u32) {
        self.interrupt.registers().word(register).store(value, Ordering::Release);
    }

    /// Does what changes the core, and shows what came of it.
    fn change<T>(&self, how: impl FnOnce(&mut Core) -> T) -> T {
        let mut core = self.core();
        let done = how(&mut core);
        self.show(&core);
        done
    }

    /// What the user calls the device.
    pub fn name(&self) -> &str {
        self.interrupt.name()
    }

    /// The device type (virtio 1.3 §5).
    pub fn device_type(&self) -> u32 {
        self.device_type
    }

    /// What the device has done so far.
    pub fn counters(&self) -> &Arc<Counters> {
        self.interrupt.counters()
    }

    /// Written once for each (edge-triggered) interrupt.
    pub fn irq_fd(&self) -> &EventFd {
        self.interrupt.event()
    }

    /// One for each queue, to be written when the driver writes the queue's index, 32 bits wide,
    /// at [`QUEUE_NOTIFY`].
    pub fn doorbells(&self) -> &[EventFd] {
        &self.doorbells
    }

    /// Before several devices are paused or reset: what takes its time is asked for, so that all are
    /// waited for together.
    pub fn recall(&self) {
        self.core().recall();
    }

    /// Stops the device, with every request finished or put back. Idempotent.
    pub fn pause(&self) {
        self.core().pause();
    }

    /// Goes on after a pause. Idempotent.
    pub fn resume(&self) {
        self.core().resume();
    }

    /// Resizes what is behind the device, between two requests, and tells the driver: for disks. While
    /// the host is busy with that the registers answer, and the device stands still.
    ///
    /// # Errors
    /// Why it keeps its size, or that the host has not answered yet.
    pub fn resize(&self, size: Option<u64>) -> Result<u64, SizeError> {
        resize::resize(self.name(), &self.core, size)
    }

    /// As if the driver had written status 0: for a reboot in place.
    pub fn reset(&self) {
        self.change(Core::reset);
    }

    /// Whether the host may still touch guest memory for a device that is stopped.
    pub fn is_busy(&self) -> bool {
        self.core().is_busy()
    }

    /// The state for a snapshot; the transport is paused.
    pub fn save(&self) -> CoreState {
        self.core().save()
    }

    /// Takes over a saved state; [`MmioTransport::resume`] goes on.
    ///
    /// # Errors
    /// When the state is of another kind of device; nothing has changed then.
    pub fn restore(&self, state: &CoreState) -> Result<(), RestoreError> {
        self.change(|core| core.restore(state))
    }

    fn core(&self) -> MutexGuard<'_, Core> {
        resize::lock(&self.core)
    }

    fn write_register(&self, offset: u32, value: u32) {
        match offset {
            reg::VIRTIO_MMIO_QUEUE_NOTIFY => {
                if let Some(doorbell) = self.doorbells.get(value as usize) {
                    // Fails only when it rings already.
                    let _ = doorbell.write(1);
                }
            }
            reg::VIRTIO_MMIO_INTERRUPT_ACK => self.interrupt.acknowledge(value),
            _ => self.change(|core| write_core(core, offset, value)),
        }
    }
}

/// The registers that are the core's.
fn write_core(core: &mut Core, offset: u32, value: u32) {
    let mut address = |area, high| core.set_queue_address(area, high, value);
    match offset {
        reg::VIRTIO_MMIO_QUEUE_DESC_LOW => address(Area::Desc, false),
        reg::VIRTIO_MMIO_QUEUE_DESC_HIGH => address(Area::Desc, true),
        reg::VIRTIO_MMIO_QUEUE_AVAIL_LOW => address(Area::Avail, false),
        reg::VIRTIO_MMIO_QUEUE_AVAIL_HIGH => address(Area::Avail, true),
        reg::VIRTIO_MMIO_QUEUE_USED_LOW => address(Area::Used, false),
        reg::VIRTIO_MMIO_QUEUE_USED_HIGH => address(Area::Used, true),
        reg::VIRTIO_MMIO_DEVICE_FEATURES_SEL => core.select_device_features(value),
        reg::VIRTIO_MMIO_DRIVER_FEATURES_SEL => core.select_driver_features(value),
        reg::VIRTIO_MMIO_DRIVER_FEATURES => core.write_driver_features(value),
        reg::VIRTIO_MMIO_QUEUE_SEL => core.select_queue(value),
        reg::VIRTIO_MMIO_QUEUE_NUM => core.set_queue_size(value),
        reg::VIRTIO_MMIO_QUEUE_READY => core.set_queue_ready(value & 1 != 0),
        reg::VIRTIO_MMIO_STATUS => core.write_status(value),
        _ => {}
    }
}

impl BusDevice for MmioTransport {
    fn read(&self, offset: u64, data: &mut [u8]) {
        self.counters().add_exit();
        self.interrupt.registers().read(offset, data);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        self.counters().add_exit();
        if let Some(offset) = offset.checked_sub(CONFIG) {
            self.change(|core| core.write_config(offset, data));
        } else if let (Ok(offset), Ok(value)) = (u32::try_from(offset), data.try_into()) {
            self.write_register(offset, u32::from_le_bytes(value));
        }
    }
}

#[cfg(test)]
mod tests;
