//! What the ways in and out of files and of directories have in common: why they end, what of a mode is kept, and
//! how much the host takes at a time. It knows neither files nor trees.

use core::ffi::CStr;

use husk_guest_protocol::{Frame, Stage, WINDOW, stream};

use crate::sys::directory::{HERE, read_link_at};
use crate::sys::{Errno, Fd, Result};
use crate::text::{Digits, Path};
use crate::wire::Wire;

/// What of a file's mode is kept: it becomes root's, and nobody shall become that by it.
pub const PERMISSIONS: u32 = 0o777;
/// What of a directory's.
pub const DIRECTORY_PERMISSIONS: u32 = 0o1777;

/// Why a copy does not go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// The host has gone, or says what no host says.
    Gone,
    /// The guest cannot. Its path was told, unless it is the one that the host named.
    Cannot(Stage, Errno),
}

impl Failure {
    /// Of a file system.
    pub fn file(error: Errno) -> Failure {
        Failure::Cannot(Stage::File, error)
    }
}

/// Tells the host what a failure is about: the path of `name` in `directory`.
pub fn tell_path(wire: &Wire, directory: Fd, name: &CStr) {
    let Ok(path) = path_of(directory) else { return };
    let path = path.bytes();
    for part in [path.strip_suffix(b"/").unwrap_or(path), b"/", name.to_bytes()] {
        // If it has gone there is nobody to be told.
        let _ = wire.send(Frame::Output(stream::STDERR, part));
    }
}

/// Where what is open is, as a path without links.
///
/// # Errors
/// The kernel's.
pub fn path_of(fd: Fd) -> Result<Path> {
    let link = Path::of(&[b"/proc/self/fd/", Digits::of(fd.0 as u64).bytes()])?;
    let mut room = [0; 4096];
    Path::of(&[read_link_at(HERE, link.as_c_str(), &mut room)?])
}

/// How much the host takes of what is copied out.
pub struct Credit(u32);

impl Default for Credit {
    fn default() -> Credit {
        Credit(WINDOW)
    }
}

impl Credit {
    /// Sends all of `bytes`, as the host takes them.
    ///
    /// # Errors
    /// When it has gone.
    pub fn send(&mut self, wire: &mut Wire, mut bytes: &[u8]) -> core::result::Result<(), Failure> {
        while !bytes.is_empty() {
            while self.0 == 0 {
                match wire.receive() {
                    Ok(Some(Frame::Credit(_, more))) => self.0 = more.min(WINDOW),
                    Ok(Some(_)) => {}
                    Ok(None) | Err(_) => return Err(Failure::Gone),
                }
            }
            let count = bytes.len().min(self.0 as usize).min(Frame::PIECE);
            let (piece, rest) = bytes.split_at_checked(count).unwrap_or((bytes, &[]));
            wire.send(Frame::Output(stream::STDOUT, piece)).map_err(|_| Failure::Gone)?;
            self.0 -= count as u32;
            bytes = rest;
        }
        Ok(())
    }
}
