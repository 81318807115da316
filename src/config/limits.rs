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
/// As long as anybody's (`org.qemu.guest_agent.0`), and far below a control buffer.
pub const PORT_NAME_MAX: usize = 64;
