//! The page a vCPU shares with KVM, mapped a second time.
//!
//! `VcpuFd::run` takes `&mut` of its own mapping of `kvm_run`, and by Rust's rules nobody else may
//! then touch that mapping. But `immediate_exit` is made to be set by other threads while the vCPU
//! runs, so they reach it here: another mapping of the same page, of which Rust has no reference but
//! to the one atomic byte. What `VcpuExit` leaves out of an exit is read here too.

use std::io;
use std::mem::offset_of;
use std::os::fd::AsRawFd;
use std::ptr::NonNull;
use std::sync::atomic::AtomicU8;

use kvm_bindings::kvm_run;
use kvm_ioctls::VcpuFd;

/// Bytes mapped: the host's page, as KVM maps by pages.
const PAGE: usize = 4096;
const _: () = assert!(size_of::<kvm_run>() <= PAGE);

/// A mapping of the first page of a vCPU's descriptor, which is `struct kvm_run`
/// (`Documentation/virt/kvm/api.rst` §5). It stays valid when the descriptor is closed.
pub(crate) struct RunPage(NonNull<kvm_run>);

// SAFETY: a mapping belongs to the process, not to a thread, and all access to it is by an atomic or
// by volatile reads.
unsafe impl Send for RunPage {}
// SAFETY: as above.
unsafe impl Sync for RunPage {}

impl RunPage {
    /// Maps it.
    ///
    /// # Errors
    /// The host's.
    pub(super) fn map(vcpu: &VcpuFd) -> io::Result<Self> {
        // SAFETY: a new mapping, placed by the kernel, of a descriptor that is open.
        let at = unsafe {
            let prot = libc::PROT_READ | libc::PROT_WRITE;
            libc::mmap(std::ptr::null_mut(), PAGE, prot, libc::MAP_SHARED, vcpu.as_raw_fd(), 0)
        };
        if at == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        NonNull::new(at.cast()).map(Self).ok_or_else(|| io::Error::other("mapped at address 0"))
    }

    /// The byte that makes KVM_RUN return at once, or not begin, when it is not zero.
    pub fn immediate_exit(&self) -> &AtomicU8 {
        // SAFETY: the byte is inside the mapping, which lives as long as `self`; in this mapping it
        // is accessed by this atomic alone, and KVM only reads it.
        unsafe {
            let byte = self.0.as_ptr().cast::<u8>().add(offset_of!(kvm_run, immediate_exit));
            AtomicU8::from_ptr(byte)
        }
    }

    /// After KVM_EXIT_IO: bytes of one access, of which a string instruction brings several.
    pub(super) fn io_width(&self) -> usize {
        // SAFETY: inside the mapping, and any bytes are a `u8`. Volatile, because KVM writes it.
        usize::from(unsafe {
            (&raw const (*self.0.as_ptr()).__bindgen_anon_1.io.size).read_volatile()
        })
    }

    /// After KVM_EXIT_INTERNAL_ERROR: KVM's sub-reason.
    pub(super) fn suberror(&self) -> u32 {
        // SAFETY: as in `io_width`, for a `u32`.
        unsafe {
            (&raw const (*self.0.as_ptr()).__bindgen_anon_1.internal.suberror).read_volatile()
        }
    }
}

impl Drop for RunPage {
    fn drop(&mut self) {
        // SAFETY: the mapping made in `map`; references into it do not outlive `self`.
        unsafe { libc::munmap(self.0.as_ptr().cast(), PAGE) };
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::Ordering;

    use vm_memory::{GuestAddress, GuestMemoryMmap};

    use crate::hypervisor::{Exit, Hypervisor, KvmVcpu};

    #[test]
    fn the_byte_in_the_second_mapping_is_the_one_kvm_obeys() {
        let hypervisor = match Hypervisor::open() {
            Ok(hypervisor) => hypervisor,
            Err(why) => return crate::skipped::skipped(why),
        };
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x1000)]).unwrap();
        let vm = Arc::new(hypervisor.create_vm(&memory).unwrap());
        let mut vcpu = KvmVcpu::create(&vm, 0).unwrap();
        let page = vcpu.page().clone();
        page.immediate_exit().store(1, Ordering::SeqCst);
        // Without memory and registers it would not come out of KVM_RUN like this.
        let exit = vcpu.run();
        assert!(matches!(exit, Exit::Interrupted), "{exit:?}");
        // A vCPU may go before whoever could still reach it.
        drop((vcpu, vm));
        assert_eq!(page.immediate_exit().load(Ordering::SeqCst), 1);
    }
}
