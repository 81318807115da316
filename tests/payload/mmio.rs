//! MMIO of every width at every alignment: where nothing is, and in the windows of virtio devices.

use std::fs::File;
use std::os::fd::AsRawFd;

use husk::config::{
    BalloonConfig, ConsoleDevice, DiskConfig, NetConfig, PmemConfig, PortConfig, Size, VmConfig,
    VolumeCache, VolumeConfig, VsockConfig,
};
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

/// Where the device-specific configuration begins in a window (virtio 1.3 §4.2.2).
const CONFIG: u64 = 0x100;
const STATUS: u64 = VIRTIO + 0x70;

/// The accesses to the first device's window that are read back: the registers' beginning, the way
/// into the configuration and past its end, and the window's end.
fn reads_of_a_window() -> Vec<(u64, u64)> {
    let ranges = [0..0x18, 0xf0..0x180, 0xff0..0x1000];
    let within = |range: std::ops::Range<u64>| {
        let all = range.clone().flat_map(|offset| WIDTHS.map(|width| (offset, width)));
        all.filter(move |(offset, width)| offset + width <= range.end)
    };
    ranges.into_iter().flat_map(within).collect()
}

/// A kernel that reads the first device's window in all ways, writes to it in all ways, resets the
/// device, reads it once more, and acknowledges it as a driver does.
fn abuser() -> Kernel {
    let reads = reads_of_a_window();
    Kernel::long(|a| {
        a.cld()?;
        for round in 0..2 {
            a.mov(edi, RESULTS)?;
            for (offset, width) in &reads {
                a.mov(rax, 0x3c3c_3c3c_3c3c_3c3cu64)?;
                load(a, VIRTIO + offset, *width)?;
                a.stosq()?;
            }
            a.dump(RESULTS, reads.len() as u32 * 8)?;
            if round == 0 {
                let offsets = (0..0x140).chain(0xff0..0x1000);
                for (offset, width) in offsets.flat_map(|o| WIDTHS.map(|width| (o, width))) {
                    a.mov(rax, 0xa5a5_a5a5_a5a5_a5a5u64)?;
                    store(a, VIRTIO + offset, width)?;
                }
                a.poke(STATUS as u32, 0)?;
                // What the features of the first word are is not chosen by what was written before.
                a.poke(VIRTIO as u32 + 0x14, 0)?;
            }
        }
        a.poke(STATUS as u32, 1)?;
        a.poke(STATUS as u32, 3)?;
        load(a, STATUS, 4)?;
        a.mov(qword_ptr(RESULTS), rax)?;
        a.dump(RESULTS, 1)?;
        a.power_off()
    })
}

/// Runs the abuser of a machine that `adjust` gives one device of the type `id`, whose configuration
/// begins with `config`.
fn a_window_answers(id: u32, config: &[u8], adjust: impl FnOnce(&Kernel, &mut VmConfig)) {
    let kernel = abuser();
    let said = Guest::start_with(&kernel, |machine| adjust(&kernel, machine)).powered_off();
    let reads = reads_of_a_window();
    let (rounds, status) = said.split_at(2 * 8 * reads.len());
    assert_eq!(status, [3], "the device is as after power-on");
    let (before, after) = rounds.split_at(8 * reads.len());
    assert!(before == after, "what was written has changed something");

    let found = |offset: u64, width: u64| {
        let n = reads.iter().position(|read| *read == (offset, width)).unwrap();
        before[n * 8..n * 8 + width as usize].to_vec()
    };
    let register = |offset| u32::from_le_bytes(found(offset, 4).try_into().unwrap());
    assert_eq!((register(0), register(4), register(8)), (0x7472_6976, 2, id));
    let byte_of_config = |offset| found(offset, 1)[0];
    let begins: Vec<u8> = (CONFIG..CONFIG + config.len() as u64).map(byte_of_config).collect();
    assert_eq!(begins, config);
    for (offset, width) in reads.iter().copied() {
        let bytes: Vec<u8> = (offset..offset + width).map(|at| found(at, 1)[0]).collect();
        assert_eq!(found(offset, width), bytes, "{width} bytes at {offset:#x}");
    }
    // Of RAX only what was read has changed.
    for ((_, width), value) in reads.iter().zip(before.chunks(8)) {
        let rest = if *width == 4 { 0 } else { 0x3c };
        assert!(value[*width as usize..].iter().all(|byte| *byte == rest));
    }
}

#[test]
fn a_disks_window_answers_every_width_and_alignment_and_is_harmed_by_none() {
    needs_kvm!();
    let capacity = 3u64.to_le_bytes();
    a_window_answers(2, &capacity, |kernel, machine| {
        let path = kernel.directory().join("disk");
        File::create(&path).unwrap().set_len(3 * 512).unwrap();
        machine.disks = vec![DiskConfig { id: "d".to_owned(), path, ..DiskConfig::default() }];
    });
}

/// A TAP that goes when it is closed, or `None` where this user can make none.
fn tap() -> Option<File> {
    let file = File::options().read(true).write(true).open("/dev/net/tun").ok()?;
    // struct ifreq: 16 bytes of name (of which the kernel makes one), 2 of flags, 22 of others.
    let mut request = [0u8; 40];
    let flags = (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as u16;
    request[16..18].copy_from_slice(&flags.to_ne_bytes());
    // SAFETY: TUNSETIFF reads and writes an ifreq, which is 40 bytes long.
    let done = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, request.as_mut_ptr()) };
    (done == 0).then_some(file)
}

#[test]
fn a_network_interfaces_window_answers_every_width_and_alignment_and_is_harmed_by_none() {
    needs_kvm!();
    let Some(tap) = tap() else {
        return crate::fixture::skipped("a network interface's window: no TAP can be made");
    };
    let mac = [0x52, 0x54, 0, 0xab, 0xcd, 0xef];
    a_window_answers(1, &mac, |_, machine| {
        machine.nets = vec![NetConfig {
            id: "n".to_owned(),
            fd: Some(tap.as_raw_fd()),
            mac: Some("52:54:00:ab:cd:ef".to_owned()),
            ..NetConfig::default()
        }];
    });
}

#[test]
fn a_vsocks_window_answers_every_width_and_alignment_and_is_harmed_by_none() {
    needs_kvm!();
    let cid = 0x0123_4567u64.to_le_bytes();
    a_window_answers(19, &cid, |kernel, machine| {
        let socket = kernel.directory().join("vsock");
        machine.vsock = Some(VsockConfig { cid: 0x0123_4567, socket });
    });
}

#[test]
fn a_virtio_consoles_window_answers_every_width_and_alignment_and_is_harmed_by_none() {
    needs_kvm!();
    // 80 columns, 24 rows.
    a_window_answers(3, &[80, 0, 24, 0], |_, machine| {
        machine.console_device = ConsoleDevice::Virtio;
    });
}

#[test]
fn the_window_of_byte_ports_answers_every_width_and_alignment_and_is_harmed_by_none() {
    needs_kvm!();
    let two_ports = [0, 0, 0, 0, 2, 0, 0, 0];
    a_window_answers(3, &two_ports, |kernel, machine| {
        let port = |name: &str| PortConfig {
            name: name.to_owned(),
            socket: None,
            file: Some(kernel.directory().join(name)),
        };
        machine.ports = vec![port("a"), port("b")];
    });
}

#[test]
fn a_balloons_window_answers_every_width_and_alignment_and_is_harmed_by_none() {
    needs_kvm!();
    // Of 4 KiB pages; what the guest says of its own is forgotten at the reset.
    let wanted = (0x12u32 << 8).to_le_bytes();
    let config = [wanted, [0; 4], [0; 4], [0; 4]].concat();
    a_window_answers(5, &config, |_, machine| {
        machine.balloon = Some(BalloonConfig { size: Size(0x12 << 20) });
    });
}

#[test]
fn the_window_of_persistent_memory_answers_every_width_and_alignment_and_is_harmed_by_none() {
    needs_kvm!();
    // Above RAM and the hole below 4 GiB; guest address and length.
    let config = [(4u64 << 30).to_le_bytes(), (2u64 << 20).to_le_bytes()].concat();
    a_window_answers(27, &config, |kernel, machine| {
        let path = kernel.directory().join("pmem");
        File::create(&path).unwrap().set_len(2 << 20).unwrap();
        machine.pmem = vec![PmemConfig { id: "p".to_owned(), path, readonly: false }];
    });
}

#[test]
fn the_window_of_a_shared_directory_answers_every_width_and_alignment_and_is_harmed_by_none() {
    needs_kvm!();
    let mut config = b"tag".to_vec();
    config.resize(36, 0);
    config.extend(1u32.to_le_bytes());
    a_window_answers(26, &config, |kernel, machine| {
        machine.volumes = vec![VolumeConfig {
            id: "fs0".to_owned(),
            mount: None,
            tag: "tag".to_owned(),
            path: kernel.directory().to_owned(),
            readonly: true,
            overlay: false,
            cache: VolumeCache::Auto,
        }];
    });
}
