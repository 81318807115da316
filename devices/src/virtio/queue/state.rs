//! What is kept of a queue when nobody serves it, and why one cannot be served any more.

use serde::{Deserialize, Serialize};
use virtio_bindings::bindings::virtio_ring::{
    VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC,
};
use vm_memory::GuestMemoryMmap;

use super::MAX_SEGMENTS;
use super::ring::Rings;

/// Where a queue lies in guest memory and how far it has come; all that a snapshot keeps of it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueState {
    /// Entries; a power of two, at most [`QueueState::MAX_SIZE`].
    pub size: u16,
    /// The driver has enabled the queue.
    pub ready: bool,
    /// Guest address of the descriptor table (16-byte aligned).
    pub desc: u64,
    /// Guest address of the available ring (2-byte aligned).
    pub avail: u64,
    /// Guest address of the used ring (4-byte aligned).
    pub used: u64,
    /// Free-running position of the next chain to take.
    pub next_avail: u16,
    /// Free-running position of the next used element.
    pub next_used: u16,
    /// `VIRTIO_F_EVENT_IDX` was accepted.
    pub event_idx: bool,
    /// `VIRTIO_F_INDIRECT_DESC` was accepted.
    pub indirect: bool,
    /// Heads of the chains that were taken and not answered yet. Whoever goes on from this state
    /// serves them first, unless it is the device that still has them in hand.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pending: Vec<u16>,
}

impl QueueState {
    /// The largest queue there is (virtio 1.3 §2.7).
    pub const MAX_SIZE: u16 = 32768;

    /// Takes over what the accepted `features` say about rings.
    pub fn set_features(&mut self, features: u64) {
        self.event_idx = features & 1 << VIRTIO_RING_F_EVENT_IDX != 0;
        self.indirect = features & 1 << VIRTIO_RING_F_INDIRECT_DESC != 0;
    }

    /// Whether the areas are aligned and lie in the RAM of `memory`, and the size is at most `max`.
    ///
    /// # Errors
    /// What the driver did wrong.
    pub fn validate(&self, memory: &GuestMemoryMmap, max: u16) -> Result<(), Malformed> {
        if self.size > max {
            return Err(Malformed::Size(self.size));
        }
        if self.pending.len() > self.size.into() {
            return Err(Malformed::TooManyPending);
        }
        Rings::resolve(memory, self).map(drop)
    }
}

/// Why a ring cannot be used any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// Not a power of two, or too large.
    #[error("queue size {0}")]
    Size(u16),
    /// An area is not aligned as virtio 1.3 §2.7 demands.
    #[error("the {what} at {address:#x} is not aligned to {align} bytes")]
    Misaligned {
        /// Which area.
        what: &'static str,
        /// Guest address.
        address: u64,
        /// Bytes.
        align: u64,
    },
    /// An area is not in (one region of) guest memory.
    #[error("the {what} at {address:#x}+{len:#x} is outside memory")]
    AreaOutside {
        /// Which area.
        what: &'static str,
        /// Guest address.
        address: u64,
        /// Bytes.
        len: usize,
    },
    /// An area, or a table of descriptors, is in a file: its pages may be lost, and are touched by system
    /// calls alone.
    #[error("the {what} at {address:#x} is in persistent memory, and must be in RAM")]
    InFile {
        /// What it is.
        what: &'static str,
        /// Guest address.
        address: u64,
    },
    /// More chains were made available than the ring holds.
    #[error("the available index jumped from {from} to {to}")]
    AvailJump {
        /// Our position.
        from: u16,
        /// The driver's.
        to: u16,
    },
    /// A descriptor that does not exist.
    #[error("descriptor {index} of {entries}")]
    DescriptorIndex {
        /// Its index.
        index: u16,
        /// The table's size.
        entries: u16,
    },
    /// A chain comes back to itself.
    #[error("a chain of descriptors loops")]
    Loop,
    /// More than [`MAX_SEGMENTS`].
    #[error("a chain has more than {MAX_SEGMENTS} segments")]
    TooManySegments,
    /// A chain of more than `u32::MAX` bytes.
    #[error("a chain has more than 4 GiB")]
    TooManyBytes,
    /// An indirect table within another, beside `NEXT`, or not negotiated.
    #[error("an indirect descriptor where none may be")]
    Indirect,
    /// An indirect table that is empty, has half an entry, or too many.
    #[error("an indirect table of {0} bytes")]
    IndirectLen(u32),
    /// Writable descriptors come last (virtio 1.3 §2.7.4.2).
    #[error("a readable descriptor follows a writable one")]
    ReadableAfterWritable,
    /// A buffer outside guest memory.
    #[error("a buffer at {address:#x}+{len:#x} is outside memory")]
    Outside {
        /// Guest address.
        address: u64,
        /// Bytes.
        len: u32,
    },
    /// More chains than there are descriptors.
    #[error("more requests in flight than the queue has descriptors")]
    TooManyPending,
    /// A chain the device cannot answer.
    #[error("{0}")]
    Device(&'static str),
    /// An access to a checked area failed all the same.
    #[error("guest memory could not be accessed")]
    Host,
}
