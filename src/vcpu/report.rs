//! What is said about a guest that died: why, where, and what it was about to execute.

use std::fmt;

use super::registers::{GeneralRegisters, SystemRegisters};
use crate::hypervisor::Cause;

/// The state of a vCPU that cannot go on. Its `Display` is the report shown to the user.
#[derive(Debug, Clone)]
pub struct CrashReport {
    /// Which vCPU.
    pub cpu: u8,
    /// Why.
    pub cause: Cause,
    /// General registers, if KVM could still tell.
    pub regs: Option<GeneralRegisters>,
    /// Segment and control registers, likewise.
    pub sregs: Option<SystemRegisters>,
    /// Bytes at RIP, if they could be read.
    pub code: Vec<u8>,
}

impl CrashReport {
    /// Whether the registers are those after a reset, not those of the fault: KVM resets a vCPU
    /// that shuts down on AMD hosts before it tells anybody (`shutdown_interception`).
    pub fn registers_are_lost(&self) -> bool {
        let reset = |regs: &GeneralRegisters, sregs: &SystemRegisters| {
            regs.rip == 0xfff0 && sregs.cs == 0xf000 && sregs.cr3 == 0
        };
        self.cause == Cause::TripleFault
            && self.regs.as_ref().zip(self.sregs.as_ref()).is_some_and(|(r, s)| reset(r, s))
    }
}

impl fmt::Display for CrashReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "vCPU {}: {}", self.cpu, self.cause)?;
        if self.cause.is_emulation_failure() {
            writeln!(
                f,
                "this host's KVM interprets guest kernel code and does not know this instruction; \
                 run `husk doctor`"
            )?;
        }
        if self.registers_are_lost() {
            return writeln!(
                f,
                "its registers and code are lost: KVM resets such a vCPU on AMD processors"
            );
        }
        if let Some(r) = &self.regs {
            writeln!(f, "rip {:016x}  rsp {:016x}  rflags {:016x}", r.rip, r.rsp, r.rflags)?;
            writeln!(
                f,
                "rax {:016x}  rbx {:016x}  rcx {:016x}  rdx {:016x}",
                r.rax, r.rbx, r.rcx, r.rdx
            )?;
            writeln!(
                f,
                "rsi {:016x}  rdi {:016x}  rbp {:016x}  r8  {:016x}",
                r.rsi, r.rdi, r.rbp, r.r8
            )?;
            writeln!(
                f,
                "r9  {:016x}  r10 {:016x}  r11 {:016x}  r12 {:016x}",
                r.r9, r.r10, r.r11, r.r12
            )?;
            writeln!(f, "r13 {:016x}  r14 {:016x}  r15 {:016x}", r.r13, r.r14, r.r15)?;
        }
        if let Some(s) = &self.sregs {
            writeln!(
                f,
                "cr0 {:x}  cr2 {:x}  cr3 {:x}  cr4 {:x}  efer {:x}",
                s.cr0, s.cr2, s.cr3, s.cr4, s.efer
            )?;
            writeln!(
                f,
                "cs {:x}  ss {:x}  ds {:x}  gdt {:x}  idt {:x}",
                s.cs, s.ss, s.ds, s.gdt, s.idt
            )?;
        }
        write!(f, "code")?;
        if self.code.is_empty() {
            write!(f, " (not readable)")?;
        }
        for byte in &self.code {
            write!(f, " {byte:02x}")?;
        }
        writeln!(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_instruction_that_kvm_cannot_interpret_leads_to_the_doctor() {
        let report = |cause| CrashReport { cpu: 0, cause, regs: None, sregs: None, code: vec![] };
        // KVM_INTERNAL_ERROR_EMULATION of `linux/kvm.h`.
        let leads = |cause| report(cause).to_string().contains("run `husk doctor`");
        assert!(leads(Cause::InternalError { suberror: 1 }));
        assert!(!leads(Cause::TripleFault));
    }

    #[test]
    fn registers_after_amds_reset_are_not_shown_as_those_of_the_fault() {
        let mut report = CrashReport {
            cpu: 1,
            cause: Cause::TripleFault,
            regs: Some(GeneralRegisters { rip: 0xfff0, ..Default::default() }),
            sregs: Some(SystemRegisters::default()),
            code: vec![0; 16],
        };
        report.sregs.as_mut().unwrap().cs = 0xf000;
        assert!(report.to_string().contains("are lost") && !report.to_string().contains("rip 0"));
        report.regs.as_mut().unwrap().rip = 0x100_0000;
        assert!(report.to_string().contains("rip 0000000001000000"));
    }
}
