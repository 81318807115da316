//! KVM's side of one vCPU: its registers, and KVM_RUN with its exits read.

use std::io;
use std::sync::Arc;

use kvm_bindings::{CpuId, Msrs, kvm_cpuid_entry2, kvm_fpu, kvm_msr_entry, kvm_regs, kvm_sregs};
use kvm_ioctls::{VcpuExit, VcpuFd};

use super::exit::{Cause, Exit};
use super::page::RunPage;
use super::vm::KvmVm;
use super::{HypervisorError, failed};

/// A vCPU of a [`KvmVm`].
pub(crate) struct KvmVcpu {
    fd: VcpuFd,
    page: Arc<RunPage>,
    /// After `fd`: with it goes the guest's memory.
    _vm: Arc<KvmVm>,
}

impl KvmVcpu {
    /// Creates vCPU `id` of `vm`, in the state after reset.
    ///
    /// # Errors
    /// [`HypervisorError::Call`].
    pub fn create(vm: &Arc<KvmVm>, id: u8) -> Result<Self, HypervisorError> {
        let fd = vm.create_vcpu(id)?;
        let page = RunPage::map(&fd)
            .map_err(|source| HypervisorError::Call { call: "mmap of kvm_run", source })?;
        Ok(Self { fd, page: Arc::new(page), _vm: vm.clone() })
    }

    /// What others reach it by while it runs.
    pub fn page(&self) -> &Arc<RunPage> {
        &self.page
    }

    /// The rate of its time stamp counter in kHz, if KVM knows it.
    pub fn tsc_khz(&self) -> Option<u32> {
        self.fd.get_tsc_khz().ok()
    }

    /// Gives it its CPUID leaves.
    ///
    /// # Errors
    /// [`HypervisorError::Call`].
    pub fn set_cpuid(&self, leaves: &[kvm_cpuid_entry2]) -> Result<(), HypervisorError> {
        let leaves = CpuId::from_entries(leaves).map_err(|_| HypervisorError::Call {
            call: "KVM_SET_CPUID2",
            source: io::ErrorKind::InvalidInput.into(),
        })?;
        self.fd.set_cpuid2(&leaves).map_err(failed("KVM_SET_CPUID2"))
    }

    /// Sets a model-specific register; false when KVM has it not, or not with this value.
    pub fn set_msr(&self, entry: kvm_msr_entry) -> bool {
        let done = Msrs::from_entries(&[entry]).ok().map(|one| self.fd.set_msrs(&one));
        matches!(done, Some(Ok(1)))
    }

    /// Sets the x87 and SSE state.
    ///
    /// # Errors
    /// [`HypervisorError::Call`].
    pub fn set_fpu(&self, fpu: &kvm_fpu) -> Result<(), HypervisorError> {
        self.fd.set_fpu(fpu).map_err(failed("KVM_SET_FPU"))
    }

    /// Lets it begin with the registers that `make` makes of those KVM reset it to.
    ///
    /// # Errors
    /// [`HypervisorError::Call`], or what `make` says.
    pub fn begin_with<E: From<HypervisorError>>(
        &self,
        make: impl FnOnce(kvm_sregs) -> Result<(kvm_regs, kvm_sregs), E>,
    ) -> Result<(), E> {
        let (regs, sregs) = make(self.fd.get_sregs().map_err(failed("KVM_GET_SREGS"))?)?;
        self.fd.set_sregs(&sregs).map_err(failed("KVM_SET_SREGS"))?;
        Ok(self.fd.set_regs(&regs).map_err(failed("KVM_SET_REGS"))?)
    }

    /// Its general, and its segment and control registers, as far as KVM can still tell.
    pub fn registers(&self) -> (Option<kvm_regs>, Option<kvm_sregs>) {
        (self.fd.get_regs().ok(), self.fd.get_sregs().ok())
    }

    /// The guest-physical address that its page tables have for `address`, if any.
    pub fn translate(&self, address: u64) -> Option<u64> {
        let found = self.fd.translate_gva(address).ok().filter(|found| found.valid != 0)?;
        Some(found.physical_address)
    }

    /// So that the guest's watchdogs do not bark at the time it was held. Fails with EINVAL when the
    /// guest does not use kvmclock and cannot mind.
    pub fn excuse_lost_time(&self) {
        let _ = self.fd.kvmclock_ctrl();
    }

    /// Lets the guest execute until something has to be done.
    pub fn run(&mut self) -> Exit<'_> {
        match self.fd.run() {
            Ok(VcpuExit::IoOut(port, data)) => {
                Exit::PortWrite { port, width: self.page.io_width().max(1), data }
            }
            Ok(VcpuExit::IoIn(port, data)) => {
                Exit::PortRead { port, width: self.page.io_width().max(1), data }
            }
            Ok(VcpuExit::MmioRead(address, data)) => Exit::MmioRead { address, data },
            Ok(VcpuExit::MmioWrite(address, data)) => Exit::MmioWrite { address, data },
            Ok(VcpuExit::Intr) => Exit::Interrupted,
            Ok(last) => Exit::Last(Cause::of(&last, || self.page.suberror())),
            Err(e) => match e.errno() {
                libc::EINTR => Exit::Interrupted,
                libc::EAGAIN => Exit::Again,
                errno => Exit::Last(Cause::RunFailed { errno }),
            },
        }
    }
}
