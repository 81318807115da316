//! The guest's physical address map and port map, every address explained once.
//!
//! ```text
//! 0x0000_0000  ┌ RAM ─────────────────────────────────────────────
//!      0x0500  │ GDT                        0x0540  IDT (empty)
//!      0x6000  │ hvm_start_info (PVH)       0x7000  boot_params (64-bit protocol)
//!      0x9000  │ boot page tables (6 pages)
//!    0x2_0000  │ command line (64 KiB)
//!    0x9_fc00  │ end of usable low RAM
//!    0xd_f000  │ VM generation id (a page of its own, reserved)
//!    0xe_0000  │ ACPI tables (128 KiB, where Linux looks for an RSDP), or
//!    0xf_0000  │ MP table (where Linux looks for one), for --no-acpi
//!    0xf_fff0  │ reset vector
//! 0x0010_0000  │ kernel …                   initrd at the top
//! 0xc000_0000  ├ MMIO hole ───────────────────────────────────────
//! 0xd000_0000  │ virtio-mmio windows, 4 KiB each
//! 0xfec0_0000  │ I/O APIC                   0xfee0_0000  local APIC
//! 0xfeff_c000  │ KVM's identity map page and TSS (4 pages)
//! 0x1_0000_0000└ the rest of RAM
//! ```

/// Boot GDT.
pub const GDT: u64 = 0x500;
/// Boot IDT: present, with a limit of zero.
pub const IDT: u64 = 0x540;
/// `hvm_start_info` and what it points to, for PVH.
pub const PVH_INFO: u64 = 0x6000;
/// `boot_params`, the "zero page" of the 64-bit boot protocol.
pub const ZERO_PAGE: u64 = 0x7000;
/// Boot page tables: one PML4, one PDPT, four page directories with 2 MiB pages.
pub const PAGE_TABLES: u64 = 0x9000;
/// The kernel command line.
pub const CMDLINE: u64 = 0x2_0000;
/// Bytes reserved for the command line, its NUL included.
pub const CMDLINE_LEN: u64 = 0x1_0000;
/// Where usable RAM below 1 MiB ends: a PC's extended BIOS data area.
pub const LOW_RAM_END: u64 = 0x9_fc00;
/// The BIOS area in which Linux looks for an RSDP; holds all ACPI tables.
pub const ACPI: u64 = 0xe_0000;
/// Bytes reserved for ACPI tables.
pub const ACPI_LEN: u64 = RESET_VECTOR - ACPI;
/// The VM generation id, 16 bytes. Not at the start of its page, where Linux looks for option ROMs.
pub const GENERATION_ID: u64 = 0xd_f028;
/// Where a CPU starts after reset, seen from real mode: F000:FFF0.
pub const RESET_VECTOR: u64 = 0xf_fff0;
/// The MP table, for machines without ACPI.
pub const MP_TABLE: u64 = 0xf_0000;
/// RAM above the PC's legacy areas.
pub const HIGH_RAM: u64 = 0x10_0000;

/// Start of the hole below 4 GiB in which devices live.
pub const MMIO_HOLE: u64 = 0xc000_0000;
/// End of the hole; RAM that does not fit below it continues here.
pub const MMIO_HOLE_END: u64 = 0x1_0000_0000;

/// First virtio-mmio window.
pub const VIRTIO_MMIO: u64 = 0xd000_0000;
/// KVM's in-kernel I/O APIC.
pub const IO_APIC: u32 = 0xfec0_0000;
/// KVM's in-kernel local APIC.
pub const LOCAL_APIC: u32 = 0xfee0_0000;
/// One page KVM needs on Intel hosts without unrestricted guests (KVM_SET_IDENTITY_MAP_ADDR).
pub const KVM_IDENTITY_MAP: u64 = 0xfeff_c000;
/// Three pages KVM needs likewise (KVM_SET_TSS_ADDR).
pub const KVM_TSS: u64 = 0xfeff_d000;

/// Keyboard controller ports 0x60..=0x64: only the reset line.
pub const KEYBOARD: u64 = 0x60;
/// Length of that range.
pub const KEYBOARD_LEN: u64 = 5;
/// CMOS clock ports: none, but never busy.
pub const RTC: u64 = 0x70;
/// Length of that range.
pub const RTC_LEN: u64 = 2;
/// COM1.
pub const COM1: u16 = 0x3f8;
/// COM1's interrupt.
pub const COM1_GSI: u32 = 4;
/// The debug-exit port, where test kernels look for QEMU's `isa-debug-exit`.
pub const DEBUG_EXIT: u16 = 0xf4;
/// pvpanic, where QEMU has it.
pub const PVPANIC: u16 = 0x505;
/// The boot-marker port.
pub const MARKER: u16 = 0x510;
/// Sleep and reset registers.
pub const POWER: u16 = 0x600;
/// The power button's interrupt.
pub const POWER_BUTTON_GSI: u32 = 5;

/// The interrupt that tells of a new VM generation id.
pub const GENERATION_GSI: u32 = 3;

/// First interrupt of the virtio devices.
pub const VIRTIO_GSI: u32 = 6;
/// One past the last input of the I/O APIC.
pub const GSI_END: u32 = 24;
/// The most virtio devices a machine can have: each has an interrupt of its own.
pub const VIRTIO_MAX: usize = (GSI_END - VIRTIO_GSI) as usize;

/// The most vCPUs: APIC ids stay 8 bits wide, and the MP table and MADT small.
pub const VCPUS_MAX: u32 = 64;
