mod given_up;
mod hangs;
mod resize;

use std::fs;
use std::io::Write;
use std::path::Path;

use super::request::{Range, Refusal, Request, parse, parse_range};
use super::*;
use crate::block::hanging::HangingFile;
use crate::block::{DiskError, DiskOptions};
use crate::skipped::skipped;
use crate::virtio::gather::tests::policy_of;
use crate::virtio::testing::{
    DATA, Driver, EVENT_IDX, MEMORY, MEMORY_END, Piece, guarded_memory, wait_until,
};

fn image(len: usize) -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    let bytes: Vec<u8> = (0..len).map(|i| (i / 512) as u8 + 1).collect();
    file.write_all(&bytes).unwrap();
    file
}

fn open(path: &Path, read_only: bool) -> Result<Disk, DiskError> {
    Disk::open(path, DiskOptions { read_only, ..DiskOptions::default() })
}

/// Opened without a look at its first bytes, for which a host that hangs would be waited for.
fn open_unread(path: &Path) -> Disk {
    let format = Some(crate::block::DiskFormat::Raw);
    Disk::open(path, DiskOptions { format, ..DiskOptions::default() }).unwrap()
}

struct Rig {
    driver: Driver,
}

const HEAD: u64 = DATA;
const STATUS: u64 = DATA + 0x40;
const BUFFER: u64 = DATA + 0x1000;

impl Rig {
    fn new(path: &Path, read_only: bool) -> Rig {
        let disk = open(path, read_only).unwrap();
        let device = Blk::new("the-disk", disk, BlkOptions::default()).unwrap();
        Rig::of(device)
    }

    fn of(device: Blk) -> Rig {
        let features = EVENT_IDX | 1 << VIRTIO_BLK_F_FLUSH;
        Rig { driver: Driver::start(Box::new(device), features, 64) }
    }

    /// Sends a request and gives its status and the used length.
    fn ask(&mut self, kind: u32, sector: u64, data: &[Piece]) -> (u8, u32) {
        let mut header = [0; 16];
        header[..4].copy_from_slice(&kind.to_le_bytes());
        header[8..].copy_from_slice(&sector.to_le_bytes());
        self.driver.write(HEAD, &header);
        self.driver.write(STATUS, &[0xee]);
        let mut pieces = vec![Piece::Out(HEAD, 16)];
        pieces.extend_from_slice(data);
        pieces.push(Piece::In(STATUS, 1));
        self.driver.send(0, &pieces);
        let used = self.driver.wait_used(0, 1);
        (self.driver.read(STATUS, 1)[0], used[0].1)
    }

    fn range(&mut self, kind: u32, sector: u64, count: u32, flags: u32) -> u8 {
        let mut range = sector.to_le_bytes().to_vec();
        range.extend(count.to_le_bytes());
        range.extend(flags.to_le_bytes());
        self.driver.write(BUFFER, &range);
        self.ask(kind, 0, &[Piece::Out(BUFFER, 16)]).0
    }
}

#[test]
fn sectors_are_read_into_scattered_buffers() {
    let file = image(4096);
    let mut rig = Rig::new(file.path(), true);
    let (a, b) = (Piece::In(BUFFER, 100), Piece::In(BUFFER + 0x1000, 1024 - 100));
    assert_eq!(rig.ask(0, 2, &[a, b]), (0, 1025));
    assert_eq!(rig.driver.read(BUFFER, 100), [3; 100]);
    assert_eq!(rig.driver.read(BUFFER + 0x1000, 412), [3; 412]);
    assert_eq!(rig.driver.read(BUFFER + 0x1000 + 412, 512), [4; 512]);
    assert_eq!(rig.driver.read(BUFFER + 100, 1), [0]);
}

#[test]
fn what_is_written_is_in_the_file_and_can_be_flushed() {
    let file = image(4096);
    let mut rig = Rig::new(file.path(), false);
    rig.driver.write(BUFFER, &[0x55; 512]);
    assert_eq!(rig.ask(1, 7, &[Piece::Out(BUFFER, 12), Piece::Out(BUFFER, 500)]), (0, 1));
    assert_eq!(rig.ask(4, 0, &[]), (0, 1));
    let bytes = fs::read(file.path()).unwrap();
    assert_eq!(bytes.len(), 4096);
    assert_eq!(bytes[3584..], [0x55; 512]);
    assert_eq!(bytes[..512], [1; 512]);
}

#[test]
fn requests_past_the_end_or_of_odd_length_fail_and_touch_nothing() {
    let file = image(4096);
    let before = fs::read(file.path()).unwrap();
    let mut rig = Rig::new(file.path(), false);
    for sector in [8, 7, u64::MAX, u64::MAX / 512] {
        assert_eq!(rig.ask(1, sector, &[Piece::Out(BUFFER, 1024)]), (1, 1));
        assert_eq!(rig.ask(0, sector, &[Piece::In(BUFFER, 1024)]), (1, 1));
    }
    assert_eq!(rig.ask(0, 0, &[Piece::In(BUFFER, 511)]), (1, 1));
    assert_eq!(rig.ask(1, 0, &[Piece::Out(BUFFER, 513)]), (1, 1));
    assert_eq!(fs::read(file.path()).unwrap(), before);
}

#[test]
fn a_read_only_disk_says_so_and_refuses_writes() {
    let file = image(4096);
    let mut rig = Rig::new(file.path(), true);
    let offered = rig.driver.offered();
    assert_ne!(offered & 1 << VIRTIO_BLK_F_RO, 0);
    assert_eq!(offered & (1 << VIRTIO_BLK_F_DISCARD | 1 << VIRTIO_BLK_F_WRITE_ZEROES), 0);
    assert_eq!(rig.ask(1, 0, &[Piece::Out(BUFFER, 512)]), (1, 1));
    assert_eq!(rig.range(13, 0, 1, 0), 1);
    assert_eq!(rig.ask(4, 0, &[]), (0, 1));
}

#[test]
fn the_id_is_told_and_unknown_requests_are_unsupported() {
    let file = image(512);
    let mut rig = Rig::new(file.path(), true);
    assert_eq!(rig.ask(8, 0, &[Piece::In(BUFFER, 20)]), (0, 21));
    assert_eq!(rig.driver.read(BUFFER, 20), b"the-disk\0\0\0\0\0\0\0\0\0\0\0\0");
    assert_eq!(rig.ask(8, 0, &[Piece::In(BUFFER, 19)]), (1, 1));
    assert_eq!(rig.ask(99, 0, &[]), (2, 1));
}

#[test]
fn ranges_are_zeroed_and_discarded() {
    let file = image(8192);
    let mut rig = Rig::new(file.path(), false);
    assert_eq!(rig.range(13, 1, 2, 0), 0);
    assert_eq!(rig.range(13, 4, 1, 1), 0);
    assert_eq!(rig.range(11, 8, 8, 0), 0);
    assert_eq!(rig.range(11, 8, 9, 0), 1, "past the end");
    assert_eq!(rig.range(13, 0, 1, 2), 2, "an unknown flag");
    assert_eq!(rig.range(11, 0, 1, 1), 2, "unmap means nothing for a discard");
    let bytes = fs::read(file.path()).unwrap();
    assert_eq!(bytes.len(), 8192);
    assert_eq!(bytes[512..1536], [0; 1024]);
    assert_eq!(bytes[2048..2560], [0; 512]);
    assert_eq!((bytes[0], bytes[1536], bytes[2560]), (1, 4, 6));
}

#[test]
fn the_config_space_has_capacity_segments_and_block_size() {
    let file = image(1000);
    let rig = Rig::new(file.path(), false);
    assert_eq!(rig.driver.config(0, 8), 2u64.to_le_bytes());
    assert_eq!(rig.driver.config(12, 4), 254u32.to_le_bytes());
    assert_eq!(rig.driver.config(20, 4), 512u32.to_le_bytes());
    assert_eq!(rig.driver.config(56, 8), [1, 0, 0, 0, 0, 0, 0, 0]);
}

#[test]
fn the_topology_and_the_limits_of_ranges_are_told_where_virtio_has_them() {
    let file = image(8192);
    for read_only in [false, true] {
        let disk = open(file.path(), read_only).unwrap();
        // What the host's file system calls a block, in those of the guest.
        let blocks = disk.block_size().clamp(512, 4096) / 512;
        let rig = Rig::of(Blk::new("told", disk, BlkOptions::default()).unwrap());
        assert_ne!(rig.driver.offered() & 1 << VIRTIO_BLK_F_TOPOLOGY, 0);
        // virtio 1.3 §5.2.4: the physical block as a power of two, where the first one begins, the least
        // and the best I/O.
        assert_eq!(1 << rig.driver.config(24, 1)[0], blocks);
        assert_eq!(rig.driver.config(25, 1), [0]);
        assert_eq!(rig.driver.config(26, 2), (blocks as u16).to_le_bytes());
        assert_eq!(rig.driver.config(28, 4), [0; 4]);
        // The most sectors and segments of a discard, and how it is to be aligned; those of zeroes, and
        // that they may be discarded.
        let limits = [MAX_RANGE_SECTORS, 1, 1, MAX_RANGE_SECTORS, 1];
        let mut wanted: Vec<u8> = limits.iter().flat_map(|limit| limit.to_le_bytes()).collect();
        wanted.extend([1, 0, 0, 0]);
        if read_only {
            wanted.fill(0);
        }
        assert_eq!(rig.driver.config(36, 24), wanted, "read-only: {read_only}");
        let ranges = 1 << VIRTIO_BLK_F_DISCARD | 1 << VIRTIO_BLK_F_WRITE_ZEROES;
        assert_eq!(rig.driver.offered() & ranges, if read_only { 0 } else { ranges });
    }
}

#[test]
fn a_saved_disk_goes_on_in_another_whose_state_is_the_same() {
    let file = image(4096);
    let mut rig = Rig::new(file.path(), true);
    for sector in 0..3 {
        assert_eq!(rig.ask(0, sector, &[Piece::In(BUFFER, 512)]), (0, 513));
    }
    rig.driver.transport.pause();
    let saved = serde_json::to_string(&rig.driver.transport.save()).unwrap();
    let state = serde_json::from_str(&saved).unwrap();
    let heir = Blk::new("heir", open(file.path(), true).unwrap(), BlkOptions::default()).unwrap();
    let memory = rig.driver.memory.clone();
    rig.driver.transport = crate::virtio::testing::transport("heir", Box::new(heir), memory);
    rig.driver.transport.restore(&state).unwrap();
    assert_eq!(rig.driver.transport.save(), state);
    rig.driver.transport.resume();
    // The driver's rings go on where they were.
    assert_eq!(rig.ask(0, 5, &[Piece::In(BUFFER, 512)]), (0, 513));
    assert_eq!(rig.driver.read(BUFFER, 512), [6; 512]);
}

#[test]
fn the_missing_end_of_the_last_sector_reads_as_zero_and_is_not_written() {
    let file = image(1000);
    let mut rig = Rig::new(file.path(), false);
    rig.driver.write(BUFFER, &[0xaa; 512]);
    assert_eq!(rig.ask(0, 1, &[Piece::In(BUFFER, 512)]), (0, 513));
    assert_eq!(rig.driver.read(BUFFER, 488), [2; 488]);
    assert_eq!(rig.driver.read(BUFFER + 488, 24), [0; 24]);
    rig.driver.write(BUFFER, &[0xaa; 512]);
    assert_eq!(rig.ask(1, 1, &[Piece::Out(BUFFER, 512)]), (1, 1));
    assert_eq!(rig.ask(1, 0, &[Piece::Out(BUFFER, 512)]), (0, 1));
    assert_eq!(rig.range(13, 1, 1, 0), 0, "what lacks is zero already");
    let bytes = fs::read(file.path()).unwrap();
    assert_eq!((bytes.len(), bytes[511]), (1000, 0xaa));
    assert!(bytes[512..].iter().all(|b| *b == 0));
}

#[test]
fn a_disk_lets_the_guest_ask_for_more_before_it_serves() {
    let file = image(4096);
    let disk = open(file.path(), false).unwrap();
    let mut rig = Rig::of(Blk::new("gather", disk, BlkOptions::default()).unwrap());
    assert_eq!(rig.ask(0, 0, &[Piece::In(BUFFER, 512)]), (0, 513));
    if let Some(found) = policy_of("husk-gather") {
        assert_eq!(found, libc::SCHED_BATCH);
    }
}

#[test]
fn what_was_cut_off_the_file_is_an_error_and_no_zeroes() {
    let file = image(4096);
    let mut rig = Rig::new(file.path(), false);
    file.as_file().set_len(1024 + 100).unwrap();
    assert_eq!(rig.ask(0, 0, &[Piece::In(BUFFER, 1024)]), (0, 1025));
    assert_eq!(rig.ask(0, 2, &[Piece::In(BUFFER, 512)]), (1, 1));
    assert_eq!(rig.ask(0, 7, &[Piece::In(BUFFER, 512)]), (1, 1));
}

#[test]
fn a_write_to_what_was_cut_off_the_file_is_an_error_and_does_not_make_it_long_again() {
    for engine in [EngineChoice::Threads, EngineChoice::Auto, EngineChoice::Sync] {
        let file = image(4096);
        let options = BlkOptions { engine, ..BlkOptions::default() };
        let disk = open(file.path(), false).unwrap();
        let mut rig = Rig::of(Blk::new("cut", disk, options).unwrap());
        let len = || fs::metadata(file.path()).unwrap().len();
        rig.driver.write(BUFFER, &[0xaa; 512]);
        assert_eq!(rig.ask(1, 7, &[Piece::Out(BUFFER, 512)]), (0, 1));
        file.as_file().set_len(1024).unwrap();
        assert_eq!(rig.ask(1, 7, &[Piece::Out(BUFFER, 512)]), (1, 1));
        assert_eq!(rig.range(13, 2, 1, 0), 1);
        assert_eq!(len(), 1024);
        rig.driver.write(BUFFER, &[0xaa; 512]);
        assert_eq!(rig.ask(1, 1, &[Piece::Out(BUFFER, 512)]), (0, 1));
        assert_eq!(rig.ask(4, 0, &[]), (0, 1), "a flush");
        assert_eq!((len(), fs::read(file.path()).unwrap()[1023]), (1024, 0xaa));
        // The file may go: it is there as long as it is open.
        fs::remove_file(file.path()).unwrap();
        assert_eq!(rig.ask(0, 1, &[Piece::In(BUFFER, 512)]), (0, 513));
        assert_eq!(rig.ask(1, 0, &[Piece::Out(BUFFER, 512)]), (0, 1));
    }
}

#[test]
fn a_request_without_status_breaks_the_device_until_a_reset() {
    let file = image(512);
    let mut rig = Rig::new(file.path(), true);
    rig.driver.send(0, &[Piece::Out(HEAD, 16)]);
    rig.driver.wait_broken();
    rig.driver.bring_up(0, 64);
    assert_eq!(rig.ask(0, 0, &[Piece::In(BUFFER, 512)]), (0, 513));
    rig.driver.send(0, &[Piece::Out(HEAD, 15), Piece::In(STATUS, 1)]);
    rig.driver.wait_broken();
    rig.driver.bring_up(0, 64);
    rig.driver.send(0, &[Piece::Out(HEAD, 16), Piece::In(MEMORY_END - 1, 512)]);
    rig.driver.wait_broken();
}

#[test]
fn a_paused_disk_goes_on_where_it_was() {
    let file = image(4096);
    let mut rig = Rig::new(file.path(), true);
    assert_eq!(rig.ask(0, 0, &[Piece::In(BUFFER, 512)]).0, 0);
    rig.driver.transport.pause();
    rig.driver.transport.resume();
    assert_eq!(rig.ask(0, 1, &[Piece::In(BUFFER, 512)]).0, 0);
    assert_eq!(rig.driver.read(BUFFER, 1), [2]);
}

/// What happens meanwhile must not take longer.
fn at_once<T>(f: impl FnOnce() -> T) -> T {
    let begin = Instant::now();
    let result = f();
    assert!(begin.elapsed() < Duration::from_secs(3), "{:?}", begin.elapsed());
    result
}

#[test]
fn every_queue_is_served_and_keeps_its_own_order() {
    let file = image(4096);
    let options = BlkOptions { queues: 3, ..BlkOptions::default() };
    let device = Blk::new("wide", open(file.path(), true).unwrap(), options).unwrap();
    let mut rig = Rig::of(device);
    assert_ne!(rig.driver.offered() & 1 << VIRTIO_BLK_F_MQ, 0);
    assert_eq!(rig.driver.config(34, 2), 3u16.to_le_bytes());
    for round in 0..3 {
        for queue in 0..3 {
            let at = DATA + 0x1000 * (queue as u64 + 1);
            let mut header = [0; 16];
            header[8] = queue as u8;
            rig.driver.write(at, &header);
            let status = Piece::In(at + 0x20, 1);
            rig.driver.send(queue, &[Piece::Out(at, 16), Piece::In(at + 0x200, 512), status]);
        }
        for queue in 0..3 {
            assert_eq!(rig.driver.wait_used(queue, 1)[0].1, 513);
            let at = DATA + 0x1000 * (queue as u64 + 1);
            assert_eq!(rig.driver.read(at + 0x200, 512), [queue as u8 + 1; 512]);
        }
        if round == 1 {
            rig.driver.transport.pause();
            rig.driver.transport.resume();
        }
    }
    assert_eq!(Rig::new(file.path(), true).driver.config(34, 2), [0, 0]);
}

#[test]
fn requests_of_more_than_a_batch_are_answered_without_another_doorbell() {
    const LEN: u32 = 0x11_0000;
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(LEN.into()).unwrap();
    for engine in [EngineChoice::Threads, EngineChoice::Auto, EngineChoice::Sync] {
        let options = BlkOptions { engine, ..BlkOptions::default() };
        let disk = open(file.path(), false).unwrap();
        let mut rig = Rig::of(Blk::new("large", disk, options).unwrap());
        for _ in 0..3 {
            assert_eq!(rig.ask(0, 0, &[Piece::In(BUFFER, LEN)]), (0, LEN + 1), "{engine:?}");
        }
    }
}

#[test]
fn stops_in_the_middle_of_everything_answer_each_request_once() {
    let file = image(64 << 10);
    for engine in [EngineChoice::Threads, EngineChoice::Auto, EngineChoice::Sync] {
        let options = BlkOptions { engine, queues: 2, ..BlkOptions::default() };
        let device = Blk::new("d", open(file.path(), false).unwrap(), options).unwrap();
        let mut rig = Rig::of(device);
        // Sector n is read to its own place by request n, whose header and status are there too.
        let place = |n: u64| DATA + 0x1000 + n * 0x400;
        for round in 0..100u64 {
            for n in 0..20 {
                let mut header = [0; 16];
                header[8] = n as u8;
                rig.driver.write(place(n), &header);
                rig.driver.write(place(n) + 0x10, &[0xee]);
                rig.driver.write(place(n) + 0x200, &[0; 512]);
                let status = Piece::In(place(n) + 0x10, 1);
                let to = Piece::In(place(n) + 0x200, 512);
                rig.driver.send((n % 2) as usize, &[Piece::Out(place(n), 16), to, status]);
                if n % 7 == round % 7 {
                    rig.driver.transport.pause();
                    rig.driver.transport.resume();
                }
            }
            let mut heads = Vec::new();
            for queue in 0..2 {
                let used = rig.driver.wait_used(queue, 10);
                assert!(used.iter().all(|(_, len)| *len == 513), "{used:?}");
                heads.extend(used.iter().map(|(head, _)| (queue, *head)));
            }
            heads.sort_unstable();
            heads.dedup();
            assert_eq!(heads.len(), 20, "{engine:?}: a request was answered twice");
            for n in 0..20 {
                assert_eq!(rig.driver.read(place(n) + 0x10, 1), [0]);
                assert_eq!(rig.driver.read(place(n) + 0x200, 512), [n as u8 + 1; 512]);
            }
        }
    }
}

#[test]
fn limits_hold_across_queues_and_resets() {
    let file = image(4096);
    // One request at once (a tenth of 10), and then one every tenth of a second.
    let requests_per_second = NonZeroU64::new(10);
    let options = BlkOptions { requests_per_second, queues: 2, ..BlkOptions::default() };
    let device = Blk::new("slow", open(file.path(), true).unwrap(), options).unwrap();
    let begin = Instant::now();
    let mut rig = Rig::of(device);
    rig.driver.write(HEAD, &[0; 16]);
    let pieces = [Piece::Out(HEAD, 16), Piece::In(BUFFER, 512), Piece::In(STATUS, 1)];
    for queue in [0, 1, 0, 1] {
        rig.driver.send(queue, &pieces);
    }
    rig.driver.wait_used(0, 2);
    rig.driver.wait_used(1, 2);
    let four = begin.elapsed();
    assert!(four >= Duration::from_millis(300), "four requests in {four:?}");
    rig.driver.transport.reset();
    rig.driver.bring_up(0, 64);
    assert_eq!(rig.ask(0, 0, &[Piece::In(BUFFER, 512)]), (0, 513));
    let five = begin.elapsed();
    assert!(five >= Duration::from_millis(400), "five requests in {five:?}");
    assert!(five < Duration::from_secs(5), "five requests in {five:?}");
}

#[test]
fn a_request_that_waits_for_its_limit_holds_up_no_pause() {
    let file = image(4096);
    let options = BlkOptions { bytes_per_second: NonZeroU64::new(1000), ..BlkOptions::default() };
    let device = Blk::new("slow", open(file.path(), true).unwrap(), options).unwrap();
    let mut rig = Rig::of(device);
    assert_eq!(rig.ask(0, 0, &[Piece::In(BUFFER, 1024)]), (0, 1025));
    let pieces = [Piece::Out(HEAD, 16), Piece::In(BUFFER, 512), Piece::In(STATUS, 1)];
    rig.driver.send(0, &pieces);
    at_once(|| rig.driver.transport.pause());
    assert!(rig.driver.rings[0].used().is_empty());
    rig.driver.transport.resume();
    rig.driver.wait_used(0, 1);
}

#[test]
fn a_disk_without_the_page_cache_says_what_blocks_it_wants() {
    let file = image(1 << 16);
    let options = DiskOptions { cache: crate::block::Cache::Direct, ..DiskOptions::default() };
    let disk = match Disk::open(file.path(), options) {
        Ok(disk) => disk,
        Err(e) => return skipped(e),
    };
    let align = disk.align();
    let mut rig = Rig::of(Blk::new("direct", disk, BlkOptions::default()).unwrap());
    assert_eq!(rig.driver.config(20, 4), (align as u32).to_le_bytes());
    let sectors = align as u64 / 512;
    // Not aligned in memory, which is no business of the guest's.
    let to = Piece::In(BUFFER + 3, align as u32);
    assert_eq!(rig.ask(0, sectors, &[to]), (0, align as u32 + 1));
    assert_eq!(rig.driver.read(BUFFER + 3, 512), vec![sectors as u8 + 1; 512]);
}

#[test]
fn a_disk_has_many_readers_or_one_writer() {
    let file = image(512);
    let reader = open(file.path(), true).unwrap();
    let second = open(file.path(), true).unwrap();
    let refused = open(file.path(), false).unwrap_err();
    assert!(matches!(refused, DiskError::InUse { read_only: false, .. }));
    assert!(refused.to_string().contains(file.path().to_str().unwrap()));
    drop((reader, second));
    let writer = open(file.path(), false).unwrap();
    let refused = open(file.path(), true).unwrap_err();
    assert!(refused.to_string().contains("in use by a writer; stop the other VM"), "{refused}");
    drop(writer);
    open(file.path(), true).unwrap();
}

#[test]
fn what_is_no_disk_is_refused_with_its_path_and_a_remedy() {
    let dir = tempfile::tempdir().unwrap();
    for read_only in [false, true] {
        let refused = open(dir.path(), read_only).unwrap_err();
        assert!(matches!(refused, DiskError::Kind { kind: "a directory", .. }), "{refused}");
    }
    let missing = open(&dir.path().join("no"), true).unwrap_err().to_string();
    assert!(missing.contains("/no: ") && missing.contains("check the path"), "{missing}");
    let null = open(Path::new("/dev/null"), true).unwrap_err();
    assert!(matches!(null, DiskError::Kind { kind: "a special file", .. }));
}

#[test]
fn parsing_checks_shape_and_place() {
    let limits = Limits { sectors: 10, block: 512, read_only: false };
    let header = |kind: u32, sector: u64| {
        let mut header = [0; 16];
        header[..4].copy_from_slice(&kind.to_le_bytes());
        header[8..].copy_from_slice(&sector.to_le_bytes());
        header
    };
    assert_eq!(
        parse(header(0, 9), 0, 512, limits),
        Ok(Request::Read { offset: 9 * 512, len: 512 })
    );
    assert_eq!(parse(header(0, 10), 0, 0, limits), Ok(Request::Read { offset: 5120, len: 0 }));
    assert_eq!(parse(header(0, 11), 0, 0, limits), Err(Refusal::IoErr));
    assert_eq!(parse(header(11, 0), 32, 0, limits), Err(Refusal::IoErr));
    assert_eq!(parse(header(3, 0), 0, 0, limits), Err(Refusal::Unsupported));
    let mut range = [0; 16];
    range[8] = 4;
    assert_eq!(parse_range(range, true, limits), Ok(Range { offset: 0, len: 2048, unmap: false }));
    range[11] = 1;
    assert_eq!(parse_range(range, true, limits), Err(Refusal::IoErr));
}

#[test]
fn requests_over_a_file_in_guest_memory_fail_where_it_has_lost_its_pages_and_do_no_harm() {
    const FILE: u64 = 0x100_0000;
    const LOST: u64 = FILE + 0x1000;
    let (disk, pages) = (image(612), std::sync::Arc::new(tempfile::tempfile().unwrap()));
    pages.set_len(0x2000).unwrap();
    let memory = crate::backing::tests::with_file(&guarded_memory(&[MEMORY]), &pages, FILE, 0x2000);
    pages.set_len(0x1000).unwrap();
    let device =
        Blk::new("the-disk", open(disk.path(), false).unwrap(), BlkOptions::default()).unwrap();
    let mut rig = Rig { driver: Driver::over(memory, Box::new(device)) };
    rig.driver.bring_up(0, 64);
    // The second sector has 100 bytes, and zeroes behind them.
    assert_eq!(rig.ask(0, 0, &[Piece::In(FILE, 1024)]), (0, 1025));
    let read = rig.driver.read(FILE + 510, 104);
    assert_eq!((&read[..4], &read[100..]), (&[1, 1, 2, 2][..], &[2, 2, 0, 0][..]));
    rig.driver.write(FILE, &[9; 512]);
    assert_eq!(rig.ask(1, 0, &[Piece::Out(FILE, 512)]), (0, 1));
    assert_eq!(fs::read(disk.path()).unwrap()[511..513], [9, 2]);
    // All of it lost; only what is read as zero; both kinds of request.
    assert_eq!(rig.ask(0, 0, &[Piece::In(LOST, 512)]), (1, 1));
    assert_eq!(rig.ask(0, 1, &[Piece::In(LOST - 100, 512)]), (1, 1));
    assert_eq!(rig.ask(1, 0, &[Piece::Out(LOST, 512)]), (1, 1));
    assert_eq!(rig.ask(8, 0, &[Piece::In(LOST, 20)]), (1, 1), "its id");
    // An answer that has no place is none, whether it is given at once or later.
    rig.driver.write(HEAD, &[0; 16]);
    let to = |len| [Piece::Out(HEAD, 16), Piece::In(BUFFER, len), Piece::In(LOST, 1)];
    rig.driver.send(0, &to(512));
    assert_eq!(rig.driver.wait_used(0, 1)[0].1, 0);
    rig.driver.send(0, &to(511));
    rig.driver.wait_broken();
    rig.driver.bring_up(0, 64);
    assert_eq!(rig.ask(0, 0, &[Piece::In(BUFFER, 512)]), (0, 513));
    rig.driver.send(0, &[Piece::Out(LOST, 16), Piece::In(BUFFER, 512), Piece::In(STATUS, 1)]);
    rig.driver.wait_broken();
}
