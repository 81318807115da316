//! The status, feature and queue state machine of virtio 1.x, once for all transports.
//!
//! [`Core`] owns the device and drives it (virtio 1.3 §2.1, §2.2, §3.1): a transport translates
//! its registers to the few operations here and does nothing else. `DRIVER_OK` starts the device
//! with checked queues; status 0, a pause and a restore are all *stop*, and start again or not.
//! The status words themselves are in [`Interrupt`], so that they are read without a lock.

use std::io;

use serde::{Deserialize, Serialize};
use virtio_bindings::bindings::virtio_config::{
    VIRTIO_CONFIG_S_ACKNOWLEDGE as ACKNOWLEDGE, VIRTIO_CONFIG_S_DRIVER as DRIVER,
    VIRTIO_CONFIG_S_DRIVER_OK as DRIVER_OK, VIRTIO_CONFIG_S_FAILED as FAILED,
    VIRTIO_CONFIG_S_FEATURES_OK as FEATURES_OK, VIRTIO_CONFIG_S_NEEDS_RESET as NEEDS_RESET,
    VIRTIO_F_VERSION_1,
};
use virtio_bindings::bindings::virtio_ring::{
    VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC,
};
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::device::{Activation, SizeError, SizeWork, VirtioDevice};
use super::interrupt::Interrupt;
use super::queue::{Queue, QueueState};

/// What the core adds to every device's features.
const RING_FEATURES: u64 =
    1 << VIRTIO_F_VERSION_1 | 1 << VIRTIO_RING_F_EVENT_IDX | 1 << VIRTIO_RING_F_INDIRECT_DESC;

/// The three addresses of a queue, each written in two halves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Area {
    /// The descriptor table.
    Desc,
    /// The available ring ("driver area").
    Avail,
    /// The used ring ("device area").
    Used,
}

/// All that a snapshot keeps of a device's transport; plain data.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CoreState {
    /// The virtio device type, to notice a state of another device.
    pub device_type: u32,
    /// The device status.
    pub device_status: u32,
    /// Pending causes of interrupt.
    pub interrupt_status: u32,
    /// The config space's generation.
    pub config_generation: u32,
    /// Features the driver wrote (accepted once `FEATURES_OK` is in the status).
    pub driver_features: u64,
    /// Which half of the device's features is read.
    pub device_features_sel: u32,
    /// Which half of the driver's features is written.
    pub driver_features_sel: u32,
    /// The queue the queue registers are about.
    pub queue_sel: u32,
    /// Every queue of the device, enabled or not.
    pub queues: Vec<QueueState>,
    /// What the device keeps beyond its queues.
    #[serde(default)]
    pub device: serde_json::Value,
}

/// A saved state that does not belong to this device.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RestoreError {
    /// Another kind of device.
    #[error("{name}: the saved state is of a virtio device of type {saved}, this one is {own}")]
    Type {
        /// This device.
        name: String,
        /// Its type.
        own: u32,
        /// The state's.
        saved: u32,
    },
    /// The guest uses features this device does not offer.
    #[error("{name}: the guest uses features {missing:#x}, which this device does not offer")]
    Features {
        /// This device.
        name: String,
        /// The bits that are missing.
        missing: u64,
    },
    /// Another number of queues.
    #[error("{name}: the saved state has {saved} queues, this device {own}")]
    Queues {
        /// This device.
        name: String,
        /// Its number of queues.
        own: usize,
        /// The state's.
        saved: usize,
    },
    /// The device's own part does not fit.
    #[error("{name}: the saved state is of another device: {why}")]
    Device {
        /// This device.
        name: String,
        /// What does not fit.
        why: String,
    },
}

/// The state machine around one device.
pub struct Core {
    device: Box<dyn VirtioDevice>,
    memory: GuestMemoryMmap,
    interrupt: Interrupt,
    doorbells: Vec<EventFd>,
    offered: u64,
    driver_features: u64,
    device_features_sel: u32,
    driver_features_sel: u32,
    queue_sel: u32,
    queues: Vec<QueueState>,
    /// The device has its queues.
    running: bool,
    paused: bool,
    /// The host is busy with another size of what is behind the device.
    resizing: bool,
    /// The config space has changed while no driver was up, which may have read it before it set
    /// `DRIVER_OK`: it is notified then. Not part of a saved state.
    untold: bool,
}

impl Core {
    /// A device that nobody has driven yet.
    ///
    /// # Errors
    /// When the host has no event descriptor left.
    pub fn new(
        mut device: Box<dyn VirtioDevice>,
        memory: GuestMemoryMmap,
        interrupt: Interrupt,
    ) -> io::Result<Core> {
        device.connect(&interrupt);
        let sizes = device.queue_sizes();
        let doorbells = sizes
            .iter()
            .map(|_| EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC))
            .collect::<io::Result<_>>()?;
        let queues = fresh_queues(sizes);
        let offered = device.features() | RING_FEATURES;
        let core = Core {
            device,
            memory,
            interrupt,
            doorbells,
            offered,
            driver_features: 0,
            device_features_sel: 0,
            driver_features_sel: 0,
            queue_sel: 0,
            queues,
            running: false,
            paused: false,
            resizing: false,
            untold: false,
        };
        core.show_config();
        Ok(core)
    }

    /// One doorbell for each queue.
    pub fn doorbells(&self) -> &[EventFd] {
        &self.doorbells
    }

    /// The device type (virtio 1.3 §5).
    pub fn device_type(&self) -> u32 {
        self.device.device_type()
    }

    /// Chooses which 32 feature bits [`Core::device_features`] gives.
    pub fn select_device_features(&mut self, half: u32) {
        self.device_features_sel = half;
    }

    /// 32 of the features offered.
    pub fn device_features(&self) -> u32 {
        half(self.offered, self.device_features_sel)
    }

    /// Chooses which 32 feature bits [`Core::write_driver_features`] sets.
    pub fn select_driver_features(&mut self, half: u32) {
        self.driver_features_sel = half;
    }

    /// The driver accepts features; ignored once `FEATURES_OK` is set (virtio 1.3 §3.1.1).
    pub fn write_driver_features(&mut self, bits: u32) {
        if self.status() & FEATURES_OK == 0 {
            set_half(&mut self.driver_features, self.driver_features_sel, bits);
        }
    }

    /// Chooses the queue that the queue registers are about.
    pub fn select_queue(&mut self, queue: u32) {
        self.queue_sel = queue;
    }

    /// The largest size of the selected queue; 0 when there is none (virtio 1.3 §4.2.2.1).
    pub fn queue_max(&self) -> u16 {
        let index = usize::try_from(self.queue_sel).ok();
        index.and_then(|i| self.device.queue_sizes().get(i).copied()).unwrap_or(0)
    }

    /// Whether the selected queue is enabled.
    pub fn queue_ready(&self) -> bool {
        self.selected().is_some_and(|q| q.ready)
    }

    /// Sets the size of the selected queue, unless it is in use.
    pub fn set_queue_size(&mut self, size: u32) {
        if let Some(queue) = self.configurable() {
            // What does not fit is as wrong as 0, and is refused at DRIVER_OK.
            queue.size = u16::try_from(size).unwrap_or(0);
        }
    }

    /// Sets one half of an address of the selected queue, unless it is in use.
    pub fn set_queue_address(&mut self, area: Area, high: bool, value: u32) {
        if let Some(queue) = self.configurable() {
            let address = match area {
                Area::Desc => &mut queue.desc,
                Area::Avail => &mut queue.avail,
                Area::Used => &mut queue.used,
            };
            set_half(address, high.into(), value);
        }
    }

    /// Enables or disables the selected queue. Disabling works at any time (virtio 1.3 §4.2.2.2:
    /// the driver reads back 0 once the device has let go of the queue); enabling only before
    /// `DRIVER_OK`.
    pub fn set_queue_ready(&mut self, ready: bool) {
        if ready {
            if let Some(queue) = self.configurable() {
                queue.ready = true;
            }
        } else if self.queue_ready() {
            self.halt();
            let index = self.queue_sel as usize;
            if let Some(queue) = self.queues.get_mut(index) {
                queue.ready = false;
            }
            self.go();
        }
    }

    /// The driver writes the status (virtio 1.3 §2.1.1, §3.1.1): 0 resets, bits are only added.
    ///
    /// A reset is over when this returns, and the vCPU that asked for it waits so long: Linux does not
    /// read the status back (`vm_reset` of `virtio_mmio.c`) before it frees the rings. It is bounded all
    /// the same, because the device gives a worker up that hangs in the host, and sees to it that what
    /// is given up touches no ring any more.
    pub fn write_status(&mut self, value: u32) {
        if value == 0 {
            self.reset();
            return;
        }
        let has = |core: &Core, bits| core.status() & bits == bits;
        self.interrupt.add_status(value & (ACKNOWLEDGE | DRIVER | FAILED));
        if value & FEATURES_OK != 0
            && has(self, ACKNOWLEDGE | DRIVER)
            && self.driver_features & !self.offered == 0
            && self.driver_features & 1 << VIRTIO_F_VERSION_1 != 0
        {
            self.interrupt.add_status(FEATURES_OK);
        }
        if self.status() & FAILED != 0 {
            // The guest has given the device up.
            self.halt();
        } else if value & DRIVER_OK != 0 && has(self, FEATURES_OK) && !has(self, DRIVER_OK) {
            self.interrupt.add_status(DRIVER_OK);
            for queue in &mut self.queues {
                queue.set_features(self.driver_features);
            }
            self.go();
            if std::mem::take(&mut self.untold) {
                self.interrupt.signal_config();
            }
        }
    }

    /// Puts the device's config space as it is now where its driver reads it.
    fn show_config(&self) {
        self.interrupt.set_config(0, || self.device.config());
    }

    /// Writes the device's config space.
    pub fn write_config(&mut self, offset: u64, data: &[u8]) {
        self.device.write_config(offset, data);
        self.show_config();
    }

    /// As after power-on: the device stopped, everything the guest set forgotten. A pause lasts.
    pub fn reset(&mut self) {
        self.halt();
        self.device.reset();
        self.driver_features = 0;
        self.device_features_sel = 0;
        self.driver_features_sel = 0;
        self.queue_sel = 0;
        self.queues = fresh_queues(self.device.queue_sizes());
        for doorbell in &self.doorbells {
            // Nobody may have rung.
            let _ = doorbell.read();
        }
        self.show_config();
        self.untold = false;
        self.interrupt.reset();
    }

    /// What stops the device comes next, and other devices with it: see [`VirtioDevice::recall`].
    pub fn recall(&mut self) {
        if self.running {
            self.device.recall();
        }
    }

    /// Stops the device and keeps its queues' states. Idempotent.
    pub fn pause(&mut self) {
        self.halt();
        self.paused = true;
    }

    /// Goes on where [`Core::pause`] stopped. Idempotent.
    pub fn resume(&mut self) {
        self.paused = false;
        self.go();
    }

    /// Stops the device, between two requests, and gives the work that another size of what is behind
    /// it takes. [`Core::end_resize`] goes on when that is done.
    ///
    /// # Errors
    /// As [`VirtioDevice::resize`]; the device goes on all the same.
    pub fn begin_resize(&mut self, size: Option<u64>) -> Result<SizeWork, SizeError> {
        if self.resizing {
            return Err(SizeError::Busy);
        }
        self.halt();
        let work = match self.device.is_busy() {
            true => Err(SizeError::Busy),
            false => self.device.resize(size),
        };
        self.resizing = work.is_ok();
        self.go();
        work
    }

    /// Goes on after [`Core::begin_resize`], tells the driver of the new size, at once or when it is up, and
    /// gives it.
    ///
    /// # Errors
    /// As [`VirtioDevice::resized`]; the device goes on all the same.
    pub fn end_resize(&mut self) -> Result<u64, SizeError> {
        self.resizing = false;
        let resized = self.device.resized();
        self.show_config();
        match self.status() & DRIVER_OK {
            _ if resized.is_err() => {}
            0 => self.untold = true,
            _ => self.interrupt.signal_config(),
        }
        // After it: what the device answers from now on is answered by its new size.
        self.go();
        resized
    }

    /// Whether the host may still touch guest memory for a device that is stopped.
    pub fn is_busy(&mut self) -> bool {
        self.device.is_busy()
    }

    /// The state to put into a snapshot. Meaningful while paused.
    pub fn save(&self) -> CoreState {
        CoreState {
            device_type: self.device_type(),
            device_status: self.interrupt.device_status(),
            interrupt_status: self.interrupt.interrupt_status(),
            config_generation: self.interrupt.config_generation(),
            driver_features: self.driver_features,
            device_features_sel: self.device_features_sel,
            driver_features_sel: self.driver_features_sel,
            queue_sel: self.queue_sel,
            queues: self.queues.clone(),
            device: self.device.save(),
        }
    }

    /// Takes over a saved state and is paused then; [`Core::resume`] goes on.
    ///
    /// # Errors
    /// When the state is of a device that differs from this one; then nothing has changed, but that
    /// the device may be paused.
    pub fn restore(&mut self, state: &CoreState) -> Result<(), RestoreError> {
        let line = self.interrupt.clone();
        let name = || line.name().to_string();
        if state.device_type != self.device_type() {
            let (own, saved) = (self.device_type(), state.device_type);
            return Err(RestoreError::Type { name: name(), own, saved });
        }
        let missing = state.driver_features & !self.offered;
        if missing != 0 && state.device_status & FEATURES_OK != 0 {
            return Err(RestoreError::Features { name: name(), missing });
        }
        if state.queues.len() != self.queues.len() {
            let (own, saved) = (self.queues.len(), state.queues.len());
            return Err(RestoreError::Queues { name: name(), own, saved });
        }
        self.pause();
        self.device
            .restore(&state.device)
            .map_err(|why| RestoreError::Device { name: name(), why })?;
        self.show_config();
        self.driver_features = state.driver_features;
        self.device_features_sel = state.device_features_sel;
        self.driver_features_sel = state.driver_features_sel;
        self.queue_sel = state.queue_sel;
        self.queues.clone_from(&state.queues);
        let (device, pending) = (state.device_status, state.interrupt_status);
        self.interrupt.set(device, pending, state.config_generation);
        self.interrupt.raise_pending();
        Ok(())
    }

    fn status(&self) -> u32 {
        self.interrupt.device_status()
    }

    fn selected(&self) -> Option<&QueueState> {
        self.queues.get(usize::try_from(self.queue_sel).ok()?)
    }

    /// The selected queue, as long as the driver may change it.
    fn configurable(&mut self) -> Option<&mut QueueState> {
        if self.status() & DRIVER_OK != 0 {
            return None;
        }
        let index = usize::try_from(self.queue_sel).ok()?;
        self.queues.get_mut(index).filter(|q| !q.ready)
    }

    /// Gives the device its queues, if everything says that it should have them.
    fn go(&mut self) {
        let status = self.status();
        if self.running
            || self.paused
            || self.resizing
            || status & DRIVER_OK == 0
            || status & (FAILED | NEEDS_RESET) != 0
        {
            return;
        }
        match self.activation() {
            Ok(activation) => match self.device.start(activation) {
                Ok(()) => self.running = true,
                Err(e) => self.interrupt.needs_reset(&e),
            },
            Err(why) => self.interrupt.needs_reset(&why),
        }
    }

    fn activation(&self) -> Result<Activation, String> {
        let mut queues = Vec::with_capacity(self.queues.len());
        for (index, state) in self.queues.iter().enumerate() {
            let (Some(max), Some(doorbell)) =
                (self.device.queue_sizes().get(index), self.doorbells.get(index))
            else {
                return Err(format!("there is no queue {index}"));
            };
            if !state.ready {
                queues.push(None);
                continue;
            }
            state.validate(&self.memory, *max).map_err(|e| format!("queue {index}: {e}"))?;
            let doorbell = doorbell.try_clone().map_err(|e| format!("queue {index}: {e}"))?;
            let counters = self.interrupt.counters().clone();
            queues.push(Some(Queue::new(state.clone(), doorbell).counted_by(counters)));
        }
        Ok(Activation {
            features: self.driver_features,
            queues,
            memory: self.memory.clone(),
            interrupt: self.interrupt.clone(),
        })
    }

    /// Takes the queues back from a device that has them.
    fn halt(&mut self) {
        if !std::mem::take(&mut self.running) {
            return;
        }
        let states = self.device.stop();
        let ready = self.queues.iter_mut().filter(|q| q.ready);
        let expected = ready.count();
        if states.len() != expected {
            let what = format!(
                "{} of {expected} queues came back: what serves the others hangs in the host, or has ended",
                states.len()
            );
            self.interrupt.needs_reset(&what);
            return;
        }
        for (queue, state) in self.queues.iter_mut().filter(|q| q.ready).zip(states) {
            *queue = state;
        }
    }
}

impl Drop for Core {
    fn drop(&mut self) {
        self.halt();
    }
}

fn fresh_queues(sizes: &[u16]) -> Vec<QueueState> {
    sizes.iter().map(|&size| QueueState { size, ..QueueState::default() }).collect()
}

/// 32 bits of 64; beyond them there is nothing.
fn half(value: u64, which: u32) -> u32 {
    match which {
        0 => value as u32,
        1 => (value >> 32) as u32,
        _ => 0,
    }
}

fn set_half(value: &mut u64, which: u32, bits: u32) {
    match which {
        0 => *value = *value & !0xffff_ffff | u64::from(bits),
        1 => *value = *value & 0xffff_ffff | u64::from(bits) << 32,
        _ => {}
    }
}
