//! The host's KVM: opened once, checked for what husk needs, made into VMs.

use std::io;

use kvm_bindings::{
    CpuId, KVM_API_VERSION, KVM_MAX_CPUID_ENTRIES, KVM_PIT_SPEAKER_DUMMY, kvm_pit_config,
};
use kvm_ioctls::{Cap, Kvm, VmFd};

use crate::x86_64::layout;

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
    /// A call failed.
    #[error("{call}: {source}")]
    Call {
        /// The ioctl.
        call: &'static str,
        /// Its error.
        source: io::Error,
    },
}

/// Makes a `kvm_ioctls` error one that names its call.
pub(crate) fn failed(call: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> HypervisorError {
    move |e| HypervisorError::Call { call, source: io::Error::from_raw_os_error(e.errno()) }
}

/// Capabilities husk cannot do without, by the names of `Documentation/virt/kvm/api.rst`.
pub(crate) const REQUIRED: [(Cap, &str); 8] = [
    (Cap::Irqchip, "KVM_CAP_IRQCHIP"),
    (Cap::UserMemory, "KVM_CAP_USER_MEMORY"),
    (Cap::Ioeventfd, "KVM_CAP_IOEVENTFD"),
    (Cap::Irqfd, "KVM_CAP_IRQFD"),
    (Cap::ImmediateExit, "KVM_CAP_IMMEDIATE_EXIT"),
    (Cap::SetTssAddr, "KVM_CAP_SET_TSS_ADDR"),
    (Cap::ExtCpuid, "KVM_CAP_EXT_CPUID"),
    (Cap::MpState, "KVM_CAP_MP_STATE"),
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

    /// Opens /dev/kvm, whatever it is: for [`crate::doctor`], which looks closer.
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
        match REQUIRED.into_iter().find(|(cap, _)| !self.has(*cap)) {
            Some((_, name)) => Err(HypervisorError::Missing(name)),
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
    pub(crate) fn has(&self, capability: Cap) -> bool {
        self.kvm.check_extension(capability)
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
        self.has(Cap::TscDeadlineTimer)
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

    /// A VM without memory, with the in-kernel interrupt controllers.
    ///
    /// # Errors
    /// [`HypervisorError::Call`].
    pub fn create_vm(&self) -> Result<VmFd, HypervisorError> {
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
        vm.create_irq_chip().map_err(failed("KVM_CREATE_IRQCHIP"))?;
        Ok(vm)
    }
}

/// Gives `vm` a PC's interval timer (8254), with port 0x61, through which its third channel is
/// started and read.
///
/// # Errors
/// [`HypervisorError::Call`].
pub(crate) fn add_timer(vm: &VmFd) -> Result<(), HypervisorError> {
    let config = kvm_pit_config { flags: KVM_PIT_SPEAKER_DUMMY, ..Default::default() };
    vm.create_pit2(config).map_err(failed("KVM_CREATE_PIT2"))
}
