//! A guest that is husk's own: it runs commands.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{ConfigError, VmConfig};

/// The longest host name (`HOST_NAME_MAX`).
const HOST_NAME_MAX: usize = 64;

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
}

/// Where the root file system is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RootConfig {
    /// The id of the disk that it is on, whole and without partitions.
    pub disk: String,
    /// Whether the guest writes to it; otherwise what it writes is kept in memory, and lost.
    #[serde(default, skip_serializing_if = "super::is_false")]
    pub writable: bool,
}

fn default_host_name() -> String {
    "husk".to_owned()
}

impl Default for GuestConfig {
    fn default() -> Self {
        Self { root: None, modules: None, host_name: default_host_name() }
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
        let name = &guest.host_name;
        let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.');
        if name.is_empty() || name.len() > HOST_NAME_MAX || !name.bytes().all(allowed) {
            return Err(ConfigError::HostName(name.clone()));
        }
        let Some(root) = &guest.root else { return Ok(()) };
        match self.disks.iter().find(|disk| disk.id == root.disk) {
            None => Err(ConfigError::NoRootDisk(root.disk.clone())),
            Some(disk) if disk.readonly && root.writable => {
                Err(ConfigError::RootReadOnly(root.disk.clone()))
            }
            Some(_) => Ok(()),
        }
    }
}
