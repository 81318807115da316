//! The demo's root file system: a minimal Debian as an ext4 image, with sysvinit because little of
//! it runs before the login prompt, which counts where the processor is emulated. Made without a
//! loop device, and without root beyond what mmdebstrap asks for.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::{apt, cache, host};

const SETUP: &str = include_str!("../../../resources/debian-setup.sh");
const DEMO: &str = include_str!("../../../resources/husk-demo.sh");

const SUITE: &str = "bookworm";
const PACKAGES: &str =
    "sysvinit-core,initscripts,sysv-rc,acpid,iproute2,iputils-ping,procps,e2fsprogs";
/// The image's size; what is not used takes no space on the disk.
const SIZE: &str = "512M";

/// Makes the image unless it is there. A mirror other than Debian's own can be named by
/// `$HUSK_DEBIAN_MIRROR`.
pub fn get() -> Result<PathBuf> {
    let version = cache::fingerprint(&[
        SETUP.as_bytes(),
        DEMO.as_bytes(),
        SUITE.as_bytes(),
        PACKAGES.as_bytes(),
        SIZE.as_bytes(),
    ]);
    let dir = cache::guest_dir();
    let file = format!("debian-{version}.ext4");
    let image = cache::entry(&dir, &file, make)?;
    cache::forget_others(&dir, "debian-", &[&file]);
    Ok(image)
}

fn make(image: &Path) -> Result<()> {
    apt::need(&[("mmdebstrap", "mmdebstrap"), ("mkfs.ext4", "e2fsprogs")])?;
    if !host::is_root() {
        apt::need(&[("newuidmap", "uidmap"), ("fakeroot", "fakeroot")])?;
    }
    host::say(format!("making a Debian root file system ({SUITE}, mmdebstrap; about 30 s)"));
    let work = image.with_extension("work");
    cache::remove(&work)?;
    fs::create_dir_all(&work).with_context(|| format!("making {}", work.display()))?;
    let made = make_in(&work, image);
    cache::remove(&work)?;
    made
}

fn make_in(work: &Path, image: &Path) -> Result<()> {
    let setup = work.join("debian-setup.sh");
    fs::write(&setup, SETUP).with_context(|| format!("writing {}", setup.display()))?;
    let demo = work.join("husk-demo.sh");
    fs::write(&demo, DEMO).with_context(|| format!("writing {}", demo.display()))?;

    let mut mmdebstrap = host::command("mmdebstrap");
    mmdebstrap.args(["--quiet", "--variant=minbase"]).arg(format!("--include={PACKAGES}"));
    for part in ["doc", "info", "locale", "man"] {
        mmdebstrap.arg(format!("--dpkgopt=path-exclude=/usr/share/{part}/*"));
    }
    mmdebstrap.arg(format!("--customize-hook=sh '{}' \"$1\"", setup.display())).arg(SUITE);
    // As root the tree itself; without root its files' owners exist only in an archive.
    let root = work.join(if host::is_root() { "root" } else { "root.tar" });
    mmdebstrap.arg(&root).args(std::env::var_os("HUSK_DEBIAN_MIRROR"));
    host::output(&mut mmdebstrap).context(
        "Debian's packages could not be installed into a new root file system; check the network, \
         or name a mirror in HUSK_DEBIAN_MIRROR",
    )?;

    let mkfs = "mkfs.ext4 -q -L husk -d";
    if host::is_root() {
        let words: Vec<&str> = mkfs.split(' ').collect();
        let (program, args) = words.split_first().context("no command")?;
        host::output(host::command(program).args(args).arg(&root).arg(image).arg(SIZE))?;
    } else {
        let script = format!(
            "mkdir \"$1.d\" && tar -xf \"$1\" -C \"$1.d\" && {mkfs} \"$1.d\" \"$2\" {SIZE}"
        );
        host::output(
            host::command("fakeroot").args(["sh", "-c", &script, "sh"]).arg(&root).arg(image),
        )?;
    }
    Ok(())
}
