//! Which drivers a machine's kernel needs, and what for.

use std::os::unix::fs::{FileExt, FileTypeExt};
use std::path::Path;

use crate::boot::drivers::{
    BTRFS, Driver, EROFS, EXT4, ND_PMEM, OVERLAY, SQUASHFS, VIRTIO_BALLOON, VIRTIO_BLK,
    VIRTIO_CONSOLE, VIRTIO_FS, VIRTIO_MMIO, VIRTIO_NET, VIRTIO_PMEM, VIRTIO_RNG, VIRTIO_VSOCK, XFS,
};
use crate::config::{ConsoleDevice, VmConfig};
use crate::files;

/// A driver, and what for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Need {
    pub driver: Driver,
    pub purpose: &'static str,
}

const fn need(driver: Driver, purpose: &'static str) -> Need {
    Need { driver, purpose }
}

/// What a machine cannot do without, and what makes it a better one where the kernel has it.
#[derive(Debug, Default)]
pub struct Drivers {
    pub needed: Vec<Need>,
    pub wished: Vec<&'static str>,
    /// What no command waits for: the guest loads it when it has nothing else to do.
    pub later: Vec<&'static str>,
}

/// The drivers of `config`.
pub fn of(config: &VmConfig) -> Drivers {
    let mut drivers = Drivers {
        needed: vec![
            need(VIRTIO_MMIO, "every device of husk's"),
            need(VIRTIO_VSOCK, "the way between husk and its agent"),
        ],
        // The first is asked for by ext4 and by libcrc32c, by a name that modules.dep does not know.
        wished: vec!["crc32c_generic", VIRTIO_RNG.module],
        // Who listens to the power button does so for long.
        later: vec!["button", "evdev"],
    };
    let has_overlay_disk = config.overlay_disk().is_some();
    if !config.disks.is_empty() || has_overlay_disk {
        drivers.needed.push(need(VIRTIO_BLK, "disks"));
    }
    if !config.nets.is_empty() {
        // net_failover has a symbol that virtio_net needs in some kernels; modules.dep tells.
        drivers.needed.push(need(VIRTIO_NET, "network interfaces"));
    }
    if !config.volumes.is_empty() {
        // It needs fuse; modules.dep tells.
        drivers.needed.push(need(VIRTIO_FS, "shared directories"));
    }
    if config.balloon.is_some() {
        drivers.wished.push(VIRTIO_BALLOON.module);
    }
    if !config.pmem.is_empty() {
        drivers.wished.extend([VIRTIO_PMEM.module, ND_PMEM.module]);
    }
    if !config.ports.is_empty() || config.console_device == ConsoleDevice::Virtio {
        drivers.wished.push(VIRTIO_CONSOLE.module);
    }
    let root = config.guest.as_ref().and_then(|guest| guest.root.as_ref());
    if let Some(id) = root.and_then(|root| root.disk.as_ref()) {
        let disk = config.disks.iter().find(|disk| disk.id == *id);
        match disk.and_then(|disk| file_system(&disk.path)) {
            Some(known) => drivers.needed.push(known),
            // The guest tries what its kernel has.
            None => drivers.wished.extend(FILE_SYSTEMS.map(|(_, _, need)| need.driver.module)),
        }
    }
    if root.is_some_and(|root| !root.writable) || config.volumes.iter().any(|v| v.overlay) {
        let purpose = "the overlay above what is not written to";
        drivers.needed.push(need(OVERLAY, purpose));
    }
    if has_overlay_disk {
        drivers.needed.push(need(EXT4, "the file system of the overlay's disk"));
    }
    drivers
}

/// File systems by the bytes at a place of theirs.
const FILE_SYSTEMS: [(u64, &[u8], Need); 5] = [
    (0x438, b"\x53\xef", need(EXT4, "the root's file system, ext4")),
    (0x400, b"\xe2\xe1\xf5\xe0", need(EROFS, "the root's file system, erofs")),
    (0, b"hsqs", need(SQUASHFS, "the root's file system, squashfs")),
    (0, b"XFSB", need(XFS, "the root's file system, xfs")),
    (0x1_0040, b"_BHRfS_M", need(BTRFS, "the root's file system, btrfs")),
];

/// The file system of the guest's root, if it is to be written to and is of a kind that never is.
pub fn only_read(config: &VmConfig) -> Option<&'static str> {
    let root = config.guest.as_ref()?.root.as_ref().filter(|root| root.writable)?;
    let disk = config.disks.iter().find(|disk| Some(&disk.id) == root.disk.as_ref())?;
    let module = file_system(&disk.path)?.driver.module;
    ["erofs", "squashfs"].contains(&module).then_some(module)
}

/// The driver of the file system on the disk at `path`, if it is one of these, and not inside of another
/// format.
fn file_system(path: &Path) -> Option<Need> {
    let file = files::open(path).ok()?;
    let kind = file.metadata().ok()?.file_type();
    if !kind.is_file() && !kind.is_block_device() {
        // It is refused where the disk is made.
        return None;
    }
    let found = FILE_SYSTEMS.iter().find(|(at, magic, _)| {
        let mut bytes = vec![0; magic.len()];
        file.read_exact_at(&mut bytes, *at).is_ok() && bytes == *magic
    });
    found.map(|(.., need)| *need)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{
        DiskConfig, GuestConfig, OverlayConfig, OverlayDisk, RootConfig, VolumeConfig,
    };

    #[test]
    fn a_machine_needs_what_its_devices_and_its_root_need() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("root");
        let mut image = vec![0; 0x11000];
        image[0x438..0x43a].copy_from_slice(b"\x53\xef");
        std::fs::write(&path, &image).unwrap();
        let names = |config: &VmConfig| -> Vec<&str> {
            of(config).needed.iter().map(|need| need.driver.module).collect()
        };
        let mut config = VmConfig::new("k");
        config.guest = Some(GuestConfig::default());
        assert_eq!(names(&config), ["virtio_mmio", "vmw_vsock_virtio_transport"]);
        let volume = VolumeConfig { tag: "src".into(), path: "/src".into(), ..Default::default() };
        config.volumes = vec![volume];
        assert_eq!(names(&config)[2..], ["virtiofs"]);
        config.volumes.clear();
        assert!(!of(&config).wished.contains(&"virtio_console"));
        config.console_device = ConsoleDevice::Virtio;
        assert!(of(&config).wished.contains(&"virtio_console"));
        config.disks =
            vec![DiskConfig { id: "root".into(), path: path.clone(), ..Default::default() }];
        let root = RootConfig::on_disk("root");
        config.guest = Some(GuestConfig { root: Some(root), ..GuestConfig::default() });
        assert_eq!(names(&config)[2..], ["virtio_blk", "ext4", "overlay"]);
        assert_eq!(only_read(&config), None);
        std::fs::write(&path, b"hsqs").unwrap();
        assert_eq!((names(&config)[3], only_read(&config)), ("squashfs", None));
        let root = RootConfig { writable: true, ..RootConfig::on_disk("root") };
        config.guest = Some(GuestConfig { root: Some(root), ..GuestConfig::default() });
        assert_eq!(only_read(&config), Some("squashfs"));
        config.guest.as_mut().unwrap().root = Some(RootConfig::on_disk("root"));
        std::fs::write(&path, b"something else").unwrap();
        assert_eq!(names(&config)[2..], ["virtio_blk", "overlay"]);
        assert!(of(&config).wished.contains(&"squashfs"));
        config.disks.clear();
        config.volumes = vec![VolumeConfig { id: "root".into(), ..VolumeConfig::default() }];
        let root = RootConfig::on_volume("root");
        config.guest = Some(GuestConfig { root: Some(root), ..GuestConfig::default() });
        assert_eq!(names(&config)[2..], ["virtiofs", "overlay"]);
        assert!(!of(&config).wished.contains(&"squashfs"));
        config.guest.as_mut().unwrap().overlay = OverlayConfig::Disk(OverlayDisk::default());
        assert_eq!(names(&config)[2..], ["virtio_blk", "virtiofs", "overlay", "ext4"]);
    }
}
