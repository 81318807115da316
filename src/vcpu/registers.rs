//! What a vCPU had in its registers, as a report of its end tells it (SDM vol. 3 §2.1, vol. 1 §3.4).

use kvm_bindings::{kvm_regs, kvm_sregs};

/// The general registers, the instruction pointer and the flags.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[allow(missing_docs, reason = "they are called as the processor calls them")]
pub struct GeneralRegisters {
    pub rax: u64,
    pub rbx: u64,
    pub rcx: u64,
    pub rdx: u64,
    pub rsi: u64,
    pub rdi: u64,
    pub rsp: u64,
    pub rbp: u64,
    pub r8: u64,
    pub r9: u64,
    pub r10: u64,
    pub r11: u64,
    pub r12: u64,
    pub r13: u64,
    pub r14: u64,
    pub r15: u64,
    pub rip: u64,
    pub rflags: u64,
}

/// The control registers, the selectors of segments, and where the tables are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[allow(missing_docs, reason = "they are called as the processor calls them")]
pub struct SystemRegisters {
    pub cr0: u64,
    pub cr2: u64,
    pub cr3: u64,
    pub cr4: u64,
    pub efer: u64,
    /// Selectors.
    pub cs: u16,
    pub ss: u16,
    pub ds: u16,
    /// The guest-virtual addresses of the tables of segments and of interrupts.
    pub gdt: u64,
    pub idt: u64,
}

impl GeneralRegisters {
    pub(super) fn of(r: &kvm_regs) -> Self {
        Self {
            rax: r.rax,
            rbx: r.rbx,
            rcx: r.rcx,
            rdx: r.rdx,
            rsi: r.rsi,
            rdi: r.rdi,
            rsp: r.rsp,
            rbp: r.rbp,
            r8: r.r8,
            r9: r.r9,
            r10: r.r10,
            r11: r.r11,
            r12: r.r12,
            r13: r.r13,
            r14: r.r14,
            r15: r.r15,
            rip: r.rip,
            rflags: r.rflags,
        }
    }
}

impl SystemRegisters {
    pub(super) fn of(s: &kvm_sregs) -> Self {
        Self {
            cr0: s.cr0,
            cr2: s.cr2,
            cr3: s.cr3,
            cr4: s.cr4,
            efer: s.efer,
            cs: s.cs.selector,
            ss: s.ss.selector,
            ds: s.ds.selector,
            gdt: s.gdt.base,
            idt: s.idt.base,
        }
    }
}
