//! The way into a guest and out of one, of a file or of a directory with all that is in it.
//!
//! ```text
//! put ─▶ a file's bytes, or tree_out ─▶ session ─▶ guest
//! get ◀─ a file's bytes, or tree_in  ◀─ session ◀─ guest
//! ```
//!
//! Which of both it is the mode tells, that goes before: husk's for what it puts, the guest's for what it
//! gets. Where it comes to lie is as `docker cp` has it. The guest is never believed: what it sends has a
//! limit, and a time, and leads nowhere but where it was asked to.

mod incoming;
mod sparse;
mod stop;
mod tree_in;
mod tree_out;

use std::ffi::OsStr;
use std::fs::{File, Permissions};
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use husk_guest_protocol::{Action, Begin, Frame, Stage, VERSION, stream, tag, tree};

use super::child::Explain;
use super::command::record;
use super::error::ExecError;
use super::session::{self, End, Session};
use crate::files;
use incoming::Incoming;
pub use stop::CopyStop;

/// Bytes that are read at a time.
const PIECE: usize = 64 << 10;
/// The longest path of the guest's that is shown, in bytes.
const PATH_SHOWN: usize = 4096;

/// What is taken from a guest that sends a file or a directory, which it may never end, or takes one.
#[derive(Debug, Clone)]
pub struct Limits {
    /// The most that it may send, in bytes: each file, directory and link counts as [`tree_in::ENTRY`] more.
    pub max: u64,
    /// How long it may send nothing, or take nothing.
    pub idle: Duration,
    /// Ends it at once.
    pub stop: CopyStop,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits { max: 64 << 30, idle: Duration::from_secs(60), stop: CopyStop::default() }
    }
}

/// Copies the file or directory `from` of the host's to `to` in the guest, with its permissions.
///
/// # Errors
/// What cannot be read here or written there.
pub fn put(
    socket: UnixStream,
    explain: &Explain,
    from: &Path,
    to: &Path,
    limits: &Limits,
) -> Result<(), ExecError> {
    let failed = |source| ExecError::HostFile { path: from.to_owned(), source };
    let file = files::open(from).map_err(failed)?;
    let mode = file.metadata().map_err(failed)?.permissions().mode();
    let peer = Peer { explain, path: to, limits };
    if mode & tree::TYPE == tree::DIRECTORY {
        let session = peer.begin(socket, Action::Put, mode, last_name(from))?;
        // Without its end the guest does not have the directory.
        tree_out::send(&session, peer, &file, from).inspect_err(|_| session.cut())?;
        return peer.conclude(&session);
    }
    // Words of its own for what it is instead.
    drop(file);
    let mut file = files::open_regular(from).map_err(failed)?;
    let session = peer.begin(socket, Action::Put, mode, last_name(from))?;
    let mut room = vec![0; PIECE];
    let read = loop {
        match file.read(&mut room) {
            Ok(0) => break Ok(()),
            Ok(count) => match peer.send_all(&session, room.get(..count).unwrap_or_default()) {
                Ok(true) => {}
                // The guest has ended it, and says why.
                Ok(false) => break Ok(()),
                Err(e) => break Err(e),
            },
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => break Err(failed(e)),
        }
    };
    if let Err(e) = read {
        // Without its end the guest does not have the file.
        session.cut();
        return Err(e);
    }
    let _ = session.say(Frame::InputEnd);
    peer.conclude(&session)
}

/// Copies the file or directory `from` of the guest's to `to` on the host. A file appears there whole or not
/// at all, and so does a directory where there was none.
///
/// # Errors
/// What cannot be read there or written here.
pub fn get(
    socket: UnixStream,
    explain: &Explain,
    from: &Path,
    to: &Path,
    limits: &Limits,
) -> Result<(), ExecError> {
    let peer = Peer { explain, path: from, limits };
    let session = peer.begin(socket, Action::Get, 0, None)?;
    let done = receive(&session, peer, to);
    session.cut();
    done
}

fn receive(session: &Session, peer: Peer<'_>, to: &Path) -> Result<(), ExecError> {
    let mut incoming = Incoming::new(session, peer);
    // The mode comes before the first byte, and before an end without any.
    incoming.bytes()?;
    let mode = session.mode();
    if mode.is_some_and(|mode| mode & tree::TYPE == tree::DIRECTORY) {
        let place = destination(peer.path, to, true)?;
        return tree_in::receive(&mut incoming, &place, mode.unwrap_or_default());
    }
    let place = destination(peer.path, to, false)?;
    let mut wrong = None;
    let fill = |file: &mut File| {
        let copied = incoming.copy_to_end(file)?;
        wrong = copied.err();
        match wrong {
            None => permit(file, mode),
            Some(_) => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    };
    let written = match place.is_named {
        true => files::write_to(&place.path, None, fill),
        // What has the guest's name is replaced, and leads nowhere.
        false => files::write_renamed(&place.path, None, fill),
    };
    match wrong {
        Some(error) => Err(error),
        None => written.map_err(|source| ExecError::HostFile { path: place.path, source }),
    }
}

/// Where something comes to lie.
#[derive(Debug, PartialEq, Eq)]
struct Place {
    path: PathBuf,
    /// All of it was named here: a link there is meant. What is found under a name of the guest's may have
    /// been put there by a guest.
    is_named: bool,
}

/// Where what is called `from` in the guest comes to lie: in `to`, if that is a directory, and else as `to`.
fn destination(from: &Path, to: &Path, is_directory: bool) -> Result<Place, ExecError> {
    if to.is_dir() {
        return Ok(match last_name(from) {
            Some(name) => Place { path: to.join(name), is_named: false },
            None => Place { path: to.to_owned(), is_named: true },
        });
    }
    if !is_directory && to.as_os_str().as_bytes().ends_with(b"/") {
        let source = io::Error::from_raw_os_error(libc::ENOTDIR);
        return Err(ExecError::HostFile { path: to.to_owned(), source });
    }
    // Without a `/` at its end.
    Ok(Place { path: to.components().collect(), is_named: true })
}

/// What something is called in a directory that it is copied into; nothing of what means its contents (`DIR/.`).
fn last_name(path: &Path) -> Option<&OsStr> {
    let bytes = path.as_os_str().as_bytes();
    if bytes == b"." || bytes.ends_with(b"/.") { None } else { path.file_name() }
}

/// Gives `file` the permissions that it has in the guest: none of them makes it anybody else's program.
/// A device that was written to keeps its own.
fn permit(file: &File, mode: Option<u32>) -> io::Result<()> {
    match mode {
        Some(mode) if file.metadata()?.is_file() => {
            file.set_permissions(Permissions::from_mode(mode & 0o777))
        }
        _ => Ok(()),
    }
}

/// The guest, and what is asked of it.
#[derive(Clone, Copy)]
struct Peer<'a> {
    explain: &'a Explain,
    /// The guest's.
    path: &'a Path,
    limits: &'a Limits,
}

impl Peer<'_> {
    fn begin(
        &self,
        socket: UnixStream,
        action: Action,
        mode: u32,
        name: Option<&OsStr>,
    ) -> Result<Arc<Session>, ExecError> {
        let mut request = Vec::new();
        let words = [Some((tag::FILE, self.path.as_os_str())), name.map(|name| (tag::NAME, name))];
        for (tag, word) in words.into_iter().flatten() {
            record(&mut request, tag, word.as_bytes(), || shown(word))?;
        }
        // Checked by `record`, so the cast keeps the number.
        let len = request.len() as u32;
        let begin = Begin { version: VERSION, action, tty: false, window: (0, 0), mode, len };
        let until = Instant::now() + session::PATIENCE;
        let begun = session::begin(socket, begin, &request, until);
        let session = begun.map_err(|end| self.error(end, None))?;
        session
            .limit_sending(self.limits.idle)
            .map_err(|source| ExecError::Host { what: "a session's time", source })?;
        self.limits.stop.began(&session);
        Ok(session)
    }

    /// Sends all of it; false when the guest takes no more.
    fn send_all(&self, session: &Session, mut bytes: &[u8]) -> Result<bool, ExecError> {
        while !bytes.is_empty() {
            match session.write_within(bytes, Some(self.limits.idle)) {
                Ok(taken @ 1..) => bytes = bytes.get(taken..).unwrap_or_default(),
                Err(e) if session::is_late(&e) => return Err(self.stalled()),
                Ok(0) | Err(_) => return Ok(false),
            }
        }
        Ok(true)
    }

    fn conclude(&self, session: &Session) -> Result<(), ExecError> {
        match session.wait(Instant::now().checked_add(self.limits.idle)) {
            Some(End::Exited(0)) => Ok(()),
            Some(end) => Err(self.error(end, Some(session))),
            None => {
                session.cut();
                Err(self.stalled())
            }
        }
    }

    fn stalled(&self) -> ExecError {
        ExecError::Stalled { path: shown(self.path.as_os_str()), idle: self.limits.idle }
    }

    /// What an end other than the wanted one means.
    fn error(&self, end: End, session: Option<&Session>) -> ExecError {
        let path = || match session.map(told_path) {
            Some(told) if !told.is_empty() => told,
            _ => shown(self.path.as_os_str()),
        };
        match end {
            End::Cannot(Stage::File, errno) => {
                ExecError::GuestFile { path: path(), source: io::Error::from_raw_os_error(errno) }
            }
            End::Cannot(Stage::Special, kind) => {
                ExecError::Special { path: path(), what: kind_of(kind) }
            }
            End::Cannot(_, errno) => ExecError::Agent(io::Error::from_raw_os_error(errno)),
            End::Lost if self.limits.stop.is_stopped() => ExecError::Stopped,
            End::Lost => (self.explain)(),
            End::Late => ExecError::NotStarted,
            _ => ExecError::Protocol,
        }
    }
}

/// The path that the guest's last word is about, if it is another than the one that it was asked for, without
/// anything that a terminal would obey.
fn told_path(session: &Session) -> String {
    let mut told = vec![0; PATH_SHOWN];
    let mut len = 0;
    // It has ended, so that nothing is waited for.
    while let Some(room) = told.get_mut(len..).filter(|room| !room.is_empty()) {
        match session.read(stream::STDERR, room) {
            0 => break,
            count => len += count,
        }
    }
    told.truncate(len);
    let plain = |c: char| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c };
    String::from_utf8_lossy(&told).chars().map(plain).collect()
}

/// What has this type.
fn kind_of(mode: i32) -> &'static str {
    match mode as libc::mode_t & libc::S_IFMT {
        libc::S_IFIFO => "a pipe",
        libc::S_IFSOCK => "a socket",
        libc::S_IFCHR | libc::S_IFBLK => "a device",
        _ => "something else",
    }
}

fn shown(path: &OsStr) -> String {
    path.to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_copied_comes_to_lie_as_docker_has_it() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let lies = |from: &str, to: &str, is_directory| {
            destination(Path::new(from), &at(to), is_directory).ok().map(|place| place.path)
        };
        assert_eq!(lies("/in/file", "new", false), Some(at("new")));
        assert_eq!(lies("/in/file", "", false), Some(at("file")));
        assert_eq!(lies("/in/file/", "", false), Some(at("file")));
        assert_eq!(lies("/in/file", "none/", false), None);
        assert_eq!(lies("/in/dir", "none/", true), Some(at("none")));
        assert_eq!(lies("/in/dir", "", true), Some(at("dir")));
        assert_eq!(lies("/in/dir/.", "", true), Some(at("")));
        assert_eq!(lies("/in/dir/.", "new", true), Some(at("new")));
        assert_eq!(lies(".", "", true), Some(at("")));
        assert_eq!(lies("/", "", true), Some(at("")));
    }
}
