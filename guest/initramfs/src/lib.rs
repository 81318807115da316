//! What an initramfs is made of: the archive that a kernel unpacks, and which of the kernel's modules go
//! into it in what order. husk makes those of its guests from it, and `cargo xtask` those of the tests
//! and of the testbed.
//!
//! Pure: bytes and text in, bytes and names out. Who uses it reads the files, each as carefully as it
//! trusts whoever has made them.

mod cpio;
mod modules;
#[cfg(test)]
#[path = "../../../tests/fixture/skipped.rs"]
mod skipped;

pub use cpio::Cpio;
pub use modules::{ModuleIndex, Outside, module_name};
