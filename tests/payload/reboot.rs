//! Guests that reset themselves: what becomes of memory, and of a VM that is told to end or wait.

use std::time::Duration;

use husk::Outcome;
use husk::config::OnReboot;
use iced_x86::code_asm::*;

use crate::fixture::assembly::{KEYBOARD_COMMAND, LOW_WORD, RESET, RESULTS};
use crate::fixture::guest::MEMORY;
use crate::fixture::hugepages::HugePages;
use crate::fixture::kernel::BSS;
use crate::fixture::{Emit, Guest, Kernel};
use crate::needs_kvm;

/// Writes "boot N" with N the number of places where memory is not as after power-on, makes them
/// so, and then does what is typed: `r` resets, anything else turns the machine off.
fn rebooting_kernel(reset: (u32, u32)) -> Kernel {
    // Low and high memory, and what the kernel has beyond its file.
    kernel_that_looks_at(&[LOW_WORD, RESULTS, MEMORY / 2, MEMORY - 4, BSS, BSS + 0x1000], 0, reset)
}

/// The same, with whole pages of its own on both sides of the word in it that it changes.
fn large_rebooting_kernel() -> Kernel {
    kernel_that_looks_at(&[LOW_WORD, RESULTS, MEMORY / 2, MEMORY - 4], 0x2000, (RESET, 1))
}

fn kernel_that_looks_at(places: &[u32], padding: usize, reset: (u32, u32)) -> Kernel {
    Kernel::pvh(|a| {
        let mut off = a.create_label();
        // EBX: the number of places where something is left of the last boot.
        a.mov(ebx, u32::from(b'0'))?;
        let count = |a: &mut CodeAssembler| {
            let mut clean = a.create_label();
            a.je(clean)?;
            a.inc(ebx)?;
            a.set_label(&mut clean)
        };
        for place in places.iter().copied() {
            a.cmp(dword_ptr(place), 0)?;
            count(a)?;
            a.mov(dword_ptr(place), 0x1234_5678)?;
        }
        let padding = vec![0x5a; padding];
        a.address_of(|a| {
            a.db(&padding)?;
            a.dd(&[0x5555_5555])?;
            a.db(&padding)
        })?;
        a.add(eax, padding.len() as i32)?;
        a.cmp(dword_ptr(eax), 0x5555_5555)?;
        count(a)?;
        a.mov(dword_ptr(eax), 0x1234_5678)?;
        a.say("boot ")?;
        a.mov(eax, ebx)?;
        a.out(dx, al)?;
        a.say("\n")?;
        a.typed()?;
        a.cmp(al, u32::from(b'r'))?;
        a.jne(off)?;
        a.out8(reset.0, reset.1)?;
        a.halt()?;
        a.set_label(&mut off)?;
        a.power_off()
    })
}

#[test]
fn a_guest_reboots_in_place_three_times_and_finds_its_memory_as_after_power_on() {
    needs_kvm!();
    let mut guest = Guest::start(&rebooting_kernel((RESET, 1)));
    for boot in 1..=3 {
        guest.console.wait_for("boot 0\n", boot);
        guest.console.type_in(b"r");
    }
    guest.console.wait_for("boot 0\n", 4);
    guest.console.type_in(b"q");
    let said = String::from_utf8(guest.powered_off()).unwrap();
    assert_eq!(said, "boot 0\n".repeat(4));
}

/// Boots `guest`, which runs a [`rebooting_kernel`], three times.
fn boots_three_times(mut guest: Guest) {
    for boot in 1..=3 {
        guest.console.wait_for("boot 0\n", boot);
        guest.console.type_in(if boot < 3 { b"r" } else { b"q" });
    }
    assert_eq!(guest.powered_off(), b"boot 0\n".repeat(3));
}

#[test]
fn shared_memory_too_is_empty_after_a_reboot() {
    needs_kvm!();
    let kernel = rebooting_kernel((RESET, 1));
    boots_three_times(Guest::start_with(&kernel, |config| config.memory.shared = true));
}

#[test]
fn huge_pages_shared_or_not_are_empty_after_a_reboot() {
    needs_kvm!();
    let needed = u64::from(MEMORY) / (2 << 20);
    let Some(_pool) = HugePages::more(needed) else {
        return crate::fixture::skipped(format!("{needed} huge pages cannot be set aside here"));
    };
    let kernel = rebooting_kernel((RESET, 1));
    for shared in [false, true] {
        boots_three_times(Guest::start_with(&kernel, |config| {
            (config.memory.hugepages, config.memory.shared) = (true, shared);
        }));
    }
}

#[test]
fn a_shared_kernel_is_as_in_its_file_after_a_reboot() {
    needs_kvm!();
    let kernel = large_rebooting_kernel();
    let guest = Guest::start_with(&kernel, |config| config.share_kernel = true);
    guest.console.wait_for("boot 0\n", 1);
    // Nobody else in this process shares one.
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    assert!(maps.lines().any(|line| line.ends_with(".elf")), "it is not shared: {maps}");
    boots_three_times(guest);
}

#[test]
fn the_keyboard_controllers_reset_line_reboots_too() {
    needs_kvm!();
    let mut guest = Guest::start(&rebooting_kernel((KEYBOARD_COMMAND, 0xfe)));
    guest.console.wait_for("boot 0\n", 1);
    guest.console.type_in(b"r");
    guest.console.wait_for("boot 0\n", 2);
    guest.console.type_in(b"q");
    assert_eq!(guest.powered_off(), b"boot 0\nboot 0\n");
}

#[test]
fn a_reset_ends_the_vm_when_that_is_wanted() {
    needs_kvm!();
    let kernel = rebooting_kernel((RESET, 1));
    let mut guest = Guest::start_with(&kernel, |config| config.on_reboot = OnReboot::Exit);
    guest.console.type_in(b"r");
    let (outcome, said) = guest.end();
    assert!(matches!(outcome, Outcome::Reboot), "{outcome:?}");
    assert_eq!(said, b"boot 0\n");
}

#[test]
fn a_guest_that_resets_at_once_and_for_ever_can_still_be_ended() {
    needs_kvm!();
    let kernel = Kernel::pvh(|a| {
        a.say("boot\n")?;
        a.out8(RESET, 1)?;
        a.halt()
    });
    let guest = Guest::start(&kernel);
    guest.console.wait_for("boot\n", 5);
    guest.vm.kill().unwrap();
    let (outcome, _) = guest.end();
    assert!(matches!(outcome, Outcome::Killed), "{outcome:?}");
}

#[test]
fn a_guest_paused_while_it_reboots_stays_paused_until_it_is_resumed() {
    needs_kvm!();
    let kernel = Kernel::pvh(|a| {
        a.say("boot\n")?;
        a.out8(RESET, 1)?;
        a.halt()
    });
    let guest = Guest::start(&kernel);
    for round in 1..=10 {
        guest.console.wait_for("boot\n", round);
        guest.vm.pause().unwrap();
        std::thread::sleep(Duration::from_millis(100));
        let before = guest.console.so_far().len();
        std::thread::sleep(Duration::from_millis(100));
        let after = guest.console.so_far().len();
        assert!(after - before <= 5, "it went on while it was paused: {}", after - before);
        guest.vm.resume().unwrap();
    }
}
