//! The ways into a kernel.
//!
//! `boot` finds out which of them a kernel has, `regs` puts the boot vCPU into its state.

use std::fmt;

/// How a kernel is entered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// Xen's PVH: 32-bit protected mode without paging, `hvm_start_info` in EBX
    /// (`xen/include/public/arch-x86/hvm/start_info.h`).
    Pvh,
    /// Linux's 64-bit boot protocol: long mode, identity-mapped, `boot_params` in RSI
    /// (`Documentation/arch/x86/boot.rst`, "64-bit Boot Protocol").
    Linux64,
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Protocol::Pvh => "PVH",
            Protocol::Linux64 => "the 64-bit Linux boot protocol",
        })
    }
}
