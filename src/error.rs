//! The errors inside a [`VmError`](crate::VmError), by name, for who wants to tell them apart.
//!
//! `Display` of each tells the whole story on one line, what lies behind it included, so that nobody
//! need walk a chain. Hence `source()` gives nothing that was told already: a field with the cause is
//! for who matches on it, and is defined as `r#source`, which `thiserror` leaves alone. The errors of
//! `husk_devices` keep to this too.

pub use husk_devices::block::{DiskError, EngineError, ResizeError};
pub use husk_devices::bus::BusError;
pub use husk_devices::fs::ShareError;
pub use husk_devices::virtio::console::endpoint::EndpointError;
pub use husk_devices::virtio::device::{SizeError, StartError};
pub use husk_devices::virtio::net::link::LinkError;
pub use husk_devices::virtio::net::passt::PasstError;
pub use husk_devices::virtio::net::tap::TapError;
pub use husk_devices::virtio::pmem::PmemError;
pub use husk_devices::virtio::vsock::{SocketError, VsockError};
pub use husk_devices::worker::WorkerError;

pub use crate::access::AccessError;
pub use crate::boot::bzimage::HeaderError;
pub use crate::boot::elf::ElfError;
pub use crate::boot::load::LoadError;
pub use crate::boot::params::ParamsError;
pub use crate::boot::unpack::{Compression, UnpackError};
pub use crate::boot::{CmdlineError, InitrdError, KernelError};
pub use crate::config::ConfigError;
pub use crate::guest::error::{EndedBy, ExecError, ImageError};
pub use crate::hypervisor::HypervisorError;
pub use crate::memory::MemoryError;
pub use crate::named::NameError;
pub use crate::x86_64::acpi::AcpiError;
pub use crate::x86_64::entry::Protocol;

#[cfg(test)]
mod tests {
    use std::error::Error;
    use std::io;

    use super::*;
    use crate::VmError;

    #[test]
    fn an_error_tells_its_cause_once_however_it_is_told() {
        let cause = || io::Error::other("the cause");
        let path = || "a-file".into();
        let elf = KernelError::Elf { path: path(), source: cause().into() };
        let id = || "a-device".to_owned();
        let socket = SocketError::Host { path: path(), what: "bind", source: cause() };
        let link = LinkError::Host { name: id(), what: id(), source: cause() };
        let errors: [VmError; 23] = [
            DiskError::Open { path: path(), source: cause(), remedy: "wait" }.into(),
            DiskError::Direct { path: path(), source: cause() }.into(),
            DiskError::Host { path: path(), what: "lock", source: cause() }.into(),
            VmError::DiskEngine { id: id(), source: EngineError::IoUring(cause()) },
            VmError::DiskEngine { id: id(), source: cause().into() },
            VmError::Tap { id: id(), source: TapError::Device { name: id(), source: cause() } },
            VmError::Tap {
                id: id(),
                source: TapError::Host { name: id(), what: "ioctl", source: cause() },
            },
            VmError::Link { id: id(), source: link },
            VmError::Passt { id: id(), source: cause().into() },
            VmError::Vhost { id: id(), source: cause() },
            VsockError::Socket(socket).into(),
            VsockError::Timer(cause()).into(),
            VsockError::Start(StartError::Host { what: "timer", source: cause() }).into(),
            VsockError::Start(StartError::Worker(cause().into())).into(),
            WorkerError::Thread(cause()).into(),
            elf.into(),
            KernelError::Read { path: path(), source: cause() }.into(),
            KernelError::Load { path: path(), source: cause().into() }.into(),
            HypervisorError::Call { call: "KVM_RUN", source: cause() }.into(),
            HypervisorError::Open(cause()).into(),
            PmemError::Host { path: path(), what: "map", source: cause() }.into(),
            EndpointError::Host { path: path(), what: "socket", source: cause() }.into(),
            VmError::Host { what: "a thread".to_owned(), source: cause() },
        ];
        for error in errors {
            // As `anyhow` and its like print a chain.
            let mut told = vec![error.to_string()];
            let mut next = error.source();
            while let Some(error) = next {
                told.push(error.to_string());
                next = error.source();
            }
            assert_eq!(told.join(": ").matches("the cause").count(), 1, "{told:?}");
        }
    }
}
