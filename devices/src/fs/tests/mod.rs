//! A guest without a guest: requests made by hand, against real directories.

mod dirs;
mod hostile;
mod locks;
mod posix;
mod users;

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use tempfile::TempDir;
use vm_memory::ByteValued;

use super::wire::{
    AttrOut, CreateIn, CreateOut, EntryOut, GetxattrIn, InHeader, InitIn, InitOut, LkIn, MkdirIn,
    OpenIn, OpenOut, OutHeader, ROOT, ReadIn, SetattrIn, WriteIn, WriteOut, op,
};
use super::*;
use crate::backing::Backing;
use crate::iovec::{IovecBuffer, Iovecs};
use crate::segment::Segment;

/// A message in two buffers.
pub(crate) struct Buffers {
    request: Vec<u8>,
    reply: Vec<u8>,
    pieces: IovecBuffer,
}

impl Message for Buffers {
    fn readable_len(&self) -> usize {
        self.request.len()
    }
    fn writable_len(&self) -> usize {
        self.reply.len()
    }
    fn away(&mut self, call: &mut dyn FnMut()) -> bool {
        call();
        true
    }
    fn copy_to(&self, offset: usize, data: &mut [u8]) -> bool {
        let Some(from) = self.request.get(offset..offset + data.len()) else { return false };
        data.copy_from_slice(from);
        true
    }
    fn copy_from(&mut self, offset: usize, data: &[u8]) -> bool {
        let Some(to) = self.reply.get_mut(offset..offset + data.len()) else { return false };
        to.copy_from_slice(data);
        true
    }
    fn readable(&mut self, offset: usize, len: usize) -> Option<Iovecs<'_>> {
        // Two pieces, as if they were two pages.
        let half = self.request.len() / 2;
        let (a, b) = self.request.split_at_mut(half);
        let segments = [a, b].map(|part| Segment::new(part.as_mut_ptr(), part.len()));
        // SAFETY: both are ours, and borrowed as long as the list is.
        unsafe { Iovecs::slice(&segments, Backing::Ram, offset, len, &mut self.pieces) }
    }
    fn writable(&mut self, offset: usize, len: usize) -> Option<Iovecs<'_>> {
        let half = self.reply.len() / 2;
        let (a, b) = self.reply.split_at_mut(half);
        let segments = [a, b].map(|part| Segment::new(part.as_mut_ptr(), part.len()));
        // SAFETY: both are ours, and borrowed as long as the list is.
        unsafe { Iovecs::slice(&segments, Backing::Ram, offset, len, &mut self.pieces) }
    }
}

/// A name as it follows a structure.
pub(crate) fn name(text: impl AsRef<[u8]>) -> Vec<u8> {
    [text.as_ref(), b"\0"].concat()
}

/// The bytes of a request.
pub(crate) fn request(opcode: u32, nodeid: u64, unique: u64, body: &[u8]) -> Vec<u8> {
    let len = (size_of::<InHeader>() + body.len()) as u32;
    let header = InHeader { len, opcode, unique, nodeid, ..InHeader::default() };
    [header.as_slice(), body].concat()
}

/// The body of an `INIT` as Linux 6.1 sends it.
pub(crate) fn init_body() -> Vec<u8> {
    let init = InitIn { major: 7, minor: 36, max_readahead: 128 << 10, flags: u32::MAX };
    [init.as_slice(), &[0; 48]].concat()
}

/// An object at the start of `bytes`.
pub(crate) fn object<T: ByteValued + Default>(bytes: &[u8]) -> T {
    let mut object = T::default();
    let len = size_of::<T>();
    object.as_mut_slice().copy_from_slice(&bytes[..len]);
    object
}

/// A guest that has a directory mounted.
pub(crate) struct Guest {
    pub session: Session,
    pub dir: TempDir,
    pub user: (u32, u32),
    unique: u64,
}

impl Guest {
    pub fn new() -> Guest {
        Guest::with(ShareOptions::default())
    }

    pub fn with(options: ShareOptions) -> Guest {
        Guest::on(TempDir::new().unwrap(), options)
    }

    pub fn on(dir: TempDir, options: ShareOptions) -> Guest {
        own_umask().unwrap();
        let share = Share::open(dir.path(), options).unwrap();
        Guest::of(share, dir)
    }

    /// With a share that need not be in `dir`.
    pub fn of(share: Share, dir: TempDir) -> Guest {
        let session = Session::of(Arc::new(share)).unwrap();
        let mut guest = Guest { session, dir, user: (0, 0), unique: 0 };
        let answer: InitOut = object(&guest.call(op::INIT, 0, &init_body()).unwrap());
        assert_eq!((answer.major, answer.minor, answer.max_write), (7, 36, 1 << 20));
        guest
    }

    /// A place in the directory, on the host.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// What became of a request with `room` bytes for its reply.
    pub fn serve(&mut self, bytes: Vec<u8>, room: usize) -> (Served, Vec<u8>) {
        let mut message =
            Buffers { request: bytes, reply: vec![0xee; room], pieces: IovecBuffer::default() };
        let served = self.session.serve(&mut message);
        (served, message.reply)
    }

    /// The reply's body, or the error.
    pub fn call(
        &mut self,
        opcode: u32,
        node: u64,
        body: &[u8],
    ) -> std::result::Result<Vec<u8>, i32> {
        self.unique += 1;
        let mut bytes = request(opcode, node, self.unique, body);
        bytes[24..28].copy_from_slice(&self.user.0.to_le_bytes());
        bytes[28..32].copy_from_slice(&self.user.1.to_le_bytes());
        let (served, reply) = self.serve(bytes, 16 + (1 << 20));
        let Served::Done(len) = served else { panic!("{opcode} is not done") };
        let header: OutHeader = object(&reply);
        assert_eq!((header.len, header.unique), (len, self.unique));
        if header.error == 0 { Ok(reply[16..len as usize].to_vec()) } else { Err(-header.error) }
    }

    /// A request of a structure and what follows it.
    pub fn ask<T: ByteValued>(
        &mut self,
        opcode: u32,
        node: u64,
        object: &T,
        tail: &[u8],
    ) -> std::result::Result<Vec<u8>, i32> {
        self.call(opcode, node, &[object.as_slice(), tail].concat())
    }

    /// What a name is; `ENOENT` also when the guest may remember that it is nothing.
    pub fn lookup(&mut self, dir: u64, text: &str) -> std::result::Result<EntryOut, i32> {
        let entry: EntryOut = object(&self.call(op::LOOKUP, dir, &name(text))?);
        if entry.nodeid == 0 { Err(libc::ENOENT) } else { Ok(entry) }
    }

    pub fn mkdir(&mut self, dir: u64, text: &str) -> std::result::Result<EntryOut, i32> {
        let body = MkdirIn { mode: 0o755, umask: 0 };
        self.ask(op::MKDIR, dir, &body, &name(text)).map(|reply| object(&reply))
    }

    pub fn create(
        &mut self,
        dir: u64,
        text: &str,
        flags: i32,
    ) -> std::result::Result<(u64, u64), i32> {
        let body = CreateIn { flags: flags as u32, mode: 0o100_644, umask: 0, open_flags: 0 };
        let reply = self.ask(op::CREATE, dir, &body, &name(text))?;
        let made: CreateOut = object(&reply);
        Ok((made.entry.nodeid, made.open.fh))
    }

    pub fn open(&mut self, node: u64, flags: i32) -> std::result::Result<u64, i32> {
        let body = OpenIn { flags: flags as u32, open_flags: 0 };
        self.ask(op::OPEN, node, &body, &[]).map(|reply| object::<OpenOut>(&reply).fh)
    }

    pub fn opendir(&mut self, node: u64) -> std::result::Result<u64, i32> {
        self.ask(op::OPENDIR, node, &OpenIn::default(), &[])
            .map(|reply| object::<OpenOut>(&reply).fh)
    }

    pub fn read(
        &mut self,
        node: u64,
        fh: u64,
        offset: u64,
        size: u32,
    ) -> std::result::Result<Vec<u8>, i32> {
        let body = ReadIn { fh, offset, size, ..ReadIn::default() };
        self.ask(op::READ, node, &body, &[])
    }

    pub fn write(
        &mut self,
        node: u64,
        fh: u64,
        offset: u64,
        data: &[u8],
    ) -> std::result::Result<u32, i32> {
        let body = WriteIn { fh, offset, size: data.len() as u32, ..WriteIn::default() };
        self.ask(op::WRITE, node, &body, data).map(|reply| object::<WriteOut>(&reply).size)
    }

    pub fn getattr(&mut self, node: u64) -> std::result::Result<AttrOut, i32> {
        self.call(op::GETATTR, node, &[0; 16]).map(|reply| object(&reply))
    }

    pub fn setattr(&mut self, node: u64, body: SetattrIn) -> std::result::Result<AttrOut, i32> {
        self.ask(op::SETATTR, node, &body, &[]).map(|reply| object(&reply))
    }

    /// All names of a directory, read `size` bytes at a time.
    pub fn names(&mut self, node: u64, size: u32) -> Vec<String> {
        let fh = self.opendir(node).unwrap();
        let (mut names, mut offset) = (Vec::new(), 0);
        loop {
            let body = ReadIn { fh, offset, size, ..ReadIn::default() };
            let reply = self.ask(op::READDIR, node, &body, &[]).unwrap();
            if reply.is_empty() {
                return names;
            }
            assert!(reply.len() <= size as usize);
            let mut rest = &reply[..];
            while !rest.is_empty() {
                let entry: super::wire::Dirent = object(rest);
                offset = entry.off;
                let end = 24 + entry.namelen as usize;
                names.push(String::from_utf8(rest[24..end].to_vec()).unwrap());
                rest = &rest[end.next_multiple_of(8)..];
            }
        }
    }

    pub fn getxattr(
        &mut self,
        node: u64,
        text: &str,
        size: u32,
    ) -> std::result::Result<Vec<u8>, i32> {
        self.ask(op::GETXATTR, node, &GetxattrIn { size, padding: 0 }, &name(text))
    }

    pub fn lock(
        &mut self,
        opcode: u32,
        node: u64,
        body: LkIn,
    ) -> std::result::Result<Vec<u8>, i32> {
        self.ask(opcode, node, &body, &[])
    }

    /// How many descriptors of this process are the session's.
    pub fn holdings(&self) -> (usize, usize) {
        self.session.holdings()
    }
}

/// Owner, group and mode of a file on the host.
pub(crate) fn host_owner(path: &std::path::Path) -> (u32, u32, u32) {
    let meta = std::fs::symlink_metadata(path).unwrap();
    (meta.uid(), meta.gid(), meta.mode() & 0o7777)
}

pub(crate) fn is_root() -> bool {
    // SAFETY: it cannot fail.
    unsafe { libc::geteuid() == 0 }
}

/// The file or directory itself, if it can be read and has not changed for a minute.
pub(crate) fn old(path: impl AsRef<Path>) -> Option<PathBuf> {
    let path = path.as_ref().canonicalize().ok()?;
    let meta = std::fs::File::open(&path).ok()?.metadata().ok()?;
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).ok()?.as_secs();
    (u64::try_from(meta.ctime()).ok()? + 60 <= now).then_some(path)
}
