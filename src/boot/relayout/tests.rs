use super::*;
use crate::boot::synth::{BASE, PVH_ENTRY, Spec, noise};

fn relaid(spec: &Spec) -> (Elf, Vec<u8>) {
    let image = Image::Bytes(spec.build());
    let elf = in_pieces(&Elf::parse(&image).unwrap(), &image);
    let mut out = Vec::new();
    write(&elf, &image, &mut out).unwrap();
    let again = Elf::parse(&Image::Bytes(out.clone())).unwrap();
    (again, out)
}

/// Guest memory from [`BASE`] on as these segments make it.
fn memory(elf: &Elf, file: &[u8]) -> Vec<u8> {
    let mut memory = vec![0; (elf.segments.last().unwrap().end() - BASE) as usize];
    for segment in &elf.segments {
        let (from, to) = (segment.offset as usize, (segment.paddr - BASE) as usize);
        let len = segment.filesz as usize;
        memory[to..to + len].copy_from_slice(&file[from..from + len]);
    }
    memory
}

#[test]
fn the_new_file_makes_the_same_memory_and_can_be_mapped() {
    for align in [4096, 8, 1] {
        let spec = Spec { align, ..Spec::default() };
        let (elf, file) = relaid(&spec);
        assert!(memory(&elf, &file) == spec.memory());
        assert!(elf.segments.iter().all(elf::is_mappable));
        assert_eq!((elf.entry, elf.pvh_entry), (Some(BASE), Some(PVH_ENTRY)));
    }
}

#[test]
fn long_zeros_are_left_out_and_short_ones_are_not() {
    let (elf, file) = relaid(&Spec::default());
    // The first segment's hole of 0x30000 bytes cuts it in two.
    assert_eq!(elf.segments.len(), 3);
    assert_eq!(elf.segments[0].filesz, 0x6000);
    assert_eq!(elf.segments[1].paddr, BASE + 0x35000);
    assert!(file.len() < 0x10000, "{:#x}", file.len());
    let mut bytes = noise(5000, 1);
    bytes.extend([0; 0x8000]);
    bytes.extend(noise(5000, 2));
    let spec = Spec { segments: vec![(BASE, bytes, 0x10000)], ..Spec::default() };
    assert_eq!(relaid(&spec).0.segments.len(), 1);
}

#[test]
fn a_segment_that_begins_or_ends_in_zeros_keeps_its_extent() {
    let mut bytes = vec![0; 0x20000];
    bytes.extend(noise(100, 1));
    bytes.extend(vec![0; 0x20000]);
    let entry = BASE + 0x20000;
    let segments = vec![(BASE, bytes, 0x50000)];
    let spec = Spec { entry, pvh: None, segments, ..Spec::default() };
    let (elf, file) = relaid(&spec);
    assert!(memory(&elf, &file) == spec.memory());
    assert_eq!((elf.segments.len(), elf.segments.last().unwrap().end()), (2, BASE + 0x50000));
    assert!(file.len() < 3 * 4096);
}

#[test]
fn a_kernel_entered_in_zeros_is_left_as_it_is() {
    let entry = BASE + 0x10000;
    let segments = vec![(BASE, vec![0; 0x20000], 0x20000)];
    let (elf, _) = relaid(&Spec { entry, pvh: None, segments, ..Spec::default() });
    assert_eq!((elf.segments.len(), elf.segments[0].filesz), (1, 0x20000));
    assert_eq!(elf.entry, Some(entry));
}

#[test]
fn a_kernel_full_of_holes_gets_no_more_segments_than_are_read_back() {
    let hole = [noise(1, 1), vec![0; 0x10fff]].concat();
    let entry = PVH_ENTRY.to_le_bytes()[..4].to_vec();
    // One segment, several that each could use up what there is, and more than need be cut at all.
    for (count, holes, pvh) in [(1, 200, None), (3, 70, Some(entry.clone())), (126, 2, Some(entry))]
    {
        let size = 0x11000 * holes as u64;
        let segment = |n: u64| (BASE + n * size, hole.repeat(holes), size);
        let segments = (0..count).map(segment).collect();
        let spec = Spec { pvh, segments, ..Spec::default() };
        let (elf, file) = relaid(&spec);
        assert_eq!(elf.segments.len(), MAX_SEGMENTS, "{count}");
        assert!(memory(&elf, &file) == spec.memory(), "{count}");
    }
}

#[test]
fn what_has_only_a_pvh_entry_still_has_no_other() {
    let (elf, _) = relaid(&Spec { entry: 0, ..Spec::default() });
    assert_eq!((elf.entry, elf.pvh_entry), (None, Some(PVH_ENTRY)));
}

#[test]
fn what_is_rarely_read_is_a_segment_of_its_own() {
    const HUGE: u64 = 2 << 20;
    // A section from within the first huge page to within the third, of which it has most.
    let (from, to) = (0x1000, 2 * HUGE + 0x19_0123);
    let spec = Spec {
        segments: vec![(BASE, noise(3 * HUGE as usize, 1), 4 * HUGE)],
        section: Some((".orc_unwind", BASE + from, to - from)),
        ..Spec::default()
    };
    let (elf, file) = relaid(&spec);
    assert!(memory(&elf, &file) == spec.memory());
    let found: Vec<_> = elf.segments.iter().map(|s| (s.paddr - BASE, s.memsz, s.rare)).collect();
    let rare = HUGE + 0x19_0000;
    let expected = [(0, HUGE, false), (HUGE, rare, true), (HUGE + rare, 3 * HUGE - rare, false)];
    assert_eq!(found, expected);
    // Under another name it is nothing special.
    let spec = Spec { section: spec.section.map(|(_, at, len)| (".rodata", at, len)), ..spec };
    assert_eq!(relaid(&spec).0.segments.len(), 1);
}
