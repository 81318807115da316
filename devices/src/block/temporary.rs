//! Files without a name, for what is thrown away with its VM: the layer of an overlay, and a disk that only its
//! VM knows.
//!
//! They are in a directory that the user names, or in one for what is large and temporary, and never by
//! themselves in memory. Nobody else can open one, and the kernel removes it when the last who has it closes it.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use super::error::DiskError;

/// `TMPFS_MAGIC` and `RAMFS_MAGIC` (Linux `include/uapi/linux/magic.h`).
const IN_MEMORY: [u32; 2] = [0x0102_1994, 0x8584_58f6];

/// An empty file that becomes a disk, and is gone with it.
#[derive(Debug)]
pub struct Scratch {
    /// The file.
    pub file: File,
    /// The directory that it has no name in.
    pub directory: PathBuf,
}

impl Scratch {
    /// One in `dir`, or in a directory for what is large and temporary: the first of `$TMPDIR`, `/var/tmp` and the
    /// user's cache that has `room` bytes left.
    ///
    /// # Errors
    /// When it cannot be made there.
    pub fn create(dir: Option<&Path>, room: u64) -> Result<Scratch, DiskError> {
        let (file, directory) =
            make(dir, 0, room).map_err(|(dir, source)| DiskError::Scratch { dir, source })?;
        Ok(Scratch { file, directory })
    }

    /// Bytes that its file system has left for this user.
    ///
    /// # Errors
    /// The host's.
    pub fn free(&self) -> io::Result<u64> {
        free(&self.file)
    }
}

fn free(file: &File) -> io::Result<u64> {
    // SAFETY: all zeroes is a statvfs.
    let mut found: libc::statvfs = unsafe { std::mem::zeroed() };
    // SAFETY: fstatvfs fills the structure, which lives through the call.
    match unsafe { libc::fstatvfs(file.as_raw_fd(), &mut found) } {
        0 => Ok(found.f_bavail.saturating_mul(found.f_frsize)),
        _ => Err(io::Error::last_os_error()),
    }
}

/// A file of `size` bytes, all of them a hole, in `dir` or in the first directory that will do, with `room`
/// bytes left; and that directory, with an error too.
pub(super) fn make(
    dir: Option<&Path>,
    size: u64,
    room: u64,
) -> Result<(File, PathBuf), (PathBuf, io::Error)> {
    match dir {
        Some(dir) => match make_in(dir, size, room) {
            Ok(file) => Ok((file, dir.into())),
            Err(e) => Err((dir.into(), e)),
        },
        None => make_anywhere(size, room),
    }
}

/// One in a directory that is not in memory: `$TMPDIR`, `/var/tmp`, the user's cache.
fn make_anywhere(size: u64, room: u64) -> Result<(File, PathBuf), (PathBuf, io::Error)> {
    let variable = |name| std::env::var_os(name).map(PathBuf::from).filter(|p| p.is_absolute());
    let cache = variable("XDG_CACHE_HOME").or_else(|| Some(variable("HOME")?.join(".cache")));
    let candidates = [variable("TMPDIR"), Some("/var/tmp".into()), cache];
    let mut last = None;
    for dir in candidates.into_iter().flatten() {
        let made = make_in(&dir, size, room).and_then(|file| match file_system(&file) {
            Some(magic) if IN_MEMORY.contains(&magic) => {
                Err(io::Error::other("that is in memory, which is not what a disk should fill"))
            }
            _ => Ok(file),
        });
        match made {
            Ok(file) => return Ok((file, dir)),
            Err(e) => last = Some((dir, e)),
        }
    }
    Err(last.unwrap_or_else(|| ("/var/tmp".into(), io::ErrorKind::NotFound.into())))
}

/// One in `dir` that nobody else can open.
fn make_in(dir: &Path, size: u64, room: u64) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).mode(0o600);
    let unnamed = options.clone().custom_flags(libc::O_TMPFILE | libc::O_CLOEXEC).open(dir);
    let file = match unnamed {
        Ok(file) => file,
        // EISDIR: a kernel that does not know of such files.
        Err(e) if matches!(e.raw_os_error(), Some(libc::EOPNOTSUPP | libc::EISDIR)) => {
            unlinked(dir, &options)?
        }
        Err(e) => return Err(e),
    };
    if room > 0 && free(&file)? < room {
        return Err(io::Error::from_raw_os_error(libc::ENOSPC));
    }
    file.set_len(size)?;
    Ok(file)
}

/// The same where a file must have a name: for a moment.
fn unlinked(dir: &Path, options: &OpenOptions) -> io::Result<File> {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let nanos = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default().as_nanos();
    let path = dir.join(format!(".husk-overlay-{}-{count}-{nanos:x}", std::process::id()));
    let file = options.clone().create_new(true).custom_flags(libc::O_CLOEXEC).open(&path)?;
    fs::remove_file(&path)?;
    Ok(file)
}

/// The number of the file system that `file` lies in (Linux `include/uapi/linux/magic.h`).
pub(super) fn file_system(file: &File) -> Option<u32> {
    // SAFETY: all zeroes is a statfs.
    let mut found: libc::statfs = unsafe { std::mem::zeroed() };
    // SAFETY: fstatfs fills the statfs, which lives through the call.
    if unsafe { libc::fstatfs(file.as_raw_fd(), &mut found) } != 0 {
        return None;
    }
    // The numbers have 32 bits.
    Some(found.f_type as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_has_no_name_where_such_files_are_and_where_they_are_not() {
        let dir = tempfile::tempdir().unwrap();
        let file = make_in(dir.path(), 1000, 0).unwrap();
        assert_eq!(file.metadata().unwrap().len(), 1000);
        let mut options = OpenOptions::new();
        unlinked(dir.path(), options.read(true).write(true)).unwrap();
        assert_eq!(dir.path().read_dir().unwrap().count(), 0);
    }

    #[test]
    fn a_disk_of_its_own_knows_what_is_free_and_a_directory_that_is_none_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let scratch = Scratch::create(Some(dir.path()), 4096).unwrap();
        assert!(scratch.free().unwrap() > 0 && scratch.directory == dir.path());
        let error = Scratch::create(Some(&dir.path().join("none")), 0).unwrap_err().to_string();
        assert!(error.contains("/none") && error.contains("dir=DIR"), "{error}");
        // Nobody has so much, wherever it is looked for.
        for dir in [Some(dir.path()), None] {
            let error = Scratch::create(dir, u64::MAX).unwrap_err().to_string();
            assert!(error.contains("No space") || error.contains("in memory"), "{error}");
        }
    }
}
