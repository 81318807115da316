//! Names and who answers for them, without a VM: its place is empty, as after its end.

use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Weak;

use super::directory::Directory;
use super::remote::{find_in, list_in};
use super::serve::serve_in;
use super::*;

fn directory(at: &Path) -> Directory {
    Directory::at(at.join("husk")).unwrap()
}

fn named(directory: &Directory, name: &str) -> Result<Named, NameError> {
    let info =
        Info { name: name.to_owned(), pid: 1, kernel: String::new(), since: 0, answers: true };
    serve_in(directory, info, Weak::new())
}

#[test]
fn a_name_is_one_vms_until_it_is_given_up() {
    let dir = tempfile::tempdir().unwrap();
    let names = directory(dir.path());
    let first = named(&names, "one").unwrap();
    assert!(matches!(named(&names, "one"), Err(NameError::InUse(_))));
    let found = find_in(&names, "one").unwrap();
    let refused = found.info().unwrap_err();
    assert!(
        matches!(&refused, NameError::Refused { why, .. } if why == "it has ended"),
        "{refused}"
    );
    drop(first);
    assert!(matches!(found.info(), Err(NameError::Unknown(_))));
    assert!(!dir.path().join("husk/one.sock").exists());
    drop(named(&names, "one").unwrap());
}

#[test]
fn what_a_dead_process_left_is_cleaned_and_what_is_no_socket_stays() {
    let dir = tempfile::tempdir().unwrap();
    let names = directory(dir.path());
    let place = dir.path().join("husk");
    drop(UnixListener::bind(place.join("dead.sock")).unwrap());
    drop(UnixListener::bind(place.join("listed.sock")).unwrap());
    std::fs::write(place.join("file.sock"), "mine").unwrap();
    drop(named(&names, "dead").unwrap());
    assert!(matches!(find_in(&names, "listed"), Err(NameError::Unknown(_))));
    assert_eq!(list_in(&names, PATIENCE).unwrap(), []);
    assert!(!place.join("listed.sock").exists());
    // A file refuses a connection as a dead socket does, and must not go for that.
    let _ = named(&names, "file");
    assert_eq!(std::fs::read(place.join("file.sock")).unwrap(), b"mine");
}

#[test]
fn a_directory_of_somebody_elses_or_open_to_others_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let open = dir.path().join("open");
    std::fs::create_dir(&open).unwrap();
    std::fs::set_permissions(&open, PermissionsExt::from_mode(0o755)).unwrap();
    let error = Directory::at(open).unwrap_err().to_string();
    assert!(error.contains("others may enter it"), "{error}");
    let link = dir.path().join("link");
    symlink("/root", &link).unwrap();
    let error = Directory::at(link).unwrap_err().to_string();
    assert!(error.contains("no directory"), "{error}");
}

#[test]
fn a_name_leads_nowhere_else() {
    let long = "n".repeat(NAME_MAX + 1);
    for wrong in ["", ".", "..", ".hidden", "a/b", "a b", "a\n", "ä", long.as_str()] {
        assert!(matches!(check(wrong), Err(NameError::Name(_))), "{wrong:?}");
    }
    for right in ["a", "vm-1_x.y", &"n".repeat(NAME_MAX)] {
        assert!(check(right).is_ok(), "{right}");
    }
}

#[test]
fn clients_that_say_nothing_or_nonsense_leave_room_for_others() {
    let dir = tempfile::tempdir().unwrap();
    let names = directory(dir.path());
    let _named = named(&names, "one").unwrap();
    let path = dir.path().join("husk/one.sock");
    let silent = UnixStream::connect(&path).unwrap();
    let mut loud = UnixStream::connect(&path).unwrap();
    let _ = loud.write_all(&vec![b'x'; 100_000]);
    let mut answer = Vec::new();
    // An answer or a reset, but an end.
    let _ = loud.read_to_end(&mut answer);
    assert!(matches!(find_in(&names, "one").unwrap().info(), Err(NameError::Refused { .. })));
    drop(silent);
}

#[test]
fn a_descriptor_comes_with_the_bytes_it_was_sent_with() {
    let (one, other) = UnixStream::pair().unwrap();
    let (mut near, far) = UnixStream::pair().unwrap();
    fds::send(&one, b"OK\n", far.as_raw_fd()).unwrap();
    drop(far);
    let mut room = [0; 1];
    let (count, fd) = fds::receive(&other, &mut room).unwrap();
    assert_eq!((count, room), (1, *b"O"));
    near.write_all(b"through").unwrap();
    drop(near);
    let mut text = String::new();
    UnixStream::from(fd.unwrap()).read_to_string(&mut text).unwrap();
    assert_eq!(text, "through");
    let (_, none) = fds::receive(&other, &mut room).unwrap();
    assert!(none.is_none());
}

#[test]
fn a_husk_that_does_not_answer_is_listed_with_its_process() {
    let dir = tempfile::tempdir().unwrap();
    let names = directory(dir.path());
    let _deaf = UnixListener::bind(dir.path().join("husk/deaf.sock")).unwrap();
    let listed = list_in(&names, std::time::Duration::from_millis(20)).unwrap();
    let (name, pid) = ("deaf".to_owned(), std::process::id());
    assert_eq!(listed, [Info { name, pid, kernel: String::new(), since: 0, answers: false }]);
    let old = r#"{"name": "old", "pid": 1, "kernel": "k", "since": 2}"#;
    assert!(serde_json::from_str::<Info>(old).unwrap().answers);
}
