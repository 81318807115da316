//! The MP table (Intel MultiProcessor Specification 1.4), for kernels without ACPI.
//!
//! Written into the BIOS area, where Linux looks for it: floating pointer, then the configuration
//! table with its processors, bus, I/O APIC and interrupt entries.

use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::layout;
use crate::access::AccessError;

const SPEC_REVISION: u8 = 4;
const APIC_VERSION: u8 = 0x14;
const ENABLED: u8 = 1;
const BOOT_PROCESSOR: u8 = 2;
const ISA_BUS: u8 = 0;

/// Interrupt types (§4.3.4).
const INT: u8 = 0;
const NMI: u8 = 1;
const EXT_INT: u8 = 3;
/// All local APICs.
const EVERY_APIC: u8 = 0xff;

fn checksum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0u8, |sum, b| sum.wrapping_sub(*b))
}

/// Writes the table for `cpus` processors at [`layout::MP_TABLE`].
///
/// # Errors
/// When there is no guest memory.
pub fn write(memory: &GuestMemoryMmap, cpus: u8) -> Result<(), AccessError> {
    let io_apic = cpus;
    let mut entries: Vec<u8> = Vec::new();
    let mut count: u16 = 0;
    let mut add = |entry: &[u8]| {
        entries.extend_from_slice(entry);
        count += 1;
    };
    for id in 0..cpus {
        let flags = if id == 0 { ENABLED | BOOT_PROCESSOR } else { ENABLED };
        let mut processor = [0; 20];
        processor[..4].copy_from_slice(&[0, id, APIC_VERSION, flags]);
        // Signature: family 6; features: APIC and FPU.
        processor[4..12].copy_from_slice(&[0x00, 0x06, 0, 0, 0x01, 0x02, 0, 0]);
        add(&processor);
    }
    add(&[1, ISA_BUS, b'I', b'S', b'A', b' ', b' ', b' ']);
    let address = layout::IO_APIC.to_le_bytes();
    add(&[2, io_apic, APIC_VERSION, ENABLED, address[0], address[1], address[2], address[3]]);
    // Each ISA interrupt goes to the input of its own number; polarity and trigger as the bus has.
    for irq in 0..layout::GSI_END as u8 {
        add(&[3, INT, 0, 0, ISA_BUS, irq, io_apic, irq]);
    }
    add(&[4, EXT_INT, 0, 0, ISA_BUS, 0, 0, 0]);
    add(&[4, NMI, 0, 0, ISA_BUS, 0, EVERY_APIC, 1]);

    const HEADER: usize = 44;
    let mut table = Vec::with_capacity(HEADER + entries.len());
    table.extend_from_slice(b"PCMP");
    table.extend_from_slice(&((HEADER + entries.len()) as u16).to_le_bytes());
    table.extend_from_slice(&[SPEC_REVISION, 0]);
    table.extend_from_slice(b"HUSK    HUSKVM      ");
    table.extend_from_slice(&[0; 6]);
    table.extend_from_slice(&count.to_le_bytes());
    table.extend_from_slice(&layout::LOCAL_APIC.to_le_bytes());
    table.extend_from_slice(&[0; 4]);
    table.extend_from_slice(&entries);
    let sum = checksum(&table);
    if let Some(field) = table.get_mut(7) {
        *field = sum;
    }

    let at = layout::MP_TABLE;
    let mut pointer = [0; 16];
    pointer[..4].copy_from_slice(b"_MP_");
    pointer[4..8].copy_from_slice(&((at + 16) as u32).to_le_bytes());
    pointer[8..10].copy_from_slice(&[1, SPEC_REVISION]);
    pointer[10] = checksum(&pointer);
    memory.write_slice(&pointer, GuestAddress(at))?;
    Ok(memory.write_slice(&table, GuestAddress(at + 16))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksums_of_the_largest_machines_table_hold() {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap();
        write(&memory, layout::VCPUS_MAX as u8).unwrap();
        let mut image = vec![0; 0x1000];
        memory.read_slice(&mut image, GuestAddress(layout::MP_TABLE)).unwrap();
        assert_eq!(&image[..4], b"_MP_");
        assert_eq!(checksum(&image[..16]), 0);
        let len = u16::from_le_bytes([image[20], image[21]]) as usize;
        assert_eq!(checksum(&image[16..16 + len]), 0);
        let count = u16::from_le_bytes([image[16 + 34], image[16 + 35]]);
        assert_eq!(count, 64 + 1 + 1 + 24 + 2);
    }
}
