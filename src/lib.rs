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
//! A guest of husk's own runs commands (`docs/commands.md`):
//!
//! ```no_run
//! use std::time::Duration;
//! use husk::config::{ConsoleConfig, DiskConfig, GuestConfig, RootConfig, VmConfig};
//! use husk::{GuestCommand, Vm};
//!
//! let mut config = VmConfig::new("/boot/vmlinuz");
//! config.console = ConsoleConfig::None;
//! let path = "debian.ext4".into();
//! config.disks = vec![DiskConfig { id: "root".into(), path, readonly: true, ..Default::default() }];
//! let root = Some(RootConfig::on_disk("root"));
//! config.guest = Some(GuestConfig { root, ..GuestConfig::default() });
//! let vm = Vm::new(config)?.start()?;
//! let release = vm.exec(["uname", "-r"])?;
//! vm.copy_in("data.sql".as_ref(), "/tmp/data.sql".as_ref())?;
//! let load = GuestCommand::new(["psql", "-f", "/tmp/data.sql"]).user("postgres");
//! let loaded = vm.output(&load.timeout(Duration::from_secs(60)))?;
//! assert!(release.status.success() && loaded.status.success());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! Many VMs can live in one process. The library never exits the process and never prints. The one
//! signal it claims is the first real-time signal, for which it installs an empty handler: KVM_RUN
//! can be interrupted in no other way.

mod boot;
pub mod compare;
pub mod config;
mod cpio;
pub mod doctor;
pub mod error;
mod files;
mod guest;
#[cfg(test)]
#[path = "../tests/fixture/hugepages.rs"]
mod hugepages;
mod hypervisor;
pub mod kernels;
mod memory;
pub mod named;
mod outcome;
mod size;
#[cfg(test)]
#[path = "../tests/fixture/skipped.rs"]
mod skipped;
pub mod timeline;
mod vcpu;
mod vm;
mod x86_64;

pub use guest::{ChildInput, ChildOutput, GuestChild, GuestCommand, Output, Status};
pub use husk_devices::counters::Counts;
pub use husk_devices::serial::{ConsoleStreams, Escape, EscapeFilter};
pub use husk_devices::virtio::balloon::stats::MemoryStatistics;
pub use husk_devices::virtio::console::tty::WindowSize;
pub use hypervisor::Cause;
pub use vcpu::report::CrashReport;
pub use vm::{
    BalloonError, DeviceMetrics, Ended, Metrics, Outcome, ResizeDiskError, RunningVm, State, Vm,
    VmError, stdio_streams,
};
