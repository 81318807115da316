//! Directories of the host's that the guest shares (virtio-fs).

use std::collections::HashSet;
use std::path::PathBuf;

use husk_devices::virtio::fs::TAG_MAX;
use serde::{Deserialize, Serialize};

use super::{ConfigError, is_default, is_false};

pub use husk_devices::fs::Cache as VolumeCache;

/// A shared directory; see `docs/devices/fs.md`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VolumeConfig {
    /// Names the device in messages. Unique.
    #[serde(default)]
    pub id: String,
    /// What the guest mounts it by: `mount -t virtiofs TAG /mnt`. Unique among the volumes.
    pub tag: String,
    /// The directory.
    pub path: PathBuf,
    /// Whether nothing in it can be changed.
    #[serde(default, skip_serializing_if = "is_false")]
    pub readonly: bool,
    /// What the guest may keep of what it has seen.
    #[serde(default, skip_serializing_if = "is_default")]
    pub cache: VolumeCache,
}

/// Checks the tags of all volumes.
pub(super) fn validate(volumes: &[VolumeConfig]) -> Result<(), ConfigError> {
    let mut seen = HashSet::new();
    for VolumeConfig { tag, .. } in volumes {
        let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
        if !(1..=TAG_MAX).contains(&tag.len()) || !tag.bytes().all(allowed) {
            return Err(ConfigError::VolumeTag(tag.clone()));
        }
        if !seen.insert(tag) {
            return Err(ConfigError::DuplicateTag(tag.clone()));
        }
    }
    Ok(())
}
