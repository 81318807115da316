//! Which kernel modules to put into an initramfs, and in what order to load them. Reads the
//! `modules.dep` and `modules.builtin` that depmod makes; what is built in needs no file.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::host;

/// The module index of one kernel.
pub struct Modules {
    dir: PathBuf,
    index: Index,
}

/// `modules.dep` and `modules.builtin`, as text already read.
#[derive(Default)]
struct Index {
    /// Module name to its path and its dependencies' paths, all relative to the module directory.
    modules: HashMap<String, (String, Vec<String>)>,
    builtin: HashSet<String>,
}

impl Modules {
    /// Reads the index in `dir` (`…/lib/modules/RELEASE`).
    pub fn open(dir: &Path) -> Result<Self> {
        let read = |name: &str| {
            let path = dir.join(name);
            std::fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))
        };
        let index = Index::parse(&read("modules.dep")?, &read("modules.builtin")?);
        Ok(Self { dir: dir.to_owned(), index })
    }

    /// The files for `wanted` and everything they need, in an order in which insmod accepts them.
    pub fn closure(&self, wanted: &[&str]) -> Result<Vec<(String, Vec<u8>)>> {
        let mut files = Vec::new();
        for path in self.index.closure(wanted)? {
            files.push((file_name(&path), self.read(&path)?));
        }
        Ok(files)
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

impl Index {
    fn parse(dep: &str, builtin: &str) -> Self {
        let modules = dep
            .lines()
            .filter_map(|line| line.split_once(':'))
            .map(|(path, deps)| {
                let deps = deps.split_whitespace().map(str::to_owned).collect();
                (module_name(path), (path.to_owned(), deps))
            })
            .collect();
        Self { modules, builtin: builtin.lines().map(module_name).collect() }
    }

    fn has(&self, name: &str) -> bool {
        let name = module_name(name);
        self.modules.contains_key(&name) || self.builtin.contains(&name)
    }

    fn closure(&self, wanted: &[&str]) -> Result<Vec<String>> {
        let mut order = Vec::new();
        let mut seen = HashSet::new();
        for name in wanted {
            self.visit(&module_name(name), &mut seen, &mut order)?;
        }
        Ok(order)
    }

    fn visit(&self, name: &str, seen: &mut HashSet<String>, order: &mut Vec<String>) -> Result<()> {
        if self.builtin.contains(name) || !seen.insert(name.to_owned()) {
            return Ok(());
        }
        let Some((path, deps)) = self.modules.get(name) else {
            bail!("this kernel has no module {name}, neither in modules.dep nor built in");
        };
        for dep in deps {
            self.visit(&module_name(dep), seen, order)?;
        }
        order.push(path.clone());
        Ok(())
    }
}

/// `kernel/drivers/virtio/virtio-mmio.ko.xz` and `virtio_mmio` are the same module.
fn module_name(path: &str) -> String {
    let file = path.rsplit('/').next().unwrap_or(path);
    file.split('.').next().unwrap_or(file).replace('-', "_")
}

/// What the module is called in an initramfs, where it is no longer compressed.
fn file_name(path: &str) -> String {
    format!("{}.ko", module_name(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEP: &str = "kernel/a/virtio-blk.ko: kernel/v/virtio_ring.ko kernel/v/virtio.ko\n\
                       kernel/v/virtio_ring.ko: kernel/v/virtio.ko\n\
                       kernel/v/virtio.ko:\n\
                       kernel/n/net.ko.xz: kernel/v/virtio.ko\n";

    fn index() -> Index {
        Index::parse(DEP, "kernel/fs/ext4/ext4.ko\n")
    }

    #[test]
    fn dependencies_come_first_and_once() {
        let order = index().closure(&["virtio_blk", "net", "virtio"]).unwrap();
        assert_eq!(
            order,
            [
                "kernel/v/virtio.ko",
                "kernel/v/virtio_ring.ko",
                "kernel/a/virtio-blk.ko",
                "kernel/n/net.ko.xz"
            ]
        );
    }

    #[test]
    fn what_is_built_in_needs_no_file() {
        assert!(index().closure(&["ext4"]).unwrap().is_empty());
        assert!(index().has("ext4"));
    }

    #[test]
    fn a_missing_module_is_named() {
        let error = index().closure(&["kvm-amd"]).unwrap_err().to_string();
        assert!(error.contains("kvm_amd"), "{error}");
    }

    #[test]
    fn a_compressed_module_loses_its_ending() {
        assert_eq!(file_name("kernel/n/net-failover.ko.xz"), "net_failover.ko");
    }
}
