//! Model-specific registers a vCPU starts with (SDM vol. 4).

use kvm_bindings::kvm_msr_entry;

const IA32_MISC_ENABLE: u32 = 0x1a0;
const IA32_MTRR_DEF_TYPE: u32 = 0x2ff;

/// Fast string operations; no branch trace store and no precise event sampling.
const MISC_ENABLE: u64 = 1 << 0 | 1 << 11 | 1 << 12;
/// MTRRs on, and all memory they say nothing of is write-back.
const MTRR_ENABLE_WRITE_BACK: u64 = 1 << 11 | 6;

/// What differs from KVM's own reset values.
pub fn boot_msrs() -> [kvm_msr_entry; 2] {
    let entry = |index, data| kvm_msr_entry { index, data, ..Default::default() };
    [entry(IA32_MISC_ENABLE, MISC_ENABLE), entry(IA32_MTRR_DEF_TYPE, MTRR_ENABLE_WRITE_BACK)]
}
