//! Files of the host's, read and written with nobody trusted who can name or prepare them.
//!
//! The lowest floor there is: whoever opens what a user names, or puts a file where others may put
//! theirs, does it through here. Nothing here knows what the files mean.

use std::ffi::CString;
use std::fs::{self, File, Metadata, OpenOptions, Permissions};
use std::io::{self, Read};
use std::os::fd::{AsRawFd, FromRawFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt, PermissionsExt};
use std::path::{Component, Path};
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

fn regular(file: File) -> io::Result<File> {
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

/// Whether `path` consists of names only, with nothing that leads upwards or begins at the root.
pub fn is_beneath(path: &Path) -> bool {
    let mut parts = path.components().peekable();
    parts.peek().is_some() && parts.all(|part| matches!(part, Component::Normal(_)))
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

/// Writes a file under a temporary name beside `path` and renames it: others see all of it or none.
/// The temporary name is new, and no link that somebody has put there is followed. The file gets
/// exactly the permissions `mode`, or without one those that new files have here.
///
/// # Errors
/// The host's, and what `fill` says. Then nothing is left behind.
pub fn write_renamed(
    path: &Path,
    mode: Option<u32>,
    fill: impl FnOnce(&mut File) -> io::Result<()>,
) -> io::Result<()> {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let nanos = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default().as_nanos();
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let temporary = path.with_file_name(format!(".{}-{count}-{nanos:x}.tmp", std::process::id()));
    let created = OpenOptions::new()
        .write(true)
        .create_new(true)
        // Not for others before it has its permissions.
        .mode(mode.map_or(0o666, |_| 0o600))
        .open(&temporary);
    let mut file = created?;
    let permitted = match mode {
        Some(mode) => file.set_permissions(Permissions::from_mode(mode)),
        None => Ok(()),
    };
    let written =
        permitted.and_then(|()| fill(&mut file)).and_then(|()| fs::rename(&temporary, path));
    if written.is_err() {
        // What cannot be removed now is not ours to remove.
        let _ = fs::remove_file(&temporary);
    }
    written
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
        for (path, beneath) in
            [("a/b.ko", true), ("", false), ("/a", false), ("a/../../b", false), ("..", false)]
        {
            assert_eq!(is_beneath(Path::new(path)), beneath, "{path}");
        }
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
}
