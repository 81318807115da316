//! A directory of the host's on its way into a guest: a walk by descriptors, sent as
//! [`husk_guest_protocol::tree`] says.
//!
//! Links are sent as they are and never followed: the directory may be one that a guest shares, and changes
//! while it is walked. What is neither file nor directory nor link is refused.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use husk_guest_protocol::tree::{DATA_MAX, DEPTH_MAX, Head, Kind, TARGET_MAX};

use super::Peer;
use crate::files::{self, beneath, not_a_file, open_beneath};
use crate::guest::error::ExecError;
use crate::guest::session::Session;

/// Bytes that are sent together.
const TOGETHER: usize = 64 << 10;

/// Sends what is in `directory`, which is called `path`, and the end of it. When the guest takes no more it
/// says why.
///
/// # Errors
/// What cannot be read.
pub fn send(
    session: &Session,
    peer: Peer<'_>,
    directory: &File,
    path: &Path,
) -> Result<(), ExecError> {
    let bytes = Vec::with_capacity(TOGETHER);
    let mut out = Out { session, peer, bytes, deaf: false, late: None };
    let walked = out.walk(directory, path, 0);
    if walked.is_ok() {
        out.record(Kind::End, 0, &[]);
        out.flush();
    }
    out.late.map_or(walked, Err)
}

struct Out<'a> {
    session: &'a Session,
    peer: Peer<'a>,
    /// What is to be sent: small records go together.
    bytes: Vec<u8>,
    /// The guest takes no more.
    deaf: bool,
    /// It has taken nothing for too long.
    late: Option<ExecError>,
}

impl Out<'_> {
    fn walk(&mut self, directory: &File, path: &Path, depth: usize) -> Result<(), ExecError> {
        let failed = |source| ExecError::HostFile { path: path.to_owned(), source };
        for entry in fs::read_dir(beneath(directory, OsStr::new(""))).map_err(failed)? {
            let name = entry.map_err(failed)?.file_name();
            if self.deaf {
                break;
            }
            let path = path.join(&name);
            match self.entry(directory, &name, &path, depth) {
                Ok(result) => result?,
                // It has gone meanwhile.
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(source) => return Err(ExecError::HostFile { path, source }),
            }
        }
        Ok(())
    }

    /// Sends what is called `name`. The inner error is of something in it.
    fn entry(
        &mut self,
        directory: &File,
        name: &OsStr,
        path: &Path,
        depth: usize,
    ) -> io::Result<Result<(), ExecError>> {
        let place = beneath(directory, name);
        let kind = fs::symlink_metadata(&place)?.file_type();
        let name_bytes = name.as_bytes();
        if kind.is_symlink() {
            let target = fs::read_link(&place)?.into_os_string();
            if !(1..=TARGET_MAX).contains(&target.len()) {
                return Err(io::Error::other("it is a link to nothing"));
            }
            self.record(Kind::Link, 0, &[name_bytes, b"\0", target.as_bytes()]);
            return Ok(Ok(()));
        }
        if kind.is_dir() {
            if depth + 1 == DEPTH_MAX {
                return Err(io::Error::other(format!(
                    "more than {DEPTH_MAX} directories in each other"
                )));
            }
            let inner = open_beneath(directory, name, libc::O_DIRECTORY)?;
            let mode = inner.metadata()?.permissions().mode() & 0o7777;
            self.record(Kind::Directory, mode, &[name_bytes]);
            let done = self.walk(&inner, path, depth + 1);
            self.record(Kind::Leave, 0, &[]);
            return Ok(done);
        }
        if !kind.is_file() {
            let what = not_a_file(&fs::symlink_metadata(&place)?).unwrap_or("something else");
            return Err(io::Error::other(format!("it is {what}, which is not copied")));
        }
        let mut file = files::regular(open_beneath(directory, name, 0)?)?;
        let mode = file.metadata()?.permissions().mode() & 0o7777;
        self.record(Kind::File, mode, &[name_bytes]);
        let mut room = vec![0; DATA_MAX];
        while !self.deaf {
            match file.read(&mut room) {
                Ok(0) => break,
                Ok(count) => {
                    self.record(Kind::Data, 0, &[room.get(..count).unwrap_or_default()]);
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(Ok(()))
    }

    fn record(&mut self, kind: Kind, mode: u32, parts: &[&[u8]]) {
        let len = parts.iter().map(|part| part.len()).sum();
        self.bytes.extend(Head { kind, mode, len }.encode());
        parts.iter().for_each(|part| self.bytes.extend(*part));
        if self.bytes.len() >= TOGETHER - DATA_MAX {
            self.flush();
        }
    }

    fn flush(&mut self) {
        if !self.deaf {
            let sent = self.peer.send_all(self.session, &self.bytes);
            self.deaf = !matches!(sent, Ok(true));
            self.late = sent.err();
        }
        self.bytes.clear();
    }
}
