//! Directories on their way between a host and an agent; and guests that send what no agent sends.

use std::collections::BTreeMap;
use std::fs::{self, Permissions};
use std::os::unix::fs::{FileTypeExt, PermissionsExt, symlink};
use std::path::Path;

use husk_guest_protocol::tree::{DEPTH_MAX, DIRECTORY, Head, Kind};

use super::*;

fn put(from: &Path, to: &Path) -> Result<(), ExecError> {
    let (socket, mut child) = agent();
    let done = crate::guest::put(socket, &explain(), from, to, &Limits::default());
    child.wait().unwrap();
    done
}

fn get(from: &Path, to: &Path) -> Result<(), ExecError> {
    let (socket, mut child) = agent();
    let done = crate::guest::get(socket, &explain(), from, to, &Limits::default());
    child.wait().unwrap();
    done
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
}

fn fifo(path: &Path) {
    assert!(Command::new("mkfifo").arg(path).status().unwrap().success());
}

/// Everything in a directory: its path, its mode, and what is in it or where it leads.
fn contents(directory: &Path) -> BTreeMap<PathBuf, (u32, Vec<u8>)> {
    let mut all = BTreeMap::new();
    let mut directories = vec![directory.to_owned()];
    while let Some(next) = directories.pop() {
        for entry in fs::read_dir(next).unwrap() {
            let path = entry.unwrap().path();
            let metadata = fs::symlink_metadata(&path).unwrap();
            let mode = metadata.permissions().mode();
            let bytes = match metadata.file_type() {
                kind if kind.is_symlink() => {
                    fs::read_link(&path).unwrap().into_os_string().into_encoded_bytes()
                }
                kind if kind.is_file() => fs::read(&path).unwrap(),
                kind if kind.is_fifo() => Vec::new(),
                _ => {
                    directories.push(path.clone());
                    Vec::new()
                }
            };
            all.insert(path.strip_prefix(directory).unwrap().to_owned(), (mode, bytes));
        }
    }
    all
}

/// A directory with something of everything that is copied.
fn tree(at: &Path) {
    fs::create_dir_all(at.join("deep/deeper/deepest")).unwrap();
    fs::create_dir(at.join("closed")).unwrap();
    let large: Vec<u8> = (0..300_000u32).map(|n| (n % 251) as u8).collect();
    fs::write(at.join("large"), &large).unwrap();
    fs::write(at.join("empty"), "").unwrap();
    fs::write(at.join("closed/own"), "mine").unwrap();
    fs::write(at.join("a name with blanks, and é"), "x").unwrap();
    for n in 0..500 {
        fs::write(at.join(format!("deep/{n}")), n.to_string().repeat(n % 30)).unwrap();
    }
    symlink("../large", at.join("deep/link")).unwrap();
    symlink("/etc/there is none", at.join("away")).unwrap();
    set_mode(&at.join("large"), 0o640);
    set_mode(&at.join("closed/own"), 0o400);
    set_mode(&at.join("closed"), 0o555);
    set_mode(&at.join("deep/deeper"), 0o750);
}

#[test]
fn a_directory_is_copied_both_ways_with_its_modes_and_links() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    tree(&at("from"));
    let wanted = contents(&at("from"));
    set_mode(&at("from"), 0o710);
    put(&at("from"), &at("in")).unwrap();
    assert!(contents(&at("in")) == wanted);
    get(&at("in"), &at("out/")).unwrap();
    assert!(contents(&at("out")) == wanted);
    for copy in ["in", "out"] {
        assert_eq!(at(copy).metadata().unwrap().permissions().mode() & 0o7777, 0o710, "{copy}");
    }
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 3, "something was left");
}

#[test]
fn what_is_copied_to_a_directory_goes_into_it_and_replaces_what_it_has_to() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    fs::create_dir_all(at("from/sub")).unwrap();
    fs::write(at("from/sub/file"), "new").unwrap();
    symlink("file", at("from/sub/link")).unwrap();
    fs::write(at("precious"), "old").unwrap();
    type Copy = fn(&Path, &Path) -> Result<(), ExecError>;
    for (name, copy) in [("put", put as Copy), ("get", get)] {
        let to = at(name);
        fs::create_dir(&to).unwrap();
        // By its name, then once more over what is there, then what is in it.
        copy(&at("from"), &to).unwrap();
        assert_eq!(fs::read(to.join("from/sub/file")).unwrap(), b"new");
        fs::write(to.join("from/sub/own"), "stays").unwrap();
        fs::remove_file(to.join("from/sub/file")).unwrap();
        symlink(at("precious"), to.join("from/sub/file")).unwrap();
        copy(&at("from"), &to).unwrap();
        assert_eq!(fs::read(to.join("from/sub/file")).unwrap(), b"new");
        assert!(!to.join("from/sub/file").is_symlink() && to.join("from/sub/link").is_symlink());
        assert_eq!(fs::read(to.join("from/sub/own")).unwrap(), b"stays");
        assert_eq!(fs::read(at("precious")).unwrap(), b"old", "a link was followed");
        copy(&at("from/."), &to).unwrap();
        assert_eq!(fs::read(to.join("sub/file")).unwrap(), b"new");
        copy(&at("from/sub/file"), &to).unwrap();
        assert_eq!(fs::read(to.join("file")).unwrap(), b"new");
        // A link that has its name may have come by an earlier copy: what is named leads, and nothing else.
        fs::remove_file(to.join("file")).unwrap();
        symlink(at("precious"), to.join("file")).unwrap();
        copy(&at("from/sub/file"), &to).unwrap();
        assert!(!to.join("file").is_symlink());
        fs::rename(to.join("from"), at("aside")).unwrap();
        symlink(at("aside"), to.join("from")).unwrap();
        let error = copy(&at("from"), &to).unwrap_err().to_string();
        assert!(error.contains("Not a directory"), "{error}");
        fs::remove_file(to.join("from")).unwrap();
        fs::rename(at("aside"), to.join("from")).unwrap();
        assert_eq!(fs::read(at("precious")).unwrap(), b"old", "a link was followed");
        // What it has to replace is a directory, or a link to one.
        fs::remove_file(to.join("sub/file")).unwrap();
        fs::create_dir(to.join("sub/file")).unwrap();
        let error = copy(&at("from/."), &to).unwrap_err().to_string();
        assert!(error.contains(&format!("{name}/sub/file")), "{error}");
        fs::remove_dir_all(to.join("sub")).unwrap();
        fs::create_dir(at("elsewhere")).unwrap();
        symlink(at("elsewhere"), to.join("sub")).unwrap();
        let error = copy(&at("from/."), &to).unwrap_err().to_string();
        assert!(error.contains(&format!("{name}/sub")), "{error}");
        assert_eq!(fs::read_dir(at("elsewhere")).unwrap().count(), 0);
        fs::remove_dir(at("elsewhere")).unwrap();
        let error = copy(&at("from"), &at("precious")).unwrap_err().to_string();
        assert!(error.contains("Not a directory"), "{error}");
        let error = copy(&at("precious"), &at("none/")).unwrap_err().to_string();
        assert!(error.contains("none"), "{error}");
        let names: Vec<_> = fs::read_dir(&to).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(names.len(), 3, "{names:?}");
    }
}

#[test]
fn a_link_that_is_named_is_followed_on_both_sides_and_stays_one() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    fs::write(at("from"), "new").unwrap();
    fs::create_dir(at("deep")).unwrap();
    type Copy = fn(&Path, &Path) -> Result<(), ExecError>;
    for copy in [put as Copy, get] {
        fs::write(at("deep/target"), "old").unwrap();
        for (link, to) in [("first", "deep/second"), ("deep/second", "target"), ("away", "none")] {
            let _ = fs::remove_file(at(link));
            symlink(to, at(link)).unwrap();
        }
        copy(&at("from"), &at("first")).unwrap();
        assert_eq!(fs::read(at("deep/target")).unwrap(), b"new");
        assert!(at("first").is_symlink() && at("deep/second").is_symlink());
        assert!(!at("deep/target").is_symlink());
        let there = || [dir.path(), &at("deep")].map(|at| fs::read_dir(at).unwrap().count());
        let before = there();
        let error = copy(&at("from"), &at("away")).unwrap_err();
        assert!(error.to_string().contains("away"), "{error}");
        assert!(at("away").is_symlink());
        assert_eq!(there(), before, "something was left");
    }
    // What is neither a file nor a directory is not replaced by one, however it is named.
    fifo(&at("pipe"));
    symlink("pipe", at("led")).unwrap();
    for name in ["pipe", "led"] {
        let refused = put(&at("from"), &at(name)).unwrap_err().to_string();
        assert!(refused.contains("a pipe") && refused.contains(name), "{refused}");
    }
    assert!(at("pipe").metadata().unwrap().file_type().is_fifo() && at("led").is_symlink());
}

#[test]
fn a_pipe_is_refused_by_its_name_wherever_it_is_and_nothing_is_left() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    fs::create_dir_all(at("from/sub")).unwrap();
    fs::write(at("from/file"), vec![7; 200_000]).unwrap();
    fifo(&at("from/sub/pipe"));
    for (what, named) in [("from/sub/pipe", "sub/pipe"), ("from", "from/sub/pipe")] {
        let refused = get(&at(what), &at("out")).unwrap_err();
        assert!(matches!(refused, ExecError::Special { what: "a pipe", .. }), "{refused}");
        let told = put(&at(what), &at("in")).unwrap_err().to_string();
        for words in [refused.to_string(), told] {
            assert!(words.contains(named) && words.contains("a pipe"), "{words}");
        }
    }
    let refused = get(Path::new("/dev/null"), &at("out")).unwrap_err();
    assert!(matches!(refused, ExecError::Special { what: "a device", .. }), "{refused}");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "something was left");
}

#[test]
fn directories_too_deep_in_each_other_are_refused_on_both_sides() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let deep = |count| {
        let _ = fs::remove_dir_all(at("from"));
        let path: PathBuf = std::iter::repeat_n("d", count).collect();
        fs::create_dir_all(at("from").join(path)).unwrap();
    };
    deep(DEPTH_MAX - 1);
    put(&at("from"), &at("in")).unwrap();
    get(&at("from"), &at("out")).unwrap();
    assert!(contents(&at("in")) == contents(&at("out")) && contents(&at("in")).len() == 127);
    deep(DEPTH_MAX);
    put(&at("from"), &at("never")).unwrap_err();
    get(&at("from"), &at("never")).unwrap_err();
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 3, "something was left");
}

fn record(kind: Kind, mode: u32, bytes: &[u8]) -> Vec<u8> {
    let mut all = Head { kind, mode, len: bytes.len() }.encode().to_vec();
    all.extend(bytes);
    all
}

/// What becomes of a directory that a guest sends so, in an empty directory with something beside it.
fn sent(records: Vec<Vec<u8>>, limits: &Limits) -> (Result<(), ExecError>, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("beside")).unwrap();
    let socket = impostor(move |socket| {
        send(&socket, Frame::Started).unwrap();
        send(&socket, Frame::Mode(DIRECTORY | 0o755)).unwrap();
        for piece in records.concat().chunks(Frame::PIECE) {
            // It may be cut off before.
            let _ = send(&socket, Frame::Output(stream::STDOUT, piece));
        }
        let _ = send(&socket, Frame::Exited(0));
    });
    let to = dir.path().join("to");
    let done = crate::guest::get(socket, &explain(), Path::new("/tree"), &to, limits);
    (done, dir)
}

#[test]
fn a_guest_that_sends_names_and_ways_that_lead_elsewhere_makes_nothing() {
    let end = || record(Kind::End, 0, b"");
    let file = |name: &[u8]| record(Kind::File, 0o644, name);
    let directory = |name: &[u8]| record(Kind::Directory, 0o755, name);
    let names: [&[u8]; 9] = [
        b"..",
        b".",
        b"/etc",
        b"../beside/new",
        b"sub/new",
        b"new\0",
        b"\x1b[2J",
        b"new\n",
        "\u{9b}2J".as_bytes(),
    ];
    let mut wrong: Vec<Vec<Vec<u8>>> = Vec::new();
    for name in names {
        wrong.push(vec![file(name), record(Kind::Data, 0, b"x"), end()]);
        wrong.push(vec![directory(name), record(Kind::Leave, 0, b""), end()]);
        wrong.push(vec![record(Kind::Link, 0, &[name, b"\0beside"].concat()), end()]);
    }
    wrong.push(vec![record(Kind::Link, 0, b"name\0\x1b[2J"), end()]);
    // A link, and then a way through it.
    let link = || record(Kind::Link, 0, b"out\0../beside");
    wrong.push(vec![link(), directory(b"out"), file(b"new"), record(Kind::Leave, 0, b""), end()]);
    // More of ends than of beginnings, less of them, and bytes of no file.
    wrong.push(vec![record(Kind::Leave, 0, b""), file(b"new"), end()]);
    wrong.push(vec![directory(b"sub"), end()]);
    wrong.push(vec![file(b"new")]);
    wrong.push(vec![record(Kind::Data, 0, b"x"), end()]);
    wrong.push(vec![vec![9; 9]]);
    wrong.push(vec![directory(b"d"); DEPTH_MAX + 1]);
    for records in wrong {
        let shown = format!("{:?}", String::from_utf8_lossy(&records.concat()));
        let (done, dir) = sent(records, &Limits::default());
        let error = done.map(|()| format!("{shown} was taken")).unwrap_err().to_string();
        assert!(!error.chars().any(char::is_control), "{error:?}");
        let left: Vec<_> = contents(dir.path()).into_keys().collect();
        assert_eq!(left, [Path::new("beside")], "{shown}");
    }
    // All of it in good order is taken, and none of it is more than it may be.
    let good = vec![link(), file(b"new"), record(Kind::Data, 0, b"x"), directory(b"sub")];
    let good = [good, vec![record(Kind::Leave, 0, b""), end()]].concat();
    let (done, dir) = sent(good, &Limits::default());
    done.unwrap();
    assert_eq!(contents(&dir.path().join("to")).len(), 3);
    let (done, dir) = sent(vec![record(Kind::File, 0o106_777, b"new"), end()], &Limits::default());
    done.unwrap();
    let mode = dir.path().join("to/new").metadata().unwrap().permissions().mode();
    assert_eq!(mode & 0o7777, 0o777);
}

#[test]
fn a_guest_that_sends_files_without_end_or_stops_is_left_and_so_is_nothing_of_it() {
    let limits = |max, idle| Limits { max, idle, ..Limits::default() };
    let endless = vec![record(Kind::Link, 0, b"link\0x"); 100];
    let (done, dir) = sent(endless, &limits(50 * 4096, LONG));
    assert!(matches!(done.unwrap_err(), ExecError::TooLarge { max: 204_800, .. }));
    assert_eq!(contents(dir.path()).len(), 1, "something was left");
    // Permissions that keep its owner out are no obstacle.
    let closed = vec![
        record(Kind::Directory, 0, b"closed"),
        record(Kind::File, 0, b"new"),
        record(Kind::Leave, 0, b""),
        record(Kind::Data, 0, b"x"),
    ];
    let (done, dir) = sent(closed, &limits(1 << 20, LONG));
    assert!(matches!(done.unwrap_err(), ExecError::Protocol));
    assert_eq!(contents(dir.path()).len(), 1, "something was left");
    let socket = impostor(|socket| {
        send(&socket, Frame::Started).unwrap();
        send(&socket, Frame::Mode(DIRECTORY | 0o755)).unwrap();
        send(&socket, Frame::Output(stream::STDOUT, &[1, 0, 0])).unwrap();
        // Until it is cut off.
        let _ = (&socket).read_to_end(&mut Vec::new());
    });
    let dir = tempfile::tempdir().unwrap();
    let limits = limits(1 << 20, Duration::from_millis(50));
    let to = dir.path().join("to");
    let error = crate::guest::get(socket, &explain(), "/tree".as_ref(), &to, &limits).unwrap_err();
    assert!(matches!(error, ExecError::Stalled { .. }), "{error}");
    assert_eq!(contents(dir.path()).len(), 0, "something was left");
}

#[test]
fn a_guest_that_takes_nothing_of_what_it_is_sent_or_never_says_that_it_has_it_is_left() {
    let dir = tempfile::tempdir().unwrap();
    let large = dir.path().join("large");
    fs::File::create(&large).unwrap().set_len(u64::from(WINDOW) * 2).unwrap();
    fs::write(dir.path().join("small"), "x").unwrap();
    // More than it takes, in a directory too; and less, of which it then says nothing.
    for from in [dir.path().to_owned(), large, dir.path().join("small")] {
        let socket = impostor(|socket| {
            send(&socket, Frame::Started).unwrap();
            // Until it is cut off.
            let _ = (&socket).read_to_end(&mut Vec::new());
        });
        let limits = Limits { idle: Duration::from_millis(100), ..Limits::default() };
        let to = Path::new("/to");
        let error = crate::guest::put(socket, &explain(), &from, to, &limits).unwrap_err();
        assert!(matches!(&error, ExecError::Stalled { path, .. } if path == "/to"), "{error}");
    }
}

#[test]
fn a_copy_that_is_stopped_ends_at_once_and_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let to = dir.path().join("to");
    for before in [true, false] {
        let limits = Limits::default();
        if before {
            assert!(!limits.stop.stop(), "nothing has begun");
        }
        let (stop, part) = (limits.stop.clone(), dir.path().to_owned());
        let socket = impostor(move |socket| {
            send(&socket, Frame::Started).unwrap();
            let _ = send(&socket, Frame::Mode(DIRECTORY | 0o755));
            let file = record(Kind::File, 0o644, b"half");
            let _ = send(&socket, Frame::Output(stream::STDOUT, &file));
            if !before {
                let begun = Instant::now();
                while part.read_dir().unwrap().count() == 0 {
                    assert!(begun.elapsed() < LONG);
                    std::thread::sleep(Duration::from_millis(1));
                }
                assert!(stop.stop());
            }
            // Until it is cut off.
            let _ = (&socket).read_to_end(&mut Vec::new());
        });
        let error =
            crate::guest::get(socket, &explain(), "/tree".as_ref(), &to, &limits).unwrap_err();
        assert!(matches!(error, ExecError::Stopped), "{error}");
        assert_eq!(contents(dir.path()).len(), 0, "something was left");
    }
}
