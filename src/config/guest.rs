//! A guest that is husk's own: it runs commands.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{ConfigError, OverlayConfig, VmConfig};

/// The longest host name (`HOST_NAME_MAX`).
const HOST_NAME_MAX: usize = 64;
/// The most directories in memory: all of them fit into one message for the agent.
const TMPFS_MAX: usize = 32;

/// A guest that runs husk's agent as its first process, and through it commands. husk makes its
/// initramfs, with an initrd of the user's own in it if there is one; a reboot of it ends the VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GuestConfig {
    /// The root file system; without one it is the initramfs, with what the initrd brings.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub root: Option<RootConfig>,
    /// The directory of the kernel's modules (`…/lib/modules/RELEASE`); without it they are looked for
    /// beside the kernel.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub modules: Option<PathBuf>,
    /// What the guest is called.
    #[serde(default = "default_host_name")]
    pub host_name: String,
    /// Directories of the guest's that are fresh ones in its memory, and made if need be.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tmpfs: Vec<String>,
    /// Where what is written above the root and volumes that are only read is kept.
    #[serde(default, skip_serializing_if = "super::is_default")]
    pub overlay: OverlayConfig,
}

/// Where the root file system is: on a disk, or a volume. Unless it says otherwise the guest only reads it, and
/// what it writes is kept above it ([`GuestConfig::overlay`]), and lost.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RootConfig {
    /// The id of the disk that it is on, whole and without partitions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk: Option<String>,
    /// The id of the volume that it is: a directory of the host's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub volume: Option<String>,
    /// Whether the guest writes to it.
    #[serde(default, skip_serializing_if = "super::is_false")]
    pub writable: bool,
    /// Whether the guest's commands find it read-only.
    #[serde(default, skip_serializing_if = "super::is_false")]
    pub readonly: bool,
}

impl RootConfig {
    /// On the disk of that id.
    pub fn on_disk(id: impl Into<String>) -> RootConfig {
        RootConfig { disk: Some(id.into()), ..RootConfig::default() }
    }

    /// The volume of that id.
    pub fn on_volume(id: impl Into<String>) -> RootConfig {
        RootConfig { volume: Some(id.into()), ..RootConfig::default() }
    }
}

fn default_host_name() -> String {
    "husk".to_owned()
}

impl Default for GuestConfig {
    fn default() -> Self {
        Self {
            root: None,
            modules: None,
            host_name: default_host_name(),
            tmpfs: Vec::new(),
            overlay: OverlayConfig::default(),
        }
    }
}

impl VmConfig {
    pub(super) fn validate_guest(&self) -> Result<(), ConfigError> {
        let Some(guest) = &self.guest else {
            return match self.nets.iter().find(|net| net.address.is_some()) {
                Some(net) => Err(ConfigError::NetOption {
                    id: net.id.clone(),
                    option: "address",
                    why: "only a guest that runs a command has somebody who sets it",
                }),
                None => Ok(()),
            };
        };
        if self.agent {
            return Err(ConfigError::TwoAgents);
        }
        let name = &guest.host_name;
        let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.');
        if name.is_empty() || name.len() > HOST_NAME_MAX || !name.bytes().all(allowed) {
            return Err(ConfigError::HostName(name.clone()));
        }
        if guest.tmpfs.len() > TMPFS_MAX {
            return Err(ConfigError::TooManyTmpfs(guest.tmpfs.len()));
        }
        for mount in &guest.tmpfs {
            let refused = |why| ConfigError::Tmpfs { mount: mount.clone(), why };
            super::check_mount(mount).map_err(refused)?;
        }
        if let Some(root) = &guest.root {
            self.validate_root(root)?;
        }
        self.validate_overlay(guest)
    }

    fn validate_root(&self, root: &RootConfig) -> Result<(), ConfigError> {
        if root.readonly && root.writable {
            return Err(ConfigError::RootAccess);
        }
        let (kind, id, found) = match (&root.disk, &root.volume) {
            (Some(id), None) => {
                let disk = self.disks.iter().find(|disk| disk.id == *id);
                ("disk", id, disk.map(|disk| disk.readonly))
            }
            (None, Some(id)) => {
                let volume = self.volumes.iter().find(|volume| volume.id == *id);
                if volume.is_some_and(|volume| volume.mount.is_some() || volume.overlay) {
                    return Err(ConfigError::RootMounted(id.clone()));
                }
                ("volume", id, volume.map(|volume| volume.readonly))
            }
            _ => return Err(ConfigError::RootPlace),
        };
        match found {
            None => Err(ConfigError::NoRoot { kind, id: id.clone() }),
            Some(true) if root.writable => Err(ConfigError::RootReadOnly { kind, id: id.clone() }),
            Some(_) => Ok(()),
        }
    }
}
