//! Why a VM cannot be made or started.

use std::io;

use crate::memory;

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
    #[error(transparent)]
    Memory(#[from] memory::MemoryError),
    #[error(transparent)]
    Kernel(#[from] crate::boot::KernelError),
    #[error(transparent)]
    Initrd(#[from] crate::boot::InitrdError),
    #[error(transparent)]
    Cmdline(#[from] crate::boot::CmdlineError),
    #[error(transparent)]
    Params(#[from] crate::boot::params::ParamsError),
    #[error(transparent)]
    Acpi(#[from] crate::x86_64::acpi::AcpiError),
    #[error("guest memory: {0}")]
    GuestMemory(#[from] vm_memory::GuestMemoryError),
    #[error(transparent)]
    Disk(#[from] husk_devices::virtio::blk::backend::DiskError),
    #[error("network interface {id}: {source}")]
    Tap { id: String, source: husk_devices::virtio::net::tap::TapError },
    #[error(transparent)]
    Pmem(#[from] husk_devices::virtio::pmem::PmemError),
    #[error(transparent)]
    Port(#[from] husk_devices::virtio::console::endpoint::EndpointError),
    #[error(transparent)]
    Bus(#[from] husk_devices::bus::BusError),
    #[error(transparent)]
    Worker(#[from] husk_devices::worker::WorkerError),
    #[error("{what}: {source}")]
    Host { what: String, source: io::Error },
}

/// Makes an error of the host's one that names what was tried.
pub(super) fn host(what: impl Into<String>) -> impl FnOnce(io::Error) -> VmError {
    let what = what.into();
    move |source| VmError::Host { what, source }
}
