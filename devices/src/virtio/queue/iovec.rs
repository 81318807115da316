//! Lists of host memory pieces, for the system calls that scatter and gather.
//!
//! [`Iovecs`] is what a backend sees of a chain: nothing of virtio, only bytes that the kernel may
//! read or write. All vectored system calls of the crate stand here, so that raw pointers to guest
//! memory pass through one place. The list lives in a buffer that its owner reuses.

use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsRawFd, BorrowedFd};

use vm_memory::VolatileSlice;

/// The most pieces one system call takes (Linux `UIO_MAXIOV`).
pub const IOV_MAX: usize = 1024;

/// A piece of host memory: an `iovec` whose pointer may travel between threads.
#[repr(transparent)]
#[derive(Clone, Copy)]
pub(crate) struct Segment(libc::iovec);

// SAFETY: a Segment is an address and a length; whoever turns it into an access says why the
// memory is there. Kept lists of segments are cleared before they are read again.
unsafe impl Send for Segment {}

impl Segment {
    pub(super) fn new(base: *mut u8, len: usize) -> Segment {
        Segment(libc::iovec { iov_base: base.cast(), iov_len: len })
    }

    pub(super) fn len(&self) -> usize {
        self.0.iov_len
    }

    pub(super) fn base(&self) -> *const u8 {
        self.0.iov_base.cast()
    }

    /// The piece `from..from + len`, cut at the end.
    pub(super) fn cut(&self, from: usize, len: usize) -> Segment {
        let from = from.min(self.len());
        let base = self.0.iov_base.cast::<u8>().wrapping_add(from);
        Segment::new(base, len.min(self.len() - from))
    }

    /// The memory as something to copy from and to.
    ///
    /// # Safety
    /// The memory must be mapped, readable and writable for `'a`.
    pub(super) unsafe fn as_slice<'a>(&self) -> VolatileSlice<'a> {
        // SAFETY: the caller vouches for the memory; VolatileSlice tolerates others writing to it.
        unsafe { VolatileSlice::new(self.0.iov_base.cast(), self.0.iov_len) }
    }
}

/// A buffer for [`Iovecs`], kept by its owner so that a request allocates nothing.
#[derive(Default)]
pub struct IovecBuffer(Vec<Segment>);

/// Pieces of memory that stay mapped for `'a`, in order: guest memory, or buffers of the host's.
pub struct Iovecs<'a> {
    list: &'a mut Vec<Segment>,
    /// Pieces of `list` that have been used up.
    first: usize,
    len: usize,
    memory: PhantomData<&'a mut [u8]>,
}

impl<'a> Iovecs<'a> {
    /// The bytes `offset..offset + len` of `segments`; `None` when they are not that long.
    ///
    /// # Safety
    /// The memory of every segment must be mapped, readable and writable, for `'a`.
    pub(super) unsafe fn slice(
        segments: &[Segment],
        mut offset: usize,
        len: usize,
        list: &'a mut Vec<Segment>,
    ) -> Option<Iovecs<'a>> {
        list.clear();
        let mut left = len;
        for segment in segments {
            if left == 0 {
                break;
            }
            if offset >= segment.len() {
                offset -= segment.len();
                continue;
            }
            let piece = segment.cut(offset, left);
            offset = 0;
            left -= piece.len();
            list.push(piece);
        }
        (left == 0).then_some(Iovecs { list, first: 0, len, memory: PhantomData })
    }

    /// The host's own buffers, in order.
    pub fn over(buffers: &'a mut [&mut [u8]], list: &'a mut IovecBuffer) -> Iovecs<'a> {
        let list = &mut list.0;
        list.clear();
        list.extend(buffers.iter_mut().map(|b| Segment::new(b.as_mut_ptr(), b.len())));
        let len = list.iter().map(Segment::len).sum();
        Iovecs { list, first: 0, len, memory: PhantomData }
    }

    /// Adds `buffer` behind the rest.
    pub fn push(&mut self, buffer: &'a mut [u8]) {
        self.list.push(Segment::new(buffer.as_mut_ptr(), buffer.len()));
        self.len += buffer.len();
    }

    /// Bytes left.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether nothing is left.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Passes over the first `count` bytes.
    pub fn advance(&mut self, count: usize) {
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

    /// Forgets what lies behind the first `len` bytes.
    pub fn truncate(&mut self, len: usize) {
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

    /// One `preadv` at `offset` bytes into the file; the count is not passed over.
    pub fn preadv(&self, fd: BorrowedFd<'_>, offset: i64) -> io::Result<usize> {
        let (list, count) = self.raw();
        // SAFETY: `list` points to `count` pieces that stay mapped for 'a (see the constructors).
        check(unsafe { libc::preadv(fd.as_raw_fd(), list, count, offset) })
    }

    /// One `pwritev` at `offset` bytes into the file; the count is not passed over.
    pub fn pwritev(&self, fd: BorrowedFd<'_>, offset: i64) -> io::Result<usize> {
        let (list, count) = self.raw();
        // SAFETY: `list` points to `count` pieces that stay mapped for 'a (see the constructors).
        check(unsafe { libc::pwritev(fd.as_raw_fd(), list, count, offset) })
    }

    /// One `readv`; the count is not passed over.
    pub fn readv(&self, fd: BorrowedFd<'_>) -> io::Result<usize> {
        let (list, count) = self.raw();
        // SAFETY: `list` points to `count` pieces that stay mapped for 'a (see the constructors).
        check(unsafe { libc::readv(fd.as_raw_fd(), list, count) })
    }

    /// One `writev`; the count is not passed over.
    pub fn writev(&self, fd: BorrowedFd<'_>) -> io::Result<usize> {
        let (list, count) = self.raw();
        // SAFETY: `list` points to `count` pieces that stay mapped for 'a (see the constructors).
        check(unsafe { libc::writev(fd.as_raw_fd(), list, count) })
    }

    /// One `sendmsg` on a socket, which neither waits nor raises SIGPIPE; the count is not passed
    /// over.
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
    pub fn getrandom(&self) -> io::Result<usize> {
        let Some(Segment(piece)) = self.list.get(self.first) else { return Ok(0) };
        // SAFETY: the piece stays mapped for 'a (see the constructors).
        check(unsafe { libc::getrandom(piece.iov_base, piece.iov_len, 0) })
    }

    /// Writes zeroes over all that is left.
    pub fn fill_zero(&mut self) {
        const ZEROES: [u8; 4096] = [0; 4096];
        for piece in self.list.iter().skip(self.first) {
            let mut done = 0;
            while done < piece.len() {
                let part = piece.cut(done, ZEROES.len());
                // SAFETY: the piece stays mapped for 'a (see the constructors).
                unsafe { part.as_slice() }.copy_from(&ZEROES);
                done += part.len();
            }
        }
        self.advance(self.len);
    }

    fn raw(&self) -> (*const libc::iovec, libc::c_int) {
        let live = self.list.get(self.first..).unwrap_or_default();
        // Segment is a transparent iovec. At most IOV_MAX, so the cast keeps the number.
        (live.as_ptr().cast(), live.len().min(IOV_MAX) as libc::c_int)
    }
}

fn check(returned: isize) -> io::Result<usize> {
    usize::try_from(returned).map_err(|_| io::Error::last_os_error())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::fd::AsFd;

    #[test]
    fn pieces_are_advanced_truncated_and_zeroed_across_their_borders() {
        let (mut a, mut b, mut c) = ([1u8; 4], [2u8; 4], [3u8; 4]);
        let mut list = IovecBuffer::default();
        let mut buffers = [&mut a[..], &mut b[..], &mut c[..]];
        let mut iovecs = Iovecs::over(&mut buffers, &mut list);
        iovecs.advance(3);
        iovecs.truncate(7);
        assert_eq!(iovecs.len(), 7);
        iovecs.fill_zero();
        assert!(iovecs.is_empty());
        assert_eq!((a, b, c), ([1, 1, 1, 0], [0; 4], [0, 0, 3, 3]));
    }

    #[test]
    fn a_file_is_read_into_the_pieces_in_order() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"0123456789").unwrap();
        let (mut a, mut b) = ([0u8; 3], [0u8; 4]);
        let mut list = IovecBuffer::default();
        let mut buffers = [&mut a[..], &mut b[..]];
        let iovecs = Iovecs::over(&mut buffers, &mut list);
        assert_eq!(iovecs.preadv(file.as_fd(), 2).unwrap(), 7);
        assert_eq!((&a, &b), (b"234", b"5678"));
    }
}
