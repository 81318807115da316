//! Guests that want out, and guests that want husk to fall.

use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use proptest::prelude::*;

use super::*;
use crate::fs::wire::{FallocateIn, LinkIn, MknodIn, RenameIn, fattr};

#[test]
fn no_name_leads_anywhere_but_into_its_directory() {
    let mut guest = Guest::new();
    let dir = guest.mkdir(ROOT, "d").unwrap().nodeid;
    guest.create(dir, "f", libc::O_RDWR).unwrap();
    for bad in ["", ".", "..", "/", "/etc/passwd", "d/f", "../d", "f/", "./f"] {
        assert_eq!(guest.lookup(ROOT, bad), Err(libc::EINVAL), "{bad:?}");
        assert_eq!(guest.mkdir(ROOT, bad), Err(libc::EINVAL), "{bad:?}");
        assert_eq!(guest.create(ROOT, bad, libc::O_RDWR), Err(libc::EINVAL), "{bad:?}");
        for opcode in [op::UNLINK, op::RMDIR] {
            assert_eq!(guest.call(opcode, ROOT, &name(bad)), Err(libc::EINVAL), "{bad:?}");
        }
        let to = RenameIn { newdir: ROOT };
        for pair in [[name("d"), name(bad)].concat(), [name(bad), name("x")].concat()] {
            assert_eq!(guest.ask(op::RENAME, ROOT, &to, &pair), Err(libc::EINVAL), "{bad:?}");
        }
        let link = LinkIn { oldnodeid: dir };
        assert_eq!(guest.ask(op::LINK, ROOT, &link, &name(bad)), Err(libc::EINVAL));
        let symlink = [name(bad), name("x")].concat();
        assert_eq!(guest.call(op::SYMLINK, ROOT, &symlink), Err(libc::EINVAL));
    }
    // What follows a NUL is not of the name, and without one there is none.
    assert_eq!(guest.call(op::LOOKUP, ROOT, b"d\0/../..\0").map(|r| r.len()), Ok(128));
    assert_eq!(guest.call(op::LOOKUP, ROOT, b"d"), Err(libc::EINVAL));
    assert_eq!(guest.call(op::LOOKUP, ROOT, &[b'x'; 5000]), Err(libc::EINVAL));
    assert_eq!(guest.lookup(ROOT, &"x".repeat(256)), Err(libc::ENAMETOOLONG));
    assert_eq!(guest.lookup(ROOT, &"x".repeat(3000)), Err(libc::ENAMETOOLONG));
}

#[test]
fn links_of_the_hosts_are_not_followed_whatever_they_are() {
    let mut guest = Guest::new();
    let outside = TempDir::new().unwrap();
    fs::write(outside.path().join("secret"), b"secret").unwrap();
    symlink(outside.path(), guest.path("absolute")).unwrap();
    symlink("../..", guest.path("up")).unwrap();
    symlink("/proc/self/root", guest.path("magic")).unwrap();
    symlink(outside.path().join("secret"), guest.path("file")).unwrap();
    for link in ["absolute", "up", "magic"] {
        let entry = guest.lookup(ROOT, link).unwrap();
        assert_eq!(entry.attr.mode & libc::S_IFMT, libc::S_IFLNK);
        assert_eq!(guest.lookup(entry.nodeid, "secret"), Err(libc::ENOTDIR), "{link}");
        assert_eq!(guest.mkdir(entry.nodeid, "x"), Err(libc::ENOTDIR));
        assert_eq!(guest.opendir(entry.nodeid), Err(libc::ENOTDIR));
    }
    let file = guest.lookup(ROOT, "file").unwrap().nodeid;
    assert_eq!(guest.open(file, libc::O_RDONLY), Err(libc::ELOOP));
    assert_eq!(guest.create(ROOT, "file", libc::O_RDWR | libc::O_TRUNC), Err(libc::ELOOP));
    let cut = SetattrIn { valid: fattr::SIZE, ..SetattrIn::default() };
    assert_eq!(guest.setattr(file, cut), Err(libc::ELOOP));
    assert_eq!(fs::read(outside.path().join("secret")).unwrap(), b"secret");
}

#[test]
fn a_proc_is_no_share_and_none_is_entered() {
    let refused = Share::open(Path::new("/proc"), ShareOptions::default()).unwrap_err();
    assert!(matches!(refused, ShareError::Proc(_)) && refused.to_string().contains("/proc"));
    let inside = Share::open(Path::new("/proc/self/fd"), ShareOptions::default());
    assert!(matches!(inside.unwrap_err(), ShareError::Proc(_)));
    let options = ShareOptions { read_only: true, ..ShareOptions::default() };
    let share = Arc::new(Share::open(Path::new("/"), options).unwrap());
    let (dir, user) = (TempDir::new().unwrap(), (0, 0));
    let mut guest = Guest { session: Session::of(share).unwrap(), dir, user, unique: 0 };
    guest.call(op::INIT, 0, &init_body()).unwrap();
    assert_eq!(guest.lookup(ROOT, "proc"), Err(libc::EACCES));
    guest.lookup(ROOT, "etc").unwrap();
    // Other file systems are entered, and their files are not taken for those of this one.
    let here = fs::metadata("/").unwrap().dev();
    for place in ["dev", "sys", "run", "etc"] {
        let meta = fs::metadata(Path::new("/").join(place)).unwrap();
        let ino = guest.lookup(ROOT, place).unwrap().attr.ino;
        assert_eq!(ino == meta.ino(), meta.dev() == here, "{place}");
        assert_eq!(ino << 16, meta.ino() << 16, "{place}");
    }
    for (path, wanted) in [("/no/such", "No such file"), ("/etc/passwd", "Not a directory")] {
        let error = Share::open(Path::new(path), options).unwrap_err().to_string();
        assert!(error.contains(path) && error.contains(wanted), "{error}");
    }
}

#[test]
fn forged_and_forgotten_numbers_are_nobodys() {
    let mut guest = Guest::new();
    let (node, fh) = guest.create(ROOT, "f", libc::O_RDWR).unwrap();
    let dir = guest.opendir(ROOT).unwrap();
    for forged in [0, node + 1, 1 << 32, u64::MAX] {
        assert_eq!(guest.getattr(forged), Err(libc::ENOENT), "{forged}");
        assert_eq!(guest.lookup(forged, "f"), Err(libc::ENOENT));
        assert_eq!(guest.open(forged, 0), Err(libc::ENOENT));
        assert_eq!(guest.read(forged, fh, 0, 1), Err(libc::EBADF));
    }
    for forged in [0, 99, u64::MAX, dir] {
        assert_eq!(guest.read(node, forged, 0, 1), Err(libc::EBADF), "{forged}");
        assert_eq!(guest.write(node, forged, 0, b"x"), Err(libc::EBADF));
        let falloc = FallocateIn { fh: forged, length: 1, ..FallocateIn::default() };
        assert_eq!(guest.ask(op::FALLOCATE, node, &falloc, &[]), Err(libc::EBADF));
    }
    // A file's handle is no directory's.
    let body = ReadIn { fh, size: 4096, ..ReadIn::default() };
    assert_eq!(guest.ask(op::READDIR, ROOT, &body, &[]), Err(libc::EBADF));
    // The share's directory cannot be forgotten.
    for opcode in [op::FORGET, op::BATCH_FORGET] {
        let body = [1u64, ROOT, u64::MAX].map(u64::to_le_bytes).concat();
        guest.serve(request(opcode, ROOT, 0, &body), 0);
    }
    guest.getattr(ROOT).unwrap();
}

#[test]
fn a_guest_gets_so_many_files_and_no_more() {
    let mut guest = Guest::with(ShareOptions { max_files: 16, ..ShareOptions::default() });
    for n in 0..20 {
        fs::write(guest.path(&n.to_string()), b"").unwrap();
    }
    let found: Vec<_> = (0..20).map(|n| guest.lookup(ROOT, &n.to_string())).collect();
    assert_eq!(found.iter().filter(|found| found.is_ok()).count(), 12);
    assert_eq!(found[19], Err(libc::ENFILE));
    // Listed all the same, without numbers.
    assert_eq!(guest.names(ROOT, 4096).len(), 22);
    let node = found[0].unwrap().nodeid;
    let opened: Vec<_> = (0..6).map(|_| guest.open(node, 0)).collect();
    assert_eq!(opened.iter().filter(|opened| opened.is_ok()).count(), 3);
    assert_eq!(opened[5], Err(libc::ENFILE));
    assert_eq!(guest.create(ROOT, "new", libc::O_RDWR), Err(libc::ENFILE));
    assert!(!guest.path("new").exists());
    let before = guest.holdings();
    assert_eq!(before, (12, 4));
    guest.call(op::DESTROY, 0, &[]).unwrap();
    assert_eq!(guest.holdings(), (0, 0));
}

#[test]
fn what_a_guest_has_no_room_to_know_is_not_made() {
    let mut guest = Guest::with(ShareOptions { max_files: 16, ..ShareOptions::default() });
    for n in 0..12 {
        fs::write(guest.path(&n.to_string()), b"").unwrap();
        guest.lookup(ROOT, &n.to_string()).unwrap();
    }
    fs::write(guest.path("unknown"), b"").unwrap();
    let before = fs::read_dir(guest.dir.path()).unwrap().count();
    assert_eq!(guest.mkdir(ROOT, "new").unwrap_err(), libc::ENFILE);
    assert_eq!(guest.create(ROOT, "new", libc::O_RDWR), Err(libc::ENFILE));
    assert_eq!(guest.create(ROOT, "unknown", libc::O_RDWR), Err(libc::ENFILE));
    let node = MknodIn { mode: libc::S_IFREG | 0o644, ..MknodIn::default() };
    assert_eq!(guest.ask(op::MKNOD, ROOT, &node, &name("new")), Err(libc::ENFILE));
    let link = [name("new"), name("0")].concat();
    assert_eq!(guest.call(op::SYMLINK, ROOT, &link), Err(libc::ENFILE));
    let body = CreateIn { flags: libc::O_RDWR as u32, mode: 0o644, ..CreateIn::default() };
    assert_eq!(guest.ask(op::TMPFILE, ROOT, &body, &name("")), Err(libc::ENFILE));
    assert_eq!(fs::read_dir(guest.dir.path()).unwrap().count(), before);
    // What it knows needs no more room, by whatever name.
    let known = guest.lookup(ROOT, "3").unwrap();
    assert_eq!(guest.create(ROOT, "3", libc::O_RDWR).unwrap().0, known.nodeid);
    let link = LinkIn { oldnodeid: known.nodeid };
    let linked: EntryOut = object(&guest.ask(op::LINK, ROOT, &link, &name("also 3")).unwrap());
    assert_eq!(linked.nodeid, known.nodeid);
    // With one forgotten there is room for one.
    guest.serve(request(op::FORGET, known.nodeid + 1, 0, &1u64.to_le_bytes()), 0);
    guest.mkdir(ROOT, "new").unwrap();
}

#[test]
fn lengths_that_lie_and_replies_without_room_are_refused_and_the_next_request_is_served() {
    let mut guest = Guest::new();
    let (node, fh) = guest.create(ROOT, "f", libc::O_RDWR).unwrap();
    let known = guest.holdings();
    let good = request(op::LOOKUP, ROOT, 5, &name("f"));
    let header = |reply: &[u8]| object::<OutHeader>(reply);
    for len in [0u32, 39, good.len() as u32 + 1, u32::MAX] {
        let mut lying = good.clone();
        lying[..4].copy_from_slice(&len.to_le_bytes());
        let (_, reply) = guest.serve(lying, 200);
        assert_eq!(header(&reply), OutHeader { len: 16, error: -libc::EINVAL, unique: 5 });
    }
    for room in [0, 1, 15] {
        assert!(matches!(guest.serve(good.clone(), room).0, Served::Done(0)));
    }
    for room in [16, 143] {
        assert_eq!(header(&guest.serve(good.clone(), room).1).error, -libc::EINVAL);
    }
    assert_eq!(guest.holdings(), known);
    for short in [0, 1, 39] {
        assert!(matches!(guest.serve(good[..short].to_vec(), 0).0, Served::Done(0)));
        assert_eq!(header(&guest.serve(good[..short].to_vec(), 16).1).error, -libc::EINVAL);
    }
    // A body as large as none is, and data that were promised only.
    let huge = request(op::SETXATTR, node, 6, &vec![0; 1 << 20]);
    assert_eq!(header(&guest.serve(huge, 16).1).error, -libc::E2BIG);
    let body = WriteIn { fh, size: 100, ..WriteIn::default() };
    assert_eq!(guest.ask(op::WRITE, node, &body, &[1; 99]), Err(libc::EINVAL));
    assert_eq!(guest.write(node, fh, 0, &vec![7; 2 << 20]), Err(libc::EINVAL));
    // As much is read as there is room for, whatever was asked for.
    guest.write(node, fh, 0, &[7; 100]).unwrap();
    let body = ReadIn { fh, size: u32::MAX, ..ReadIn::default() };
    let (served, reply) = guest.serve(request(op::READ, node, 7, body.as_slice()), 16 + 10);
    assert!(matches!(served, Served::Done(26)) && reply[16..] == [7; 10]);
    assert!(guest.session.entries.len() <= 64 << 10);
    guest.lookup(ROOT, "f").unwrap();
}

#[test]
fn what_is_renamed_to_and_fro_is_never_found_outside() {
    let mut guest = Guest::new();
    let outside = TempDir::new().unwrap();
    fs::write(outside.path().join("f"), b"outside").unwrap();
    fs::create_dir(guest.path("real")).unwrap();
    fs::write(guest.path("real/f"), b"inside").unwrap();
    symlink(outside.path(), guest.path("trap")).unwrap();
    let (stop, root) = (AtomicBool::new(false), guest.dir.path().to_owned());
    std::thread::scope(|scope| {
        scope.spawn(|| {
            // A name that is a directory now and a link to another one then.
            while !stop.load(Ordering::Relaxed) {
                for from in ["real", "trap"] {
                    fs::rename(root.join(from), root.join("d")).unwrap();
                    fs::rename(root.join("d"), root.join(from)).unwrap();
                }
            }
        });
        let mut inside = 0;
        for _ in 0..3000 {
            let Ok(dir) = guest.lookup(ROOT, "d") else { continue };
            let Ok(file) = guest.lookup(dir.nodeid, "f") else { continue };
            let fh = guest.open(file.nodeid, 0).unwrap();
            assert_eq!(guest.read(file.nodeid, fh, 0, 9).unwrap(), b"inside");
            let release = crate::fs::wire::ReleaseIn { fh, ..Default::default() };
            guest.ask(op::RELEASE, file.nodeid, &release, &[]).unwrap();
            inside += 1;
        }
        stop.store(true, Ordering::Relaxed);
        assert!(inside > 0, "the name was never a directory");
    });
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn no_bytes_harm(
        requests in prop::collection::vec(
            (0u32..53, 0u64..6, prop::collection::vec(prop_oneof![6 => 0u8..6, 1 => any::<u8>()], 0..120), 0usize..400),
            1..40,
        ),
    ) {
        let mut guest = Guest::new();
        fs::write(guest.path("\u{1}"), b"x").unwrap();
        for (opcode, node, body, room) in requests {
            // It would have the host reserve whatever it says.
            let opcode = if opcode == op::FALLOCATE { op::LSEEK } else { opcode };
            let (served, reply) = guest.serve(request(opcode, node, 9, &body), room);
            match served {
                Served::Done(0) => {}
                Served::Done(len) => {
                    let header: OutHeader = object(&reply);
                    prop_assert!(len as usize <= room);
                    prop_assert_eq!((header.len, header.unique), (len, 9));
                    prop_assert!(header.error <= 0 && header.error > -4096);
                }
                Served::Waits(waiting) => assert!(guest.session.try_again(&waiting).is_none()),
                Served::Interrupt(_) | Served::GivenUp => {}
            }
        }
    }
}
