//! Getting a kernel, its initrd and its parameters into guest memory.
//!
//! The caller opens a [`Kernel`] (an ELF `vmlinux` or a `bzImage`), loads it into a
//! [`GuestMemoryMmap`](vm_memory::GuestMemoryMmap), places an [`Initrd`] above it, and writes the
//! [`params`] of the protocol the kernel is entered by. Everything here works on files, bytes and
//! guest memory; it knows no KVM, no vCPU register and no device, and nothing it reads from a file
//! is believed before it is checked.
//!
//! ```text
//!   bzImage ── bzimage (header) ── unpack ──┐
//!                                           ├── elf ── load ── guest memory
//!   vmlinux ────────────────────────────────┘    │
//!                              cache ◄── relayout┘  (so the next start unpacks nothing)
//! ```

mod brought;
mod builtin;
pub mod bzimage;
pub mod cache;
pub(crate) mod carried;
pub mod cmdline;
pub mod drivers;
pub mod elf;
mod error;
mod host;
mod image;
pub mod initrd;
pub mod kernel;
pub mod load;
pub mod params;
mod rare;
mod recognise;
mod relayout;
pub mod unpack;

#[cfg(test)]
pub mod synth;

pub use cache::Cache;
pub use cmdline::{Cmdline, CmdlineError};
pub use error::KernelError;
pub use initrd::{Initrd, InitrdError};
pub use kernel::{Kernel, Load, LoadOptions, Loaded};
pub use load::LoadMethod;

/// The size of a page of guest memory, in bytes.
const PAGE: u64 = 4096;

/// `value` rounded up to a multiple of `align` (a power of two), unless that overflows.
fn align_up(value: u64, align: u64) -> Option<u64> {
    Some(value.checked_add(align.checked_sub(1)?)? & !(align - 1))
}

/// `value` rounded down to a multiple of `align` (a power of two).
fn align_down(value: u64, align: u64) -> u64 {
    value & !(align.wrapping_sub(1))
}

/// The bytes at `offset` of `bytes`, if they are there.
fn bytes_at<const N: usize>(bytes: &[u8], offset: usize) -> Option<[u8; N]> {
    bytes.get(offset..offset.checked_add(N)?)?.try_into().ok()
}

/// The little-endian `u16` at `offset` of `bytes`, if it is there.
fn u16_at(bytes: &[u8], offset: usize) -> Option<u16> {
    bytes_at(bytes, offset).map(u16::from_le_bytes)
}

/// The little-endian `u32` at `offset` of `bytes`, if it is there.
fn u32_at(bytes: &[u8], offset: usize) -> Option<u32> {
    bytes_at(bytes, offset).map(u32::from_le_bytes)
}

/// The little-endian `u64` at `offset` of `bytes`, if it is there.
fn u64_at(bytes: &[u8], offset: usize) -> Option<u64> {
    bytes_at(bytes, offset).map(u64::from_le_bytes)
}
