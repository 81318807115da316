//! Guests of a few hundred bytes of machine code on the host's real /dev/kvm.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "test code: a failure is a panic"
)]

mod devices;
#[path = "../fixture/mod.rs"]
mod fixture;
mod hold;
mod interrupts;
mod life;
mod mmio;
mod ports;
mod reboot;
mod told;
mod virtio;
