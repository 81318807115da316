//! A vCPU: one thread that runs the guest and carries its exits to the buses.
//!
//! It never does I/O and waits for nobody: devices answer from registers, doorbells are ioeventfds,
//! interrupts irqfds. What ends a guest leaves here as a [`Failure`].

pub mod gate;
pub mod report;

use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;

use husk_devices::bus::Bus;
use husk_devices::panics::caught;
use kvm_bindings::{CpuId, Msrs, kvm_cpuid_entry2, kvm_run};
use kvm_ioctls::{VcpuExit, VcpuFd, VmFd};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::hypervisor::{HypervisorError, failed};
use crate::timeline::{Phase, Timeline};
use crate::x86_64::{cpuid, msr, regs};
use gate::{Gate, Pass};
use report::{Cause, CrashReport};

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
    fd: VcpuFd,
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
}

impl Vcpu {
    /// Creates vCPU `id` of `vm`, in the state after reset.
    ///
    /// # Errors
    /// [`HypervisorError::Call`].
    pub fn create(vm: &VmFd, id: u8) -> Result<Self, HypervisorError> {
        let fd = vm.create_vcpu(id.into()).map_err(failed("KVM_CREATE_VCPU"))?;
        Ok(Self { id, fd })
    }

    /// The rate of its time stamp counter in kHz, if KVM knows it.
    pub fn tsc_khz(&self) -> Option<u32> {
        self.fd.get_tsc_khz().ok()
    }

    /// Gives it the machine's CPUID `leaves`, with its own ids written into them, and its MSRs.
    ///
    /// # Errors
    /// [`HypervisorError::Call`].
    pub fn configure(&self, leaves: &mut [kvm_cpuid_entry2]) -> Result<(), HypervisorError> {
        let id = self.id;
        cpuid::for_vcpu(leaves, id);
        let leaves = CpuId::from_entries(leaves).map_err(|_| HypervisorError::Call {
            call: "KVM_SET_CPUID2",
            source: io::ErrorKind::InvalidInput.into(),
        })?;
        self.fd.set_cpuid2(&leaves).map_err(failed("KVM_SET_CPUID2"))?;
        for entry in msr::boot_msrs() {
            // A KVM without one of them has a guest that cannot miss it.
            let done = Msrs::from_entries(&[entry]).ok().map(|one| self.fd.set_msrs(&one));
            if !matches!(done, Some(Ok(1))) {
                log::debug!("vCPU {id}: MSR {:#x} cannot be set", entry.index);
            }
        }
        self.fd.set_fpu(&regs::boot_fpu()).map_err(failed("KVM_SET_FPU"))
    }

    /// KVM's handle, for the registers of the boot vCPU.
    pub fn fd(&self) -> &VcpuFd {
        &self.fd
    }

    /// Starts the thread; it waits at the gate.
    ///
    /// # Errors
    /// When the host starts no thread.
    pub fn spawn(self, around: Surroundings) -> io::Result<JoinHandle<()>> {
        let name = format!("husk-vcpu{}", self.id);
        std::thread::Builder::new().name(name).stack_size(STACK).spawn(move || {
            let Vcpu { id, mut fd } = self;
            let runner = Runner { id, around: &around };
            if let Err(why) = caught(&format!("the thread of vCPU {id}"), || runner.run(&mut fd)) {
                (around.on_failure)(Failure::Panic(why));
            }
        })
    }
}

/// Why an exit is a vCPU's last; `suberror` is that of a KVM internal error.
fn cause_of(exit: &VcpuExit<'_>, suberror: impl FnOnce() -> u32) -> Cause {
    match exit {
        VcpuExit::Shutdown => Cause::TripleFault,
        VcpuExit::FailEntry(reason, _) => Cause::EntryFailed { reason: *reason },
        VcpuExit::InternalError => Cause::InternalError { suberror: suberror() },
        other => Cause::UnexpectedExit(format!("{other:?}")),
    }
}

struct Runner<'a> {
    id: u8,
    around: &'a Surroundings,
}

impl Runner<'_> {
    fn run(&self, fd: &mut VcpuFd) {
        // SAFETY: the guard is a local of this function, which runs in the thread and borrows `fd`.
        let inside = unsafe { self.around.gate.enter(fd) };
        if inside.pass() == Pass::Stop {
            return;
        }
        if self.id == 0 {
            self.around.timeline.mark(Phase::FirstRun);
        }
        let shared: *const kvm_run = fd.get_kvm_run();
        // SAFETY: `kvm_run` is mapped as long as `fd` lives, and KVM filled in `io` before it
        // returned the exit for which this is called.
        let io_width = || usize::from(unsafe { (*shared).__bindgen_anon_1.io.size }).max(1);
        let Buses { pio, mmio } = &self.around.buses;
        let cause = loop {
            match fd.run() {
                // String instructions bring several accesses to one port at once.
                Ok(VcpuExit::IoOut(port, data)) => {
                    data.chunks(io_width()).for_each(|access| pio.write(port.into(), access));
                }
                Ok(VcpuExit::IoIn(port, data)) => {
                    data.chunks_mut(io_width()).for_each(|access| pio.read(port.into(), access));
                }
                Ok(VcpuExit::MmioRead(address, data)) => mmio.read(address, data),
                Ok(VcpuExit::MmioWrite(address, data)) => mmio.write(address, data),
                Ok(VcpuExit::Intr) => {}
                Ok(last) => {
                    // SAFETY: as above; KVM filled in `internal` for the exit for which it is read.
                    let suberror = || unsafe { (*shared).__bindgen_anon_1.internal.suberror };
                    break cause_of(&last, suberror);
                }
                Err(e) if e.errno() == libc::EINTR => match inside.pass() {
                    Pass::Run => {}
                    // So that the guest's watchdogs do not bark at the lost time. Fails with
                    // EINVAL when the guest does not use kvmclock and cannot mind.
                    Pass::Resumed => drop(fd.kvmclock_ctrl()),
                    Pass::Stop => return,
                },
                // A vCPU that waits for its SIPI was woken.
                Err(e) if e.errno() == libc::EAGAIN => {}
                Err(e) => break Cause::RunFailed { errno: e.errno() },
            }
        };
        (self.around.on_failure)(Failure::Crash(self.report(fd, cause).into()));
        inside.rest();
    }

    fn report(&self, fd: &VcpuFd, cause: Cause) -> CrashReport {
        const CODE_BYTES: usize = 16;
        let regs = fd.get_regs().ok();
        let mut code = vec![0; CODE_BYTES];
        let physical = regs.and_then(|r| fd.translate_gva(r.rip).ok()).filter(|t| t.valid != 0);
        let read = physical.map(|t| GuestAddress(t.physical_address)).map(|at| {
            // The bytes may cross into a page that lies elsewhere: only this page is read.
            let in_page = CODE_BYTES.min(4096 - (at.0 % 4096) as usize);
            code.truncate(in_page);
            self.around.memory.read_slice(&mut code, at)
        });
        if !matches!(read, Some(Ok(()))) {
            code.clear();
        }
        CrashReport { cpu: self.id, cause, regs, sregs: fd.get_sregs().ok(), code }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The exits that no guest of the tests can bring about on every host: the CPU's refusal needs a
    /// state that KVM lets pass and the CPU does not.
    #[test]
    fn an_exit_that_is_the_last_is_told_as_what_it_is() {
        let cause = |exit| cause_of(&exit, || 3);
        let refused = cause(VcpuExit::FailEntry(0x8000_0021, 1));
        assert_eq!(refused, Cause::EntryFailed { reason: 0x8000_0021 });
        let report = CrashReport { cpu: 1, cause: refused, regs: None, sregs: None, code: vec![] };
        let text = report.to_string();
        assert!(text.contains("vCPU 1: the CPU refused the guest's state"), "{text}");
        assert!(text.contains("KVM_EXIT_FAIL_ENTRY, 0x80000021"), "{text}");
        assert_eq!(cause(VcpuExit::InternalError), Cause::InternalError { suberror: 3 });
        assert_eq!(cause(VcpuExit::Shutdown), Cause::TripleFault);
        assert_eq!(cause(VcpuExit::Hlt), Cause::UnexpectedExit("Hlt".to_owned()));
    }
}
