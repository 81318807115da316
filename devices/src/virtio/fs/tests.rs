use std::fs;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::time::{Duration, Instant};

use proptest::prelude::*;
use tempfile::TempDir;
use vm_memory::ByteValued;

use super::*;
use crate::block::hanging::HangingFile;
use crate::fs::ShareOptions;
use crate::fs::tests::{init_body, name, object, request};
use crate::fs::wire::{
    CreateIn, CreateOut, EntryOut, FileLock, ForgetIn, FsyncIn, InterruptIn, LkIn, OpenIn, OpenOut,
    OutHeader, ROOT, ReadIn, WriteIn, op,
};
use crate::virtio::testing::{DATA, Driver, EVENT_IDX, Piece, wait_until};
use crate::worker::Worker;

/// Where replies go.
const REPLY: u64 = DATA + 0x4_0000;

struct Rig {
    driver: Driver,
    dir: TempDir,
    sent: u64,
    _worker: Worker,
}

fn rig() -> Rig {
    let dir = TempDir::new().unwrap();
    let place = dir.path().to_owned();
    rig_on(&place, dir, Worker::spawn("fs").unwrap())
}

/// With a share at `place`.
fn rig_on(place: &Path, dir: TempDir, worker: Worker) -> Rig {
    let share = Share::open(place, ShareOptions::default()).unwrap();
    let device = Fs::new("work", share, worker.handle()).unwrap();
    let driver = Driver::start(Box::new(device), EVENT_IDX, 64);
    let mut rig = Rig { driver, dir, sent: 0, _worker: worker };
    rig.call(op::INIT, 0, &init_body()).unwrap();
    rig
}

impl Rig {
    fn put(&mut self, queue: usize, bytes: &[u8], room: u32) -> u16 {
        // Each at a place of its own: one that waits may be read again.
        self.sent += 1;
        let place = DATA + self.sent % 64 * 0x1000;
        self.driver.write(place, bytes);
        // In pieces, as a driver has header, arguments and pages.
        let (first, rest) = (40.min(bytes.len() as u32), bytes.len() as u32);
        let mut pieces = vec![Piece::Out(place, first)];
        if rest > first {
            pieces.push(Piece::Out(place + u64::from(first), rest - first));
        }
        if room > 0 {
            pieces.push(Piece::In(REPLY, room.min(16)));
        }
        if room > 16 {
            pieces.push(Piece::In(REPLY + 16, room - 16));
        }
        self.driver.send(queue, &pieces)
    }

    fn call(&mut self, opcode: u32, node: u64, body: &[u8]) -> Result<Vec<u8>, i32> {
        self.put(1, &request(opcode, node, 3, body), 4096);
        let len = self.driver.wait_used(1, 1)[0].1;
        let header: OutHeader = object(&self.driver.read(REPLY, 16));
        assert_eq!((header.len, header.unique), (len, 3));
        let body = self.driver.read(REPLY + 16, len as usize - 16);
        if header.error == 0 { Ok(body) } else { Err(-header.error) }
    }

    fn create(&mut self, text: &str) -> (u64, u64) {
        let body = CreateIn { flags: libc::O_RDWR as u32, mode: 0o644, ..CreateIn::default() };
        let body = [body.as_slice(), &name(text)].concat();
        let made: CreateOut = object(&self.call(op::CREATE, ROOT, &body).unwrap());
        (made.entry.nodeid, made.open.fh)
    }

    fn write(&mut self, (node, fh): (u64, u64), data: &[u8]) -> Result<Vec<u8>, i32> {
        let body = WriteIn { fh, size: data.len() as u32, ..WriteIn::default() };
        self.call(op::WRITE, node, &[body.as_slice(), data].concat())
    }
}

#[test]
fn the_guest_finds_the_share_by_its_tag_and_its_files_by_requests() {
    let mut rig = rig();
    assert_eq!(rig.driver.get(0x8), 26);
    let mut config = b"work".to_vec();
    config.resize(36, 0);
    config.extend(1u32.to_le_bytes());
    assert_eq!(rig.driver.config(0, 40), config);
    let file = rig.create("f");
    assert_eq!(fs::metadata(rig.dir.path().join("f")).unwrap().len(), 0);
    rig.write(file, &[5; 3000]).unwrap();
    let body = ReadIn { fh: file.1, offset: 2998, size: 4096, ..ReadIn::default() };
    assert_eq!(rig.call(op::READ, file.0, body.as_slice()).unwrap(), [5, 5]);
    assert_eq!(rig.driver.transport.counters().counts().errors, 0);
}

#[test]
fn what_is_forgotten_urgently_has_no_reply_and_is_forgotten() {
    let mut rig = rig();
    fs::write(rig.dir.path().join("f"), b"").unwrap();
    let entry: EntryOut = object(&rig.call(op::LOOKUP, ROOT, &name("f")).unwrap());
    let forget = request(op::FORGET, entry.nodeid, 0, ForgetIn { nlookup: 1 }.as_slice());
    rig.put(0, &forget, 0);
    assert_eq!(rig.driver.wait_used(0, 1)[0].1, 0);
    assert_eq!(rig.call(op::GETATTR, entry.nodeid, &[0; 16]), Err(libc::ENOENT));
}

#[test]
fn files_stay_open_over_a_pause_and_not_over_a_reset() {
    let mut rig = rig();
    let file = rig.create("f");
    rig.driver.transport.pause();
    let state = rig.driver.transport.save();
    rig.driver.transport.resume();
    rig.write(file, b"still open").unwrap();
    // What is mounted cannot be put into another process.
    rig.driver.transport.pause();
    let refused = rig.driver.transport.restore(&state).unwrap_err().to_string();
    assert!(refused.contains("unmount"), "{refused}");
    let open = || {
        let fds = fs::read_dir("/proc/self/fd").unwrap().flatten();
        let place = rig.dir.path().join("f");
        fds.filter(|fd| fs::read_link(fd.path()).is_ok_and(|target| target == place)).count()
    };
    assert_eq!(open(), 2);
    rig.driver.transport.resume();
    rig.driver.transport.reset();
    // On the worker.
    wait_until("closed files", || open() == 0);
    rig.driver.bring_up(EVENT_IDX, 64);
    assert_eq!(rig.write(file, b"x"), Err(libc::EIO));
    rig.call(op::INIT, 0, &init_body()).unwrap();
    assert_eq!(rig.write(file, b"x"), Err(libc::EBADF));
    assert_eq!(fs::read(rig.dir.path().join("f")).unwrap(), b"still open");
}

const ALL: FileLock =
    FileLock { start: 0, end: i64::MAX as u64, kind: libc::F_WRLCK as u32, pid: 0 };

fn lock((node, fh): (u64, u64), unique: u64, opcode: u32, owner: u64, kind: i32) -> Vec<u8> {
    let lock = FileLock { kind: kind as u32, ..ALL };
    let body = LkIn { fh, owner, lock, lk_flags: 1, padding: 0 };
    request(opcode, node, unique, body.as_slice())
}

#[test]
fn who_waits_for_a_lock_holds_nobody_up_and_gets_it_from_guest_or_host() {
    let mut rig = rig();
    let file = rig.create("f");
    let host = fs::File::open(rig.dir.path().join("f")).unwrap();
    let reply = |rig: &Rig| object::<OutHeader>(&rig.driver.read(REPLY, 16));
    // Owner 1 has it, owner 2 waits, and the device serves others.
    rig.put(1, &lock(file, 8, op::SETLK, 1, libc::F_WRLCK), 16);
    rig.driver.wait_used(1, 1);
    let waits = rig.put(1, &lock(file, 9, op::SETLKW, 2, libc::F_WRLCK), 16);
    rig.call(op::LOOKUP, ROOT, &name("f")).unwrap();
    rig.driver.write(REPLY, &[0; 16]);
    rig.put(1, &lock(file, 10, op::SETLK, 1, libc::F_UNLCK), 0x100);
    let used = rig.driver.wait_used(1, 2);
    assert_eq!(
        (used[1].0, reply(&rig)),
        (waits.into(), OutHeader { len: 16, error: 0, unique: 9 })
    );
    // Now the host waits for owner 2, and owner 3 for the host.
    // SAFETY: no memory is passed.
    let flock = |how| unsafe { libc::flock(host.as_raw_fd(), how | libc::LOCK_NB) };
    assert_eq!(flock(libc::LOCK_EX), -1);
    rig.put(1, &lock(file, 11, op::SETLK, 2, libc::F_UNLCK), 16);
    rig.driver.wait_used(1, 1);
    assert_eq!(flock(libc::LOCK_EX), 0);
    rig.put(1, &lock(file, 12, op::SETLKW, 3, libc::F_WRLCK), 16);
    // A pause puts the request back; it is served again afterwards.
    rig.driver.transport.pause();
    rig.driver.transport.resume();
    assert_eq!(flock(libc::LOCK_UN), 0);
    rig.driver.wait_used(1, 1);
    assert_eq!(reply(&rig), OutHeader { len: 16, error: 0, unique: 12 });
    // An interrupt ends the wait of its request, and no other's.
    rig.put(1, &lock(file, 13, op::SETLKW, 4, libc::F_WRLCK), 16);
    for unique in [99, 13] {
        rig.put(0, &request(op::INTERRUPT, 0, 0, InterruptIn { unique }.as_slice()), 0);
        rig.driver.wait_used(0, 1);
    }
    rig.driver.wait_used(1, 1);
    assert_eq!(reply(&rig), OutHeader { len: 16, error: -libc::EINTR, unique: 13 });
}

#[test]
fn a_lock_of_the_hosts_is_got_while_others_ask_for_something_else_all_the_time() {
    let mut rig = rig();
    let file = rig.create("f");
    let host = fs::File::open(rig.dir.path().join("f")).unwrap();
    // SAFETY: no memory is passed.
    let flock = |how| unsafe { libc::flock(host.as_raw_fd(), how | libc::LOCK_NB) };
    assert_eq!(flock(libc::LOCK_EX), 0);
    let waits = rig.put(1, &lock(file, 9, op::SETLKW, 2, libc::F_WRLCK), 16);
    // When this is answered the other one waits.
    rig.call(op::LOOKUP, ROOT, &name("f")).unwrap();
    assert_eq!(flock(libc::LOCK_UN), 0);
    let mut answered = Vec::new();
    wait_until("lock", || {
        // At most a few milliseconds apart.
        rig.put(0, &request(op::LOOKUP, ROOT, 3, &name("f")), 4096);
        rig.driver.wait_used(0, 1);
        answered = rig.driver.rings[1].used();
        !answered.is_empty()
    });
    assert_eq!(answered[0].0, u32::from(waits));
}

#[test]
fn so_many_wait_for_a_lock_that_the_queue_has_room_for_who_gives_it_up() {
    let mut rig = rig();
    let file = rig.create("f");
    rig.put(1, &lock(file, 8, op::SETLK, 1, libc::F_WRLCK), 16);
    rig.driver.wait_used(1, 1);
    for n in 0..8 {
        rig.put(1, &lock(file, 20 + n, op::SETLKW, 2 + n, libc::F_RDLCK), 16);
    }
    rig.put(1, &lock(file, 40, op::SETLKW, 50, libc::F_RDLCK), 16);
    rig.driver.wait_used(1, 1);
    let refused: OutHeader = object(&rig.driver.read(REPLY, 16));
    assert_eq!((refused.error, refused.unique), (-libc::ENOLCK, 40));
    rig.put(1, &lock(file, 41, op::SETLK, 1, libc::F_UNLCK), 16);
    rig.driver.wait_used(1, 9);
    rig.driver.transport.reset();
}

/// Requests for a byte of a file, as fcntl(2) locks: of a number and an opcode, an owner, the byte and the kind.
fn bytes_of(node: u64, fh: u64) -> impl Fn(u64, u32, u64, u64, i32) -> Vec<u8> {
    move |unique, opcode, owner, byte, kind| {
        let lock = FileLock { start: byte, end: byte, kind: kind as u32, pid: 0 };
        let body = LkIn { fh, owner, lock, lk_flags: 0, padding: 0 };
        request(opcode, node, unique, body.as_slice())
    }
}

#[test]
fn owners_that_would_wait_for_each_other_for_good_are_told() {
    let mut rig = rig();
    let (node, fh) = rig.create("f");
    let ask = bytes_of(node, fh);
    let reply = |rig: &Rig| object::<OutHeader>(&rig.driver.read(REPLY, 16));
    for owner in [1, 2] {
        rig.put(1, &ask(owner, op::SETLK, owner, owner, libc::F_WRLCK), 16);
        rig.driver.wait_used(1, 1);
        assert_eq!(reply(&rig).error, 0);
    }
    let waits = rig.put(1, &ask(11, op::SETLKW, 1, 2, libc::F_WRLCK), 16);
    rig.call(op::LOOKUP, ROOT, &name("f")).unwrap();
    rig.put(1, &ask(12, op::SETLKW, 2, 1, libc::F_RDLCK), 16);
    rig.driver.wait_used(1, 1);
    assert_eq!((reply(&rig).error, reply(&rig).unique), (-libc::EDEADLK, 12));
    // Who was told gives its own up, and the other one gets it.
    rig.put(1, &ask(13, op::SETLK, 2, 2, libc::F_UNLCK), 0x100);
    let used = rig.driver.wait_used(1, 2);
    assert_eq!((used[1].0, reply(&rig).unique), (waits.into(), 11));
    assert_eq!(reply(&rig).error, 0);
}

#[test]
fn owners_that_wait_for_each_other_since_one_took_a_lock_are_told() {
    let mut rig = rig();
    let (node, fh) = rig.create("f");
    let ask = bytes_of(node, fh);
    let take = |rig: &mut Rig, owner, byte, kind| {
        rig.put(1, &ask(3, op::SETLK, owner, byte, kind), 0x100);
        rig.driver.wait_used(1, 1);
    };
    take(&mut rig, 2, 2, libc::F_WRLCK);
    take(&mut rig, 3, 3, libc::F_RDLCK);
    // Owner 1 waits for owner 2, which waits for those that read byte 3.
    let waits = [(11, 1, 2), (12, 2, 3)].map(|(unique, owner, byte)| {
        let waits = rig.put(1, &ask(unique, op::SETLKW, owner, byte, libc::F_WRLCK), 16);
        rig.call(op::LOOKUP, ROOT, &name("f")).unwrap();
        waits
    });
    // Another thread of owner 1's takes a lock without waiting.
    take(&mut rig, 1, 3, libc::F_RDLCK);
    assert_eq!(rig.driver.wait_used(1, 1), [(u32::from(waits[1]), 16)]);
    let reply: OutHeader = object(&rig.driver.read(REPLY, 16));
    assert_eq!((reply.error, reply.unique), (-libc::EDEADLK, 12));
    // The other one waits on, for somebody who waits for nobody.
    rig.put(1, &ask(3, op::SETLK, 2, 2, libc::F_UNLCK), 0x100);
    assert_eq!(rig.driver.wait_used(1, 2)[1].0, u32::from(waits[0]));
}

#[test]
fn a_host_that_hangs_holds_up_no_reset_and_the_next_driver_is_served_when_it_answers() {
    for opcode in [op::FSYNC, op::READ] {
        let Some(file) = HangingFile::mount() else { return };
        let worker = Worker::spawn("fs").unwrap().with_patience(Duration::from_secs(1));
        let place = file.path().parent().unwrap();
        let mut rig = rig_on(place, TempDir::new().unwrap(), worker);
        let entry: EntryOut = object(&rig.call(op::LOOKUP, ROOT, &name("disk")).unwrap());
        let open = rig.call(op::OPEN, entry.nodeid, OpenIn::default().as_slice()).unwrap();
        let fh = object::<OpenOut>(&open).fh;
        let body = match opcode {
            op::FSYNC => FsyncIn { fh, ..FsyncIn::default() }.as_slice().to_vec(),
            _ => ReadIn { fh, size: 1000, ..ReadIn::default() }.as_slice().to_vec(),
        };
        rig.put(1, &request(opcode, entry.nodeid, 9, &body), 4096);
        file.wait_for_a_reader();
        let begin = Instant::now();
        rig.driver.set(0x70, 0);
        assert!(begin.elapsed() < Duration::from_secs(10), "{:?}", begin.elapsed());
        // Only what reads into guest memory keeps a reboot from it.
        assert_eq!(rig.driver.transport.is_busy(), opcode == op::READ);
        rig.driver.bring_up(EVENT_IDX, 64);
        assert_ne!(rig.driver.status() & 0x40, 0, "started while its worker hangs");
        let used = rig.driver.rings[1].used;
        rig.driver.write(used, &[0xaa; 16]);
        let before = rig.driver.read(used, 16);
        file.answer();
        wait_until("return of the worker", || {
            let untouched = opcode == op::READ || rig.driver.read(used, 16) == before;
            assert!(untouched, "a reply to who was reset");
            rig.driver.bring_up(EVENT_IDX, 64);
            rig.driver.write(used, &[0xaa; 16]);
            rig.driver.status() & 0x40 == 0
        });
        rig.driver.bring_up(EVENT_IDX, 64);
        assert_eq!(rig.call(op::LOOKUP, ROOT, &name("disk")), Err(libc::EIO));
        rig.call(op::INIT, 0, &init_body()).unwrap();
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn any_request_is_answered_and_the_next_one_served(
        requests in prop::collection::vec(
            (0usize..2, 0u32..54, 0u64..5, prop::collection::vec(prop_oneof![6 => 0u8..5, 1 => any::<u8>()], 0..100), 0u32..300),
            1..20,
        ),
        cut in 1usize..40,
    ) {
        let mut rig = rig();
        fs::write(rig.dir.path().join("\u{1}"), b"x").unwrap();
        for (n, (queue, opcode, node, body, room)) in requests.into_iter().enumerate() {
            let opcode = match opcode {
                // Nobody waits for a lock for ever here.
                op::SETLKW => op::SETLK,
                // It would have the host reserve whatever it says.
                op::FALLOCATE => op::LSEEK,
                opcode => opcode,
            };
            let mut bytes = request(opcode, node, 9, &body);
            if n % 7 == 6 {
                bytes.truncate(cut);
            }
            rig.put(queue, &bytes, room);
            let used = rig.driver.wait_used(queue, 1);
            prop_assert!(used[0].1 <= room);
        }
        prop_assert_eq!(rig.driver.status() & 0x40, 0);
        rig.call(op::INIT, 0, &init_body()).unwrap();
        rig.create("after");
    }
}
