//! A KVM VM, together with the memory its guest is given.

use std::sync::Arc;

use kvm_bindings::{
    KVM_MEM_READONLY, KVM_PIT_SPEAKER_DUMMY, kvm_pit_config, kvm_userspace_memory_region,
};
use kvm_ioctls::{IoEventAddress, VcpuFd, VmFd};
use vm_memory::{GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, GuestRegionMmap};
use vmm_sys_util::eventfd::EventFd;

use super::{HypervisorError, READONLY_MEM, failed};

/// A VM of KVM's, at first with nothing but memory.
///
/// Set its memory before creating the interrupt controllers. They register I/O regions, and since Linux
/// 6.17 the old list of those is freed after a grace period of the host's kernel, for which every
/// later change of memory waits: 5 to 12 ms instead of 0.3. (Where KVM adds a page for the
/// processors' APICs with the first vCPU, that may wait all the same.)
pub(crate) struct KvmVm {
    /// Before the memory, which must stay mapped as long as this is open. Every vCPU keeps
    /// the VM open too, and so holds all of this.
    fd: VmFd,
    memory: GuestMemoryMmap,
    /// What else is in the guest's address space, and must stay mapped as long.
    beside: Vec<Arc<GuestRegionMmap>>,
}

impl KvmVm {
    pub(super) fn new(fd: VmFd, memory: GuestMemoryMmap) -> Result<Self, HypervisorError> {
        let vm = Self { fd, memory, beside: Vec::new() };
        (0..).zip(vm.memory.iter()).try_for_each(|(slot, region)| {
            // SAFETY: `vm` holds the memory.
            unsafe { vm.set_slot(slot, region, 0) }
        })?;
        Ok(vm)
    }

    /// Gives the guest `region` beside its memory, a file or registers; with `read_only` it cannot write
    /// to it: what it writes is an exit.
    ///
    /// # Errors
    /// [`HypervisorError::Missing`] when KVM cannot keep the guest from writing, or
    /// [`HypervisorError::Call`].
    pub fn add_region(
        &mut self,
        region: Arc<GuestRegionMmap>,
        read_only: bool,
    ) -> Result<(), HypervisorError> {
        if read_only && !self.fd.check_extension(READONLY_MEM.cap) {
            return Err(HypervisorError::Missing(READONLY_MEM.name));
        }
        // Each was mapped, so there are far fewer than 2^32.
        let slot = (self.memory.num_regions() + self.beside.len()) as u32;
        self.beside.push(region.clone());
        // SAFETY: `self` holds the mapping from now on.
        unsafe { self.set_slot(slot, &region, if read_only { KVM_MEM_READONLY } else { 0 }) }
    }

    /// Gives it the interrupt controllers, which its vCPUs need to be created.
    ///
    /// # Errors
    /// [`HypervisorError::Call`].
    pub fn add_interrupt_controllers(&self) -> Result<(), HypervisorError> {
        self.fd.create_irq_chip().map_err(failed("KVM_CREATE_IRQCHIP"))
    }

    /// # Safety
    /// `self` must hold `region`.
    unsafe fn set_slot(
        &self,
        slot: u32,
        region: &GuestRegionMmap,
        flags: u32,
    ) -> Result<(), HypervisorError> {
        let slot = kvm_userspace_memory_region {
            slot,
            flags,
            guest_phys_addr: region.start_addr().0,
            memory_size: region.len(),
            userspace_addr: region.as_ptr() as u64,
        };
        // SAFETY: the region stays mapped as long as guest code can run: `self` holds it (the caller
        // vouches for that), drops it after the VM's descriptor, and is held by every vCPU, without
        // whose descriptor there is no KVM_RUN. Guest
        // memory is only accessed through vm-memory, which allows it to change at any time.
        unsafe { self.fd.set_user_memory_region(slot) }
            .map_err(failed("KVM_SET_USER_MEMORY_REGION"))
    }

    /// Has KVM create vCPU `id`, in the state after reset: what [`KvmVcpu::create`](super::KvmVcpu::create) is made of.
    ///
    /// # Errors
    /// [`HypervisorError::Call`].
    pub(super) fn create_vcpu(&self, id: u8) -> Result<VcpuFd, HypervisorError> {
        self.fd.create_vcpu(id.into()).map_err(failed("KVM_CREATE_VCPU"))
    }

    /// Adds a PC's interval timer (8254), with port 0x61, through which its third channel is started
    /// and read.
    ///
    /// # Errors
    /// [`HypervisorError::Call`].
    pub fn add_timer(&self) -> Result<(), HypervisorError> {
        let config = kvm_pit_config { flags: KVM_PIT_SPEAKER_DUMMY, ..Default::default() };
        self.fd.create_pit2(config).map_err(failed("KVM_CREATE_PIT2"))
    }

    /// Raises interrupt `gsi` whenever `event` is signalled.
    ///
    /// # Errors
    /// [`HypervisorError::Call`].
    pub fn connect_irq(&self, event: &EventFd, gsi: u32) -> Result<(), HypervisorError> {
        self.fd.register_irqfd(event, gsi).map_err(failed("KVM_IRQFD"))
    }

    /// Signals `event` whenever the guest writes the 32-bit `value` to `address`.
    ///
    /// # Errors
    /// [`HypervisorError::Call`].
    pub fn connect_doorbell(
        &self,
        event: &EventFd,
        address: u64,
        value: u32,
    ) -> Result<(), HypervisorError> {
        let address = IoEventAddress::Mmio(address);
        self.fd.register_ioevent(event, &address, value).map_err(failed("KVM_IOEVENTFD"))
    }
}
