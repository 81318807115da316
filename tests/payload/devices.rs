//! What an embedder asks of a running machine's devices.

use husk::config::PmemConfig;
use husk::{Cause, Outcome};
use iced_x86::code_asm::*;

use crate::fixture::assembly::{Assembled, RESULTS};
use crate::fixture::interrupts::{COUNT, counting_input};
use crate::fixture::{Code, Emit, Guest, Kernel};
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

/// The first file in the guest's address space.
const FILE: u64 = 1 << 32;

/// Has it in the page tables that husk gives a 64-bit kernel, which end at 4 GiB: a page of 2 MiB, present,
/// writable, large.
fn map_file(a: &mut Code) -> Assembled {
    const LEVEL_2: u32 = 0xa000;
    const LEVEL_3: u32 = 0x1c_0000;
    for (address, value) in [
        (LEVEL_3, 0x83),
        (LEVEL_3 + 4, 1),
        (LEVEL_2 + 4 * 8, LEVEL_3 | 3),
        (LEVEL_2 + 4 * 8 + 4, 0),
    ] {
        a.poke(address, value)?;
    }
    Ok(())
}

/// A guest that shows the first 8 bytes of the file in its address space, writes other ones there,
/// and shows what is there then. Returns what it said, and the file's first 8 bytes afterwards.
fn run_with_pmem(readonly: bool) -> (Vec<u8>, Vec<u8>) {
    let kernel = Kernel::long(|a| {
        map_file(a)?;
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

#[test]
fn a_guest_that_touches_a_page_which_the_file_has_lost_ends_at_most_itself() {
    needs_kvm!();
    let kernel = Kernel::long(|a| {
        map_file(a)?;
        a.say("up")?;
        a.typed()?;
        a.mov(rbx, FILE)?;
        a.mov(rax, qword_ptr(rbx))?;
        a.say("on")?;
        a.power_off()
    });
    let start = |name: &str| {
        let path = kernel.directory().join(name);
        let file = std::fs::File::create(&path).unwrap();
        file.set_len(2 << 20).unwrap();
        let pmem = PmemConfig { id: String::new(), path, readonly: false };
        (Guest::start_with(&kernel, |config| config.pmem = vec![pmem]), file)
    };
    let ((mut loses, file), (mut keeps, _file)) = (start("lost"), start("kept"));
    for guest in [&mut loses, &mut keeps] {
        guest.console.wait_for("up", 1);
    }
    file.set_len(0).unwrap();
    loses.console.type_in(b"g");
    let (outcome, said) = loses.end();
    match outcome {
        Outcome::Crash { report, .. } => {
            assert_eq!(report.cause, Cause::RunFailed { errno: libc::EFAULT });
            assert_eq!(said, b"up");
        }
        // A KVM that interprets ring 0 takes it for an address without memory, and asks husk.
        Outcome::PowerOff => assert_eq!(said, b"upon"),
        other => panic!("{other:?}"),
    }
    keeps.console.type_in(b"g");
    assert_eq!(keeps.powered_off(), b"upon");
}
