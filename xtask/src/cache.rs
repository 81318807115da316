//! Where made things are kept, and how they get there whole. Everything lies under the target
//! directory (or `$HUSK_XTASK_CACHE`, so that several working trees can share it). An entry is
//! made beside its place and renamed into it, under a lock: an aborted run leaves rubbish that the
//! next one removes, never half an entry.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::ErrorKind;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, bail};

use crate::{deadline, host};

/// The root of the working tree.
pub fn workspace() -> PathBuf {
    let manifest = std::env::var_os("CARGO_MANIFEST_DIR")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
    manifest.parent().map_or_else(|| manifest.clone(), Path::to_owned)
}

/// Cargo's target directory of this working tree.
pub fn target_dir() -> PathBuf {
    match std::env::var_os("CARGO_TARGET_DIR") {
        Some(dir) => absolute(dir),
        None => workspace().join("target"),
    }
}

fn absolute(dir: OsString) -> PathBuf {
    std::path::absolute(&dir).unwrap_or_else(|_| PathBuf::from(dir))
}

fn cache_dir() -> PathBuf {
    std::env::var_os("HUSK_XTASK_CACHE").map_or_else(target_dir, absolute)
}

/// The outer machine's things.
pub fn testbed_dir() -> PathBuf {
    cache_dir().join("testbed")
}

/// Kernels, initramfs images and root file systems for guests.
pub fn guest_dir() -> PathBuf {
    cache_dir().join("guest")
}

/// What is written to this directory inside the testbed stays.
pub fn results_dir() -> PathBuf {
    target_dir().join("testbed").join("results")
}

/// The file or directory `name` in `dir`, made by `make` unless it is there already. `make` is
/// given a fresh path beside it (nothing stands there yet) and what it leaves there is renamed.
pub fn entry(dir: &Path, name: &str, make: impl FnOnce(&Path) -> Result<()>) -> Result<PathBuf> {
    let place = dir.join(name);
    if place.exists() {
        note_use(&lock_of(dir, name));
        return Ok(place);
    }
    fs::create_dir_all(dir).with_context(|| format!("making {}", dir.display()))?;
    let lock = lock_of(dir, name);
    let _lock = Lock::take(&lock)?;
    note_use(&lock);
    if place.exists() {
        return Ok(place); // another run made it while this one waited
    }
    let fresh = dir.join(format!(".{name}.new"));
    remove(&fresh)?;
    make(&fresh)?;
    fs::rename(&fresh, &place)
        .with_context(|| format!("renaming {} to {}", fresh.display(), place.display()))?;
    Ok(place)
}

/// The file that is locked while the entry is made, and whose time is that of its last use. The
/// entry's own time stays: husk knows by it that a kernel is still the one it has unpacked.
fn lock_of(dir: &Path, name: &str) -> PathBuf {
    dir.join(format!(".{name}.lock"))
}

fn note_use(lock: &Path) {
    let file = File::options().create(true).append(true).open(lock);
    // In a cache that cannot be written to nothing is forgotten either.
    let _ = file.and_then(|file| file.set_modified(SystemTime::now()));
}

/// How long an entry must not have been used to be forgotten: another working tree that shares the
/// cache may be using it.
const UNUSED: Duration = Duration::from_secs(24 * 3600);

/// Removes the entries of `dir` called `prefix…` that nobody has used for a day, except `keep`: the
/// older versions of it.
pub fn forget_others(dir: &Path, prefix: &str, keep: &[&str]) {
    let Ok(entries) = fs::read_dir(dir) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if name.starts_with(prefix) && !keep.contains(&&*name) && !in_use(dir, &name) {
            // An old version that stays costs space, nothing else.
            let _ = remove(&entry.path());
        }
    }
}

/// Whether an entry was made or used less than a day ago, or it cannot be told.
fn in_use(dir: &Path, name: &str) -> bool {
    let time = |path: PathBuf| fs::metadata(path).and_then(|meta| meta.modified());
    let last = time(lock_of(dir, name)).or_else(|_| time(dir.join(name)));
    // A time in the future is no reason to remove anything.
    last.map_or(true, |last| last.elapsed().map_or(true, |since| since < UNUSED))
}

/// Removes a file or a whole directory; it is no error when there is none.
pub fn remove(path: &Path) -> Result<()> {
    let removed = match fs::symlink_metadata(path) {
        Err(_) => return Ok(()),
        Ok(meta) if meta.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
    };
    removed.with_context(|| format!("removing {}", path.display()))
}

/// Names a version of something by what it is made of: FNV-1a over all of `parts`.
pub fn fingerprint(parts: &[&[u8]]) -> String {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for part in parts {
        let length = part.len().to_le_bytes();
        for byte in part.iter().chain(&length) {
            hash = (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }
    format!("{hash:016x}")
}

/// An exclusive lock on a file, held until dropped (also by the death of the process).
struct Lock {
    _file: File,
}

/// Nobody makes anything for so long: whoever holds a lock longer hangs.
const LOCK_LIMIT: Duration = Duration::from_secs(30 * 60);

impl Lock {
    fn take(path: &Path) -> Result<Self> {
        Self::take_within(path, deadline::within(LOCK_LIMIT))
    }

    fn take_within(path: &Path, limit: Duration) -> Result<Self> {
        let file = File::create(path).with_context(|| format!("making {}", path.display()))?;
        let (started, mut said) = (Instant::now(), false);
        loop {
            // SAFETY: the descriptor is open for as long as `file` lives; flock touches no memory.
            if unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) } == 0 {
                return Ok(Self { _file: file });
            }
            let error = std::io::Error::last_os_error();
            if error.kind() != ErrorKind::WouldBlock {
                return Err(error).with_context(|| format!("locking {}", path.display()));
            }
            if started.elapsed() >= limit {
                let limit = deadline::shown(limit);
                bail!("another run has held {} for {limit}; end it first", path.display());
            }
            if !said {
                host::say(format!("waiting for another run that holds {}", path.display()));
                said = true;
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_made_once_and_a_failed_making_leaves_none() {
        let dir = std::env::temp_dir().join(format!("husk-xtask-cache-{}", std::process::id()));
        let failed = entry(&dir, "x", |fresh| {
            fs::write(fresh, "half")?;
            anyhow::bail!("no network")
        });
        assert!(failed.is_err());
        assert!(!dir.join("x").exists());
        let made = entry(&dir, "x", |fresh| Ok(fs::write(fresh, "whole")?)).unwrap();
        assert_eq!(fs::read_to_string(&made).unwrap(), "whole");
        entry(&dir, "x", |_| anyhow::bail!("made twice")).unwrap();
        remove(&dir).unwrap();
    }

    #[test]
    fn a_lock_that_another_run_never_gives_back_is_waited_for_and_then_named() {
        let path = std::env::temp_dir().join(format!("husk-xtask-lock-{}", std::process::id()));
        let first = Lock::take(&path).unwrap();
        let second = Lock::take_within(&path, Duration::from_millis(150));
        let error = second.err().unwrap().to_string();
        drop(first);
        let third = Lock::take_within(&path, Duration::ZERO);
        remove(&path).unwrap();
        assert!(third.is_ok());
        assert!(error.contains(&path.display().to_string()), "{error}");
    }

    #[test]
    fn only_what_nobody_has_used_for_a_day_is_forgotten() {
        let dir = std::env::temp_dir().join(format!("husk-xtask-forget-{}", std::process::id()));
        let names = ["x-new", "x-old", "x-old-and-used", "x-kept", "y-old"];
        for name in names {
            entry(&dir, name, |fresh| Ok(fs::write(fresh, "")?)).unwrap();
        }
        let long_ago = SystemTime::now() - UNUSED - Duration::from_secs(60);
        for name in &names[1..] {
            let lock = File::options().append(true).open(lock_of(&dir, name)).unwrap();
            lock.set_modified(long_ago).unwrap();
        }
        entry(&dir, "x-old-and-used", |_| anyhow::bail!("it is there")).unwrap();
        forget_others(&dir, "x-", &["x-kept"]);
        let left: Vec<_> = names.into_iter().filter(|name| dir.join(name).exists()).collect();
        remove(&dir).unwrap();
        assert_eq!(left, ["x-new", "x-old-and-used", "x-kept", "y-old"]);
    }

    #[test]
    fn fingerprints_tell_apart_where_one_part_ends() {
        assert_ne!(fingerprint(&[b"ab", b"c"]), fingerprint(&[b"a", b"bc"]));
    }
}
