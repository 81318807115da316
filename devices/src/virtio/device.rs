//! The contract between the virtio core and a device.
//!
//! A device has an identity, feature bits, queue sizes, a config space, and two verbs:
//! [`VirtioDevice::start`] and [`VirtioDevice::stop`]. Reset, pause, snapshot and unplug are all
//! *stop*, followed by another start or not. A device sees neither registers nor ring layouts.

use std::error::Error;
use std::io;
use std::time::Duration;

use serde_json::Value;
use vm_memory::GuestMemoryMmap;

use super::interrupt::Interrupt;
use super::queue::{Queue, QueueState};

/// A virtio device, driven by the core.
///
/// The core calls every method from one thread at a time and never from the device's worker.
pub trait VirtioDevice: Send {
    /// The device type (virtio 1.3 §5, "Device Types"): 1 network, 2 block, 4 entropy…
    fn device_type(&self) -> u32;

    /// The device's own feature bits. The core adds `VIRTIO_F_VERSION_1`,
    /// `VIRTIO_F_INDIRECT_DESC` and `VIRTIO_F_EVENT_IDX`. Constant for the life of the device.
    fn features(&self) -> u64;

    /// Hands over the device's interrupt line, once, before anything else: for devices whose config space
    /// changes without their driver's doing, also when they are not started. They put it there for the
    /// driver to find ([`Interrupt::set_config`]) or tell it as well ([`Interrupt::config_changed`]).
    fn connect(&mut self, _interrupt: &Interrupt) {}

    /// The largest size of each queue, in descriptors, each a power of two. Its length is the
    /// number of queues. Constant for the life of the device.
    fn queue_sizes(&self) -> &[u16];

    /// The device-specific config space as it is now, always of one length; past its end the driver
    /// reads zeroes. Called when the driver has written to it, and when the device was reset, restored or
    /// resized; of what changes it otherwise, the device tells by itself, see [`VirtioDevice::connect`].
    fn config(&self) -> Vec<u8> {
        Vec::new()
    }

    /// Writes the device-specific config space. Most devices have nothing writable and ignore it.
    fn write_config(&mut self, _offset: u64, _data: &[u8]) {}

    /// Takes the queues and begins to serve them; called when the driver sets `DRIVER_OK` and after
    /// a pause. Work that was queued before (a doorbell rung while stopped) is found without
    /// another doorbell. Never called twice without `stop` between.
    ///
    /// # Errors
    /// [`StartError`]: the device needs a reset then, and serves nothing.
    fn start(&mut self, activation: Activation) -> Result<(), StartError>;

    /// The device is stopped next, and others with it: what takes its time is asked for here and not
    /// waited for, so that all are waited for together. Only called when it is started.
    fn recall(&mut self) {}

    /// Gives the queues back, every request that was taken from them finished or put back, or named
    /// in [`QueueState::pending`], in the order they were handed over. It does not wait for ever for
    /// a host that does not answer: the queues of a worker that hangs there are given up and lack in
    /// what is given back. After it returns the device raises no interrupt, and touches no guest memory
    /// but the buffers of what is pending, unless [`VirtioDevice::is_busy`] says so. Idempotent: a
    /// device that is not started gives back an empty vector.
    fn stop(&mut self) -> Vec<QueueState>;

    /// What a snapshot keeps of the device beyond its queues, as plain data: nothing of descriptors
    /// and threads. Called while the device is stopped; devices without such state keep this.
    fn save(&self) -> Value {
        Value::Null
    }

    /// Takes over what [`VirtioDevice::save`] of a device made alike gave: the driver that is started
    /// next goes on with what it has from there. Called while the device is stopped, also for devices
    /// that give nothing.
    ///
    /// # Errors
    /// In words, what of the state does not belong to this device; then nothing has changed.
    fn restore(&mut self, state: &Value) -> Result<(), String> {
        stateless(state)
    }

    /// The driver has reset the device, which is stopped: whatever was between the two is forgotten,
    /// as after power-on. For devices that keep something beside their queues over a stop.
    fn reset(&mut self) {}

    /// The work that makes the backend `size` bytes large or, with `None`, measures it. Called while the device is stopped, as it stays until [`VirtioDevice::resized`].
    ///
    /// # Errors
    /// Why it keeps its size.
    fn resize(&mut self, _size: Option<u64>) -> Result<SizeWork, SizeError> {
        Err(SizeError::NoSize)
    }

    /// The work of [`VirtioDevice::resize`] has been done, or has come to nothing. Gives the size, of
    /// which the config space tells from now on.
    ///
    /// # Errors
    /// Why it keeps its size.
    fn resized(&mut self) -> Result<u64, SizeError> {
        Err(SizeError::NoSize)
    }

    /// Whether the host still works on requests that were taken before the last stop, or on what a
    /// worker asked of it that hangs there, so that guest memory may be touched. A start without these
    /// requests fails then.
    fn is_busy(&mut self) -> bool {
        false
    }
}

/// What a device is given when it starts.
pub struct Activation {
    /// The features the driver accepted, a subset of those offered.
    pub features: u64,
    /// One entry per queue of the device; `None` for a queue the driver left disabled.
    pub queues: Vec<Option<Queue>>,
    /// All guest memory.
    pub memory: GuestMemoryMmap,
    /// The device's interrupt line and status.
    pub interrupt: Interrupt,
}

/// A device could not begin; the core answers with `DEVICE_NEEDS_RESET` and logs it.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The host refused something the device needs.
    #[error("{what}: {source}")]
    Host {
        /// What was tried.
        what: &'static str,
        /// The host's answer.
        r#source: io::Error,
    },
    /// Requests from before a reset are still at the host, which may touch guest memory for them.
    #[error("the host has not answered requests from before the reset")]
    Busy,
    /// What served its queues before has not come back from the host.
    #[error("its worker has hung in the host since the device was stopped")]
    Hangs,
    /// The device says what.
    #[error("{0}")]
    Device(String),
    /// The worker has ended.
    #[error(transparent)]
    Worker(#[from] crate::worker::WorkerError),
}

/// What is to be done at the host for another size: by a thread that may wait there.
pub struct SizeWork {
    /// Does it; the device knows what came of it.
    pub run: Box<dyn FnOnce() + Send>,
    /// How long whoever asked for the size waits for it.
    pub patience: Duration,
}

/// What is behind a device keeps its size.
#[derive(Debug, thiserror::Error)]
pub enum SizeError {
    /// No disk.
    #[error("it is no disk, and has no size to change")]
    NoSize,
    /// Requests of the device's are at the host, or another change of its size.
    #[error("the host has not answered all requests; try again when it has")]
    Busy,
    /// The host hangs over it. The device stands still until it has answered, and has the size then.
    #[error(
        "the host has not answered; until it has the device stands still, and then it has the new size"
    )]
    Late,
    /// The device says why.
    #[error(transparent)]
    Refused(Box<dyn Error + Send + Sync>),
}

/// Accepts the state of a device that gives none.
///
/// # Errors
/// When it is some.
pub(super) fn stateless(state: &Value) -> Result<(), String> {
    if state.is_null() { Ok(()) } else { Err("it has a state, and this device none".to_owned()) }
}
