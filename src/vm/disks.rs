//! Disks: opened as the configuration has them, and resized while the VM runs.

use std::num::NonZeroU64;
use std::sync::{Arc, Weak};

use husk_devices::block::{Disk, DiskError, DiskOptions, Scratch};
use husk_devices::virtio::blk::{Blk, BlkOptions};
use husk_devices::virtio::device::SizeError;
use husk_devices::virtio::mmio::MmioTransport;

use super::error::VmError;
use crate::config::{DiskConfig, OVERLAY, OVERLAY_MIN, OverlayDisk, VmConfig};
use crate::guest::ext4;
use crate::size::Size;

/// Queues of a disk, unless the user says otherwise: one for each vCPU, but not more than this.
const QUEUES: u32 = 4;
/// Bytes of the disk for what a guest writes above its root, unless the user says otherwise or there is less.
const OVERLAY_SIZE: u64 = 64 << 30;

/// A disk that keeps its size.
#[derive(Debug, thiserror::Error)]
pub enum ResizeDiskError {
    /// No such disk.
    #[error("the VM has no disk `{id}`; its disks are {known}")]
    Unknown {
        /// What was asked for.
        id: String,
        /// What there is.
        known: String,
    },
    /// The VM has ended.
    #[error(transparent)]
    Ended(#[from] super::Ended),
    /// It cannot be done.
    #[error("disk {id}: {source}")]
    Cannot {
        /// The disk.
        id: String,
        /// Why not.
        r#source: SizeError,
    },
}

/// Opens the disk for a VM of so many vCPUs.
///
/// # Errors
/// Why it cannot be opened, by its path or id.
pub(super) fn open(disk: &DiskConfig, cpus: u32) -> Result<Blk, VmError> {
    let options = DiskOptions {
        read_only: disk.readonly || disk.overlay,
        cache: disk.cache,
        format: disk.format,
        backing: disk.backing,
    };
    let mut backend = Disk::open(&disk.path, options)?;
    if disk.overlay {
        backend = backend.with_overlay(disk.overlay_dir.as_deref())?;
    }
    let queues = disk.queues.unwrap_or(usual_queues(cpus));
    let options = BlkOptions {
        engine: disk.engine,
        queues,
        bytes_per_second: disk.bytes_per_second.and_then(|size| NonZeroU64::new(size.0)),
        requests_per_second: disk.requests_per_second.and_then(NonZeroU64::new),
        ..BlkOptions::default()
    };
    Blk::new(&disk.id, backend, options)
        .map_err(|source| VmError::DiskEngine { id: disk.id.clone(), source })
}

fn usual_queues(cpus: u32) -> u16 {
    // At most 4, so the cast keeps the number.
    cpus.min(QUEUES) as u16
}

/// Makes the disk, empty and with a file system, for what a guest of so many vCPUs writes above what it only
/// reads.
///
/// # Errors
/// When its file cannot be made.
pub(super) fn open_overlay(disk: &OverlayDisk, cpus: u32) -> Result<Blk, VmError> {
    // A guest does not fill all of the host's disk unless somebody said that it may.
    let half = OVERLAY_MIN.0 * 2;
    let scratch = Scratch::create(disk.dir.as_deref(), if disk.size.is_some() { 0 } else { half })?;
    let name = scratch.directory.display().to_string();
    let failed = |source| VmError::Host { what: format!("overlay's disk in {name}"), source };
    let free = scratch.free().map_err(failed)?;
    let size = match disk.size {
        Some(Size(size)) => size,
        None => (free / 2).clamp(OVERLAY_MIN.0, OVERLAY_SIZE),
    };
    if free < size {
        let (free, size) = (free >> 20, size >> 20);
        log::warn!(
            "{OVERLAY}: {name} has {free} MiB left, and what is written may take {size} MiB"
        );
    }
    let dir = scratch.directory.clone();
    ext4::make(&scratch.file, size)
        .map_err(|source| VmError::Disk(DiskError::Scratch { dir, source }))?;
    let backend = Disk::scratch(scratch)?;
    let options = BlkOptions { queues: usual_queues(cpus), ..BlkOptions::default() };
    Blk::new(OVERLAY, backend, options)
        .map_err(|source| VmError::DiskEngine { id: OVERLAY.to_owned(), source })
}

/// The disks of a running VM, which they do not outlive.
#[derive(Default)]
pub(super) struct Disks {
    ids: Vec<String>,
    transports: Vec<Weak<MmioTransport>>,
}

impl Disks {
    /// Those of `config` among all of a machine's.
    pub fn of<'a>(
        config: &VmConfig,
        all: impl Iterator<Item = &'a Arc<MmioTransport>> + Clone,
    ) -> Self {
        let mut disks = Self::default();
        for disk in &config.disks {
            if let Some(transport) = all.clone().find(|transport| transport.name() == disk.id) {
                disks.ids.push(disk.id.clone());
                disks.transports.push(Arc::downgrade(transport));
            }
        }
        disks
    }

    /// Their ids.
    pub fn ids(&self) -> &[String] {
        &self.ids
    }

    /// See [`super::RunningVm::resize_disk`].
    pub fn resize(&self, id: &str, bytes: Option<u64>) -> Result<u64, ResizeDiskError> {
        let mut disks = self.ids.iter().zip(&self.transports);
        let Some((_, transport)) = disks.find(|(known, _)| *known == id) else {
            let known = self.ids.join(", ");
            let known = if known.is_empty() { "none".to_owned() } else { known };
            return Err(ResizeDiskError::Unknown { id: id.to_owned(), known });
        };
        let transport = transport.upgrade().ok_or(super::Ended)?;
        let cannot = |source| ResizeDiskError::Cannot { id: id.to_owned(), source };
        transport.resize(bytes).map_err(cannot)
    }
}

#[cfg(test)]
mod tests {
    use husk_devices::virtio::device::VirtioDevice;

    use super::*;

    #[test]
    fn a_disk_has_a_queue_for_each_vcpu_up_to_four_unless_the_user_says_otherwise() {
        let image = tempfile::NamedTempFile::new().unwrap();
        image.as_file().set_len(4096).unwrap();
        let mut disk: DiskConfig =
            serde_json::from_value(serde_json::json!({ "path": image.path() })).unwrap();
        let queues = |disk: &DiskConfig, cpus| open(disk, cpus).unwrap().queue_sizes().len();
        for (cpus, wanted) in [(1, 1), (2, 2), (3, 3), (4, 4), (5, 4), (64, 4)] {
            assert_eq!(queues(&disk, cpus), wanted, "{cpus} vCPUs");
        }
        disk.queues = Some(7);
        assert_eq!((queues(&disk, 1), queues(&disk, 64)), (7, 7));
    }
}
