//! `--metrics FILE`: what the devices have done, written when the VM starts, at each SIGUSR1, and at
//! the end. Nothing is written in between, so that an idle VM costs nothing.

use std::fmt::Display;
use std::hash::{BuildHasher, RandomState};
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use husk::RunningVm;
use serde_json::Value;

/// No metrics are longer, in bytes.
const MOST: u64 = 1 << 20;

/// The file, known to be writable.
#[derive(Clone)]
pub struct File {
    path: PathBuf,
    way: Way,
}

/// How what is written gets there.
#[derive(Clone)]
enum Way {
    /// By a file beside it that takes the place of the one before, so that nobody reads half of one: in
    /// the directory that was there at the start, for it may be one that a guest or another user writes
    /// to as well.
    Beside(Arc<OwnedFd>),
    /// What is no regular file (a pipe, a terminal) is written to itself. It stays open, so that a reader
    /// has all of it, and nobody waits for one that does not read.
    Open(Arc<std::fs::File>),
}

impl File {
    /// Makes `path`, empty, or finds that it can be written to. What is in a file already must be
    /// metrics: whoever mistypes its name shall not lose another file.
    ///
    /// # Errors
    /// A sentence that names the file.
    pub fn make(path: &Path) -> Result<Self, String> {
        let refused = |e: &dyn Display| format!("--metrics {}: {e}", path.display());
        // What a link leads to is replaced, not the link.
        let target = path.canonicalize().unwrap_or_else(|_| path.to_owned());
        let present = match std::fs::metadata(&target) {
            Ok(metadata) if !metadata.is_file() => {
                let open = open_unwaited(&target).map_err(|e| refused(&e))?;
                return Ok(Self { path: target, way: Way::Open(Arc::new(open)) });
            }
            Ok(metadata) => metadata.len() > 0,
            Err(e) if e.kind() == io::ErrorKind::NotFound => false,
            Err(e) => return Err(refused(&e)),
        };
        if present && !are_metrics(&target).map_err(|e| refused(&e))? {
            return Err(refused(
                &"it holds something else than metrics, which would be lost; name another file, or \
                  remove it",
            ));
        }
        let parent = target.parent().filter(|parent| !parent.as_os_str().is_empty());
        let mut options = std::fs::OpenOptions::new();
        options.read(true).custom_flags(libc::O_PATH | libc::O_DIRECTORY);
        let dir = options.open(parent.unwrap_or(Path::new("."))).map_err(|e| refused(&e))?;
        let file = Self { path: target, way: Way::Beside(Arc::new(dir.into())) };
        file.put("").map_err(|e| refused(&e))?;
        Ok(file)
    }

    /// Writes what `vm`'s devices have done so far.
    pub fn write(&self, vm: &RunningVm) {
        if let Err(e) = self.put(&vm.metrics().to_json()) {
            log::warn!("--metrics {}: {e}", self.path.display());
        }
    }

    fn put(&self, text: &str) -> io::Result<()> {
        match &self.way {
            Way::Beside(dir) => {
                let dir = PathBuf::from(format!("/proc/self/fd/{}", dir.as_raw_fd()));
                replace(&dir.join(self.path.file_name().unwrap_or_default()), text)
            }
            Way::Open(file) => (&**file).write_all(text.as_bytes()),
        }
    }
}

/// Opens what is no regular file for writing, without a wait for a reader.
fn open_unwaited(path: &Path) -> io::Result<std::fs::File> {
    let mut options = std::fs::OpenOptions::new();
    options.write(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY);
    options.open(path).map_err(|e| match e.raw_os_error() {
        Some(libc::ENXIO) => io::Error::other("nobody reads there; start the reader first"),
        _ => e,
    })
}

/// Whether a file holds metrics, of this husk or of another version of it.
fn are_metrics(path: &Path) -> io::Result<bool> {
    let mut text = Vec::new();
    std::fs::File::open(path)?.take(MOST).read_to_end(&mut text)?;
    let Ok(Value::Object(metrics)) = serde_json::from_slice(&text) else { return Ok(false) };
    let is = |name: &str, kind: fn(&Value) -> bool| metrics.get(name).is_some_and(kind);
    Ok(metrics.len() == 2 && is("seconds", Value::is_number) && is("devices", Value::is_object))
}

/// Puts a file with `text` in the place of `path`. Its first name is one that nobody can have foreseen, and is
/// new: no link is followed, and no pipe waited for.
fn replace(path: &Path, text: &str) -> io::Result<()> {
    let random = RandomState::new().hash_one(path);
    let beside = path.with_file_name(format!(".husk-{random:016x}.tmp"));
    let mut file = std::fs::File::create_new(&beside)?;
    let replaced = file.write_all(text.as_bytes()).and_then(|()| std::fs::rename(&beside, path));
    if replaced.is_err() {
        // What cannot be removed now is left.
        let _ = std::fs::remove_file(&beside);
    }
    replaced
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_missing_empty_or_metrics_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("m");
        for good in ["", "{\"seconds\": 1.5, \"devices\": {\"disk0\": {\"of\": \"tomorrow\"}}}\n"] {
            std::fs::write(&path, good).unwrap();
            assert!(File::make(&path).is_ok(), "{good}");
            assert_eq!(std::fs::read(&path).unwrap(), b"");
        }
        let other = "{\"seconds\": 1, \"devices\": {}, \"more\": 0}";
        for bad in ["x", "{}", "[]", "{\"seconds\": 1}", other, "\0"] {
            std::fs::write(&path, bad).unwrap();
            let error = File::make(&path).err().unwrap();
            assert!(error.contains("/m: it holds something else"), "{error}");
            assert_eq!(std::fs::read(&path).unwrap(), bad.as_bytes());
        }
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
        assert!(File::make(&dir.path().join("new")).is_ok());
        assert!(dir.path().join("new").exists());
    }

    #[test]
    fn what_a_link_leads_to_is_replaced_and_files_beside_it_stay() {
        let dir = tempfile::tempdir().unwrap();
        let (path, link) = (dir.path().join("m"), dir.path().join("link"));
        std::fs::write(&path, "").unwrap();
        std::os::unix::fs::symlink(&path, &link).unwrap();
        let near = dir.path().join("m.new");
        std::fs::write(&near, "precious").unwrap();
        let file = File::make(&link).unwrap();
        file.put("text").unwrap();
        assert!(link.is_symlink());
        assert_eq!(std::fs::read(&path).unwrap(), b"text");
        // A link in its place, which somebody has put there meanwhile, is replaced itself.
        std::fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink(&near, &path).unwrap();
        file.put("more").unwrap();
        assert!(!path.is_symlink());
        assert_eq!(std::fs::read(&near).unwrap(), b"precious");
        // And so is nothing elsewhere, when the directory is another one by now.
        let (moved, other) = (dir.path().join("moved"), tempfile::tempdir().unwrap());
        let within = dir.path().join("within");
        std::fs::create_dir(&within).unwrap();
        let file = File::make(&within.join("m")).unwrap();
        std::fs::rename(&within, &moved).unwrap();
        std::os::unix::fs::symlink(other.path(), &within).unwrap();
        file.put("text").unwrap();
        assert_eq!(std::fs::read_dir(other.path()).unwrap().count(), 0);
        assert_eq!(std::fs::read(moved.join("m")).unwrap(), b"text");
    }

    #[test]
    fn a_pipe_that_nobody_reads_is_refused_and_a_reader_has_all_that_is_written() {
        let dir = tempfile::tempdir().unwrap();
        let fifo = dir.path().join("fifo");
        assert!(std::process::Command::new("mkfifo").arg(&fifo).status().unwrap().success());
        let error = File::make(&fifo).err().unwrap();
        assert!(error.contains("nobody reads there"), "{error}");
        let mut options = std::fs::OpenOptions::new();
        let mut reader = options.read(true).custom_flags(libc::O_NONBLOCK).open(&fifo).unwrap();
        let file = File::make(&fifo).unwrap();
        file.put("one").unwrap();
        file.put("two").unwrap();
        drop(file);
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        assert_eq!(text, "onetwo");
        assert!(File::make(dir.path()).is_err());
    }
}
