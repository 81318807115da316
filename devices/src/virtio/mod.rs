//! virtio 1.3: the device contract, the queues, the status machine, the MMIO transport, the devices.
//!
//! Arrows: `mmio` → `core` → `device` ← each device; `queue` is below them all, and
//! so are the words of `registers` that `interrupt` keeps.

#[cfg(test)]
mod adversary;
pub mod balloon;
pub mod blk;
pub mod console;
pub mod core;
pub mod device;
pub mod fs;
mod gather;
pub mod interrupt;
pub mod mmio;
pub mod net;
pub mod pmem;
pub mod queue;
pub mod registers;
mod resize;
pub mod rng;
mod seat;
#[cfg(any(test, feature = "testing"))]
#[allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tools of tests and fuzzers: they panic on what their user did wrong"
)]
pub mod testing;
pub mod vsock;
