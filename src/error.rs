//! The errors inside a [`VmError`](crate::VmError), by name, for who wants to tell them apart.

pub use husk_devices::block::{DiskError, EngineError};
pub use husk_devices::bus::BusError;
pub use husk_devices::virtio::net::tap::TapError;
pub use husk_devices::worker::WorkerError;

pub use crate::boot::bzimage::HeaderError;
pub use crate::boot::elf::ElfError;
pub use crate::boot::load::LoadError;
pub use crate::boot::params::ParamsError;
pub use crate::boot::unpack::{Compression, UnpackError};
pub use crate::boot::{CmdlineError, InitrdError, KernelError};
pub use crate::config::ConfigError;
pub use crate::hypervisor::HypervisorError;
pub use crate::memory::MemoryError;
pub use crate::x86_64::acpi::AcpiError;
pub use crate::x86_64::entry::Protocol;
