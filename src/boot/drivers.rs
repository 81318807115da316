//! What a Linux calls the drivers that husk's devices and its guests' roots need: once, for all who look for
//! them in a kernel, in its modules, or tell which are missing.

/// A driver of a Linux.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Driver {
    /// The module's name.
    pub module: &'static str,
    /// The option of the kernel's configuration (Kconfig) that has it.
    pub option: &'static str,
}

const fn driver(module: &'static str, option: &'static str) -> Driver {
    Driver { module, option }
}

/// Every device of husk's is found by it.
pub const VIRTIO_MMIO: Driver = driver("virtio_mmio", "CONFIG_VIRTIO_MMIO");
/// The way between husk and its agent.
pub const VIRTIO_VSOCK: Driver = driver("vmw_vsock_virtio_transport", "CONFIG_VIRTIO_VSOCKETS");
/// Disks.
pub const VIRTIO_BLK: Driver = driver("virtio_blk", "CONFIG_VIRTIO_BLK");
/// Network interfaces.
pub const VIRTIO_NET: Driver = driver("virtio_net", "CONFIG_VIRTIO_NET");
/// Shared directories.
pub const VIRTIO_FS: Driver = driver("virtiofs", "CONFIG_VIRTIO_FS");
/// Files as memory.
pub const VIRTIO_PMEM: Driver = driver("virtio_pmem", "CONFIG_VIRTIO_PMEM");
/// Block devices of such memory.
pub const ND_PMEM: Driver = driver("nd_pmem", "CONFIG_BLK_DEV_PMEM");
/// The balloon.
pub const VIRTIO_BALLOON: Driver = driver("virtio_balloon", "CONFIG_VIRTIO_BALLOON");
/// Consoles and byte ports.
pub const VIRTIO_CONSOLE: Driver = driver("virtio_console", "CONFIG_VIRTIO_CONSOLE");
/// Entropy.
pub const VIRTIO_RNG: Driver = driver("virtio_rng", "CONFIG_HW_RANDOM_VIRTIO");
/// What is written above what is only read.
pub const OVERLAY: Driver = driver("overlay", "CONFIG_OVERLAY_FS");
/// File systems of roots.
pub const EXT4: Driver = driver("ext4", "CONFIG_EXT4_FS");
/// See [`EXT4`].
pub const EROFS: Driver = driver("erofs", "CONFIG_EROFS_FS");
/// See [`EXT4`].
pub const SQUASHFS: Driver = driver("squashfs", "CONFIG_SQUASHFS");
/// See [`EXT4`].
pub const XFS: Driver = driver("xfs", "CONFIG_XFS_FS");
/// See [`EXT4`].
pub const BTRFS: Driver = driver("btrfs", "CONFIG_BTRFS_FS");
