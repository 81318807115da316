//! The host's KVM: opened once, checked for what husk needs, made into VMs.
//!
//! Everything that speaks to KVM stands here, and nothing else: what is made of it, a machine or a
//! probe, and what its guest is for, is for others to know.
//!
//! ```text
//! Hypervisor (/dev/kvm) ──▶ KvmVm (and its memory) ──▶ KvmVcpu ──▶ Exit
//! ```

mod exit;
mod page;
mod vcpu;
mod vm;

use std::io;

use kvm_bindings::{CpuId, KVM_API_VERSION, KVM_MAX_CPUID_ENTRIES};
use kvm_ioctls::{Cap, Kvm};
use vm_memory::GuestMemoryMmap;

use crate::x86_64::layout;

pub use exit::Cause;
pub(crate) use exit::Exit;
pub(crate) use page::RunPage;
pub(crate) use vcpu::KvmVcpu;
pub(crate) use vm::KvmVm;

/// KVM cannot be used, and what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum HypervisorError {
    /// There is none.
    #[error(
        "/dev/kvm does not exist: enable virtualisation in the firmware (or nested virtualisation \
         on the host of this VM) and load kvm_intel or kvm_amd; `husk doctor` tells more"
    )]
    Absent,
    /// There is one for others.
    #[error(
        "no permission to open /dev/kvm: join the group that owns it (`sudo usermod -aG kvm $USER`, \
         then log in again)"
    )]
    Permission,
    /// It cannot be opened for another reason.
    #[error("/dev/kvm cannot be opened: {0}; `husk doctor` tells more")]
    Open(io::Error),
    /// A KVM from before 2007, or not KVM.
    #[error("/dev/kvm speaks API version {0}, not {KVM_API_VERSION}")]
    ApiVersion(i32),
    /// It lacks something husk cannot do without.
    #[error("this host's KVM has no {0}; Linux 4.12 or newer is needed")]
    Missing(&'static str),
    /// It lacks something this machine cannot do without.
    #[error(
        "this host's KVM has no {}: a PC's timer, which a machine without ACPI needs, and a kernel \
         that is not Linux", TIMER.name
    )]
    NoTimer,
    /// A call failed.
    #[error("{call}: {source}")]
    Call {
        /// The ioctl.
        call: &'static str,
        /// Its error.
        r#source: io::Error,
    },
}

/// Makes a `kvm_ioctls` error one that names its call.
fn failed(call: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> HypervisorError {
    move |e| HypervisorError::Call { call, source: io::Error::from_raw_os_error(e.errno()) }
}

/// Something a KVM may be able to do.
#[derive(Clone, Copy)]
pub(crate) struct Capability {
    cap: Cap,
    /// By the name of `Documentation/virt/kvm/api.rst`.
    pub name: &'static str,
}

const fn capability(cap: Cap, name: &'static str) -> Capability {
    Capability { cap, name }
}

/// What husk cannot do without.
pub(crate) const REQUIRED: [Capability; 7] = [
    capability(Cap::Irqchip, "KVM_CAP_IRQCHIP"),
    capability(Cap::UserMemory, "KVM_CAP_USER_MEMORY"),
    capability(Cap::Ioeventfd, "KVM_CAP_IOEVENTFD"),
    capability(Cap::Irqfd, "KVM_CAP_IRQFD"),
    capability(Cap::ImmediateExit, "KVM_CAP_IMMEDIATE_EXIT"),
    capability(Cap::SetTssAddr, "KVM_CAP_SET_TSS_ADDR"),
    capability(Cap::ExtCpuid, "KVM_CAP_EXT_CPUID"),
];

const TSC_DEADLINE: Capability = capability(Cap::TscDeadlineTimer, "KVM_CAP_TSC_DEADLINE_TIMER");
/// Memory that a guest cannot write to.
pub(crate) const READONLY_MEM: Capability = capability(Cap::ReadonlyMem, "KVM_CAP_READONLY_MEM");
const TIMER: Capability = capability(Cap::Pit2, "KVM_CAP_PIT2");

/// What husk uses where it is there, and what for.
pub(crate) const USED: [(Capability, &str); 5] = [
    (TSC_DEADLINE, "cheap guest timers"),
    (
        capability(Cap::GetTscKhz, "KVM_CAP_GET_TSC_KHZ"),
        "a guest that need not calibrate its clock",
    ),
    (capability(Cap::KvmclockCtrl, "KVM_CAP_KVMCLOCK_CTRL"), "a pause without alarms in the guest"),
    (
        READONLY_MEM,
        "read-only --pmem files, and registers of devices that a guest reads without an exit",
    ),
    (TIMER, "machines without ACPI, or kernels that are not Linux"),
];

/// An open /dev/kvm.
pub struct Hypervisor {
    kvm: Kvm,
    max_vcpus: u32,
}

impl Hypervisor {
    /// Opens /dev/kvm and checks that it has all husk needs.
    ///
    /// # Errors
    /// Why it cannot be used, and what may be done about it.
    pub fn open() -> Result<Self, HypervisorError> {
        let hypervisor = Self::open_unchecked()?;
        hypervisor.check()?;
        Ok(hypervisor)
    }

    /// Opens /dev/kvm, whatever it is: for who looks closer.
    pub(crate) fn open_unchecked() -> Result<Self, HypervisorError> {
        let kvm = Kvm::new().map_err(|e| match e.errno() {
            libc::ENOENT | libc::ENXIO | libc::ENODEV => HypervisorError::Absent,
            libc::EACCES | libc::EPERM => HypervisorError::Permission,
            errno => HypervisorError::Open(io::Error::from_raw_os_error(errno)),
        })?;
        let max_vcpus = u32::try_from(kvm.get_max_vcpus()).unwrap_or(u32::MAX);
        Ok(Self { kvm, max_vcpus })
    }

    fn check(&self) -> Result<(), HypervisorError> {
        self.check_api_version()?;
        match REQUIRED.into_iter().find(|capability| !self.has(*capability)) {
            Some(missing) => Err(HypervisorError::Missing(missing.name)),
            None => Ok(()),
        }
    }

    /// Checks that it speaks the API husk knows, and returns its version.
    pub(crate) fn check_api_version(&self) -> Result<i32, HypervisorError> {
        let version = self.kvm.get_api_version();
        let fits = i64::from(version) == i64::from(KVM_API_VERSION);
        if fits { Ok(version) } else { Err(HypervisorError::ApiVersion(version)) }
    }

    /// Whether it has a capability.
    pub(crate) fn has(&self, capability: Capability) -> bool {
        self.kvm.check_extension(capability.cap)
    }

    /// Checks that [`KvmVm::add_timer`] will do.
    ///
    /// # Errors
    /// [`HypervisorError::NoTimer`].
    pub(crate) fn check_timer(&self) -> Result<(), HypervisorError> {
        if self.has(TIMER) { Ok(()) } else { Err(HypervisorError::NoTimer) }
    }

    /// The most vCPUs a VM can have here.
    pub fn max_vcpus(&self) -> u32 {
        self.max_vcpus.min(layout::VCPUS_MAX)
    }

    /// The most vCPUs KVM itself allows a VM.
    pub(crate) fn kvm_max_vcpus(&self) -> u32 {
        self.max_vcpus
    }

    /// The same, were it a KVM whose KVM_CAP_MAX_VCPUS is `max`.
    #[cfg(test)]
    pub fn with_max_vcpus(self, max: u32) -> Self {
        Self { max_vcpus: max, ..self }
    }

    /// Whether the local APIC has TSC-deadline mode.
    pub fn has_tsc_deadline(&self) -> bool {
        self.has(TSC_DEADLINE)
    }

    /// CPUID leaves KVM can give a guest.
    ///
    /// # Errors
    /// [`HypervisorError::Call`].
    pub fn supported_cpuid(&self) -> Result<CpuId, HypervisorError> {
        self.kvm
            .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
            .map_err(failed("KVM_GET_SUPPORTED_CPUID"))
    }

    /// A VM for a guest of `memory`, without interrupt controllers yet.
    ///
    /// # Errors
    /// [`HypervisorError::Call`].
    pub(crate) fn create_vm(&self, memory: &GuestMemoryMmap) -> Result<KvmVm, HypervisorError> {
        let vm = loop {
            match self.kvm.create_vm() {
                // A signal came while KVM set the VM up; nothing was created.
                Err(e) if e.errno() == libc::EINTR => {}
                other => break other.map_err(failed("KVM_CREATE_VM"))?,
            }
        };
        vm.set_identity_map_address(layout::KVM_IDENTITY_MAP)
            .map_err(failed("KVM_SET_IDENTITY_MAP_ADDR"))?;
        vm.set_tss_address(layout::KVM_TSS as usize).map_err(failed("KVM_SET_TSS_ADDR"))?;
        KvmVm::new(vm, memory.clone())
    }
}
