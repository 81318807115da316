//! The virtio devices of a machine as they are opened, one after the other in the order in which the guest
//! finds them, and the workers in which they run. It knows nothing of what a device is.

use husk_devices::virtio::device::VirtioDevice;
use husk_devices::worker::{OnBroken, Worker, WorkerError, WorkerHandle};

/// What is open so far.
pub(super) struct Opening {
    /// Each with its id. Before the workers, in which they run.
    pub devices: Vec<(String, Box<dyn VirtioDevice>)>,
    /// The VM's worker.
    pub worker: Worker,
    /// Those of the devices that block.
    pub own: Vec<Worker>,
    /// Hears of a worker that breaks.
    pub on_broken: OnBroken,
}

impl Opening {
    /// Nothing yet.
    ///
    /// # Errors
    /// When there can be no worker.
    pub fn new(on_broken: OnBroken) -> Result<Self, WorkerError> {
        let worker = watched("husk-worker".to_owned(), &on_broken)?;
        Ok(Self { devices: Vec::new(), worker, own: Vec::new(), on_broken })
    }

    /// Adds a device.
    pub fn add(&mut self, id: &str, device: impl VirtioDevice + 'static) {
        self.devices.push((id.to_owned(), Box::new(device)));
    }

    /// A worker called `name` for one device.
    ///
    /// # Errors
    /// When there can be none.
    pub fn own_worker(&mut self, name: String) -> Result<WorkerHandle, WorkerError> {
        let worker = watched(name, &self.on_broken)?;
        let handle = worker.handle();
        self.own.push(worker);
        Ok(handle)
    }
}

/// A worker called `name`, of whose unexpected end `on_broken` is told.
fn watched(name: String, on_broken: &OnBroken) -> Result<Worker, WorkerError> {
    let on_broken = on_broken.clone();
    Worker::spawn_watched(name, move |why| on_broken(why))
}
