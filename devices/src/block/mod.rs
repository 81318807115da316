//! Disks on the host: files and block devices, and the engines that work on them.
//!
//! Knows nothing of virtio. A [`Disk`] is opened and locked once, and may have an overlay that takes
//! what is written. What is wanted of it is a [`Job`]:
//! a small state machine that says which system call comes next and takes its answer, so that every
//! [`Engine`] means the same by a read, a short read, a cut file or a range of zeroes. An engine
//! only carries steps to the kernel and back: [`threads`] by system calls in a few threads,
//! [`uring`] by io_uring, neither of which makes who submits wait for the host, as far as that is in our
//! hands; and [`at_once`], for files that need no waiting.

#![allow(clippy::vec_box, reason = "a job stays where it is while the kernel reads its list")]

mod at_once;
mod call;
mod choice;
mod disk;
mod engine;
mod error;
mod format;
mod job;
mod open;
mod overlay;
#[cfg(feature = "qcow2")]
mod qcow2;
#[cfg(not(feature = "qcow2"))]
#[path = "no_qcow2.rs"]
mod qcow2;
mod resize;
mod temporary;
mod threads;
mod types;
mod uring;

#[cfg(test)]
pub(crate) mod hanging;
#[cfg(test)]
mod tests;

pub use choice::{EngineChoice, EngineError};
pub use disk::Disk;
pub use engine::{Engine, Keep};
pub use error::DiskError;
pub use job::{Job, Operation};
pub(crate) use open::{lock_image, remedy};
pub use resize::ResizeError;
pub use temporary::Scratch;
pub use types::{Cache, DiskFormat, DiskOptions, SECTOR};
