//! Lists of host memory pieces, for the system calls that scatter and gather.
//!
//! [`Iovecs`] is what a backend sees of a chain: nothing of virtio, only bytes that the kernel may
//! read or write. The list lives in a buffer that its owner reuses; a request that outlives the
//! chain's borrow (a disk's) keeps the buffer itself.

use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsRawFd, BorrowedFd};

use crate::backing::Backing;
use crate::segment::{Segment, each};

/// The most pieces one system call takes (Linux `UIO_MAXIOV`).
pub const IOV_MAX: usize = 1024;

/// A list of pieces, kept by its owner so that a request allocates nothing. It says nothing of how
/// long their memory lives: [`Iovecs`] does, or whoever keeps one of these beyond that.
#[derive(Default)]
pub struct IovecBuffer {
    list: Vec<Segment>,
    /// Pieces of `list` that have been used up.
    first: usize,
    len: usize,
    /// The worst of the pieces.
    backing: Backing,
}

impl IovecBuffer {
    pub(crate) fn clear(&mut self) {
        self.list.clear();
        (self.first, self.len, self.backing) = (0, 0, Backing::Ram);
    }

    /// The bytes `offset..offset + len` of `segments`, of which `backing` is the worst; false when they are
    /// not that long.
    pub(crate) fn assign(
        &mut self,
        segments: &[Segment],
        backing: Backing,
        offset: usize,
        len: usize,
    ) -> bool {
        self.clear();
        (self.len, self.backing) = (len, backing);
        each(segments, offset, len, |piece| self.list.push(piece))
    }

    pub(crate) fn push(&mut self, piece: Segment) {
        self.len += piece.len();
        self.list.push(piece);
    }

    fn prepend(&mut self, piece: Segment) {
        self.len += piece.len();
        self.list.insert(self.first, piece);
    }

    /// Bytes left.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Passes over the first `count` bytes.
    pub(crate) fn advance(&mut self, count: usize) {
        let mut count = count.min(self.len);
        self.len -= count;
        while let Some(piece) = self.list.get_mut(self.first) {
            if count < piece.len() {
                *piece = piece.cut(count, usize::MAX);
                return;
            }
            count -= piece.len();
            self.first += 1;
        }
    }

    fn truncate(&mut self, len: usize) {
        let mut left = len.min(self.len);
        self.len = left;
        let mut keep = self.first;
        for piece in self.list.iter_mut().skip(self.first) {
            if left == 0 {
                break;
            }
            *piece = piece.cut(0, left);
            left -= piece.len();
            keep += 1;
        }
        self.list.truncate(keep);
    }

    /// The first pieces of what is left, whole and of at most `max` bytes together: at least one
    /// and at most [`IOV_MAX`]. None when the first one alone is longer.
    pub(crate) fn front(&self, max: usize) -> &[Segment] {
        let live = self.live();
        let mut bytes = 0usize;
        let count = live
            .iter()
            .take(IOV_MAX)
            .take_while(|piece| {
                bytes = bytes.saturating_add(piece.len());
                bytes <= max
            })
            .count();
        live.get(..count).unwrap_or_default()
    }

    /// The first piece of what is left.
    pub(crate) fn first(&self) -> Option<Segment> {
        self.live().first().copied()
    }

    /// Whether address and length of every piece are multiples of `align`.
    pub(crate) fn is_aligned(&self, align: usize) -> bool {
        self.live().iter().all(|piece| {
            piece.len().is_multiple_of(align) && piece.base().addr().is_multiple_of(align)
        })
    }

    /// Copies as many of the bytes left to `buffer` as it has room for; they stay.
    ///
    /// # Errors
    /// `EFAULT` when they cannot be had.
    ///
    /// # Safety
    /// The memory of every piece must be mapped and readable.
    pub(crate) unsafe fn copy_to(&self, mut buffer: &mut [u8]) -> io::Result<()> {
        for piece in self.live() {
            let (now, later) = buffer.split_at_mut(buffer.len().min(piece.len()));
            // SAFETY: the caller vouches for the memory.
            had(unsafe { self.backing.copy_to(*piece, now) })?;
            buffer = later;
        }
        Ok(())
    }

    /// Copies `bytes` to the first of the bytes left; they stay.
    ///
    /// # Errors
    /// `EFAULT` when they cannot be had.
    ///
    /// # Safety
    /// The memory of every piece must be mapped and writable.
    pub(crate) unsafe fn copy_from(&self, mut bytes: &[u8]) -> io::Result<()> {
        for piece in self.live() {
            let (now, later) = bytes.split_at(bytes.len().min(piece.len()));
            // SAFETY: the caller vouches for the memory.
            had(unsafe { self.backing.copy_from(*piece, now) })?;
            bytes = later;
        }
        Ok(())
    }

    fn live(&self) -> &[Segment] {
        self.list.get(self.first..).unwrap_or_default()
    }

    /// Writes zeroes over the next `count` bytes, or all that is left, and passes over them.
    ///
    /// # Errors
    /// `EFAULT` when they cannot be had.
    ///
    /// # Safety
    /// The memory of every piece must be mapped and writable.
    pub(crate) unsafe fn fill_zero(&mut self, count: usize) -> io::Result<()> {
        const ZEROES: [u8; 4096] = [0; 4096];
        let count = count.min(self.len);
        let (backing, mut whole) = (self.backing, true);
        each(self.live(), 0, count, |piece| {
            let mut done = 0;
            while whole && done < piece.len() {
                let part = piece.cut(done, ZEROES.len());
                // SAFETY: the caller vouches for the memory.
                whole = unsafe { backing.copy_from(part, &ZEROES) };
                done += part.len();
            }
        });
        self.advance(count);
        had(whole)
    }
}

/// Pieces of memory that stay mapped for `'a`, in order: guest memory, or buffers of the host's.
pub struct Iovecs<'a> {
    pieces: &'a mut IovecBuffer,
    memory: PhantomData<&'a mut [u8]>,
}

impl<'a> Iovecs<'a> {
    /// The bytes `offset..offset + len` of `segments`, of which `backing` is the worst; `None` when they are
    /// not that long.
    ///
    /// # Safety
    /// The memory of every segment must be mapped, readable and writable, for `'a`.
    pub(crate) unsafe fn slice(
        segments: &[Segment],
        backing: Backing,
        offset: usize,
        len: usize,
        pieces: &'a mut IovecBuffer,
    ) -> Option<Iovecs<'a>> {
        let whole = pieces.assign(segments, backing, offset, len);
        whole.then_some(Iovecs { pieces, memory: PhantomData })
    }

    /// The host's own buffers, in order.
    pub fn over(buffers: &'a mut [&mut [u8]], pieces: &'a mut IovecBuffer) -> Iovecs<'a> {
        pieces.clear();
        buffers.iter_mut().for_each(|b| pieces.push(Segment::new(b.as_mut_ptr(), b.len())));
        Iovecs { pieces, memory: PhantomData }
    }

    /// Adds `buffer` behind the rest.
    pub fn push(&mut self, buffer: &'a mut [u8]) {
        self.pieces.push(Segment::new(buffer.as_mut_ptr(), buffer.len()));
    }

    /// Puts `buffer` before the rest.
    pub fn prepend(&mut self, buffer: &'a mut [u8]) {
        self.pieces.prepend(Segment::new(buffer.as_mut_ptr(), buffer.len()));
    }

    /// Copies what is left to the end of `buffer`; it stays.
    ///
    /// # Errors
    /// `EFAULT` when it cannot be had; then there are as many bytes of no meaning.
    pub fn append_to(&self, buffer: &mut Vec<u8>) -> io::Result<()> {
        let start = buffer.len();
        buffer.resize(start + self.len(), 0);
        self.copy_to(buffer.get_mut(start..).unwrap_or_default())
    }

    /// Copies as many of the bytes left to `buffer` as it has room for; they stay.
    ///
    /// # Errors
    /// `EFAULT` when they cannot be had.
    pub fn copy_to(&self, buffer: &mut [u8]) -> io::Result<()> {
        // SAFETY: the pieces stay mapped for 'a (see the constructors).
        unsafe { self.pieces.copy_to(buffer) }
    }

    /// Copies `bytes` over the first of those left, which stay.
    ///
    /// # Errors
    /// `EFAULT` when they cannot be had.
    pub fn copy_from(&self, bytes: &[u8]) -> io::Result<()> {
        // SAFETY: the pieces stay mapped for 'a (see the constructors).
        unsafe { self.pieces.copy_from(bytes) }
    }

    /// Bytes left.
    pub fn len(&self) -> usize {
        self.pieces.len
    }

    /// Whether nothing is left.
    pub fn is_empty(&self) -> bool {
        self.pieces.len == 0
    }

    /// Passes over the first `count` bytes.
    pub fn advance(&mut self, count: usize) {
        self.pieces.advance(count);
    }

    /// Forgets what lies behind the first `len` bytes.
    pub fn truncate(&mut self, len: usize) {
        self.pieces.truncate(len);
    }

    /// One `readv`; the count is not passed over.
    ///
    /// # Errors
    /// The host's.
    pub fn readv(&self, fd: BorrowedFd<'_>) -> io::Result<usize> {
        let (list, count) = self.raw();
        // SAFETY: `list` points to `count` pieces that stay mapped for 'a (see the constructors).
        check(unsafe { libc::readv(fd.as_raw_fd(), list, count) })
    }

    /// One `writev`; the count is not passed over.
    ///
    /// # Errors
    /// The host's.
    pub fn writev(&self, fd: BorrowedFd<'_>) -> io::Result<usize> {
        let (list, count) = self.raw();
        // SAFETY: `list` points to `count` pieces that stay mapped for 'a (see the constructors).
        check(unsafe { libc::writev(fd.as_raw_fd(), list, count) })
    }

    /// One `preadv` from byte `offset` on; the count is not passed over.
    ///
    /// # Errors
    /// The host's.
    pub fn preadv(&self, fd: BorrowedFd<'_>, offset: i64) -> io::Result<usize> {
        let (list, count) = self.raw();
        // SAFETY: `list` points to `count` pieces that stay mapped for 'a (see the constructors).
        check(unsafe { libc::preadv(fd.as_raw_fd(), list, count, offset) })
    }

    /// One `pwritev` from byte `offset` on; the count is not passed over.
    ///
    /// # Errors
    /// The host's.
    pub fn pwritev(&self, fd: BorrowedFd<'_>, offset: i64) -> io::Result<usize> {
        let (list, count) = self.raw();
        // SAFETY: `list` points to `count` pieces that stay mapped for 'a (see the constructors).
        check(unsafe { libc::pwritev(fd.as_raw_fd(), list, count, offset) })
    }

    /// One `pwritev2` to the end of a file, wherever that is; the count is not passed over.
    ///
    /// # Errors
    /// The host's.
    pub fn append(&self, fd: BorrowedFd<'_>) -> io::Result<usize> {
        let (list, count) = self.raw();
        // SAFETY: `list` points to `count` pieces that stay mapped for 'a (see the constructors).
        check(unsafe { libc::pwritev2(fd.as_raw_fd(), list, count, 0, libc::RWF_APPEND) })
    }

    /// One `sendmsg` on a socket, which neither waits nor raises SIGPIPE; the count is not passed
    /// over.
    ///
    /// # Errors
    /// The host's.
    pub fn send(&self, socket: BorrowedFd<'_>) -> io::Result<usize> {
        let (list, count) = self.raw();
        // SAFETY: all zeroes is a message without address, pieces and control data.
        let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
        message.msg_iov = list.cast_mut();
        message.msg_iovlen = count as usize;
        let flags = libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT;
        // SAFETY: `list` points to `count` pieces that stay mapped for 'a (see the constructors);
        // sendmsg only reads them.
        check(unsafe { libc::sendmsg(socket.as_raw_fd(), &message, flags) })
    }

    /// Fills the first piece from the host's random generator; the count is not passed over.
    ///
    /// # Errors
    /// The host's.
    pub fn getrandom(&self) -> io::Result<usize> {
        let Some(Segment(piece)) = self.pieces.first() else { return Ok(0) };
        // SAFETY: the piece stays mapped for 'a (see the constructors).
        check(unsafe { libc::getrandom(piece.iov_base, piece.iov_len, 0) })
    }

    /// Writes zeroes over all that is left.
    ///
    /// # Errors
    /// `EFAULT` when it cannot be had.
    pub fn fill_zero(&mut self) -> io::Result<()> {
        // SAFETY: the pieces stay mapped for 'a (see the constructors).
        unsafe { self.pieces.fill_zero(usize::MAX) }
    }

    fn raw(&self) -> (*const libc::iovec, libc::c_int) {
        let live = self.pieces.live();
        // Segment is a transparent iovec. At most IOV_MAX, so the cast keeps the number.
        (live.as_ptr().cast(), live.len().min(IOV_MAX) as libc::c_int)
    }
}

/// What the memory's own answer is, where it is no system call's.
fn had(whole: bool) -> io::Result<()> {
    if whole { Ok(()) } else { Err(io::Error::from_raw_os_error(libc::EFAULT)) }
}

fn check(returned: isize) -> io::Result<usize> {
    usize::try_from(returned).map_err(|_| io::Error::last_os_error())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_advanced_truncated_and_zeroed_across_their_borders() {
        let (mut a, mut b, mut c) = ([1u8; 4], [2u8; 4], [3u8; 4]);
        let mut list = IovecBuffer::default();
        let mut buffers = [&mut a[..], &mut b[..], &mut c[..]];
        let mut iovecs = Iovecs::over(&mut buffers, &mut list);
        iovecs.advance(3);
        iovecs.truncate(7);
        assert_eq!(iovecs.len(), 7);
        iovecs.fill_zero().unwrap();
        assert!(iovecs.is_empty());
        assert_eq!((a, b, c), ([1, 1, 1, 0], [0; 4], [0, 0, 3, 3]));
    }

    #[test]
    fn a_piece_comes_before_the_rest_and_all_of_it_is_copied_out() {
        let (mut a, mut b, mut c) = (*b"ab", *b"cde", *b"XY");
        let mut list = IovecBuffer::default();
        let mut buffers = [&mut a[..], &mut b[..]];
        let mut iovecs = Iovecs::over(&mut buffers, &mut list);
        iovecs.advance(3);
        iovecs.prepend(&mut c);
        let mut copy = b"1".to_vec();
        iovecs.append_to(&mut copy).unwrap();
        assert_eq!((iovecs.len(), copy.as_slice()), (4, &b"1XYde"[..]));
    }
}
