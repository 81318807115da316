use std::fs;

use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::boot::synth::{self, ALL, BASE, INIT_SIZE, PVH_ENTRY, SETUP_LEN, Spec, noise, pack};
use crate::boot::unpack::Compression;
use crate::memory;
use crate::size::Size;

struct Fixture {
    dir: tempfile::TempDir,
    path: PathBuf,
    cache: Cache,
}

impl Fixture {
    fn new(bytes: &[u8]) -> Fixture {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("the-kernel");
        fs::write(&path, bytes).unwrap();
        Fixture { cache: Cache::at(dir.path().join("cache")), path, dir }
    }

    fn open(&self) -> Result<Kernel, KernelError> {
        Kernel::open(&self.path, &self.cache)
    }

    /// What opening says, which must name the path.
    fn refusal(&self) -> String {
        let error = self.open().unwrap_err().to_string();
        assert!(error.contains("the-kernel"), "{error}");
        error
    }
}

fn refusal(bytes: &[u8]) -> String {
    Fixture::new(bytes).refusal()
}

fn ram() -> GuestMemoryMmap {
    GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 32 << 20)]).unwrap()
}

impl Kernel {
    fn load(&self, memory: &GuestMemoryMmap, options: LoadOptions) -> Result<Loaded, KernelError> {
        let load = self.begin_load(memory, options)?;
        self.read(&load)?;
        Ok(load.loaded)
    }
}

fn load(kernel: &Kernel, method: LoadMethod) -> (GuestMemoryMmap, Loaded) {
    let memory = ram();
    let loaded = kernel.load(&memory, LoadOptions { method, ..LoadOptions::default() }).unwrap();
    (memory, loaded)
}

fn assert_loaded(memory: &GuestMemoryMmap, expected: &[u8], at: u64) {
    let mut found = vec![0xff; expected.len()];
    memory.read_slice(&mut found, GuestAddress(at)).unwrap();
    assert!(found == expected);
}

fn patched(mut image: Vec<u8>, at: usize, bytes: &[u8]) -> Vec<u8> {
    image[at..at + bytes.len()].copy_from_slice(bytes);
    image
}

#[test]
fn an_elf_is_entered_by_pvh_or_as_wanted() {
    let spec = Spec::default();
    let kernel = Fixture::new(&spec.build()).open().unwrap();
    let (memory, loaded) = load(&kernel, LoadMethod::Read);
    assert_loaded(&memory, &spec.memory(), BASE);
    assert_eq!((loaded.entry, loaded.protocol), (PVH_ENTRY, Protocol::Pvh));
    assert_eq!(loaded.end, BASE + 0x20_0010 + 0x20000);
    assert_eq!((loaded.initrd_max, loaded.cmdline_max), (0x7fff_ffff, 2047));
    assert_eq!(loaded.setup_header, None);

    let options = LoadOptions { protocol: Some(Protocol::Linux64), ..LoadOptions::default() };
    let loaded = kernel.load(&memory, options).unwrap();
    assert_eq!((loaded.entry, loaded.protocol), (BASE, Protocol::Linux64));
}

#[test]
fn an_elf_without_the_note_is_entered_by_the_linux_protocol_only() {
    let kernel = Fixture::new(&Spec { pvh: None, ..Spec::default() }.build()).open().unwrap();
    assert_eq!(load(&kernel, LoadMethod::Read).1.protocol, Protocol::Linux64);
    let options = LoadOptions { protocol: Some(Protocol::Pvh), ..LoadOptions::default() };
    let error = kernel.load(&ram(), options).unwrap_err().to_string();
    assert!(error.contains("the-kernel") && error.contains("PVH"), "{error}");
}

#[test]
fn a_bzimage_of_every_compression_is_unpacked_once() {
    let spec = Spec::default();
    // What follows the ELF in a real payload.
    let mut unpacked = spec.build();
    unpacked.extend(noise(1000, 8));
    for compression in ALL {
        let f = Fixture::new(&synth::bzimage(&pack(compression, &unpacked)));
        for start in ["cold", "warm"] {
            for method in [LoadMethod::Read, LoadMethod::Map] {
                let (memory, loaded) = load(&f.open().unwrap(), method);
                assert_loaded(&memory, &spec.memory(), BASE);
                assert_eq!(loaded.method, method, "{start} {}", compression.name());
                assert_eq!((loaded.entry, loaded.protocol), (PVH_ENTRY, Protocol::Pvh));
                assert_eq!(loaded.end, BASE + u64::from(INIT_SIZE));
                assert!(loaded.setup_header.is_some());
            }
        }
        assert_eq!(fs::read_dir(f.dir.path().join("cache/kernels")).unwrap().count(), 1);
    }
}

#[test]
fn without_a_cache_a_bzimage_boots_all_the_same() {
    let spec = Spec { align: 8, ..Spec::default() };
    let f = Fixture::new(&synth::bzimage(&pack(Compression::Lz4, &spec.build())));
    for cache in [Cache::off(), Cache::at("/proc/husk-no")] {
        let kernel = Kernel::open(&f.path, &cache).unwrap();
        let (memory, loaded) = load(&kernel, LoadMethod::Map);
        assert_loaded(&memory, &spec.memory(), BASE);
        assert_eq!(loaded.method, LoadMethod::Read);
    }
}

#[test]
fn another_kernel_under_the_same_name_is_another_kernel() {
    let f = Fixture::new(&synth::bzimage(&pack(Compression::Lz4, &Spec::default().build())));
    f.open().unwrap();
    let other = Spec { segments: vec![(BASE, noise(5000, 77), 5000)], ..Spec::default() };
    fs::write(&f.path, synth::bzimage(&pack(Compression::Lz4, &other.build()))).unwrap();
    let (memory, _) = load(&f.open().unwrap(), LoadMethod::Map);
    assert_loaded(&memory, &other.memory(), BASE);
}

#[test]
fn the_64_bit_protocol_lets_an_initrd_lie_higher() {
    let f = Fixture::new(&synth::bzimage(&pack(Compression::Lz4, &Spec::default().build())));
    let options = LoadOptions { protocol: Some(Protocol::Linux64), ..LoadOptions::default() };
    let loaded = f.open().unwrap().load(&ram(), options).unwrap();
    assert_eq!((loaded.entry, loaded.initrd_max), (BASE, u64::MAX));
}

#[test]
fn a_bzimage_without_a_linux_in_it_is_entered_itself() {
    let other_payload = pack(Compression::Gzip, b"not an ELF");
    let lzo = b"\x89LZO\0\r\n\x1a\n and so on".to_vec();
    for payload in [Vec::new(), other_payload, lzo] {
        let image = synth::bzimage(&payload);
        let (memory, loaded) = load(&Fixture::new(&image).open().unwrap(), LoadMethod::Map);
        assert_loaded(&memory, &image[SETUP_LEN..], BASE);
        assert_eq!((loaded.entry, loaded.protocol), (BASE + 0x200, Protocol::Linux64));
        assert_eq!(loaded.end, BASE + u64::from(INIT_SIZE));
        assert_eq!(loaded.method, LoadMethod::Read);

        let fixed = patched(image.clone(), 0x234, &[0]);
        let loaded = load(&Fixture::new(&fixed).open().unwrap(), LoadMethod::Read).1;
        assert_eq!(loaded.entry, 0x10_0200);

        let only32 = patched(image, 0x236, &[0, 0]);
        assert!(refusal(&only32).contains("32-bit kernel"));
    }
}

#[test]
fn what_is_no_kernel_is_called_by_its_name() {
    assert!(refusal(b"").contains("an empty file"));
    assert!(refusal(b"#!/bin/sh\necho hello\n").contains("a text file"));
    assert!(refusal(b"070701 and so on").contains("cpio"));
    assert!(refusal(b"\x1f\x8b\x08\x00").contains("gunzip"));
    assert!(refusal(&noise(10, 1)[..1]).contains("a text file"));
    assert!(refusal(&[0; 5000]).contains("does not know"));
    let arm64 = patched(vec![0; 100], 56, b"ARM\x64");
    assert!(refusal(&arm64).contains("an arm64 kernel"));
    let aarch64 = Spec { machine: 183, ..Spec::default() }.build();
    assert!(refusal(&aarch64).contains("an ELF for aarch64"));
    let packed = refusal(&synth::bzimage(&pack(Compression::Lz4, &aarch64)));
    assert!(packed.contains("packed in it") && packed.contains("aarch64"), "{packed}");
}

#[test]
fn what_is_no_file_is_refused_without_waiting() {
    let mut f = Fixture::new(b"x");
    f.path.set_file_name("the-kernel-is-missing");
    assert!(f.refusal().contains("No such file"));
    fs::create_dir(&f.path).unwrap();
    assert!(f.refusal().contains("a directory"));
    f.path.set_file_name("the-kernel-is-a-pipe");
    assert!(std::process::Command::new("mkfifo").arg(&f.path).status().unwrap().success());
    assert!(f.refusal().contains("a pipe"));
    let error = Kernel::open(Path::new("/dev/null"), &f.cache).unwrap_err().to_string();
    assert!(error.contains("/dev/null: it is a device"), "{error}");
}

#[test]
fn a_kernel_truncated_anywhere_is_refused() {
    let elf = Spec::default().build();
    let images = ALL.map(|compression| synth::bzimage(&pack(compression, &elf)));
    for image in images.iter().chain([&elf]) {
        for sixteenth in 0..16 {
            let error = refusal(&image[..image.len() * sixteenth / 16]);
            let expected = if sixteenth == 0 { "empty" } else { "truncated" };
            assert!(error.contains(expected), "{sixteenth}/16: {error}");
        }
    }
}

#[test]
fn a_payload_that_lies_or_is_damaged_is_refused() {
    let elf = Spec::default().build();
    for compression in ALL {
        let payload = pack(compression, &elf);
        let mut damaged = payload.clone();
        let middle = damaged.len() / 2;
        damaged[middle..middle + 64].fill(0xa5);
        // lz4's legacy frames and lzma-alone have no checksum: damage may go unseen, as in Linux.
        if !matches!(compression, Compression::Lz4 | Compression::Lzma) {
            let error = refusal(&synth::bzimage(&damaged));
            assert!(error.contains(compression.name()), "{error}");
        }
        let mut liar = payload.clone();
        let end = liar.len() - 4;
        liar[end..].copy_from_slice(&0x4000_0001u32.to_le_bytes());
        assert!(refusal(&synth::bzimage(&liar)).contains("at most 4194304"));
    }
    let image = synth::bzimage(&pack(Compression::Lz4, &elf));
    let small = patched(image, 0x260, &0x1000u32.to_le_bytes());
    assert!(refusal(&small).contains("at most 4096"));
}

#[test]
fn a_guest_that_is_too_small_is_told_so() {
    let kernel = Fixture::new(&Spec::default().build()).open().unwrap();
    let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 4 << 20)]).unwrap();
    let error = kernel.load(&memory, LoadOptions::default()).unwrap_err().to_string();
    assert!(error.contains("the-kernel") && error.contains("MiB"), "{error}");
    let huge = patched(synth::bzimage(&[]), 0x260, &[0xff; 4]);
    let kernel = Fixture::new(&huge).open().unwrap();
    assert!(kernel.load(&memory, LoadOptions::default()).is_err());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]
    #[test]
    fn a_mutated_kernel_never_panics(
        packed in any::<bool>(),
        changes in prop::collection::vec((0usize..2500, any::<u8>()), 1..10),
    ) {
        let spec = Spec { segments: vec![(BASE, noise(3000, 1), 0x2000)], align: 8, ..Spec::default() };
        let mut image = spec.build();
        if packed {
            image = synth::bzimage(&pack(Compression::Lz4, &image));
        }
        for (at, value) in changes {
            image[at] = value;
        }
        let f = Fixture::new(&image);
        if let Ok(kernel) = f.open() {
            for method in [LoadMethod::Read, LoadMethod::Map] {
                let options = LoadOptions { method, ..LoadOptions::default() };
                let _ = kernel.load(&ram(), options);
            }
        }
    }
}

/// An ELF with a table that is mapped whatever the method, and where: two huge pages of it are whole.
fn with_a_rare_table() -> (Spec, Range<u64>) {
    const MIB: u64 = 1 << 20;
    let spec = Spec {
        segments: vec![(BASE, noise(5 * MIB as usize, 1), 6 * MIB)],
        section: Some((".orc_unwind", BASE + MIB, 3 * MIB + 0x123)),
        ..Spec::default()
    };
    (spec, BASE + 2 * MIB..BASE + 4 * MIB)
}

#[test]
fn what_is_mapped_is_told_to_the_page() {
    let (spec, table) = with_a_rare_table();
    let kernel = Fixture::new(&spec.build()).open().unwrap();
    assert_eq!(kernel.mapped(LoadMethod::Read), std::slice::from_ref(&table));
    let all = kernel.mapped(LoadMethod::Map);
    assert_eq!(all.iter().map(|each| each.end - each.start).sum::<u64>(), 5 << 20);
    for method in [LoadMethod::Read, LoadMethod::Map] {
        assert_loaded(&load(&kernel, method).0, &spec.memory(), BASE);
    }
}

#[test]
fn what_a_guest_wrote_over_its_kernel_is_gone_when_it_boots_again() {
    let (spec, table) = with_a_rare_table();
    let kernel = Fixture::new(&spec.build()).open().unwrap();
    let size = memory::Spec { size: Size(32 << 20), shared: false, hugepages: false };
    for method in [LoadMethod::Read, LoadMethod::Map] {
        let memory = memory::allocate(size).unwrap();
        let options = LoadOptions { method, ..LoadOptions::default() };
        for _ in 0..2 {
            kernel.load(&memory, options).unwrap();
            assert_loaded(&memory, &spec.memory(), BASE);
            for at in [BASE, table.start, table.end - 8, table.end] {
                memory.write_obj(!0u64, GuestAddress(at)).unwrap();
            }
            memory::discard(&memory, size).unwrap();
        }
    }
}
