//! The state in which the boot vCPU enters the kernel.
//!
//! PVH (xen `docs/misc/pvh.pandoc`): 32-bit protected mode, flat segments, paging off, EBX points
//! to `hvm_start_info`. 64-bit boot protocol (`Documentation/arch/x86/boot.rst`): long mode, the
//! first 4 GiB identity-mapped, RSI points to `boot_params`. Other vCPUs stay as KVM resets them
//! and wait for the guest's INIT and SIPI.

use kvm_bindings::{kvm_dtable, kvm_fpu, kvm_regs, kvm_segment, kvm_sregs};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::entry::Protocol;
use super::layout;
use crate::access::AccessError;

const CR0_PE: u64 = 1 << 0;
const CR0_ET: u64 = 1 << 4;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;
/// Bit 1 of RFLAGS is always set.
const RFLAGS_RESERVED: u64 = 1 << 1;

/// Selectors the 64-bit boot protocol demands: `__BOOT_CS` and `__BOOT_DS`.
const CODE: u16 = 0x10;
const DATA: u16 = 0x18;
const TASK: u16 = 0x20;

/// A flat segment; `kind` is the type field of its descriptor (SDM vol. 3 §3.4.5.1).
fn segment(selector: u16, kind: u8, long: bool) -> kvm_segment {
    kvm_segment {
        base: 0,
        limit: 0xffff_ffff,
        selector,
        type_: kind,
        present: 1,
        dpl: 0,
        db: u8::from(!long),
        s: 1,
        l: u8::from(long),
        g: 1,
        ..Default::default()
    }
}

const EXECUTE_READ_ACCESSED: u8 = 0xb;
const READ_WRITE_ACCESSED: u8 = 0x3;
const TSS_BUSY: u8 = 0xb;

/// The descriptor of `segment` as it stands in a GDT (SDM vol. 3 figure 3-8).
fn descriptor(segment: &kvm_segment) -> u64 {
    let limit = u64::from(if segment.g == 1 { segment.limit >> 12 } else { segment.limit });
    let flags = u64::from(segment.type_)
        | u64::from(segment.s) << 4
        | u64::from(segment.dpl) << 5
        | u64::from(segment.present) << 7
        | u64::from(segment.l) << 13
        | u64::from(segment.db) << 14
        | u64::from(segment.g) << 15;
    limit & 0xffff
        | (segment.base & 0xff_ffff) << 16
        | flags << 40
        | (limit >> 16 & 0xf) << 48
        | (segment.base >> 24 & 0xff) << 56
}

/// Puts the GDT, the IDT and, for the 64-bit protocol, page tables into guest memory.
fn write_tables(
    memory: &GuestMemoryMmap,
    segments: [&kvm_segment; 3],
    paging: bool,
) -> Result<(), AccessError> {
    let [code, data, task] = segments;
    let gdt = [0, 0, descriptor(code), descriptor(data), descriptor(task)];
    for (n, entry) in (0..).zip(gdt) {
        memory.write_obj(entry, GuestAddress(layout::GDT + n * 8))?;
    }
    memory.write_obj(0u64, GuestAddress(layout::IDT))?;
    if !paging {
        return Ok(());
    }
    const PRESENT_WRITABLE: u64 = 3;
    const HUGE: u64 = 1 << 7;
    const DIRECTORIES: u64 = 4;
    let table = |n: u64| layout::PAGE_TABLES + n * 0x1000;
    memory.write_obj(table(1) | PRESENT_WRITABLE, GuestAddress(table(0)))?;
    for n in 0..DIRECTORIES {
        memory.write_obj(table(2 + n) | PRESENT_WRITABLE, GuestAddress(table(1) + n * 8))?;
        let mut page = [0u8; 0x1000];
        for (entry, at) in page.chunks_exact_mut(8).zip(n * 512..) {
            entry.copy_from_slice(&(at << 21 | PRESENT_WRITABLE | HUGE).to_le_bytes());
        }
        memory.write_slice(&page, GuestAddress(table(2 + n)))?;
    }
    Ok(())
}

/// Writes the boot tables and returns the registers with which vCPU 0 enters the kernel at
/// `entry`; `sregs` are those KVM reset it to.
///
/// # Errors
/// When there is no guest memory for the tables.
pub fn boot_registers(
    memory: &GuestMemoryMmap,
    protocol: Protocol,
    entry: u64,
    mut sregs: kvm_sregs,
) -> Result<(kvm_regs, kvm_sregs), AccessError> {
    let long = protocol == Protocol::Linux64;
    let code = segment(CODE, EXECUTE_READ_ACCESSED, long);
    // Data segments have no long mode; D/B stays set.
    let data = segment(DATA, READ_WRITE_ACCESSED, false);
    let task = kvm_segment {
        limit: 0x67,
        type_: TSS_BUSY,
        s: 0,
        g: 0,
        db: 0,
        ..segment(TASK, TSS_BUSY, false)
    };
    write_tables(memory, [&code, &data, &task], long)?;

    (sregs.cs, sregs.tr) = (code, task);
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    sregs.gdt = kvm_dtable { base: layout::GDT, limit: 5 * 8 - 1, ..Default::default() };
    sregs.idt = kvm_dtable { base: layout::IDT, limit: 0, ..Default::default() };
    sregs.cr0 = CR0_PE | CR0_ET;
    sregs.cr4 = 0;
    sregs.efer = 0;
    let mut regs = kvm_regs { rflags: RFLAGS_RESERVED, rip: entry, ..Default::default() };
    match protocol {
        Protocol::Pvh => regs.rbx = layout::PVH_INFO,
        Protocol::Linux64 => {
            sregs.cr0 |= CR0_PG;
            sregs.cr3 = layout::PAGE_TABLES;
            sregs.cr4 = CR4_PAE;
            sregs.efer = EFER_LME | EFER_LMA;
            regs.rsi = layout::ZERO_PAGE;
        }
    }
    Ok((regs, sregs))
}

/// The x87 and SSE state after FNINIT.
pub fn boot_fpu() -> kvm_fpu {
    kvm_fpu { fcw: 0x37f, mxcsr: 0x1f80, ..Default::default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn memory() -> GuestMemoryMmap {
        GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap()
    }

    #[test]
    fn the_64_bit_protocol_starts_in_long_mode_with_4_gib_mapped() {
        let memory = memory();
        let (regs, sregs) =
            boot_registers(&memory, Protocol::Linux64, 0x100_0200, kvm_sregs::default()).unwrap();
        assert_eq!((regs.rip, regs.rsi), (0x100_0200, layout::ZERO_PAGE));
        assert_eq!((sregs.cs.l, sregs.cs.db, sregs.cs.selector), (1, 0, 0x10));
        let gdt_code: u64 = memory.read_obj(GuestAddress(layout::GDT + 0x10)).unwrap();
        assert_eq!(gdt_code, 0x00af_9b00_0000_ffff);
        let last: u64 = memory.read_obj(GuestAddress(sregs.cr3 + 0x2000 + 2047 * 8)).unwrap();
        assert_eq!(last & !0xfff, 0xffe0_0000);
    }

    #[test]
    fn pvh_starts_in_protected_mode_without_paging() {
        let (regs, sregs) =
            boot_registers(&memory(), Protocol::Pvh, 0x100_0000, kvm_sregs::default()).unwrap();
        assert_eq!(regs.rbx, layout::PVH_INFO);
        assert_eq!((sregs.cs.l, sregs.cs.db, sregs.cs.limit), (0, 1, 0xffff_ffff));
        assert_eq!((sregs.cr0 & CR0_PG, sregs.cr0 & CR0_PE, sregs.efer), (0, 1, 0));
    }
}
