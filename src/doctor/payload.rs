//! The machine code the probe runs in a guest's ring 0, and the memory it runs in.
//!
//! ```text
//!   0x0500  GDT          (boot_registers)      0x1000  IDT: entry 3 leads to 0x2800
//!   0x2000  the code                           0x2800  the handler of INT3
//!   0x3000  576 bytes of data                  0x5000  the stack's top
//!   0x9000  page tables  (boot_registers)      0xf000  end
//! ```
//!
//! Every payload ends with a write to [`DONE`] and then begins again.

use kvm_bindings::{kvm_dtable, kvm_regs, kvm_sregs};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::access::AccessError;
use crate::x86_64::entry::Protocol;
use crate::x86_64::regs;

/// Bytes of guest memory.
pub const MEMORY: usize = 0x1_0000;
/// The port a payload writes to when it has done its work.
pub const DONE: u16 = 0x80;
/// Where the guest finds how often it shall go round.
pub const DATA: GuestAddress = GuestAddress(0x3000);

const IDT: u64 = 0x1000;
const CODE: u64 = 0x2000;
const HANDLER: u64 = 0x2800;
const STACK: u64 = 0x5000;
/// The code segment's selector, `__BOOT_CS`.
const CODE_SELECTOR: u64 = 0x10;

/// Goes round as often as [`DATA`] says.
pub const LOOP: [u8; 15] = [
    0x8b, 0x0c, 0x25, 0x00, 0x30, 0x00, 0x00, // mov ecx, [0x3000]
    0xff, 0xc9, // round: dec ecx
    0x75, 0xfc, // jnz round
    0xe6, DONE as u8, // out 0x80, al
    0xeb, 0xf1, // jmp (start)
];
/// A breakpoint, as Linux uses it to patch its own code; its handler returns.
pub const INT3: [u8; 5] = [
    0xcc, // int3
    0xe6, DONE as u8, // out 0x80, al
    0xeb, 0xfb, // jmp (start)
];
/// The 16-byte compare-and-exchange of Linux' slab allocator.
pub const CMPXCHG16B: [u8; 13] = [
    0x48, 0x0f, 0xc7, 0x0c, 0x25, 0x00, 0x30, 0x00, 0x00, // cmpxchg16b [0x3000]
    0xe6, DONE as u8, // out 0x80, al
    0xeb, 0xf3, // jmp (start)
];
/// The restoring of a task's floating-point state, as Linux does it at every switch of tasks, if
/// CPUID offers it to the guest (some KVMs cannot keep it from doing so).
pub const XRSTOR: [u8; 43] = [
    0xb8, 0x01, 0x00, 0x00, 0x00, // mov eax, 1
    0x0f, 0xa2, // cpuid
    0x0f, 0xba, 0xe1, 0x1a, // bt ecx, 26 (XSAVE)
    0x73, 0x1a, // jnc done
    0x0f, 0x20, 0xe0, // mov rax, cr4
    0x0d, 0x00, 0x00, 0x04, 0x00, // or eax, 1 << 18 (OSXSAVE)
    0x0f, 0x22, 0xe0, // mov cr4, rax
    0x31, 0xd2, // xor edx, edx
    0xb8, 0x01, 0x00, 0x00, 0x00, // mov eax, 1 (x87)
    0x0f, 0xae, 0x2c, 0x25, 0x00, 0x30, 0x00, 0x00, // xrstor [0x3000]
    0xe6, DONE as u8, // done: out 0x80, al
    0xeb, 0xd5, // jmp (start)
];
const IRETQ: [u8; 2] = [0x48, 0xcf];

/// Writes `code` and all it needs into `memory` and returns the registers to begin with: 64-bit
/// mode with paging, as in a kernel. (Real mode would not do: old Intel CPUs cannot run it in a VM,
/// and a sound KVM interprets it there.)
pub fn install(
    memory: &GuestMemoryMmap,
    code: &[u8],
    reset: kvm_sregs,
) -> Result<(kvm_regs, kvm_sregs), AccessError> {
    let (mut regs, mut sregs) = regs::boot_registers(memory, Protocol::Linux64, CODE, reset)?;
    memory.write_slice(code, GuestAddress(CODE))?;
    memory.write_slice(&IRETQ, GuestAddress(HANDLER))?;
    // A present 64-bit interrupt gate of ring 0 (SDM vol. 3 figure 6-8).
    const INTERRUPT_GATE: u64 = 0x8e << 40;
    let gate = INTERRUPT_GATE | CODE_SELECTOR << 16 | HANDLER & 0xffff;
    memory.write_obj(gate, GuestAddress(IDT + 3 * 16))?;
    sregs.idt = kvm_dtable { base: IDT, limit: 4 * 16 - 1, ..Default::default() };
    regs.rsp = STACK;
    Ok((regs, sregs))
}
