//! Names and who answers for them, without a VM: its place is empty, as after its end.

use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Weak;
use std::time::{Duration, Instant};

use super::answer::CLIENTS_MAX;
use super::directory::Directory;
use super::end::Why;
use super::list::list_in;
use super::remote::{find_in, wait_in};
use super::serve::serve_in;
use super::*;
use crate::guest::error::{EndedBy, ExecError};
use crate::outcome::Outcome;

fn directory(at: &Path) -> Directory {
    Directory::at(at.join("husk")).unwrap()
}

fn named(directory: &Directory, name: &str) -> Result<Named, NameError> {
    let info =
        Info { name: name.to_owned(), pid: 1, kernel: String::new(), since: 0, answers: true };
    serve_in(directory, info, About::default(), Weak::new())
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
    // What is in the way is named, and nobody is told to stop it.
    std::os::unix::fs::symlink("/nowhere", place.join("link.sock")).unwrap();
    for stray in ["file", "link"] {
        let error = named(&names, stray).unwrap_err();
        assert!(
            matches!(&error, NameError::NoSocket(path) if *path == names.socket(stray).unwrap())
        );
        assert!(error.to_string().contains("remove it"), "{error}");
    }
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
    assert!(error.contains("XDG_RUNTIME_DIR"), "{error}");
    let link = dir.path().join("link");
    symlink(dir.path().join("own"), &link).unwrap();
    Directory::at(dir.path().join("own")).unwrap();
    let error = Directory::at(link).unwrap_err().to_string();
    assert!(error.contains("no directory"), "{error}");
    // Only root can give a directory away.
    if crate::runtime::user() == 0 {
        let others = dir.path().join("others");
        Directory::at(others.clone()).unwrap();
        std::os::unix::fs::chown(&others, Some(65534), None).unwrap();
        let error = Directory::at(others).unwrap_err().to_string();
        assert!(error.contains("belongs to somebody else"), "{error}");
        assert!(error.contains("XDG_RUNTIME_DIR"), "{error}");
    }
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
fn a_name_whose_vm_does_not_answer_is_taken_and_holds_up_nobody() {
    let dir = tempfile::tempdir().unwrap();
    let names = directory(dir.path());
    let path = dir.path().join("husk/stopped.sock");
    let listener = UnixListener::bind(&path).unwrap();
    // SAFETY: an open socket and a number. One caller may wait, and no more.
    assert_eq!(unsafe { libc::listen(listener.as_raw_fd(), 0) }, 0);
    let mut waiting = Vec::new();
    let full = loop {
        match fds::connect(&path, None) {
            Ok(caller) => waiting.push(caller),
            Err(e) => break e,
        }
    };
    assert_eq!(full.kind(), std::io::ErrorKind::WouldBlock);
    let late = fds::connect(&path, Some(Duration::from_millis(10))).unwrap_err();
    assert_eq!(late.kind(), std::io::ErrorKind::WouldBlock);
    assert!(matches!(named(&names, "stopped"), Err(NameError::InUse(_))));
    assert!(path.exists());
}

#[test]
fn one_too_many_is_told_so() {
    let dir = tempfile::tempdir().unwrap();
    let names = directory(dir.path());
    let _named = named(&names, "one").unwrap();
    let path = dir.path().join("husk/one.sock");
    let silent: Vec<_> = (0..CLIENTS_MAX).map(|_| UnixStream::connect(&path).unwrap()).collect();
    // They are accepted in their order, and have a time of seconds to ask.
    let mut answer = String::new();
    UnixStream::connect(&path).unwrap().read_to_string(&mut answer).unwrap();
    assert_eq!(answer, "ERROR too many at once\n");
    drop(silent);
    // As soon as one of them has left.
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        match find_in(&names, "one").unwrap().info() {
            Err(NameError::Refused { why, .. }) if why == "it has ended" => break,
            other => assert!(Instant::now() < deadline, "{other:?}"),
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn an_end_is_told_in_words_with_the_last_of_the_console() {
    let why = Why::of(Some(&Outcome::Panic { console: String::new() }));
    let line = serde_json::to_string(&why).unwrap();
    assert!(!line.contains('\n'), "{line}");
    let error = serde_json::from_str::<Why>(&line).unwrap().error("last".to_owned());
    let words = "the VM has ended: the guest's kernel panicked; its console said last:\n  | last";
    assert_eq!(error.to_string(), words);
    assert!(matches!(error, ExecError::VmGone { by: EndedBy::Death, .. }));
    let error = Why::of(None).error(String::new());
    assert_eq!(error.to_string(), "the agent in the guest has gone");
}

#[test]
fn a_name_that_has_gone_is_a_vm_that_has_ended() {
    let dir = tempfile::tempdir().unwrap();
    let names = directory(dir.path());
    let named = named(&names, "one").unwrap();
    let explain = find_in(&names, "one").unwrap().explain().unwrap();
    named.conclude(137);
    drop(named);
    // Its place is empty: nobody knows how.
    for _ in 0..2 {
        let error = explain();
        assert_eq!(error.to_string(), "the VM has ended");
        assert!(matches!(error, ExecError::VmGone { by: EndedBy::Other, .. }), "{error:?}");
    }
}

/// A husk that answers who waits for its end with `last` when everybody else has gone from it.
fn ends_with(names: &Directory, last: &'static [u8]) -> ExecError {
    let path = names.socket("one").unwrap();
    let listener = UnixListener::bind(&path).unwrap();
    let explain = std::thread::scope(|scope| {
        let explain = scope.spawn(|| Remote::explain(&find_in(names, "one").unwrap()).unwrap());
        let mut line = [0; request::WAIT.len() + 1];
        let mut waiting = loop {
            let (mut client, _) = listener.accept().unwrap();
            // Who only looks whether it is there says nothing.
            if client.read_exact(&mut line).is_ok() {
                break client;
            }
        };
        waiting.write_all(b"OK\n").unwrap();
        let explain = explain.join().unwrap();
        drop(listener);
        waiting.write_all(last).unwrap();
        explain
    });
    explain()
}

#[test]
fn how_a_vm_ended_is_known_also_when_its_husk_has_gone_before_it_is_asked() {
    let dir = tempfile::tempdir().unwrap();
    let names = directory(dir.path());
    let by = |error: ExecError| match error {
        ExecError::VmGone { by, how, .. } => (by, how.unwrap_or_default()),
        other => panic!("{other}"),
    };
    let told = |last| {
        let told = by(ends_with(&names, last));
        std::fs::remove_file(names.socket("one").unwrap()).unwrap();
        told
    };
    let killed = b"137\n{\"ended\":\"it was killed\",\"died\":false,\"killed\":true}\n";
    assert_eq!(told(killed), (EndedBy::Kill, "it was killed".to_owned()));
    let died = b"\n{\"ended\":\"the guest died\",\"died\":true}\n";
    assert_eq!(told(died), (EndedBy::Death, "the guest died".to_owned()));
    // As SIGKILL has it.
    assert_eq!(told(b""), (EndedBy::Kill, "its husk was killed".to_owned()));
    // An older one.
    assert_eq!(told(b"0\n"), (EndedBy::Other, String::new()));
}

#[test]
fn a_husk_that_does_not_answer_is_listed_with_its_process() {
    let dir = tempfile::tempdir().unwrap();
    let names = directory(dir.path());
    let _deaf = UnixListener::bind(dir.path().join("husk/deaf.sock")).unwrap();
    let listed = list_in(&names, Duration::from_millis(20)).unwrap();
    let (name, pid) = ("deaf".to_owned(), std::process::id());
    assert_eq!(listed, [Info { name, pid, kernel: String::new(), since: 0, answers: false }]);
    // Those that do not answer are waited for together; a byte now and then is no answer.
    let deaf: Vec<_> = (0..20)
        .map(|n| UnixListener::bind(dir.path().join(format!("husk/deaf{n}.sock"))).unwrap())
        .collect();
    let slow = UnixListener::bind(dir.path().join("husk/slow.sock")).unwrap();
    std::thread::spawn(move || {
        let (mut asked, _) = slow.accept().unwrap();
        while asked.write_all(b"O").is_ok() {
            std::thread::sleep(Duration::from_millis(5));
        }
    });
    let begun = Instant::now();
    let listed = list_in(&names, Duration::from_millis(500)).unwrap();
    assert_eq!(listed.len(), deaf.len() + 2);
    assert!(listed.iter().all(|vm| !vm.answers), "{listed:?}");
    assert!(listed.is_sorted_by_key(|vm| &vm.name), "{listed:?}");
    // One after the other they would take eleven seconds.
    assert!(begun.elapsed() < Duration::from_secs(8), "{:?}", begun.elapsed());
    let old = r#"{"name": "old", "pid": 1, "kernel": "k", "since": 2}"#;
    assert!(serde_json::from_str::<Info>(old).unwrap().answers);
}

#[test]
fn who_waits_is_told_the_status_when_the_name_is_given_up_or_that_there_is_none() {
    let dir = tempfile::tempdir().unwrap();
    let names = directory(dir.path());
    let waits = |conclude: &dyn Fn(&Named)| {
        let named = named(&names, "one").unwrap();
        let end = find_in(&names, "one").unwrap().end().unwrap();
        conclude(&named);
        drop(named);
        end.status()
    };
    assert_eq!(waits(&|named| named.conclude(7)).unwrap(), 7);
    assert!(matches!(waits(&|_| ()), Err(NameError::NoStatus(_))));
    assert!(matches!(wait_in(&names, "one"), Err(NameError::Unknown(_))));
}

#[test]
fn a_vm_whose_husk_was_killed_is_known_until_its_name_is_taken_again() {
    let dir = tempfile::tempdir().unwrap();
    let names = directory(dir.path());
    let socket = dir.path().join("husk/one.sock");
    let its = Info { name: "one".to_owned(), pid: 1, kernel: "k".into(), since: 5, answers: true };
    record::write(&names, &its, None).unwrap();
    let listener = UnixListener::bind(&socket).unwrap();
    assert_eq!(record::ended_in(&names).unwrap(), [], "it runs");
    drop(listener);
    let known = record::ended_in(&names).unwrap();
    let [ended] = &known[..] else { panic!("{known:?}") };
    assert_eq!((&ended.name[..], ended.since, ended.ended, ended.status), ("one", 5, None, None));
    assert!(matches!(wait_in(&names, "one"), Err(NameError::NoStatus(_))));
    let error = find_in(&names, "one").unwrap_err().to_string();
    assert_eq!(error, "the VM `one` has ended, and its husk could not tell how");
    drop(named(&names, "one").unwrap());
    assert_eq!(record::ended_in(&names).unwrap(), []);
}

#[test]
fn the_last_that_ended_are_remembered_and_what_is_left_of_others_goes() {
    let dir = tempfile::tempdir().unwrap();
    let names = directory(dir.path());
    let info = |name: &str| Info {
        name: name.to_owned(),
        pid: 1,
        kernel: "k".to_owned(),
        since: 5,
        answers: true,
    };
    let lost = dir.path().join("husk/lost.log");
    std::fs::write(&lost, "killed").unwrap();
    let running = named(&names, "running").unwrap();
    let its = dir.path().join("husk/running.log");
    std::fs::write(&its, "it runs").unwrap();
    for n in 0..40 {
        record::write(&names, &info(&format!("vm{n}")), Some(3)).unwrap();
        std::fs::write(names.log(&format!("vm{n}")), "said").unwrap();
    }
    let old = std::time::SystemTime::UNIX_EPOCH + Duration::from_secs(1);
    let written = [&lost, &its, &names.end("vm7"), &names.log("vm7")];
    for path in written {
        std::fs::File::options().write(true).open(path).unwrap().set_modified(old).unwrap();
    }
    record::make_room(&names).unwrap();
    assert_eq!(record::ended_in(&names).unwrap().len(), 31);
    // Of most of them only how they ended.
    let logs = (0..40).filter(|n| names.log(&format!("vm{n}")).exists()).count();
    assert_eq!(logs, record::LOGS_MAX - 1);
    assert!(!lost.exists() && its.exists());
    assert!(matches!(wait_in(&names, "vm7"), Err(NameError::Unknown(_))));
    let last = record::ended_in(&names).unwrap().remove(0);
    assert_eq!((last.status, last.since), (Some(3), 5));
    assert!(last.ended.is_some());
    assert_eq!(wait_in(&names, &last.name).unwrap(), 3);
    let error = find_in(&names, &last.name).unwrap_err().to_string();
    let known = format!("the VM `{}` has ended with status 3", last.name);
    assert!(error.starts_with(&known), "{error}");
    std::fs::write(names.log(&last.name), "said").unwrap();
    let error = find_in(&names, &last.name).unwrap_err().to_string();
    assert_eq!(error, format!("{known}; `husk logs {}` has what it wrote", last.name));
    std::fs::write(names.end(&last.name), "{").unwrap();
    assert!(matches!(wait_in(&names, &last.name), Err(NameError::Unknown(_))));
    drop(running);
}
