//! What the console's task needs of the guest's side of the console, whatever the device is.

use std::sync::Arc;

use vmm_sys_util::eventfd::EventFd;

use super::{Output, Uart};

/// The guest's side of a console.
pub trait Line: Send + Sync {
    /// What the guest has written.
    fn output(&self) -> &Arc<Output>;
    /// Rung when the guest may take input that it did not take before.
    fn wants_input(&self) -> &EventFd;
    /// Bytes of input the guest takes now.
    fn room(&self) -> usize;
    /// Gives the guest typed bytes; returns how many it took.
    fn receive(&self, typed: &[u8]) -> usize;
    /// The output has been full and has room again.
    fn output_has_room(&self);
}

impl Line for Uart {
    fn output(&self) -> &Arc<Output> {
        Uart::output(self)
    }
    fn wants_input(&self) -> &EventFd {
        Uart::wants_input(self)
    }
    fn room(&self) -> usize {
        Uart::room(self)
    }
    fn receive(&self, typed: &[u8]) -> usize {
        Uart::receive(self, typed)
    }
    fn output_has_room(&self) {
        self.transmitter_ready();
    }
}
