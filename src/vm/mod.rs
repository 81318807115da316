//! A virtual machine and its life: created → running ⇄ paused → ended.
//!
//! [`Vm::new`] opens everything the configuration names; [`Vm::start`] powers it on and hands it to
//! its controller thread. Several VMs live in one process without knowing of each other.
//!
//! ```text
//! RunningVm ──▶ mailbox ──▶ controller ──▶ machine (KVM, vCPU threads) ──▶ firmware
//!                  ▲                  └──▶ devices (buses, backends, workers)
//!                  └── events of guest and vCPUs
//! ```

mod absent;
mod background;
mod console;
mod controller;
mod devices;
mod disks;
mod ending;
mod error;
mod exec;
mod firmware;
mod generation;
mod handles;
mod machine;
mod mailbox;
mod metrics;
mod net;
mod opening;
pub(crate) mod overdue;
mod panic;
mod pmem;
mod reboots;
mod root;
mod running;
mod volumes;

use std::path::Path;
use std::sync::{Arc, Once};

use husk_devices::platform::EventSink;
use husk_devices::serial::ConsoleStreams;
use husk_devices::virtio::net::tap::Tap;
use husk_devices::worker::OnBroken;
use kvm_bindings::CpuId;

use crate::boot::{Cache, Initrd, Kernel};
use crate::config::{self, VmConfig};
use crate::guest::{ext4, image};
use crate::hypervisor::Hypervisor;
use crate::memory;
use crate::size::Size;
use crate::timeline::{Phase, Timeline};
use crate::x86_64::{cpuid, layout};
use console::Source;
use controller::Controller;
use devices::Devices;
use disks::Disks;
use firmware::{Loading, Software};
use mailbox::{Mailbox, Message};
use running::Verdict;

pub use crate::outcome::Outcome;
pub use console::stdio_streams;
pub use disks::ResizeDiskError;
pub use error::VmError;
pub use metrics::{DeviceMetrics, Metrics};
pub use running::{BalloonError, Ended, RunningVm, State};

/// Bytes of stack of the threads of this floor.
const STACK: usize = 256 << 10;

// What a configuration may ask for, the machine has.
const _: () = assert!(config::CPUS_MAX <= layout::VCPUS_MAX);
const _: () = assert!(config::VIRTIO_DEVICES_MAX <= layout::VIRTIO_MAX);
const _: () = assert!(
    config::OVERLAY_MIN.0 >= *ext4::SIZES.start() && config::OVERLAY_MAX.0 <= *ext4::SIZES.end()
);

/// A VM that has everything it needs and does not run yet.
pub struct Vm {
    /// Its thread is waited for when this is dropped.
    kernel: Loading,
    controller: Controller,
    console: Source,
}

impl Vm {
    /// Checks `config` and opens everything it names: KVM, kernel, memory, disks, interfaces.
    ///
    /// # Errors
    /// What is wrong with `config`, what cannot be had on this host, or that the kernel does not fit the
    /// machine. Then nothing stays open.
    pub fn new(config: VmConfig) -> Result<Self, VmError> {
        Self::with(config, None, Arc::default())
    }

    /// As [`Vm::new`], with the console connected to `console`, if given, instead of what the
    /// configuration says, and the phases of the start marked in `timeline`.
    ///
    /// # Errors
    /// As [`Vm::new`].
    pub fn with(
        mut config: VmConfig,
        console: Option<ConsoleStreams>,
        timeline: Arc<Timeline>,
    ) -> Result<Self, VmError> {
        config.name_devices();
        config.validate()?;
        // Before anything is opened, or a number could be that of a descriptor of our own.
        for net in &config.nets {
            if let Some(fd) = net.fd {
                Tap::inherited(fd).map_err(|source| VmError::Tap { id: net.id.clone(), source })?;
            }
        }
        Self::on(Hypervisor::open()?, &Cache::user(), config, console, timeline)
    }

    /// As [`Vm::with`], on a given KVM and with a given cache of kernels. `config` is valid.
    fn on(
        hypervisor: Hypervisor,
        cache: &Cache,
        config: VmConfig,
        console: Option<ConsoleStreams>,
        timeline: Arc<Timeline>,
    ) -> Result<Self, VmError> {
        let max = hypervisor.max_vcpus();
        if config.cpus > max {
            return Err(VmError::TooManyCpus { wanted: config.cpus, max });
        }
        absent::check(&config)?;
        timeline.mark(Phase::Configured);
        let memory = memory::allocate(memory_spec(&config))?;
        timeline.mark(Phase::MemoryMapped);
        // The rest is done while the kernel is being loaded.
        let kernel = Arc::new(Kernel::open(&config.kernel, cache)?);
        let loading = Loading::begin(&kernel, &config, &memory)?;
        root::check(&kernel, &config, &firmware::cmdline(&config)?)?;
        timeline.mark(Phase::KernelOpened);
        let cpuid = hypervisor.supported_cpuid()?;
        check_reach(config.memory.size, &cpuid)?;
        let software = Software {
            initrd: match &config.guest {
                Some(_) => {
                    let absent = kernel.absent().modules();
                    Some(Initrd::of(image::make(&config, &absent)?, image::name())?)
                }
                None => config.initrd.as_deref().map(Initrd::open).transpose()?,
            },
            kernel,
            unshared: Once::new(),
        };
        if software.needs_timer(&config) {
            hypervisor.check_timer()?;
        }
        let mailbox = Arc::new(Mailbox::default());
        let (guest, husk) = (mailbox.clone(), mailbox.clone());
        let events: EventSink = Arc::new(move |event| guest.post(Message::Guest(event)));
        let on_broken: OnBroken = Arc::new(move |why| husk.post(Message::Broken(why)));
        console::check(&config)?;
        let not_ram = software.kernel.mapped(firmware::load_method(&config));
        let devices = Devices::open(&config, &memory, not_ram, events, on_broken)?;
        timeline.mark(Phase::DevicesOpened);
        let console = match console {
            Some(streams) => Source::Streams(streams),
            None => Source::Config(config.console.clone()),
        };
        let controller = Controller {
            hypervisor,
            cpuid,
            config: Arc::new(config),
            paused: Arc::default(),
            software,
            devices,
            memory,
            mailbox,
            timeline,
        };
        Ok(Self { kernel: loading, controller, console })
    }

    /// Loads the kernel and lets the guest run.
    ///
    /// # Errors
    /// When the kernel cannot be read, what goes with it does not fit the machine, KVM or the host refuses,
    /// or the console cannot be opened. Then everything is closed again.
    pub fn start(self) -> Result<RunningVm, VmError> {
        let Self { kernel, mut controller, console } = self;
        // Before there is a RunningVm: when dropped it waits for the answer of its controller.
        let machine = controller.boot(kernel)?;
        controller.devices.connect_console(console)?;
        let verdict = Arc::new(Verdict::default());
        let mut running = RunningVm {
            mailbox: controller.mailbox.clone(),
            verdict: verdict.clone(),
            timeline: controller.timeline.clone(),
            console: controller.devices.uart.output().clone(),
            tty: controller.devices.handles.tty.clone(),
            balloon: controller.devices.handles.balloon.clone(),
            config: controller.config.clone(),
            paused: controller.paused.clone(),
            disks: Disks::of(&controller.config, controller.devices.transports()),
            agent: controller.devices.handles.agent.clone(),
            metrics: metrics::Collector::new(&controller.devices),
            console_path: controller.devices.console_path().map(Path::to_owned),
            controller: None,
        };
        let thread = std::thread::Builder::new()
            .name("husk-vm".to_owned())
            .stack_size(STACK)
            .spawn(move || verdict.give(|| controller.run(machine)))
            .map_err(|source| VmError::Host { what: "controller thread".to_owned(), source })?;
        running.controller = Some(thread);
        Ok(running)
    }
}

/// Refuses memory that no address of the guest's processors reaches.
fn check_reach(wanted: Size, cpuid: &CpuId) -> Result<(), VmError> {
    let bits = cpuid::physical_bits(cpuid);
    let most = memory::most(bits);
    if wanted > most {
        return Err(VmError::MemoryBeyondCpu { wanted, most, bits });
    }
    Ok(())
}

#[cfg(test)]
mod tests;

/// The memory that `config` asks for.
fn memory_spec(config: &VmConfig) -> memory::Spec {
    let config::MemoryConfig { size, shared, hugepages } = config.memory;
    memory::Spec { size, shared, hugepages }
}
