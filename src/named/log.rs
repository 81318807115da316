//! What a VM that nobody sits in front of writes: two files beside its name, of which the older is thrown
//! away when the newer is full, so that a guest that never stops writing fills nobody's disk.
//!
//! ```text
//! NAME.log.old ◀── linked when full ── NAME.log ◀─ Log (the VM's husk)
//!      └────────────────┬───────────────┘
//!                   LogReader (any process of the user's), woken by inotify(7)
//! ```

use std::ffi::CString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::directory::{Directory, check};
use super::error::{NameError, host};
use crate::files;

/// Bytes in each of the two files. They are in the host's memory where the runtime directory is.
pub(super) const HALF: u64 = 1 << 20;
/// Bytes that are read at a time.
const PIECE: usize = 32 << 10;

/// The older one's path.
pub(super) fn old(path: &Path) -> PathBuf {
    path.with_extension("log.old")
}

/// The path of the one that is about to be the newer.
pub(super) fn next(path: &Path) -> PathBuf {
    path.with_extension("log.next")
}

/// Where a VM's output is kept.
#[derive(Debug)]
pub struct Log {
    path: PathBuf,
    file: File,
    len: u64,
    half: u64,
}

impl Log {
    pub(super) fn create(path: PathBuf, half: u64) -> io::Result<Log> {
        Ok(Log { file: begin(&path)?, path, len: 0, half })
    }

    /// Has a new file take the place of the full one, which is the older from then on. There is one at the path at
    /// any time: a reader that finds none would take it for the end.
    fn turn(&self) -> io::Result<File> {
        let (older, next) = (old(&self.path), next(&self.path));
        for path in [&next, &older] {
            match fs::remove_file(path) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
                _ => {}
            }
        }
        let file = begin(&next)?;
        // Where that cannot be, or somebody has removed it, what was written is lost rather than what comes.
        let _ = fs::hard_link(&self.path, older);
        fs::rename(next, &self.path)?;
        Ok(file)
    }
}

/// A new file, for nobody else.
fn begin(path: &Path) -> io::Result<File> {
    OpenOptions::new().append(true).create_new(true).mode(0o600).open(path)
}

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.len >= self.half {
            self.file = self.turn()?;
            self.len = 0;
        }
        let count = self.file.write(bytes)?;
        self.len += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What is kept of a VM's output, also after its end.
#[derive(Debug)]
pub struct LogReader {
    path: PathBuf,
    /// What comes before, until it is read.
    older: Option<File>,
    file: File,
    /// Tells when there is more.
    notify: OwnedFd,
}

impl LogReader {
    /// Of the VM called `name`; `None` when nothing is kept of one.
    ///
    /// # Errors
    /// When it is no name, or the host refuses.
    pub fn open(name: &str) -> Result<Option<LogReader>, NameError> {
        check(name)?;
        let path = Directory::open()?.log(name);
        match LogReader::at(path.clone()) {
            Ok(reader) => Ok(Some(reader)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(host(&path, "read")(e)),
        }
    }

    pub(super) fn at(path: PathBuf) -> io::Result<LogReader> {
        let file = files::open_regular(&path)?;
        let older = files::open_regular(&old(&path)).ok();
        // It was renamed just now: what came before it is lost, and it is not shown twice.
        let older = older.filter(|older| identity(older).ok() != identity(&file).ok());
        // SAFETY: plain flags; it makes a new descriptor, or fails.
        let fd = unsafe { libc::inotify_init1(libc::IN_CLOEXEC | libc::IN_NONBLOCK) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: it is new and nobody else's.
        let notify = unsafe { OwnedFd::from_raw_fd(fd) };
        let reader = LogReader { path, older, file, notify };
        reader.watch()?;
        Ok(reader)
    }

    /// Wants to be told of what happens to the newer file, which is this one, whatever is at its path by now:
    /// that it is written to, and that it loses a name to the next (`man 7 inotify`: IN_ATTRIB, link count).
    fn watch(&self) -> io::Result<()> {
        let path = CString::new(format!("/proc/self/fd/{}", self.file.as_raw_fd()))?;
        let what = libc::IN_MODIFY | libc::IN_ATTRIB;
        // SAFETY: an open descriptor, and a string with its end that lives through the call.
        match unsafe { libc::inotify_add_watch(self.notify.as_raw_fd(), path.as_ptr(), what) } {
            0.. => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Leaves out all but the last `bytes` bytes.
    ///
    /// # Errors
    /// The host's.
    pub fn skip(&mut self, bytes: u64) -> io::Result<()> {
        let len = self.file.metadata()?.len();
        self.file.seek(SeekFrom::Start(len.saturating_sub(bytes)))?;
        if let Some(older) = &mut self.older {
            let wanted = bytes.saturating_sub(len);
            let start = older.metadata()?.len().saturating_sub(wanted);
            older.seek(SeekFrom::Start(start))?;
        }
        Ok(())
    }

    /// Gives `to` all that there is and has not been read.
    ///
    /// # Errors
    /// Those of `to`, or the host's.
    pub fn carry(&mut self, mut to: impl FnMut(&[u8]) -> io::Result<()>) -> io::Result<()> {
        let mut room = vec![0; PIECE];
        loop {
            let from = self.older.as_mut().unwrap_or(&mut self.file);
            match from.read(&mut room)? {
                0 if self.older.is_some() => self.older = None,
                0 if !self.goes_on()? => return Ok(()),
                0 => {}
                count => to(room.get(..count).unwrap_or_default())?,
            }
        }
    }

    /// Goes on to the file that has taken the place of the one that is read, if one has.
    fn goes_on(&mut self) -> io::Result<bool> {
        let next = match files::open_regular(&self.path) {
            Ok(next) => next,
            // It is forgotten: no more comes.
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(e) => return Err(e),
        };
        if identity(&next)? == identity(&self.file)? {
            return Ok(false);
        }
        // What was written to it before it was renamed is read first.
        self.older = Some(std::mem::replace(&mut self.file, next));
        self.watch()?;
        Ok(true)
    }

    /// Waits until there may be more; false when `end` has something to say instead.
    ///
    /// # Errors
    /// The host's.
    pub fn wait(&mut self, end: impl AsFd) -> io::Result<bool> {
        let poll = |fd| libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
        let mut fds = [poll(self.notify.as_raw_fd()), poll(end.as_fd().as_raw_fd())];
        // SAFETY: two of them, which live through the call.
        while unsafe { libc::poll(fds.as_mut_ptr(), 2, -1) } < 0 {
            let error = io::Error::last_os_error();
            if error.kind() != io::ErrorKind::Interrupted {
                return Err(error);
            }
        }
        let [more, ended] = fds.map(|fd| fd.revents != 0);
        if more {
            let mut room = [0u8; 4096];
            // What happened does not matter; that it did is looked at by reading on.
            // SAFETY: an open descriptor, and room of that length.
            unsafe { libc::read(self.notify.as_raw_fd(), room.as_mut_ptr().cast(), room.len()) };
        }
        Ok(!ended)
    }
}

fn identity(file: &File) -> io::Result<(u64, u64)> {
    file.metadata().map(|metadata| (metadata.dev(), metadata.ino()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(reader: &mut LogReader) -> String {
        let mut all = Vec::new();
        reader.carry(|bytes| all.write_all(bytes)).unwrap();
        String::from_utf8(all).unwrap()
    }

    #[test]
    fn a_log_keeps_its_end_and_a_reader_misses_nothing_of_what_it_follows() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("vm.log");
        let mut log = Log::create(path.clone(), 4).unwrap();
        let mut follower = LogReader::at(path.clone()).unwrap();
        log.write_all(b"aaaa").unwrap();
        assert_eq!(read(&mut follower), "aaaa");
        for piece in ["b", "bbb", "cccc"] {
            log.write_all(piece.as_bytes()).unwrap();
        }
        // Two files on: what lies between is lost to one that did not keep up, and no more is.
        assert_eq!(read(&mut follower), "cccc");
        log.write_all(b"d").unwrap();
        let (near, _far) = std::os::unix::net::UnixStream::pair().unwrap();
        assert!(follower.wait(&near).unwrap());
        assert_eq!(read(&mut follower), "d");
        assert_eq!(read(&mut LogReader::at(path.clone()).unwrap()), "ccccd");
        for (bytes, left) in [(0, ""), (1, "d"), (2, "cd"), (9, "ccccd")] {
            let mut reader = LogReader::at(path.clone()).unwrap();
            reader.skip(bytes).unwrap();
            assert_eq!(read(&mut reader), left);
        }
        drop(_far);
        assert!(!follower.wait(&near).unwrap());
        assert_eq!(dir.path().read_dir().unwrap().count(), 2);
        assert!(Log::create(path, 4).is_err(), "it is there already");
    }

    #[test]
    fn a_reader_sleeps_through_no_change_of_files() {
        const PIECES: u32 = 300;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("vm.log");
        let mut log = Log::create(path.clone(), 1).unwrap();
        let mut follower = LogReader::at(path.clone()).unwrap();
        let (near, far) = std::os::unix::net::UnixStream::pair().unwrap();
        let (tell, told) = std::sync::mpsc::channel();
        std::thread::scope(|scope| {
            scope.spawn(move || {
                while follower.wait(&near).unwrap() {
                    let text = read(&mut follower);
                    // A writer that has given up waits for no more.
                    text.split_terminator('\n').for_each(|line| drop(tell.send(line.to_owned())));
                }
            });
            // Dropped also when this fails, so that the reader ends.
            let _far = far;
            for piece in 0..PIECES {
                log.write_all(format!("{piece}\n").as_bytes()).unwrap();
                // Each is read before the next, or none ever.
                let line = told.recv_timeout(std::time::Duration::from_secs(60)).unwrap();
                assert_eq!(line, piece.to_string());
                assert!(LogReader::at(path.clone()).is_ok(), "there is one at any time");
            }
        });
        assert_eq!(dir.path().read_dir().unwrap().count(), 2);
    }
}
