//! The console device (virtio 1.3 §5.3), in its two forms.
//!
//! [`tty`] is a console, `/dev/hvc0`: one port, its window's size in the config space. [`ports`] is a
//! device of named byte ports, `/dev/virtio-ports/NAME`. They are two devices and not one, because
//! Linux and the specification disagree about the order of columns and rows in the message that tells
//! a window's size on a device with several ports, and newer kernels disagree with older ones; about
//! the config space all agree.

mod control;
pub mod endpoint;
pub mod ports;
pub mod tty;

/// Device type 3, virtio 1.3 §5.
const DEVICE_TYPE: u32 = 3;
/// The window's size is in the config space (virtio 1.3 §5.3.3).
const VIRTIO_CONSOLE_F_SIZE: u32 = 0;
/// Several ports, with control queues (virtio 1.3 §5.3.3).
const VIRTIO_CONSOLE_F_MULTIPORT: u32 = 1;
/// Entries of each queue.
const QUEUE_SIZE: u16 = 64;
