//! virtio-mmio devices, driven by payloads: registers, one queue, doorbells, interrupts.

use std::time::{Duration, Instant};

use husk::config::{DiskConfig, PmemConfig};
use iced_x86::code_asm::*;

use crate::fixture::assembly::{Assembled, RESET, RESULTS};
use crate::fixture::interrupts::{COUNT, counting_input};
use crate::fixture::{Code, Emit, Guest, Kernel, LIMIT};
use crate::needs_kvm;

/// The first device's window.
const DEVICE: u32 = 0xd000_0000;
/// The first device's input of the I/O APIC.
const DEVICE_INPUT: u32 = 6;

/// Registers (virtio 1.3 §4.2.2).
const DRIVER_FEATURES: u32 = DEVICE + 0x20;
const DRIVER_FEATURES_SEL: u32 = DEVICE + 0x24;
const QUEUE_SEL: u32 = DEVICE + 0x30;
const QUEUE_SIZE: u32 = DEVICE + 0x38;
const QUEUE_READY: u32 = DEVICE + 0x44;
const QUEUE_NOTIFY: u32 = DEVICE + 0x50;
const INTERRUPT_STATUS: u32 = DEVICE + 0x60;
const INTERRUPT_ACK: u32 = DEVICE + 0x64;
const STATUS: u32 = DEVICE + 0x70;
const QUEUE_DESC: u32 = DEVICE + 0x80;
const QUEUE_DRIVER: u32 = DEVICE + 0x90;
const QUEUE_DEVICE: u32 = DEVICE + 0xa0;

const DRIVER_OK: u8 = 0xf;
const NEEDS_RESET: u8 = 0x40;

/// Where the driver keeps its queue and its buffers.
const DESC: u32 = 0x1a_0000;
const AVAIL: u32 = 0x1a_1000;
const USED: u32 = 0x1a_2000;
const HEADER: u32 = 0x1a_3000;
const DATA: u32 = 0x1a_4000;
const VERDICT: u32 = 0x1a_5000;

/// Descriptor flags.
const NEXT: u32 = 1;
const WRITE: u32 = 2;

/// Brings the device up with `VIRTIO_F_VERSION_1` alone and a queue of 8, its rings empty.
fn bring_up(a: &mut Code) -> Assembled {
    bring_up_with(a, |_| Ok(()))
}

/// The same, but for what `otherwise` changes of the queue's place before it is ready.
fn bring_up_with(a: &mut Code, otherwise: impl FnOnce(&mut Code) -> Assembled) -> Assembled {
    for area in [AVAIL, USED] {
        a.poke(area, 0)?;
    }
    for (register, value) in [
        (STATUS, 0),
        (STATUS, 1),
        (STATUS, 3),
        (DRIVER_FEATURES_SEL, 0),
        (DRIVER_FEATURES, 0),
        (DRIVER_FEATURES_SEL, 1),
        (DRIVER_FEATURES, 1),
        (STATUS, 0xb),
        (QUEUE_SEL, 0),
        (QUEUE_SIZE, 8),
        (QUEUE_DESC, DESC),
        (QUEUE_DESC + 4, 0),
        (QUEUE_DRIVER, AVAIL),
        (QUEUE_DRIVER + 4, 0),
        (QUEUE_DEVICE, USED),
        (QUEUE_DEVICE + 4, 0),
    ] {
        a.poke(register, value)?;
    }
    otherwise(a)?;
    a.poke(QUEUE_READY, 1)?;
    a.poke(STATUS, DRIVER_OK.into())
}

fn descriptor(a: &mut Code, n: u32, address: u32, len: u32, flags: u32) -> Assembled {
    let at = DESC + n * 16;
    a.poke(at, address)?;
    a.poke(at + 4, 0)?;
    a.poke(at + 8, len)?;
    a.poke(at + 12, flags | (n + 1) << 16)
}

/// Offers the chain that begins with descriptor 0, as the `nth` since the device is up (from 1).
fn offer(a: &mut Code, nth: u32) -> Assembled {
    a.mov(eax, AVAIL + 4 + (nth - 1) % 8 * 2)?;
    a.mov(word_ptr(eax), 0)?;
    a.poke(AVAIL, nth << 16)?;
    a.poke(QUEUE_NOTIFY, 0)
}

/// Offers it and waits until it comes back.
fn request(a: &mut Code, nth: u32) -> Assembled {
    offer(a, nth)?;
    a.await_count(USED, nth << 16)
}

/// Waits until the device says that it needs a reset.
fn await_broken(a: &mut Code) -> Assembled {
    let mut again = a.create_label();
    a.mov(ebx, STATUS)?;
    a.set_label(&mut again)?;
    a.test(dword_ptr(ebx), u32::from(NEEDS_RESET))?;
    a.jz(again)
}

/// Writes the low byte of the register at `address` to the console.
fn show(a: &mut Code, address: u32) -> Assembled {
    a.mov(eax, address)?;
    a.mov(eax, dword_ptr(eax))?;
    a.mov(dword_ptr(RESULTS + 0x100), eax)?;
    a.dump(RESULTS + 0x100, 1)
}

/// A machine with an entropy device and nothing else.
fn with_rng(kernel: &Kernel) -> Guest {
    Guest::start_with(kernel, |config| config.rng = true)
}

#[test]
fn the_entropy_device_fills_a_buffer_and_interrupts_for_each() {
    needs_kvm!();
    let kernel = counting_input(DEVICE_INPUT, |a| {
        bring_up(a)?;
        descriptor(a, 0, DATA, 32, WRITE)?;
        request(a, 1)?;
        a.await_count(COUNT, 1)?;
        show(a, INTERRUPT_STATUS)?;
        a.poke(INTERRUPT_ACK, 1)?;
        show(a, INTERRUPT_STATUS)?;
        a.dump(DATA, 32)?;
        request(a, 2)?;
        a.await_count(COUNT, 2)?;
        a.dump(DATA, 32)?;
        // The used ring: its index, then the descriptor's number and the length, twice.
        a.dump(USED + 2, 18)
    });
    let said = with_rng(&kernel).powered_off();
    assert_eq!(said.len(), 2 + 64 + 18 + 1, "{said:x?}");
    assert_eq!(said[..2], [1, 1], "the interrupt's cause, which stays");
    let (first, second) = (&said[2..34], &said[34..66]);
    assert!(first.iter().any(|byte| *byte != 0) && first != second, "{said:x?}");
    assert_eq!(said[66..68], [2, 0], "the used index");
    assert_eq!(said[68..84], [0, 0, 0, 0, 32, 0, 0, 0, 0, 0, 0, 0, 32, 0, 0, 0]);
    assert_eq!(said[84], 2, "interrupts");
}

/// Exits for a machine's entropy device from when its guest reads registers without one on: while it
/// comes up, and has `requests` requests each of whose interrupts is answered as Linux does it: its cause
/// is read, and written to InterruptACK. Then `others` acknowledgements of something else are written.
fn exits(requests: u32, others: &[u32]) -> u64 {
    let kernel = counting_input(DEVICE_INPUT, |a| {
        // Reads a register for each key, until one is `g`.
        let (mut again, mut on) = (a.create_label(), a.create_label());
        a.set_label(&mut again)?;
        a.typed()?;
        a.cmp(al, u32::from(b'g') as i32)?;
        a.je(on)?;
        show(a, STATUS)?;
        a.jmp(again)?;
        a.set_label(&mut on)?;
        bring_up(a)?;
        descriptor(a, 0, DATA, 32, WRITE)?;
        for nth in 1..=requests {
            request(a, nth)?;
            a.await_count(COUNT, nth)?;
            a.mov(eax, INTERRUPT_STATUS)?;
            a.mov(eax, dword_ptr(eax))?;
            a.mov(ebx, INTERRUPT_ACK)?;
            a.mov(dword_ptr(ebx), eax)?;
        }
        for other in others {
            a.poke(INTERRUPT_ACK, *other)?;
        }
        Ok(())
    });
    let mut guest = with_rng(&kernel);
    let counts = |guest: &Guest| guest.vm.metrics().devices["rng"].counts;
    let mut reads = 0;
    let begin = Instant::now();
    let before = loop {
        assert!(begin.elapsed() < LIMIT, "the guest is given no registers to read");
        let before = counts(&guest).exits;
        guest.console.type_in(b"r");
        reads += 1;
        guest.console.wait_for("\0", reads);
        if counts(&guest).exits == before {
            break before;
        }
    };
    guest.console.type_in(b"g");
    guest.vm.wait();
    let counts = counts(&guest);
    assert_eq!(guest.powered_off()[reads..], [requests as u8], "interrupts");
    assert_eq!((counts.requests, counts.interrupts), (requests.into(), requests.into()));
    counts.exits - before
}

#[test]
fn neither_a_request_nor_its_interrupt_costs_an_exit() {
    needs_kvm!();
    let set_up = exits(0, &[]);
    assert_eq!(exits(20, &[]), set_up);
    // Everything but used buffers alone is heard of.
    assert_eq!(exits(1, &[1, 0, 2, 3, 0x101]), set_up + 4);
}

#[test]
fn registers_read_as_memory_take_whole_words_only_and_survive_everything_else() {
    needs_kvm!();
    let kernel = Kernel::pvh(|a| {
        // Every width at every offset, in steps that also cross registers, the config space and
        // the end of the window. None of the values brings the device up.
        for offset in (0..0x120).chain(0xff8..0x1000) {
            let register = DEVICE + offset;
            a.mov(ebx, register)?;
            a.mov(eax, dword_ptr(ebx))?;
            a.mov(ax, word_ptr(ebx))?;
            a.mov(al, byte_ptr(ebx))?;
            a.mov(dword_ptr(ebx), 0)?;
            a.mov(word_ptr(ebx), 0x8080)?;
            a.mov(byte_ptr(ebx), 0x80)?;
            if offset % 4 == 0 && !(0x50..0x54).contains(&offset) {
                a.mov(dword_ptr(ebx), -1)?;
            }
        }
        a.poke(STATUS, 0)?;
        a.mov(edi, RESULTS)?;
        for (offset, width) in [(0, 4), (4, 4), (8, 4), (0, 1), (0, 2), (1, 4), (0x70, 4)] {
            a.mov(ebx, DEVICE + offset)?;
            a.mov(eax, 0x3c3c_3c3cu32)?;
            match width {
                1 => a.mov(al, byte_ptr(ebx))?,
                2 => a.mov(ax, word_ptr(ebx))?,
                _ => a.mov(eax, dword_ptr(ebx))?,
            }
            a.stosd()?;
        }
        a.dump(RESULTS, 7 * 4)?;
        a.power_off()
    });
    let said = with_rng(&kernel).powered_off();
    let words: Vec<u32> =
        said.chunks(4).map(|word| u32::from_le_bytes(word.try_into().unwrap())).collect();
    let expected = [0x7472_6976, 2, 4, 0x3c3c_3c76, 0x3c3c_6976, 0x0274_7269, 0];
    assert_eq!(words, expected, "{words:x?}");
}

#[test]
fn windows_without_a_device_read_as_absent() {
    needs_kvm!();
    let kernel = Kernel::pvh(|a| {
        for n in 0..18 {
            show(a, DEVICE + n * 0x1000 + 8)?;
        }
        a.power_off()
    });
    let said = with_rng(&kernel).powered_off();
    assert_eq!(said[0], 4, "the entropy device");
    assert_eq!(said[1..], [0xff; 17]);
}

#[test]
fn a_descriptor_outside_memory_breaks_the_device_until_its_reset_and_nothing_else() {
    needs_kvm!();
    let kernel = Kernel::pvh(|a| {
        bring_up(a)?;
        descriptor(a, 0, 0xf000_0000, 32, WRITE)?;
        offer(a, 1)?;
        await_broken(a)?;
        show(a, STATUS)?;
        a.say("alive")?;
        a.poke(STATUS, 0)?;
        show(a, STATUS)?;
        bring_up(a)?;
        show(a, STATUS)?;
        descriptor(a, 0, DATA, 32, WRITE)?;
        request(a, 1)?;
        a.dump(USED + 2, 2)?;
        a.power_off()
    });
    let said = with_rng(&kernel).powered_off();
    let expected = [&[DRIVER_OK | NEEDS_RESET][..], b"alive", &[0, DRIVER_OK], &[1, 0]];
    assert_eq!(said, expected.concat());
}

#[test]
fn a_reboot_resets_the_devices_which_then_work_again() {
    needs_kvm!();
    let kernel = Kernel::pvh(|a| {
        let mut off = a.create_label();
        show(a, STATUS)?;
        bring_up(a)?;
        descriptor(a, 0, DATA, 32, WRITE)?;
        request(a, 1)?;
        a.dump(USED + 2, 2)?;
        // And leaves one request behind, unanswered perhaps.
        offer(a, 2)?;
        a.typed()?;
        a.cmp(al, i32::from(b'r'))?;
        a.jne(off)?;
        a.out8(RESET, 1)?;
        a.halt()?;
        a.set_label(&mut off)?;
        a.power_off()
    });
    let mut guest = with_rng(&kernel);
    for boot in 1..=4 {
        let said = |said: &[u8]| said.len() >= 3 * boot;
        assert!(guest.console.wait_until(LIMIT, said), "{:x?}", guest.console.so_far());
        guest.console.type_in(if boot < 4 { b"r" } else { b"q" });
    }
    assert_eq!(guest.powered_off(), [0, 1, 0].repeat(4));
}

#[test]
fn requests_go_on_across_pauses() {
    needs_kvm!();
    // A dot for every 8 requests, for ever.
    let kernel = Kernel::pvh(|a| {
        let mut again = a.create_label();
        bring_up(a)?;
        descriptor(a, 0, DATA, 32, WRITE)?;
        for n in 0..8 {
            a.mov(word_ptr(AVAIL + 4 + n * 2), 0)?;
        }
        a.xor(ebx, ebx)?;
        a.set_label(&mut again)?;
        a.inc(ebx)?;
        a.mov(word_ptr(AVAIL + 2), bx)?;
        a.poke(QUEUE_NOTIFY, 0)?;
        let mut wait = a.create_label();
        a.set_label(&mut wait)?;
        a.cmp(word_ptr(USED + 2), bx)?;
        a.jne(wait)?;
        a.test(bl, 7)?;
        a.jnz(again)?;
        a.say(".")?;
        a.jmp(again)
    });
    let guest = with_rng(&kernel);
    for round in 1..=40usize {
        let before = guest.console.so_far().len();
        let more = |said: &[u8]| said.len() > before;
        assert!(guest.console.wait_until(LIMIT, more), "round {round}: a request was lost");
        guest.vm.pause().unwrap();
        std::thread::sleep(Duration::from_micros(round as u64 % 4 * 100));
        guest.vm.resume().unwrap();
    }
}

/// One disk request: `kind`, `sector`, and the data (for a read, DATA is written).
fn disk_request(a: &mut Code, nth: u32, kind: u32, sector: u32) -> Assembled {
    const IN: u32 = 0;
    for (at, value) in [(0, kind), (4, 0), (8, sector), (12, 0)] {
        a.poke(HEADER + at, value)?;
    }
    a.poke(VERDICT, 0xee)?;
    descriptor(a, 0, HEADER, 16, NEXT)?;
    descriptor(a, 1, DATA, 512, NEXT | if kind == IN { WRITE } else { 0 })?;
    descriptor(a, 2, VERDICT, 1, WRITE)?;
    request(a, nth)?;
    a.dump(VERDICT, 1)
}

/// Reads sector 1, shows how it begins, writes it to sector 0, then to one past the end.
fn disk_kernel() -> Kernel {
    Kernel::pvh(|a| {
        bring_up(a)?;
        show(a, DEVICE + 8)?;
        show(a, DEVICE + 0x100)?; // capacity in sectors
        disk_request(a, 1, 0, 1)?;
        a.dump(DATA, 6)?;
        disk_request(a, 2, 1, 0)?;
        disk_request(a, 3, 1, 3)?;
        a.power_off()
    })
}

/// A driver that has its rings, the header of a request and the data of one in a file that has lost all its
/// pages: the first address above 4 GiB. In between it uses the device as it should.
#[test]
fn a_queue_or_buffer_in_a_file_without_pages_breaks_its_device_and_nothing_else() {
    needs_kvm!();
    let kernel = Kernel::pvh(|a| {
        let in_file = |a: &mut Code, register: u32| {
            a.poke(register, 0)?;
            a.poke(register + 4, 1)
        };
        a.say("up")?;
        a.typed()?;
        // Both rings and the table, one after the other.
        for area in [QUEUE_DESC, QUEUE_DRIVER, QUEUE_DEVICE] {
            bring_up_with(a, |a| in_file(a, area))?;
            await_broken(a)?;
            a.say("r")?;
        }
        bring_up(a)?;
        disk_request(a, 1, 0, 1)?;
        descriptor(a, 0, 0, 16, NEXT)?;
        in_file(a, DESC)?;
        offer(a, 2)?;
        await_broken(a)?;
        a.say("h")?;
        bring_up(a)?;
        disk_request(a, 1, 0, 1)?;
        in_file(a, DESC + 16)?;
        request(a, 2)?;
        a.dump(VERDICT, 1)?;
        disk_request(a, 3, 0, 1)?;
        a.dump(DATA, 6)?;
        a.power_off()
    });
    let at = |name: &str| kernel.directory().join(name);
    std::fs::write(at("disk"), [&[b'-'; 512][..], b"second", &[0; 506]].concat()).unwrap();
    let file = std::fs::File::create(at("pmem")).unwrap();
    file.set_len(2 << 20).unwrap();
    let disk = DiskConfig { path: at("disk"), ..DiskConfig::default() };
    let pmem = PmemConfig { id: String::new(), path: at("pmem"), readonly: false };
    let mut guest = Guest::start_with(&kernel, |config| {
        (config.disks, config.pmem) = (vec![disk], vec![pmem]);
    });
    guest.console.wait_for("up", 1);
    file.set_len(0).unwrap();
    guest.console.type_in(b"g");
    assert_eq!(guest.powered_off(), b"uprrr\0h\0\x01\0second");
}

/// Runs [`disk_kernel`] with a disk of three sectors; returns what it said and the disk after it.
fn run_with_disk(readonly: bool) -> (Vec<u8>, Vec<u8>) {
    let kernel = disk_kernel();
    let image = kernel.directory().join("disk");
    let mut sectors = vec![b'-'; 3 * 512];
    sectors[512..518].copy_from_slice(b"second");
    std::fs::write(&image, &sectors).unwrap();
    let disk = DiskConfig { path: image.clone(), readonly, ..DiskConfig::default() };
    let said = Guest::start_with(&kernel, |config| config.disks = vec![disk]).powered_off();
    (said, std::fs::read(&image).unwrap())
}

#[test]
fn a_disk_reads_and_writes_its_sectors_and_refuses_those_past_its_end() {
    needs_kvm!();
    let (said, after) = run_with_disk(false);
    assert_eq!(said, b"\x02\x03\0second\0\x01");
    assert_eq!(after.len(), 3 * 512);
    assert!(after.starts_with(b"second-") && after[512..].starts_with(b"second-"));
}

#[test]
fn a_read_only_disk_refuses_writes_and_stays_as_it_was() {
    needs_kvm!();
    let (said, after) = run_with_disk(true);
    assert_eq!(said, b"\x02\x03\0second\x01\x01");
    assert!(after.starts_with(b"------") && after[512..].starts_with(b"second-"));
}

#[test]
fn an_overlay_takes_what_is_written_and_the_image_is_shared_and_stays_as_it_was() {
    needs_kvm!();
    let kernel = disk_kernel();
    let image = kernel.directory().join("disk");
    let mut sectors = vec![b'-'; 3 * 512];
    sectors[512..518].copy_from_slice(b"second");
    std::fs::write(&image, &sectors).unwrap();
    let disk = DiskConfig { path: image.clone(), overlay: true, ..DiskConfig::default() };
    let start = || Guest::start_with(&kernel, |config| config.disks = vec![disk.clone()]);
    for guest in [start(), start()] {
        assert_eq!(guest.powered_off(), b"\x02\x03\0second\0\x01");
    }
    assert_eq!(std::fs::read(&image).unwrap(), sectors);
}

#[test]
fn a_disk_that_grows_has_its_new_sectors_at_once_and_its_driver_is_told() {
    needs_kvm!();
    let kernel = Kernel::pvh(|a| {
        bring_up(a)?;
        a.say("up")?;
        a.await_count(DEVICE + 0x100, 6)?;
        show(a, INTERRUPT_STATUS)?;
        disk_request(a, 1, 0, 5)?;
        a.power_off()
    });
    let image = kernel.directory().join("disk");
    std::fs::write(&image, [b'-'; 3 * 512]).unwrap();
    let disk = DiskConfig { path: image.clone(), ..DiskConfig::default() };
    let guest = Guest::start_with(&kernel, |config| config.disks = vec![disk]);
    guest.console.wait_for("up", 1);
    assert_eq!(guest.vm.disks(), ["disk0"]);
    let unknown = guest.vm.resize_disk("root", None).unwrap_err().to_string();
    assert_eq!(unknown, "the VM has no disk `root`; its disks are disk0");
    let odd = guest.vm.resize_disk("disk0", Some(1000)).unwrap_err().to_string();
    assert!(odd.starts_with("disk disk0: 1000 bytes"), "{odd}");
    assert_eq!(guest.vm.resize_disk("disk0", None).unwrap(), 3 * 512);
    assert_eq!(guest.vm.resize_disk("disk0", Some(6 * 512)).unwrap(), 6 * 512);
    let (vm, console) = (guest.vm, guest.console);
    assert!(vm.wait_timeout(LIMIT).is_some(), "it said {:?}", console.text());
    assert!(matches!(vm.resize_disk("disk0", None), Err(husk::ResizeDiskError::Ended(_))));
    drop(vm);
    assert_eq!(console.all(), b"up\x02\0");
    assert_eq!(std::fs::metadata(&image).unwrap().len(), 6 * 512);
}
