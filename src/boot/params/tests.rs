//! Checked against the layouts as `linux-loader` has translated them from the C headers.

use linux_loader::loader::bootparam::boot_params;
use linux_loader::loader::elf::start_info::{
    hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info,
};

use super::*;
use crate::boot::bzimage::HEAD_SIZE;
use crate::boot::synth;

const AT: u64 = 0x7000;
const E820: [E820Entry; 3] = [
    E820Entry { start: 0, len: 0x9_fc00, kind: E820_RAM },
    E820Entry { start: 0xe_0000, len: 0x2_0000, kind: E820_RESERVED },
    E820Entry { start: 0x1_0000_0000, len: 0x8000_0000, kind: E820_RAM },
];
const INFO: BootInfo<'_> = BootInfo {
    e820: &E820,
    cmdline: GuestRange { addr: 0x1_0002_0000, len: 17 },
    initrd: Some(GuestRange { addr: 0x2_0765_4000, len: 0x1_0000_1234 }),
    rsdp: Some(0xe_0000),
};

fn memory() -> GuestMemoryMmap {
    let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x10000)]).unwrap();
    memory.write_slice(&[0xcc; 0x10000], GuestAddress(0)).unwrap();
    memory
}

/// Guest memory at `address` as a struct of plain numbers.
fn read<T: Default>(memory: &GuestMemoryMmap, address: u64) -> T {
    let mut value = T::default();
    let size = size_of::<T>();
    // SAFETY: `value` is `size` bytes, and all T used here are numbers only, for which any bytes do.
    let bytes = unsafe { std::slice::from_raw_parts_mut((&raw mut value).cast::<u8>(), size) };
    memory.read_slice(bytes, GuestAddress(address)).unwrap();
    value
}

/// `boot_params` is no `Default`.
struct ZeroPage(boot_params);
impl Default for ZeroPage {
    fn default() -> Self {
        // SAFETY: a struct of numbers, for which zeros do.
        ZeroPage(unsafe { std::mem::zeroed() })
    }
}

#[test]
fn boot_params_of_a_bzimage_carry_its_header() {
    let image = synth::bzimage(&[]);
    let header = SetupHeader::parse(&image[..HEAD_SIZE], image.len() as u64).unwrap();
    let memory = memory();
    write_boot_params(&memory, AT, &INFO, Some(&header)).unwrap();
    let page = read::<ZeroPage>(&memory, AT).0;
    let hdr = page.hdr;
    assert_eq!({ hdr.header }, u32::from_le_bytes(*b"HdrS"));
    assert_eq!(({ hdr.version }, { hdr.boot_flag }), (0x020f, 0xaa55));
    assert_eq!(({ hdr.type_of_loader }, { hdr.loadflags }), (0xff, 1));
    assert_eq!(({ hdr.init_size }, { hdr.pref_address }), (synth::INIT_SIZE, synth::BASE));
    assert_eq!(({ hdr.cmd_line_ptr }, { page.ext_cmd_line_ptr }), (0x2_0000, 1));
    assert_eq!(({ hdr.ramdisk_image }, { page.ext_ramdisk_image }), (0x0765_4000, 2));
    assert_eq!(({ hdr.ramdisk_size }, { page.ext_ramdisk_size }), (0x1234, 1));
    assert_eq!(({ page.acpi_rsdp_addr }, { page.sentinel }), (0xe_0000, 0));
    assert_eq!({ page.e820_entries }, 3);
    let table = page.e820_table;
    for (found, expected) in table.iter().zip(&E820) {
        assert_eq!(({ found.addr }, { found.size }), (expected.start, expected.len));
        assert_eq!({ found.r#type }, expected.kind);
    }
    assert_eq!({ table[3].size }, 0);
    assert_eq!(read::<u8>(&memory, AT + 4096), 0xcc, "nothing behind it is touched");
}

#[test]
fn boot_params_of_an_elf_have_a_header_that_will_do() {
    let memory = memory();
    let info = BootInfo { initrd: None, rsdp: None, ..INFO };
    write_boot_params(&memory, AT, &info, None).unwrap();
    let page = read::<ZeroPage>(&memory, AT).0;
    let hdr = page.hdr;
    assert_eq!({ hdr.header }, u32::from_le_bytes(*b"HdrS"));
    assert_eq!(({ hdr.boot_flag }, { hdr.type_of_loader }), (0xaa55, 0xff));
    assert_eq!(({ hdr.cmdline_size }, { hdr.initrd_addr_max }), (2047, 0x7fff_ffff));
    assert_eq!(({ hdr.ramdisk_image }, { hdr.ramdisk_size }), (0, 0));
    assert_eq!({ page.acpi_rsdp_addr }, 0);
}

#[test]
fn start_info_has_the_same_facts() {
    let memory = memory();
    write_start_info(&memory, AT, &INFO).unwrap();
    let info: hvm_start_info = read(&memory, AT);
    assert_eq!((info.magic, info.version, info.flags), (0x336e_c578, 1, 0));
    assert_eq!((info.cmdline_paddr, info.rsdp_paddr), (0x1_0002_0000, 0xe_0000));
    assert_eq!((info.memmap_entries, info.nr_modules), (3, 1));
    for (index, expected) in E820.iter().enumerate() {
        let at = info.memmap_paddr + 24 * index as u64;
        let found: hvm_memmap_table_entry = read(&memory, at);
        assert_eq!((found.addr, found.size), (expected.start, expected.len));
        assert_eq!((found.type_, found.reserved), (expected.kind, 0));
    }
    let module: hvm_modlist_entry = read(&memory, info.modlist_paddr);
    assert_eq!((module.paddr, module.size), (0x2_0765_4000, 0x1_0000_1234));
    assert_eq!((module.cmdline_paddr, module.reserved), (0, 0));
    assert_eq!(read::<u8>(&memory, info.modlist_paddr + 32), 0xcc);
}

#[test]
fn start_info_without_an_initrd_has_no_module() {
    let memory = memory();
    write_start_info(&memory, AT, &BootInfo { initrd: None, rsdp: None, ..INFO }).unwrap();
    let info: hvm_start_info = read(&memory, AT);
    assert_eq!((info.nr_modules, info.modlist_paddr, info.rsdp_paddr), (0, 0, 0));
}

#[test]
fn the_longest_memory_map_fits_and_a_longer_one_is_refused() {
    let memory = memory();
    let full = vec![E820[2]; MAX_E820];
    let info = BootInfo { e820: &full, ..INFO };
    write_boot_params(&memory, AT, &info, None).unwrap();
    write_start_info(&memory, AT + 0x1000, &info).unwrap();
    let page = read::<ZeroPage>(&memory, AT).0;
    assert_eq!({ page.e820_table[127].size }, E820[2].len);
    let start: hvm_start_info = read(&memory, AT + 0x1000);
    let module: hvm_modlist_entry = read(&memory, start.modlist_paddr);
    assert_eq!(module.paddr, 0x2_0765_4000);
    let long = vec![E820[2]; MAX_E820 + 1];
    let info = BootInfo { e820: &long, ..INFO };
    let error = write_boot_params(&memory, AT, &info, None).unwrap_err().to_string();
    assert!(error.contains("129 entries"), "{error}");
    assert!(write_start_info(&memory, AT, &info).is_err());
}

#[test]
fn an_address_outside_memory_is_an_error() {
    let memory = memory();
    assert!(write_boot_params(&memory, 0xf800, &INFO, None).is_err());
    assert!(write_start_info(&memory, u64::MAX, &INFO).is_err());
}
