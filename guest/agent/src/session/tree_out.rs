//! A directory's way out, with all that is in it: a walk by descriptors, sent as [`tree`] says.
//!
//! Links are sent as they are and never followed. What goes while it is walked is passed over.

use core::ffi::CStr;

use husk_guest_protocol::tree::{self, HEAD, Head, Kind};
use husk_guest_protocol::{Frame, Stage};

use super::transfer::{Credit, Failure, tell_path};
use crate::sys::directory::{self, NO_FOLLOW, entries, entry, mode_at, open_at, read_link_at};
use crate::sys::{Errno, Fd, file, process};
use crate::wire::Wire;

type Done = core::result::Result<(), Failure>;

/// Sends what is in `directory`, and the end of it.
///
/// # Errors
/// See [`Failure`].
pub fn send(wire: &mut Wire, directory: Fd) -> Done {
    let room = process::memory(Frame::PIECE).map_err(Failure::file)?;
    let mut out = Out { wire, credit: Credit::default(), room, len: 0 };
    out.walk(directory, 0)?;
    out.record(Kind::End, 0, &[])?;
    out.flush()
}

struct Out<'a> {
    wire: &'a mut Wire,
    credit: Credit,
    /// What is to be sent, as far as `len`: small records go together.
    room: &'static mut [u8],
    len: usize,
}

impl Out<'_> {
    fn walk(&mut self, directory: Fd, depth: usize) -> Done {
        let mut room = [0u8; 2048];
        loop {
            let len = entries(directory, &mut room).map_err(|e| self.failed(directory, c"", e))?;
            if len == 0 {
                return Ok(());
            }
            let mut rest = room.get(..len).unwrap_or_default();
            while let Some((name, others)) = entry(rest) {
                rest = others;
                if !directory::is_self(name) {
                    self.entry(directory, name, depth)?;
                }
            }
        }
    }

    fn entry(&mut self, directory: Fd, name: &CStr, depth: usize) -> Done {
        const FLAGS: i32 = file::READ | file::CLOEXEC | file::NONBLOCK | file::NO_TTY | NO_FOLLOW;
        let mode = match mode_at(directory, name, false) {
            Ok(mode) => mode,
            Err(Errno::NOENT) => return Ok(()),
            Err(e) => return Err(self.failed(directory, name, e)),
        };
        if mode & tree::TYPE == tree::LINK {
            let mut target = [0; tree::TARGET_MAX];
            let target = read_link_at(directory, name, &mut target)
                .map_err(|e| self.failed(directory, name, e))?;
            return self.record(Kind::Link, 0, &[name.to_bytes(), b"\0", target]);
        }
        if !matches!(mode & tree::TYPE, tree::FILE | tree::DIRECTORY) {
            return Err(self.special(directory, name, mode));
        }
        let mut fd =
            open_at(directory, name, FLAGS, 0).map_err(|e| self.failed(directory, name, e))?;
        // It may be another by now.
        let mode = file::mode(fd).map_err(|e| self.failed(directory, name, e))?;
        match mode & tree::TYPE {
            tree::DIRECTORY if depth + 1 == tree::DEPTH_MAX => {
                return Err(self.failed(directory, name, Errno::NAMETOOLONG));
            }
            tree::DIRECTORY => {
                self.record(Kind::Directory, mode & 0o7777, &[name.to_bytes()])?;
                self.walk(fd, depth + 1)?;
                self.record(Kind::Leave, 0, &[])?;
            }
            tree::FILE => {
                self.record(Kind::File, mode & 0o7777, &[name.to_bytes()])?;
                while self.data(fd, directory, name)? {}
            }
            _ => return Err(self.special(directory, name, mode)),
        }
        fd.close();
        Ok(())
    }

    fn failed(&mut self, directory: Fd, name: &CStr, error: Errno) -> Failure {
        tell_path(self.wire, directory, name);
        Failure::file(error)
    }

    fn special(&mut self, directory: Fd, name: &CStr, mode: u32) -> Failure {
        tell_path(self.wire, directory, name);
        Failure::Cannot(Stage::Special, Errno((mode & tree::TYPE) as i32))
    }

    /// Sends what was kept together.
    fn flush(&mut self) -> Done {
        let bytes = self.room.get(..self.len).unwrap_or_default();
        self.len = 0;
        self.credit.send(self.wire, bytes)
    }

    /// Adds a record of these parts.
    fn record(&mut self, kind: Kind, mode: u32, parts: &[&[u8]]) -> Done {
        let len = parts.iter().map(|part| part.len()).sum();
        if self.len + HEAD + len > self.room.len() {
            self.flush()?;
        }
        let head = Head { kind, mode, len }.encode();
        for part in [&head[..]].iter().chain(parts) {
            let place = self.room.get_mut(self.len..).unwrap_or_default();
            for (to, from) in place.iter_mut().zip(*part) {
                *to = *from;
            }
            self.len += part.len().min(place.len());
        }
        Ok(())
    }

    /// Adds the next bytes of the file `fd`, read to where they are sent from; false at its end.
    fn data(&mut self, fd: Fd, directory: Fd, name: &CStr) -> core::result::Result<bool, Failure> {
        const LEAST: usize = 4096;
        if self.room.len() - self.len < HEAD + LEAST {
            self.flush()?;
        }
        let place = self.room.get_mut(self.len + HEAD..).unwrap_or_default();
        let read = file::read(fd, place);
        let len = read.map_err(|e| self.failed(directory, name, e))?;
        if len == 0 {
            return Ok(false);
        }
        let head = Head { kind: Kind::Data, mode: 0, len }.encode();
        let place = self.room.get_mut(self.len..self.len + HEAD).unwrap_or_default();
        for (to, from) in place.iter_mut().zip(head) {
            *to = from;
        }
        self.len += HEAD + len;
        Ok(true)
    }
}
