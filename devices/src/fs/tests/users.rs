//! Whose files are: with root's husk, and with another user's.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};

use super::*;
use crate::fs::wire::fattr;
use crate::skipped::skipped;

const OTHER: u32 = 65533;

/// Runs `work` in a thread of another user's, in a directory that is theirs.
fn as_other(work: impl FnOnce(TempDir) + Send + 'static) {
    let dir = TempDir::new().unwrap();
    chown(dir.path(), Some(OTHER), Some(OTHER)).unwrap();
    let run = move || {
        // SAFETY: the bare system calls change this thread only.
        unsafe {
            assert_eq!(libc::syscall(libc::SYS_setgroups, 0, std::ptr::null::<u32>()), 0);
            assert_eq!(libc::syscall(libc::SYS_setresgid, OTHER, OTHER, OTHER), 0);
            assert_eq!(libc::syscall(libc::SYS_setresuid, OTHER, OTHER, OTHER), 0);
        }
        work(dir);
    };
    std::thread::spawn(run).join().unwrap();
}

#[test]
fn roots_husk_makes_files_as_the_guests_users() {
    if !is_root() {
        return skipped("it makes files of other users and needs root");
    }
    let mut guest = Guest::new();
    fs::set_permissions(guest.dir.path(), fs::Permissions::from_mode(0o777)).unwrap();
    guest.user = (OTHER, OTHER - 1);
    let (node, _) = guest.create(ROOT, "f", libc::O_RDWR).unwrap();
    guest.mkdir(ROOT, "d").unwrap();
    guest.call(op::SYMLINK, ROOT, &[name("l"), name("x")].concat()).unwrap();
    for name in ["f", "d", "l"] {
        let (uid, gid, _) = host_owner(&guest.path(name));
        assert_eq!((uid, gid), (OTHER, OTHER - 1), "{name}");
    }
    let attr = guest.getattr(node).unwrap().attr;
    assert_eq!((attr.uid, attr.gid), (OTHER, OTHER - 1));
    // Afterwards this thread is root's again, and so is what root makes.
    guest.user = (0, 0);
    guest.mkdir(ROOT, "r").unwrap();
    assert_eq!(host_owner(&guest.path("r")).0, 0);
    let give = SetattrIn { valid: fattr::UID, uid: OTHER, ..SetattrIn::default() };
    let root = guest.lookup(ROOT, "r").unwrap().nodeid;
    assert_eq!(guest.setattr(root, give).unwrap().attr.uid, OTHER);
    // A user that would be nobody and change nothing.
    guest.user = (u32::MAX, 0);
    assert_eq!(guest.mkdir(ROOT, "n"), Err(libc::EINVAL));
    // What a user may not do the host does not do for them.
    fs::set_permissions(guest.dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    guest.user = (OTHER, OTHER);
    assert_eq!(guest.mkdir(ROOT, "n"), Err(libc::EACCES));
}

#[test]
fn another_users_files_are_the_guests_roots() {
    if !is_root() {
        return skipped("it becomes another user and needs root");
    }
    let above = TempDir::new().unwrap();
    fs::set_permissions(above.path(), fs::Permissions::from_mode(0o700)).unwrap();
    as_other(move |dir| {
        let place = dir.path().to_owned();
        let mut guest = Guest::on(dir, ShareOptions::default());
        guest.user = (0, 0);
        let (node, _) = guest.create(ROOT, "f", libc::O_RDWR).unwrap();
        let attr = guest.getattr(node).unwrap().attr;
        assert_eq!((attr.uid, attr.gid), (0, 0));
        assert_eq!(host_owner(&place.join("f")), (OTHER, OTHER, 0o644));
        let to = |valid, uid, gid| SetattrIn { valid, uid, gid, ..SetattrIn::default() };
        // As it is, and away.
        guest.setattr(node, to(fattr::UID | fattr::GID, 0, 0)).unwrap();
        assert_eq!(guest.setattr(node, to(fattr::UID, 1000, 0)), Err(libc::EPERM));
        // Another user of the guest's makes files of the same owner.
        guest.user = (1000, 1000);
        guest.create(ROOT, "g", libc::O_RDWR).unwrap();
        assert_eq!(host_owner(&place.join("g")).0, OTHER);
        fs::set_permissions(place.join("g"), fs::Permissions::from_mode(0o000)).unwrap();
        let g = guest.lookup(ROOT, "g").unwrap().nodeid;
        assert_eq!(guest.open(g, libc::O_RDONLY), Err(libc::EACCES));
        let refused = Share::open(above.path(), ShareOptions::default()).unwrap_err().to_string();
        assert!(refused.contains("Permission denied") && refused.contains("may read"), "{refused}");
    });
}
