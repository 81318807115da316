//! Directories of the host's that the guest shares (virtio-fs).

use std::collections::HashSet;
use std::path::PathBuf;

use husk_devices::virtio::fs::TAG_MAX;
use serde::{Deserialize, Serialize};

use super::{ConfigError, check_mount, is_default, is_false};

pub use husk_devices::fs::Cache as VolumeCache;

/// A shared directory; see `docs/devices/fs.md`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VolumeConfig {
    /// Names the device in messages. Unique.
    #[serde(default)]
    pub id: String,
    /// What the guest mounts it by: `mount -t virtiofs TAG /mnt`. Unique among the volumes; one with a
    /// `mount` and no tag is given one.
    #[serde(default)]
    pub tag: String,
    /// Where a guest that runs commands finds it mounted: a directory of the guest's, which is made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mount: Option<String>,
    /// The directory.
    pub path: PathBuf,
    /// Whether nothing in it can be changed.
    #[serde(default, skip_serializing_if = "is_false")]
    pub readonly: bool,
    /// Whether what the guest writes is kept as [`super::GuestConfig::overlay`] says, and lost; the directory is
    /// only read. For a volume that is mounted for it.
    #[serde(default, skip_serializing_if = "is_false")]
    pub overlay: bool,
    /// What the guest may keep of what it has seen.
    #[serde(default, skip_serializing_if = "is_default")]
    pub cache: VolumeCache,
}

/// Gives every volume without an id one, and every one that the guest finds mounted a tag.
pub(super) fn name(volumes: &mut [VolumeConfig]) {
    for (n, volume) in volumes.iter_mut().enumerate() {
        if volume.id.is_empty() {
            volume.id = format!("fs{n}");
        }
        if volume.tag.is_empty() && volume.mount.is_some() {
            volume.tag = format!("vol{n}");
        }
    }
}

/// Checks the tags of all volumes, and where they are mounted. With `by_agent` the guest has somebody who
/// mounts them.
pub(super) fn validate(volumes: &[VolumeConfig], by_agent: bool) -> Result<(), ConfigError> {
    let mut seen = HashSet::new();
    for VolumeConfig { id, tag, mount, readonly, overlay, .. } in volumes {
        if let Some(mount) = mount {
            let only = "only a guest that runs a command finds it there; give a tag instead";
            let fine = if by_agent { check_mount(mount) } else { Err(only) };
            fine.map_err(|why| ConfigError::VolumeMount { mount: mount.clone(), why })?;
        }
        let contradiction = match () {
            () if *overlay && *readonly => Some(
                "an overlay is there to be written, and the volume is read-only; leave one of them out",
            ),
            () if *overlay && mount.is_none() => Some(
                "an overlay is made where it is mounted; give it the directory of a guest that runs a \
                 command instead of a tag",
            ),
            () => None,
        };
        if let Some(why) = contradiction {
            return Err(ConfigError::VolumeOptions { id: id.clone(), why });
        }
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
