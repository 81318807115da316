//! Where a guest that runs commands keeps what it writes above what it only reads.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::limits::{OVERLAY_MAX, OVERLAY_MIN};
use super::{ConfigError, GuestConfig, Size, VmConfig};

/// Where what is written above a root or a volume that is only read is kept, for as long as the VM is there.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OverlayConfig {
    /// In the guest's memory, half of which it may fill.
    #[default]
    Memory,
    /// On a disk of its own: a file of the host's without a name.
    Disk(OverlayDisk),
}

/// The disk for what is written.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OverlayDisk {
    /// The most that it takes; by default half of what is free in its directory when the VM is made, up to 64 GiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<Size>,
    /// The directory of its file; by default `$TMPDIR`, `/var/tmp` or the user's cache, whichever is the first
    /// that can take it and is not in memory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dir: Option<PathBuf>,
}

impl GuestConfig {
    /// The disk of its overlays, if they are on one.
    pub fn overlay_disk(&self) -> Option<&OverlayDisk> {
        match &self.overlay {
            OverlayConfig::Memory => None,
            OverlayConfig::Disk(disk) => Some(disk),
        }
    }
}

impl VmConfig {
    /// The disk of its guest's overlays, if they are on one.
    pub(crate) fn overlay_disk(&self) -> Option<&OverlayDisk> {
        self.guest.as_ref().and_then(GuestConfig::overlay_disk)
    }

    pub(super) fn validate_overlay(&self, guest: &GuestConfig) -> Result<(), ConfigError> {
        let Some(disk) = guest.overlay_disk() else { return Ok(()) };
        let is_cow = guest.root.as_ref().is_some_and(|root| !root.writable && !root.readonly);
        if !is_cow && !self.volumes.iter().any(|volume| volume.overlay) {
            return Err(ConfigError::NoOverlay);
        }
        let (least, most) = (OVERLAY_MIN, OVERLAY_MAX);
        match disk.size {
            Some(size) if !(least..=most).contains(&size) => {
                Err(ConfigError::OverlaySize { size, least, most })
            }
            _ => Ok(()),
        }
    }
}
