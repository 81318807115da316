use std::fs::File;
use std::io::Write;

use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{Bytes, GuestRegionMmap};

use super::*;
use crate::boot::elf::Elf;
use crate::boot::synth::{BASE, Spec};

const RAM: usize = 32 << 20;

fn ram(ranges: &[(u64, usize)]) -> GuestMemoryMmap {
    let ranges: Vec<_> = ranges.iter().map(|(at, len)| (GuestAddress(*at), *len)).collect();
    GuestMemoryMmap::from_ranges(&ranges).unwrap()
}

fn shared_ram() -> GuestMemoryMmap {
    let mapping = MmapRegionBuilder::new(RAM)
        .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
        .with_mmap_flags(libc::MAP_SHARED | libc::MAP_ANONYMOUS)
        .build()
        .unwrap();
    let region = GuestRegionMmap::new(mapping, GuestAddress(0)).unwrap();
    GuestMemoryMmap::from_regions(vec![region]).unwrap()
}

fn file(bytes: &[u8], immutable: bool) -> (tempfile::NamedTempFile, Image) {
    let mut named = tempfile::NamedTempFile::new().unwrap();
    named.write_all(bytes).unwrap();
    let file = File::open(named.path()).unwrap();
    (named, Image::File { file, len: bytes.len() as u64, immutable })
}

fn load_segments(
    memory: &GuestMemoryMmap,
    image: &Image,
    segments: &[Segment],
    method: LoadMethod,
) -> Result<LoadMethod, LoadError> {
    let reading = begin(memory, image, segments, method)?;
    reading.read(image)?;
    Ok(reading.method)
}

fn load(memory: &GuestMemoryMmap, image: &Image, method: LoadMethod) -> LoadMethod {
    let segments = Elf::parse(image).unwrap().segments;
    load_segments(memory, image, &segments, method).unwrap()
}

fn assert_loaded(memory: &GuestMemoryMmap, spec: &Spec) {
    let expected = spec.memory();
    let mut found = vec![0xff; expected.len()];
    memory.read_slice(&mut found, GuestAddress(BASE)).unwrap();
    assert!(found == expected);
}

#[test]
fn a_file_read_and_a_file_mapped_make_the_same_memory() {
    for align in [4096, 8] {
        let spec = Spec { align, ..Spec::default() };
        let (_named, image) = file(&spec.build(), true);
        for method in [LoadMethod::Read, LoadMethod::Map] {
            let memory = ram(&[(0, RAM)]);
            let used = load(&memory, &image, method);
            assert_loaded(&memory, &spec);
            assert_eq!(used, if align == 4096 { method } else { LoadMethod::Read });
        }
    }
}

#[test]
fn a_kernel_in_memory_is_copied() {
    let spec = Spec::default();
    let memory = ram(&[(0, RAM)]);
    let used = load(&memory, &Image::Bytes(spec.build()), LoadMethod::Map);
    assert_eq!(used, LoadMethod::Read);
    assert_loaded(&memory, &spec);
}

#[test]
fn shared_memory_and_files_of_others_are_not_mapped() {
    let spec = Spec::default();
    let (_named, image) = file(&spec.build(), true);
    let memory = shared_ram();
    assert_eq!(load(&memory, &image, LoadMethod::Map), LoadMethod::Read);
    assert_loaded(&memory, &spec);
    let (_named, image) = file(&spec.build(), false);
    assert_eq!(load(&ram(&[(0, RAM)]), &image, LoadMethod::Map), LoadMethod::Read);
}

#[test]
fn what_the_guest_writes_does_not_reach_the_file() {
    let bytes = Spec::default().build();
    let (named, image) = file(&bytes, true);
    let memory = ram(&[(0, RAM)]);
    assert_eq!(load(&memory, &image, LoadMethod::Map), LoadMethod::Map);
    memory.write_slice(&[0xee; 0x9000], GuestAddress(BASE)).unwrap();
    assert!(std::fs::read(named.path()).unwrap() == bytes);
}

#[test]
fn a_kernel_over_two_regions_is_loaded() {
    let spec = Spec::default();
    let (_named, image) = file(&spec.build(), true);
    let split = BASE as usize + 0x3000;
    for method in [LoadMethod::Read, LoadMethod::Map] {
        let memory = ram(&[(0, split), (split as u64, RAM - split)]);
        assert_eq!(load(&memory, &image, method), method);
        assert_loaded(&memory, &spec);
    }
}

#[test]
fn zeros_are_not_touched() {
    let segment =
        Segment { offset: 0, paddr: 16 << 20, filesz: 4096, memsz: 12 << 20, rare: false };
    let memory = ram(&[(0, RAM)]);
    let image = Image::Bytes(vec![1; 4096]);
    load_segments(&memory, &image, &[segment], LoadMethod::Read).unwrap();
    let host = memory.get_host_address(GuestAddress((16 << 20) + (4 << 20))).unwrap();
    let mut resident = vec![0xff_u8; (8 << 20) / 4096];
    // SAFETY: the range is inside the region, and there is a byte for each of its pages.
    let result = unsafe { libc::mincore(host.cast(), 8 << 20, resident.as_mut_ptr()) };
    assert_eq!(result, 0);
    assert!(resident.iter().all(|page| page & 1 == 0));
}

#[test]
fn a_guest_with_too_little_memory_is_told_how_much_it_needs() {
    let image = Image::Bytes(Spec::default().build());
    let segments = Elf::parse(&image).unwrap().segments;
    let refusal = |memory| {
        load_segments(&memory, &image, &segments, LoadMethod::Read).unwrap_err().to_string()
    };
    let error = refusal(ram(&[(0, 8 << 20)]));
    assert!(error.contains("ends at 0x800000") && error.contains("at least 17 MiB"), "{error}");
    // A hole in the middle of the second segment.
    let error = refusal(ram(&[(0, 0x120_4000), (0x120_8000, 8 << 20)]));
    assert!(error.contains("ends at 0x1204000"), "{error}");
}

#[test]
fn a_file_cut_short_after_it_was_checked_is_an_error() {
    let (named, image) = file(&Spec::default().build(), true);
    let segments = Elf::parse(&image).unwrap().segments;
    named.as_file().set_len(5000).unwrap();
    let memory = ram(&[(0, RAM)]);
    let error = load_segments(&memory, &image, &segments, LoadMethod::Read).unwrap_err();
    assert!(matches!(error, LoadError::Read(_)), "{error}");
}

#[test]
fn what_is_rarely_read_is_mapped_even_if_all_else_is_read() {
    let spec = Spec::default();
    let (named, image) = file(&spec.build(), true);
    let mut segments = Elf::parse(&image).unwrap().segments;
    segments[0].rare = true;
    let memory = ram(&[(0, RAM)]);
    let used = load_segments(&memory, &image, &segments, LoadMethod::Read).unwrap();
    assert_eq!(used, LoadMethod::Read);
    assert_loaded(&memory, &spec);
    // What becomes of the file shows in the guest where it was mapped, and only there.
    std::fs::write(named.path(), vec![0xaa; spec.build().len()]).unwrap();
    let byte = |at: u64| memory.read_obj::<u8>(GuestAddress(at)).unwrap();
    assert_eq!(byte(BASE), 0xaa);
    assert_ne!(byte(segments[1].paddr), 0xaa);
}

#[test]
fn no_page_is_mapped_of_a_file_that_is_not_husks_own() {
    let spec = Spec::default();
    for (immutable, counts) in [(true, [0, 1, 2]), (false, [0; 3])] {
        let (_named, image) = file(&spec.build(), immutable);
        let mut segments = Elf::parse(&image).unwrap().segments;
        let count = |segments: &[Segment], method| {
            segments.iter().filter_map(|each| mapped_pages(&image, each, method)).count()
        };
        let none = count(&segments, LoadMethod::Read);
        segments[0].rare = true;
        let one = count(&segments, LoadMethod::Read);
        assert_eq!([none, one, count(&segments, LoadMethod::Map)], counts);
    }
}
