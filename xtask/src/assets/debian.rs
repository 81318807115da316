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

const MINBASE: &str = "minbase";

/// What a root file system is made of.
struct Root {
    /// How its file's name begins.
    name: &'static str,
    /// Beyond the least of Debian.
    packages: &'static str,
    /// The image's size; what is not used takes no space on the disk.
    size: &'static str,
    /// mmdebstrap's: `extract` unpacks the packages and what they need, and sets up nothing.
    variant: &'static str,
    /// Whether it is a machine's own: a host name, a login, the demo.
    machine: bool,
}

const DEBIAN: Root = Root {
    name: "debian",
    packages: "sysvinit-core,initscripts,sysv-rc,acpid,iproute2,iputils-ping,procps,e2fsprogs",
    size: "512M",
    variant: MINBASE,
    machine: true,
};

const TOOLS: Root = Root {
    name: "tools",
    packages: "erofs-utils,ethtool,fio,iperf3,stress-ng,xfsprogs",
    size: "1G",
    variant: MINBASE,
    machine: false,
};

const REDIS: Root = Root {
    name: "redis",
    packages: "redis-server",
    size: "256M",
    variant: "extract",
    machine: false,
};

/// With systemd as its init.
const SYSTEMD: Root = Root {
    name: "systemd",
    packages: "systemd-sysv,udev,kmod,procps",
    size: "512M",
    variant: MINBASE,
    machine: false,
};

/// Makes the root file system of the tests' Debian unless it is there. A mirror other than Debian's
/// own can be named by `$HUSK_DEBIAN_MIRROR`.
pub fn get() -> Result<PathBuf> {
    DEBIAN.get()
}

/// Makes a file system with the tools of benchmarks and soaks unless it is there: erofs-utils, ethtool, fio,
/// iperf3, stress-ng, xfsprogs.
pub fn tools() -> Result<PathBuf> {
    TOOLS.get()
}

/// Makes the root file system of the example of a service unless it is there: Redis alone.
pub fn redis() -> Result<PathBuf> {
    REDIS.get()
}

/// Makes the root file system of a Debian with systemd unless it is there.
pub fn systemd() -> Result<PathBuf> {
    SYSTEMD.get()
}

impl Root {
    fn get(&self) -> Result<PathBuf> {
        let mut parts = vec![SUITE, self.packages, self.size];
        if self.machine {
            parts = vec![SETUP, DEMO, SUITE, self.packages, self.size];
        }
        if self.variant != MINBASE {
            parts.push(self.variant);
        }
        let parts: Vec<&[u8]> = parts.into_iter().map(str::as_bytes).collect();
        let version = cache::fingerprint(&parts);
        let dir = cache::guest_dir();
        let file = format!("{}-{version}.ext4", self.name);
        let image = cache::entry(&dir, &file, |fresh| self.make(fresh))?;
        cache::forget_others(&dir, &format!("{}-", self.name), &[&file]);
        Ok(image)
    }

    fn make(&self, image: &Path) -> Result<()> {
        apt::need(&[("mmdebstrap", "mmdebstrap"), ("mkfs.ext4", "e2fsprogs")])?;
        if !host::is_root() {
            apt::need(&[("newuidmap", "uidmap"), ("fakeroot", "fakeroot")])?;
        }
        let name = self.name;
        host::say(format!("making the root file system {name} ({SUITE}, mmdebstrap; about 30 s)"));
        let work = image.with_extension("work");
        cache::remove(&work)?;
        fs::create_dir_all(&work).with_context(|| format!("making {}", work.display()))?;
        let made = self.make_in(&work, image);
        cache::remove(&work)?;
        made
    }

    fn make_in(&self, work: &Path, image: &Path) -> Result<()> {
        let mut mmdebstrap = host::command("mmdebstrap");
        mmdebstrap.arg("--quiet").arg(format!("--variant={}", self.variant));
        mmdebstrap.arg(format!("--include={}", self.packages));
        for part in ["doc", "info", "locale", "man"] {
            mmdebstrap.arg(format!("--dpkgopt=path-exclude=/usr/share/{part}/*"));
        }
        if self.machine {
            let setup = work.join("debian-setup.sh");
            fs::write(&setup, SETUP).with_context(|| format!("writing {}", setup.display()))?;
            let demo = work.join("husk-demo.sh");
            fs::write(&demo, DEMO).with_context(|| format!("writing {}", demo.display()))?;
            mmdebstrap.arg(format!("--customize-hook=sh '{}' \"$1\"", setup.display()));
        }
        mmdebstrap.arg(SUITE);
        // As root the tree itself; without root its files' owners exist only in an archive.
        let root = work.join(if host::is_root() { "root" } else { "root.tar" });
        mmdebstrap.arg(&root).args(std::env::var_os("HUSK_DEBIAN_MIRROR"));
        host::output(&mut mmdebstrap).context(
            "Debian's packages could not be installed into a new root file system; check the \
             network, or name a mirror in HUSK_DEBIAN_MIRROR",
        )?;

        let (mkfs, size) = ("mkfs.ext4 -q -L husk -d", self.size);
        if host::is_root() {
            let words: Vec<&str> = mkfs.split(' ').collect();
            let (program, args) = words.split_first().context("no command")?;
            host::output(host::command(program).args(args).arg(&root).arg(image).arg(size))?;
        } else {
            let script = format!(
                "mkdir \"$1.d\" && tar -xf \"$1\" -C \"$1.d\" && {mkfs} \"$1.d\" \"$2\" {size}"
            );
            host::output(
                host::command("fakeroot").args(["sh", "-c", &script, "sh"]).arg(&root).arg(image),
            )?;
        }
        Ok(())
    }
}
