//! Interrupts and other CPUs: the in-kernel interrupt controllers as the guest sees them.

use std::time::Duration;

use iced_x86::code_asm::*;

use crate::fixture::assembly::{COM1, LOCAL_APIC, LOW_WORD};
use crate::fixture::interrupts::{
    APIC_DIVIDE, APIC_INITIAL_COUNT, APIC_TIMER, COUNT, VECTOR, count, counting_input, enable_apic,
    install, start_others,
};
use crate::fixture::{Emit, Guest, Kernel};
use crate::needs_kvm;

/// COM1's input of the I/O APIC.
const COM1_INPUT: u32 = 4;

#[test]
fn the_local_timer_interrupts_a_halted_cpu_again_and_again() {
    needs_kvm!();
    let kernel = Kernel::pvh(|a| {
        let mut wait = a.create_label();
        install(a, VECTOR, count)?;
        enable_apic(a)?;
        a.poke(APIC_DIVIDE, 0b1011)?; // by one
        a.poke(APIC_TIMER, 1 << 17 | VECTOR)?; // periodic
        a.poke(APIC_INITIAL_COUNT, 1_000_000)?; // 1 ms: KVM's APIC counts nanoseconds
        a.set_label(&mut wait)?;
        a.sti()?;
        a.hlt()?;
        a.cmp(dword_ptr(COUNT), 5)?;
        a.jb(wait)?;
        a.cli()?;
        a.say("five")?;
        a.power_off()
    });
    assert_eq!(Guest::start(&kernel).powered_off(), b"five");
}

#[test]
fn the_uart_interrupts_when_its_transmitter_is_empty() {
    needs_kvm!();
    let kernel = counting_input(COM1_INPUT, |a| {
        a.out8(COM1 + 1, 2)?; // IER: transmitter holding register empty
        a.await_count(COUNT, 1)?;
        for (count, byte) in (2..).zip(*b"abc") {
            // Reading what interrupted (IIR) acknowledges it.
            a.mov(edx, COM1 + 2)?;
            a.in_(al, dx)?;
            a.out8(COM1, byte.into())?;
            a.await_count(COUNT, count)?;
        }
        a.out8(COM1 + 1, 0)
    });
    assert_eq!(Guest::start(&kernel).powered_off(), b"abc\x04");
}

#[test]
fn the_uart_interrupts_when_something_is_typed_and_only_if_it_was_asked_to() {
    needs_kvm!();
    let kernel = counting_input(COM1_INPUT, |a| {
        a.say("silent")?;
        a.typed()?;
        a.dump(COUNT, 1)?;
        a.out8(COM1 + 1, 1)?; // IER: data available
        a.say("awake")?;
        a.hlt()?;
        a.in_(al, dx)?;
        a.out(dx, al)
    });
    let mut guest = Guest::start(&kernel);
    guest.console.wait_for("silent", 1);
    guest.console.type_in(b"x");
    guest.console.wait_for("awake", 1);
    std::thread::sleep(Duration::from_millis(50));
    guest.console.type_in(b"y");
    assert_eq!(guest.powered_off(), b"silent\0awakey\x01");
}

#[test]
fn other_cpus_start_in_real_mode_at_init_and_sipi_and_share_memory() {
    needs_kvm!();
    for cpus in [2u32, 4] {
        let kernel = Kernel::pvh(|a| {
            start_others(a, |ap| {
                ap.lock().inc(word_ptr(LOW_WORD))?;
                ap.mov(al, u32::from(b'!'))?;
                ap.mov(dx, COM1)?;
                ap.out(dx, al)?;
                ap.halt()
            })?;
            a.await_count(LOW_WORD, cpus - 1)?;
            a.dump(LOW_WORD, 1)?;
            a.typed()?;
            a.power_off()
        });
        let mut guest = Guest::start_with(&kernel, |config| config.cpus = cpus);
        // Each of them and, between them, the count.
        assert!(
            guest.console.wait_until(crate::fixture::LIMIT, |said| said.len() == cpus as usize),
            "{cpus} CPUs: {:?}",
            guest.console.so_far()
        );
        guest.console.type_in(b".");
        let mut said = guest.powered_off();
        said.sort_unstable();
        let mut expected = vec![b'!'; cpus as usize - 1];
        expected.insert(0, cpus as u8 - 1);
        assert_eq!(said, expected, "{cpus} CPUs");
    }
}

#[test]
fn cpus_have_different_apic_ids_in_cpuid_and_in_the_apic() {
    needs_kvm!();
    let kernel = Kernel::pvh(|a| {
        // Each of the others leaves its initial APIC id (CPUID 1, EBX 31..24) as a bit.
        start_others(a, |ap| {
            ap.mov(eax, 1)?;
            ap.cpuid()?;
            ap.shr(ebx, 24)?;
            ap.mov(cl, bl)?;
            ap.mov(ax, 1)?;
            ap.shl(ax, cl)?;
            ap.lock().or(word_ptr(LOW_WORD), ax)?;
            ap.halt()
        })?;
        a.await_count(LOW_WORD, 0b1110)?;
        a.dump(LOW_WORD, 1)?;
        a.mov(eax, LOCAL_APIC + 0x20)?;
        a.mov(eax, dword_ptr(eax))?;
        a.shr(eax, 24)?;
        a.out(dx, al)?;
        a.power_off()
    });
    let guest = Guest::start_with(&kernel, |config| config.cpus = 4);
    assert_eq!(guest.powered_off(), [0b1110, 0]);
}

#[test]
fn as_many_cpus_as_there_can_be_start_once_each_with_an_id_of_its_own() {
    needs_kvm!();
    const CPUS: u32 = 64;
    // A byte for each initial APIC id (CPUID 1, EBX 31..24), which those who have it count up.
    const SEEN: u32 = LOW_WORD + 0x100;
    let kernel = Kernel::pvh(|a| {
        start_others(a, |ap| {
            ap.mov(eax, 1)?;
            ap.cpuid()?;
            ap.shr(ebx, 24)?;
            ap.lock().inc(byte_ptr(bx + SEEN))?;
            ap.lock().inc(word_ptr(LOW_WORD))?;
            ap.halt()
        })?;
        a.mov(eax, 1)?;
        a.cpuid()?;
        a.shr(ebx, 24)?;
        a.lock().inc(byte_ptr(ebx + SEEN))?;
        a.await_count(LOW_WORD, CPUS - 1)?;
        a.dump(SEEN, 256)?;
        a.power_off()
    });
    let guest = Guest::start_with(&kernel, |config| config.cpus = CPUS);
    let ids: Vec<_> = (0..256).map(|id| u8::from(id < CPUS)).collect();
    assert_eq!(guest.powered_off(), ids);
}

#[test]
fn a_reboot_puts_the_other_cpus_back_to_waiting() {
    needs_kvm!();
    let kernel = Kernel::pvh(|a| {
        let mut off = a.create_label();
        start_others(a, |ap| {
            ap.lock().inc(word_ptr(LOW_WORD))?;
            ap.spin()
        })?;
        a.await_count(LOW_WORD, 2)?;
        a.dump(LOW_WORD, 1)?;
        a.typed()?;
        a.cmp(al, u32::from(b'r'))?;
        a.jne(off)?;
        a.out8(crate::fixture::assembly::RESET, 1)?;
        a.halt()?;
        a.set_label(&mut off)?;
        a.power_off()
    });
    let mut guest = Guest::start_with(&kernel, |config| config.cpus = 3);
    guest.console.wait_for("\x02", 1);
    guest.console.type_in(b"r");
    guest.console.wait_for("\x02", 2);
    guest.console.type_in(b"q");
    assert_eq!(guest.powered_off(), [2, 2]);
}
