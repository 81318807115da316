//! What an embedder asks of a running machine's devices.

use husk::config::PmemConfig;
use iced_x86::code_asm::*;

use crate::fixture::assembly::RESULTS;
use crate::fixture::interrupts::{COUNT, counting_input};
use crate::fixture::{Emit, Guest, Kernel};
use crate::needs_kvm;

#[test]
fn what_the_console_carried_is_in_the_metrics_also_after_the_end() {
    needs_kvm!();
    let kernel = Kernel::pvh(|a| {
        a.say("four")?;
        a.power_off()
    });
    let guest = Guest::start_with(&kernel, |config| config.rng = true);
    guest.vm.wait();
    let metrics = guest.vm.metrics();
    let com1 = metrics.devices["com1"];
    assert_eq!((com1.virtio, com1.counts.bytes_from_guest, com1.counts.requests), (None, 4, 4));
    let rng = metrics.devices["rng"];
    assert_eq!((rng.virtio, rng.counts), (Some(4), husk::Counts::default()));
    let text = metrics.to_json();
    assert_eq!(serde_json::from_str::<husk::Metrics>(&text).unwrap(), metrics, "{text}");
}

#[test]
fn a_new_generation_has_another_id_in_guest_memory_and_interrupts_the_guest() {
    needs_kvm!();
    /// Where ACPI says that the id is, and the interrupt that tells of another.
    const ID: u32 = 0xd_f028;
    const INPUT: u32 = 3;
    let kernel = counting_input(INPUT, |a| {
        a.dump(ID, 16)?;
        a.say("!")?;
        a.await_count(COUNT, 1)?;
        a.dump(ID, 16)
    });
    let guest = Guest::start(&kernel);
    // The id itself may have any byte.
    assert!(guest.console.wait_until(crate::fixture::LIMIT, |said| said.len() >= 17));
    guest.vm.renew_generation().unwrap();
    let said = guest.powered_off();
    let ([first @ .., b'!'], [second @ .., count]) = said.split_at(17) else { panic!("{said:x?}") };
    assert_eq!((first.len(), second.len(), *count), (16, 16, 1));
    assert!(first != second && first != [0; 16] && second != [0; 16], "{said:x?}");
}

/// A guest that shows the first 8 bytes of the file in its address space, writes other ones there,
/// and shows what is there then. Returns what it said, and the file's first 8 bytes afterwards.
fn run_with_pmem(readonly: bool) -> (Vec<u8>, Vec<u8>) {
    /// Of husk's boot page tables: the second level, which ends at 4 GiB.
    const LEVEL_2: u32 = 0xa000;
    const LEVEL_3: u32 = 0x1c_0000;
    const FILE: u64 = 1 << 32;
    let kernel = Kernel::long(|a| {
        // A page of 2 MiB at 4 GiB: present, writable, large.
        for (address, value) in [
            (LEVEL_3, 0x83),
            (LEVEL_3 + 4, 1),
            (LEVEL_2 + 4 * 8, LEVEL_3 | 3),
            (LEVEL_2 + 4 * 8 + 4, 0),
        ] {
            a.poke(address, value)?;
        }
        for new in [Some(*b"WRITTEN!"), None] {
            a.mov(rbx, FILE)?;
            a.mov(rax, qword_ptr(rbx))?;
            a.mov(rcx, u64::from(RESULTS))?;
            a.mov(qword_ptr(rcx), rax)?;
            a.dump(RESULTS, 8)?;
            if let Some(new) = new {
                a.mov(rbx, FILE)?;
                a.mov(rax, u64::from_le_bytes(new))?;
                a.mov(qword_ptr(rbx), rax)?;
            }
        }
        a.power_off()
    });
    let path = kernel.directory().join("file");
    std::fs::write(&path, b"original").unwrap();
    std::fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(2 << 20).unwrap();
    let pmem = PmemConfig { id: String::new(), path: path.clone(), readonly };
    let said = Guest::start_with(&kernel, |config| config.pmem = vec![pmem]).powered_off();
    (said, std::fs::read(&path).unwrap()[..8].to_vec())
}

#[test]
fn a_file_in_the_guests_address_space_is_read_and_written_as_memory() {
    needs_kvm!();
    let (said, file) = run_with_pmem(false);
    assert_eq!((&said[..], &file[..]), (&b"originalWRITTEN!"[..], &b"WRITTEN!"[..]));
}

#[test]
fn a_write_to_a_file_that_is_only_to_be_read_is_lost_and_the_guest_goes_on() {
    needs_kvm!();
    let (said, file) = run_with_pmem(true);
    assert_eq!((&said[..], &file[..]), (&b"originaloriginal"[..], &b"original"[..]));
}
