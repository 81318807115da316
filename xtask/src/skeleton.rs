//! What every initramfs made here begins with: the directories and device nodes that an init wants to
//! find, busybox, and the init itself, a script for it.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use husk_initramfs::Cpio;

use crate::{apt, host};

/// An archive with these, and `init` as /init.
pub fn with_init(init: &str) -> Result<Cpio> {
    let mut cpio = Cpio::default();
    for dir in ["bin", "dev", "etc", "lib", "mnt", "proc", "run", "sys", "tmp"] {
        cpio.directory(dir);
    }
    // The kernel opens /dev/console for init before any devtmpfs is mounted.
    cpio.device("dev/console", 0o600, 5, 1);
    cpio.device("dev/null", 0o600, 1, 3);
    cpio.file("init", 0o755, init.as_bytes());
    add_program(&mut cpio, "bin/busybox", &busybox()?)?;
    Ok(cpio)
}

/// Adds the file at `from` on this machine as the executable `name`.
pub fn add_program(cpio: &mut Cpio, name: &str, from: &Path) -> Result<()> {
    let data = fs::read(from).with_context(|| format!("reading {}", from.display()))?;
    cpio.file(name, 0o755, &data);
    Ok(())
}

/// The statically linked busybox of this machine.
pub fn busybox() -> Result<PathBuf> {
    apt::need(&[("busybox", "busybox-static")])?;
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
