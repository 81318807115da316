//! A KVM VM in the making, in a thread of its own.
//!
//! Giving KVM the guest's memory takes some milliseconds, nearly all of them a grace period of the
//! host's kernel in which nothing is done. Meanwhile the caller opens devices, loads the kernel, and
//! creates the vCPUs of the VM that is there already.

use std::io;
use std::sync::mpsc::{Receiver, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use vm_memory::GuestMemoryMmap;

use super::STACK;
use super::error::{VmError, host};
use crate::hypervisor::{Hypervisor, HypervisorError, KvmVm};

const THREAD: &str = "the thread that makes the KVM VM";

/// A VM that is being given its memory.
pub(super) struct Making {
    /// Brings the VM as soon as there is one. In a lock only so that a `Vm` can be shared.
    created: Mutex<Receiver<Arc<KvmVm>>>,
    thread: Option<JoinHandle<Result<(), HypervisorError>>>,
}

impl Making {
    /// Begins.
    ///
    /// # Errors
    /// When no thread can be started.
    pub fn begin(hypervisor: &Arc<Hypervisor>, memory: &GuestMemoryMmap) -> Result<Self, VmError> {
        let (hypervisor, memory) = (hypervisor.clone(), memory.clone());
        let (announce, created) = sync_channel(1);
        let thread = std::thread::Builder::new()
            .name("husk-kvm".to_owned())
            .stack_size(STACK)
            .spawn(move || {
                let vm = Arc::new(hypervisor.create_vm(&memory)?);
                // Nobody waits any more when the rest of the start has failed.
                let _ = announce.send(vm.clone());
                vm.add_memory()
            })
            .map_err(host(THREAD))?;
        Ok(Self { created: Mutex::new(created), thread: Some(thread) })
    }

    /// Waits until the VM exists; its memory may come later.
    ///
    /// # Errors
    /// Why KVM made none.
    pub fn vm(&mut self) -> Result<Arc<KvmVm>, VmError> {
        let created = self.created.get_mut().unwrap_or_else(PoisonError::into_inner).recv();
        match created {
            Ok(vm) => Ok(vm),
            // The thread ended without one, and tells why.
            Err(_) => {
                self.join()?;
                Err(host(THREAD)(io::Error::other("it made no VM")))
            }
        }
    }

    /// Waits until it has its memory.
    ///
    /// # Errors
    /// Why KVM did not take it.
    pub fn finish(mut self) -> Result<(), VmError> {
        self.join()
    }

    fn join(&mut self) -> Result<(), VmError> {
        let Some(thread) = self.thread.take() else { return Ok(()) };
        let done = thread.join().map_err(|_| host(THREAD)(io::Error::other("it panicked")))?;
        Ok(done?)
    }
}

impl Drop for Making {
    fn drop(&mut self) {
        // Nobody wants the VM any more, nor to hear of its errors; but nothing of it may be left when
        // whoever wanted it is told so.
        let _ = self.join();
    }
}
