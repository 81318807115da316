//! The guests' initramfs images. `resources/README.md` says what their /init does.

use std::path::PathBuf;

use anyhow::Result;

use crate::kernels::Kernel;
use crate::modules::Modules;
use crate::skeleton::{self, add_program};
use crate::{cache, cargo};

const INIT: &str = include_str!("../../../resources/guest-init.sh");
const BUTTON: &str = include_str!("../../../resources/guest-power-button.sh");

/// The programs in `/bin`, and their sources.
const PROGRAMS: &[(&str, &str, &str)] = &[
    ("vsock", "guest-vsock.rs", include_str!("../bin/guest-vsock.rs")),
    ("files", "guest-files.rs", include_str!("../bin/guest-files.rs")),
];

/// What a guest on husk needs of its kernel.
const MODULES: &[&str] = &[
    "virtio_mmio",
    "virtio_blk",
    "net_failover",
    "virtio_net",
    "virtio_rng",
    "vmw_vsock_virtio_transport",
    "ext4",
];

/// What makes it a better guest, where the kernel has it. crc32c: ext4 asks for it by name, which
/// modules.dep does not know. button and evdev: the power button.
const IF_PRESENT: &[&str] = &[
    "crc32c_generic",
    "pvpanic-mmio",
    "button",
    "evdev",
    "virtio_pci",
    "virtio_console",
    "virtio_balloon",
    "virtio_pmem",
    "nd_pmem",
];

/// What /init does not load: it costs every start, and few want it. They are named in `/lib/modules.more`, in order.
const ON_DEMAND: &[&str] = &["virtiofs", "overlay"];

/// What only a soak wants beside those.
const SOAK: &[&str] = &["xfs"];

/// busybox's acpid runs this at the press of the power button.
const POWER_BUTTON: &str = "etc/acpi/PWRF/00000080";

/// An image without any module: starts on any kernel, and fastest.
pub fn tiny() -> Result<PathBuf> {
    make("tiny", None, ON_DEMAND)
}

/// An image with `kernel`'s modules for what husk emulates.
pub fn full(name: &str, kernel: &Kernel) -> Result<PathBuf> {
    make(name, Some(kernel), ON_DEMAND)
}

/// The same with what a soak wants.
pub fn soak(kernel: &Kernel) -> Result<PathBuf> {
    make("soak", Some(kernel), &[ON_DEMAND, SOAK].concat())
}

fn make(name: &str, kernel: Option<&Kernel>, on_demand: &[&str]) -> Result<PathBuf> {
    let release = kernel.map_or("", |k| k.release.as_str());
    let wanted = [MODULES, IF_PRESENT, &["-"], on_demand].concat().join(" ");
    let mut parts = vec![INIT.as_bytes(), BUTTON.as_bytes(), release.as_bytes(), wanted.as_bytes()];
    parts.extend(PROGRAMS.iter().map(|(_, _, source)| source.as_bytes()));
    let version = cache::fingerprint(&parts);
    // "full." is not how "full-std." begins.
    let prefix = format!("initrd.{name}.");
    let file = format!("{prefix}{version}.cpio");
    let dir = cache::guest_dir();
    let made = cache::entry(&dir, &file, |fresh| {
        let mut cpio = skeleton::with_init(INIT)?;
        cpio.symlink("bin/sh", "busybox");
        for dir in ["etc/acpi", "etc/acpi/PWRF", "var", "var/log", "var/run"] {
            cpio.directory(dir);
        }
        cpio.file(POWER_BUTTON, 0o755, BUTTON.as_bytes());
        if let Some(kernel) = kernel {
            let modules = Modules::open(&kernel.modules)?;
            let mut order = String::new();
            let names = [MODULES, &modules.present(IF_PRESENT)].concat();
            for (name, data) in modules.closure(&names)? {
                cpio.file(&format!("lib/{name}"), 0o644, &data);
                order.push_str(&name);
                order.push('\n');
            }
            cpio.file("lib/modules.order", 0o644, order.as_bytes());
            let (mut more, loaded) = (String::new(), order);
            let names = [&names, modules.present(on_demand).as_slice()].concat();
            for (name, data) in modules.closure(&names)? {
                if !loaded.lines().any(|other| other == name) {
                    cpio.file(&format!("lib/{name}"), 0o644, &data);
                    more.push_str(&name);
                    more.push('\n');
                }
            }
            cpio.file("lib/modules.more", 0o644, more.as_bytes());
            for (name, source, _) in PROGRAMS {
                let source = cache::workspace().join("xtask/src/bin").join(source);
                let program = fresh.with_extension(name);
                cargo::static_program(&source, &program)?;
                add_program(&mut cpio, &format!("bin/{name}"), &program)?;
                cache::remove(&program)?;
            }
        }
        Ok(std::fs::write(fresh, cpio.finish())?)
    })?;
    cache::forget_others(&dir, &prefix, &[&file]);
    Ok(made)
}
