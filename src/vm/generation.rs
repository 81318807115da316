//! The VM generation id: 16 random bytes in guest memory that change whenever the guest may have been
//! copied or set back, so that it makes new keys and random numbers (Microsoft, "Virtual Machine
//! Generation ID"). A reboot in place is no new generation.

use std::io;
use std::sync::{Mutex, PoisonError};

use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::EventFd;

use super::error::{VmError, host};
use crate::access::AccessError;
use crate::x86_64::layout;

/// A generation id.
pub type GenerationId = [u8; 16];

/// The id of a VM, and the interrupt that tells the guest of another one.
pub(super) struct Generation {
    id: Mutex<GenerationId>,
    changed: EventFd,
}

impl Generation {
    /// A VM's first generation.
    pub fn new() -> Result<Self, VmError> {
        Ok(Self {
            id: Mutex::new(random().map_err(host("VM generation id"))?),
            changed: EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)
                .map_err(host("VM generation id"))?,
        })
    }

    /// An edge for each change, to be connected to KVM as an irqfd.
    pub fn irq_fd(&self) -> &EventFd {
        &self.changed
    }

    /// Puts the id where ACPI says that it is.
    pub fn write(&self, memory: &GuestMemoryMmap) -> Result<(), VmError> {
        let id = *self.id.lock().unwrap_or_else(PoisonError::into_inner);
        let written = memory.write_slice(&id, GuestAddress(layout::GENERATION_ID));
        Ok(written.map_err(AccessError::from)?)
    }

    /// Begins another generation and tells the guest. The vCPUs may run.
    pub fn renew(&self, memory: &GuestMemoryMmap) -> Result<(), VmError> {
        let fresh = random().map_err(host("VM generation id"))?;
        *self.id.lock().unwrap_or_else(PoisonError::into_inner) = fresh;
        self.write(memory)?;
        self.changed.write(1).map_err(host("VM generation id"))
    }
}

fn random() -> io::Result<GenerationId> {
    let mut id = GenerationId::default();
    let mut done = 0;
    while let Some(rest) = id.get_mut(done..).filter(|rest| !rest.is_empty()) {
        // SAFETY: a buffer and its own length.
        let got = unsafe { libc::getrandom(rest.as_mut_ptr().cast(), rest.len(), 0) };
        match usize::try_from(got) {
            Ok(count) => done += count,
            Err(_) => {
                let e = io::Error::last_os_error();
                if e.kind() != io::ErrorKind::Interrupted {
                    return Err(e);
                }
            }
        }
    }
    Ok(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_generation_has_another_id_and_an_interrupt_and_an_old_one_stays_over_a_reboot() {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap();
        let read = || memory.read_obj::<u128>(GuestAddress(layout::GENERATION_ID)).unwrap();
        let generation = Generation::new().unwrap();
        generation.write(&memory).unwrap();
        let first = read();
        assert_ne!(first, 0);
        memory.write_obj(0u128, GuestAddress(layout::GENERATION_ID)).unwrap();
        generation.write(&memory).unwrap();
        assert_eq!(read(), first);
        assert!(generation.irq_fd().read().is_err());
        generation.renew(&memory).unwrap();
        assert_ne!(read(), first);
        assert_eq!(generation.irq_fd().read().unwrap(), 1);
    }
}
