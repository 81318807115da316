//! Disks with an overlay, and disks whose size changes.

use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::block::ResizeError;

const READ_ONLY: DiskOptions =
    DiskOptions { read_only: true, cache: Cache::Writeback, format: None, backing: false };

fn overlaid(path: &Path, choice: EngineChoice, dir: Option<&Path>) -> Rig {
    let disk = Disk::open(path, READ_ONLY).unwrap().with_overlay(dir).unwrap();
    assert!(!disk.read_only());
    let engine = choice.open(&disk, 64).unwrap();
    Rig::of(disk, engine)
}

#[test]
fn what_is_written_is_read_back_and_the_image_stays_as_it_was() {
    for choice in engines() {
        let file = image(64 << 10);
        let before = fs::read(file.path()).unwrap();
        let mut rig = overlaid(file.path(), choice, None);
        // Another guest has the same image at the same time, and sees nothing of it.
        let mut other = overlaid(file.path(), choice, None);
        rig.write(1024, &[0xaa; 1536]).unwrap();
        rig.run(Operation::WriteZeroes { unmap: true }, 8192, 1024, &mut []).unwrap();
        rig.run(Operation::WriteZeroes { unmap: false }, 512 * 20, 512, &mut []).unwrap();
        rig.run(Operation::Discard, 512 * 30, 512 * 4, &mut []).unwrap();
        rig.run(Operation::Flush, 0, 0, &mut []).unwrap();
        let mut found = vec![0x55; 64 << 10];
        let (odd, rest) = found.split_at_mut(700);
        rig.run(Operation::Read, 0, 0, &mut [odd, rest]).unwrap();
        let mut wanted = before.clone();
        wanted[1024..2560].fill(0xaa);
        wanted[8192..9216].fill(0);
        wanted[512 * 20..512 * 21].fill(0);
        wanted[512 * 30..512 * 34].fill(0);
        assert!(found == wanted, "{choice:?}");
        other.read(0, &mut found).unwrap();
        assert!(found == before, "{choice:?}");
        assert_eq!(fs::read(file.path()).unwrap(), before);
        // And nobody writes to the image while they have it.
        let writer = Disk::open(file.path(), DiskOptions::default());
        assert!(matches!(writer, Err(DiskError::InUse { .. })));
    }
}

#[test]
fn a_hundred_overlays_of_one_image_know_nothing_of_each_other() {
    let file = image(64 << 10);
    let before = fs::read(file.path()).unwrap();
    let mut rigs: Vec<_> =
        (0..100).map(|_| overlaid(file.path(), EngineChoice::Sync, None)).collect();
    for (rig, n) in rigs.iter_mut().zip(0u8..) {
        // A place that all write to, and one of its own.
        rig.write(0, &[n; 4096]).unwrap();
        rig.write(8192 + u64::from(n) * 512, &[0xff - n; 512]).unwrap();
    }
    let mut found = vec![0; 64 << 10];
    for (rig, n) in rigs.iter_mut().zip(0u8..) {
        rig.read(0, &mut found).unwrap();
        let mut wanted = before.clone();
        wanted[..4096].fill(n);
        wanted[8192 + usize::from(n) * 512..][..512].fill(0xff - n);
        assert!(found == wanted, "overlay {n}");
    }
    assert_eq!(fs::read(file.path()).unwrap(), before);
    // What one had is not another's that comes later.
    rigs.truncate(50);
    let mut late = overlaid(file.path(), EngineChoice::Sync, None);
    late.read(0, &mut found).unwrap();
    assert!(found == before);
}

#[test]
fn the_missing_end_of_the_last_sector_of_an_overlay_reads_as_zero_and_is_never_written() {
    for choice in engines() {
        let file = image(1000);
        let mut rig = overlaid(file.path(), choice, None);
        let mut data = [9; 1024];
        rig.read(0, &mut data).unwrap();
        assert_eq!((data[999], &data[1000..]), (2, &[0; 24][..]));
        assert_eq!(errno(rig.write(512, &[5; 512])), libc::ENOSPC);
        rig.run(Operation::WriteZeroes { unmap: false }, 512, 512, &mut []).unwrap();
        rig.read(0, &mut data).unwrap();
        assert_eq!((data[511], &data[512..]), (1, &[0; 512][..]));
    }
}

#[test]
fn an_overlay_without_space_fails_the_write_and_reads_go_on() {
    for choice in engines() {
        let Some(small) = SmallTmpfs::mount() else { return };
        let file = image(4 << 20);
        let mut rig = overlaid(file.path(), choice, Some(small.0.path()));
        assert_eq!(errno(rig.write(0, &vec![0xee; 2 << 20])), libc::ENOSPC);
        let mut data = [9; 512];
        rig.read(3 << 20, &mut data).unwrap();
        assert_eq!(data, [(3 << 20 >> 9) as u8 + 1; 512]);
        // The space comes back.
        rig.run(Operation::Discard, 0, 4 << 20, &mut []).unwrap();
        rig.write(0, &vec![0xee; 512 << 10]).unwrap();
    }
}

#[test]
fn an_image_that_is_read_past_the_page_cache_has_an_overlay_all_the_same() {
    for choice in engines() {
        let file = image((64 << 10) + 1000);
        let options = DiskOptions { cache: Cache::Direct, ..READ_ONLY };
        let disk = match Disk::open(file.path(), options) {
            Ok(disk) => disk.with_overlay(None).unwrap(),
            Err(e) => return skipped(e),
        };
        let engine = choice.open(&disk, 64).unwrap();
        let mut rig = Rig::of(disk, engine);
        rig.write(8192, &[0xaa; 4096]).unwrap();
        let mut found = vec![9; (64 << 10) + 1024 + 1];
        rig.read(0, &mut found[1..]).unwrap();
        let mut wanted = fs::read(file.path()).unwrap();
        wanted[8192..12288].fill(0xaa);
        wanted.resize((64 << 10) + 1024, 0);
        assert!(found[1..] == wanted, "{choice:?}");
    }
}

#[test]
fn an_overlay_is_not_put_into_memory_unless_that_is_asked_for() {
    let Some(small) = SmallTmpfs::mount() else { return };
    let file = image(4096);
    let disk = Disk::open(file.path(), READ_ONLY).unwrap();
    let there = disk.with_overlay(Some(small.0.path())).unwrap();
    let magic = crate::block::temporary::file_system(there.part(crate::block::types::Part::Layer));
    assert_eq!(magic, Some(0x0102_1994));
    let disk = Disk::open(file.path(), READ_ONLY).unwrap().with_overlay(None).unwrap();
    let magic = crate::block::temporary::file_system(disk.part(crate::block::types::Part::Layer));
    assert_ne!(magic, Some(0x0102_1994));
}

#[test]
fn a_file_becomes_longer_and_shorter_and_a_reader_looks_at_it_again() {
    for choice in engines() {
        let file = image(8192);
        let mut rig = Rig::writable(file.path(), choice);
        assert_eq!(rig.disk.resize(Some(1 << 20)).unwrap(), 1 << 20);
        rig.write((1 << 20) - 512, &[7; 512]).unwrap();
        assert_eq!(file.as_file().metadata().unwrap().len(), 1 << 20);
        assert_eq!(rig.disk.resize(Some(4096)).unwrap(), 4096);
        assert_eq!(errno(rig.write(4096, &[7; 512])), libc::ENOSPC);
        assert_eq!(file.as_file().metadata().unwrap().len(), 4096);
        assert!(matches!(rig.disk.resize(Some(4097)), Err(ResizeError::Sectors(4097))));
        file.as_file().set_len(12288).unwrap();
        assert_eq!(rig.disk.resize(None).unwrap(), 12288);
        drop(rig);

        let mut rig = Rig::new(file.path(), choice, READ_ONLY);
        assert!(matches!(rig.disk.resize(Some(4096)), Err(ResizeError::ReadOnly)));
        file.as_file().set_len(16384).unwrap();
        assert_eq!(rig.disk.resize(None).unwrap(), 16384);
        let mut data = [9; 4096];
        rig.read(12288, &mut data).unwrap();
        assert_eq!(data, [0; 4096]);
    }
}

#[test]
fn an_overlay_can_be_larger_than_its_image_and_what_was_cut_off_does_not_come_back() {
    for choice in engines() {
        let file = image(8192);
        let mut rig = overlaid(file.path(), choice, None);
        assert_eq!(rig.disk.resize(Some(1 << 20)).unwrap(), 1 << 20);
        let mut data = vec![9; 1 << 20];
        rig.read(0, &mut data).unwrap();
        assert!(data[..8192].iter().zip(0..).all(|(b, n)| *b == (n / 512 + 1) as u8));
        assert!(data[8192..].iter().all(|b| *b == 0));
        rig.write(512, &[0xaa; 512]).unwrap();
        rig.write(8192, &vec![0xbb; 8192]).unwrap();
        rig.disk.resize(Some(1024)).unwrap();
        rig.disk.resize(Some(1 << 20)).unwrap();
        rig.read(0, &mut data).unwrap();
        assert_eq!((data[0], data[512], data[1023]), (1, 0xaa, 0xaa));
        assert!(data[1024..].iter().all(|b| *b == 0), "{choice:?}");
        assert!(matches!(rig.disk.resize(Some(1 << 60)), Err(ResizeError::Overlay)));
        assert_eq!(rig.disk.size(), 1 << 20);
        assert_eq!(rig.disk.resize(None).unwrap(), 8192);
        assert_eq!(file.as_file().metadata().unwrap().len(), 8192);
    }
}

#[test]
fn a_job_that_was_held_while_its_disk_shrank_ends_with_an_error_and_makes_no_file_longer() {
    for choice in engines() {
        let file = image(1 << 20);
        let mut rig = Rig::writable(file.path(), choice);
        rig.engine.hold(true);
        let mut data = [7; 4096];
        let mut held = Vec::new();
        for (operation, offset) in
            [(Operation::Write, 8192), (Operation::Read, 8192), (Operation::Write, 0)]
        {
            rig.submit(operation, offset, 0, &mut [&mut data]);
            held.append(&mut rig.reap());
        }
        rig.submit(Operation::WriteZeroes { unmap: true }, 2048, 4096, &mut []);
        held.append(&mut rig.reap());
        assert!(held.iter().all(|job| !job.is_finished()));
        rig.disk.resize(Some(4096)).unwrap();
        rig.engine.hold(false);
        let mut went_well = Vec::new();
        for mut job in held {
            job.renew(&rig.disk);
            // SAFETY: `data` is still there.
            unsafe { rig.engine.submit(job) };
            rig.engine.kick().unwrap();
            let job = rig.reap().pop().unwrap();
            went_well.push(job.result().is_ok());
        }
        assert_eq!(went_well, [false, false, true, false], "{choice:?}");
        assert_eq!(file.as_file().metadata().unwrap().len(), 4096);
    }
}

/// Something done to a disk of 64 sectors.
fn deed() -> impl Strategy<Value = (u8, u64, u64, u8)> {
    (0u8..6, 0u64..64, 1u64..20, any::<u8>())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, failure_persistence: None, ..Default::default() })]

    #[test]
    fn an_overlay_is_the_disk_that_its_guest_makes_of_it(deeds in prop::collection::vec(deed(), 1..40)) {
        for choice in engines() {
            let file = image(64 * 512);
            let before = fs::read(file.path()).unwrap();
            let mut model = before.clone();
            let mut rig = overlaid(file.path(), choice, None);
            for &(kind, sector, count, byte) in &deeds {
                let from = (sector * 512) as usize;
                let to = (from + count as usize * 512).min(64 * 512);
                let (offset, len) = (from as u64, (to - from) as u64);
                match kind {
                    0 | 1 => {
                        rig.write(offset, &vec![byte; to - from]).unwrap();
                        model[from..to].fill(byte);
                    }
                    2 => {
                        let unmap = byte & 1 != 0;
                        rig.run(Operation::WriteZeroes { unmap }, offset, len, &mut []).unwrap();
                        model[from..to].fill(0);
                    }
                    3 => {
                        rig.run(Operation::Discard, offset, len, &mut []).unwrap();
                        // Whatever is there now stays.
                        rig.read(offset, &mut model[from..to]).unwrap();
                    }
                    _ => {
                        let mut found = vec![!byte; to - from];
                        let cut = found.len() / 3;
                        let (one, two) = found.split_at_mut(cut);
                        rig.run(Operation::Read, offset, 0, &mut [one, two]).unwrap();
                        prop_assert_eq!(&found, &model[from..to]);
                    }
                }
            }
            let mut found = vec![0; 64 * 512];
            rig.read(0, &mut found).unwrap();
            prop_assert_eq!(&found, &model);
            prop_assert_eq!(fs::read(file.path()).unwrap(), before);
        }
    }
}

#[test]
fn writers_of_neighbouring_sectors_do_not_lose_each_others_bits() {
    let file = image(4096);
    let disk = Disk::open(file.path(), READ_ONLY).unwrap().with_overlay(None).unwrap();
    let mut disk = disk;
    disk.resize(Some(8 << 20)).unwrap();
    let overlay = disk.overlay().unwrap().clone();
    std::thread::scope(|scope| {
        for thread in 0..4u64 {
            let overlay = Arc::clone(&overlay);
            scope.spawn(move || {
                for sector in (thread..16384).step_by(4) {
                    overlay.mark(sector * 512, sector * 512 + 512, 8 << 20);
                }
            });
        }
    });
    assert_eq!(overlay.run(0, 8 << 20), (true, 8 << 20));
}
