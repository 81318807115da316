//! What the guests of tests and demo are made of, all of it made or fetched here and cached under
//! `target/guest/`. Callers get one directory of links with names that do not change; the tests
//! find it in `$HUSK_ASSETS`.

mod brought;
mod crates;
mod debian;
mod initramfs;
mod names;
mod suites;

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

pub use brought::Brought;
pub use debian::tools;
pub use names::*;

use crate::kernels::{self, Flavour, Kernel};
use crate::{apt, cache, host, vmlinux};

/// What everybody but soaks finds.
const USUAL: [&str; 10] = [
    VMLINUZ_CLOUD,
    VMLINUZ_STD,
    VMLINUX_CLOUD,
    TINY,
    FULL,
    FULL_STD,
    DEBIAN,
    REDIS,
    MEMTEST,
    MEMTEST_IA32,
];

/// Makes what is missing of all assets and gives the directory they are in.
pub fn all() -> Result<PathBuf> {
    only(&USUAL)
}

/// Makes what is missing of these, each of them one of the [`USUAL`], and gives the directory they are in.
pub fn only(names: &[&'static str]) -> Result<PathBuf> {
    link("assets", &made(names)?)
}

/// The same in a directory of its own, with what only soaks want; and, if `kernels`, those that `husk` brings.
pub fn soak(husk: &Path, kernels: bool) -> Result<(PathBuf, Brought)> {
    let mut links = made(&USUAL)?;
    links.push((SOAK, initramfs::soak(&kernels::get(Flavour::Cloud)?)?));
    links.push((TOOLS, debian::tools()?));
    links.push((FSX, suites::fsx()?));
    links.push((PJDFSTEST, suites::pjdfstest()?));
    links.push((SYSTEMD, debian::systemd()?));
    links.push((CRATES, crates::get()?));
    let mut brought = if kernels { brought::all(husk) } else { Brought::default() };
    links.append(&mut brought.links);
    for name in [FETCHED, BUILT, BUILT_FULL] {
        // Of an earlier run, perhaps.
        cache::remove(&cache::guest_dir().join(SOAKS).join(name))?;
    }
    Ok((link(SOAKS, &links)?, brought))
}

/// The directory of what soaks want.
const SOAKS: &str = "assets-soak";

fn made(names: &[&'static str]) -> Result<Vec<(&'static str, PathBuf)>> {
    names.iter().map(|name| Ok((*name, make(name)?))).collect()
}

/// Makes what goes by `name`, and nothing else but what it is made of.
fn make(name: &str) -> Result<PathBuf> {
    let cloud = || kernels::get(Flavour::Cloud);
    let standard = || kernels::get(Flavour::Standard);
    Ok(match name {
        VMLINUZ_CLOUD => cloud()?.vmlinuz,
        VMLINUZ_STD => standard()?.vmlinuz,
        VMLINUX_CLOUD => vmlinux(&cloud()?)?,
        TINY => initramfs::tiny()?,
        FULL => initramfs::full("full", &cloud()?)?,
        FULL_STD => initramfs::full("full-std", &standard()?)?,
        DEBIAN => debian::get()?,
        REDIS => debian::redis()?,
        MEMTEST | MEMTEST_IA32 => memtest()?.join(name),
        _ => bail!("there is no way to make {name}"),
    })
}

fn vmlinux(cloud: &Kernel) -> Result<PathBuf> {
    let elf = format!("vmlinux-{}", cloud.release);
    let vmlinux = cache::entry(&cache::guest_dir(), &elf, |fresh| {
        host::say("unpacking the cloud kernel's image");
        vmlinux::unpack(&cloud.vmlinuz, fresh)
    })?;
    cache::forget_others(&cache::guest_dir(), "vmlinux-", &[&elf]);
    Ok(vmlinux)
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

fn link(directory: &str, links: &[(&str, PathBuf)]) -> Result<PathBuf> {
    let dir = cache::guest_dir().join(directory);
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
/// testbed's own disk is RAM, so this is done before anything is timed. Directories stay where they are,
/// and a link leads to them: cargo knows its own by their path.
pub fn copy_to_ram(from: &Path, names: &[&str], to: &Path) -> Result<()> {
    fs::create_dir_all(to).with_context(|| format!("making {}", to.display()))?;
    for name in names {
        let (asset, copy) = (from.join(name), to.join(name));
        if asset.is_dir() {
            let real = asset.canonicalize().with_context(|| format!("finding {}", asset.display()));
            symlink(real?, &copy).with_context(|| format!("linking {}", asset.display()))?;
            continue;
        }
        host::output(
            host::command("cp").args(["--sparse=always", "--dereference"]).arg(asset).arg(copy),
        )?;
    }
    Ok(())
}

/// Links the modules of the kernels in `from` into `to`, where their copies are, and husk looks for them; those of the
/// cloud kernel also as [`MODULES_CLOUD`]. A guest needs a few of them only.
pub fn link_modules(from: &Path, to: &Path) -> Result<()> {
    let beside = to.join("lib/modules");
    fs::create_dir_all(&beside).with_context(|| format!("making {}", beside.display()))?;
    for name in [VMLINUZ_CLOUD, VMLINUZ_STD] {
        if !to.join(name).exists() {
            continue;
        }
        let (modules, release) = modules_of(&from.join(name))?;
        let by_name = (name == VMLINUZ_CLOUD).then(|| to.join(MODULES_CLOUD));
        for link in by_name.into_iter().chain([beside.join(release)]) {
            symlink(&modules, link).with_context(|| format!("linking {}", modules.display()))?;
        }
    }
    Ok(())
}

/// The modules of the kernel that a link leads to, and its release.
fn modules_of(kernel: &Path) -> Result<(PathBuf, String)> {
    let kernel = kernel.canonicalize().with_context(|| format!("finding {}", kernel.display()))?;
    let name = kernel.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let release =
        name.strip_prefix("vmlinuz-").with_context(|| format!("{name} has no release"))?;
    let root = kernel.parent().and_then(Path::parent).context("it is in no directory")?;
    Ok((root.join("lib/modules").join(release), release.to_owned()))
}

/// The names of all assets in `dir`; not what is being put there.
pub fn names_in(dir: &Path) -> Result<Vec<String>> {
    let entries = fs::read_dir(dir).with_context(|| format!("reading {}", dir.display()))?;
    let present = entries.flatten().filter(|entry| entry.path().exists());
    let names = present.map(|entry| entry.file_name().to_string_lossy().into_owned());
    Ok(names.filter(|name| !name.starts_with('.')).collect())
}
