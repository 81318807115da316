//! A directory on its way out of a guest, which is hostile until its last byte: made by descriptors, as
//! [`husk_guest_protocol::tree`] says.
//!
//! A name is one of a directory's entries, without anything that a terminal would obey; no link is followed,
//! neither one that came before nor one that a guest puts into a shared directory meanwhile; and what is
//! made costs its sender of what it may send. Where there was no directory it is there when all of it is.

use std::ffi::OsStr;
use std::fs::{self, DirBuilder, File, Permissions};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use husk_guest_protocol::tree::{self, DEPTH_MAX, HEAD, Head, Kind, NAME_MAX, TARGET_MAX};

use super::Place;
use super::incoming::Incoming;
use super::sparse::Sparse;
use crate::files::{beneath, open_beneath, remove_all, temporary, write_renamed};
use crate::guest::error::ExecError;

/// What each file, directory and link counts as, in bytes, whatever is in it.
pub const ENTRY: u64 = 4096;

/// Makes `to` of what comes, or fills it if it is a directory that is there.
///
/// # Errors
/// See [`ExecError`]. Then nothing is left of a directory that was not there.
pub fn receive(incoming: &mut Incoming<'_>, place: &Place, mode: u32) -> Result<(), ExecError> {
    let Place { path: to, is_named } = place;
    let failed = |source| ExecError::HostFile { path: to.to_owned(), source };
    let mut maker = Maker { path: to.to_owned(), incoming, next: None };
    let there = if *is_named { fs::metadata(to) } else { fs::symlink_metadata(to) };
    match there {
        Ok(there) if there.is_dir() => {
            let directory = open_directory(to, *is_named).map_err(failed)?;
            maker.fill(&directory, 0)?;
            return maker.incoming.end();
        }
        Ok(_) => return Err(failed(io::Error::from_raw_os_error(libc::ENOTDIR))),
        Err(_) if to.is_symlink() => {
            return Err(failed(io::Error::other("it is a link that leads nowhere")));
        }
        Err(_) => {}
    }
    let part = temporary(to);
    make_directory(&part).map_err(failed)?;
    let made = open_directory(&part, false).map_err(failed).and_then(|directory| {
        maker.fill(&directory, 0)?;
        // Its last word, before anybody sees it.
        maker.incoming.end()?;
        directory
            .set_permissions(Permissions::from_mode(mode & 0o777))
            .and_then(|()| fs::rename(&part, to))
            .map_err(failed)
    });
    if made.is_err() {
        // What cannot be removed now is not ours to remove.
        let _ = remove_all(&part);
    }
    made
}

fn open_directory(path: &Path, follow: bool) -> io::Result<File> {
    let flags = libc::O_DIRECTORY | if follow { 0 } else { libc::O_NOFOLLOW };
    File::options().read(true).custom_flags(flags).open(path)
}

/// Makes a directory that is nobody else's until it is complete.
fn make_directory(path: &Path) -> io::Result<()> {
    DirBuilder::new().mode(0o700).create(path)
}

struct Maker<'a, 'b> {
    incoming: &'a mut Incoming<'b>,
    /// Where it is, for words.
    path: PathBuf,
    /// A record's head that was read before its time.
    next: Option<Head>,
}

impl Maker<'_, '_> {
    fn head(&mut self) -> Result<Head, ExecError> {
        if let Some(head) = self.next.take() {
            return Ok(head);
        }
        let mut bytes = [0; HEAD];
        self.incoming.exact(&mut bytes)?;
        Head::decode(bytes).map_err(|_| ExecError::Protocol)
    }

    fn failed(&self, name: &OsStr, source: io::Error) -> ExecError {
        ExecError::HostFile { path: self.path.join(name), source }
    }

    /// Fills `directory` to its end.
    fn fill(&mut self, directory: &File, depth: usize) -> Result<(), ExecError> {
        loop {
            let Head { kind, mode, len } = self.head()?;
            match (kind, depth) {
                (Kind::End, 0) | (Kind::Leave, 1..) => return Ok(()),
                (Kind::Directory | Kind::File | Kind::Link, ..DEPTH_MAX) => {}
                _ => return Err(ExecError::Protocol),
            }
            self.incoming.charge(ENTRY)?;
            let mut words = vec![0; len.min(NAME_MAX + 1 + TARGET_MAX)];
            self.incoming.exact(&mut words)?;
            let (name, target) = match kind {
                Kind::Link => tree::link(&words).map_err(|_| self.refused(&words))?,
                _ => (&words[..], &[][..]),
            };
            if !tree::is_name(name) || is_control(name) || is_control(target) {
                return Err(self.refused(name));
            }
            let name = OsStr::from_bytes(name);
            match kind {
                Kind::Directory => self.directory(directory, name, mode, depth)?,
                Kind::File => self.file(directory, name, mode)?,
                _ => {
                    let place = beneath(directory, name);
                    let part = temporary(&place);
                    symlink(OsStr::from_bytes(target), &part)
                        .and_then(|()| {
                            fs::rename(&part, &place).inspect_err(|_| drop(fs::remove_file(&part)))
                        })
                        .map_err(|e| self.failed(name, e))?;
                }
            }
        }
    }

    fn refused(&self, name: &[u8]) -> ExecError {
        let path = self.incoming.path().to_string_lossy().into_owned();
        let name = name.get(..name.len().min(NAME_MAX)).unwrap_or_default();
        ExecError::BadName { path, name: name.escape_ascii().to_string() }
    }

    fn directory(
        &mut self,
        directory: &File,
        name: &OsStr,
        mode: u32,
        depth: usize,
    ) -> Result<(), ExecError> {
        let made = match make_directory(&beneath(directory, name)) {
            Ok(()) => true,
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => false,
            Err(e) => return Err(self.failed(name, e)),
        };
        let opened = open_beneath(directory, name, libc::O_DIRECTORY);
        let inner = opened.map_err(|e| self.failed(name, e))?;
        self.path.push(name);
        self.fill(&inner, depth + 1)?;
        self.path.pop();
        if made {
            let permissions = Permissions::from_mode(mode & 0o777);
            inner.set_permissions(permissions).map_err(|e| self.failed(name, e))?;
        }
        Ok(())
    }

    fn file(&mut self, directory: &File, name: &OsStr, mode: u32) -> Result<(), ExecError> {
        let mut wrong = None;
        let written = write_renamed(&beneath(directory, name), Some(mode & 0o777), |file| {
            wrong = self.contents(file)?.err();
            if wrong.is_none() { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
        });
        match wrong {
            Some(error) => Err(error),
            None => written.map_err(|e| self.failed(name, e)),
        }
    }

    /// The bytes of a file, to the first record that has none. The outer error is the host's, the inner the
    /// guest's.
    fn contents(&mut self, file: &mut File) -> io::Result<Result<(), ExecError>> {
        let mut file = Sparse::new(file)?;
        loop {
            let head = match self.head() {
                Ok(head) => head,
                Err(e) => return Ok(Err(e)),
            };
            if head.kind != Kind::Data {
                self.next = Some(head);
                return file.finish().map(Ok);
            }
            let mut left = head.len;
            while left > 0 {
                let bytes = match self.incoming.bytes() {
                    Ok([]) => return Ok(Err(self.incoming.cut_short())),
                    Ok(bytes) => bytes.get(..left.min(bytes.len())).unwrap_or_default(),
                    Err(e) => return Ok(Err(e)),
                };
                file.write(bytes)?;
                let count = bytes.len();
                self.incoming.used(count);
                left -= count;
            }
        }
    }
}

/// Whether a terminal that shows it would obey.
fn is_control(bytes: &[u8]) -> bool {
    String::from_utf8_lossy(bytes).chars().any(char::is_control)
}
