use super::*;
use crate::boot::elf::Elf;
use crate::boot::relayout;
use crate::boot::synth::{BASE, Spec, noise};

const MIB: u64 = 1 << 20;

/// A kernel of one segment, `len` bytes from [`BASE`] on.
fn kernel(len: u64) -> Spec {
    Spec { segments: vec![(BASE, noise(len as usize, 1), len)], ..Spec::default() }
}

/// `file` with a table of sections: name, type, and the guest addresses its bytes go to.
fn with_sections(spec: &Spec, sections: &[(&str, u32, Range<u64>)]) -> Vec<u8> {
    let mut file = spec.build();
    let first = Elf::parse(&Image::Bytes(file.clone())).unwrap().segments[0];
    let mut names = vec![0];
    let mut table = vec![0; SHDR_SIZE];
    let mut header = |name: usize, kind: u32, at: u64, len: u64| {
        let mut header = vec![0; SHDR_SIZE];
        header[..4].copy_from_slice(&(name as u32).to_le_bytes());
        header[4..8].copy_from_slice(&kind.to_le_bytes());
        header[24..32].copy_from_slice(&at.to_le_bytes());
        header[32..40].copy_from_slice(&len.to_le_bytes());
        table.extend(header);
    };
    for (name, kind, range) in sections {
        let at = range.start - first.paddr + first.offset;
        header(names.len(), *kind, at, range.end - range.start);
        names.extend(name.as_bytes());
        names.push(0);
    }
    header(0, 3, file.len() as u64, names.len() as u64);
    file.extend(names);
    let (shoff, shnum) = (file.len() as u64, (table.len() / SHDR_SIZE) as u16);
    file[40..48].copy_from_slice(&shoff.to_le_bytes());
    for (at, field) in [(58, SHDR_SIZE as u16), (60, shnum), (62, shnum - 1)] {
        file[at..at + 2].copy_from_slice(&field.to_le_bytes());
    }
    file.extend(table);
    file
}

/// The pieces, from [`BASE`] on: where each begins, and whether it is cold.
fn pieces(file: Vec<u8>) -> Vec<(u64, u64, bool)> {
    let image = Image::Bytes(file);
    let elf = relayout::without_zeros(&Elf::parse(&image).unwrap(), &image);
    elf.segments.iter().map(|s| (s.paddr - BASE, s.end() - BASE, s.cold)).collect()
}

#[test]
fn what_only_debuggers_read_is_a_piece_of_its_own_in_whole_huge_pages() {
    let spec = kernel(10 * MIB);
    let btf = BASE + MIB + 100..BASE + 5 * MIB;
    let file = with_sections(&spec, &[(".text", 1, BASE..btf.start), (".BTF", 1, btf.clone())]);
    let cut = [(0, 2 * MIB, false), (2 * MIB, 4 * MIB, true), (4 * MIB, 10 * MIB, false)];
    assert_eq!(pieces(file), cut);
    // Nothing follows in the last page, and the two sections are one range.
    let ids = btf.end + 8..BASE + 10 * MIB;
    let file = with_sections(&spec, &[(".BTF_ids", 1, ids), (".BTF", 1, btf)]);
    assert_eq!(pieces(file), [(0, 2 * MIB, false), (2 * MIB, 10 * MIB, true)]);
}

#[test]
fn sections_without_bytes_of_other_names_or_shorter_than_a_huge_page_cut_nothing() {
    let spec = kernel(8 * MIB);
    let range = BASE + MIB..BASE + 6 * MIB;
    let short = BASE + 2 * MIB + 1..BASE + 6 * MIB - 1;
    for section in [(".BTF", 8, range.clone()), (".BTF2", 1, range), (".BTF", 1, short)] {
        assert_eq!(pieces(with_sections(&spec, &[section])), [(0, 8 * MIB, false)]);
    }
}

#[test]
fn the_pieces_make_the_same_memory_and_the_marks_are_read_back() {
    let spec = kernel(7 * MIB);
    let file = with_sections(&spec, &[(".orc_unwind", 1, BASE + 2 * MIB..BASE + 4 * MIB)]);
    let image = Image::Bytes(file);
    let elf = relayout::without_zeros(&Elf::parse(&image).unwrap(), &image);
    let mut out = Vec::new();
    relayout::write(&elf, &image, &mut out).unwrap();
    let again = Elf::parse(&Image::Bytes(out.clone())).unwrap();
    let mut memory: Vec<u8> = Vec::new();
    for (old, new) in elf.segments.iter().zip(&again.segments) {
        assert_eq!((old.paddr, old.memsz, old.cold), (new.paddr, new.memsz, new.cold));
        let from = new.offset as usize;
        memory.extend(&out[from..from + new.filesz as usize]);
    }
    assert!(memory == spec.memory());
    assert_eq!(again.segments.iter().filter(|segment| segment.cold).count(), 1);
}

#[test]
fn a_table_of_sections_that_lies_is_as_good_as_none() {
    let whole = with_sections(&kernel(4 * MIB), &[(".BTF", 1, BASE..BASE + 4 * MIB)]);
    assert_eq!(ranges(&Image::Bytes(whole.clone())).len(), 1);
    // Each byte of the header's fields about sections, and of the table and its names, is wrong once.
    let table = u64_at(&whole, 40).unwrap() as usize;
    let names = whole.len() - 3 * SHDR_SIZE - ".BTF\0\0".len();
    for at in (40..48).chain(58..64).chain(names..whole.len()) {
        for value in [0, 0x7f, 0xff] {
            let mut file = whole.clone();
            file[at] = value;
            for range in ranges(&Image::Bytes(file)) {
                assert!(range.start <= range.end, "{at} {value}");
            }
        }
    }
    for len in (0..64).chain(table..table + SHDR_SIZE) {
        assert_eq!(ranges(&Image::Bytes(whole[..len].to_vec())), [], "{len}");
    }
}
