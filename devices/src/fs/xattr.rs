//! Extended attributes.

use std::ffi::CStr;

use super::errno::{Errno, Result};
use super::session::{Call, Outcome, Session};
use super::wire::{GetxattrIn, GetxattrOut, SetxattrIn};

/// `XATTR_SIZE_MAX` and `XATTR_LIST_MAX` (Linux `include/uapi/linux/limits.h`).
const XATTR_MAX: usize = 65536;

/// An attribute's name that the guest may have something to do with.
fn allowed(name: &CStr) -> Result<&CStr> {
    // Access control lists hold users of the host's, who are others to the guest.
    if name.to_bytes().starts_with(b"system.") { Err(Errno(libc::EOPNOTSUPP)) } else { Ok(name) }
}

impl Session {
    pub(super) fn setxattr(&mut self, call: &mut Call<'_>) -> Result<Outcome> {
        let wanted: SetxattrIn = call.words.object()?;
        let name = allowed(call.words.string()?)?;
        let value = call.words.bytes(wanted.size as usize)?;
        let flags = i32::try_from(wanted.flags).map_err(|_| Errno(libc::EINVAL))?;
        let node = self.nodes.get(call.header.nodeid)?;
        self.share.proc.setxattr(node.fd(), name, value, flags)?;
        Ok(Outcome::Reply)
    }

    pub(super) fn getxattr(&mut self, call: &mut Call<'_>) -> Result<Outcome> {
        let wanted: GetxattrIn = call.words.object()?;
        let name = allowed(call.words.string()?)?;
        let node = self.nodes.get(call.header.nodeid)?;
        let proc = &self.share.proc;
        sized(call, wanted.size, |to| proc.getxattr(node.fd(), name, to))
    }

    pub(super) fn listxattr(&mut self, call: &mut Call<'_>) -> Result<Outcome> {
        let wanted: GetxattrIn = call.words.object()?;
        let node = self.nodes.get(call.header.nodeid)?;
        let proc = &self.share.proc;
        sized(call, wanted.size, |to| proc.listxattr(node.fd(), to))
    }

    pub(super) fn removexattr(&mut self, call: &mut Call<'_>) -> Result<Outcome> {
        let name = allowed(call.words.string()?)?;
        let node = self.nodes.get(call.header.nodeid)?;
        self.share.proc.removexattr(node.fd(), name)?;
        Ok(Outcome::Reply)
    }
}

/// Answers with what `read` reads, or with its length when the guest has asked for 0 bytes.
fn sized(
    call: &mut Call<'_>,
    size: u32,
    read: impl FnOnce(&mut [u8]) -> Result<usize>,
) -> Result<Outcome> {
    if size == 0 {
        if call.room < size_of::<GetxattrOut>() {
            return Err(Errno(libc::EINVAL));
        }
        // At most XATTR_MAX.
        let size = read(&mut [])? as u32;
        return call.answer(&GetxattrOut { size, padding: 0 });
    }
    call.reply.resize((size as usize).min(XATTR_MAX).min(call.room), 0);
    if call.reply.is_empty() {
        return Err(Errno(libc::ERANGE));
    }
    let len = read(call.reply)?;
    call.reply.truncate(len);
    Ok(Outcome::Reply)
}
