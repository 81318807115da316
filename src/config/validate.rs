//! What is wrong with a configuration by itself, before anything is opened.

use std::collections::HashSet;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use husk_devices::virtio::blk::QUEUES_MAX;
use husk_devices::virtio::fs::TAG_MAX;
use husk_devices::virtio::net::tap::INTERFACE_NAME;
use husk_devices::virtio::vsock::{GUEST_CIDS, PATH_MAX};

use husk_devices::virtio::console::ports::PORTS_MAX;

use super::{ConsoleDevice, DiskConfig, DiskEngine, DiskFormat, Size, VmConfig};
use crate::boot::Cmdline;

/// The most vCPUs a configuration can ask for.
pub const CPUS_MAX: u32 = 64;
/// The most virtio devices a configuration can have, the entropy source included: each has an
/// interrupt of its own. That the machine has as many is checked where it is made.
pub const VIRTIO_DEVICES_MAX: usize = 18;
/// Less memory than this boots no Linux.
const MEMORY_MIN: Size = Size::mib(32);
/// 16 TiB: more than any host husk was thought for has.
const MEMORY_MAX: Size = Size(1 << 44);
/// A virtio serial number has 20 bytes (virtio 1.3 §5.2.6), and a name should be typeable.
const ID_MAX: usize = 20;

/// As long as anybody's (`org.qemu.guest_agent.0`), and far below a control buffer.
const PORT_NAME_MAX: usize = 64;

/// A configuration that no host can run.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// No kernel.
    #[error("the VM has no kernel: name one")]
    NoKernel,
    /// A path that names no file.
    #[error("{what}: its path is empty")]
    EmptyPath {
        /// The path of what.
        what: String,
    },
    /// A path that the host cannot be given.
    #[error("{what}: there is a NUL byte in its path {path:?}")]
    NulInPath {
        /// The path of what.
        what: String,
        /// The path.
        path: PathBuf,
    },
    /// A command line that no kernel can be given.
    #[error("{0}")]
    Cmdline(String),
    /// Number of vCPUs.
    #[error("--cpus {0}: a VM has 1 to {max} vCPUs", max = CPUS_MAX)]
    Cpus(u32),
    /// Amount of memory.
    #[error("--memory {size}: {why}")]
    Memory {
        /// What was asked for.
        size: Size,
        /// What is wrong with it.
        why: String,
    },
    /// A balloon that does not fit its machine.
    #[error("--balloon {size}: {why}")]
    Balloon {
        /// What was asked for.
        size: Size,
        /// What is wrong with it.
        why: String,
    },
    /// Two devices share an id.
    #[error("two devices are called `{0}`; give one of them another id=")]
    DuplicateId(String),
    /// An id that cannot be used.
    #[error("`{id}` is no device id: 1 to {ID_MAX} letters, digits, `-`, `_` or `.`")]
    BadId {
        /// The id.
        id: String,
    },
    /// More devices than interrupts.
    #[error(
        "{0} virtio devices, but a VM has interrupts for {max}: every disk, pmem file, volume and network \
         interface is one, and so are the entropy source, the balloon, the sockets of --vsock and of a \
         command, the virtio console, and all ports together; leave some out",
        max = VIRTIO_DEVICES_MAX
    )]
    TooManyDevices(usize),
    /// Number of queues of a disk.
    #[error("disk `{id}`: {queues} queues: a disk has 1 to {max}", max = QUEUES_MAX)]
    Queues {
        /// The disk.
        id: String,
        /// What was asked for.
        queues: u16,
    },
    /// A disk that may do nothing.
    #[error("disk `{0}`: a limit of 0 would let no request pass; leave it out for none")]
    NoBudget(String),
    /// Options of a disk that do not go together.
    #[error("disk `{id}`: {why}")]
    DiskOptions {
        /// The disk.
        id: String,
        /// What is wrong.
        why: &'static str,
    },
    /// A network interface without a network, or with two.
    #[error("network interface `{0}`: give it one of tap=NAME, fd=N, user and link=NAME")]
    NetBackend(String),
    /// An option of a network interface that cannot be.
    #[error("network interface `{id}`: {option}: {why}")]
    NetOption {
        /// The interface.
        id: String,
        /// The option.
        option: &'static str,
        /// What is wrong with it.
        why: &'static str,
    },
    /// A link's name that is no part of a file's name.
    #[error("`{0}` is no name of a link: 1 to 32 letters, digits, `-`, `_` or `.`")]
    LinkName(String),
    /// A TAP name Linux would refuse.
    #[error("{0:?} is not the name of a network interface: {INTERFACE_NAME}")]
    TapName(String),
    /// A port without a host side, or with two.
    #[error("port `{0}`: give it either socket=PATH or file=PATH")]
    PortBackend(String),
    /// A port's name that cannot be used.
    #[error("`{0}` is no name for a port: 1 to {PORT_NAME_MAX} letters, digits, `-`, `_` or `.`")]
    PortName(String),
    /// Two ports share a name.
    #[error("two ports are called `{0}`; give one of them another name=")]
    DuplicatePort(String),
    /// More ports than the device has.
    #[error("{0} ports, but a VM has at most {PORTS_MAX}")]
    TooManyPorts(usize),
    /// A volume's tag that cannot be used.
    #[error(
        "`{0}` is no tag for a volume: 1 to {TAG_MAX} letters, digits, `-`, `_` or `.` (a directory of the \
         guest's begins with `/`)"
    )]
    VolumeTag(String),
    /// A volume cannot be mounted there.
    #[error("a volume at {mount:?} in the guest: {why}")]
    VolumeMount {
        /// Where.
        mount: String,
        /// Why not.
        why: &'static str,
    },
    /// Two volumes share a tag.
    #[error("two volumes have the tag `{0}`; give one of them another")]
    DuplicateTag(String),
    /// A MAC address that cannot be used.
    #[error(
        "`{0}` is no MAC address for a guest: six hex bytes such as 52:54:00:12:34:56, the first one even"
    )]
    Mac(String),
    /// A context id that is reserved.
    #[error("vsock cid {0}: a guest has one of {first} to {last}", first = GUEST_CIDS.start(), last = GUEST_CIDS.end())]
    VsockCid(u32),
    /// A host name that Linux or others would refuse.
    #[error("`{0}` is no host name: 1 to 64 letters, digits, `-` or `.`")]
    HostName(String),
    /// The root is on no disk or volume of the VM's.
    #[error("the guest's root is to be on the {kind} `{id}`, and there is none of that id")]
    NoRoot {
        /// A disk or a volume.
        kind: &'static str,
        /// Its id.
        id: String,
    },
    /// The root is nowhere, or in two places.
    #[error("the guest's root: name either the disk or the volume that it is on")]
    RootPlace,
    /// The root is both.
    #[error("the guest's root is to be read-only and written to: leave one of them out")]
    RootAccess,
    /// The root's volume is something else as well.
    #[error(
        "the guest's root is to be the volume `{0}`, which can be no overlay and be mounted nowhere else"
    )]
    RootMounted(String),
    /// The root is to be written to and cannot.
    #[error("the guest's root is to be written to, and its {kind} `{id}` is read-only")]
    RootReadOnly {
        /// A disk or a volume.
        kind: &'static str,
        /// Its id.
        id: String,
    },
    /// A directory in memory that cannot be there.
    #[error("a directory in memory at {mount:?} in the guest: {why}")]
    Tmpfs {
        /// Where.
        mount: String,
        /// Why not.
        why: &'static str,
    },
    /// An agent of the guest's init where the agent is the init.
    #[error(
        "the agent is started by the guest's own init (--agent), and by husk for a command (-- CMD, --root): \
         leave one of them out"
    )]
    TwoAgents,
    /// More directories in memory than the agent is told of.
    #[error("{0} directories in memory, but a guest has at most 32")]
    TooManyTmpfs(usize),
    /// Options of a volume that do not go together.
    #[error("volume `{id}`: {why}")]
    VolumeOptions {
        /// The volume.
        id: String,
        /// What is wrong.
        why: &'static str,
    },
    /// A path that cannot be a socket's.
    #[error(
        "vsock socket {path}: a path of 1 to {PATH_MAX} bytes is needed, so that `_PORT` has room behind it",
        path = .0.display()
    )]
    VsockSocket(PathBuf),
    /// A parameter with which the guest would find a device twice.
    #[error("the command line has `{0}`, but husk describes its devices to the guest itself")]
    ReservedParameter(&'static str),
}

impl VmConfig {
    /// Gives every device without an id one (`disk0`, `net1`…).
    pub fn name_devices(&mut self) {
        for (n, disk) in self.disks.iter_mut().enumerate() {
            if disk.id.is_empty() {
                disk.id = format!("disk{n}");
            }
        }
        for (n, pmem) in self.pmem.iter_mut().enumerate() {
            if pmem.id.is_empty() {
                pmem.id = format!("pmem{n}");
            }
        }
        super::volume::name(&mut self.volumes);
        for (n, net) in self.nets.iter_mut().enumerate() {
            if net.id.is_empty() {
                net.id = format!("net{n}");
            }
        }
    }

    /// Checks everything that can be checked without the host.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn validate(&self) -> Result<(), ConfigError> {
        if self.kernel.as_os_str().is_empty() {
            return Err(ConfigError::NoKernel);
        }
        if self.cpus == 0 || self.cpus > CPUS_MAX {
            return Err(ConfigError::Cpus(self.cpus));
        }
        self.validate_memory()?;
        self.validate_balloon()?;
        let ids = self.disks.iter().map(|d| &d.id).chain(self.nets.iter().map(|n| &n.id));
        let ids = ids.chain(self.pmem.iter().map(|p| &p.id));
        let ids = ids.chain(self.volumes.iter().map(|v| &v.id));
        let mut seen = HashSet::new();
        let single = self.single_devices();
        seen.extend(&single);
        for id in ids {
            let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
            if id.is_empty() || id.len() > ID_MAX || !id.bytes().all(allowed) {
                return Err(ConfigError::BadId { id: id.clone() });
            }
            if !seen.insert(id) {
                return Err(ConfigError::DuplicateId(id.clone()));
            }
        }
        let lists = [self.disks.len(), self.pmem.len(), self.volumes.len(), self.nets.len()];
        let devices = lists.iter().sum::<usize>() + single.len();
        if devices > VIRTIO_DEVICES_MAX {
            return Err(ConfigError::TooManyDevices(devices));
        }
        for disk in &self.disks {
            if let Some(queues) = disk.queues.filter(|n| !(1..=QUEUES_MAX).contains(n)) {
                return Err(ConfigError::Queues { id: disk.id.clone(), queues });
            }
            if disk.bytes_per_second == Some(Size(0)) || disk.requests_per_second == Some(0) {
                return Err(ConfigError::NoBudget(disk.id.clone()));
            }
            if let Some(why) = disk.contradiction() {
                return Err(ConfigError::DiskOptions { id: disk.id.clone(), why });
            }
        }
        for net in &self.nets {
            net.validate()?;
        }
        self.validate_ports()?;
        super::volume::validate(&self.volumes, self.guest.is_some())?;
        self.validate_guest()?;
        if let Some(vsock) = &self.vsock {
            if !GUEST_CIDS.contains(&vsock.cid) {
                return Err(ConfigError::VsockCid(vsock.cid));
            }
            if !(1..=PATH_MAX).contains(&vsock.socket.as_os_str().len()) {
                return Err(ConfigError::VsockSocket(vsock.socket.clone()));
            }
        }
        for (what, path) in self.paths() {
            let bytes = path.as_os_str().as_bytes();
            if bytes.is_empty() {
                return Err(ConfigError::EmptyPath { what });
            }
            if bytes.contains(&0) {
                return Err(ConfigError::NulInPath { what, path: path.to_owned() });
            }
        }
        for text in [self.cmdline.as_deref().unwrap_or_default(), &self.append] {
            Cmdline::new(text).map_err(|e| ConfigError::Cmdline(e.to_string()))?;
        }
        // The guest would find a device twice.
        const DEVICE: &str = "virtio_mmio.device=";
        let has_device = |text: &str| Cmdline::new(text).is_ok_and(|line| line.has(DEVICE));
        if self.cmdline.as_deref().is_some_and(has_device) || has_device(&self.append) {
            return Err(ConfigError::ReservedParameter(DEVICE));
        }
        Ok(())
    }

    /// Names of the virtio devices of which a VM has one or none.
    fn single_devices(&self) -> Vec<String> {
        let devices = [
            (self.rng, "rng"),
            (self.console_device == ConsoleDevice::Virtio, "tty"),
            (!self.ports.is_empty(), "ports"),
            (self.balloon.is_some(), "balloon"),
            (self.vsock.is_some() || self.guest.is_some() || self.agent, "vsock"),
        ];
        let there = devices.into_iter().filter(|(there, _)| *there);
        there.map(|(_, name)| name.to_owned()).collect()
    }

    fn validate_ports(&self) -> Result<(), ConfigError> {
        if self.ports.len() > PORTS_MAX {
            return Err(ConfigError::TooManyPorts(self.ports.len()));
        }
        let mut seen = HashSet::new();
        for port in &self.ports {
            let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
            let name = &port.name;
            let long = (1..=PORT_NAME_MAX).contains(&name.len());
            if !long || !name.bytes().all(allowed) || matches!(&name[..], "." | "..") {
                return Err(ConfigError::PortName(name.clone()));
            }
            if port.socket.is_some() == port.file.is_some() {
                return Err(ConfigError::PortBackend(name.clone()));
            }
            if !seen.insert(name) {
                return Err(ConfigError::DuplicatePort(name.clone()));
            }
        }
        Ok(())
    }

    fn validate_balloon(&self) -> Result<(), ConfigError> {
        let Some(balloon) = self.balloon else { return Ok(()) };
        let size = balloon.size;
        let error = |why: String| Err(ConfigError::Balloon { size, why });
        if self.memory.hugepages {
            return error("a balloon gives back 4 KiB pages, and huge pages have none".to_owned());
        }
        if size >= self.memory.size {
            return error(format!("the guest has {}, and needs some of it", self.memory.size));
        }
        Ok(())
    }

    fn validate_memory(&self) -> Result<(), ConfigError> {
        let size = self.memory.size;
        let error = |why: String| Err(ConfigError::Memory { size, why });
        if (1..1 << 16).contains(&size.0) {
            return error(format!("that is {} bytes; did you mean {}M?", size.0, size.0));
        }
        if size < MEMORY_MIN {
            return error(format!("a guest needs at least {MEMORY_MIN}"));
        }
        if size > MEMORY_MAX {
            return error(format!("a guest has at most {MEMORY_MAX}"));
        }
        if !size.0.is_multiple_of(4096) {
            return error("not a multiple of 4 KiB".to_owned());
        }
        if self.memory.hugepages && !size.0.is_multiple_of(2 << 20) {
            return error("with huge pages a multiple of 2 MiB is needed".to_owned());
        }
        Ok(())
    }
}

impl DiskConfig {
    /// What of it does not go together.
    fn contradiction(&self) -> Option<&'static str> {
        let qcow2 = self.format == Some(DiskFormat::Qcow2);
        match () {
            () if self.overlay && self.readonly => Some(
                "an overlay is there to be written, and the disk is read-only; leave one of them out",
            ),
            () if self.overlay_dir.is_some() && !self.overlay => {
                Some("overlay_dir says where an overlay is; add overlay")
            }
            () if self.backing && !qcow2 => {
                Some("backing is about images that are based on others; add format=qcow2")
            }
            () if qcow2 && self.engine == DiskEngine::IoUring => Some(
                "engine=io_uring does not read qcow2 images; use engine=threads, or leave it out",
            ),
            () => None,
        }
    }
}
