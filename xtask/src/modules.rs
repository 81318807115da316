//! The kernel modules to put into an initramfs, as files that busybox's insmod takes, in the order in
//! which it must.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use husk_initramfs::ModuleIndex;

use crate::host;

/// The modules of one kernel.
pub struct Modules {
    dir: PathBuf,
    index: ModuleIndex,
}

impl Modules {
    /// Reads the index in `dir` (`…/lib/modules/RELEASE`).
    pub fn open(dir: &Path) -> Result<Self> {
        let read = |name: &str| {
            let path = dir.join(name);
            std::fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))
        };
        let index = ModuleIndex::parse(&read("modules.dep")?, &read("modules.builtin")?);
        let index = index.with_context(|| format!("reading {}", dir.display()))?;
        Ok(Self { dir: dir.to_owned(), index })
    }

    /// The files for `wanted` and everything they need: name and content.
    pub fn closure(&self, wanted: &[&str]) -> Result<Vec<(String, Vec<u8>)>> {
        if let Some(missing) = wanted.iter().find(|name| !self.index.has(name)) {
            bail!("this kernel has no module {missing}, neither in modules.dep nor built in");
        }
        let closure = self.index.closure(wanted).into_iter();
        closure.map(|(name, path)| Ok((format!("{name}.ko"), self.read(path)?))).collect()
    }

    /// Those of `names` that this kernel has, as a module or built in.
    pub fn present<'a>(&self, names: &[&'a str]) -> Vec<&'a str> {
        names.iter().copied().filter(|name| self.index.has(name)).collect()
    }

    fn read(&self, path: &str) -> Result<Vec<u8>> {
        let full = self.dir.join(path);
        // busybox's insmod takes plain modules only; Debian compresses them from 13 on.
        let tool = match full.extension().and_then(|e| e.to_str()) {
            Some("xz") => "xz",
            Some("zst") => "zstd",
            Some("gz") => "gzip",
            _ => {
                return std::fs::read(&full).with_context(|| format!("reading {}", full.display()));
            }
        };
        host::output(host::command(tool).arg("-dc").arg(&full))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_files_come_in_order_without_their_ending_and_a_module_that_is_missing_is_named() {
        let dir = std::env::temp_dir().join(format!("husk-xtask-modules-{}", std::process::id()));
        std::fs::create_dir_all(dir.join("k")).unwrap();
        let dep = "k/virtio-blk.ko: k/virtio.ko\nk/virtio.ko:\n";
        std::fs::write(dir.join("modules.dep"), dep).unwrap();
        std::fs::write(dir.join("modules.builtin"), "k/ext4.ko\n").unwrap();
        for name in ["virtio-blk", "virtio"] {
            std::fs::write(dir.join(format!("k/{name}.ko")), name).unwrap();
        }
        let modules = Modules::open(&dir).unwrap();
        let files = modules.closure(&["ext4", "virtio_blk"]).unwrap();
        let file = |name: &str, data: &[u8]| (name.to_owned(), data.to_vec());
        assert_eq!(files, [file("virtio.ko", b"virtio"), file("virtio_blk.ko", b"virtio-blk")]);
        assert_eq!(modules.present(&["xfs", "ext4", "virtio"]), ["ext4", "virtio"]);
        let error = modules.closure(&["virtio", "kvm-amd"]).unwrap_err().to_string();
        assert!(error.contains("kvm-amd"), "{error}");
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
