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

mod console;
mod controller;
mod devices;
mod error;
mod firmware;
mod generation;
mod handles;
mod machine;
mod mailbox;
mod making;
mod metrics;
mod outcome;
mod pmem;
mod running;

use std::path::Path;
use std::sync::Arc;

use husk_devices::platform::EventSink;
use husk_devices::serial::ConsoleStreams;

use crate::boot::{Cache, Initrd, Kernel};
use crate::config::VmConfig;
use crate::hypervisor::Hypervisor;
use crate::memory;
use crate::timeline::{Phase, Timeline};
use console::Source;
use controller::Controller;
use devices::Devices;
use firmware::Software;
use mailbox::{Mailbox, Message};
use making::Making;
use running::{Promise, Verdict};

pub use console::stdio_streams;
pub use error::VmError;
pub use metrics::{DeviceMetrics, Metrics};
pub use outcome::Outcome;
pub use running::{BalloonError, Ended, RunningVm};

/// Bytes of stack of the threads of this floor.
const STACK: usize = 256 << 10;

/// A VM that has everything it needs and does not run yet.
pub struct Vm {
    /// First, so that it is dropped before the memory it works on.
    making: Making,
    controller: Controller,
    console: Source,
}

impl Vm {
    /// Checks `config` and opens everything it names: KVM, kernel, memory, disks, interfaces.
    pub fn new(config: VmConfig) -> Result<Self, VmError> {
        Self::with(config, None, Arc::default())
    }

    /// As [`Vm::new`], with the console connected to `console`, if given, instead of what the
    /// configuration says, and the phases of the start marked in `timeline`.
    pub fn with(
        mut config: VmConfig,
        console: Option<ConsoleStreams>,
        timeline: Arc<Timeline>,
    ) -> Result<Self, VmError> {
        config.name_devices();
        config.validate()?;
        let hypervisor = Arc::new(Hypervisor::open()?);
        let max = hypervisor.max_vcpus();
        if config.cpus > max {
            return Err(VmError::TooManyCpus { wanted: config.cpus, max });
        }
        timeline.mark(Phase::Configured);
        let memory = memory::allocate(&config.memory)?;
        timeline.mark(Phase::MemoryMapped);
        let making = Making::begin(&hypervisor, &memory)?;
        let software = Software {
            kernel: Kernel::open(&config.kernel, &Cache::user())?,
            initrd: config.initrd.as_deref().map(Initrd::open).transpose()?,
        };
        timeline.mark(Phase::KernelOpened);
        let mailbox = Arc::new(Mailbox::default());
        let post = mailbox.clone();
        let events: EventSink = Arc::new(move |event| post.post(Message::Guest(event)));
        console::check(&config)?;
        let not_ram = match config.share_kernel {
            true => software.kernel.extent(),
            false => Vec::new(),
        };
        let devices = Devices::open(&config, &memory, not_ram, events)?;
        timeline.mark(Phase::DevicesOpened);
        let console = match console {
            Some(streams) => Source::Streams(streams),
            None => Source::Config(config.console.clone()),
        };
        let controller =
            Controller { hypervisor, config, software, devices, memory, mailbox, timeline };
        Ok(Self { making, controller, console })
    }

    /// Loads the kernel and lets the guest run.
    pub fn start(self) -> Result<RunningVm, VmError> {
        let Self { making, mut controller, console } = self;
        // Before there is a RunningVm: when dropped it waits for the answer of its controller.
        let machine = controller.boot(making, true)?;
        controller.devices.connect_console(console)?;
        let verdict = Arc::new(Verdict::default());
        let mut running = RunningVm {
            mailbox: controller.mailbox.clone(),
            verdict: verdict.clone(),
            timeline: controller.timeline.clone(),
            console: controller.devices.uart.output().clone(),
            tty: controller.devices.handles.tty.clone(),
            balloon: controller.devices.handles.balloon.clone(),
            memory_size: controller.config.memory.size.0,
            metrics: metrics::Collector::new(&controller.devices),
            console_path: controller.devices.console_path().map(Path::to_owned),
            controller: None,
        };
        let thread = std::thread::Builder::new()
            .name("husk-vm".to_owned())
            .stack_size(STACK)
            .spawn(move || {
                // Whatever happens in there, whoever waits for the VM hears of its end.
                let verdict = Promise(verdict);
                verdict.0.set(controller.run(machine));
            })
            .map_err(|source| VmError::Host { what: "controller thread".to_owned(), source })?;
        running.controller = Some(thread);
        Ok(running)
    }
}
