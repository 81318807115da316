//! What the guests of tests and demo are made of, all of it made or fetched here and cached under
//! `target/guest/`. Callers get one directory of links with names that do not change; the tests
//! find it in `$HUSK_ASSETS`.

mod debian;
mod initramfs;

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::kernels::{self, Flavour};
use crate::{apt, cache, host, vmlinux};

/// Debian's cloud kernel, a bzImage (LZ4).
pub const VMLINUZ_CLOUD: &str = "vmlinuz-cloud";
/// Debian's standard kernel, a bzImage (XZ).
pub const VMLINUZ_STD: &str = "vmlinuz-std";
/// The cloud kernel's ELF image, with a PVH note.
pub const VMLINUX_CLOUD: &str = "vmlinux-cloud";
/// busybox and an init: for every kernel.
pub const INITRD_TINY: &str = "initrd-tiny.cpio";
/// The same with the cloud kernel's modules.
pub const INITRD_FULL: &str = "initrd-full.cpio";
/// The same with the standard kernel's modules.
pub const INITRD_FULL_STD: &str = "initrd-full-std.cpio";
/// A Debian root file system.
pub const DEBIAN: &str = "debian.ext4";
/// memtest86+, a bzImage that carries no Linux (64 and 32 bit).
pub const MEMTEST: [&str; 2] = ["memtest86+x64.bin", "memtest86+ia32.bin"];

/// Makes what is missing of all assets and gives the directory they are in.
pub fn all() -> Result<PathBuf> {
    let cloud = kernels::get(Flavour::Cloud)?;
    let standard = kernels::get(Flavour::Standard)?;
    let elf = format!("vmlinux-{}", cloud.release);
    let vmlinux = cache::entry(&cache::guest_dir(), &elf, |fresh| {
        host::say("unpacking the cloud kernel's image");
        vmlinux::unpack(&cloud.vmlinuz, fresh)
    })?;
    cache::forget_others(&cache::guest_dir(), "vmlinux-", &[&elf]);
    let memtest = memtest()?;
    let full = initramfs::full("full", &cloud)?;
    let full_std = initramfs::full("full-std", &standard)?;
    let mut links = vec![
        (VMLINUZ_CLOUD, cloud.vmlinuz),
        (VMLINUZ_STD, standard.vmlinuz),
        (VMLINUX_CLOUD, vmlinux),
        (INITRD_TINY, initramfs::tiny()?),
        (INITRD_FULL, full),
        (INITRD_FULL_STD, full_std),
        (DEBIAN, debian::get()?),
    ];
    links.extend(MEMTEST.map(|name| (name, memtest.join(name))));
    link(&links)
}

fn memtest() -> Result<PathBuf> {
    cache::entry(&cache::guest_dir(), "memtest86+", |fresh| {
        let unpacked = fresh.with_extension("deb");
        cache::remove(&unpacked)?;
        host::say("fetching memtest86+");
        apt::unpack("memtest86+", &unpacked)?;
        let boot = unpacked.join("boot");
        fs::rename(&boot, fresh).with_context(|| format!("moving {}", boot.display()))?;
        cache::remove(&unpacked)
    })
}

fn link(links: &[(&str, PathBuf)]) -> Result<PathBuf> {
    let dir = cache::guest_dir().join("assets");
    fs::create_dir_all(&dir).with_context(|| format!("making {}", dir.display()))?;
    for (name, target) in links {
        let place = dir.join(name);
        if !target.exists() {
            bail!("{} is missing from {}; remove that", name, target.display());
        }
        if fs::read_link(&place).is_ok_and(|old| old == *target) {
            continue;
        }
        let fresh = dir.join(format!(".{name}.{}", std::process::id()));
        cache::remove(&fresh)?;
        symlink(target, &fresh).with_context(|| format!("linking {}", fresh.display()))?;
        fs::rename(&fresh, &place).with_context(|| format!("placing {}", place.display()))?;
    }
    Ok(dir)
}

/// Copies assets (what their links lead to) into `to`, holes staying holes. 9p is slow and the
/// testbed's own disk is RAM, so this is done before anything is timed.
pub fn copy_to_ram(from: &Path, names: &[&str], to: &Path) -> Result<()> {
    fs::create_dir_all(to).with_context(|| format!("making {}", to.display()))?;
    for name in names {
        host::output(
            host::command("cp")
                .args(["--sparse=always", "--dereference"])
                .arg(from.join(name))
                .arg(to.join(name)),
        )?;
    }
    Ok(())
}

/// Every asset's name.
pub fn names() -> Vec<&'static str> {
    let mut names = vec![
        VMLINUZ_CLOUD,
        VMLINUZ_STD,
        VMLINUX_CLOUD,
        INITRD_TINY,
        INITRD_FULL,
        INITRD_FULL_STD,
        DEBIAN,
    ];
    names.extend(MEMTEST);
    names
}

/// The statically linked busybox of this machine.
pub fn busybox() -> Result<PathBuf> {
    host::need(&[("busybox", "busybox-static")])?;
    let path = host::find("busybox").context("busybox is not in PATH")?;
    let bytes = fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
    // A dynamically linked program names its interpreter near the start of its file.
    if bytes.get(..4096).unwrap_or(&bytes).windows(9).any(|w| w == b"ld-linux-") {
        bail!(
            "{} is not statically linked, so it cannot run in an initramfs; run \
             `apt-get install -y busybox-static` as root",
            path.display()
        );
    }
    Ok(path)
}
