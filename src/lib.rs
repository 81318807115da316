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
//! For a test there is a shorter way, [`Vm::builder`], with errors that tell what happened in the guest and
//! a share of the host for each VM; and `#[husk::test]`, a test whose body runs in a guest
//! (`docs/library.md`):
//!
//! ```no_run
//! let vm = husk::Vm::builder().root("debian.ext4").memory("256M").publish("5432").start()?;
//! assert!(vm.exec(["uname", "-r"])?.status.success());
//! let address = vm.port(5432)?;
//! # Ok::<(), husk::TestError>(())
//! ```
//!
//! Many VMs can live in one process. The library never exits the process and never prints. The one
//! signal it claims is the first real-time signal, for which it installs an empty handler: KVM_RUN
//! can be interrupted in no other way.

mod access;
mod boot;
#[cfg(feature = "compare")]
pub mod compare;
pub mod config;
pub mod doctor;
pub mod error;
mod files;
pub mod fixture;
mod guest;
#[cfg(test)]
#[path = "../tests/fixture/hugepages.rs"]
mod hugepages;
mod hypervisor;
pub mod kernels;
mod memory;
pub mod named;
mod outcome;
mod runtime;
mod size;
#[cfg(test)]
#[path = "../tests/fixture/skipped.rs"]
mod skipped;
pub mod timeline;
mod vcpu;
mod vm;
mod x86_64;

/// The page's code compiles.
#[cfg(doctest)]
#[doc = include_str!("../docs/library.md")]
struct LibraryPage;

pub use fixture::{Budget, TestError, TestVm, VmBuilder};
pub use guest::{
    ChildInput, ChildOutput, CopyStop, GuestChild, GuestCommand, Output, Status, agent_program,
    write_agent,
};
pub use husk_devices::counters::Counts;
pub use husk_devices::serial::{ConsoleStreams, EscapeFilter, Escapes};
pub use husk_devices::virtio::balloon::stats::MemoryStatistics;
pub use husk_devices::virtio::console::tty::WindowSize;
#[cfg(feature = "macros")]
pub use husk_macros::test;
pub use hypervisor::Cause;
pub use outcome::quote;
pub use vcpu::registers::{GeneralRegisters, SystemRegisters};
pub use vcpu::report::CrashReport;
pub use vm::{
    BalloonError, DeviceMetrics, Ended, Metrics, Outcome, ResizeDiskError, RunningVm, State, Vm,
    VmError, stdio_streams,
};
