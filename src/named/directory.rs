//! The user's runtime directory, and names in it.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::error::{NameError, host};
use super::{NAME_MAX, fds};
use crate::runtime::{self, user};

/// `sun_path` has 108 bytes (`man 7 unix`), one of them for the final NUL.
const ADDRESS_MAX: usize = 107;
/// How a file is called beside what it is of.
const SOCKET: &str = ".sock";
const LOG: &str = ".log";
const END: &str = ".end";

/// A runtime directory that is the user's own.
#[derive(Debug, Clone)]
pub(super) struct Directory(PathBuf);

/// Whether `name` is a name.
///
/// # Errors
/// When it is none.
pub fn check(name: &str) -> Result<(), NameError> {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    let fits = (1..=NAME_MAX).contains(&name.len()) && !name.starts_with('.');
    if fits && name.bytes().all(allowed) { Ok(()) } else { Err(NameError::Name(name.to_owned())) }
}

impl Directory {
    /// The user's, made if need be.
    pub fn open() -> Result<Directory, NameError> {
        Directory::at(runtime::directory())
    }

    pub fn at(path: PathBuf) -> Result<Directory, NameError> {
        match DirBuilder::new().mode(0o700).create(&path) {
            Ok(()) => {}
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
            Err(e) => return Err(host(&path, "make the runtime directory")(e)),
        }
        // What is there, and not what a link of somebody's leads to.
        let found = fs::symlink_metadata(&path).map_err(host(&path, "stat"))?;
        let why = match () {
            () if !found.is_dir() => "it is no directory",
            () if found.uid() != user() => "it belongs to somebody else",
            () if found.mode() & 0o077 != 0 => "others may enter it",
            () => return Ok(Directory(path)),
        };
        Err(NameError::Directory { path, why })
    }

    /// The place of a file that is no name's.
    pub fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// The socket of `name`, which is one.
    pub fn socket(&self, name: &str) -> Result<PathBuf, NameError> {
        check(name)?;
        let path = self.0.join(format!("{name}{SOCKET}"));
        if path.as_os_str().len() > ADDRESS_MAX {
            return Err(NameError::Directory {
                path,
                why: "it is too long for a socket's address",
            });
        }
        Ok(path)
    }

    /// Where the output of the VM called `name`, which is a name, is kept.
    pub fn log(&self, name: &str) -> PathBuf {
        self.0.join(format!("{name}{LOG}"))
    }

    /// Where it is remembered how the VM called `name`, which is a name, ended.
    pub fn end(&self, name: &str) -> PathBuf {
        self.0.join(format!("{name}{END}"))
    }

    /// All names there are sockets of.
    pub fn names(&self) -> Result<Vec<String>, NameError> {
        self.with(SOCKET)
    }

    /// All names of VMs that are remembered.
    pub fn ended(&self) -> Result<Vec<String>, NameError> {
        self.with(END)
    }

    /// All of which something is left, and which there are no sockets of, with when that was written last.
    pub fn remembered(&self) -> Result<Vec<(SystemTime, String)>, NameError> {
        let mut names = self.with(END)?;
        names.extend(self.with(LOG)?);
        names.sort();
        names.dedup();
        let gone = names.into_iter().filter(|name| {
            self.socket(name).is_ok_and(|socket| fs::symlink_metadata(socket).is_err())
        });
        let written = |name: String| {
            let paths = [self.end(&name), self.log(&name)];
            let times = paths.iter().filter_map(|path| path.metadata().ok()?.modified().ok());
            times.max().map(|last| (last, name))
        };
        Ok(gone.filter_map(written).collect())
    }

    fn with(&self, ending: &str) -> Result<Vec<String>, NameError> {
        let entries = fs::read_dir(&self.0).map_err(host(&self.0, "read"))?;
        let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
        let mut names: Vec<_> = names
            .filter_map(|name| Some(name.strip_suffix(ending)?.to_owned()))
            .filter(|name| check(name).is_ok())
            .collect();
        names.sort();
        Ok(names)
    }

    /// Nobody else of those who ask takes or cleans a name as long as this lives.
    pub fn lock(&self) -> Result<File, NameError> {
        let directory = File::open(&self.0).map_err(host(&self.0, "open"))?;
        loop {
            // SAFETY: the descriptor is open as long as `directory` lives.
            if unsafe { libc::flock(directory.as_raw_fd(), libc::LOCK_EX) } == 0 {
                return Ok(directory);
            }
            let error = io::Error::last_os_error();
            if error.kind() != io::ErrorKind::Interrupted {
                return Err(host(&self.0, "lock")(error));
            }
        }
    }
}

/// Removes a socket that nobody listens at. False when somebody does, or when it is no socket. The
/// directory is locked.
pub(super) fn clean(path: &Path) -> bool {
    match fs::symlink_metadata(path) {
        Err(e) => return e.kind() == io::ErrorKind::NotFound,
        Ok(found) if !found.file_type().is_socket() => return false,
        Ok(_) => {}
    }
    // Not waited for: the directory is locked, and who has too many callers to answer is there.
    match fds::connect(path, None) {
        Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path).is_ok(),
        Err(e) => e.kind() == io::ErrorKind::NotFound,
        Ok(_) => false,
    }
}
