//! A file's way in or out.

use core::ffi::CStr;

use husk_guest_protocol::{Begin, Frame, Stage, WINDOW, stream};

use super::Cannot;
use super::request::Request;
use crate::sys::{Errno, Fd, Result, file, process};
use crate::text::{Digits, Path};
use crate::wire::Wire;

type Done = core::result::Result<(), Cannot>;

fn path_of(request: &'static [u8]) -> core::result::Result<&'static CStr, Cannot> {
    let request = Request::parse(request).map_err(|e| (Stage::Agent, e))?;
    request.file.ok_or((Stage::Agent, Errno::PROTO))
}

/// Makes a file of what the host sends. It is there under its name when all of it is.
///
/// # Errors
/// What the file system says.
pub fn put(wire: &mut Wire, begin: Begin, request: &'static [u8]) -> Done {
    let failed = |e| (Stage::File, e);
    let path = path_of(request)?;
    let own = Digits::of(process::id() as u64);
    let part = Path::of(&[path.to_bytes(), b".husk-", own.bytes()]).map_err(failed)?;
    let part = part.as_c_str();
    let flags = file::WRITE | file::CREATE | file::EXCLUSIVE | file::CLOEXEC;
    let mut fd = file::open(part, flags, 0o600).map_err(failed)?;
    let written = wire.send(Frame::Started).and_then(|()| receive(wire, fd));
    let done = written.and_then(|()| file::set_mode(fd, begin.mode & 0o7777));
    fd.close();
    let done = done.and_then(|()| file::rename(part, path));
    if let Err(e) = done {
        let _ = file::unlink(part);
        return Err(failed(e));
    }
    // If the host has gone, it is not told.
    let _ = wire.send(Frame::Exited(0));
    Ok(())
}

fn receive(wire: &mut Wire, fd: Fd) -> Result<()> {
    loop {
        let taken = match wire.receive()?.ok_or(Errno::PIPE)? {
            Frame::Input(bytes) => {
                file::write_all(fd, bytes)?;
                bytes.len() as u32
            }
            Frame::InputEnd => return Ok(()),
            _ => continue,
        };
        wire.send(Frame::Credit(stream::STDIN, taken))?;
    }
}

/// Sends the host a file.
///
/// # Errors
/// What the file system says.
pub fn get(wire: &mut Wire, request: &'static [u8]) -> Done {
    let failed = |e| (Stage::File, e);
    let path = path_of(request)?;
    // A FIFO without a writer is at its end, and not waited for.
    let flags = file::READ | file::CLOEXEC | file::NONBLOCK | file::NO_TTY;
    let fd = file::open(path, flags, 0).map_err(failed)?;
    let mut room = [0; Frame::PIECE];
    // A directory can be opened and not be read: said before anything has begun.
    let mut first = Some(file::read(fd, &mut room).map_err(failed)?);
    let mode = file::mode(fd).map_err(failed)?;
    if wire.send(Frame::Started).and_then(|()| wire.send(Frame::Mode(mode))).is_err() {
        return Ok(());
    }
    let mut credit = WINDOW;
    loop {
        let count = match first.take() {
            Some(count) => count,
            None => {
                let most = room.len().min(credit as usize);
                file::read(fd, room.get_mut(..most).unwrap_or_default()).map_err(failed)?
            }
        };
        if count == 0 {
            let _ = wire.send(Frame::Exited(0));
            return Ok(());
        }
        let bytes = room.get(..count).unwrap_or_default();
        if wire.send(Frame::Output(stream::STDOUT, bytes)).is_err() {
            return Ok(());
        }
        credit = credit.saturating_sub(count as u32);
        while credit == 0 {
            match wire.receive() {
                Ok(Some(Frame::Credit(_, bytes))) => credit = bytes.min(WINDOW),
                Ok(Some(_)) => {}
                Ok(None) | Err(_) => return Ok(()),
            }
        }
    }
}
