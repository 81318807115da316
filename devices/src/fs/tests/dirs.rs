//! Directories: their entries, whole, while they change, and with what they are.

use std::fs;
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, symlink};

use super::*;
use crate::block::hanging::{mount, unmount};
use crate::fs::listing::is_timed;
use crate::fs::sys;
use crate::fs::wire::{Dirent, DirentPlus, FOPEN_CACHE_DIR, FOPEN_KEEP_CACHE, ForgetIn};

/// Names in a reply, and the position behind each.
fn names(reply: &[u8], opcode: u32) -> Vec<(String, u64)> {
    let before = if opcode == op::READDIR { 0 } else { 128 };
    let (mut rest, mut names) = (reply, Vec::new());
    while !rest.is_empty() {
        let entry: Dirent = object(&rest[before..]);
        let end = before + 24 + entry.namelen as usize;
        names.push((String::from_utf8(rest[before + 24..end].to_vec()).unwrap(), entry.off));
        rest = &rest[end.next_multiple_of(8)..];
    }
    names
}

#[test]
fn directories_are_read_whole_in_pieces_of_any_size() {
    let mut guest = Guest::new();
    let mut wanted: Vec<String> =
        (0..500).map(|n| format!("{n:0>width$}", width = n % 90 + 3)).collect();
    wanted.iter().for_each(|name| fs::write(guest.path(name), b"").unwrap());
    wanted.extend([".".to_owned(), "..".to_owned()]);
    wanted.sort();
    for size in [512, 1000, 4096, 1 << 20] {
        let mut names = guest.names(ROOT, size);
        names.sort();
        assert_eq!(names, wanted, "{size} bytes at a time");
    }
    let fh = guest.opendir(ROOT).unwrap();
    let body = ReadIn { fh, size: 20, ..ReadIn::default() };
    assert_eq!(guest.ask(op::READDIR, ROOT, &body, &[]), Err(libc::EINVAL));
    let _ = guest.ask(op::READDIR, ROOT, &ReadIn { fh, offset: u64::MAX, ..body }, &[]);
}

#[test]
fn a_guest_is_told_of_as_many_entries_as_it_has_room_for_or_one_less() {
    let mut guest = Guest::new();
    (0..200).for_each(|n| {
        fs::write(guest.path(&format!("of 29 bytes like many {n:07}")), b"").unwrap()
    });
    let fh = guest.opendir(ROOT).unwrap();
    for (opcode, entry) in [(op::READDIR, 24 + 32), (op::READDIRPLUS, 152 + 32)] {
        let mut offset = 0;
        loop {
            let body = ReadIn { fh, offset, size: 4096, ..ReadIn::default() };
            let reply = guest.ask(opcode, ROOT, &body, &[]).unwrap();
            let names = names(&reply, opcode);
            let Some((_, last)) = names.last() else { break };
            offset = *last;
            let end = guest.ask(opcode, ROOT, &ReadIn { offset, ..body }, &[]).unwrap().is_empty();
            assert!(end || reply.len() + 2 * entry > 4096, "{opcode}: {} bytes", reply.len());
        }
    }
}

/// A guest's program empties a directory while it reads it, with room for `room` bytes of entries at a time.
fn empty(dir: TempDir, room: usize) {
    let mut guest = Guest::on(dir, ShareOptions::default());
    (0..300).for_each(|n| fs::write(guest.path(&format!("file {n}")), b"").unwrap());
    let fh = guest.opendir(ROOT).unwrap();
    let (mut offset, mut removed) = (0, 0);
    for opcode in [op::READDIR, op::READDIRPLUS].into_iter().cycle() {
        let body = ReadIn { fh, offset, size: 4096, ..ReadIn::default() };
        let reply = guest.ask(opcode, ROOT, &body, &[]).unwrap();
        if reply.is_empty() {
            break;
        }
        let mut left = room;
        for (name, next) in names(&reply, opcode) {
            // As `struct linux_dirent64` is.
            let Some(less) = left.checked_sub((20 + name.len()).next_multiple_of(8)) else { break };
            (left, offset) = (less, next);
            if name.starts_with("file") {
                fs::remove_file(guest.path(&name)).unwrap();
                removed += 1;
            }
        }
    }
    assert_eq!((removed, guest.names(ROOT, 4096).len()), (300, 2), "{room} bytes at a time");
}

#[test]
fn a_directory_that_is_emptied_while_it_is_read_gives_every_entry() {
    for room in [64 << 10, 2048, 40] {
        empty(TempDir::new().unwrap(), room);
        // A file system that finds no place again, where it may be mounted.
        let dir = TempDir::new().unwrap();
        if let Err(e) = mount("ramfs", dir.path(), "") {
            eprintln!("SKIPPED: a ramfs cannot be mounted: {e}");
            continue;
        }
        let place = dir.path().to_owned();
        let done = std::panic::catch_unwind(|| empty(dir, room));
        unmount(&place);
        fs::remove_dir(&place).unwrap();
        done.unwrap();
    }
}

#[test]
fn what_a_program_had_no_room_for_is_told_again_and_a_beginning_is_what_there_is_now() {
    let mut guest = Guest::new();
    (0..20).for_each(|n| fs::write(guest.path(&format!("file {n}")), b"").unwrap());
    let (fh, place) = (guest.opendir(ROOT).unwrap(), guest.dir.path().to_owned());
    let mut ask = |opcode, offset| {
        let body = ReadIn { fh, offset, size: 4096, ..ReadIn::default() };
        names(&guest.ask(opcode, ROOT, &body, &[]).unwrap(), opcode)
    };
    let all = ask(op::READDIR, 0);
    assert_eq!(all.len(), 22);
    for n in 0..20 {
        fs::remove_file(place.join(format!("file {n}"))).unwrap();
    }
    // What is gone has no number, and the guest finds that out by itself.
    for (opcode, from) in [(op::READDIRPLUS, 7), (op::READDIR, 7), (op::READDIR, 9)] {
        assert_eq!(ask(opcode, all[from].1), all[from + 1..], "{from}");
    }
    assert!(ask(op::READDIR, all[21].1).is_empty());
    assert_eq!(ask(op::READDIR, 0).len(), 2);
    assert_eq!(guest.holdings(), (0, 1));
}

#[test]
fn entries_with_attributes_are_known_and_forgotten() {
    let mut guest = Guest::new();
    fs::write(guest.path("f"), b"123").unwrap();
    symlink("f", guest.path("l")).unwrap();
    let fh = guest.opendir(ROOT).unwrap();
    let body = ReadIn { fh, size: 4096, ..ReadIn::default() };
    let reply = guest.ask(op::READDIRPLUS, ROOT, &body, &[]).unwrap();
    let (mut rest, mut known) = (&reply[..], Vec::new());
    while !rest.is_empty() {
        let entry: DirentPlus = object(rest);
        let end = 152 + entry.dirent.namelen as usize;
        if &rest[152..end] == b".." {
            // Not the inode of what is above.
            assert_eq!(entry.dirent.ino, fs::metadata(guest.dir.path()).unwrap().ino());
        }
        if entry.entry.nodeid != 0 {
            assert_eq!(entry.entry.attr.ino, entry.dirent.ino);
            known.push((entry.entry.nodeid, rest[152..end].to_vec()));
        }
        rest = &rest[end.next_multiple_of(8)..];
    }
    known.sort_by(|a, b| a.1.cmp(&b.1));
    assert_eq!(known.iter().map(|k| &k.1[..]).collect::<Vec<_>>(), [b"f", b"l"]);
    assert_eq!(guest.lookup(ROOT, "f").unwrap().nodeid, known[0].0);
    assert_eq!(guest.holdings(), (2, 1));
    // Known twice, so forgotten by the second.
    for (left, nlookup) in [(2, 1), (1, 1)] {
        let forget = request(op::FORGET, known[0].0, 0, ForgetIn { nlookup }.as_slice());
        assert!(matches!(guest.serve(forget, 0).0, Served::Done(0)));
        assert_eq!(guest.holdings().0, left);
    }
    assert_eq!(guest.getattr(known[0].0), Err(libc::ENOENT));
    let one = [&1u32.to_le_bytes()[..], &[0; 4], &known[1].0.to_le_bytes(), &9u64.to_le_bytes()];
    guest.serve(request(op::BATCH_FORGET, 0, 0, &one.concat()), 0);
    assert_eq!(guest.holdings().0, 0);
}

/// How the guest opens a directory.
fn opened(guest: &mut Guest, node: u64) -> u32 {
    let reply = guest.ask(op::OPENDIR, node, &OpenIn::default(), &[]).unwrap();
    object::<OpenOut>(&reply).open_flags
}

#[test]
fn what_a_guest_has_kept_of_a_directory_is_believed_while_it_stays_the_same() {
    const NEW: u32 = FOPEN_CACHE_DIR;
    const READ: u32 = FOPEN_KEEP_CACHE;
    const USE: u32 = FOPEN_CACHE_DIR | FOPEN_KEEP_CACHE;
    let mut guest = Guest::new();
    assert_eq!([(); 2].map(|()| opened(&mut guest, ROOT)), [0; 2], "it is too new to tell");
    // Nothing that a guest can do makes one look old.
    let timed = |path: &PathBuf| {
        let dir = fs::File::open(path).unwrap();
        is_timed(sys::statfs(dir.as_fd()).unwrap().f_type)
    };
    let Some(old) = ["/usr", "/var"].into_iter().find_map(old).filter(timed) else {
        eprintln!("SKIPPED: no directory here is old enough to be believed");
        return;
    };
    let options = ShareOptions { read_only: true, ..ShareOptions::default() };
    let mut guest = Guest::of(Share::open(&old, options).unwrap(), TempDir::new().unwrap());
    assert_eq!([(); 3].map(|()| opened(&mut guest, ROOT)), [NEW, READ, READ]);
    let names = guest.names(ROOT, 4096);
    assert_eq!(opened(&mut guest, ROOT), READ, "it would have to ask what they are");
    // Unless this machine stands still for a second meanwhile.
    let used = (0..50).any(|_| {
        for name in names.iter().filter(|name| !name.starts_with('.')) {
            guest.lookup(ROOT, name).unwrap();
        }
        opened(&mut guest, ROOT) == USE
    });
    assert!(used);
    guest.call(op::INIT, 0, &init_body()).unwrap();
    assert_eq!(opened(&mut guest, ROOT), NEW, "what another mount has kept is not there");
}

#[test]
fn what_a_file_system_that_moves_no_times_holds_is_not_kept() {
    let Some(old) = old("/sys/kernel") else {
        eprintln!(
            "SKIPPED: there is no /sys/kernel, or it has just been looked at for the first time"
        );
        return;
    };
    let options = ShareOptions { read_only: true, ..ShareOptions::default() };
    let mut guest = Guest::of(Share::open(&old, options).unwrap(), TempDir::new().unwrap());
    assert_eq!([(); 3].map(|()| opened(&mut guest, ROOT)), [0; 3]);
}
