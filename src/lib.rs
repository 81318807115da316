//! husk: a Type-2 hypervisor on KVM, a husk around a Linux kernel.
//!
//! ```no_run
//! use husk::{Vm, config::VmConfig};
//!
//! let mut config = VmConfig::new("/boot/vmlinuz");
//! config.cpus = 2;
//! let vm = Vm::new(config)?.start()?;
//! let outcome = vm.wait();
//! # Ok::<(), husk::VmError>(())
//! ```
//!
//! Many VMs can live in one process. The library never exits the process and never prints. The one
//! signal it claims is the first real-time signal, for which it installs an empty handler: KVM_RUN
//! can be interrupted in no other way.

mod boot;
pub mod compare;
pub mod config;
pub mod doctor;
pub mod error;
mod files;
#[cfg(test)]
#[path = "../tests/fixture/hugepages.rs"]
mod hugepages;
mod hypervisor;
pub mod kernels;
mod memory;
mod size;
#[cfg(test)]
#[path = "../tests/fixture/skipped.rs"]
mod skipped;
pub mod timeline;
mod vcpu;
mod vm;
mod x86_64;

pub use husk_devices::counters::Counts;
pub use husk_devices::serial::{ConsoleStreams, Escape};
pub use husk_devices::virtio::balloon::stats::MemoryStatistics;
pub use husk_devices::virtio::console::tty::WindowSize;
pub use hypervisor::Cause;
pub use vcpu::report::CrashReport;
pub use vm::{
    BalloonError, DeviceMetrics, Ended, Metrics, Outcome, RunningVm, Vm, VmError, stdio_streams,
};
