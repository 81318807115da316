//! What a device has done so far, counted where it happens and read by whoever asks.
//!
//! Each device has one [`Counters`]; the virtio core and the queues keep it for every virtio device,
//! so a new one is counted without a line of its own. All counts are independent and relaxed: a
//! reader may see one of them a moment older than another.

use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};

/// The running counts of a device.
#[derive(Debug, Default)]
pub struct Counters {
    requests: AtomicU64,
    bytes_from_guest: AtomicU64,
    bytes_to_guest: AtomicU64,
    errors: AtomicU64,
    interrupts: AtomicU64,
    doorbells: AtomicU64,
    exits: AtomicU64,
}

/// A device's counts at one moment, since the VM was made; reboots do not clear them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Requests finished: descriptor chains given back to the driver, or accesses to registers.
    pub requests: u64,
    /// Bytes the guest handed over in them, the headers of requests included.
    pub bytes_from_guest: u64,
    /// Bytes the device filled in them, headers and status included.
    pub bytes_to_guest: u64,
    /// What went wrong: requests that failed, data that was lost, and each time the device broke.
    pub errors: u64,
    /// Interrupts raised.
    pub interrupts: u64,
    /// Doorbells the driver rang. Several at once may come as one to the device, and count each.
    pub doorbells: u64,
    /// Accesses to registers and to the config space, for each of which a vCPU left the guest.
    #[serde(default)]
    pub exits: u64,
}

impl Counters {
    /// Requests that were finished, and the bytes in them.
    pub fn add_requests(&self, requests: u64, from_guest: u64, to_guest: u64) {
        self.requests.fetch_add(requests, Ordering::Relaxed);
        self.bytes_from_guest.fetch_add(from_guest, Ordering::Relaxed);
        self.bytes_to_guest.fetch_add(to_guest, Ordering::Relaxed);
    }

    /// Something went wrong.
    pub fn add_error(&self) {
        self.errors.fetch_add(1, Ordering::Relaxed);
    }

    /// An interrupt was raised.
    pub fn add_interrupt(&self) {
        self.interrupts.fetch_add(1, Ordering::Relaxed);
    }

    /// The driver rang so often.
    pub fn add_doorbells(&self, count: u64) {
        self.doorbells.fetch_add(count, Ordering::Relaxed);
    }

    /// A vCPU left the guest for a register.
    pub fn add_exit(&self) {
        self.exits.fetch_add(1, Ordering::Relaxed);
    }

    /// The counts now.
    pub fn counts(&self) -> Counts {
        let now = |count: &AtomicU64| count.load(Ordering::Relaxed);
        Counts {
            requests: now(&self.requests),
            bytes_from_guest: now(&self.bytes_from_guest),
            bytes_to_guest: now(&self.bytes_to_guest),
            errors: now(&self.errors),
            interrupts: now(&self.interrupts),
            doorbells: now(&self.doorbells),
            exits: now(&self.exits),
        }
    }
}
