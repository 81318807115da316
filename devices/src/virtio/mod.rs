//! virtio 1.3: the device contract, the queues, the status machine, the MMIO transport, the devices.
//!
//! Arrows: `mmio` → `core` → `device` ← each device; `queue` is below them all.

#[cfg(test)]
mod adversary;
pub mod balloon;
pub mod blk;
pub mod console;
pub mod core;
pub mod device;
pub mod interrupt;
pub mod mmio;
pub mod net;
pub mod pmem;
pub mod queue;
pub mod rng;
#[cfg(test)]
mod testing;
pub mod vsock;
