//! Another size of what is behind a device, while a driver has it.
//!
//! A host may hang over that as over any request, and nobody who needs the device's registers, or
//! stops it, may wait for that. So the host is asked by a thread that has nothing else to do, without
//! the core's lock: the device stands still meanwhile and goes on when the host has answered, whether
//! or not somebody still waits for the new size.

use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use super::core::Core;
use super::device::{SizeError, SizeWork};
use crate::panics::caught;

/// Resizes what is behind the device called `name`, see [`super::mmio::MmioTransport::resize`].
///
/// # Errors
/// Why it keeps its size, or that the host has not answered yet.
pub(super) fn resize(
    name: &str,
    core: &Arc<Mutex<Core>>,
    size: Option<u64>,
) -> Result<u64, SizeError> {
    let SizeWork { run, patience } = lock(core).begin_resize(size)?;
    let (tell, told) = channel();
    let (owner, device) = (Arc::downgrade(core), name.to_owned());
    let worker = move || {
        if let Err(why) = caught("a change of size", run) {
            log::error!("{device}: {why}");
        }
        // The device may be gone by now.
        let Some(core) = owner.upgrade() else { return };
        let resized = lock(&core).end_resize();
        match tell.send(resized).map_err(|unheard| unheard.0) {
            Ok(()) => {}
            Err(Ok(size)) => log::info!("{device}: the host has answered: {size} bytes"),
            Err(Err(why)) => log::warn!("{device}: the host has answered: {why}"),
        }
    };
    if let Err(e) = thread::Builder::new().name(format!("husk-{name}-size")).spawn(worker) {
        // The work is gone with the thread, and the device knows that it came to nothing.
        return lock(core).end_resize().and(Err(SizeError::Refused(e.into())));
    }
    // Without a word: the VM has ended.
    told.recv_timeout(patience).unwrap_or(Err(SizeError::Late))
}

/// A panic elsewhere leaves the core as consistent as a guest can make it.
pub(super) fn lock(core: &Mutex<Core>) -> MutexGuard<'_, Core> {
    core.lock().unwrap_or_else(PoisonError::into_inner)
}
