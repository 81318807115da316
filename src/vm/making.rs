//! A KVM VM in the making, in a thread of its own.
//!
//! Giving KVM the guest's memory takes some milliseconds, nearly all of them a grace period of the
//! host's kernel in which nothing is done. Meanwhile the caller opens devices, has the kernel loaded, and
//! creates the vCPUs of the VM that is there already.

use std::io;
use std::sync::mpsc::{Receiver, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};

use vm_memory::GuestMemoryMmap;

use super::background::Background;
use super::error::{VmError, host};
use crate::hypervisor::{Hypervisor, HypervisorError, KvmVm};

const THREAD: &str = "the thread that makes the KVM VM";

/// A VM that is being given its memory.
pub(super) struct Making {
    /// Brings the VM as soon as there is one. In a lock only so that a `Vm` can be shared.
    created: Mutex<Receiver<Arc<KvmVm>>>,
    work: Background<Result<(), HypervisorError>>,
}

impl Making {
    /// Begins.
    ///
    /// # Errors
    /// When no thread can be started.
    pub fn begin(hypervisor: &Arc<Hypervisor>, memory: &GuestMemoryMmap) -> Result<Self, VmError> {
        let (hypervisor, memory) = (hypervisor.clone(), memory.clone());
        let (announce, created) = sync_channel(1);
        let work = Background::begin("husk-kvm", THREAD, move || {
            let vm = Arc::new(hypervisor.create_vm(&memory)?);
            // Nobody waits any more when the rest of the start has failed.
            let _ = announce.send(vm.clone());
            vm.add_memory()
        })?;
        Ok(Self { created: Mutex::new(created), work })
    }

    /// Waits until the VM exists; its memory may come later, by what is returned with it.
    ///
    /// # Errors
    /// Why KVM made none.
    pub fn vm(self) -> Result<(Arc<KvmVm>, TakesMemory), VmError> {
        let created = self.created.into_inner().unwrap_or_else(PoisonError::into_inner).recv();
        match created {
            Ok(vm) => Ok((vm, TakesMemory(self.work))),
            // The thread ended without one, and tells why.
            Err(_) => {
                self.work.finish()??;
                Err(host(THREAD)(io::Error::other("it made no VM")))
            }
        }
    }
}

/// A VM that exists and is being given its memory.
pub(super) struct TakesMemory(Background<Result<(), HypervisorError>>);

impl TakesMemory {
    /// Waits until it has it.
    ///
    /// # Errors
    /// Why KVM did not take it.
    pub fn finish(self) -> Result<(), VmError> {
        Ok(self.0.finish()??)
    }
}
