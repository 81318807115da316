//! qcow2 images, as `qemu-img` makes and checks them, and as nobody should.

use std::path::PathBuf;
use std::process::Command;

use proptest::prelude::*;
use tempfile::TempDir;

use super::*;
use crate::skipped::skipped;

const IMAGE: DiskOptions = DiskOptions {
    read_only: false,
    cache: Cache::Writeback,
    format: Some(DiskFormat::Qcow2),
    backing: false,
};
const SIZE: usize = 4 << 20;

/// Runs `qemu-img`; false, said on standard error, where there is none.
fn qemu_img(args: &[&str]) -> bool {
    match Command::new("qemu-img").args(args).output() {
        Ok(done) => {
            assert!(done.status.success(), "qemu-img {args:?}: {done:?}");
            true
        }
        Err(e) => {
            skipped(format!("no qemu-img: {e}"));
            false
        }
    }
}

/// A raw file, each sector of its first half full of its number, and an image made of it.
struct Made {
    dir: TempDir,
    raw: Vec<u8>,
    image: PathBuf,
}

impl Made {
    fn new(options: &[&str]) -> Option<Made> {
        let dir = tempfile::tempdir().unwrap();
        let mut raw: Vec<u8> = (0..SIZE).map(|at| (at / 512 % 251 + 1) as u8).collect();
        raw[SIZE / 2..].fill(0);
        let (from, image) = (dir.path().join("raw"), dir.path().join("image.qcow2"));
        fs::write(&from, &raw).unwrap();
        let mut args = vec!["convert", "-f", "raw", "-O", "qcow2"];
        args.extend(options);
        args.extend([from.to_str().unwrap(), image.to_str().unwrap()]);
        qemu_img(&args).then_some(Made { dir, raw, image })
    }

    fn open(&self, options: DiskOptions) -> Rig {
        Rig::new(&self.image, EngineChoice::Auto, options)
    }

    /// What is in the image now, as QEMU reads it, once it has found no fault with it.
    fn contents(&self) -> Vec<u8> {
        let (image, out) = (self.image.to_str().unwrap(), self.dir.path().join("out"));
        qemu_img(&["check", "-f", "qcow2", image]);
        qemu_img(&["convert", "-f", "qcow2", "-O", "raw", image, out.to_str().unwrap()]);
        fs::read(out).unwrap()
    }

    /// Sets bytes of the image's file.
    fn patch(&self, at: u64, bytes: &[u8]) {
        let file = fs::OpenOptions::new().write(true).open(&self.image).unwrap();
        file.write_all_at(bytes, at).unwrap();
    }

    fn refusal(&self, options: DiskOptions) -> String {
        Disk::open(&self.image, options).unwrap_err().to_string()
    }
}

#[test]
fn an_image_is_read_and_written_as_a_raw_disk_is_and_qemu_finds_no_fault_with_it() {
    let kinds: [&[&str]; 5] = [
        &[],
        &["-o", "cluster_size=512,refcount_bits=64"],
        &["-o", "cluster_size=2M"],
        &["-o", "compat=0.10"],
        &["-c", "-o", "cluster_size=4k"],
    ];
    for kind in kinds {
        let Some(made) = Made::new(kind) else { return };
        let mut rig = made.open(IMAGE);
        assert_eq!((rig.disk.size(), rig.disk.is_formatted()), (SIZE as u64, true));
        let mut model = made.raw.clone();
        let mut found = vec![0x55; SIZE];
        rig.read(0, &mut found).unwrap();
        assert!(found == model, "{kind:?}");
        for (at, len, byte) in [(512, 1536, 1), (SIZE - 512, 512, 2), (SIZE / 2 - 4096, 300_032, 3)]
        {
            rig.write(at as u64, &vec![byte; len]).unwrap();
            model[at..at + len].fill(byte);
        }
        for (unmap, at, len) in [(false, 1024, 70_144), (true, 1 << 20, 300_032)] {
            rig.run(Operation::WriteZeroes { unmap }, at as u64, len as u64, &mut []).unwrap();
            model[at..at + len].fill(0);
        }
        rig.run(Operation::Flush, 0, 0, &mut []).unwrap();
        // What was flushed is in the file, whatever becomes of husk.
        assert!(made.contents_of_a_copy() == model, "{kind:?}");
        rig.run(Operation::Discard, 1 << 20, 1 << 19, &mut []).unwrap();
        rig.read(0, &mut found).unwrap();
        model[1 << 20..(1 << 20) + (1 << 19)]
            .copy_from_slice(&found[1 << 20..(1 << 20) + (1 << 19)]);
        assert!(found == model, "{kind:?}");
        assert_eq!(errno(rig.write(SIZE as u64, &[1; 512])), libc::ENOSPC);
        drop(rig);
        assert!(made.contents() == model, "{kind:?}");
    }
}

impl Made {
    fn contents_of_a_copy(&self) -> Vec<u8> {
        let copy = tempfile::tempdir().unwrap();
        let image = copy.path().join("image.qcow2");
        fs::copy(&self.image, &image).unwrap();
        Made { dir: copy, raw: Vec::new(), image }.contents()
    }
}

#[test]
fn what_is_written_leaves_a_snapshot_in_the_image_as_it_was() {
    let Some(made) = Made::new(&["-o", "cluster_size=4k"]) else { return };
    let image = made.image.to_str().unwrap();
    qemu_img(&["snapshot", "-c", "before", image]);
    let mut rig = made.open(IMAGE);
    rig.write(4096, &vec![0xee; 100 << 10]).unwrap();
    rig.run(Operation::WriteZeroes { unmap: true }, 1 << 20, 65536, &mut []).unwrap();
    drop(rig);
    let mut model = made.raw.clone();
    model[4096..4096 + (100 << 10)].fill(0xee);
    model[1 << 20..(1 << 20) + 65536].fill(0);
    assert!(made.contents() == model);
    qemu_img(&["snapshot", "-a", "before", image]);
    assert!(made.contents() == made.raw);
}

#[test]
fn what_a_file_is_is_said_by_its_owner_and_only_guessed_where_nobody_writes() {
    let Some(made) = Made::new(&[]) else { return };
    let open = |format, read_only| {
        Disk::open(&made.image, DiskOptions { format, read_only, ..DiskOptions::default() })
    };
    let told = open(None, false).unwrap_err().to_string();
    assert!(told.contains("format=qcow2") && told.contains("format=raw"), "{told}");
    assert!(open(None, true).unwrap().is_formatted());
    let raw = open(Some(DiskFormat::Raw), false).unwrap();
    assert_eq!(raw.size(), made.image.metadata().unwrap().len());
    assert!(!raw.is_formatted());
    drop(raw);
    let uring = EngineChoice::IoUring.open(&open(None, true).unwrap(), 4);
    assert!(uring.err().unwrap().to_string().contains("engine=threads"));
    let plain = image(4096);
    let told = Disk::open(plain.path(), IMAGE).unwrap_err().to_string();
    assert!(told.contains("no qcow2 image; leave format=qcow2 out"), "{told}");
    // Shorter than a magic number.
    let short = image(3);
    assert_eq!(Disk::open(short.path(), DiskOptions::default()).unwrap().size(), 3);
}

#[test]
fn an_image_under_an_overlay_is_only_read() {
    let Some(made) = Made::new(&["-c"]) else { return };
    let before = fs::read(&made.image).unwrap();
    let options = DiskOptions { read_only: true, ..DiskOptions::default() };
    let disk = Disk::open(&made.image, options).unwrap().with_overlay(None).unwrap();
    let engine = EngineChoice::Auto.open(&disk, 64).unwrap();
    let mut rig = Rig::of(disk, engine);
    rig.write(4096, &[0xee; 8192]).unwrap();
    rig.disk.resize(Some(SIZE as u64 + 8192)).unwrap();
    let mut found = vec![1; SIZE + 8192];
    rig.read(0, &mut found).unwrap();
    let mut wanted = made.raw.clone();
    wanted[4096..12288].fill(0xee);
    wanted.resize(SIZE + 8192, 0);
    assert!(found == wanted);
    assert!(fs::read(&made.image).unwrap() == before);
}

#[test]
fn an_image_becomes_larger_and_smaller() {
    let Some(made) = Made::new(&["-o", "cluster_size=4k"]) else { return };
    let mut rig = made.open(IMAGE);
    assert_eq!(rig.disk.resize(Some(64 << 20)).unwrap(), 64 << 20);
    rig.write((64 << 20) - 512, &[9; 512]).unwrap();
    assert_eq!(rig.disk.resize(None).unwrap(), 64 << 20);
    drop(rig);
    let found = made.contents();
    assert_eq!((found.len(), found[(64 << 20) - 1]), (64 << 20, 9));
    assert!(found[..SIZE] == made.raw && found[SIZE..(64 << 20) - 512].iter().all(|b| *b == 0));
    let mut rig = made.open(IMAGE);
    assert_eq!(rig.disk.resize(Some(1 << 20)).unwrap(), 1 << 20);
    assert_eq!(errno(rig.write(1 << 20, &[1; 512])), libc::ENOSPC);
    drop(rig);
    assert!(made.contents() == made.raw[..1 << 20]);
}

#[test]
fn no_file_that_an_image_names_is_opened_unless_that_is_asked_for() {
    let Some(made) = Made::new(&[]) else { return };
    let top = made.dir.path().join("top.qcow2");
    let make = |args: &[&str]| {
        let mut all = vec!["create", "-q", "-f", "qcow2"];
        all.extend(args);
        assert!(qemu_img(&all));
    };
    let name = top.to_str().unwrap();
    make(&["-b", "image.qcow2", "-F", "qcow2", name]);
    let told = Disk::open(&top, IMAGE).unwrap_err().to_string();
    assert!(told.contains("image.qcow2") && told.contains("format=qcow2,backing=on"), "{told}");
    let backing = DiskOptions { backing: true, ..IMAGE };
    // Not for an image that was only recognised.
    let guessed = DiskOptions { read_only: true, format: None, ..backing };
    assert!(Disk::open(&top, guessed).is_err());
    let mut rig = Rig::new(&top, EngineChoice::Auto, backing);
    rig.write(512, &[7; 512]).unwrap();
    let mut found = vec![0; SIZE];
    rig.read(0, &mut found).unwrap();
    assert!(found[1024..] == made.raw[1024..] && found[512..1024] == [7; 512]);
    // What it stands on has a lock, too.
    assert!(matches!(Disk::open(&made.image, IMAGE), Err(DiskError::InUse { .. })));
    drop(rig);
    assert!(made.contents() == made.raw);
    // One that stands on itself, and one whose base is anybody's guess.
    assert!(qemu_img(&["rebase", "-u", "-f", "qcow2", "-b", "top.qcow2", "-F", "qcow2", name]));
    let read_only = DiskOptions { read_only: true, ..backing };
    let told = Disk::open(&top, read_only).unwrap_err().to_string();
    assert!(told.contains("more than 16 images"), "{told}");
    assert!(qemu_img(&["rebase", "-u", "-f", "qcow2", "-b", "/etc/passwd", "-F", "vmdk", name]));
    let told = Disk::open(&top, backing).unwrap_err().to_string();
    assert!(told.contains("vmdk") && told.contains("qemu-img rebase"), "{told}");
    assert!(qemu_img(&["rebase", "-u", "-f", "qcow2", "-b", "/dev/zero", "-F", "raw", name]));
    let told = Disk::open(&top, backing).unwrap_err().to_string();
    assert!(told.contains("/dev/zero is a special file"), "{told}");
}

#[test]
fn what_husk_does_not_do_with_an_image_is_refused_in_words() {
    for (at, bytes, word) in [
        (4, &[0, 0, 0, 4][..], "version 4"),
        (20, &[0, 0, 0, 22], "damaged"),
        (24, &[0x7f; 8], "too large"),
        (32, &[0, 0, 0, 2], "encrypted"),
        (36, &[0, 0, 0, 0], "too short"),
        (40, &[0; 8], "outside"),
        (16, &[0xff; 4], ""),
        (79, &[1], "was not closed"),
        (79, &[2], "damaged"),
        (79, &[4], "another file"),
        (79, &[8], "otherwise than by zlib"),
        (79, &[16], "subclusters"),
        (72, &[0x80], "does not know"),
        (100, &[0, 0, 0, 103], "damaged"),
        (100, &[0xff; 4], "damaged"),
    ] {
        let Some(made) = Made::new(&[]) else { return };
        made.patch(at, bytes);
        for read_only in [false, true] {
            match Disk::open(&made.image, DiskOptions { read_only, ..IMAGE }) {
                Ok(_) => assert!(word.is_empty(), "{at} {bytes:?}: it was opened"),
                Err(e) => {
                    let told = e.to_string();
                    let named = told.contains(made.image.to_str().unwrap());
                    assert!(!word.is_empty() && named && told.contains(word), "{at}: {told}");
                }
            }
        }
    }
}

#[test]
fn an_image_whose_reference_counts_are_not_where_they_should_be_is_read_but_not_written() {
    for (at, bytes) in [
        // The table lies behind the end of the file, on the header, nowhere, is far too long.
        (48, 1u64.rotate_left(30).to_be_bytes().to_vec()),
        (48, vec![0; 8]),
        (48, (i64::MAX as u64 & !0xffff).to_be_bytes().to_vec()),
        (56, vec![0; 4]),
        (56, vec![0xff; 4]),
        // No blocks, and blocks on the table, on the header, outside of the file, not aligned.
        (65536, vec![0; 8]),
        (65536, 65536u64.to_be_bytes().to_vec()),
        (65536, (1u64 << 40).to_be_bytes().to_vec()),
        (65536, (131_072u64 + 512).to_be_bytes().to_vec()),
        // One behind a gap, and one twice.
        (65536 + 16, 131_072u64.to_be_bytes().to_vec()),
        (65536 + 8, 131_072u64.to_be_bytes().to_vec()),
    ] {
        let Some(made) = Made::new(&[]) else { return };
        made.patch(at, &bytes);
        let told = made.refusal(IMAGE);
        assert!(told.contains("qemu-img check -r all IMAGE"), "{at} {bytes:x?}: {told}");
        let mut rig = made.open(DiskOptions { read_only: true, ..IMAGE });
        let mut found = vec![0; SIZE];
        rig.read(0, &mut found).unwrap();
        assert!(found == made.raw);
    }
}

/// A damage: where (in parts of what is damaged), whether it is in the tables or anywhere, and how.
#[derive(Debug, Clone)]
struct Damage {
    place: u32,
    kind: u8,
    bytes: Vec<u8>,
}

fn damage() -> impl Strategy<Value = Damage> {
    let bytes = prop_oneof![
        prop::collection::vec(any::<u8>(), 1..9),
        Just(vec![0; 8]),
        Just(vec![0xff; 8]),
        // An offset of a cluster, near or far, as tables have them.
        (0u64..64, 0u32..48, any::<bool>()).prop_map(|(cluster, shift, copied)| {
            let flag = if copied { 1 << 63 } else { 0 };
            ((cluster << 9 << shift) & !(0xff << 56) | flag).to_be_bytes().to_vec()
        }),
    ];
    (any::<u32>(), 0u8..8, bytes).prop_map(|(place, kind, bytes)| Damage { place, kind, bytes })
}

impl Damage {
    fn apply(&self, image: &mut [u8], cluster: usize) {
        // Header, then the first clusters, where QEMU has its tables, in words; or anywhere.
        let (len, step) = match self.kind {
            0 => (112, 1),
            1..=4 => (6 * cluster, 8),
            5 | 6 => (image.len() / 2, 8),
            _ => (image.len(), 1),
        };
        let at = self.place as usize % (len / step).max(1) * step;
        for (to, from) in image.iter_mut().skip(at).zip(&self.bytes) {
            *to = *from;
        }
    }
}

/// Images to damage: small clusters, ordinary ones, compressed ones; with their cluster size.
fn specimens() -> Vec<(Vec<u8>, usize)> {
    let kinds: [(&[&str], usize); 3] = [
        (&["-o", "cluster_size=512"], 512),
        (&["-o", "cluster_size=64k,preallocation=metadata"], 65536),
        (&["-c", "-o", "cluster_size=4k"], 4096),
    ];
    let made = kinds.iter().filter_map(|(options, cluster)| {
        Some((fs::read(Made::new(options)?.image).unwrap(), *cluster))
    });
    made.collect()
}

proptest! {
    #![proptest_config(ProptestConfig {
        // `PROPTEST_CASES` says how many others.
        cases: std::env::var("PROPTEST_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(48),
        failure_persistence: None,
        max_shrink_iters: 64,
        ..Default::default()
    })]

    #[test]
    fn a_damaged_image_is_an_error_and_nothing_worse(
        which in 0usize..3,
        damages in prop::collection::vec(damage(), 1..5),
        read_only in any::<bool>(),
        deeds in prop::collection::vec((0u8..8, 0u64..8192, 1u64..400, any::<u8>()), 1..16),
    ) {
        static SPECIMENS: std::sync::OnceLock<Vec<(Vec<u8>, usize)>> = std::sync::OnceLock::new();
        let Some((image, cluster)) = SPECIMENS.get_or_init(specimens).get(which) else {
            return Ok(());
        };
        let mut image = image.clone();
        damages.iter().for_each(|damage| damage.apply(&mut image, *cluster));
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(&image).unwrap();
        let options = DiskOptions { read_only, backing: true, ..IMAGE };
        let Ok(disk) = Disk::open(file.path(), options) else { return Ok(()) };
        let engine = EngineChoice::Auto.open(&disk, 64).unwrap();
        let mut rig = Rig::of(disk, engine);
        for (kind, sector, count, byte) in deeds {
            // A damaged size may be anything.
            let offset = sector.min(rig.disk.sectors()) * 512;
            let len = (count * 512).min(rig.disk.sectors() * 512 - offset);
            let mut data = vec![byte; len as usize];
            // Whatever comes of it, it comes.
            let _ = match kind {
                0..=2 => rig.run(Operation::Write, offset, 0, &mut [&mut data]),
                3 | 4 => rig.run(Operation::Read, offset, 0, &mut [&mut data]),
                5 => rig.run(Operation::Discard, offset, len, &mut []),
                6 => rig.run(Operation::WriteZeroes { unmap: byte & 1 != 0 }, offset, len, &mut []),
                _ => rig.run(Operation::Flush, 0, 0, &mut []),
            };
        }
        prop_assert!(!rig.disk.has_panicked(), "the format's code panicked");
    }
}
