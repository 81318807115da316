//! Locks of the guest's owners, against each other and against the host's.

use std::fs::File;
use std::os::fd::AsRawFd;

use super::*;
use crate::fs::wire::{FileLock, FlushIn, ReleaseIn};

const ALL: FileLock =
    FileLock { start: 0, end: i64::MAX as u64, kind: libc::F_WRLCK as u32, pid: 0 };

fn unlocked(lock: FileLock) -> FileLock {
    FileLock { kind: libc::F_UNLCK as u32, ..lock }
}

#[test]
fn ranges_are_locked_by_owner_and_given_up_at_a_close() {
    let mut guest = Guest::new();
    let (node, fh) = guest.create(ROOT, "f", libc::O_RDWR).unwrap();
    let by = |owner, lock| LkIn { fh, owner, lock, ..LkIn::default() };
    let half = FileLock { start: 10, end: 19, pid: 41, ..ALL };
    guest.lock(op::SETLK, node, by(1, half)).unwrap();
    guest.lock(op::SETLK, node, by(1, half)).unwrap();
    assert_eq!(guest.lock(op::SETLK, node, by(2, ALL)), Err(libc::EAGAIN));
    guest.lock(op::SETLK, node, by(2, FileLock { start: 20, ..ALL })).unwrap();
    let other: FileLock = object(&guest.lock(op::GETLK, node, by(3, ALL)).unwrap());
    assert_eq!((other.start, other.end, other.kind), (10, 19, libc::F_WRLCK as u32));
    assert_eq!(other.pid, 41);
    let free = FileLock { start: 0, end: 9, ..ALL };
    let other: FileLock = object(&guest.lock(op::GETLK, node, by(3, free)).unwrap());
    assert_eq!((other.kind, other.pid), (libc::F_UNLCK as u32, 0));
    let flush = FlushIn { fh, lock_owner: 1, ..FlushIn::default() };
    guest.ask(op::FLUSH, node, &flush, &[]).unwrap();
    guest.lock(op::SETLK, node, by(3, half)).unwrap();
    assert_eq!(guest.holdings(), (1, 3));
    for bad in [
        FileLock { start: 5, end: 4, ..ALL },
        FileLock { start: 1 << 63, end: u64::MAX, ..ALL },
        FileLock { kind: 7, ..ALL },
        FileLock { kind: u32::MAX, ..ALL },
    ] {
        assert_eq!(guest.lock(op::SETLK, node, by(1, bad)), Err(libc::EINVAL), "{bad:?}");
    }
    let forged = LkIn { fh: 999, ..by(9, ALL) };
    assert_eq!(guest.lock(op::SETLK, node, forged), Err(libc::EBADF));
}

#[test]
fn who_waits_is_asked_again_and_the_host_sees_the_locks() {
    let mut guest = Guest::new();
    let (node, fh) = guest.create(ROOT, "f", libc::O_RDWR).unwrap();
    let host = File::open(guest.path("f")).unwrap();
    // SAFETY: no memory is passed.
    let flock = |how| unsafe { libc::flock(host.as_raw_fd(), how | libc::LOCK_NB) };
    assert_eq!(flock(libc::LOCK_EX), 0);
    let body = LkIn { fh, owner: 7, lock: ALL, lk_flags: 1, padding: 0 };
    assert_eq!(guest.lock(op::SETLK, node, body), Err(libc::EAGAIN));
    let bytes = request(op::SETLKW, node, 77, body.as_slice());
    let (served, _) = guest.serve(bytes, 16);
    let Served::Waits(waiting) = served else { panic!("{served:?}") };
    assert_eq!(waiting.unique(), 77);
    assert!(guest.session.try_again(&waiting).is_none());
    assert_eq!(flock(libc::LOCK_UN), 0);
    let reply: OutHeader = object(&guest.session.try_again(&waiting).unwrap());
    assert_eq!(reply, OutHeader { len: 16, error: 0, unique: 77 });
    assert_eq!(flock(libc::LOCK_SH), -1);
    let before = guest.session.given_up();
    let release = ReleaseIn { fh, release_flags: 2, lock_owner: 7, ..ReleaseIn::default() };
    guest.ask(op::RELEASE, node, &release, &[]).unwrap();
    assert_ne!(guest.session.given_up(), before);
    assert_eq!(flock(libc::LOCK_SH), 0);
    assert_eq!(guest.holdings(), (1, 0));
}

#[test]
fn directories_have_locks_of_flock_and_unlocking_what_is_free_is_nothing() {
    let mut guest = Guest::new();
    let fh = guest.opendir(ROOT).unwrap();
    let by = |owner, lock| LkIn { fh, owner, lock, lk_flags: 1, padding: 0 };
    guest.lock(op::SETLK, ROOT, by(1, unlocked(ALL))).unwrap();
    guest.lock(op::SETLK, ROOT, by(1, ALL)).unwrap();
    let shared = FileLock { kind: libc::F_RDLCK as u32, ..ALL };
    assert_eq!(guest.lock(op::SETLK, ROOT, by(2, shared)), Err(libc::EAGAIN));
    guest.lock(op::SETLK, ROOT, by(1, shared)).unwrap();
    guest.lock(op::SETLK, ROOT, by(2, shared)).unwrap();
    guest.lock(op::SETLK, ROOT, by(1, unlocked(ALL))).unwrap();
    guest.lock(op::SETLK, ROOT, by(2, ALL)).unwrap();
}

#[test]
fn what_a_close_gives_up_is_in_nobodys_way_any_more() {
    let mut guest = Guest::new();
    let (node, fh) = guest.create(ROOT, "f", libc::O_RDWR).unwrap();
    let by = |owner, byte| {
        let lock = FileLock { start: byte, end: byte, ..ALL };
        LkIn { fh, owner, lock, ..LkIn::default() }
    };
    for owner in [1, 2] {
        guest.lock(op::SETLK, node, by(owner, owner)).unwrap();
    }
    let wait = |guest: &mut Guest, owner, byte| {
        let bytes = request(op::SETLKW, node, owner, by(owner, byte).as_slice());
        let Served::Waits(waiting) = guest.serve(bytes, 16).0 else { panic!("no wait") };
        waiting
    };
    let (first, second) = (wait(&mut guest, 1, 2), wait(&mut guest, 2, 1));
    assert!(guest.session.would_deadlock(&second, [&first].into_iter()));
    let flush = FlushIn { fh, lock_owner: 2, ..FlushIn::default() };
    guest.ask(op::FLUSH, node, &flush, &[]).unwrap();
    assert!(!guest.session.would_deadlock(&second, [&first].into_iter()));
}

#[test]
fn locks_of_an_open_file_end_when_it_is_closed() {
    let mut guest = Guest::new();
    let (node, first) = guest.create(ROOT, "f", libc::O_RDWR).unwrap();
    let second = guest.open(node, libc::O_RDWR).unwrap();
    let by =
        |fh, owner, start| LkIn { fh, owner, lock: FileLock { start, ..ALL }, ..LkIn::default() };
    let half = |lock: LkIn| LkIn { lock: FileLock { end: 9, ..lock.lock }, ..lock };
    guest.lock(op::SETLK, node, half(by(first, 1, 0))).unwrap();
    guest.lock(op::SETLK, node, by(second, 2, 10)).unwrap();
    // Linux closes a file of `F_OFD_SETLK` so: who closes it owns nothing, and nothing else is said.
    let close = |guest: &mut Guest, fh| {
        let flush = FlushIn { fh, lock_owner: 99, ..FlushIn::default() };
        guest.ask(op::FLUSH, node, &flush, &[]).unwrap();
        guest.ask(op::RELEASE, node, &ReleaseIn { fh, ..ReleaseIn::default() }, &[]).unwrap();
    };
    let before = guest.session.given_up();
    close(&mut guest, first);
    assert_ne!(guest.session.given_up(), before);
    assert_eq!(guest.holdings(), (1, 2));
    guest.lock(op::SETLK, node, half(by(second, 3, 0))).unwrap();
    assert_eq!(guest.lock(op::SETLK, node, by(second, 3, 0)), Err(libc::EAGAIN));
    close(&mut guest, second);
    assert_eq!(guest.holdings(), (1, 0));
}
