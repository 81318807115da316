//! What POSIX and Linux promise of files, one promise a test.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::*;
use crate::fs::wire::{
    CopyIn, FOPEN_KEEP_CACHE, FallocateIn, FileLock, ForgetIn, FsyncIn, LinkIn, LseekIn, LseekOut,
    MknodIn, ReleaseIn, Rename2In, RenameIn, SetxattrIn, StatfsOut, WRITE_CACHE, fattr,
};

const RDWR: i32 = libc::O_RDWR;

#[test]
fn a_file_is_made_written_read_and_closed() {
    let mut guest = Guest::new();
    let (node, fh) = guest.create(ROOT, "f", RDWR).unwrap();
    assert_eq!(guest.write(node, fh, 0, b"hello world"), Ok(11));
    assert_eq!(guest.write(node, fh, 6, b"there"), Ok(5));
    assert_eq!(guest.read(node, fh, 0, 100).unwrap(), b"hello there");
    assert_eq!(guest.read(node, fh, 11, 100).unwrap(), b"");
    assert_eq!(fs::read(guest.path("f")).unwrap(), b"hello there");
    assert_eq!(host_owner(&guest.path("f")).2, 0o644);
    guest.ask(op::FSYNC, node, &FsyncIn { fh, ..FsyncIn::default() }, &[]).unwrap();
    let release = ReleaseIn { fh, ..ReleaseIn::default() };
    guest.ask(op::RELEASE, node, &release, &[]).unwrap();
    assert_eq!(guest.read(node, fh, 0, 1), Err(libc::EBADF));
    assert_eq!(guest.ask(op::RELEASE, node, &release, &[]), Err(libc::EBADF));
}

#[test]
fn opening_obeys_excl_trunc_append_and_what_the_file_is() {
    let mut guest = Guest::new();
    fs::write(guest.path("f"), b"0123456789").unwrap();
    assert_eq!(guest.create(ROOT, "f", RDWR | libc::O_EXCL), Err(libc::EEXIST));
    let (node, fh) = guest.create(ROOT, "f", RDWR | libc::O_APPEND).unwrap();
    // As Linux says it of each write: the flag may be set and cleared while the file is open.
    let append = |write_flags| WriteIn {
        fh,
        size: 2,
        flags: (RDWR | libc::O_APPEND) as u32,
        write_flags,
        ..WriteIn::default()
    };
    guest.ask(op::WRITE, node, &append(0), b"ab").unwrap();
    assert_eq!(guest.read(node, fh, 8, 10).unwrap(), b"89ab");
    // A page of a mapping, and who has cleared it.
    guest.ask(op::WRITE, node, &append(WRITE_CACHE), b"cd").unwrap();
    assert_eq!(guest.write(node, fh, 2, b"ef"), Ok(2));
    assert_eq!(guest.read(node, fh, 0, 20).unwrap(), b"cdef456789ab");
    guest.open(node, RDWR | libc::O_TRUNC).unwrap();
    assert_eq!(guest.getattr(node).unwrap().attr.size, 0);
    assert_eq!(guest.open(node, 3), Err(libc::EINVAL));
    let dir = guest.mkdir(ROOT, "d").unwrap().nodeid;
    assert_eq!(guest.open(dir, libc::O_RDONLY), Err(libc::EISDIR));
    assert_eq!(guest.opendir(node), Err(libc::ENOTDIR));
    assert_eq!(guest.lookup(node, "x"), Err(libc::ENOTDIR));
    assert_eq!(guest.lookup(dir, "x"), Err(libc::ENOENT));
    assert_eq!(guest.create(ROOT, "d", RDWR), Err(libc::EISDIR));
}

#[test]
fn a_file_that_may_be_there_is_opened_or_made_while_the_host_makes_and_removes_it() {
    let mut guest = Guest::new();
    let (place, stop) = (guest.path("f"), AtomicBool::new(false));
    /// Also when a test panics: nobody would ever end the scope.
    struct Stop<'a>(&'a AtomicBool);
    impl Drop for Stop<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                let _ = fs::OpenOptions::new().write(true).create_new(true).open(&place);
                let _ = fs::remove_file(&place);
            }
        });
        let stop = Stop(&stop);
        let done: Vec<_> = (0..3000)
            .map(|_| {
                let made = guest.create(ROOT, "f", RDWR);
                made.map(|(node, fh)| {
                    let release = ReleaseIn { fh, ..ReleaseIn::default() };
                    guest.ask(op::RELEASE, node, &release, &[]).unwrap();
                    let forget = ForgetIn { nlookup: 1 };
                    guest.serve(request(op::FORGET, node, 0, forget.as_slice()), 0);
                })
            })
            .collect();
        drop(stop);
        let failed: Vec<_> = done.into_iter().filter_map(Result::err).collect();
        assert!(failed.is_empty(), "{failed:?}");
    });
    assert_eq!(guest.holdings(), (0, 0));
}

#[test]
fn offsets_beyond_32_bits_work_and_beyond_63_bits_are_refused() {
    let mut guest = Guest::new();
    let (node, fh) = guest.create(ROOT, "sparse", RDWR).unwrap();
    let far = (5 << 32) + 7;
    assert_eq!(guest.write(node, fh, far, b"far"), Ok(3));
    assert_eq!(guest.read(node, fh, far - 1, 10).unwrap(), b"\0far");
    assert_eq!(fs::metadata(guest.path("sparse")).unwrap().len(), far + 3);
    for offset in [1 << 63, u64::MAX] {
        assert_eq!(guest.write(node, fh, offset, b"x"), Err(libc::EINVAL));
        assert_eq!(guest.read(node, fh, offset, 1), Err(libc::EINVAL));
    }
    // The last byte there can be, on file systems that have it or not, is no panic.
    let _ = guest.write(node, fh, i64::MAX as u64, b"xy");
    let _ = guest.read(node, fh, i64::MAX as u64, 100);
}

#[test]
fn names_are_linked_renamed_exchanged_and_removed() {
    let mut guest = Guest::new();
    fs::write(guest.path("a"), b"A").unwrap();
    fs::write(guest.path("b"), b"B").unwrap();
    let a = guest.lookup(ROOT, "a").unwrap();
    let linked: EntryOut =
        object(&guest.ask(op::LINK, ROOT, &LinkIn { oldnodeid: a.nodeid }, &name("c")).unwrap());
    assert_eq!((linked.nodeid, linked.attr.nlink), (a.nodeid, 2));
    let exists = guest.ask(op::LINK, ROOT, &LinkIn { oldnodeid: a.nodeid }, &name("b"));
    assert_eq!(exists, Err(libc::EEXIST));
    let names = [name("a"), name("b")].concat();
    let two = |flags| Rename2In { newdir: ROOT, flags, padding: 0 };
    let kept = guest.ask(op::RENAME2, ROOT, &two(libc::RENAME_NOREPLACE), &names);
    assert_eq!(kept, Err(libc::EEXIST));
    guest.ask(op::RENAME2, ROOT, &two(libc::RENAME_EXCHANGE), &names).unwrap();
    assert_eq!(fs::read(guest.path("a")).unwrap(), b"B");
    assert_eq!(guest.ask(op::RENAME2, ROOT, &two(1 << 7), &names), Err(libc::EINVAL));
    guest.ask(op::RENAME, ROOT, &RenameIn { newdir: ROOT }, &names).unwrap();
    assert!(!guest.path("a").exists());
    assert_eq!(guest.lookup(ROOT, "a"), Err(libc::ENOENT));
    guest.call(op::UNLINK, ROOT, &name("b")).unwrap();
    assert_eq!(guest.call(op::UNLINK, ROOT, &name("b")), Err(libc::ENOENT));
    // The node means the file it always meant.
    assert_eq!(guest.getattr(a.nodeid).unwrap().attr.nlink, 1);
}

#[test]
fn a_directory_that_is_renamed_or_removed_keeps_its_number() {
    let mut guest = Guest::new();
    let (d, e) = (guest.mkdir(ROOT, "d").unwrap(), guest.mkdir(ROOT, "e").unwrap());
    guest.create(d.nodeid, "in", RDWR).unwrap();
    let names = [name("d"), name("moved")].concat();
    guest.ask(op::RENAME, ROOT, &RenameIn { newdir: e.nodeid }, &names).unwrap();
    assert!(guest.path("e/moved/in").exists());
    guest.lookup(d.nodeid, "in").unwrap();
    assert_eq!(guest.call(op::RMDIR, e.nodeid, &name("moved")), Err(libc::ENOTEMPTY));
    assert_eq!(guest.call(op::UNLINK, e.nodeid, &name("moved")), Err(libc::EISDIR));
    guest.call(op::UNLINK, d.nodeid, &name("in")).unwrap();
    guest.call(op::RMDIR, e.nodeid, &name("moved")).unwrap();
    assert_eq!(guest.create(d.nodeid, "x", RDWR), Err(libc::ENOENT));
    let fh = guest.opendir(d.nodeid).unwrap();
    let body = ReadIn { fh, size: 4096, ..ReadIn::default() };
    assert_eq!(guest.ask(op::READDIR, d.nodeid, &body, &[]), Err(libc::ENOENT));
}

#[test]
fn a_removed_file_lives_as_long_as_it_is_open() {
    let mut guest = Guest::new();
    let (node, fh) = guest.create(ROOT, "f", RDWR).unwrap();
    guest.write(node, fh, 0, b"still").unwrap();
    guest.call(op::UNLINK, ROOT, &name("f")).unwrap();
    assert_eq!(guest.read(node, fh, 0, 9).unwrap(), b"still");
    assert_eq!(guest.getattr(node).unwrap().attr.nlink, 0);
    let size = SetattrIn { valid: fattr::SIZE | fattr::FH, fh, size: 2, ..SetattrIn::default() };
    assert_eq!(guest.setattr(node, size).unwrap().attr.size, 2);
}

#[test]
fn symbolic_links_are_made_and_read_and_never_followed() {
    let mut guest = Guest::new();
    let target = "../../../etc/passwd";
    let made = guest.call(op::SYMLINK, ROOT, &[name("l"), name(target)].concat()).unwrap();
    let made: EntryOut = object(&made);
    assert_eq!(made.attr.mode & libc::S_IFMT, libc::S_IFLNK);
    assert_eq!(guest.call(op::READLINK, made.nodeid, &[]).unwrap(), target.as_bytes());
    assert_eq!(guest.open(made.nodeid, libc::O_RDONLY), Err(libc::ELOOP));
    assert_eq!(guest.lookup(made.nodeid, "x"), Err(libc::ENOTDIR));
    assert_eq!(guest.create(ROOT, "l", RDWR), Err(libc::ELOOP));
    assert_eq!(guest.call(op::READLINK, ROOT, &[]), Err(libc::EINVAL));
    // Its own times, and a second name for it.
    let mtime = SetattrIn { valid: fattr::MTIME, mtime: 77, ..SetattrIn::default() };
    assert_eq!(guest.setattr(made.nodeid, mtime).unwrap().attr.mtime, 77);
    guest.ask(op::LINK, ROOT, &LinkIn { oldnodeid: made.nodeid }, &name("m")).unwrap();
    assert!(fs::symlink_metadata(guest.path("m")).unwrap().is_symlink());
    let mode = SetattrIn { valid: fattr::MODE, mode: 0o777, ..SetattrIn::default() };
    assert_eq!(guest.setattr(made.nodeid, mode), Err(libc::EOPNOTSUPP));
}

#[test]
fn modes_sizes_and_times_are_set_to_the_nanosecond() {
    let mut guest = Guest::new();
    let (node, _) = guest.create(ROOT, "f", RDWR).unwrap();
    let set = SetattrIn {
        valid: fattr::MODE | fattr::SIZE | fattr::ATIME | fattr::MTIME,
        mode: 0o100_751,
        size: 12345,
        atime: 1_000_000_000,
        atimensec: 1,
        mtime: (-5i64) as u64,
        mtimensec: 999_999_999,
        ..SetattrIn::default()
    };
    let attr = guest.setattr(node, set).unwrap().attr;
    assert_eq!((attr.mode, attr.size), (0o100_751, 12345));
    assert_eq!((attr.atime, attr.atimensec), (1_000_000_000, 1));
    assert_eq!((attr.mtime as i64, attr.mtimensec), (-5, 999_999_999));
    // One of them only, and now.
    let now = SetattrIn { valid: fattr::MTIME | fattr::MTIME_NOW, ..SetattrIn::default() };
    let attr = guest.setattr(node, now).unwrap().attr;
    assert!(attr.mtime > 1_600_000_000 && attr.atime == 1_000_000_000, "{attr:?}");
    for size in [1 << 63, u64::MAX] {
        let set = SetattrIn { valid: fattr::SIZE, size, ..SetattrIn::default() };
        assert_eq!(guest.setattr(node, set), Err(libc::EINVAL));
    }
}

#[test]
fn fifos_and_sockets_are_made_and_devices_are_not() {
    let mut guest = Guest::new();
    let mut mknod = |mode: u32, rdev, text: &str| {
        let body = MknodIn { mode: mode | 0o600, rdev, ..MknodIn::default() };
        guest.ask(op::MKNOD, ROOT, &body, &name(text)).map(|reply| object::<EntryOut>(&reply))
    };
    let fifo = mknod(libc::S_IFIFO, 0, "fifo").unwrap();
    mknod(libc::S_IFSOCK, 0, "socket").unwrap();
    mknod(libc::S_IFREG, 0, "file").unwrap();
    for kind in [libc::S_IFBLK, libc::S_IFCHR] {
        assert_eq!(mknod(kind, 0x0103, "device"), Err(libc::EPERM));
    }
    assert_eq!(mknod(libc::S_IFDIR, 0, "dir"), Err(libc::EPERM));
    assert_eq!(guest.open(fifo.nodeid, libc::O_RDONLY), Err(libc::ENXIO));
    assert!(fs::metadata(guest.path("fifo")).unwrap().file_type().is_fifo());
}

#[test]
fn a_nameless_file_gets_a_name_when_it_is_ready() {
    let mut guest = Guest::new();
    let body = CreateIn { flags: RDWR as u32, mode: 0o100_600, ..CreateIn::default() };
    let made: CreateOut = object(&guest.ask(op::TMPFILE, ROOT, &body, &name("x")).unwrap());
    assert_eq!(made.entry.attr.nlink, 0);
    guest.write(made.entry.nodeid, made.open.fh, 0, b"ready").unwrap();
    assert_eq!(fs::read_dir(guest.dir.path()).unwrap().count(), 0);
    let link = LinkIn { oldnodeid: made.entry.nodeid };
    guest.ask(op::LINK, ROOT, &link, &name("named")).unwrap();
    assert_eq!(fs::read(guest.path("named")).unwrap(), b"ready");
}

#[test]
fn whoever_changes_a_file_takes_its_set_user_id_bits_away() {
    let mut guest = Guest::new();
    let (node, fh) = guest.create(ROOT, "f", RDWR).unwrap();
    let mode = |guest: &Guest| host_owner(&guest.path("f")).2;
    let arm = |guest: &mut Guest, bits| {
        let set = SetattrIn { valid: fattr::MODE, mode: bits, ..SetattrIn::default() };
        guest.setattr(node, set).unwrap();
        assert_eq!(mode(guest), bits);
    };
    arm(&mut guest, 0o6755);
    let body = WriteIn { fh, size: 1, write_flags: 1 << 2, ..WriteIn::default() };
    guest.ask(op::WRITE, node, &body, b"x").unwrap();
    assert_eq!(mode(&guest), 0o755);
    arm(&mut guest, 0o6745);
    let size = SetattrIn { valid: fattr::SIZE | 1 << 11, ..SetattrIn::default() };
    guest.setattr(node, size).unwrap();
    // Without execution by the group it means something else.
    assert_eq!(mode(&guest), 0o2745);
    arm(&mut guest, 0o4711);
    let body = OpenIn { flags: (RDWR | libc::O_TRUNC) as u32, open_flags: 1 };
    guest.ask(op::OPEN, node, &body, &[]).unwrap();
    assert_eq!(mode(&guest), 0o711);
    // Without a flag, as Linux has none for them: by who asks.
    let (other, other_fh) = guest.create(ROOT, "other", RDWR).unwrap();
    guest.write(other, other_fh, 0, b"data").unwrap();
    let reserve = FallocateIn { fh, length: 9, ..FallocateIn::default() };
    let copy =
        CopyIn { fh_in: other_fh, nodeid_out: node, fh_out: fh, len: 4, ..CopyIn::default() };
    for (user, left) in [(0, 0o4711), (1000, 0o711)] {
        for (opcode, node, body) in [
            (op::FALLOCATE, node, reserve.as_slice()),
            (op::COPY_FILE_RANGE, other, copy.as_slice()),
        ] {
            arm(&mut guest, 0o4711);
            guest.user = (user, user);
            guest.call(opcode, node, body).unwrap();
            guest.user = (0, 0);
            // Where husk is not root's, some file systems do it by themselves, whoever of the guest's asks.
            if is_root() || user != 0 {
                assert_eq!(mode(&guest), left, "{opcode} by {user}");
            }
        }
    }
}

#[test]
fn extended_attributes_are_kept_listed_and_removed() {
    let mut guest = Guest::new();
    let (node, _) = guest.create(ROOT, "f", RDWR).unwrap();
    let set = |text: &str, value: &[u8], flags| {
        let body = SetxattrIn { size: value.len() as u32, flags };
        [body.as_slice(), &name(text), value].concat()
    };
    guest.call(op::SETXATTR, node, &set("user.a", b"one\0two", 0)).unwrap();
    let again = guest.call(op::SETXATTR, node, &set("user.a", b"", libc::XATTR_CREATE as u32));
    assert_eq!(again, Err(libc::EEXIST));
    assert_eq!(guest.getxattr(node, "user.a", 100).unwrap(), b"one\0two");
    assert_eq!(guest.getxattr(node, "user.a", 0).unwrap(), [7, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(guest.getxattr(node, "user.a", 3), Err(libc::ERANGE));
    assert_eq!(guest.getxattr(node, "user.b", 3), Err(libc::ENODATA));
    let list = guest.ask(op::LISTXATTR, node, &GetxattrIn { size: 4096, padding: 0 }, &[]).unwrap();
    assert!(list.windows(7).any(|w| w == b"user.a\0"), "{list:?}");
    let acl = guest.call(op::SETXATTR, node, &set("system.posix_acl_access", b"x", 0));
    assert_eq!(acl, Err(libc::EOPNOTSUPP));
    // A size that the body does not have.
    let short = [SetxattrIn { size: 99, flags: 0 }.as_slice(), &name("user.c")].concat();
    assert_eq!(guest.call(op::SETXATTR, node, &short), Err(libc::EINVAL));
    guest.call(op::REMOVEXATTR, node, &name("user.a")).unwrap();
    assert_eq!(guest.getxattr(node, "user.a", 100), Err(libc::ENODATA));
}

#[test]
fn space_is_reserved_punched_and_searched() {
    let mut guest = Guest::new();
    let (node, fh) = guest.create(ROOT, "f", RDWR).unwrap();
    guest.write(node, fh, 0, &[1; 1 << 18]).unwrap();
    let falloc = |mode: i32, offset, length| FallocateIn {
        fh,
        offset,
        length,
        mode: mode as u32,
        padding: 0,
    };
    let punch = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
    guest.ask(op::FALLOCATE, node, &falloc(punch, 65536, 65536), &[]).unwrap();
    assert_eq!(guest.read(node, fh, 65536, 2).unwrap(), [0, 0]);
    let mut seek = |offset, whence: i32| {
        let body = LseekIn { fh, offset, whence: whence as u32, padding: 0 };
        guest.ask(op::LSEEK, node, &body, &[]).map(|reply| object::<LseekOut>(&reply).offset)
    };
    assert_eq!(seek(0, libc::SEEK_HOLE), Ok(65536));
    assert_eq!(seek(65536, libc::SEEK_DATA), Ok(131_072));
    assert_eq!(seek(1 << 18, libc::SEEK_DATA), Err(libc::ENXIO));
    assert_eq!(seek(0, libc::SEEK_SET), Err(libc::EINVAL));
    guest.ask(op::FALLOCATE, node, &falloc(0, 1 << 18, 4096), &[]).unwrap();
    assert_eq!(guest.getattr(node).unwrap().attr.size, (1 << 18) + 4096);
    assert!(guest.ask(op::FALLOCATE, node, &falloc(0, u64::MAX, 1), &[]).is_err());
}

#[test]
fn ranges_are_copied_on_the_host() {
    let mut guest = Guest::new();
    let (a, fh_a) = guest.create(ROOT, "a", RDWR).unwrap();
    let (b, fh_b) = guest.create(ROOT, "b", RDWR).unwrap();
    guest.write(a, fh_a, 0, b"0123456789").unwrap();
    let copy = CopyIn {
        fh_in: fh_a,
        off_in: 2,
        nodeid_out: b,
        fh_out: fh_b,
        off_out: 4,
        len: u64::MAX,
        flags: 0,
    };
    let done: WriteOut = object(&guest.ask(op::COPY_FILE_RANGE, a, &copy, &[]).unwrap());
    assert_eq!(done.size, 8);
    assert_eq!(fs::read(guest.path("b")).unwrap(), b"\0\0\0\x0023456789");
    let forged = CopyIn { fh_out: 999, ..copy };
    assert_eq!(guest.ask(op::COPY_FILE_RANGE, a, &forged, &[]), Err(libc::EBADF));
}

#[test]
fn what_the_host_changes_is_seen() {
    let mut guest = Guest::new();
    fs::write(guest.path("f"), b"old").unwrap();
    let node = guest.lookup(ROOT, "f").unwrap().nodeid;
    let fh = guest.open(node, libc::O_RDONLY).unwrap();
    fs::write(guest.path("f"), b"newer").unwrap();
    fs::set_permissions(guest.path("f"), fs::Permissions::from_mode(0o400)).unwrap();
    let attr = guest.getattr(node).unwrap();
    assert_eq!((attr.attr.size, attr.attr.mode & 0o777, attr.attr_valid), (5, 0o400, 1));
    assert_eq!(guest.read(node, fh, 0, 9).unwrap(), b"newer");
    // Replaced, it is another file.
    fs::write(guest.path("g"), b"g").unwrap();
    fs::rename(guest.path("g"), guest.path("f")).unwrap();
    assert_ne!(guest.lookup(ROOT, "f").unwrap().nodeid, node);
}

#[test]
fn the_file_system_and_access_are_asked_of_the_host() {
    let mut guest = Guest::new();
    let statfs: StatfsOut = object(&guest.call(op::STATFS, ROOT, &[]).unwrap());
    assert!(statfs.blocks > statfs.bfree && statfs.bsize >= 512 && statfs.namelen >= 143);
    guest.call(op::ACCESS, ROOT, &[7, 0, 0, 0, 0, 0, 0, 0]).unwrap();
    assert_eq!(guest.call(op::ACCESS, ROOT, &[0xff; 8]), Err(libc::EINVAL));
    guest.call(op::SYNCFS, ROOT, &[0; 8]).unwrap();
    let fh = guest.opendir(ROOT).unwrap();
    guest.ask(op::FSYNCDIR, ROOT, &FsyncIn { fh, ..FsyncIn::default() }, &[]).unwrap();
    for unknown in [0, 7, 19, 39, 40, 48, 52, 4096, u32::MAX] {
        assert_eq!(guest.call(unknown, ROOT, &[0; 64]), Err(libc::ENOSYS), "{unknown}");
    }
}

#[test]
fn a_second_mount_begins_anew_and_so_does_one_after_an_unmount() {
    let mut guest = Guest::new();
    let (node, fh) = guest.create(ROOT, "f", RDWR).unwrap();
    guest.call(op::INIT, 0, &init_body()).unwrap();
    assert_eq!(guest.getattr(node), Err(libc::ENOENT));
    assert_eq!(guest.read(node, fh, 0, 1), Err(libc::EBADF));
    guest.lookup(ROOT, "f").unwrap();
    guest.call(op::DESTROY, 0, &[]).unwrap();
    assert_eq!(guest.holdings(), (0, 0));
    assert_eq!(guest.lookup(ROOT, "f"), Err(libc::EIO));
}

#[test]
fn a_file_that_has_not_changed_since_it_was_opened_need_not_be_read_again() {
    let kept = |guest: &mut Guest, node| {
        let opened = guest.ask(op::OPEN, node, &OpenIn::default(), &[]).unwrap();
        object::<OpenOut>(&opened).open_flags & FOPEN_KEEP_CACHE != 0
    };
    let mut guest = Guest::new();
    fs::write(guest.path("f"), b"").unwrap();
    let node = guest.lookup(ROOT, "f").unwrap().nodeid;
    assert_eq!([(); 2].map(|()| kept(&mut guest, node)), [false; 2], "it is too new to tell");

    // The time of a change cannot be set: one that was there long before this test, whoever made this
    // machine and when.
    let own = std::env::current_exe().unwrap();
    let Some(old) =
        [Path::new("/etc/passwd"), &own, Path::new("/bin/sh")].into_iter().find_map(old)
    else {
        eprintln!("SKIPPED: no file here is old enough to be believed");
        return;
    };
    let (directory, name) = (old.parent().unwrap(), old.file_name().unwrap().to_str().unwrap());
    let options = ShareOptions { read_only: true, ..ShareOptions::default() };
    let mut guest = Guest::of(Share::open(directory, options).unwrap(), TempDir::new().unwrap());
    let node = guest.lookup(ROOT, name).unwrap().nodeid;
    assert_eq!([(); 3].map(|()| kept(&mut guest, node)), [false, true, true]);
    // The guest has forgotten it meanwhile, and its pages with it.
    let forget = ForgetIn { nlookup: 1 };
    guest.serve(request(op::FORGET, node, 0, forget.as_slice()), 0);
    let node = guest.lookup(ROOT, name).unwrap().nodeid;
    assert!(!kept(&mut guest, node));
}

#[test]
fn each_cache_policy_says_what_the_guest_may_keep() {
    for (cache, seconds, open, dir) in
        [(Cache::Auto, 1, 0, 0), (Cache::Never, 0, 1, 0), (Cache::Always, 86400, 2, 10)]
    {
        let mut guest = Guest::with(ShareOptions { cache, ..ShareOptions::default() });
        let (node, _) = guest.create(ROOT, "f", RDWR).unwrap();
        let entry = guest.lookup(ROOT, "f").unwrap();
        assert_eq!((entry.entry_valid, entry.attr_valid), (seconds, seconds));
        assert_eq!(Duration::from_secs(seconds), cache.lifetime());
        let body = OpenIn::default();
        let opened: OpenOut = object(&guest.ask(op::OPEN, node, &body, &[]).unwrap());
        let listed: OpenOut = object(&guest.ask(op::OPENDIR, ROOT, &body, &[]).unwrap());
        assert_eq!((opened.open_flags, listed.open_flags), (open, dir));
        // That there is nothing is believed as long as what there is.
        match guest.call(op::LOOKUP, ROOT, &name("missing")) {
            Ok(reply) => {
                let entry: EntryOut = object(&reply);
                assert_eq!((entry.nodeid, entry.entry_valid), (0, seconds));
                assert_ne!(cache, Cache::Never);
            }
            Err(error) => assert_eq!((cache, error), (Cache::Never, libc::ENOENT)),
        }
    }
}

#[test]
fn nothing_changes_in_a_read_only_share() {
    let dir = TempDir::new().unwrap();
    fs::write(dir.path().join("f"), b"keep").unwrap();
    fs::create_dir(dir.path().join("d")).unwrap();
    symlink("f", dir.path().join("l")).unwrap();
    let times = || {
        ["", "f", "d", "l"].map(|name| {
            let meta = fs::symlink_metadata(dir.path().join(name)).unwrap();
            (meta.ctime(), meta.ctime_nsec(), meta.mtime_nsec(), meta.mode(), meta.size())
        })
    };
    let before = times();
    let path = dir.path().to_owned();
    let share = Arc::new(
        Share::open(&path, ShareOptions { read_only: true, ..ShareOptions::default() }).unwrap(),
    );
    let session = Session::of(share).unwrap();
    let (other, user) = (TempDir::new().unwrap(), (0, 0));
    let mut guest = Guest { session, dir: other, user, unique: 0 };
    let answer: InitOut = object(&guest.call(op::INIT, 0, &init_body()).unwrap());
    // Locks would hold up those who may write.
    assert_eq!(answer.flags & (1 << 1 | 1 << 10), 0);
    let f = guest.lookup(ROOT, "f").unwrap().nodeid;
    let fh = guest.open(f, libc::O_RDONLY).unwrap();
    assert_eq!(guest.read(f, fh, 0, 9).unwrap(), b"keep");
    for flags in [libc::O_WRONLY, RDWR, libc::O_TRUNC, RDWR | libc::O_APPEND] {
        assert_eq!(guest.open(f, flags), Err(libc::EROFS), "{flags:#x}");
        assert_eq!(guest.create(ROOT, "f", flags), Err(libc::EROFS));
    }
    assert_eq!(guest.create(ROOT, "new", libc::O_RDONLY), Err(libc::EROFS));
    assert_eq!(guest.write(f, fh, 0, b"x"), Err(libc::EROFS));
    let two = [name("f"), name("x")].concat();
    let requests: [(u32, Vec<u8>); 14] = [
        (
            op::SETATTR,
            SetattrIn { valid: fattr::MTIME_NOW | fattr::MTIME, ..Default::default() }
                .as_slice()
                .to_vec(),
        ),
        (op::SYMLINK, two.clone()),
        (
            op::MKNOD,
            [MknodIn { mode: 0o100_644, ..Default::default() }.as_slice(), &name("n")].concat(),
        ),
        (op::MKDIR, [MkdirIn::default().as_slice(), &name("n")].concat()),
        (op::UNLINK, name("f")),
        (op::RMDIR, name("d")),
        (op::RENAME, [RenameIn { newdir: ROOT }.as_slice(), &two].concat()),
        (op::RENAME2, [Rename2In { newdir: ROOT, ..Default::default() }.as_slice(), &two].concat()),
        (op::LINK, [LinkIn { oldnodeid: f }.as_slice(), &name("n")].concat()),
        (
            op::SETXATTR,
            [SetxattrIn { size: 1, flags: 0 }.as_slice(), &name("user.a"), b"x"].concat(),
        ),
        (op::REMOVEXATTR, name("user.a")),
        (
            op::TMPFILE,
            [CreateIn { flags: 2, ..Default::default() }.as_slice(), &name("n")].concat(),
        ),
        (op::FALLOCATE, FallocateIn { fh, length: 1, ..Default::default() }.as_slice().to_vec()),
        (
            op::COPY_FILE_RANGE,
            CopyIn { fh_in: fh, nodeid_out: f, fh_out: fh, len: 1, ..Default::default() }
                .as_slice()
                .to_vec(),
        ),
    ];
    for (opcode, body) in &requests {
        for node in [ROOT, f] {
            assert_eq!(guest.call(*opcode, node, body), Err(libc::EROFS), "{opcode}");
        }
    }
    assert_eq!(guest.call(op::ACCESS, f, &[2, 0, 0, 0, 0, 0, 0, 0]), Err(libc::EROFS));
    let lock = FileLock { end: 10, kind: 1, ..FileLock::default() };
    let lock = LkIn { fh, owner: 1, lock, ..LkIn::default() };
    for opcode in [op::GETLK, op::SETLK, op::SETLKW] {
        assert_eq!(guest.lock(opcode, f, lock), Err(libc::ENOSYS));
    }
    guest.names(ROOT, 4096);
    assert_eq!(times(), before);
}
