//! A directory's way in, with all that is in it: made by descriptors, as [`tree`] says.
//!
//! What was there is kept, but for files and links of the same names, which are replaced, each when all of it
//! has come. No link that is there is followed: a user of the guest's leads nobody astray.

use core::ffi::CStr;

use husk_guest_protocol::tree::{self, HEAD, Head, Kind};
use husk_guest_protocol::{Frame, PAYLOAD_MAX, stream};

use super::sparse::Sparse;
use super::transfer::{DIRECTORY_PERMISSIONS, Failure, PERMISSIONS, tell_path};
use crate::sys::directory::{NO_FOLLOW, make_at, open_at, rename_at, symlink_at, unlink_at};
use crate::sys::{Errno, Fd, file, process};
use crate::text::{Digits, Path};
use crate::wire::Wire;

type Done = core::result::Result<(), Failure>;

/// Makes in `directory` what the host sends, to its end.
///
/// # Errors
/// See [`Failure`].
pub fn receive(wire: &mut Wire, directory: Fd) -> Done {
    let room = process::memory(PAYLOAD_MAX).map_err(Failure::file)?;
    let words = process::memory(tree::NAME_MAX + tree::TARGET_MAX + 2).map_err(Failure::file)?;
    let own = Digits::of(process::id() as u64);
    let part = Path::of(&[b".husk-", own.bytes()]).map_err(Failure::file)?;
    let mut source = Source { wire, room, at: 0, len: 0, words, next: None };
    source.fill(directory, part.as_c_str(), 0)
}

/// What the host sends.
struct Source<'a> {
    wire: &'a mut Wire,
    /// What has come and was not looked at: from `at` to `len`.
    room: &'static mut [u8],
    at: usize,
    len: usize,
    /// The bytes of a record that is no data, a zero behind them.
    words: &'static mut [u8],
    /// A record's head that was read before its time.
    next: Option<Head>,
}

impl Source<'_> {
    /// What has come, at least a byte of it.
    fn bytes(&mut self) -> core::result::Result<&[u8], Failure> {
        if self.at == self.len {
            match self.wire.receive() {
                Ok(Some(Frame::Input(bytes))) => {
                    let place = self.room.get_mut(..bytes.len()).ok_or(Failure::Gone)?;
                    place.copy_from_slice(bytes);
                    (self.at, self.len) = (0, bytes.len());
                }
                // Also an end before that of the directory.
                _ => return Err(Failure::Gone),
            }
            let taken = Frame::Credit(stream::STDIN, self.len as u32);
            self.wire.send(taken).map_err(|_| Failure::Gone)?;
        }
        Ok(self.room.get(self.at..self.len).unwrap_or_default())
    }

    fn exact<const LEN: usize>(&mut self) -> core::result::Result<[u8; LEN], Failure> {
        let mut all = [0; LEN];
        for place in &mut all {
            *place = *self.bytes()?.first().ok_or(Failure::Gone)?;
            self.at += 1;
        }
        Ok(all)
    }

    fn head(&mut self) -> core::result::Result<Head, Failure> {
        match self.next.take() {
            Some(head) => Ok(head),
            None => Head::decode(self.exact::<HEAD>()?).map_err(|_| Failure::Gone),
        }
    }

    /// The bytes of a record into `words`.
    fn words(&mut self, len: usize) -> Done {
        for at in 0..len {
            let [byte] = self.exact()?;
            *self.words.get_mut(at).ok_or(Failure::Gone)? = byte;
        }
        *self.words.get_mut(len).ok_or(Failure::Gone)? = 0;
        Ok(())
    }

    fn failed(&mut self, directory: Fd, name: &CStr, error: Errno) -> Failure {
        tell_path(self.wire, directory, name);
        Failure::file(error)
    }

    /// Fills `directory`; what is not complete in it is called `part`.
    fn fill(&mut self, directory: Fd, part: &CStr, depth: usize) -> Done {
        loop {
            let Head { kind, mode, len } = self.head()?;
            match (kind, depth) {
                (Kind::End, 0) | (Kind::Leave, 1..) => return Ok(()),
                (Kind::Directory | Kind::File | Kind::Link, ..tree::DEPTH_MAX) => {}
                _ => return Err(Failure::Gone),
            }
            self.words(len)?;
            let words = self.words.get(..len).unwrap_or_default();
            let (name, target) = match kind {
                Kind::Link => tree::link(words).map_err(|_| Failure::Gone)?,
                _ => (words, &[][..]),
            };
            if !tree::is_name(name) {
                return Err(Failure::Gone);
            }
            // The room is needed for the next one.
            let mut kept = [0u8; tree::NAME_MAX + 1];
            for (to, from) in kept.iter_mut().zip(name) {
                *to = *from;
            }
            let name = CStr::from_bytes_until_nul(&kept).unwrap_or_default();
            let done = match kind {
                Kind::Link => {
                    let _ = unlink_at(directory, part);
                    let target = Path::of(&[target]).map_err(Failure::file)?;
                    symlink_at(target.as_c_str(), directory, part)
                        .and_then(|()| rename_at(directory, part, name))
                        .map_err(|e| self.failed(directory, name, e))
                }
                Kind::Directory => self.directory(directory, name, mode, part, depth),
                _ => self.file(directory, name, mode, part),
            };
            if done.is_err() {
                let _ = unlink_at(directory, part);
                return done;
            }
        }
    }

    fn directory(
        &mut self,
        directory: Fd,
        name: &CStr,
        mode: u32,
        part: &CStr,
        depth: usize,
    ) -> Done {
        const FLAGS: i32 = file::READ | file::DIRECTORY | file::CLOEXEC | NO_FOLLOW;
        let made = match make_at(directory, name, 0o700) {
            Ok(()) => true,
            Err(Errno::EXIST) => false,
            Err(e) => return Err(self.failed(directory, name, e)),
        };
        let opened = open_at(directory, name, FLAGS, 0);
        let mut fd = opened.map_err(|e| self.failed(directory, name, e))?;
        let done = self.fill(fd, part, depth + 1).and_then(|()| match made {
            true => file::set_mode(fd, mode & DIRECTORY_PERMISSIONS)
                .map_err(|e| self.failed(directory, name, e)),
            false => Ok(()),
        });
        fd.close();
        done
    }

    fn file(&mut self, directory: Fd, name: &CStr, mode: u32, part: &CStr) -> Done {
        const FLAGS: i32 = file::WRITE | file::CREATE | file::EXCLUSIVE | file::CLOEXEC;
        let opened = open_at(directory, part, FLAGS, 0o600);
        let mut fd = opened.map_err(|e| self.failed(directory, name, e))?;
        let done = self.contents(fd, directory, name).and_then(|()| {
            file::set_mode(fd, mode & PERMISSIONS)
                .and_then(|()| rename_at(directory, part, name))
                .map_err(|e| self.failed(directory, name, e))
        });
        fd.close();
        done
    }

    /// The bytes of a file, to the first record that has none.
    fn contents(&mut self, fd: Fd, directory: Fd, name: &CStr) -> Done {
        let mut file = Sparse::new(fd);
        loop {
            let head = self.head()?;
            if head.kind != Kind::Data {
                self.next = Some(head);
                return file.finish().map_err(|e| self.failed(directory, name, e));
            }
            let mut left = head.len;
            while left > 0 {
                let bytes = self.bytes()?;
                let bytes = bytes.get(..left.min(bytes.len())).unwrap_or_default();
                let (count, written) = (bytes.len(), file.write(bytes));
                written.map_err(|e| self.failed(directory, name, e))?;
                self.at += count;
                left -= count;
            }
        }
    }
}
