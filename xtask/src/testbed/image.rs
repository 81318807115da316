//! The outer machine's kernel and initramfs. The initramfs holds busybox, `testbed-init.sh` and
//! the modules the outer machine needs, and is kept under a name that says what it was made of.

use std::path::PathBuf;

use anyhow::Result;

use crate::kernels::{self, Flavour};
use crate::modules::Modules;
use crate::{apt, cache, host, skeleton, vmlinux};

const INIT: &str = include_str!("../../../resources/testbed-init.sh");

/// What the outer machine cannot do without.
const MODULES: &[&str] = &[
    "virtio_pci",
    "virtio_console",
    "9pnet_virtio",
    "9p",
    "overlay",
    "kvm-amd",
    "tun",
    "vhost_net",
    "veth",
    "bridge",
    "loop",
    "ext4",
    "crc32c_generic",
];

/// What the outer machine boots from.
pub struct Image {
    pub kernel: PathBuf,
    pub initramfs: PathBuf,
}

/// Makes what is missing of the image.
pub fn get() -> Result<Image> {
    apt::need(&[
        ("qemu-system-x86_64", "qemu-system-x86"),
        ("busybox", "busybox-static"),
        ("depmod", "kmod"),
    ])?;
    let kernel = kernels::get(Flavour::Standard)?;
    let version = cache::fingerprint(&[
        INIT.as_bytes(),
        MODULES.join(" ").as_bytes(),
        kernel.release.as_bytes(),
    ]);
    let dir = cache::testbed_dir();
    let name = format!("outer-{version}.cpio");
    let elf = format!("outer-{}.vmlinux", kernel.release);
    // Unpacked here once, and not at every start under emulation.
    let vmlinux = cache::entry(&dir, &elf, |fresh| vmlinux::unpack(&kernel.vmlinuz, fresh))?;
    let initramfs = cache::entry(&dir, &name, |fresh| {
        host::say("making the testbed's initramfs");
        let mut cpio = skeleton::with_init(INIT)?;
        let mut order = String::new();
        for (name, data) in Modules::open(&kernel.modules)?.closure(MODULES)? {
            cpio.file(&format!("lib/{name}"), 0o644, &data);
            order.push_str(&name);
            order.push('\n');
        }
        cpio.file("modules.order", 0o644, order.as_bytes());
        Ok(std::fs::write(fresh, cpio.finish())?)
    })?;
    cache::forget_others(&dir, "outer-", &[&name, &elf]);
    Ok(Image { kernel: vmlinux, initramfs })
}
