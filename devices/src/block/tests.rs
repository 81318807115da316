//! What all engines do with files of every kind, and with hosts that fail or hang.

use std::fs;
use std::io::{self, Write};
use std::num::NonZeroUsize;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

mod ends;
mod overlay;
#[cfg(feature = "qcow2")]
mod qcow2;

use super::*;
use crate::segment::Segment;
use crate::skipped::skipped;
use hanging::HangingFile;

/// All engines.
fn engines() -> Vec<EngineChoice> {
    [patient(), vec![EngineChoice::Sync]].concat()
}

/// Those that do not wait for a host that hangs; io_uring only where there is one.
fn patient() -> Vec<EngineChoice> {
    let file = tempfile::NamedTempFile::new().unwrap();
    let disk = Disk::open(file.path(), DiskOptions::default()).unwrap();
    let mut engines = vec![EngineChoice::Threads];
    match EngineChoice::IoUring.open(&disk, 4) {
        Ok(_) => engines.push(EngineChoice::IoUring),
        Err(e) => skipped(e),
    }
    engines
}

/// `len` bytes, each sector full of its number, from 1.
fn image(len: usize) -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    let bytes: Vec<u8> = (0..len).map(|i| (i / 512 + 1) as u8).collect();
    file.write_all(&bytes).unwrap();
    file
}

/// Opened without a look at its first bytes, for which a host that hangs would be waited for.
const UNREAD: DiskOptions = DiskOptions {
    read_only: false,
    cache: Cache::Writeback,
    format: Some(DiskFormat::Raw),
    backing: false,
};

struct Rig {
    disk: Disk,
    engine: Box<dyn Engine>,
    next: usize,
    /// Writes are made stable before they are answered.
    durable: bool,
}

impl Rig {
    fn new(path: &Path, choice: EngineChoice, options: DiskOptions) -> Rig {
        let disk = Disk::open(path, options).unwrap();
        let engine = choice.open(&disk, 64).unwrap();
        Rig::of(disk, engine)
    }

    fn of(disk: Disk, engine: Box<dyn Engine>) -> Rig {
        Rig { disk, engine, next: 0, durable: false }
    }

    fn writable(path: &Path, choice: EngineChoice) -> Rig {
        Rig::new(path, choice, DiskOptions::default())
    }

    /// Submits what works on `data`; the caller keeps that until the job is back.
    fn submit(&mut self, operation: Operation, offset: u64, len: u64, data: &mut [&mut [u8]]) {
        self.next += 1;
        let mut job = Box::new(Job::new(self.next));
        for piece in data {
            job.data().push(Segment::new(piece.as_mut_ptr(), piece.len()));
        }
        job.begin(operation, &self.disk, offset, len, self.durable);
        // SAFETY: the callers keep `data` until the job is back.
        unsafe { self.engine.submit(job) };
        self.engine.kick().unwrap();
    }

    /// Waits until something comes back, for at most ten seconds.
    fn reap(&mut self) -> Vec<Box<Job>> {
        let mut done = Vec::new();
        let begin = Instant::now();
        while done.is_empty() {
            assert!(begin.elapsed() < Duration::from_secs(10), "nothing came back");
            self.engine.reap(&mut done);
            self.engine.kick().unwrap();
            if done.is_empty() {
                self.wait(1000);
            }
        }
        done
    }

    /// Waits for the engine's event; whether it came.
    fn wait(&self, milliseconds: i32) -> bool {
        let fd = self.engine.event().as_raw_fd();
        let mut fd = libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
        // SAFETY: one pollfd that lives through the call.
        unsafe { libc::poll(&mut fd, 1, milliseconds) == 1 }
    }

    fn run(
        &mut self,
        operation: Operation,
        offset: u64,
        len: u64,
        data: &mut [&mut [u8]],
    ) -> io::Result<()> {
        self.submit(operation, offset, len, data);
        let mut done = self.reap();
        assert_eq!((done.len(), self.engine.in_flight()), (1, 0));
        let job = done.pop().unwrap();
        assert!(job.is_finished());
        match job.result() {
            Ok(()) => Ok(()),
            Err(e) => Err(match e.raw_os_error() {
                Some(number) => io::Error::from_raw_os_error(number),
                None => e.kind().into(),
            }),
        }
    }

    fn read(&mut self, offset: u64, data: &mut [u8]) -> io::Result<()> {
        self.run(Operation::Read, offset, 0, &mut [data])
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.run(Operation::Write, offset, 0, &mut [&mut data.to_vec()])
    }
}

fn errno(result: io::Result<()>) -> i32 {
    result.unwrap_err().raw_os_error().unwrap()
}

#[test]
fn scattered_bytes_are_read_and_written_in_order() {
    for choice in engines() {
        let file = image(8192);
        let mut rig = Rig::writable(file.path(), choice);
        let (mut a, mut b) = ([0; 100], [0; 924]);
        rig.run(Operation::Read, 1024, 0, &mut [&mut a, &mut b]).unwrap();
        assert_eq!((a, &b[..412], &b[412..]), ([3; 100], &[3; 412][..], &[4; 512][..]));
        (a, b) = ([7; 100], [8; 924]);
        rig.run(Operation::Write, 512, 0, &mut [&mut a, &mut b]).unwrap();
        rig.run(Operation::Flush, 0, 0, &mut []).unwrap();
        let bytes = fs::read(file.path()).unwrap();
        assert_eq!((bytes.len(), bytes[511], bytes[1536]), (8192, 1, 4));
        assert_eq!((&bytes[512..612], &bytes[612..1536]), (&[7; 100][..], &[8; 924][..]));
    }
}

#[test]
fn a_flush_and_a_write_without_one_wait_until_the_host_has_synced() {
    for (choice, durable) in engines().into_iter().flat_map(|e| [(e, false), (e, true)]) {
        let Some(hanging) = HangingFile::mount() else { return };
        let mut rig = Rig { durable, ..Rig::new(hanging.path(), choice, UNREAD) };
        let synced = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                hanging.wait_for_a_reader();
                synced.store(true, Ordering::Release);
                hanging.answer();
            });
            if durable {
                rig.write(0, &[7; 512]).unwrap();
            } else {
                rig.run(Operation::Flush, 0, 0, &mut []).unwrap();
            }
            assert!(synced.load(Ordering::Acquire), "{choice:?}, durable: {durable}");
        });
    }
}

#[test]
fn many_jobs_are_in_flight_at_once_and_each_comes_back_once() {
    for choice in engines() {
        let file = image(64 * 512);
        let mut rig = Rig::writable(file.path(), choice);
        let mut buffers = vec![[0; 512]; 64];
        for (n, buffer) in buffers.iter_mut().enumerate() {
            rig.submit(Operation::Read, n as u64 * 512, 0, &mut [buffer]);
        }
        assert_eq!(rig.engine.in_flight(), 64);
        let mut tags = Vec::new();
        while rig.engine.in_flight() > 0 {
            for job in rig.reap() {
                job.result().as_ref().unwrap();
                tags.push(job.tag());
            }
        }
        tags.sort_unstable();
        assert_eq!(tags, (1..=64).collect::<Vec<_>>());
        assert!(buffers.iter().zip(1..).all(|(buffer, n)| *buffer == [n; 512]));
    }
}

#[test]
fn the_missing_end_of_the_last_sector_reads_as_zero_and_is_never_written() {
    for choice in engines() {
        let file = image(1000);
        let mut rig = Rig::writable(file.path(), choice);
        let mut data = [9; 1024];
        rig.read(0, &mut data).unwrap();
        assert_eq!((data[999], &data[1000..]), (2, &[0; 24][..]));
        assert_eq!(errno(rig.write(512, &[5; 512])), libc::ENOSPC);
        rig.run(Operation::WriteZeroes { unmap: false }, 512, 512, &mut []).unwrap();
        let bytes = fs::read(file.path()).unwrap();
        assert_eq!((bytes.len(), &bytes[512..]), (1000, &[0; 488][..]));
    }
}

#[test]
fn a_file_that_was_cut_is_an_error_and_no_zeroes() {
    for choice in engines() {
        let file = image(8192);
        let mut rig = Rig::writable(file.path(), choice);
        file.as_file().set_len(4096 + 100).unwrap();
        let mut data = [9; 4096];
        rig.read(0, &mut data).unwrap();
        let error = rig.read(4096, &mut data).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }
}

#[test]
fn a_file_that_was_cut_is_not_made_long_again_by_a_write() {
    for choice in engines() {
        let file = image(8192);
        let mut rig = Rig::writable(file.path(), choice);
        let len = || file.as_file().metadata().unwrap().len();
        file.as_file().set_len(1536).unwrap();
        rig.disk.measure();
        let zeroes = Operation::WriteZeroes { unmap: false };
        for (at, count) in [(4096, 512), (1024, 1024), (1536, 512), (7680, 512)] {
            let error = rig.write(at, &vec![9; count]).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
            let error = rig.run(zeroes, at, count as u64, &mut []).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
        }
        // What is no part of the disk is still another error.
        assert_eq!(errno(rig.write(8192, &[9; 512])), libc::ENOSPC);
        rig.write(1024, &[9; 512]).unwrap();
        rig.run(Operation::Discard, 0, 512, &mut []).unwrap();
        assert_eq!(len(), 1536);
        // Somebody who makes it long again gives back what there was room for.
        file.as_file().set_len(1 << 20).unwrap();
        rig.disk.measure();
        rig.write(7680, &[9; 512]).unwrap();
        assert_eq!(errno(rig.write(8192, &[9; 512])), libc::ENOSPC);
        assert_eq!(len(), 1 << 20);
    }
}

#[test]
fn a_write_that_was_held_looks_again_before_it_goes_on() {
    let file = image(8192);
    let mut disk = Disk::open(file.path(), DiskOptions::default()).unwrap();
    let mut data = [9; 1024];
    let held = |disk: &Disk, operation, data: &mut [u8]| {
        let mut job = Job::new(0);
        job.data().push(Segment::new(data.as_mut_ptr(), data.len()));
        job.begin(operation, disk, 1024, 0, false);
        job
    };
    let mut write = held(&disk, Operation::Write, &mut data);
    let mut read = held(&disk, Operation::Read, &mut data);
    file.as_file().set_len(2048).unwrap();
    disk.measure();
    write.renew(&disk);
    assert!(!write.is_finished(), "there is room for it");
    file.as_file().set_len(2047).unwrap();
    disk.measure();
    for job in [&mut write, &mut read] {
        job.renew(&disk);
    }
    assert!(write.is_finished() && write.result().is_err());
    assert!(!read.is_finished(), "a read finds out by itself");
}

#[test]
fn a_read_only_disk_is_never_written() {
    for choice in engines() {
        let file = image(4096);
        let options = DiskOptions { read_only: true, ..DiskOptions::default() };
        let mut rig = Rig::new(file.path(), choice, options);
        assert_eq!(errno(rig.write(0, &[5; 512])), libc::EROFS);
        assert_eq!(errno(rig.run(Operation::Discard, 0, 512, &mut [])), libc::EROFS);
        rig.run(Operation::Flush, 0, 0, &mut []).unwrap();
        assert_eq!(fs::read(file.path()).unwrap()[0], 1);
    }
}

#[test]
fn ranges_are_given_back_and_zeroed_whatever_the_file_system_can() {
    // tmpfs can punch holes but not zero a range; ext4 and its like can both.
    for directory in [std::env::temp_dir(), "/dev/shm".into()] {
        for choice in engines() {
            let mut file = tempfile::NamedTempFile::new_in(&directory).unwrap();
            file.write_all(&vec![7; 4 << 20]).unwrap();
            file.as_file().sync_all().unwrap();
            let blocks = file.as_file().metadata().unwrap().blocks();
            let mut rig = Rig::writable(file.path(), choice);
            let zeroes = |unmap| Operation::WriteZeroes { unmap };
            rig.run(zeroes(false), 512, (2 << 20) + 512, &mut []).unwrap();
            rig.run(zeroes(true), 3 << 20, 512 << 10, &mut []).unwrap();
            let bytes = fs::read(file.path()).unwrap();
            let zero = |from: usize, to: usize| bytes[from..to].iter().all(|b| *b == 0);
            assert!(zero(512, (2 << 20) + 1024) && zero(3 << 20, (3 << 20) + (512 << 10)));
            assert_eq!((bytes[511], bytes[(2 << 20) + 1024], bytes[(3 << 20) - 1]), (7, 7, 7));
            assert_eq!((bytes.len(), bytes[(3 << 20) + (512 << 10)]), (4 << 20, 7));
            rig.run(Operation::Discard, 0, 4 << 20, &mut []).unwrap();
            let after = file.as_file().metadata().unwrap();
            assert!(after.len() == 4 << 20 && after.blocks() < blocks, "{directory:?}");
            assert_eq!(errno(rig.run(zeroes(false), 512, 4 << 20, &mut [])), libc::ENOSPC);
        }
    }
}

#[test]
fn a_host_without_space_fails_the_write_and_not_the_engine() {
    for choice in engines() {
        let Some(small) = SmallTmpfs::mount() else { return };
        let path = small.0.path().join("disk");
        fs::File::create(&path).unwrap().set_len(4 << 20).unwrap();
        let mut rig = Rig::writable(&path, choice);
        assert_eq!(errno(rig.write(0, &vec![1; 2 << 20])), libc::ENOSPC);
        let mut data = [9; 512];
        rig.read(3 << 20, &mut data).unwrap();
        assert_eq!(data, [0; 512]);
    }
}

#[test]
fn memory_that_is_not_there_fails_its_own_job_only() {
    for choice in engines() {
        let file = image(4096);
        let mut rig = Rig::writable(file.path(), choice);
        let mut job = Box::new(Job::new(1));
        // Nothing is ever mapped at the first page.
        job.data().push(Segment::new(std::ptr::without_provenance_mut(16), 512));
        job.begin(Operation::Read, &rig.disk, 0, 0, false);
        // SAFETY: the kernel finds that the memory is not there.
        unsafe { rig.engine.submit(job) };
        rig.engine.kick().unwrap();
        let done = rig.reap();
        let error = done[0].result().as_ref().unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EFAULT));
        let mut data = [0; 512];
        rig.read(0, &mut data).unwrap();
        assert_eq!(data, [1; 512]);
    }
}

#[test]
fn a_huge_job_is_held_between_two_steps_and_goes_on_where_it_was() {
    for choice in engines() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        let bytes: Vec<u8> = (0..64u32 << 20).map(|i| (i >> 12) as u8).collect();
        file.write_all(&bytes).unwrap();
        let mut rig = Rig::writable(file.path(), choice);
        let mut data = vec![0; bytes.len()];
        rig.submit(Operation::Read, 0, 0, &mut [&mut data]);
        let mut holds = 0;
        loop {
            // Time for a step to begin.
            std::thread::sleep(Duration::from_micros(100));
            rig.engine.hold(true);
            let job = rig.reap().pop().unwrap();
            if job.is_finished() {
                job.result().as_ref().unwrap();
                break;
            }
            holds += 1;
            rig.engine.hold(false);
            // SAFETY: `data` is still there.
            unsafe { rig.engine.submit(job) };
            rig.engine.kick().unwrap();
        }
        assert!(holds > 0, "{choice:?}: never held");
        assert!(data == bytes, "{choice:?}");
    }
}

#[test]
fn past_the_page_cache_memory_may_be_aligned_in_any_way() {
    for choice in engines() {
        let file = image(1 << 20);
        let options = DiskOptions { cache: Cache::Direct, ..DiskOptions::default() };
        match Disk::open(file.path(), options) {
            Ok(disk) => assert!([512, 4096].contains(&disk.align())),
            Err(e) => return skipped(e),
        }
        let mut rig = Rig::new(file.path(), choice, options);
        let mut data = vec![0; (256 << 10) + 1];
        rig.read(4096, &mut data[1..]).unwrap();
        assert!(data[1..].iter().zip(4096usize..).all(|(b, at)| *b == (at / 512 + 1) as u8));
        data.fill(0xdd);
        let (one, rest) = data[1..].split_at_mut(1000);
        rig.run(Operation::Write, 8192, 0, &mut [one, rest]).unwrap();
        rig.run(Operation::WriteZeroes { unmap: false }, 4096, 4096, &mut []).unwrap();
        let mut found = vec![0; 1 << 20];
        file.as_file().read_exact_at(&mut found, 0).unwrap();
        assert_eq!((found[4095], &found[4096..8192]), (8, &[0; 4096][..]));
        assert!(found[8192..8192 + (256 << 10)].iter().all(|b| *b == 0xdd));
        assert_eq!(found[8192 + (256 << 10)], ((8192 + (256 << 10)) / 512 + 1) as u8);
    }
}

#[test]
fn an_unsafe_cache_flushes_nothing_and_loses_nothing_else() {
    for choice in engines() {
        let file = image(4096);
        let options = DiskOptions { cache: Cache::Unsafe, ..DiskOptions::default() };
        let mut rig = Rig::new(file.path(), choice, options);
        rig.write(512, &[9; 512]).unwrap();
        let mut job = Job::new(0);
        job.begin(Operation::Flush, &rig.disk, 0, 0, false);
        assert!(job.is_finished());
        rig.run(Operation::Flush, 0, 0, &mut []).unwrap();
        assert_eq!(fs::read(file.path()).unwrap()[512..1024], [9; 512]);
    }
}

#[test]
fn jobs_at_a_host_that_hangs_hold_up_nobody() {
    for choice in patient() {
        let Some(hanging) = HangingFile::mount() else { return };
        let mut rig = Rig::new(hanging.path(), choice, UNREAD);
        let mut data = [0; 4096];
        rig.submit(Operation::Read, 0, 0, &mut [&mut data]);
        hanging.wait_for_a_reader();
        let begin = Instant::now();
        rig.engine.hold(true);
        let mut done = Vec::new();
        rig.engine.reap(&mut done);
        assert!(done.is_empty() && !rig.wait(50) && rig.engine.in_flight() == 1);
        assert!(begin.elapsed() < Duration::from_secs(1), "{choice:?}");
        rig.engine.hold(false);
        hanging.answer();
        assert!(rig.reap()[0].result().is_ok(), "{choice:?}");
        assert_eq!(data, [b'h'; 4096]);
    }
}

#[test]
fn what_is_in_ram_is_moved_at_once_and_a_batch_of_it_answered_before_the_next() {
    let Ok(mut file) = tempfile::NamedTempFile::new_in("/dev/shm") else {
        return skipped("no /dev/shm, which would be a tmpfs");
    };
    if std::thread::available_parallelism().unwrap() == NonZeroUsize::MIN {
        return skipped("one processor, with which all of it is one batch");
    }
    file.write_all(&vec![7; 4 << 20]).unwrap();
    let mut rig = Rig::writable(file.path(), EngineChoice::Auto);
    assert_eq!(EngineChoice::Auto.for_disk(&rig.disk), EngineChoice::Sync);
    // On the same file system, but what it stands for is not.
    assert!(!choice::is_in_ram(&fs::File::open("/dev/null").unwrap()));
    let mut data = vec![0; 4 << 20];
    let (first, rest) = data.split_at_mut(2 << 20);
    let (second, third) = rest.split_at_mut(1 << 20);
    for piece in [first, second, third] {
        rig.submit(Operation::Read, 0, 0, &mut [piece]);
    }
    let mut done = Vec::new();
    let mut reap = |rig: &mut Rig| {
        rig.engine.reap(&mut done);
        rig.engine.kick().unwrap();
        done.drain(..).map(|job| (job.tag(), job.is_finished())).collect::<Vec<_>>()
    };
    // Half of the first is moved, and there is more to do, which needs nobody to wait.
    assert!(rig.wait(0) && rig.engine.in_flight() == 3);
    assert_eq!(reap(&mut rig), [(1, true)]);
    assert!(rig.wait(0));
    assert_eq!(reap(&mut rig), [(2, true)]);
    // The third is not begun before the second is answered.
    assert!(rig.wait(0));
    rig.engine.hold(true);
    assert_eq!(reap(&mut rig), [(3, false)]);
    assert!(!rig.wait(0) && rig.engine.in_flight() == 0);
    assert!(data[..3 << 20].iter().all(|byte| *byte == 7));
    assert!(data[3 << 20..].iter().all(|byte| *byte == 0));
}

#[test]
fn with_one_processor_what_is_asked_for_together_is_answered_together() {
    let file = image(3 << 20);
    let alone = std::thread::scope(|scope| {
        let serve = scope.spawn(|| {
            // SAFETY: all zeroes is an empty cpu_set_t.
            let mut one: libc::cpu_set_t = unsafe { std::mem::zeroed() };
            // SAFETY: no memory is passed.
            let here = unsafe { libc::sched_getcpu() };
            // SAFETY: the number of a processor that there is, which a cpu_set_t has room for.
            unsafe { libc::CPU_SET(here as usize, &mut one) };
            // SAFETY: a whole cpu_set_t, which is read, of this thread alone.
            let pinned = unsafe { libc::sched_setaffinity(0, size_of_val(&one), &raw const one) };
            assert_eq!(pinned, 0, "{}", io::Error::last_os_error());
            let mut rig = Rig::writable(file.path(), EngineChoice::Sync);
            let mut data = vec![0; 3 << 20];
            for piece in data.chunks_mut(1 << 20) {
                rig.submit(Operation::Read, 0, 0, &mut [piece]);
            }
            let mut done = Vec::new();
            rig.engine.reap(&mut done);
            done.into_iter().map(|job| (job.tag(), job.is_finished())).collect::<Vec<_>>()
        });
        serve.join().unwrap()
    });
    assert_eq!(alone, [(1, true), (2, true), (3, true)]);
}

/// A tmpfs of 1 MiB, unmounted when dropped; `None` where we may not mount.
struct SmallTmpfs(tempfile::TempDir);

impl SmallTmpfs {
    fn mount() -> Option<SmallTmpfs> {
        let directory = tempfile::tempdir().unwrap();
        match hanging::mount("tmpfs", directory.path(), "size=1m") {
            Ok(()) => Some(SmallTmpfs(directory)),
            Err(e) => {
                skipped(format!("a tmpfs cannot be mounted: {e}"));
                None
            }
        }
    }
}

impl Drop for SmallTmpfs {
    fn drop(&mut self) {
        hanging::unmount(self.0.path());
    }
}
