//! A vCPU: one thread that runs the guest and carries its exits to the buses.
//!
//! It never does I/O: devices answer from registers, doorbells are ioeventfds, interrupts irqfds. It
//! waits at the [`gate`], and where the guest writes a device's status: for that device's worker to
//! start it or give it back, which has its limit (`husk_devices::worker::PATIENCE`). What ends a guest
//! leaves here as a [`Failure`].

pub mod gate;
pub mod registers;
pub mod report;

use std::io;
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::thread::JoinHandle;

use husk_devices::bus::Bus;
use husk_devices::panics::caught;
use kvm_bindings::kvm_cpuid_entry2;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::access::AccessError;
use crate::hypervisor::{Cause, Exit, HypervisorError, KvmVcpu, KvmVm};
use crate::timeline::{Phase, Timeline};
use crate::x86_64::entry::Protocol;
use crate::x86_64::{cpuid, msr, regs};
use gate::{Gate, Inside, Pass};
use registers::{GeneralRegisters, SystemRegisters};
use report::CrashReport;

/// Bytes of stack of a vCPU thread: exits are shallow, and below 2 MiB no huge page backs it.
const STACK: usize = 256 << 10;

/// The buses a vCPU's exits go to.
#[derive(Clone)]
pub struct Buses {
    /// Port I/O.
    pub pio: Arc<Bus>,
    /// Memory-mapped I/O.
    pub mmio: Arc<Bus>,
}

/// Why a vCPU's thread has nothing more to do, when nobody has sent it home.
pub enum Failure {
    /// The guest's fault: it cannot go on.
    Crash(Box<CrashReport>),
    /// husk's own: the thread panicked. In words.
    Panic(String),
}

/// Called on the vCPU's thread when it cannot go on.
pub type OnFailure = Arc<dyn Fn(Failure) + Send + Sync>;

/// A vCPU that has not run yet.
pub struct Vcpu {
    id: u8,
    kvm: KvmVcpu,
}

/// What a vCPU needs to run.
#[derive(Clone)]
pub struct Surroundings {
    /// Where exits go.
    pub buses: Buses,
    /// For the code bytes of a report.
    pub memory: GuestMemoryMmap,
    /// Holds, releases and ends the thread.
    pub gate: Arc<Gate>,
    /// Told of a crash or panic.
    pub on_failure: OnFailure,
    /// Marked at the first KVM_RUN.
    pub timeline: Arc<Timeline>,
    /// Dropped when the thread ends.
    #[allow(dead_code, reason = "dropped, never sent to")]
    pub alive: Sender<()>,
}

impl Vcpu {
    /// Creates vCPU `id` of `vm`, in the state after reset.
    ///
    /// # Errors
    /// [`HypervisorError::Call`].
    pub fn create(vm: &Arc<KvmVm>, id: u8) -> Result<Self, HypervisorError> {
        Ok(Self { id, kvm: KvmVcpu::create(vm, id)? })
    }

    /// The rate of its time stamp counter in kHz, if KVM knows it.
    pub fn tsc_khz(&self) -> Option<u32> {
        self.kvm.tsc_khz()
    }

    /// Gives it the machine's CPUID `leaves`, with its own ids written into them, and its MSRs.
    ///
    /// # Errors
    /// [`HypervisorError::Call`].
    pub fn configure(&self, leaves: &mut [kvm_cpuid_entry2]) -> Result<(), HypervisorError> {
        cpuid::for_vcpu(leaves, self.id);
        self.kvm.set_cpuid(leaves)?;
        for entry in msr::boot_msrs() {
            // A KVM without one of them has a guest that cannot miss it.
            if !self.kvm.set_msr(entry) {
                log::debug!("vCPU {}: MSR {:#x} cannot be set", self.id, entry.index);
            }
        }
        self.kvm.set_fpu(&regs::boot_fpu())
    }

    /// Lets it begin at `entry` of a kernel in `memory`, by `protocol`, whose tables are written.
    ///
    /// # Errors
    /// Those of KVM, or that there is no guest memory for the tables.
    pub fn begin_at<E>(
        &self,
        memory: &GuestMemoryMmap,
        protocol: Protocol,
        entry: u64,
    ) -> Result<(), E>
    where
        E: From<HypervisorError> + From<AccessError>,
    {
        self.kvm.begin_with(|reset| Ok(regs::boot_registers(memory, protocol, entry, reset)?))
    }

    /// Starts the thread; it waits at the gate.
    ///
    /// # Errors
    /// When the host starts no thread.
    pub fn spawn(self, around: Surroundings) -> io::Result<JoinHandle<()>> {
        let name = format!("husk-vcpu{}", self.id);
        std::thread::Builder::new().name(name).stack_size(STACK).spawn(move || {
            let Vcpu { id, mut kvm } = self;
            let runner = Runner { id, around: &around };
            if let Err(why) = caught(&format!("the thread of vCPU {id}"), || runner.run(&mut kvm)) {
                (around.on_failure)(Failure::Panic(why));
            }
        })
    }
}

struct Runner<'a> {
    id: u8,
    around: &'a Surroundings,
}

impl Runner<'_> {
    fn run(&self, kvm: &mut KvmVcpu) {
        let page = kvm.page().clone();
        self.around.gate.within(&page, |inside| {
            if let Some(cause) = self.until_the_end(kvm, inside) {
                (self.around.on_failure)(Failure::Crash(Box::new(self.report(kvm, cause))));
                inside.rest();
            }
        });
    }

    /// Runs the guest until the thread is sent home, or for a reason the guest cannot go on.
    fn until_the_end(&self, kvm: &mut KvmVcpu, inside: &Inside<'_>) -> Option<Cause> {
        if inside.pass() == Pass::Stop {
            return None;
        }
        if self.id == 0 {
            self.around.timeline.mark(Phase::FirstRun);
        }
        let Buses { pio, mmio } = &self.around.buses;
        loop {
            match kvm.run() {
                Exit::PortWrite { port, width, data } => {
                    data.chunks(width).for_each(|access| pio.write(port.into(), access));
                }
                Exit::PortRead { port, width, data } => {
                    data.chunks_mut(width).for_each(|access| pio.read(port.into(), access));
                }
                Exit::MmioRead { address, data } => mmio.read(address, data),
                Exit::MmioWrite { address, data } => mmio.write(address, data),
                Exit::Interrupted => match inside.pass() {
                    Pass::Run => {}
                    Pass::Resumed => kvm.excuse_lost_time(),
                    Pass::Stop => return None,
                },
                Exit::Again => {}
                Exit::Last(cause) => return Some(cause),
            }
        }
    }

    fn report(&self, kvm: &KvmVcpu, cause: Cause) -> CrashReport {
        const CODE_BYTES: usize = 16;
        let (regs, sregs) = kvm.registers();
        let mut code = vec![0; CODE_BYTES];
        let read = regs.and_then(|r| kvm.translate(r.rip)).map(|at| {
            // The bytes may cross into a page that lies elsewhere: only this page is read.
            let in_page = CODE_BYTES.min(4096 - (at % 4096) as usize);
            code.truncate(in_page);
            self.around.memory.read_slice(&mut code, GuestAddress(at))
        });
        if !matches!(read, Some(Ok(()))) {
            code.clear();
        }
        CrashReport {
            cpu: self.id,
            cause,
            regs: regs.as_ref().map(GeneralRegisters::of),
            sregs: sregs.as_ref().map(SystemRegisters::of),
            code,
        }
    }
}
