//! The way in or out of a file, or of a directory with all that is in it.
//!
//! What is put into a directory that is there goes by the name that the host gives. What is put where
//! nothing was is there under its name when all of it is. A link that the host names is followed, and no other.

use core::ffi::CStr;

use husk_guest_protocol::{Begin, Frame, Stage, stream, tree};

use super::Cannot;
use super::request::Request;
use super::sparse::Sparse;
use super::transfer::{Credit, DIRECTORY_PERMISSIONS, Failure, PERMISSIONS, path_of};
use super::{tree_in, tree_out};
use crate::sys::directory::{self, HERE, NO_FOLLOW, PATH_ONLY, mode_at};
use crate::sys::{Errno, Fd, Result, file, process};
use crate::text::{Digits, Path};
use crate::wire::Wire;

type Done = core::result::Result<(), Cannot>;

/// Where the link `path` leads to. There is something: one that leads nowhere would have the kernel's error, and
/// not be replaced by what somebody meant for another place.
fn target_of(path: &CStr) -> Result<Path> {
    let mut fd = file::open(path, PATH_ONLY | file::CLOEXEC, 0)?;
    let target = path_of(fd);
    fd.close();
    target
}

/// Whether this is the type of a link.
fn is_link(mode: u32) -> bool {
    mode & tree::TYPE == tree::LINK
}

/// Whether this is the type of a directory.
fn is_directory(mode: u32) -> bool {
    mode & tree::TYPE == tree::DIRECTORY
}

/// Makes a file or a directory of what the host sends.
///
/// # Errors
/// What the file system says.
pub fn put(wire: &mut Wire, begin: Begin, request: &'static [u8]) -> Done {
    let failed = |e| (Stage::File, e);
    let request = Request::parse(request).map_err(|e| (Stage::Agent, e))?;
    let path = request.file.ok_or((Stage::Agent, Errno::PROTO))?;
    let there = |path: &CStr, follow| mode_at(HERE, path, follow).ok();
    // A directory takes what is put there, by its name; a link that has that name may be anybody's.
    let (path, follow) = match (there(path, true), request.name) {
        (Some(mode), Some(name)) if is_directory(mode) => {
            (Path::of(&[path.to_bytes(), b"/", name]), false)
        }
        _ => (Path::of(&[path.to_bytes()]), true),
    };
    let path = path.map_err(failed)?;
    let is_file = !is_directory(begin.mode);
    if is_file
        && follow
        && let Some(mode) = there(path.as_c_str(), true)
    {
        copied(mode)?;
    }
    // It is written to where the link leads, and stays one, as on the host.
    let path = match there(path.as_c_str(), false) {
        Some(mode) if is_file && follow && is_link(mode) => target_of(path.as_c_str()),
        _ => Ok(path),
    };
    let path = path.map_err(failed)?;
    let own = Digits::of(process::id() as u64);
    let end = path.bytes().iter().rposition(|byte| *byte != b'/').map_or(0, |last| last + 1);
    let named = path.bytes().get(..end).unwrap_or_default();
    let part = if is_directory(begin.mode) { named } else { path.bytes() };
    let part = Path::of(&[part, b".husk-", own.bytes()]).map_err(failed)?;
    let (path, part) = (path.as_c_str(), part.as_c_str());
    let done = match (is_directory(begin.mode), there(path, follow)) {
        (false, _) => put_file(wire, begin.mode, path, part),
        (true, None) => put_directory(wire, begin.mode, path, part),
        (true, Some(mode)) if is_directory(mode) => put_into(wire, path, follow),
        (true, Some(_)) => Err(Failure::file(Errno::NOTDIR)),
    };
    conclude(wire, done)
}

/// Tells the host that all is copied, unless it has gone.
fn conclude(wire: &mut Wire, done: core::result::Result<(), Failure>) -> Done {
    match done {
        Ok(()) => {
            // It may have gone meanwhile.
            let _ = wire.send(Frame::Exited(0));
            Ok(())
        }
        Err(Failure::Gone) => Ok(()),
        Err(Failure::Cannot(stage, error)) => Err((stage, error)),
    }
}

fn put_file(
    wire: &mut Wire,
    mode: u32,
    path: &CStr,
    part: &CStr,
) -> core::result::Result<(), Failure> {
    let flags = file::WRITE | file::CREATE | file::EXCLUSIVE | file::CLOEXEC;
    let mut fd = file::open(part, flags, 0o600).map_err(Failure::file)?;
    let written = wire.send(Frame::Started).and_then(|()| receive(wire, fd));
    let done = written.and_then(|()| file::set_mode(fd, mode & PERMISSIONS));
    fd.close();
    done.and_then(|()| file::rename(part, path)).map_err(|e| {
        let _ = file::unlink(part);
        Failure::file(e)
    })
}

/// Opens a directory that is there.
fn open_directory(path: &CStr, follow: bool) -> core::result::Result<Fd, Failure> {
    let flags = file::READ | file::DIRECTORY | file::CLOEXEC | if follow { 0 } else { NO_FOLLOW };
    file::open(path, flags, 0).map_err(Failure::file)
}

fn put_directory(
    wire: &mut Wire,
    mode: u32,
    path: &CStr,
    part: &CStr,
) -> core::result::Result<(), Failure> {
    directory::make_at(HERE, part, 0o700).map_err(Failure::file)?;
    let done = put_into(wire, part, false).and_then(|()| {
        let mut fd = open_directory(part, false)?;
        let done = file::set_mode(fd, mode & DIRECTORY_PERMISSIONS)
            .and_then(|()| file::rename(part, path));
        fd.close();
        done.map_err(Failure::file)
    });
    if done.is_err() {
        directory::remove_all(HERE, part);
    }
    done
}

fn put_into(wire: &mut Wire, path: &CStr, follow: bool) -> core::result::Result<(), Failure> {
    let mut fd = open_directory(path, follow)?;
    let begun = wire.send(Frame::Started).map_err(|_| Failure::Gone);
    let done = begun.and_then(|()| tree_in::receive(wire, fd));
    fd.close();
    done
}

fn receive(wire: &mut Wire, fd: Fd) -> Result<()> {
    let mut file = Sparse::new(fd);
    loop {
        let taken = match wire.receive()?.ok_or(Errno::PIPE)? {
            Frame::Input(bytes) => {
                file.write(bytes)?;
                bytes.len() as u32
            }
            Frame::InputEnd => return file.finish(),
            _ => continue,
        };
        wire.send(Frame::Credit(stream::STDIN, taken))?;
    }
}

/// Sends the host a file or a directory.
///
/// # Errors
/// What the file system says; that it is neither.
pub fn get(wire: &mut Wire, request: &'static [u8]) -> Done {
    let failed = |e| (Stage::File, e);
    let request = Request::parse(request).map_err(|e| (Stage::Agent, e))?;
    let path = request.file.ok_or((Stage::Agent, Errno::PROTO))?;
    // Before it is opened, which a device may notice, and which waits at a FIFO.
    copied(mode_at(HERE, path, true).map_err(failed)?)?;
    let flags = file::READ | file::CLOEXEC | file::NONBLOCK | file::NO_TTY;
    let fd = file::open(path, flags, 0).map_err(failed)?;
    let mode = file::mode(fd).map_err(failed)?;
    copied(mode)?;
    let begin = |wire: &Wire| wire.send(Frame::Started).and_then(|()| wire.send(Frame::Mode(mode)));
    let done = if is_directory(mode) {
        begin(wire).map_err(|_| Failure::Gone).and_then(|()| tree_out::send(wire, fd))
    } else {
        let mut room = [0; Frame::PIECE];
        // What cannot be read is said before anything has begun.
        let first = file::read(fd, &mut room).map_err(failed)?;
        begin(wire).map_err(|_| Failure::Gone).and_then(|()| send(wire, fd, &mut room, first))
    };
    conclude(wire, done)
}

/// That what has this mode is copied.
fn copied(mode: u32) -> Done {
    match mode & tree::TYPE {
        tree::FILE | tree::DIRECTORY => Ok(()),
        other => Err((Stage::Special, Errno(other as i32))),
    }
}

/// Sends a file, of which `count` bytes were read into `room`.
fn send(
    wire: &mut Wire,
    fd: Fd,
    room: &mut [u8],
    mut count: usize,
) -> core::result::Result<(), Failure> {
    let mut credit = Credit::default();
    while count > 0 {
        credit.send(wire, room.get(..count).unwrap_or_default())?;
        count = file::read(fd, room).map_err(Failure::file)?;
    }
    Ok(())
}
