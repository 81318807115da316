//! What a VM is made of, as plain data.
//!
//! [`VmConfig`] is what `husk run` makes from its options, what `--config` reads and
//! `--print-config` writes, and what an embedder fills in. [`VmConfig::validate`] finds what can be
//! found without opening anything; the rest is found by [`crate::Vm::new`].

mod address;
mod error;
mod guest;
mod json;
mod limits;
mod memory;
mod mount;
mod nearest;
mod net;
mod overlay;
mod quoted;
mod validate;
mod volume;

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use husk_devices::virtio::vsock::GUEST_CIDS;
use serde::{Deserialize, Serialize};

pub use crate::size::{Size, SizeError};
pub use address::{AddressError, InterfaceAddress};
pub use error::ConfigError;
pub use guest::{GuestConfig, RootConfig};
pub use husk_devices::block::{Cache as DiskCache, DiskFormat, EngineChoice as DiskEngine};
pub use json::{ConfigFileError, FILE_MAX, ToJsonError};
pub use limits::{CPUS_MAX, VIRTIO_DEVICES_MAX};
pub(crate) use limits::{OVERLAY, OVERLAY_MAX, OVERLAY_MIN};
pub use memory::MemoryConfig;
pub use mount::{OWN_MOUNTS, check_mount};
pub use nearest::nearest;
pub(crate) use net::parse_mac;
pub use net::{NetConfig, NetHost, Publish, PublishError, RateLimiter, TokenBucket, Vhost};
pub use overlay::{OverlayConfig, OverlayDisk};
pub use quoted::quoted;
pub use volume::{VolumeCache, VolumeConfig};

/// A virtual machine.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VmConfig {
    /// The kernel: a bzImage (`vmlinuz`) or an ELF `vmlinux`. JSON need not name one, so that
    /// whoever reads it can; an empty path is none, and no VM runs without.
    #[serde(default)]
    pub kernel: PathBuf,
    /// The initial RAM file system.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub initrd: Option<PathBuf>,
    /// Replaces the command line husk makes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cmdline: Option<String>,
    /// Added to the end of the command line.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub append: String,
    /// Number of vCPUs, 1 to [`CPUS_MAX`].
    #[serde(default = "default_cpus")]
    pub cpus: u32,
    /// Guest memory.
    #[serde(default)]
    pub memory: MemoryConfig,
    /// Disks, in the order in which the guest finds them (`/dev/vda`, `/dev/vdb`…).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub disks: Vec<DiskConfig>,
    /// Files the guest has as persistent memory, in order (`/dev/pmem0`, `/dev/pmem1`…).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pmem: Vec<PmemConfig>,
    /// Directories of the host's that the guest mounts by their tags (virtio-fs).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub volumes: Vec<VolumeConfig>,
    /// Network interfaces, in the order in which the guest finds them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub nets: Vec<NetConfig>,
    /// Whether the guest has a source of entropy (virtio-rng).
    #[serde(default = "yes")]
    pub rng: bool,
    /// A memory balloon (virtio-balloon).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub balloon: Option<BalloonConfig>,
    /// Sockets between guest and host (virtio-vsock).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vsock: Option<VsockConfig>,
    /// A guest that runs commands.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guest: Option<GuestConfig>,
    /// Whether the guest has an init of its own that starts husk's agent ([`crate::agent_program`]), so that
    /// commands can be run in it and files be copied. It has the vsock device for that.
    #[serde(default, skip_serializing_if = "is_false")]
    pub agent: bool,
    /// What the console is connected to.
    #[serde(default)]
    pub console: ConsoleConfig,
    /// Which device the guest's console is.
    #[serde(default, skip_serializing_if = "is_default")]
    pub console_device: ConsoleDevice,
    /// Named byte ports (virtio-console), `/dev/virtio-ports/NAME` in the guest.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<PortConfig>,
    /// What a reboot of the guest does.
    #[serde(default)]
    pub on_reboot: OnReboot,
    /// Describe the machine by ACPI; otherwise by an MP table and `virtio_mmio.device=` parameters.
    #[serde(default = "yes")]
    pub acpi: bool,
    /// How the kernel is entered.
    #[serde(default)]
    pub boot_protocol: BootProtocol,
    /// Map the kernel copy-on-write from husk's cache instead of reading it into huge pages: VMs of
    /// one kernel then share its pages, and each starts more slowly where page faults are dear.
    #[serde(default, skip_serializing_if = "is_false")]
    pub share_kernel: bool,
}

fn default_cpus() -> u32 {
    1
}

fn yes() -> bool {
    true
}

impl VmConfig {
    /// A machine with `kernel`, one vCPU, 512 MiB, no disk and no network.
    pub fn new(kernel: impl Into<PathBuf>) -> Self {
        Self {
            kernel: kernel.into(),
            initrd: None,
            cmdline: None,
            append: String::new(),
            cpus: default_cpus(),
            memory: MemoryConfig::default(),
            disks: Vec::new(),
            pmem: Vec::new(),
            volumes: Vec::new(),
            nets: Vec::new(),
            rng: true,
            balloon: None,
            vsock: None,
            guest: None,
            agent: false,
            console: ConsoleConfig::default(),
            console_device: ConsoleDevice::default(),
            ports: Vec::new(),
            on_reboot: OnReboot::default(),
            acpi: true,
            boot_protocol: BootProtocol::default(),
            share_kernel: false,
        }
    }
}

impl VmConfig {
    /// A file for what the guest writes (its console, a port) that is one of `others`, under whatever name:
    /// it would be emptied. Gives what it is for, its path, and the other's.
    pub fn written_over<'a>(
        &'a self,
        others: impl IntoIterator<Item = &'a Path>,
    ) -> Option<(&'static str, &'a Path, &'a Path)> {
        let identity = |path: &Path| fs::metadata(path).ok().map(|m| (m.dev(), m.ino()));
        let others: Vec<_> =
            others.into_iter().filter_map(|path| Some((identity(path)?, path))).collect();
        let console = match &self.console {
            ConsoleConfig::File(console) => Some(("console", console.as_path())),
            _ => None,
        };
        let ports = self.ports.iter().filter_map(|port| Some(("port", port.file.as_deref()?)));
        ports.chain(console).find_map(|(what, written)| {
            let wanted = identity(written)?;
            let (_, other) = others.iter().find(|(found, _)| *found == wanted)?;
            Some((what, written, *other))
        })
    }

    /// Every path in it, with what it is the path of.
    fn paths(&self) -> Vec<(String, &Path)> {
        let mut paths = vec![("kernel".to_owned(), self.kernel.as_path())];
        paths.extend(self.initrd.iter().map(|path| ("initrd".to_owned(), path.as_path())));
        paths.extend(self.disks.iter().map(|d| (format!("disk {}", d.id), d.path.as_path())));
        for disk in &self.disks {
            let dir = disk.overlay_dir.as_deref();
            paths.extend(dir.map(|dir| (format!("overlay_dir of disk {}", disk.id), dir)));
        }
        if let ConsoleConfig::File(path) = &self.console {
            paths.push(("console file".to_owned(), path));
        }
        paths.extend(self.pmem.iter().map(|p| (format!("pmem {}", p.id), p.path.as_path())));
        paths.extend(self.volumes.iter().map(|v| (format!("volume {}", v.tag), v.path.as_path())));
        for port in &self.ports {
            let path = port.socket.iter().chain(&port.file);
            paths.extend(path.map(|path| (format!("port {}", port.name), path.as_path())));
        }
        let overlay = self.overlay_disk().and_then(|disk| disk.dir.as_deref());
        paths.extend(overlay.map(|dir| ("dir of the overlay's disk".to_owned(), dir)));
        let modules = self.guest.iter().filter_map(|guest| guest.modules.as_deref());
        paths.extend(modules.map(|path| ("kernel modules".to_owned(), path)));
        paths.extend(self.vsock.iter().map(|v| ("vsock socket".to_owned(), v.socket.as_path())));
        paths
    }
}

fn is_false(value: &bool) -> bool {
    !value
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// A disk.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiskConfig {
    /// Names the disk in messages and, as its serial number, in the guest. Unique.
    #[serde(default)]
    pub id: String,
    /// An image or a block device.
    pub path: PathBuf,
    /// What the file is. By default a file that is only read is what it looks like, and one that is
    /// written is raw.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub format: Option<DiskFormat>,
    /// Whether a qcow2 image may name another file that it is based on: whoever made the image says
    /// which of the files of this host the guest reads.
    #[serde(default, skip_serializing_if = "is_false")]
    pub backing: bool,
    /// Whether the guest may only read it.
    #[serde(default, skip_serializing_if = "is_false")]
    pub readonly: bool,
    /// Whether what the guest writes goes to a layer above the image, which is only read, and is thrown
    /// away at the end of the VM.
    #[serde(default, skip_serializing_if = "is_false")]
    pub overlay: bool,
    /// The directory for that layer's file; by default `$TMPDIR`, `/var/tmp` or the user's cache,
    /// whichever is the first that can take it and is not in memory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub overlay_dir: Option<PathBuf>,
    /// What a write is worth once it was answered.
    #[serde(default, skip_serializing_if = "is_default")]
    pub cache: DiskCache,
    /// What carries its requests out.
    #[serde(default, skip_serializing_if = "is_default")]
    pub engine: DiskEngine,
    /// Number of queues, 1 to 16; by default one for each vCPU, but not more than 4.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queues: Option<u16>,
    /// The most bytes read and written a second, on average.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes_per_second: Option<Size>,
    /// The most requests a second, on average.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub requests_per_second: Option<u64>,
}

/// A file as persistent memory (virtio-pmem); see `docs/devices/pmem.md`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PmemConfig {
    /// Names the device in messages. Unique.
    #[serde(default)]
    pub id: String,
    /// The file, whose length is a multiple of 2 MiB.
    pub path: PathBuf,
    /// Whether the guest may only read it. VMs that only read share it, and its pages in memory.
    #[serde(default, skip_serializing_if = "is_false")]
    pub readonly: bool,
}

/// Sockets between guest and host; see `docs/devices/vsock.md`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VsockConfig {
    /// The guest's context id, 3 to 4294967294. It need not be unique on the host.
    #[serde(default = "VsockConfig::default_cid")]
    pub cid: u32,
    /// The unix socket through which the host connects to the guest's ports; it is made, and removed
    /// at the end. What the guest connects to is looked for beside it: port P at `<socket>_<P>`.
    pub socket: PathBuf,
}

impl VsockConfig {
    /// The first context id a guest may have.
    pub fn default_cid() -> u32 {
        *GUEST_CIDS.start()
    }
}

/// What the serial console is connected to.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ConsoleConfig {
    /// The process' standard input and output.
    #[default]
    Stdio,
    /// Nothing; the last lines are kept for the report about a guest that died.
    None,
    /// Output to this file, which is created or emptied; no input.
    File(PathBuf),
    /// A pseudo-terminal; [`crate::RunningVm::console_path`] tells which.
    Pty,
}

/// A memory balloon; see `docs/devices/balloon.md`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BalloonConfig {
    /// What the guest is asked to give up from the start; 0 leaves it all its memory, and what it
    /// frees comes back to the host all the same.
    #[serde(default = "BalloonConfig::none")]
    pub size: Size,
}

impl BalloonConfig {
    fn none() -> Size {
        Size(0)
    }
}

/// Which device the guest's console is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ConsoleDevice {
    /// The serial port, `ttyS0`: every kernel has a driver, and every byte costs an exit.
    #[default]
    Serial,
    /// virtio-console, `hvc0`: a buffer costs a doorbell, and the window's size is known. The serial
    /// port is there beside it, with the same output.
    Virtio,
}

/// A named byte port between guest and host; see `docs/devices/console.md`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PortConfig {
    /// Its name in the guest. Unique among the ports.
    pub name: String,
    /// A unix socket, which is made, and removed at the end; one client at a time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub socket: Option<PathBuf>,
    /// A file for what the guest writes, which is made or emptied.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<PathBuf>,
}

/// What a reboot of the guest does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnReboot {
    /// Ends the VM.
    Exit,
    /// Boots it again, in place.
    #[default]
    Restart,
}

/// How the kernel is entered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BootProtocol {
    /// PVH when the kernel has its note, else the 64-bit protocol.
    #[default]
    Auto,
    /// PVH.
    Pvh,
    /// The 64-bit boot protocol of Linux.
    Linux64,
}

#[cfg(test)]
mod tests;
