use std::fs::File;

use proptest::prelude::*;

use super::*;
use crate::boot::synth::{BASE, PVH_ENTRY, Spec, noise};

fn parse(bytes: Vec<u8>) -> Result<Elf, ElfError> {
    Elf::parse(&Image::Bytes(bytes))
}

fn refusal(bytes: Vec<u8>) -> String {
    parse(bytes).unwrap_err().to_string()
}

fn patched(at: usize, bytes: &[u8]) -> Vec<u8> {
    let mut elf = Spec::default().build();
    elf[at..at + bytes.len()].copy_from_slice(bytes);
    elf
}

/// Where the default kernel's first `PT_LOAD` header is: the note's comes before.
const LOAD_AT: usize = 64 + 56;

#[test]
fn a_kernel_has_segments_and_both_entries() {
    let elf = parse(Spec::default().build()).unwrap();
    assert_eq!(elf.entry, Some(BASE));
    assert_eq!(elf.pvh_entry, Some(PVH_ENTRY));
    assert_eq!(elf.segments.len(), 2);
    assert_eq!(elf.segments.last().unwrap().end(), BASE + 0x20_0010 + 0x20000);
    assert!(elf.segments.iter().all(is_mappable));
}

#[test]
fn what_goes_above_4_gib_is_refused_for_no_entry_reaches_it() {
    let at = |paddr| {
        let segments = vec![(paddr, vec![0x90; 0x1000], 0x1000)];
        Spec { pvh: None, segments, entry: paddr, ..Spec::default() }.build()
    };
    assert_eq!(parse(at((4 << 30) - 0x1000)).unwrap().entry, Some((4 << 30) - 0x1000));
    for paddr in [(4 << 30) - 0xfff, 4 << 30, 5 << 30] {
        let error = refusal(at(paddr));
        assert!(error.contains("segment") && error.contains("first 4 GiB"), "{error}");
    }
}

#[test]
fn the_pvh_entry_has_four_or_eight_bytes_and_no_other_number() {
    let with = |desc: &[u8]| Spec { pvh: Some(desc.to_vec()), ..Spec::default() }.build();
    assert_eq!(parse(with(&PVH_ENTRY.to_le_bytes())).unwrap().pvh_entry, Some(PVH_ENTRY));
    assert_eq!(parse(with(&[0; 3])).unwrap().pvh_entry, None);
    assert!(refusal(with(&0u32.to_le_bytes())).contains("PVH entry point 0x0"));
}

#[test]
fn notes_aligned_to_eight_bytes_are_read() {
    let mut bytes = Vec::new();
    for word in [4u32, 4, 7] {
        bytes.extend(word.to_le_bytes());
    }
    bytes.extend(b"GNU\0");
    bytes.extend([1, 2, 3, 4, 0, 0, 0, 0]);
    for word in [4u32, 8, 18] {
        bytes.extend(word.to_le_bytes());
    }
    bytes.extend(b"Xen\0");
    bytes.extend(0x1234u64.to_le_bytes());
    assert_eq!(find_pvh_entry(&Notes { bytes, align: 8 }), Some(0x1234));
}

#[test]
fn what_is_for_another_machine_is_called_by_its_name() {
    let machine = |machine| refusal(Spec { machine, ..Spec::default() }.build());
    assert!(machine(183).contains("an ELF for aarch64"), "{}", machine(183));
    assert!(machine(3).contains("an ELF for 32-bit x86"), "{}", machine(3));
    assert!(machine(999).contains("machine 999"));
    let mut big = patched(5, &[2]);
    big[18..20].copy_from_slice(&22u16.to_be_bytes());
    assert!(refusal(big).contains("big-endian s390x"));
    assert!(refusal(patched(4, &[1])).contains("32-bit x86-64"));
}

#[test]
fn programs_and_modules_are_no_kernels() {
    let kind = |kind| refusal(Spec { kind, ..Spec::default() }.build());
    assert!(kind(1).contains("kernel module"));
    assert!(kind(3).contains("position-independent"));
    assert!(kind(4).contains("core dump"));
    let file = File::open("/proc/self/exe").unwrap();
    let len = file.metadata().unwrap().len();
    let program = Elf::parse(&Image::File { file, len, immutable: false });
    assert!(matches!(program, Err(ElfError::NotKernel(_))), "{program:?}");
    assert!(refusal(patched(64, &3u32.to_le_bytes())).contains("a program for Linux"));
}

#[test]
fn a_kernel_truncated_anywhere_is_refused() {
    let whole = Spec::default().build();
    for sixteenth in 0..16 {
        let cut = whole[..whole.len() * sixteenth / 16].to_vec();
        let error = parse(cut).unwrap_err();
        assert!(matches!(error, ElfError::Truncated { .. }), "{sixteenth}/16: {error}");
    }
}

#[test]
fn headers_that_cannot_be_are_refused() {
    let field = |field: usize, value: u64| refusal(patched(LOAD_AT + field, &value.to_le_bytes()));
    assert!(field(40, 5).contains("5 in memory"));
    assert!(field(24, 0x1000).contains("below 1 MiB"));
    assert!(field(24, u64::MAX - 0x100).contains("does not end"));
    assert!(field(8, u64::MAX).contains("truncated"));
    assert!(field(24, BASE + 0x1f_0000).contains("overlap"));
    assert!(refusal(patched(54, &[57, 0])).contains("program headers of 57 bytes"));
    assert!(refusal(patched(56, &[255, 255])).contains("65535 program headers"));
    assert!(refusal(patched(56, &[0, 0])).contains("nothing to load"));
}

#[test]
fn a_kernel_that_can_be_entered_nowhere_is_refused() {
    let spec = Spec { entry: 0xffff_ffff_8100_0000, pvh: None, ..Spec::default() };
    assert!(refusal(spec.build()).contains("no PVH note"));
    let spec = Spec { entry: 0, ..Spec::default() };
    assert_eq!(parse(spec.build()).unwrap().entry, None);
}

proptest! {
    #[test]
    fn a_mutated_kernel_never_panics_and_never_points_outside_the_file(
        changes in prop::collection::vec((0usize..400, any::<u8>()), 1..8),
        cut in 0usize..3,
    ) {
        let spec = Spec { segments: vec![(BASE, noise(900, 1), 0x2000)], align: 8, ..Spec::default() };
        let mut bytes = spec.build();
        for (at, value) in changes {
            bytes[at] = value;
        }
        bytes.truncate(bytes.len() - cut * 300);
        let len = bytes.len() as u64;
        if let Ok(elf) = parse(bytes) {
            for segment in &elf.segments {
                prop_assert!(segment.offset + segment.filesz <= len);
                prop_assert!(segment.filesz <= segment.memsz);
                prop_assert!(segment.paddr >= LOWEST);
            }
            prop_assert!(elf.entry.or(elf.pvh_entry).is_some_and(|entry| elf.holds(entry)));
        }
    }
}
