//! Why a configuration can be run by no host: each error names the option and the value.

use std::path::PathBuf;

use husk_devices::virtio::blk::QUEUES_MAX;
use husk_devices::virtio::console::ports::PORTS_MAX;
use husk_devices::virtio::fs::TAG_MAX;
use husk_devices::virtio::net::tap::INTERFACE_NAME;
use husk_devices::virtio::vsock::{GUEST_CIDS, PATH_MAX};

use super::Size;
use super::limits::{CPUS_MAX, ID_MAX, PORT_NAME_MAX, VIRTIO_DEVICES_MAX};

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
         interface is one, and so are the entropy source, the balloon, the disk of --overlay, the sockets of --vsock and of a \
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
    /// A disk for what is written above nothing.
    #[error(
        "--overlay disk is for what is written above a root or a volume that is cow, and the VM has none: leave \
         it out, or one of :rw and :ro"
    )]
    NoOverlay,
    /// A disk for overlays of a size that it cannot have.
    #[error("--overlay disk,size={size}: it has {least} to {most}")]
    OverlaySize {
        /// What was asked for.
        size: Size,
        /// The least.
        least: Size,
        /// The most.
        most: Size,
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
