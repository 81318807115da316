//! What comes out of a guest: its bytes as they are read, counted and waited for.

use std::fs::File;
use std::io;
use std::time::Instant;

use husk_guest_protocol::stream;

use super::sparse::Sparse;
use super::{PIECE, Peer, shown};
use crate::guest::error::ExecError;
use crate::guest::session::{End, Session};

/// The bytes of a session that sends what is copied.
pub struct Incoming<'a> {
    session: &'a Session,
    peer: Peer<'a>,
    /// How much more of it may come.
    left: u64,
    room: Vec<u8>,
    /// What was read and not used: from `at` to `len`.
    at: usize,
    len: usize,
}

impl<'a> Incoming<'a> {
    /// Nothing has come yet.
    pub fn new(session: &'a Session, peer: Peer<'a>) -> Incoming<'a> {
        let room = vec![0; PIECE];
        Incoming { session, peer, left: peer.limits.max, room, at: 0, len: 0 }
    }

    /// What the guest was asked for.
    pub fn path(&self) -> &'a std::path::Path {
        self.peer.path
    }

    /// What has come and was not [used](Incoming::used); empty at the end.
    ///
    /// # Errors
    /// When too much of it comes, or nothing for too long.
    pub fn bytes(&mut self) -> Result<&[u8], ExecError> {
        if self.at == self.len {
            let idle = self.peer.limits.idle;
            let count = self.session.read_within(stream::STDOUT, &mut self.room, idle);
            let count = count.ok_or_else(|| self.peer.stalled())?;
            self.charge(count as u64)?;
            (self.at, self.len) = (0, count);
        }
        Ok(self.room.get(self.at..self.len).unwrap_or_default())
    }

    /// So many of them are of no more use.
    pub fn used(&mut self, count: usize) {
        self.at = self.len.min(self.at + count);
    }

    /// Counts so many bytes to what has come.
    ///
    /// # Errors
    /// When that is too much.
    pub fn charge(&mut self, count: u64) -> Result<(), ExecError> {
        let max = self.peer.limits.max;
        let path = || shown(self.peer.path.as_os_str());
        self.left = self
            .left
            .checked_sub(count)
            .ok_or_else(|| ExecError::TooLarge { path: path(), max })?;
        Ok(())
    }

    /// Exactly so many bytes.
    ///
    /// # Errors
    /// As [`Incoming::bytes`], and when they end before.
    pub fn exact(&mut self, mut room: &mut [u8]) -> Result<(), ExecError> {
        while !room.is_empty() {
            let bytes = self.bytes()?;
            if bytes.is_empty() {
                return Err(self.cut_short());
            }
            let count = bytes.len().min(room.len());
            let (place, rest) = room.split_at_mut(count);
            place.copy_from_slice(bytes.get(..count).unwrap_or_default());
            room = rest;
            self.used(count);
        }
        Ok(())
    }

    /// Why there is an end where there should be none.
    pub fn cut_short(&self) -> ExecError {
        match self.end() {
            // It says that was all, and it was not.
            Ok(()) => ExecError::Protocol,
            Err(error) => error,
        }
    }

    /// That the guest says that this was all.
    ///
    /// # Errors
    /// What it says instead.
    pub fn end(&self) -> Result<(), ExecError> {
        match self.session.wait(Instant::now().checked_add(self.peer.limits.idle)) {
            Some(End::Exited(0)) => Ok(()),
            Some(end) => Err(self.peer.error(end, Some(self.session))),
            None => Err(self.peer.stalled()),
        }
    }

    /// Writes all that comes to `file`. The outer error is the host's, the inner the guest's.
    pub fn copy_to_end(&mut self, file: &File) -> io::Result<Result<(), ExecError>> {
        let mut file = Sparse::new(file)?;
        loop {
            let bytes = match self.bytes() {
                Ok(bytes) => bytes,
                Err(e) => return Ok(Err(e)),
            };
            if bytes.is_empty() {
                return file.finish().map(|()| self.end());
            }
            file.write(bytes)?;
            let count = bytes.len();
            self.used(count);
        }
    }
}
