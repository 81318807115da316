//! MMIO of every width at every alignment where there is no RAM.

use iced_x86::code_asm::*;

use crate::fixture::assembly::{Assembled, RESULTS};
use crate::fixture::guest::MEMORY;
use crate::fixture::{Emit, Guest, Kernel};
use crate::needs_kvm;

/// Where the virtio windows begin.
const VIRTIO: u64 = 0xd000_0000;

/// Addresses that nobody claims: just past RAM, the first of the hole, windows without a device,
/// where a PC has a HPET and a TPM, and the end of 32 bits.
const UNCLAIMED: [u64; 8] = [
    MEMORY as u64,
    0xc000_0000,
    VIRTIO - 8,
    VIRTIO + 17 * 0x1000,
    0xe000_0000,
    0xfed0_0000,
    0xfed4_0000,
    0xffff_ffe0,
];

/// Widths in bytes.
const WIDTHS: [u64; 4] = [1, 2, 4, 8];

/// Reads `width` bytes at `address` into RAX, whose other bits stay (but a 4-byte read clears).
fn load(a: &mut CodeAssembler, address: u64, width: u64) -> Assembled {
    a.mov(rbx, address)?;
    match width {
        1 => a.mov(al, byte_ptr(rbx)),
        2 => a.mov(ax, word_ptr(rbx)),
        4 => a.mov(eax, dword_ptr(rbx)),
        _ => a.mov(rax, qword_ptr(rbx)),
    }
}

/// Writes the low `width` bytes of RAX to `address`.
fn store(a: &mut CodeAssembler, address: u64, width: u64) -> Assembled {
    a.mov(rbx, address)?;
    match width {
        1 => a.mov(byte_ptr(rbx), al),
        2 => a.mov(word_ptr(rbx), ax),
        4 => a.mov(dword_ptr(rbx), eax),
        _ => a.mov(qword_ptr(rbx), rax),
    }
}

/// A 64-bit kernel that makes `accesses`, each a read into RAX that starts as all 0x3c, and writes
/// the results to the console, 8 bytes each.
fn reader(accesses: &[(u64, u64)]) -> Kernel {
    Kernel::long(|a| {
        a.mov(edi, RESULTS)?;
        a.cld()?;
        for (address, width) in accesses {
            a.mov(rax, 0x3c3c_3c3c_3c3c_3c3cu64)?;
            load(a, *address, *width)?;
            a.stosq()?;
        }
        a.dump(RESULTS, accesses.len() as u32 * 8)?;
        a.power_off()
    })
}

fn every_width_and_alignment(bases: &[u64]) -> Vec<(u64, u64)> {
    let addresses = bases.iter().flat_map(|base| *base..base + 8);
    addresses.flat_map(|address| WIDTHS.map(|width| (address, width))).collect()
}

#[test]
fn reads_where_nothing_is_give_all_ones_at_every_width_and_alignment() {
    needs_kvm!();
    let accesses = every_width_and_alignment(&UNCLAIMED);
    let said = Guest::start(&reader(&accesses)).powered_off();
    assert_eq!(said.len(), accesses.len() * 8);
    for ((address, width), got) in accesses.iter().zip(said.chunks(8)) {
        let rest = if *width == 4 { 0 } else { 0x3c };
        let expected: Vec<u8> = (0..8).map(|n| if n < *width { 0xff } else { rest }).collect();
        assert_eq!(got, expected, "{width} bytes at {address:#x}");
    }
}

#[test]
fn an_access_across_the_end_of_ram_or_of_a_page_is_answered_in_both_parts() {
    needs_kvm!();
    let end = u64::from(MEMORY);
    let kernel = Kernel::long(|a| {
        a.mov(rax, 0x1122_3344_5566_7788u64)?;
        store(a, end - 8, 8)?;
        a.mov(rax, 0x1122_3344_5566_7788u64)?;
        store(a, end - 3, 8)?;
        load(a, end - 8, 8)?;
        a.mov(qword_ptr(RESULTS), rax)?;
        load(a, end - 3, 8)?;
        a.mov(qword_ptr(RESULTS + 8), rax)?;
        load(a, 0xe000_0ffd, 8)?;
        a.mov(qword_ptr(RESULTS + 16), rax)?;
        a.dump(RESULTS, 24)?;
        a.power_off()
    });
    let said = Guest::start(&kernel).powered_off();
    assert_eq!(said[..8], [0x88, 0x77, 0x66, 0x55, 0x44, 0x88, 0x77, 0x66]);
    assert_eq!(said[8..16], [0x88, 0x77, 0x66, 0xff, 0xff, 0xff, 0xff, 0xff]);
    assert_eq!(said[16..], [0xff; 8]);
}

#[test]
fn writes_where_nothing_is_are_dropped_at_every_width_and_alignment() {
    needs_kvm!();
    let kernel = Kernel::long(|a| {
        for (address, width) in every_width_and_alignment(&UNCLAIMED) {
            a.mov(rax, 0xa5a5_a5a5_a5a5_a5a5u64)?;
            store(a, address, width)?;
        }
        a.say("alive")?;
        a.power_off()
    });
    assert_eq!(Guest::start(&kernel).powered_off(), b"alive");
}

#[test]
fn a_string_copy_out_of_nowhere_fills_memory_with_ones() {
    needs_kvm!();
    let kernel = Kernel::long(|a| {
        a.cld()?;
        a.mov(rsi, 0xe000_0001u64)?;
        a.mov(rdi, u64::from(RESULTS))?;
        a.mov(ecx, 5)?;
        a.rep().movsq()?;
        a.mov(rsi, u64::from(RESULTS))?;
        a.mov(rdi, 0xe000_0ff0u64)?;
        a.mov(ecx, 40)?;
        a.rep().movsb()?;
        a.dump(RESULTS, 41)?;
        a.power_off()
    });
    let mut expected = vec![0xff; 40];
    expected.push(0);
    assert_eq!(Guest::start(&kernel).powered_off(), expected);
}
