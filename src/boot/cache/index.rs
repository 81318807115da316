//! Which file was unpacked to which entry, by what `stat` says of both.
//!
//! A record is trusted only if both files are exactly as they were: same inode, size, and times of
//! change to the nanosecond. A source counts only if its last change was a while ago when it was
//! looked at, since a second change within one tick of a file system's clock would not show (git's
//! "racy index"). The entry counts only within one boot of the host: it is written without fsync,
//! so after a crash it may have lost pages while its size and times are right, and is read once.

use std::fs::{File, Metadata};
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, SystemTime};

use super::entry::Key;

/// The coarsest clock of a file system in use (FAT's), and so how old a change must be.
const SETTLED: Duration = Duration::from_secs(2);
/// The first line of a record; the digit changes with the format.
const HEADER: &str = "husk-index 1\n";

/// What `stat` says of a file that changes whenever its contents do.
#[derive(Debug, Clone)]
pub(in crate::boot) struct Stamp {
    dev: u64,
    ino: u64,
    size: u64,
    mtime: (i64, i64),
    ctime: (i64, i64),
    settled: bool,
}

impl Stamp {
    /// The stamp of a file just looked at.
    pub(in crate::boot) fn of(metadata: &Metadata) -> Stamp {
        let ctime = (metadata.ctime(), metadata.ctime_nsec());
        Stamp {
            dev: metadata.dev(),
            ino: metadata.ino(),
            size: metadata.len(),
            mtime: (metadata.mtime(), metadata.mtime_nsec()),
            ctime,
            settled: is_past(ctime, SystemTime::now()),
        }
    }

    /// Whether both are of the same file, unchanged between.
    pub(in crate::boot) fn is_same(&self, other: &Stamp) -> bool {
        self.line() == other.line()
    }

    /// The file's length in bytes.
    pub(super) fn size(&self) -> u64 {
        self.size
    }

    /// Whether a change after this stamp is sure to show in the next.
    pub(super) fn is_settled(&self) -> bool {
        self.settled
    }

    /// Keeps a source from being recorded.
    pub(in crate::boot) fn unsettle(&mut self) {
        self.settled = false;
    }

    /// The name of the record of a source.
    pub(super) fn file_name(&self) -> String {
        format!("{:x}-{:x}", self.dev, self.ino)
    }

    /// Makes a new file look as if it had been there for long.
    #[cfg(test)]
    pub(in crate::boot) fn settle(&mut self) {
        self.settled = true;
    }

    fn line(&self) -> String {
        let Stamp { dev, ino, size, mtime, ctime, .. } = self;
        let (m, c) = (mtime, ctime);
        format!("{dev:x} {ino:x} {size} {}.{:09} {}.{:09}\n", m.0, m.1, c.0, c.1)
    }
}

/// Whether a time of change is at least [`SETTLED`] before `now`.
fn is_past((seconds, nanos): (i64, i64), now: SystemTime) -> bool {
    let (Ok(seconds), Ok(nanos)) = (u64::try_from(seconds), u32::try_from(nanos)) else {
        return true; // before 1970
    };
    let changed = SystemTime::UNIX_EPOCH.checked_add(Duration::new(seconds, nanos));
    changed.and_then(|changed| changed.checked_add(SETTLED)).is_some_and(|time| time <= now)
}

/// The boot of this host, or nothing where /proc does not say.
fn boot_id() -> String {
    let id = read_short::<64>(Path::new("/proc/sys/kernel/random/boot_id"));
    id.map(|id| id.trim().to_owned()).unwrap_or_default()
}

/// The text of a file of less than `N` bytes, by one read.
pub(super) fn read_short<const N: usize>(path: &Path) -> Option<String> {
    let mut bytes = [0; N];
    let len = File::open(path).ok()?.read(&mut bytes).ok().filter(|len| *len < N)?;
    Some(str::from_utf8(bytes.get(..len)?).ok()?.to_owned())
}

/// The record that `source` unpacks to `key`, whose entry was whole when it was as `entry` says.
pub(super) fn text(source: &Stamp, key: &Key, entry: &Stamp) -> String {
    text_in(&boot_id(), source, key, entry)
}

fn text_in(boot: &str, source: &Stamp, key: &Key, entry: &Stamp) -> String {
    format!("{HEADER}{}{key}\n{}{boot}\n", source.line(), entry.line())
}

/// The key in a record, if the record is of `source`.
pub(super) fn key_of(text: &str, source: &Stamp) -> Option<Key> {
    let rest = text.strip_prefix(HEADER)?.strip_prefix(&source.line())?;
    Key::parse(rest.get(..64)?)
}

/// Whether by this record the entry needs no reading.
pub(super) fn trusts(record: &str, source: &Stamp, key: &Key, entry: &Stamp) -> bool {
    let boot = boot_id();
    !boot.is_empty() && record == text_in(&boot, source, key, entry)
}
