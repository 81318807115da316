//! Files that a VM names and that are not there, or not for us: told at once, and not after the kernel has been
//! unpacked, which can take a second.
//!
//! Who may have a file is asked of the host, and costs a system call for each; opening it, and what is in it, is left
//! to those who know it, whose words are an error's also here.

use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use husk_devices::fs::{Share, ShareOptions};
use husk_devices::virtio::pmem::PmemFile;

use super::VmError;
use super::disks;
use crate::boot::Initrd;
use crate::config::VmConfig;

/// Looks for all of them but the kernel.
///
/// # Errors
/// Those of whoever opens the first that cannot be had.
pub(super) fn check(config: &VmConfig) -> Result<(), VmError> {
    if let Some(path) = config.initrd.as_deref().filter(|path| !may_be_had(path, false)) {
        Initrd::open(path)?;
    }
    for disk in &config.disks {
        if !may_be_had(&disk.path, !disk.readonly && !disk.overlay) {
            disks::open(disk, config.cpus)?;
        }
    }
    for pmem in &config.pmem {
        if !may_be_had(&pmem.path, !pmem.readonly) {
            PmemFile::open(&pmem.path, pmem.readonly)?;
        }
    }
    for volume in &config.volumes {
        if !may_be_had(&volume.path, false) {
            Share::open(&volume.path, ShareOptions::default())
                .map_err(|source| VmError::Volume { tag: volume.tag.clone(), source })?;
        }
    }
    Ok(())
}

/// Whether the host lets this process read what is at `path`, and write to it.
fn may_be_had(path: &Path, write: bool) -> bool {
    let Ok(path) = CString::new(path.as_os_str().as_bytes()) else { return false };
    let mode = libc::R_OK | if write { libc::W_OK } else { 0 };
    // SAFETY: a string that outlives the call. By the effective user, as opening it goes by.
    unsafe { libc::faccessat(libc::AT_FDCWD, path.as_ptr(), mode, libc::AT_EACCESS) == 0 }
}
