//! The devices a husk guest sees, and the backends that do their work on the host.
//!
//! This crate knows buses, legacy devices, virtio and host files; it knows nothing of KVM, so all of
//! it is built and tested on a machine without `/dev/kvm`. The machine floor (`husk`) places the
//! devices on its buses and connects their event descriptors to KVM.

mod backing;
pub mod block;
pub mod bus;
mod complaints;
pub mod counters;
pub mod fs;
mod iovec;
pub mod lock;
pub mod panics;
pub mod platform;
pub mod rate;
mod segment;
pub mod serial;
#[cfg(test)]
#[path = "../../tests/fixture/skipped.rs"]
mod skipped;
mod unix_socket;
pub mod virtio;
pub mod worker;
