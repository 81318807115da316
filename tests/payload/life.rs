//! How guests end: power-off, reset, panic, crash.

use husk::config::OnReboot;
use husk::timeline::Phase;
use husk::{Cause, Outcome};
use iced_x86::code_asm::*;

use crate::fixture::assembly::{MARKER, POWER, PVPANIC, RESET};
use crate::fixture::kernel::ENTRY;
use crate::fixture::{Emit, Guest, Kernel, run};
use crate::needs_kvm;

#[test]
fn a_guest_says_something_and_turns_itself_off_whichever_way_it_is_entered() {
    needs_kvm!();
    let hello = |a: &mut CodeAssembler| {
        a.say("hello")?;
        a.power_off()
    };
    for kernel in [Kernel::pvh(hello), Kernel::long(hello)] {
        assert_eq!(Guest::start(&kernel).powered_off(), b"hello");
    }
}

#[test]
fn a_pvh_kernel_is_told_of_its_command_line_and_memory_map() {
    needs_kvm!();
    let kernel = Kernel::pvh(|a| {
        a.say("=")?;
        // hvm_start_info: magic, version, …, cmdline_paddr at 24, memmap_paddr at 40, entries at 48.
        a.mov(esi, ebx)?;
        a.mov(ecx, 4)?;
        a.cld()?;
        a.rep().outsb()?;
        a.mov(esi, dword_ptr(ebx + 24))?;
        a.mov(ecx, 7)?;
        a.rep().outsb()?;
        a.mov(eax, dword_ptr(ebx + 48))?;
        a.add(eax, u32::from(b'0') as i32)?;
        a.out(dx, al)?;
        a.power_off()
    });
    let guest = Guest::start_with(&kernel, |config| config.cmdline = Some("testing".to_owned()));
    let said = guest.powered_off();
    assert_eq!(said[1..5], 0x336e_c578u32.to_le_bytes());
    assert_eq!(said[5..], *b"testing3");
}

#[test]
fn only_the_whole_power_off_command_turns_the_machine_off() {
    needs_kvm!();
    let kernel = Kernel::pvh(|a| {
        for value in [5 << 2, 1 << 5, 4 << 2 | 1 << 5, 0xff] {
            a.out8(POWER, value)?;
        }
        a.out8(POWER + 1, 5 << 2 | 1 << 5)?;
        a.out8(RESET, 0xfe)?;
        a.say("still here")?;
        a.power_off()
    });
    assert_eq!(Guest::start(&kernel).powered_off(), b"still here");
}

#[test]
fn a_guest_that_floods_the_marker_port_is_still_heard_when_it_turns_itself_off() {
    needs_kvm!();
    let kernel = Kernel::pvh(|a| {
        let mut again = a.create_label();
        a.mov(edx, MARKER)?;
        a.mov(ecx, 5_000)?;
        a.set_label(&mut again)?;
        a.out(dx, al)?;
        a.dec(ecx)?;
        a.jnz(again)?;
        a.power_off()
    });
    for _ in 0..10 {
        Guest::start(&kernel).powered_off();
    }
}

#[test]
fn a_triple_fault_ends_with_a_report_of_where_and_what() {
    needs_kvm!();
    let kernel = Kernel::pvh(|a| {
        a.say("going down\n")?;
        a.mov(esi, 0xcafe_f00du32)?;
        // No IDT: the fault of an undefined instruction cannot be delivered, nor the next.
        a.ud2()
    });
    let (outcome, _) = run(&kernel);
    let Outcome::Crash { report, console } = outcome else { panic!("{outcome:?}") };
    assert_eq!(console, "going down");
    assert_eq!(report.cause, Cause::TripleFault);
    assert_eq!(report.cpu, 0);
    let text = report.to_string();
    if report.registers_are_lost() {
        // An AMD host: KVM has reset the vCPU, and the report says so instead of inventing.
        assert!(text.contains("are lost"), "{text}");
        return;
    }
    let regs = report.regs.expect("KVM tells the registers");
    assert!((ENTRY..ENTRY + 0x1000).contains(&regs.rip), "{:#x}", regs.rip);
    assert_eq!(regs.rsi, 0xcafe_f00d);
    for words in ["vCPU 0", "triple fault", "rip 000000000010", "00000000cafef00d", "code"] {
        assert!(text.contains(words), "{words} is missing in {text}");
    }
    assert_eq!(report.code[..2], [0x0f, 0x0b], "the report shows the instruction: {text}");
}

#[test]
fn a_second_cpu_that_faults_is_named() {
    needs_kvm!();
    let kernel = Kernel::pvh(|a| {
        crate::fixture::interrupts::start_others(a, |ap| {
            // A fault without a table of handlers to look in (four times zero is one without entries).
            ap.lidt(fword_ptr(crate::fixture::interrupts::TRAMPOLINE + 0x800))?;
            ap.ud2()
        })?;
        a.spin()
    });
    let (outcome, _) = Guest::start_with(&kernel, |config| config.cpus = 2).end();
    let Outcome::Crash { report, .. } = outcome else { panic!("{outcome:?}") };
    assert_eq!(report.cpu, 1, "{report}");
}

#[test]
fn a_panic_is_reported_with_the_console_and_what_the_kernel_writes_after_it() {
    needs_kvm!();
    let kernel = Kernel::pvh(|a| {
        a.say("first\n")?;
        a.out8(PVPANIC, 1)?;
        a.say("last words\n")?;
        a.halt()
    });
    let (outcome, said) = run(&kernel);
    let Outcome::Panic { console } = outcome else { panic!("{outcome:?}") };
    assert_eq!(console, "first\nlast words");
    assert_eq!(said, b"first\nlast words\n");
}

#[test]
fn a_kernel_that_panics_and_then_resets_or_faults_has_panicked() {
    needs_kvm!();
    let words = "[    1.0] Kernel panic - not syncing: x\n";
    let by_port_then_reset = Kernel::pvh(|a| {
        a.out8(PVPANIC, 1)?;
        a.out8(RESET, 1)?;
        a.halt()
    });
    let by_words_then_reset = Kernel::pvh(|a| {
        a.say(words)?;
        a.out8(RESET, 1)?;
        a.halt()
    });
    let by_words_then_fault = Kernel::pvh(|a| {
        a.say(words)?;
        a.ud2()
    });
    for kernel in [by_port_then_reset, by_words_then_reset, by_words_then_fault] {
        let (outcome, said) = run(&kernel);
        let Outcome::Panic { console } = outcome else { panic!("{outcome:?}") };
        assert_eq!(console, String::from_utf8(said).unwrap().trim_end());
    }
}

#[test]
fn a_reset_after_an_old_log_that_tells_of_a_panic_is_a_reset() {
    needs_kvm!();
    // Says the words at a moment when nothing is wrong (it shows the log of a boot before this one,
    // say), and reboots later, after more than a screenful.
    let kernel = Kernel::pvh(|a| {
        a.say("Kernel panic - not syncing: long ago\n")?;
        for _ in 0..50 {
            a.say("all is well\n")?;
        }
        a.out8(RESET, 1)?;
        a.halt()
    });
    let (outcome, _) = Guest::start_with(&kernel, |config| config.on_reboot = OnReboot::Exit).end();
    assert!(matches!(outcome, Outcome::Reboot), "{outcome:?}");
}

#[test]
fn an_instruction_the_hosts_kvm_cannot_interpret_is_said_to_be_that() {
    needs_kvm!();
    // With a handler in the IDT, so that where it is executed natively it is handled.
    let kernel = Kernel::pvh(|a| {
        crate::fixture::interrupts::install(a, 3, |a| {
            a.say("handled")?;
            a.power_off()
        })?;
        a.int3()?;
        a.say("not handled")?;
        a.power_off()
    });
    let (outcome, said) = run(&kernel);
    match outcome {
        Outcome::PowerOff => assert_eq!(said, b"handled"),
        Outcome::Crash { report, .. } => {
            assert!(report.cause.is_emulation_failure(), "{report}");
            let text = report.to_string();
            assert!(text.contains("interprets guest kernel code"), "{text}");
            assert!(text.contains("`husk doctor`"), "{text}");
            assert_eq!(report.code.first(), Some(&0xcc), "{text}");
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_timeline_has_the_users_marker_and_the_first_byte() {
    needs_kvm!();
    let kernel = Kernel::pvh(|a| {
        a.say("x")?;
        a.out8(MARKER, 1)?;
        a.power_off()
    });
    let guest = Guest::start(&kernel);
    guest.vm.wait();
    let phases: Vec<Phase> = guest.vm.timeline().marks().into_iter().map(|(p, _)| p).collect();
    for phase in [
        Phase::Configured,
        Phase::KernelLoaded,
        Phase::FirstRun,
        Phase::FirstConsoleByte,
        Phase::UserSpaceMarker,
        Phase::Ended,
    ] {
        assert!(phases.contains(&phase), "{phase:?} is missing in {phases:?}");
    }
    guest.powered_off();
}
