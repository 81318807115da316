//! A file's way into a guest and out of one.

use std::ffi::OsStr;
use std::fs::{File, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use husk_guest_protocol::{Action, Begin, Frame, Stage, VERSION, stream, tag};

use super::child::Explain;
use super::command::record;
use super::error::ExecError;
use super::session::{self, End, Session};
use crate::files;

/// Bytes that are read at a time.
const PIECE: usize = 64 << 10;

/// What is taken from a guest that sends a file, which it may never end.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// The longest file, in bytes.
    pub max: u64,
    /// How long it may send nothing.
    pub idle: Duration,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits { max: 64 << 30, idle: Duration::from_secs(60) }
    }
}

/// Copies the file `from` of the host's to `to` in the guest, with its permissions.
///
/// # Errors
/// What cannot be read here or written there.
pub fn put(socket: UnixStream, explain: &Explain, from: &Path, to: &Path) -> Result<(), ExecError> {
    let failed = |source| ExecError::HostFile { path: from.to_owned(), source };
    let mut file = files::open_regular(from).map_err(failed)?;
    let mode = file.metadata().map_err(failed)?.permissions().mode() & 0o7777;
    let session = begin(socket, explain, Action::Put, mode, to)?;
    let mut room = vec![0; PIECE];
    let read = loop {
        match file.read(&mut room) {
            Ok(0) => break Ok(()),
            Ok(count) => {
                let mut rest = room.get(..count).unwrap_or_default();
                while let Ok(taken @ 1..) = session.write(rest) {
                    rest = rest.get(taken..).unwrap_or_default();
                }
                if !rest.is_empty() {
                    // The guest has ended it, and says why.
                    break Ok(());
                }
            }
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
    conclude(&session, explain, to)
}

/// Copies the file `from` of the guest's to `to` on the host, where all of it appears or nothing.
///
/// # Errors
/// What cannot be read there or written here.
pub fn get(
    socket: UnixStream,
    explain: &Explain,
    from: &Path,
    to: &Path,
    limits: Limits,
) -> Result<(), ExecError> {
    let session = begin(socket, explain, Action::Get, 0, from)?;
    let mut ended = Ok(());
    let written = files::write_to(to, None, |file| {
        ended = receive(&session, explain, from, file, limits)?;
        match ended {
            Ok(()) => permit(file, session.mode()),
            Err(_) => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    });
    session.cut();
    ended?;
    written.map_err(|source| ExecError::HostFile { path: to.to_owned(), source })
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

/// Writes what comes of the file `from` to `file`. The outer error is the host's, the inner the guest's.
fn receive(
    session: &Session,
    explain: &Explain,
    from: &Path,
    file: &mut impl Write,
    limits: Limits,
) -> io::Result<Result<(), ExecError>> {
    let Limits { max, idle } = limits;
    let path = || shown(from.as_os_str());
    let (mut room, mut left) = (vec![0; PIECE], max);
    session.limit_sending(idle)?;
    loop {
        let Some(count) = session.read_within(stream::STDOUT, &mut room, idle) else {
            return Ok(Err(ExecError::Stalled { path: path(), idle }));
        };
        if count == 0 {
            break;
        }
        let Some(rest) = left.checked_sub(count as u64) else {
            return Ok(Err(ExecError::TooLarge { path: path(), max }));
        };
        left = rest;
        file.write_all(room.get(..count).unwrap_or_default())?;
    }
    Ok(match session.wait(Instant::now().checked_add(idle)) {
        Some(End::Exited(0)) => Ok(()),
        Some(end) => Err(error(end, explain, from)),
        None => Err(ExecError::Stalled { path: path(), idle }),
    })
}

fn begin(
    socket: UnixStream,
    explain: &Explain,
    action: Action,
    mode: u32,
    path: &Path,
) -> Result<Arc<Session>, ExecError> {
    let mut request = Vec::new();
    record(&mut request, tag::FILE, path.as_os_str().as_bytes(), || shown(path.as_os_str()))?;
    // Checked by `record`, so the cast keeps the number.
    let len = request.len() as u32;
    let begin = Begin { version: VERSION, action, tty: false, window: (0, 0), mode, len };
    let until = Instant::now() + session::PATIENCE;
    session::begin(socket, begin, &request, until).map_err(|end| error(end, explain, path))
}

fn shown(path: &OsStr) -> String {
    path.to_string_lossy().into_owned()
}

fn conclude(session: &Session, explain: &Explain, path: &Path) -> Result<(), ExecError> {
    match session.wait(None) {
        Some(End::Exited(0)) => Ok(()),
        end => Err(error(end.unwrap_or(End::Lost), explain, path)),
    }
}

fn error(end: End, explain: &Explain, path: &Path) -> ExecError {
    match end {
        End::Cannot(Stage::File, errno) => ExecError::GuestFile {
            path: shown(path.as_os_str()),
            source: io::Error::from_raw_os_error(errno),
        },
        End::Cannot(_, errno) => ExecError::Agent(io::Error::from_raw_os_error(errno)),
        End::Lost => explain(),
        End::Late => ExecError::NotStarted,
        _ => ExecError::Protocol,
    }
}
