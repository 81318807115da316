//! A machine that is powered on: a KVM VM, its memory filled, its vCPU threads.
//!
//! Made anew at every boot, also at a reboot in place: a fresh KVM VM has no state that could be
//! forgotten. Devices and guest memory are lent to it and survive it.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use husk_devices::virtio::mmio::{ACK_USED, INTERRUPT_ACK, QUEUE_NOTIFY};
use kvm_bindings::CpuId;
use vm_memory::GuestMemoryMmap;

use super::devices::Devices;
use super::ending;
use super::error::{VmError, host};
use super::firmware::{Firmware, Loading, Software};
use crate::config::VmConfig;
use crate::hypervisor::{Hypervisor, HypervisorError, KvmVm};
use crate::timeline::{Phase, Timeline};
use crate::vcpu::gate::Gate;
use crate::vcpu::{OnFailure, Surroundings, Vcpu};
use crate::x86_64::{cpuid, layout};

/// What a machine is made of and does not own.
pub(super) struct Parts<'a> {
    pub hypervisor: &'a Hypervisor,
    pub cpuid: &'a CpuId,
    pub config: &'a VmConfig,
    pub memory: &'a GuestMemoryMmap,
    pub software: &'a Software,
    pub devices: &'a Devices,
    pub on_failure: OnFailure,
    pub timeline: &'a Arc<Timeline>,
}

/// A powered-on machine. Dropping it turns it off and ends its threads.
pub(super) struct Machine {
    gate: Arc<Gate>,
    /// They hold the KVM VM.
    threads: Vec<JoinHandle<()>>,
    /// Closed by the end of the last of them.
    running: Receiver<()>,
}

impl Machine {
    /// Powers a machine on, its memory as it was mapped but for the kernel; its vCPUs wait at the gate.
    ///
    /// # Errors
    /// Those of [`Firmware::load`], of KVM, and of starting threads.
    pub fn boot(parts: &Parts<'_>, kernel: Loading) -> Result<Self, VmError> {
        let vm = create_vm(parts)?;
        let vcpus = create_vcpus(parts, &vm)?;
        if parts.software.needs_timer(parts.config) {
            vm.add_timer()?;
        }
        connect(&vm, parts.devices)?;
        parts.timeline.mark(Phase::KvmVmReady);

        let firmware = Firmware { config: parts.config, slots: &parts.devices.slots() };
        if parts.config.acpi {
            parts.devices.generation.write(parts.memory)?;
        }
        let loaded = firmware.load(parts.software, kernel, parts.memory)?;
        if let Some(boot) = vcpus.first() {
            boot.begin_at::<VmError>(parts.memory, loaded.protocol, loaded.entry)?;
        }
        parts.timeline.mark(Phase::KernelLoaded);

        let gate = Arc::new(Gate::new().map_err(host("vCPU thread"))?);
        let (alive, running) = channel();
        let threads = Vec::with_capacity(vcpus.len());
        let mut machine = Self { gate: gate.clone(), threads, running };
        // After the machine, so that it is gone before when the machine is dropped here.
        let around = Surroundings {
            buses: parts.devices.buses.clone(),
            memory: parts.memory.clone(),
            gate,
            on_failure: parts.on_failure.clone(),
            timeline: parts.timeline.clone(),
            alive,
        };
        for vcpu in vcpus {
            machine.threads.push(vcpu.spawn(around.clone()).map_err(host("vCPU thread"))?);
        }
        Ok(machine)
    }

    /// Lets the vCPUs run.
    pub fn run(&self) {
        self.gate.open();
    }

    /// Turns it off and ends its threads. False when one of them hangs in the host, which is waited for
    /// as long as for anything that may hang there: a page of the guest's memory that cannot be read, say,
    /// or a device. It runs no guest code any more, but may still touch guest memory, and keeps it.
    pub fn turn_off(mut self) -> bool {
        self.end(ending::LIMIT)
    }

    fn end(&mut self, limit: Duration) -> bool {
        self.gate.stop();
        let threads = std::mem::take(&mut self.threads);
        if let Err(RecvTimeoutError::Timeout) = self.running.recv_timeout(limit) {
            log::error!(
                "a vCPU hangs in the host, and is not waited for any longer than {limit:?}"
            );
            return false;
        }
        for thread in threads {
            if thread.join().is_err() {
                log::error!("a vCPU thread panicked");
            }
        }
        true
    }

    /// Holds the vCPUs; when it returns none executes guest code.
    pub fn hold(&self) {
        self.gate.hold();
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if !self.threads.is_empty() {
            self.end(ending::LIMIT);
        }
    }
}

/// A VM of KVM's with all that is in the guest's address space.
fn create_vm(parts: &Parts<'_>) -> Result<Arc<KvmVm>, HypervisorError> {
    let Parts { hypervisor, memory, devices, .. } = parts;
    let mut vm = hypervisor.create_vm(memory)?;
    for file in &devices.handles.pmem {
        vm.add_region(file.region.clone(), file.file.read_only())?;
    }
    if let Some(pages) = devices.registers.clone()
        && let Err(e) = vm.add_region(pages, true)
    {
        log::info!("reading a device's register costs the guest an exit: {e}");
    }
    vm.add_interrupt_controllers()?;
    Ok(Arc::new(vm))
}

/// Connects every interrupt as an irqfd and every doorbell as an ioeventfd, and so the acknowledgement
/// of used buffers alone.
fn connect(vm: &KvmVm, devices: &Devices) -> Result<(), HypervisorError> {
    vm.connect_irq(devices.uart.irq_fd(), layout::COM1_GSI)?;
    vm.connect_irq(&devices.power_button, layout::POWER_BUTTON_GSI)?;
    vm.connect_irq(devices.generation.irq_fd(), layout::GENERATION_GSI)?;
    for placed in &devices.virtio {
        vm.connect_irq(placed.transport.irq_fd(), placed.slot.gsi)?;
        let doorbell = u64::from(placed.slot.base) + QUEUE_NOTIFY;
        for (queue, fd) in (0u32..).zip(placed.transport.doorbells()) {
            vm.connect_doorbell(fd, doorbell, queue)?;
        }
        let acknowledgement = u64::from(placed.slot.base) + INTERRUPT_ACK;
        vm.connect_doorbell(&devices.acknowledged, acknowledgement, ACK_USED)?;
    }
    Ok(())
}

fn create_vcpus(parts: &Parts<'_>, vm: &Arc<KvmVm>) -> Result<Vec<Vcpu>, HypervisorError> {
    let ids = 0..parts.config.cpus as u8;
    let vcpus: Vec<Vcpu> = ids.map(|id| Vcpu::create(vm, id)).collect::<Result<_, _>>()?;
    let machine = cpuid::Machine {
        cpus: parts.config.cpus,
        tsc_khz: vcpus.first().and_then(Vcpu::tsc_khz).unwrap_or(0),
        tsc_deadline: parts.hypervisor.has_tsc_deadline(),
    };
    let mut leaves = cpuid::for_machine(parts.cpuid, machine);
    vcpus.iter().try_for_each(|vcpu| vcpu.configure(&mut leaves))?;
    Ok(vcpus)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    /// A machine whose one thread ends when the sender is dropped.
    fn machine() -> (Machine, std::sync::mpsc::Sender<()>) {
        let ((alive, running), (release, released)) = (channel(), channel::<()>());
        let thread = std::thread::spawn(move || {
            let _alive: std::sync::mpsc::Sender<()> = alive;
            let _ = released.recv();
        });
        let gate = Arc::new(Gate::new().unwrap());
        (Machine { gate, threads: vec![thread], running }, release)
    }

    #[test]
    fn a_vcpu_that_hangs_in_the_host_is_waited_for_as_long_as_the_limit() {
        let (mut hangs, release) = machine();
        let (limit, begin) = (Duration::from_millis(50), Instant::now());
        assert!(!hangs.end(limit));
        drop(hangs);
        assert!(begin.elapsed() >= limit && begin.elapsed() < ending::LIMIT);
        drop(release);

        let (ends, release) = machine();
        drop(release);
        assert!(ends.turn_off());
    }
}
