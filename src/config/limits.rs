//! How much a configuration may ask for; [`super::VmConfig::validate`] refuses more, and the errors name it.

use super::Size;

/// The most vCPUs a configuration can ask for.
pub const CPUS_MAX: u32 = 64;
/// The most virtio devices a configuration can have, the entropy source included: each has an
/// interrupt of its own. That the machine has as many is checked where it is made.
pub const VIRTIO_DEVICES_MAX: usize = 18;
/// Less memory than this boots no Linux.
pub const MEMORY_MIN: Size = Size::mib(32);
/// 16 TiB: more than any host husk was thought for has.
pub const MEMORY_MAX: Size = Size(1 << 44);
/// A virtio serial number has 20 bytes (virtio 1.3 §5.2.6), and a name should be typeable.
pub const ID_MAX: usize = 20;
/// The id of the disk that a guest's overlays are on.
pub(crate) const OVERLAY: &str = "overlay";
/// A smaller one has hardly room for anything but its file system's own.
pub(crate) const OVERLAY_MIN: Size = Size::mib(16);
/// 8 TiB: block numbers of 32 bits reach twice as far.
pub(crate) const OVERLAY_MAX: Size = Size(8 << 40);
/// As long as anybody's (`org.qemu.guest_agent.0`), and far below a control buffer.
pub const PORT_NAME_MAX: usize = 64;
