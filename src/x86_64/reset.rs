//! The reset vector: the one piece of BIOS a guest may jump to.
//!
//! Linux on a hardware-reduced machine prefers EFI's reset, and without EFI falls back to "a BIOS
//! restart": real mode, and a jump to F000:FFF0 (`machine_real_restart`). What stands there uses
//! the reset register, so that `reboot` works without a `reboot=` parameter.

use husk_devices::platform::PowerControl;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::layout;
use crate::access::AccessError;

/// Writes the code at [`layout::RESET_VECTOR`].
///
/// # Errors
/// When there is no guest memory.
pub fn write(memory: &GuestMemoryMmap) -> Result<(), AccessError> {
    let [low, high] = (layout::POWER + PowerControl::RESET_OFFSET).to_le_bytes();
    let code = [
        [0xb0, PowerControl::RESET_VALUE].as_slice(), // mov al, RESET_VALUE
        &[0xba, low, high],                           // mov dx, reset register
        &[0xee],                                      // out dx, al
        &[0xf4],                                      // hlt
        &[0xeb, 0xfd],                                // jmp to the hlt
    ]
    .concat();
    Ok(memory.write_slice(&code, GuestAddress(layout::RESET_VECTOR))?)
}
