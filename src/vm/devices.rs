//! The machine's devices: made from the configuration, placed on the buses.
//!
//! A new virtio device is one line in [`open_virtio`], or in [`super::handles`] when others than the
//! guest want something of it; address, interrupt and description in ACPI or on the command line follow
//! from its place in the list.

use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use husk_devices::bus::{BusBuilder, BusDevice};
use husk_devices::platform::{
    AbsentRtc, DEBUG_EXIT_LEN, DebugExit, EventSink, KeyboardReset, MarkerPort, POWER_LEN,
    PVPANIC_LEN, PowerControl, PvPanic,
};
use husk_devices::serial::{Line, UART_LEN, Uart};
use husk_devices::virtio::mmio::{MMIO_WINDOW, MmioTransport};
use husk_devices::virtio::registers::Registers;
use husk_devices::virtio::rng::Rng;
use husk_devices::worker::{OnBroken, Worker};
use vm_memory::{GuestAddress, GuestMemoryMmap, GuestRegionMmap};
use vmm_sys_util::eventfd::EventFd;

use super::console::{Console, Source};
use super::error::{VmError, host};
use super::generation::Generation;
use super::handles::{Handles, Place};
use super::opening::Opening;
use super::pmem;
use crate::config::{OVERLAY, VmConfig};
use crate::vcpu::Buses;
use crate::x86_64::acpi::VirtioSlot;
use crate::x86_64::layout;

/// How long a reboot waits for a host that does not answer.
const HOST_PATIENCE: Duration = Duration::from_secs(10);

/// A virtio device at its place.
pub(super) struct Placed {
    pub slot: VirtioSlot,
    pub transport: Arc<MmioTransport>,
}

/// All devices of a machine; they outlive its reboots.
pub(super) struct Devices {
    pub buses: Buses,
    pub virtio: Vec<Placed>,
    /// All their registers, for the guest to read; `None` without such devices.
    pub registers: Option<Arc<GuestRegionMmap>>,
    pub uart: Arc<Uart>,
    /// What others than the guest want of some of them.
    pub handles: Handles,
    /// Rung to press the power button; an irqfd.
    pub power_button: EventFd,
    /// Takes acknowledgements that nobody need hear of; an ioeventfd of every transport.
    pub acknowledged: EventFd,
    pub generation: Generation,
    console: Option<Console>,
    /// The VM's worker. After the devices that run in it.
    worker: Worker,
    /// Those of the devices that block. After them, too.
    _own: Vec<Worker>,
}

impl Devices {
    /// Opens every backend and puts every device on its bus. At the guest addresses `not_ram` a file
    /// is mapped over `memory`.
    ///
    /// # Errors
    /// What cannot be opened, by its name in the configuration.
    pub fn open(
        config: &VmConfig,
        memory: &GuestMemoryMmap,
        not_ram: Vec<Range<u64>>,
        events: EventSink,
        on_broken: OnBroken,
    ) -> Result<Self, VmError> {
        let mut opening = Opening::new(on_broken)?;
        let uart = Uart::new().map_err(host("serial console"))?;
        open_virtio(config, &mut opening)?;
        let place = Place { ram: memory, not_ram, uart: &uart };
        let handles = Handles::open(config, place, &mut opening)?;
        let Opening { worker, own, devices, on_broken: _ } = opening;
        let reachable = pmem::reachable(memory, &handles.pmem)?;

        let mut pio = BusBuilder::default();
        let ports: [(&str, u64, u64, Arc<dyn BusDevice>); 7] = [
            (
                "keyboard reset",
                layout::KEYBOARD,
                layout::KEYBOARD_LEN,
                Arc::new(KeyboardReset::new(events.clone())),
            ),
            ("rtc", layout::RTC, layout::RTC_LEN, Arc::new(AbsentRtc)),
            (
                "debug exit",
                layout::DEBUG_EXIT.into(),
                DEBUG_EXIT_LEN,
                Arc::new(DebugExit(events.clone())),
            ),
            ("com1", layout::COM1.into(), UART_LEN, uart.clone()),
            (
                "pvpanic",
                layout::PVPANIC.into(),
                PVPANIC_LEN,
                Arc::new(PvPanic::new(events.clone())),
            ),
            ("marker", layout::MARKER.into(), 1, Arc::new(MarkerPort(events.clone()))),
            ("power", layout::POWER.into(), POWER_LEN, Arc::new(PowerControl::new(events))),
        ];
        for (name, base, len, device) in ports {
            pio.add(name, base, len, device)?;
        }

        let mut mmio = BusBuilder::default();
        let mut virtio = Vec::with_capacity(devices.len());
        let pages = Registers::for_devices(devices.len(), GuestAddress(layout::VIRTIO_MMIO))
            .map_err(host("registers"))?;
        let registers = pages.first().map(|page| page.pages().clone());
        for (((name, device), page), n) in devices.into_iter().zip(pages).zip(0u32..) {
            let slot = VirtioSlot {
                base: layout::VIRTIO_MMIO as u32 + n * MMIO_WINDOW as u32,
                gsi: layout::VIRTIO_GSI + n,
            };
            let transport =
                MmioTransport::new(&name, device, reachable.clone(), page).map_err(host(&name))?;
            let transport = Arc::new(transport);
            mmio.add(name, slot.base.into(), MMIO_WINDOW, transport.clone())?;
            virtio.push(Placed { slot, transport });
        }
        Ok(Self {
            buses: Buses { pio: Arc::new(pio.build()), mmio: Arc::new(mmio.build()) },
            virtio,
            registers,
            uart,
            handles,
            power_button: EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)
                .map_err(host("power button"))?,
            acknowledged: EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)
                .map_err(host("interrupts"))?,
            generation: Generation::new()?,
            console: None,
            worker,
            _own: own,
        })
    }

    /// Connects the console. What the guest wrote before is shown then.
    ///
    /// # Errors
    /// As [`Console::connect`].
    pub fn connect_console(&mut self, source: Source) -> Result<(), VmError> {
        let line: Arc<dyn Line> = match &self.handles.tty {
            Some(tty) => tty.clone(),
            None => self.uart.clone(),
        };
        self.console = Some(Console::connect(source, line, &self.worker)?);
        Ok(())
    }

    /// The console's pseudo-terminal, if it has one.
    pub fn console_path(&self) -> Option<&Path> {
        self.console.as_ref().and_then(Console::path)
    }

    /// What the guest drives its virtio devices by.
    pub fn transports(&self) -> impl Iterator<Item = &Arc<MmioTransport>> + Clone {
        self.virtio.iter().map(|placed| &placed.transport)
    }

    /// Where the guest finds its virtio devices.
    pub fn slots(&self) -> Vec<VirtioSlot> {
        self.virtio.iter().map(|placed| placed.slot).collect()
    }

    /// All devices are stopped next: their workers are waited for together.
    fn recall(&self) {
        self.transports().for_each(|transport| transport.recall());
    }

    /// Stops every device between two requests. The vCPUs are held.
    pub fn pause(&self) {
        self.recall();
        self.transports().for_each(|transport| transport.pause());
    }

    /// Lets the devices go on where they were stopped.
    pub fn resume(&self) {
        self.transports().for_each(|transport| transport.resume());
    }

    /// Brings every device back to its state after power-on. No vCPU runs.
    ///
    /// # Errors
    /// When the host does not finish what a device asked of it before: it may still write to guest
    /// memory, which is about to become another guest's.
    pub fn reset(&self) -> io::Result<()> {
        self.recall();
        self.transports().for_each(|transport| transport.reset());
        let deadline = Instant::now() + HOST_PATIENCE;
        for transport in self.transports() {
            while transport.is_busy() {
                if Instant::now() >= deadline {
                    let name = transport.name();
                    let what = format!("{name}: the host has not answered for {HOST_PATIENCE:?}");
                    return Err(io::Error::new(io::ErrorKind::TimedOut, what));
                }
                std::thread::sleep(Duration::from_millis(5));
            }
        }
        self.uart.reset()
    }

    /// Stops the devices for good and writes what is left of the console's output.
    pub fn close(&mut self) {
        // Nobody waits for the guest any more.
        if let Some(inside) = &self.handles.inside {
            inside.close();
        }
        self.recall();
        self.transports().for_each(|transport| transport.reset());
        if let Some(console) = self.console.take() {
            console.close();
        }
    }
}

impl Drop for Devices {
    fn drop(&mut self) {
        self.close();
    }
}

/// Opens every virtio device of the configuration that nobody but the guest wants something of.
fn open_virtio(config: &VmConfig, opening: &mut Opening) -> Result<(), VmError> {
    for disk in &config.disks {
        let device = super::disks::open(disk, config.cpus)?;
        opening.add(&disk.id, device.watched(opening.on_broken.clone()));
    }
    // After the user's own, whose names in the guest stay what they are.
    if let Some(disk) = config.overlay_disk() {
        let device = super::disks::open_overlay(disk, config.cpus)?;
        opening.add(OVERLAY, device.watched(opening.on_broken.clone()));
    }
    super::volumes::open(&config.volumes, opening)?;
    for net in &config.nets {
        super::net::open(net, config.cpus, opening)?;
    }
    if config.rng {
        opening.add("rng", Rng::new(opening.worker.handle()));
    }
    Ok(())
}
