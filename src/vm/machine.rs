//! A machine that is powered on: a KVM VM, its memory filled, its vCPU threads.
//!
//! Made anew at every boot, also at a reboot in place: a fresh KVM VM has no state that could be
//! forgotten. Devices and guest memory are lent to it and survive it.

use std::sync::Arc;
use std::thread::JoinHandle;

use husk_devices::virtio::mmio::QUEUE_NOTIFY;
use kvm_ioctls::{IoEventAddress, VmFd};
use vm_memory::{GuestMemoryBackend, GuestMemoryMmap};

use super::devices::Devices;
use super::error::{VmError, host};
use super::firmware::{Firmware, Software};
use super::making::Making;
use super::pmem;
use crate::config::VmConfig;
use crate::hypervisor::{self, Hypervisor, HypervisorError, failed};
use crate::timeline::{Phase, Timeline};
use crate::vcpu::gate::Gate;
use crate::vcpu::{OnCrash, Surroundings, Vcpu};
use crate::x86_64::{cpuid, layout, regs};

/// What a machine is made of and does not own.
pub(super) struct Parts<'a> {
    pub hypervisor: &'a Hypervisor,
    pub config: &'a VmConfig,
    pub memory: &'a GuestMemoryMmap,
    pub software: &'a Software,
    pub devices: &'a Devices,
    pub on_crash: OnCrash,
    pub timeline: &'a Arc<Timeline>,
}

/// A powered-on machine. Dropping it turns it off and ends its threads.
pub(super) struct Machine {
    gate: Arc<Gate>,
    threads: Vec<JoinHandle<()>>,
    /// Lives as long as its vCPUs.
    _vm: Arc<VmFd>,
}

impl Machine {
    /// Powers a machine on; its vCPUs wait at the gate. `memory_is_zero` says whether guest memory
    /// is as it was mapped.
    pub fn boot(
        parts: &Parts<'_>,
        mut making: Making,
        memory_is_zero: bool,
    ) -> Result<Self, VmError> {
        let firmware = Firmware { config: parts.config, slots: &parts.devices.slots() };
        if parts.config.acpi {
            parts.devices.generation.write(parts.memory)?;
        }
        let loaded = firmware.load(parts.software, parts.memory, memory_is_zero)?;
        parts.timeline.mark(Phase::KernelLoaded);

        let vm = making.vm()?;
        let vcpus = create_vcpus(parts, &vm)?;
        if let Some(boot) = vcpus.first() {
            let sregs = boot.fd().get_sregs().map_err(failed("KVM_GET_SREGS"))?;
            let (regs, sregs) =
                regs::boot_registers(parts.memory, loaded.protocol, loaded.entry, sregs)?;
            boot.fd().set_sregs(&sregs).map_err(failed("KVM_SET_SREGS"))?;
            boot.fd().set_regs(&regs).map_err(failed("KVM_SET_REGS"))?;
        }
        parts.timeline.mark(Phase::VcpusCreated);

        making.finish()?;
        // Linux finds its clocks in CPUID and ACPI. What was written for a PC, and a Linux without ACPI
        // (Debian's reads no MP table either), cannot do without a PC's timer.
        if parts.software.kernel.is_opaque() || !parts.config.acpi {
            hypervisor::add_timer(&vm)?;
        }
        pmem::register(&vm, &parts.devices.handles.pmem, parts.memory.num_regions())?;
        connect(&vm, parts.devices)?;
        parts.timeline.mark(Phase::KvmVmReady);

        let gate = Arc::new(Gate::new().map_err(host("vCPU thread"))?);
        let around = Surroundings {
            buses: parts.devices.buses.clone(),
            memory: parts.memory.clone(),
            gate: gate.clone(),
            on_crash: parts.on_crash.clone(),
            timeline: parts.timeline.clone(),
        };
        let mut machine = Self { gate, threads: Vec::with_capacity(vcpus.len()), _vm: vm };
        for vcpu in vcpus {
            machine.threads.push(vcpu.spawn(around.clone()).map_err(host("vCPU thread"))?);
        }
        Ok(machine)
    }

    /// Lets the vCPUs run.
    pub fn run(&self) {
        self.gate.open();
    }

    /// Holds the vCPUs; when it returns none executes guest code.
    pub fn hold(&self) {
        self.gate.hold();
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.gate.stop();
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                log::error!("a vCPU thread panicked");
            }
        }
    }
}

/// Connects every interrupt as an irqfd and every doorbell as an ioeventfd.
fn connect(vm: &VmFd, devices: &Devices) -> Result<(), HypervisorError> {
    let irqfd = |fd, gsi| vm.register_irqfd(fd, gsi).map_err(failed("KVM_IRQFD"));
    irqfd(devices.uart.irq_fd(), layout::COM1_GSI)?;
    irqfd(&devices.power_button, layout::POWER_BUTTON_GSI)?;
    irqfd(devices.generation.irq_fd(), layout::GENERATION_GSI)?;
    for placed in &devices.virtio {
        irqfd(placed.transport.irq_fd(), placed.slot.gsi)?;
        let doorbell = IoEventAddress::Mmio(u64::from(placed.slot.base) + QUEUE_NOTIFY);
        for (queue, fd) in (0u32..).zip(placed.transport.doorbells()) {
            vm.register_ioevent(fd, &doorbell, queue).map_err(failed("KVM_IOEVENTFD"))?;
        }
    }
    Ok(())
}

fn create_vcpus(parts: &Parts<'_>, vm: &VmFd) -> Result<Vec<Vcpu>, HypervisorError> {
    let ids = 0..parts.config.cpus as u8;
    let vcpus: Vec<Vcpu> = ids.map(|id| Vcpu::create(vm, id)).collect::<Result<_, _>>()?;
    let machine = cpuid::Machine {
        cpus: parts.config.cpus,
        tsc_khz: vcpus.first().and_then(Vcpu::tsc_khz).unwrap_or(0),
        tsc_deadline: parts.hypervisor.has_tsc_deadline(),
    };
    let mut leaves = cpuid::for_machine(&parts.hypervisor.supported_cpuid()?, machine);
    vcpus.iter().try_for_each(|vcpu| vcpu.configure(&mut leaves))?;
    Ok(vcpus)
}
