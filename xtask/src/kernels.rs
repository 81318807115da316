//! Debian's stock kernels as their packages ship them, unpacked into the guest cache: the guests
//! of the tests, and (the standard one) the kernel of the testbed's outer machine.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::{apt, cache, host};

/// Which of Debian's kernels.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Flavour {
    /// `linux-image-cloud-amd64`: small, for virtual machines; an LZ4 bzImage.
    Cloud,
    /// `linux-image-amd64`: with drivers for everything; an XZ bzImage.
    Standard,
}

impl Flavour {
    fn package(self) -> &'static str {
        match self {
            Self::Cloud => "linux-image-cloud-amd64",
            Self::Standard => "linux-image-amd64",
        }
    }

    fn cache_name(self) -> &'static str {
        match self {
            Self::Cloud => "kernel-cloud",
            Self::Standard => "kernel-std",
        }
    }
}

/// An unpacked kernel package.
pub struct Kernel {
    /// The bzImage, as shipped.
    pub vmlinuz: PathBuf,
    /// `…/lib/modules/RELEASE`, with depmod's files.
    pub modules: PathBuf,
    /// `6.1.0-56-cloud-amd64`
    pub release: String,
}

/// The newest kernel of this flavour that apt offers, or the cached one. The cache is not aged:
/// remove `target/guest/kernel-*` to fetch anew.
pub fn get(flavour: Flavour) -> Result<Kernel> {
    let dir = cache::entry(&cache::guest_dir(), flavour.cache_name(), |fresh| {
        let package = apt::resolve(flavour.package(), "linux-image-")?;
        apt::need(&[("depmod", "kmod")])?;
        host::say(format!("fetching and unpacking the kernel package {package}"));
        fs::create_dir_all(fresh).with_context(|| format!("making {}", fresh.display()))?;
        apt::unpack(&package, fresh)?;
        for extra in ["usr/share", "etc"] {
            cache::remove(&fresh.join(extra))?;
        }
        if !fresh.join("lib").exists() {
            // From Debian 13 on the package says usr/lib; depmod still looks in lib.
            symlink("usr/lib", fresh.join("lib")).context("linking lib to usr/lib")?;
        }
        let kernel = open(fresh)?;
        // The package leaves modules.dep to its installation script, which does not run here.
        host::output(host::command("depmod").arg("-b").arg(fresh).arg(&kernel.release))?;
        Ok(())
    })?;
    open(&dir)
}

fn open(dir: &Path) -> Result<Kernel> {
    let hint = || format!("{} is no unpacked kernel package; remove it", dir.display());
    let boot = dir.join("boot");
    for entry in fs::read_dir(&boot).with_context(hint)? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if let Some(release) = name.strip_prefix("vmlinuz-") {
            let modules = dir.join("lib/modules").join(release);
            return Ok(Kernel { vmlinuz: boot.join(&name), modules, release: release.to_owned() });
        }
    }
    anyhow::bail!(hint())
}
