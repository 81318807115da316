//! A FUSE request on its way: what the guest sent, and the room it left for the reply.
//!
//! The device makes one of a descriptor chain, the tests of two buffers. [`Words`] takes a request's
//! body apart, and believes nothing of it: no length, no name.

use std::ffi::CStr;

use vm_memory::ByteValued;

use super::errno::{Errno, Result};
use super::wire::{InHeader, OutHeader};
use crate::iovec::Iovecs;

/// Bytes before a request's body.
pub(super) const HEADER: usize = size_of::<InHeader>();
/// Bytes before a reply's body.
pub(super) const REPLY_HEADER: usize = size_of::<OutHeader>();

/// One request, and the room for its reply.
pub trait Message {
    /// Bytes the guest sent.
    fn readable_len(&self) -> usize;
    /// Bytes there are for the reply.
    fn writable_len(&self) -> usize;
    /// Copies bytes of the request; false when it is shorter than that.
    fn copy_to(&self, offset: usize, data: &mut [u8]) -> bool;
    /// Copies bytes into the reply; false when there is less room than that.
    fn copy_from(&mut self, offset: usize, data: &[u8]) -> bool;
    /// Bytes of the request, for a system call; `None` when it is shorter than that.
    fn readable(&mut self, offset: usize, len: usize) -> Option<Iovecs<'_>>;
    /// Room of the reply, for a system call; `None` when there is less.
    fn writable(&mut self, offset: usize, len: usize) -> Option<Iovecs<'_>>;
    /// Makes a call that may hang in the host and does not touch the message. False when the message
    /// must not be touched any more: whose it was has given it up meanwhile.
    fn away(&mut self, call: &mut dyn FnMut()) -> bool;
}

/// Reads an object of the request; `None` when it is shorter than that.
pub(super) fn object<T: ByteValued + Default>(message: &dyn Message, offset: usize) -> Option<T> {
    let mut object = T::default();
    message.copy_to(offset, object.as_mut_slice()).then_some(object)
}

/// A reply's header: `len` bytes with it, and a negative errno or 0.
pub(super) fn reply_header(len: u32, error: i32, unique: u64) -> [u8; REPLY_HEADER] {
    let header = OutHeader { len, error, unique };
    let mut bytes = [0; REPLY_HEADER];
    bytes.copy_from_slice(header.as_slice());
    bytes
}

/// One component of a path: not empty, without `/` and NUL, and neither `.` nor `..`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Name<'a>(&'a CStr);

impl<'a> Name<'a> {
    /// Checks a name.
    pub(super) fn new(name: &'a CStr) -> Result<Name<'a>> {
        match name.to_bytes() {
            b"" | b"." | b".." => Err(Errno(libc::EINVAL)),
            bytes if bytes.contains(&b'/') => Err(Errno(libc::EINVAL)),
            bytes if bytes.len() > NAME_MAX => Err(Errno(libc::ENAMETOOLONG)),
            _ => Ok(Name(name)),
        }
    }

    /// For a system call.
    pub(super) fn c_str(&self) -> &'a CStr {
        self.0
    }
}

/// `FUSE_NAME_MAX`; file systems have lower limits of their own.
const NAME_MAX: usize = 1024;

/// The body of a request, taken apart from the front.
pub(super) struct Words<'a>(pub(super) &'a [u8]);

impl<'a> Words<'a> {
    /// The next object.
    pub(super) fn object<T: ByteValued + Default>(&mut self) -> Result<T> {
        let (now, rest) = self.0.split_at_checked(size_of::<T>()).ok_or(Errno(libc::EINVAL))?;
        self.0 = rest;
        let mut object = T::default();
        object.as_mut_slice().copy_from_slice(now);
        Ok(object)
    }

    /// The next string, which a NUL ends.
    pub(super) fn string(&mut self) -> Result<&'a CStr> {
        let string = CStr::from_bytes_until_nul(self.0).map_err(|_| Errno(libc::EINVAL))?;
        self.0 = self.0.get(string.count_bytes() + 1..).unwrap_or_default();
        Ok(string)
    }

    /// The next string, as a name.
    pub(super) fn name(&mut self) -> Result<Name<'a>> {
        Name::new(self.string()?)
    }

    /// The next `len` bytes.
    pub(super) fn bytes(&mut self, len: usize) -> Result<&'a [u8]> {
        let (now, rest) = self.0.split_at_checked(len).ok_or(Errno(libc::EINVAL))?;
        self.0 = rest;
        Ok(now)
    }
}
