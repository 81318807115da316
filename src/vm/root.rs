//! Whether the kernel of a VM has anything to run: an initial RAM file system, or a root that it can reach. What
//! is certain to end in a panic is refused before it is started; what may do is left to it.

use super::{Vm, VmError, firmware};
use crate::boot::drivers::{Driver, ND_PMEM, VIRTIO_BLK, VIRTIO_MMIO, VIRTIO_PMEM};
use crate::boot::{Cache, Cmdline, Kernel};
use crate::config::VmConfig;
use crate::guest::modules::{Modules, directory_of};

/// Parameters that name a root, or an initial RAM file system, without `root=`
/// (`Documentation/admin-guide/kernel-parameters.txt`).
const OTHERS: [&str; 3] = ["nfsroot=", "cifsroot=", "initrdmem="];

/// Disks by the beginning of their names in `root=`, and the drivers that they take.
const DISKS: [(&str, &[Driver]); 2] =
    [("/dev/vd", &[VIRTIO_MMIO, VIRTIO_BLK]), ("/dev/pmem", &[VIRTIO_MMIO, VIRTIO_PMEM, ND_PMEM])];

/// Refuses a `kernel` that must panic with this command line, for want of a root.
///
/// # Errors
/// What it lacks, and where that comes from.
pub(super) fn check(kernel: &Kernel, config: &VmConfig, line: &Cmdline) -> Result<(), VmError> {
    match lacking(config, line) {
        Some(lacks) if kernel.brings_nothing() => Err(lacks),
        _ => Ok(()),
    }
}

impl Vm {
    /// Whether [`Vm::new`] would refuse `config` because its kernel has nothing to run
    /// ([`VmError::NothingToBoot`]): such a VM can still be made one that runs commands. False also where that
    /// cannot be told; who starts it is told why.
    pub fn has_nothing_to_run(config: &VmConfig) -> bool {
        let lacks = firmware::cmdline(config).ok().and_then(|line| lacking(config, &line));
        let opened = || Kernel::open(&config.kernel, &Cache::user());
        matches!(lacks, Some(VmError::NothingToBoot { .. }))
            && opened().is_ok_and(|kernel| kernel.brings_nothing())
    }
}

/// What a kernel that brings nothing itself lacks with this command line.
fn lacking(config: &VmConfig, line: &Cmdline) -> Option<VmError> {
    if config.initrd.is_some() || config.guest.is_some() || OTHERS.iter().any(|name| line.has(name))
    {
        return None;
    }
    let kernel = || config.kernel.clone();
    match line.value("root").filter(|root| !root.is_empty()) {
        None => Some(VmError::NothingToBoot { kernel: kernel() }),
        Some(root) => module_of(config, root).map(|Driver { module, option }| {
            VmError::RootIsModule { kernel: kernel(), root: root.to_owned(), module, option }
        }),
    }
}

/// The driver of the root `root` that the kernel has, as far as its modules are there to tell, only as a module,
/// which nothing loads.
fn module_of(config: &VmConfig, root: &str) -> Option<Driver> {
    let (_, drivers) = DISKS.iter().find(|(prefix, _)| root.starts_with(prefix))?;
    let modules = Modules::open(&directory_of(&config.kernel)?).ok()?;
    drivers.iter().find(|driver| modules.index.is_loadable(driver.module)).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_whose_driver_is_a_module_is_no_root_without_an_initrd() {
        let dir = tempfile::tempdir().unwrap();
        let modules = dir.path().join("lib/modules/1.2");
        std::fs::create_dir_all(&modules).unwrap();
        std::fs::write(modules.join("modules.dep"), "k/virtio_blk.ko:\nk/virtio_mmio.ko:\n")
            .unwrap();
        let config = VmConfig::new(dir.path().join("vmlinux-1.2"));
        let module = |root| module_of(&config, root).map(|driver| driver.module);
        assert_eq!(module("/dev/vda1"), Some("virtio_mmio"));
        std::fs::write(modules.join("modules.builtin"), "k/virtio_mmio.ko\n").unwrap();
        assert_eq!(module("/dev/vda1"), Some("virtio_blk"));
        // Not a module, and perhaps built in under another name; and what is no disk.
        assert_eq!((module("/dev/pmem0"), module("/dev/nfs")), (None, None));
        // Nobody knows what it has.
        assert_eq!(module_of(&VmConfig::new(dir.path().join("vmlinux-3")), "/dev/vda"), None);
    }
}
