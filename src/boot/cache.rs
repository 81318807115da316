//! Unpacked kernels, kept under the user's cache directory, so that each is unpacked once.
//!
//! [`Kernel::open`](super::Kernel::open) asks [`Cache`] for the ELF of a `bzImage`, first by what
//! `stat` says of the file (nothing of it is read then), then by the hash of its contents, and
//! stores what it had to unpack. Any number of processes may do so at once: an entry is written
//! under a temporary name, renamed when complete, and never written to again. Nothing here is an
//! error: a cache that does not work costs the time of unpacking, and says so once.
//!
//! ```text
//!   $XDG_CACHE_HOME/husk/   (or ~/.cache/husk/), 0700
//!     kernels/<SHA-256 of the bzImage>.elf       entry.rs
//!     index/<device>-<inode of the bzImage>      index.rs
//! ```

mod entry;
mod index;

use std::ffi::OsString;
use std::fs::{self, DirBuilder, File};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::SystemTime;

use super::elf::Elf;
use super::image::Image;
use crate::files::write_renamed;
use crate::runtime::user;
pub(super) use entry::Key;
pub(super) use index::Stamp;

/// What is kept in a directory; of more, the files longest unused go.
#[derive(Clone, Copy)]
struct Room {
    files: usize,
    /// Of all files together.
    bytes: u64,
}

/// Kernels: a distribution's is 30 to 60 MiB, and half of it zeros that are not kept.
const KERNELS: Room = Room { files: 16, bytes: 512 << 20 };
/// Index records: they are small, and one is left by every kernel file deleted.
const RECORDS: Room = Room { files: 256, bytes: (256 * MAX_RECORD) as u64 };
/// An index record is some 300 bytes; what is longer is none.
const MAX_RECORD: usize = 1024;

/// Read-only: what is there is complete, and may be mapped into running guests.
const MODE: Option<u32> = Some(0o400);

/// Where unpacked kernels are kept, and whether the user was told that they are not.
#[derive(Debug)]
pub struct Cache {
    dir: Option<PathBuf>,
    warned: AtomicBool,
}

impl Cache {
    /// The user's cache: `$XDG_CACHE_HOME/husk`, else `~/.cache/husk` (*XDG Base Directory
    /// Specification*; relative paths do not count). Neither being set, there is none.
    pub fn user() -> Cache {
        Self::from_variables(std::env::var_os("XDG_CACHE_HOME"), std::env::var_os("HOME"))
    }

    /// A cache in a directory of the caller's, which is made when something is stored.
    #[cfg(test)]
    pub fn at(dir: impl Into<PathBuf>) -> Cache {
        Cache { dir: Some(dir.into()), warned: AtomicBool::new(false) }
    }

    /// No cache: every `bzImage` is unpacked every time. Nothing is said about it.
    #[cfg(test)]
    pub fn off() -> Cache {
        Cache { dir: None, warned: AtomicBool::new(true) }
    }

    /// Whether nothing can be kept: there is no directory for it.
    pub(super) fn is_off(&self) -> bool {
        self.dir.is_none()
    }

    fn from_variables(cache_home: Option<OsString>, home: Option<OsString>) -> Cache {
        let absolute =
            |value: Option<OsString>| value.map(PathBuf::from).filter(|p| p.is_absolute());
        let base = absolute(cache_home).or_else(|| absolute(home).map(|home| home.join(".cache")));
        Cache { dir: base.map(|base| base.join("husk")), warned: AtomicBool::new(false) }
    }

    /// The kernel unpacked earlier from the file that is as `source` says, its contents unread.
    pub(super) fn find_unread(&self, source: &Stamp) -> Option<(Image, Elf)> {
        let dir = self.dir.as_deref()?;
        private_dir(dir).ok()?;
        let text = index::read_short::<MAX_RECORD>(&record_path(dir, source))?;
        let key = index::key_of(&text, source)?;
        let (file, stamp) = self.open_entry(dir, &key)?;
        if index::trusts(&text, source, &key, &stamp) {
            return entry::parse(file, stamp.size()).or_else(|| discard(dir, &key));
        }
        self.verify(dir, &key, source, file, &stamp)
    }

    /// The kernel unpacked earlier from a file whose contents have the hash `key`.
    pub(super) fn find(&self, key: &Key, source: &Stamp) -> Option<(Image, Elf)> {
        let dir = self.dir.as_deref()?;
        private_dir(dir).ok()?;
        let (file, stamp) = self.open_entry(dir, key)?;
        self.verify(dir, key, source, file, &stamp)
    }

    /// Keeps `elf`, unpacked into `image`, as what a file of the hash `key` unpacks to, and returns
    /// it as it is kept. `None` if it cannot be.
    pub(super) fn store(
        &self,
        key: &Key,
        source: &Stamp,
        elf: &Elf,
        image: &Image,
    ) -> Option<(Image, Elf)> {
        let Some(dir) = self.dir.as_deref() else {
            self.warn(None, &"neither XDG_CACHE_HOME nor HOME is an absolute path");
            return None;
        };
        let stored = make_dirs(dir).and_then(|()| {
            write_renamed(&entry_path(dir, key), MODE, |file| entry::write(file, key, elf, image))
        });
        if let Err(error) = stored {
            self.warn(Some(dir), &error);
            return None;
        }
        prune(&dir.join("kernels"), KERNELS, Some(&entry_path(dir, key)));
        prune(&dir.join("index"), RECORDS, None);
        let (file, stamp) = self.open_entry(dir, key)?;
        self.record(dir, source, key, &stamp);
        entry::parse(file, stamp.size())
    }

    fn open_entry(&self, dir: &Path, key: &Key) -> Option<(File, Stamp)> {
        let file = File::open(entry_path(dir, key)).ok()?;
        let stamp = Stamp::of(&file.metadata().ok()?);
        Some((file, stamp))
    }

    /// Reads all of an entry, and records or throws it away as it turns out.
    fn verify(
        &self,
        dir: &Path,
        key: &Key,
        source: &Stamp,
        file: File,
        stamp: &Stamp,
    ) -> Option<(Image, Elf)> {
        if !entry::is_intact(&file, key) {
            log::info!("a damaged kernel in the cache is made anew");
            return discard(dir, key);
        }
        let found = entry::parse(file, stamp.size()).or_else(|| discard(dir, key))?;
        self.record(dir, source, key, stamp);
        Some(found)
    }

    /// Notes that the file that is as `source` says unpacks to the entry that is as `stamp` says.
    fn record(&self, dir: &Path, source: &Stamp, key: &Key, stamp: &Stamp) {
        if !source.is_settled() {
            return;
        }
        let text = index::text(source, key, stamp);
        let written =
            write_renamed(&record_path(dir, source), MODE, |file| file.write_all(text.as_bytes()));
        if let Err(error) = written {
            self.warn(Some(dir), &error);
        }
    }

    fn warn(&self, dir: Option<&Path>, why: &dyn std::fmt::Display) {
        if self.warned.swap(true, Ordering::Relaxed) {
            return;
        }
        let dir = dir.map(|dir| format!(" in {}", dir.display())).unwrap_or_default();
        log::warn!("unpacked kernels cannot be kept{dir}: {why}; every start unpacks again");
    }
}

fn entry_path(dir: &Path, key: &Key) -> PathBuf {
    dir.join("kernels").join(format!("{key}.elf"))
}

fn record_path(dir: &Path, source: &Stamp) -> PathBuf {
    dir.join("index").join(source.file_name())
}

/// Removes an entry that is not what it should be.
fn discard<T>(dir: &Path, key: &Key) -> Option<T> {
    // If it cannot be removed it is found damaged again next time.
    let _ = fs::remove_file(entry_path(dir, key));
    None
}

/// Makes the directories that are not there, for this user's eyes only.
fn make_dirs(dir: &Path) -> io::Result<()> {
    for dir in [dir.to_owned(), dir.join("kernels"), dir.join("index")] {
        DirBuilder::new().recursive(true).mode(0o700).create(&dir)?;
    }
    private_dir(dir)
}

/// Checks that nobody else can put a kernel of his there.
fn private_dir(dir: &Path) -> io::Result<()> {
    for dir in [dir.to_owned(), dir.join("kernels"), dir.join("index")] {
        let metadata = fs::metadata(&dir)?;
        if metadata.uid() != user() || metadata.mode() & 0o022 != 0 {
            let who = format!("{} belongs to or can be written by others", dir.display());
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, who));
        }
    }
    Ok(())
}

/// Removes what there is no `room` for, the files longest unused first and `spare` never, and what a
/// process that died left half-written. (An entry in use by another process stays readable to it:
/// only its name goes.)
fn prune(dir: &Path, room: Room, spare: Option<&Path>) {
    let Ok(listing) = fs::read_dir(dir) else { return };
    let mut files = Vec::new();
    for file in listing.flatten() {
        let Ok(metadata) = file.metadata() else { continue };
        let used = metadata.atime().max(metadata.mtime());
        let path = file.path();
        let temporary = path.extension().is_some_and(|extension| extension == "tmp");
        let age = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default().as_secs();
        if temporary && i64::try_from(age).is_ok_and(|now| now - used > 3600) {
            let _ = fs::remove_file(&path);
        } else if !temporary {
            let spared = Some(path.as_path()) == spare;
            files.push((spared, used, metadata.len(), path));
        }
    }
    files.sort();
    let (mut count, mut bytes) = (0, 0u64);
    for (spared, _, len, path) in files.into_iter().rev() {
        count += 1;
        bytes = bytes.saturating_add(len);
        if !spared && (count > room.files || bytes > room.bytes) {
            let _ = fs::remove_file(path);
        }
    }
}

#[cfg(test)]
mod tests;
