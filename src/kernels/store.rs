//! husk's own kernel directory as something that is written to: one fetch at a time, and nothing
//! seen of it before it is complete.
//!
//! All work is done in `.fetch-PID/` inside the directory itself, so that renaming moves it into
//! place at once. The directory is locked meanwhile; what other `.fetch-…` there is was left by a
//! fetch that was interrupted, and is removed.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::error::FetchError;

const UNDER_WAY: &str = ".fetch-";
/// How often it is tried to lock a directory that is locked.
const TICK: Duration = Duration::from_millis(100);

/// The kernel directory, locked, with a temporary directory in it. Dropping it removes that.
pub struct Store {
    directory: PathBuf,
    work: PathBuf,
    _lock: File,
}

impl Store {
    /// Makes `directory` if need be and locks it. `waiting` is called again and again as long as
    /// another fetch has it.
    pub fn open(
        directory: &Path,
        mut waiting: impl FnMut() -> Result<(), FetchError>,
    ) -> Result<Self, FetchError> {
        fs::create_dir_all(directory).map_err(FetchError::file("make", directory))?;
        let lock = File::open(directory).map_err(FetchError::file("open", directory))?;
        while let Err(e) = lock_now(&lock) {
            match e.kind() {
                io::ErrorKind::WouldBlock => waiting()?,
                io::ErrorKind::Interrupted => continue,
                _ => return Err(FetchError::file("lock", directory)(e)),
            }
            std::thread::sleep(TICK);
        }

        for entry in fs::read_dir(directory).map_err(FetchError::file("read", directory))? {
            let path = entry.map_err(FetchError::file("read", directory))?.path();
            if super::name_of(&path).starts_with(UNDER_WAY) {
                fs::remove_dir_all(&path).map_err(FetchError::file("remove", &path))?;
            }
        }
        let work = directory.join(format!("{UNDER_WAY}{}", std::process::id()));
        fs::create_dir(&work).map_err(FetchError::file("make", &work))?;
        Ok(Self { directory: directory.to_owned(), work, _lock: lock })
    }

    /// A new directory to work in, gone when the store is dropped.
    pub fn scratch(&self, name: &str) -> Result<PathBuf, FetchError> {
        let path = self.work.join(name);
        fs::create_dir(&path).map_err(FetchError::file("make", &path))?;
        Ok(path)
    }

    /// The version of the kernel that came from exactly the files in `packages`, if it is here.
    pub fn find(&self, packages: &str) -> Option<String> {
        let mut kernels = super::kernels_in(&self.directory).into_iter();
        let same = |kernel: &PathBuf| {
            fs::read_to_string(kernel.join("packages")).is_ok_and(|theirs| theirs == packages)
        };
        kernels.find(same).map(|kernel| super::name_of(&kernel))
    }

    /// Moves `kernel` into place as `version`, instead of what may be there; returns its new path.
    pub fn install(&self, kernel: &Path, version: &str) -> Result<PathBuf, FetchError> {
        let place = self.directory.join(version);
        let mut moved = fs::rename(kernel, &place);
        if moved.is_err() && place.symlink_metadata().is_ok() {
            // A directory that is not empty cannot be renamed over, but exchanged in one step. What
            // was there goes with the work directory.
            moved = exchange(kernel, &place).or_else(|_| {
                fs::rename(&place, self.work.join("replaced"))?;
                fs::rename(kernel, &place)
            });
        }
        moved.map_err(FetchError::file("put a kernel at", &place))?;
        Ok(place)
    }

    /// Makes `version` the kernel that `husk run` takes.
    pub fn make_default(&self, version: &str) -> Result<(), FetchError> {
        let (new, link) = (self.work.join("default"), self.directory.join("default"));
        symlink(version, &new)
            .and_then(|()| fs::rename(&new, &link))
            .map_err(FetchError::file("set the link", &link))
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        // What cannot be removed now is by the next fetch.
        let _ = fs::remove_dir_all(&self.work);
    }
}

/// Whether `version` can be the name of a kernel's directory.
pub fn is_name(version: &str) -> bool {
    !version.is_empty()
        && version != "default"
        && !version.starts_with('.')
        && !version.contains('/')
}

fn lock_now(file: &File) -> io::Result<()> {
    // SAFETY: the descriptor is open as long as `file` lives.
    match unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Exchanges two directories in one step.
fn exchange(one: &Path, other: &Path) -> io::Result<()> {
    let c = |path: &Path| std::ffi::CString::new(path.as_os_str().as_bytes());
    let (one, other) = (c(one)?, c(other)?);
    // SAFETY: both are NUL-terminated strings that outlive the call.
    let done = unsafe {
        let (here, flag) = (libc::AT_FDCWD, libc::RENAME_EXCHANGE);
        libc::renameat2(here, one.as_ptr(), here, other.as_ptr(), flag)
    };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(directory: &Path) -> Vec<String> {
        let mut names: Vec<_> =
            super::super::entries(directory).map(|p| super::super::name_of(&p)).collect();
        names.sort();
        names
    }

    fn staged(store: &Store, content: &str) -> PathBuf {
        let kernel = store.scratch(content).unwrap();
        fs::write(kernel.join("vmlinuz"), content).unwrap();
        fs::write(kernel.join("packages"), content).unwrap();
        kernel
    }

    #[test]
    fn a_kernel_appears_whole_and_becomes_the_default() {
        let dir = tempfile::tempdir().unwrap();
        let own = dir.path().join("husk/kernels");
        let store = Store::open(&own, || panic!("nobody else is here")).unwrap();
        let kernel = staged(&store, "one");
        assert_eq!(super::super::newest(&own), None);
        assert_eq!(store.install(&kernel, "6.1").unwrap(), own.join("6.1"));
        store.make_default("6.1").unwrap();
        assert_eq!(store.find("one").as_deref(), Some("6.1"));
        assert_eq!(store.find("two"), None);
        drop(store);
        assert_eq!(names(&own), ["6.1", "default"]);
        assert_eq!(fs::read_link(own.join("default")).unwrap(), Path::new("6.1"));
    }

    #[test]
    fn a_newer_build_of_the_same_version_and_a_new_default_replace_the_old() {
        let dir = tempfile::tempdir().unwrap();
        for content in ["one", "two"] {
            let store = Store::open(dir.path(), || Ok(())).unwrap();
            let kernel = staged(&store, content);
            store.install(&kernel, "6.1").unwrap();
            store.make_default("6.1").unwrap();
        }
        assert_eq!(names(dir.path()), ["6.1", "default"]);
        assert_eq!(fs::read(dir.path().join("default/vmlinuz")).unwrap(), b"two");
    }

    #[test]
    fn what_an_interrupted_fetch_left_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join(".fetch-4711/root/boot")).unwrap();
        drop(Store::open(dir.path(), || Ok(())).unwrap());
        assert!(names(dir.path()).is_empty());
    }

    #[test]
    fn a_second_fetch_waits_for_the_first() {
        let dir = tempfile::tempdir().unwrap();
        let first = Store::open(dir.path(), || Ok(())).unwrap();
        let (sender, waiting) = std::sync::mpsc::channel();
        let path = dir.path().to_owned();
        let second = std::thread::spawn(move || {
            Store::open(&path, || {
                // Nobody listens after the first time.
                let _ = sender.send(());
                Ok(())
            })
            .is_ok()
        });
        waiting.recv().unwrap();
        assert!(first.work.exists());
        drop(first);
        assert!(second.join().unwrap());
    }

    #[test]
    fn a_version_is_one_visible_name() {
        assert!(is_name("6.1.0-56-cloud-amd64"));
        for bad in ["", "default", ".fetch-1", "..", "a/b"] {
            assert!(!is_name(bad), "{bad}");
        }
    }
}
