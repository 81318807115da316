//! Files of the host's, read and written with nobody trusted who can name or prepare them.
//!
//! The lowest floor there is: whoever opens what a user names, or puts a file where others may put
//! theirs, does it through here. Nothing here knows what the files mean.

use std::ffi::{CString, OsStr};
use std::fs::{self, File, Metadata, OpenOptions, Permissions};
use std::io::{self, Read};
use std::os::fd::{AsRawFd, FromRawFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

/// What it is, if it is no regular file.
pub fn not_a_file(metadata: &Metadata) -> Option<&'static str> {
    let kind = metadata.file_type();
    match () {
        () if kind.is_file() => None,
        () if kind.is_dir() => Some("a directory"),
        () if kind.is_fifo() => Some("a pipe"),
        () => Some("a device or socket"),
    }
}

/// Opens what is at `path` for reading and never waits, as opening a FIFO does for its writer. What it
/// is stands in its metadata.
///
/// # Errors
/// The host's.
pub fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path)
}

/// Opens the regular file at `path` for reading.
///
/// # Errors
/// The host's, and words of our own when it is no regular file.
pub fn open_regular(path: &Path) -> io::Result<File> {
    regular(open(path)?)
}

/// `file`, if it is a regular one.
///
/// # Errors
/// Words of our own when it is none.
pub fn regular(file: File) -> io::Result<File> {
    match not_a_file(&file.metadata()?) {
        Some(what) => Err(io::Error::other(format!("it is {what}, not a file"))),
        None => Ok(file),
    }
}

/// Reads all of the regular file at `path`, at most `max` bytes.
///
/// # Errors
/// The host's, and words of our own when it is no regular file or longer.
pub fn read(path: &Path, max: u64) -> io::Result<Vec<u8>> {
    read_all(open_regular(path)?, max)
}

/// Reads all of the regular file at `path` in `directory`, at most `max` bytes, wherever the names and
/// links on the way lead as long as that is not out of the directory.
///
/// # Errors
/// The host's, and words of our own when the way leads out, or it is no regular file or longer.
pub fn read_beneath(directory: &Path, path: &Path, max: u64) -> io::Result<Vec<u8>> {
    let directory = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_PATH | libc::O_DIRECTORY)
        .open(directory)?;
    let path = CString::new(path.as_os_str().as_bytes())?;
    // SAFETY: a structure of numbers, for which zero is a value of each.
    let mut how: libc::open_how = unsafe { std::mem::zeroed() };
    how.flags = (libc::O_RDONLY | libc::O_NONBLOCK | libc::O_CLOEXEC) as u64;
    how.resolve = libc::RESOLVE_BENEATH | libc::RESOLVE_NO_MAGICLINKS;
    // SAFETY: an open descriptor, a string with its end, and a structure with its size, all alive
    // through the call.
    let fd = unsafe {
        libc::syscall(
            libc::SYS_openat2,
            directory.as_raw_fd(),
            path.as_ptr(),
            &raw const how,
            size_of::<libc::open_how>(),
        )
    };
    let file = match RawFd::try_from(fd) {
        // SAFETY: it is new and nobody else's.
        Ok(fd) if fd >= 0 => unsafe { File::from_raw_fd(fd) },
        _ => {
            let error = io::Error::last_os_error();
            return Err(match error.raw_os_error() {
                Some(libc::EXDEV) => io::Error::other("it leads out of its directory"),
                _ => error,
            });
        }
    };
    read_all(regular(file)?, max)
}

fn read_all(file: File, max: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    // The length it has may not be the one it had.
    file.take(max.saturating_add(1)).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > max {
        return Err(io::Error::other(format!("it is longer than {} KiB", max >> 10)));
    }
    Ok(bytes)
}

/// Writes a file and puts it at `path`: others see all of it or none, and if this process is ended
/// before, nothing of it is left. The file gets exactly the permissions `mode`, or without one those
/// that new files have here.
///
/// # Errors
/// The host's, and what `fill` says. Then nothing is left behind.
pub fn write_renamed(
    path: &Path,
    mode: Option<u32>,
    fill: impl FnOnce(&mut File) -> io::Result<()>,
) -> io::Result<()> {
    let temporary = temporary(path);
    // Not for others before it has its permissions.
    let first = mode.map_or(0o666, |_| 0o600);
    let (mut file, mut has_name) = match nameless_beside(path, first) {
        Some(file) => (file, false),
        // The name is new, and no link that somebody has put there is followed.
        None => {
            let mut options = OpenOptions::new();
            (options.write(true).create_new(true).mode(first).open(&temporary)?, true)
        }
    };
    let permitted = match mode {
        Some(mode) => file.set_permissions(Permissions::from_mode(mode)),
        None => Ok(()),
    };
    let written = permitted.and_then(|()| fill(&mut file)).and_then(|()| {
        if !has_name {
            link(&file, &temporary)?;
            has_name = true;
        }
        fs::rename(&temporary, path)
    });
    if written.is_err() && has_name {
        // What cannot be removed now is not ours to remove.
        let _ = fs::remove_file(&temporary);
    }
    written
}

/// A name beside `path` that nobody has.
pub fn temporary(path: &Path) -> PathBuf {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let nanos = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default().as_nanos();
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    path.with_file_name(format!(".{}-{count}-{nanos:x}.tmp", std::process::id()))
}

/// The place of `name` in an open directory, wherever that has got to meanwhile.
pub fn beneath(directory: &File, name: &OsStr) -> PathBuf {
    Path::new("/proc/self/fd").join(directory.as_raw_fd().to_string()).join(name)
}

/// Opens `name` in an open directory for reading: no link, and without a wait.
///
/// # Errors
/// The host's; `ELOOP` or `ENOTDIR` of a link.
pub fn open_beneath(directory: &File, name: &OsStr, flags: i32) -> io::Result<File> {
    let flags = flags | libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_NOCTTY;
    OpenOptions::new().read(true).custom_flags(flags).open(beneath(directory, name))
}

/// Removes a directory and all that is in it, also where it has permissions that forbid its owner.
///
/// # Errors
/// The host's.
pub fn remove_all(path: &Path) -> io::Result<()> {
    if fs::remove_dir_all(path).is_ok() {
        return Ok(());
    }
    open_up(path)?;
    fs::remove_dir_all(path)
}

/// Gives the owner of a directory, and of those in it, all permissions. No link is followed.
fn open_up(path: &Path) -> io::Result<()> {
    let flags = libc::O_PATH | libc::O_DIRECTORY | libc::O_NOFOLLOW;
    let directory = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    let itself = beneath(&directory, OsStr::new(""));
    fs::set_permissions(&itself, Permissions::from_mode(0o700))?;
    for entry in fs::read_dir(&itself)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            open_up(&beneath(&directory, &entry.file_name()))?;
        }
    }
    Ok(())
}

/// A file without a name, on the file system of `path`; `None` where there are no such files.
fn nameless_beside(path: &Path, mode: u32) -> Option<File> {
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    OpenOptions::new().write(true).custom_flags(libc::O_TMPFILE).mode(mode).open(directory).ok()
}

/// Writes a file to where `path` leads: what a link leads to is written and the link stays, and what is no
/// regular file (a device, a pipe) is written to. A regular file is put there as [`write_renamed`] does.
///
/// # Errors
/// The host's, and what `fill` says; a pipe that nobody reads is not waited for.
pub fn write_to(
    path: &Path,
    mode: Option<u32>,
    fill: impl FnOnce(&mut File) -> io::Result<()>,
) -> io::Result<()> {
    let target = match fs::canonicalize(path) {
        Ok(target) => target,
        // A link to what is not there yet is not replaced by what was meant for it.
        Err(_) if path.is_symlink() => {
            return Err(io::Error::other("it is a link that leads nowhere"));
        }
        Err(_) => path.to_owned(),
    };
    match fs::metadata(&target) {
        Ok(metadata) if !metadata.is_file() => {
            let mut options = OpenOptions::new();
            options.write(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY);
            let mut file = options.open(&target).map_err(|e| match e.raw_os_error() {
                Some(libc::ENXIO) => io::Error::other("nobody reads there; start the reader first"),
                _ => e,
            })?;
            // From here on a reader that is slow is waited for.
            wait_again(&file)?;
            fill(&mut file)
        }
        _ => write_renamed(&target, mode, fill),
    }
}

/// Makes reading and writing of `file` wait.
fn wait_again(file: &File) -> io::Result<()> {
    // SAFETY: the descriptor is open as long as `file` lives, and no memory is passed.
    let done = unsafe {
        let flags = libc::fcntl(file.as_raw_fd(), libc::F_GETFL);
        flags >= 0 && libc::fcntl(file.as_raw_fd(), libc::F_SETFL, flags & !libc::O_NONBLOCK) >= 0
    };
    if done { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Gives a file without a name one that is new (`man 2 open`, O_TMPFILE).
fn link(file: &File, name: &Path) -> io::Result<()> {
    let from = CString::new(format!("/proc/self/fd/{}", file.as_raw_fd()))?;
    let to = CString::new(name.as_os_str().as_bytes())?;
    // SAFETY: two strings that outlive the call.
    let linked = unsafe {
        libc::linkat(
            libc::AT_FDCWD,
            from.as_ptr(),
            libc::AT_FDCWD,
            to.as_ptr(),
            libc::AT_SYMLINK_FOLLOW,
        )
    };
    if linked == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[test]
    fn what_is_no_file_or_too_long_is_not_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        fs::write(&path, [7; 1024]).unwrap();
        assert_eq!(read(&path, 1024).unwrap(), [7; 1024]);
        fs::write(&path, [7; 1025]).unwrap();
        assert!(read(&path, 1024).unwrap_err().to_string().contains("longer than 1 KiB"));
        for (path, what) in [("/dev/zero", "a device"), ("/", "a directory")] {
            assert!(read(Path::new(path), 1024).unwrap_err().to_string().contains(what));
        }
        let fifo = dir.path().join("fifo");
        let made = std::process::Command::new("mkfifo").arg(&fifo).status().unwrap();
        assert!(made.success());
        assert!(read(&fifo, 1024).unwrap_err().to_string().contains("a pipe"));
    }

    #[test]
    fn what_is_beneath_a_directory_is_read_and_no_way_leads_out_of_it() {
        use std::os::unix::fs::symlink;
        let dir = tempfile::tempdir().unwrap();
        let inside = dir.path().join("in/side");
        fs::create_dir_all(&inside).unwrap();
        fs::write(inside.join("file"), "in").unwrap();
        fs::write(dir.path().join("secret"), "out").unwrap();
        symlink("side/file", dir.path().join("in/link")).unwrap();
        symlink("../secret", dir.path().join("in/up")).unwrap();
        symlink(dir.path(), dir.path().join("in/away")).unwrap();
        let read = |path: &str| read_beneath(&dir.path().join("in"), Path::new(path), 1024);
        assert_eq!(read("side/file").unwrap(), b"in");
        assert_eq!(read("link").unwrap(), b"in");
        let absolute = dir.path().join("secret");
        for path in ["up", "away/secret", "../secret", absolute.to_str().unwrap()] {
            let error = read(path).unwrap_err().to_string();
            assert!(error.contains("leads out"), "{path}: {error}");
        }
        assert!(read("side").unwrap_err().to_string().contains("a directory"));
    }

    #[test]
    fn a_file_appears_whole_with_its_permissions_or_not_at_all() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        for mode in [0o400, 0o666] {
            write_renamed(&path, Some(mode), |file| file.write_all(b"x")).unwrap();
            assert_eq!(path.metadata().unwrap().permissions().mode() & 0o7777, mode);
        }
        let failed = write_renamed(&path, None, |file| {
            file.write_all(b"half")?;
            Err(io::Error::other("no"))
        });
        assert!(failed.is_err());
        assert_eq!(fs::read(&path).unwrap(), b"x");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "left behind");
    }

    #[test]
    fn what_is_being_written_has_no_name_that_an_interruption_could_leave() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        if nameless_beside(&path, 0o600).is_none() {
            return crate::skipped::skipped("a file system without O_TMPFILE");
        }
        write_renamed(&path, None, |file| {
            file.write_all(b"x")?;
            assert_eq!(fs::read_dir(dir.path())?.count(), 0);
            Ok(())
        })
        .unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"x");
    }

    #[test]
    fn a_link_stays_one_and_what_is_no_file_is_written_to_and_not_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::write(at("file"), "old").unwrap();
        std::os::unix::fs::symlink("file", at("link")).unwrap();
        std::os::unix::fs::symlink("none", at("lost")).unwrap();
        let write = |path: &Path| write_to(path, None, |file| file.write_all(b"new"));
        write(&at("link")).unwrap();
        assert!(at("link").is_symlink());
        assert_eq!(fs::read(at("file")).unwrap(), b"new");
        assert!(write(&at("lost")).unwrap_err().to_string().contains("leads nowhere"));
        assert!(write(dir.path()).is_err());
        write(Path::new("/dev/null")).unwrap();
        assert!(fs::metadata("/dev/null").unwrap().file_type().is_char_device());
        let fifo = at("fifo");
        assert!(std::process::Command::new("mkfifo").arg(&fifo).status().unwrap().success());
        assert!(write(&fifo).unwrap_err().to_string().contains("nobody reads there"));
        let mut options = OpenOptions::new();
        let mut reader = options.read(true).custom_flags(libc::O_NONBLOCK).open(&fifo).unwrap();
        write(&fifo).unwrap();
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        assert_eq!(text, "new");
    }
}
