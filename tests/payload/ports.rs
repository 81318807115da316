//! Port I/O of every width at every alignment, and string I/O.

use iced_x86::code_asm::*;

use crate::fixture::assembly::{
    Assembled, COM1, KEYBOARD_COMMAND, MARKER, POWER, PVPANIC, RESULTS,
};
use crate::fixture::{Emit, Guest, Kernel};
use crate::needs_kvm;

/// Every window of the machine: first port, length.
const WINDOWS: [(u32, u32); 6] =
    [(KEYBOARD_COMMAND - 4, 5), (0x70, 2), (COM1, 8), (PVPANIC, 1), (MARKER, 1), (POWER, 3)];

/// Ports nobody claims: where a PC has a timer, a COM2, PCI and VGA, and the ends of the space.
const UNCLAIMED: [u32; 9] = [0x40, 0x80, 0x2f8, 0x500, 0x1234, 0xcf8, 0xcfc, 0xfffc, 0xffff];

/// Widths in bytes.
const WIDTHS: [u32; 3] = [1, 2, 4];

/// Every width at every port from three before each window to its end.
fn accesses() -> Vec<(u32, u32)> {
    let windows = WINDOWS.iter().flat_map(|(base, len)| base - 3..base + len);
    let ports = windows.chain(UNCLAIMED);
    ports.flat_map(|port| WIDTHS.map(|width| (port, width))).collect()
}

/// The window of `port`.
fn window(port: u32) -> Option<(u32, u32)> {
    WINDOWS.into_iter().find(|(base, len)| (*base..base + len).contains(&port))
}

/// `IN` of `width` bytes from `port` into EAX, whose other bits stay.
fn input(a: &mut CodeAssembler, port: u32, width: u32) -> Assembled {
    a.mov(edx, port)?;
    match width {
        1 => a.in_(al, dx),
        2 => a.in_(ax, dx),
        _ => a.in_(eax, dx),
    }
}

/// Brings the UART back to where the console is written: no divisor latch, no interrupts, no loop.
fn quiet_uart(a: &mut CodeAssembler) -> Assembled {
    for (register, value) in [(3, 3), (1, 0), (4, 8), (2, 0)] {
        a.out8(COM1 + register, value)?;
    }
    Ok(())
}

#[test]
fn reads_of_every_width_and_alignment_agree_with_reads_of_single_bytes() {
    needs_kvm!();
    let accesses = accesses();
    let kernel = Kernel::pvh(|a| {
        a.out8(COM1 + 7, 0x5a)?; // the UART's scratch register
        a.mov(edi, RESULTS)?;
        a.cld()?;
        for (port, width) in &accesses {
            a.mov(eax, 0x3c3c_3c3cu32)?;
            input(a, *port, *width)?;
            a.stosd()?;
        }
        a.dump(RESULTS, accesses.len() as u32 * 4)?;
        a.power_off()
    });
    let said = Guest::start(&kernel).powered_off();
    assert_eq!(said.len(), accesses.len() * 4);
    let read = |port: u32, width: u32| {
        let n = accesses.iter().position(|access| *access == (port, width)).unwrap();
        &said[n * 4..n * 4 + 4]
    };

    for (port, width) in &accesses {
        let got = read(*port, *width);
        for (n, byte) in (0..4).zip(got) {
            let expected = match window(*port) {
                _ if n >= *width => 0x3c,
                Some((base, len)) if port + n < base + len => read(port + n, 1)[0],
                _ => 0xff,
            };
            assert_eq!(*byte, expected, "byte {n} of {width} at {port:#x}: {got:x?}");
        }
    }
    // And the single bytes are what a driver wants to see.
    let byte = |port: u32| read(port, 1)[0];
    assert_eq!(byte(COM1 + 1), 0, "no interrupt is enabled after reset");
    assert_eq!(byte(COM1 + 5), 0x60, "transmitter empty, nothing received");
    assert_eq!(byte(COM1 + 7), 0x5a, "the scratch register");
    assert_eq!(byte(PVPANIC), 1, "pvpanic knows one event");
    assert_eq!(byte(KEYBOARD_COMMAND) & 2, 0, "the keyboard controller takes commands");
    assert_eq!(byte(0x71) & 0x80, 0, "the clock is not being updated");
    assert_eq!([byte(POWER), byte(POWER + 1), byte(POWER + 2)], [0; 3], "power: nothing pending");
}

#[test]
fn writes_of_every_width_and_alignment_are_survived() {
    needs_kvm!();
    let kernel = Kernel::pvh(|a| {
        for (port, width) in accesses() {
            // None of these asks for a reset, a power-off or a panic.
            for value in [0u32, 0x8080_8080, 0x7a7a_7a7a] {
                a.mov(edx, port)?;
                a.mov(eax, value)?;
                match width {
                    1 => a.out(dx, al)?,
                    2 => a.out(dx, ax)?,
                    _ => a.out(dx, eax)?,
                }
            }
        }
        quiet_uart(a)?;
        a.say("alive")?;
        // The UART still is one.
        a.out8(COM1 + 7, 0xa5)?;
        input(a, COM1 + 7, 1)?;
        a.mov(ebx, eax)?;
        input(a, COM1 + 5, 1)?;
        a.and(eax, 0x60)?;
        a.mov(edx, COM1)?;
        a.out(dx, al)?;
        a.mov(eax, ebx)?;
        a.out(dx, al)?;
        a.power_off()
    });
    let said = Guest::start(&kernel).powered_off();
    assert!(said.ends_with(b"alive\x60\xa5"), "{said:x?}");
}

#[test]
fn a_wide_write_reaches_every_register_it_covers() {
    needs_kvm!();
    let kernel = Kernel::pvh(|a| {
        // LCR 3, MCR 8 at 0x3fb and 0x3fc; then SCR and what lies past the window.
        a.mov(edx, COM1 + 3)?;
        a.mov(eax, 0x0803u32)?;
        a.out(dx, ax)?;
        a.mov(edx, COM1 + 7)?;
        a.mov(eax, 0x1111_1177u32)?;
        a.out(dx, eax)?;
        for register in [3, 4, 7] {
            input(a, COM1 + register, 1)?;
            a.mov(edx, COM1)?;
            a.out(dx, al)?;
        }
        // A byte of the reset register within a doubleword.
        a.mov(edx, POWER)?;
        a.mov(eax, (5u32 << 2 | 1 << 5) << 8)?;
        a.out(dx, eax)?;
        a.say("on")?;
        a.mov(edx, POWER)?;
        a.mov(eax, 5u32 << 2 | 1 << 5)?;
        a.out(dx, eax)?;
        a.halt()
    });
    assert_eq!(Guest::start(&kernel).powered_off(), b"\x03\x08\x77on");
}

#[test]
fn string_output_of_every_width_reaches_the_console_in_order() {
    needs_kvm!();
    let long: Vec<u8> = (0..3000u32).map(|n| b'a' + (n % 26) as u8).collect();
    let kernel = Kernel::pvh(|a| {
        a.cld()?;
        a.address_of(|a| a.db(&long))?;
        a.mov(esi, eax)?;
        a.mov(edx, COM1)?;
        a.mov(ecx, long.len() as u32)?;
        a.rep().outsb()?;
        // Two registers at once: THR and IER, in which the zero bytes enable nothing.
        a.address_of(|a| a.db(b"W\0O\0R\0D\0S\0"))?;
        a.mov(esi, eax)?;
        a.mov(ecx, 5)?;
        a.rep().outsw()?;
        // Backwards, and none at all.
        a.address_of(|a| a.db(b"abc"))?;
        a.lea(esi, dword_ptr(eax + 2))?;
        a.mov(ecx, 3)?;
        a.std()?;
        a.rep().outsb()?;
        a.rep().outsb()?;
        a.cld()?;
        a.power_off()
    });
    let said = Guest::start(&kernel).powered_off();
    let mut expected = long.clone();
    expected.extend(b"WORDScba");
    assert!(said == expected, "{:?}", String::from_utf8_lossy(&said));
}

#[test]
fn string_input_of_every_width_fills_memory() {
    needs_kvm!();
    let kernel = Kernel::pvh(|a| {
        let mut wait = a.create_label();
        a.say("?")?;
        a.set_label(&mut wait)?;
        input(a, COM1 + 5, 1)?;
        a.test(al, 1)?;
        a.jz(wait)?;
        a.cld()?;
        a.mov(edi, RESULTS)?;
        a.mov(edx, COM1)?;
        a.mov(ecx, 9)?;
        a.rep().insb()?;
        // Scratch register and the port after it; then nobody.
        a.out8(COM1 + 7, 0x21)?;
        a.mov(ecx, 2)?;
        a.rep().insw()?;
        a.mov(edx, 0x1234u32)?;
        a.mov(ecx, 2)?;
        a.rep().insd()?;
        a.mov(edx, 0x1234u32)?;
        a.mov(ecx, 3)?;
        a.rep().insb()?;
        a.dump(RESULTS, 9 + 4 + 8 + 3)?;
        a.power_off()
    });
    let mut guest = Guest::start(&kernel);
    guest.console.wait_for("?", 1);
    guest.console.type_in(b"nine keys");
    let mut expected = b"?nine keys!\xff!\xff".to_vec();
    expected.extend([0xff; 11]);
    assert_eq!(guest.powered_off(), expected);
}

#[test]
fn a_port_number_in_the_instruction_reaches_the_same_device() {
    needs_kvm!();
    let kernel = Kernel::pvh(|a| {
        a.in_(al, KEYBOARD_COMMAND)?;
        a.mov(edx, COM1)?;
        a.out(dx, al)?;
        a.in_(eax, 0x70u32)?;
        a.mov(dword_ptr(RESULTS), eax)?;
        a.dump(RESULTS, 4)?;
        a.power_off()
    });
    assert_eq!(Guest::start(&kernel).powered_off(), [1, 0, 0, 0xff, 0xff]);
}
