//! Why a VM cannot be made or started.

use std::io;

use crate::memory;
use crate::size::Size;

/// A VM that cannot be made or started. Each variant's message names the thing the user gave.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "each variant is the error of the part it is named after")]
pub enum VmError {
    #[error(transparent)]
    Config(#[from] crate::config::ConfigError),
    #[error(transparent)]
    Hypervisor(#[from] crate::hypervisor::HypervisorError),
    #[error("--cpus {wanted}: this host's KVM has at most {max} vCPUs for a VM")]
    TooManyCpus { wanted: u32, max: u32 },
    #[error(
        "--memory {wanted}: a guest has at most {most} on this host, whose KVM gives processors \
         {bits} bits of physical address"
    )]
    MemoryBeyondCpu { wanted: Size, most: Size, bits: u32 },
    #[error(transparent)]
    Memory(#[from] memory::MemoryError),
    #[error(transparent)]
    Kernel(#[from] crate::boot::KernelError),
    #[error(
        "kernel {kernel}: there is nothing for it to run: it has no initial RAM file system of its own, and \
         the VM has neither an initrd nor a root file system. Give it one (--initrd FILE, --disk path=FILE), \
         or a command, which finds the host's files: `husk run -- CMD`. With a root= in --append it is started \
         in any case",
        kernel = .kernel.display()
    )]
    NothingToBoot { kernel: std::path::PathBuf },
    #[error(
        "kernel {kernel}: its root is to be {root}, for which it needs {module}, and has that only as a \
         module, which nothing loads: give it an initrd with it (--initrd FILE), a command, for which husk \
         brings modules (--root IMAGE -- CMD), or take a kernel that has {option} built in",
        kernel = .kernel.display()
    )]
    RootIsModule {
        kernel: std::path::PathBuf,
        root: String,
        module: &'static str,
        option: &'static str,
    },
    #[error(transparent)]
    Initrd(#[from] crate::boot::InitrdError),
    #[error(transparent)]
    Cmdline(#[from] crate::boot::CmdlineError),
    #[error(transparent)]
    Params(#[from] crate::boot::params::ParamsError),
    #[error(transparent)]
    Acpi(#[from] crate::x86_64::acpi::AcpiError),
    #[error("guest memory: {0}")]
    GuestMemory(#[from] crate::access::AccessError),
    #[error(transparent)]
    Disk(#[from] husk_devices::block::DiskError),
    #[error("disk {id}: {source}")]
    DiskEngine { id: String, r#source: husk_devices::block::EngineError },
    #[error("network interface {id}: {source}")]
    Tap { id: String, r#source: husk_devices::virtio::net::tap::TapError },
    #[error("network interface {id}: {source}")]
    Link { id: String, r#source: husk_devices::virtio::net::link::LinkError },
    #[error("network interface {id}: {source}")]
    Passt { id: String, r#source: husk_devices::virtio::net::passt::PasstError },
    #[error(
        "network interface {id}: vhost=on: /dev/vhost-net: {source}; try `modprobe vhost_net` and see \
         that you may open it, or leave vhost=on out"
    )]
    Vhost { id: String, r#source: io::Error },
    #[error(transparent)]
    Vsock(#[from] husk_devices::virtio::vsock::VsockError),
    #[error(transparent)]
    Image(#[from] crate::guest::error::ImageError),
    #[error(transparent)]
    Pmem(#[from] husk_devices::virtio::pmem::PmemError),
    #[error("volume {tag}: {source}")]
    Volume { tag: String, r#source: husk_devices::fs::ShareError },
    #[error(transparent)]
    Port(#[from] husk_devices::virtio::console::endpoint::EndpointError),
    #[error(transparent)]
    Bus(#[from] husk_devices::bus::BusError),
    #[error(transparent)]
    Worker(#[from] husk_devices::worker::WorkerError),
    #[error("{what}: {source}")]
    Host { what: String, r#source: io::Error },
}

/// Makes an error of the host's one that names what was tried.
pub(super) fn host(what: impl Into<String>) -> impl FnOnce(io::Error) -> VmError {
    let what = what.into();
    move |source| VmError::Host { what, source }
}
