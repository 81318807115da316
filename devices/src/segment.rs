//! A piece of host memory, by its address and length. It says nothing of how long the memory is there, nor of
//! what it is: whoever keeps pieces does.

use vm_memory::VolatileSlice;

/// A piece of host memory: an `iovec` whose pointer may travel between threads.
#[repr(transparent)]
#[derive(Clone, Copy)]
pub(crate) struct Segment(pub(crate) libc::iovec);

// SAFETY: a Segment is an address and a length; whoever turns it into an access says why the
// memory is there. Kept lists of segments are cleared before they are read again.
unsafe impl Send for Segment {}

impl Segment {
    /// No byte at all.
    pub(crate) const EMPTY: Segment =
        Segment(libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 });

    pub(crate) fn new(base: *mut u8, len: usize) -> Segment {
        Segment(libc::iovec { iov_base: base.cast(), iov_len: len })
    }

    pub(crate) fn len(&self) -> usize {
        self.0.iov_len
    }

    pub(crate) fn base(&self) -> *const u8 {
        self.0.iov_base.cast()
    }

    /// The piece `from..from + len`, cut at the end.
    pub(crate) fn cut(&self, from: usize, len: usize) -> Segment {
        let from = from.min(self.len());
        let base = self.0.iov_base.cast::<u8>().wrapping_add(from);
        Segment::new(base, len.min(self.len() - from))
    }

    /// The memory as something to copy from and to.
    ///
    /// # Safety
    /// The memory must be mapped, readable and writable for `'a`.
    pub(crate) unsafe fn as_slice<'a>(&self) -> VolatileSlice<'a> {
        // SAFETY: the caller vouches for the memory; VolatileSlice tolerates others writing to it.
        unsafe { VolatileSlice::new(self.0.iov_base.cast(), self.0.iov_len) }
    }
}

/// Calls `f` with the pieces that make up the bytes `offset..offset + len` of `segments`; false when
/// they are not that long.
pub(crate) fn each(
    segments: &[Segment],
    mut offset: usize,
    len: usize,
    mut f: impl FnMut(Segment),
) -> bool {
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
        f(piece);
    }
    left == 0
}
