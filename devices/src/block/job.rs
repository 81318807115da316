//! One request to a disk, as the steps it takes: which system call is next, what its answer means.
//!
//! Short transfers go on, what lies behind the end of the file reads as zero, what the host cannot
//! do by `fallocate` is done by writing or not at all. A step moves at most [`PIECE`] bytes, so that
//! a request of any length can be held between two of them. No allocation but a bounce buffer, once.
//! A disk with an overlay has two files: what is read is taken run by run from where it is.

use std::io;
use std::sync::Arc;

use super::disk::Disk;
use super::overlay::Overlay;
use super::types::{Part, SECTOR, Step};
use crate::iovec::IovecBuffer;
use crate::segment::Segment;

/// Bytes of one step of a read or write: what a stop may have to wait for.
pub(super) const PIECE: usize = 1 << 20;
/// Bytes of a step through a bounce buffer.
const BOUNCE: usize = 64 << 10;

/// What is wanted of the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// Fill all of the data; past the end of the disk with zeroes.
    Read,
    /// Write all of the data. `ENOSPC` when the file ends before; nothing is written then.
    Write,
    /// What was written before is on stable storage after this.
    Flush,
    /// The range's contents do not matter any more: its space is given back where the host can,
    /// and nothing happens where it cannot.
    Discard,
    /// The range reads as zero after this; with `unmap` its space may be given back.
    WriteZeroes {
        /// Whether it may.
        unmap: bool,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Transfer,
    Punch,
    ZeroRange,
    ZeroByHand,
    Sync,
    Done,
}

/// One request. It is made once, used again and again, and its list of pieces with it.
pub struct Job {
    tag: usize,
    operation: Operation,
    phase: Phase,
    /// Bytes into the disk: of what has not been done yet.
    at: u64,
    /// Bytes of a range not zeroed yet; a transfer's are in `data`.
    left: u64,
    size: u64,
    /// Bytes of the image: what lies behind them, in a disk that is larger, is zero.
    image: u64,
    overlay: Option<Arc<Overlay>>,
    /// The image is no plain file: its engine reads to and writes from the host's own memory, and
    /// not past its end.
    formatted: bool,
    durable: bool,
    result: io::Result<()>,
    data: IovecBuffer,
    /// The one piece of a step that is no whole number of pieces.
    part: [Segment; 1],
    bounce: Option<Bounce>,
    /// The data's memory is not as the disk wants it.
    unaligned: bool,
    /// The step that is being made goes through the bounce buffer.
    bounced: bool,
}

impl Job {
    /// A job that its owner knows by `tag`.
    pub fn new(tag: usize) -> Job {
        Job {
            tag,
            operation: Operation::Flush,
            phase: Phase::Done,
            at: 0,
            left: 0,
            size: 0,
            image: 0,
            overlay: None,
            formatted: false,
            durable: false,
            result: Ok(()),
            data: IovecBuffer::default(),
            part: [Segment::EMPTY],
            bounce: None,
            unaligned: false,
            bounced: false,
        }
    }

    /// What its owner knows it by.
    pub fn tag(&self) -> usize {
        self.tag
    }

    /// What it was asked to do.
    pub fn operation(&self) -> Operation {
        self.operation
    }

    /// The pieces to read to or write from, to be filled before [`Job::begin`].
    pub fn data(&mut self) -> &mut IovecBuffer {
        &mut self.data
    }

    /// Asks for `operation` at byte `offset` of `disk`, over `len` bytes if it is on a range (of a
    /// transfer, the data says how many). With `durable` it is flushed before it is done.
    pub fn begin(
        &mut self,
        operation: Operation,
        disk: &Disk,
        offset: u64,
        len: u64,
        durable: bool,
    ) {
        let writes = !matches!(operation, Operation::Read | Operation::Flush);
        (self.operation, self.at) = (operation, offset);
        self.know(disk);
        self.durable = durable && writes && disk.flushes();
        (self.left, self.result) = (0, Ok(()));
        let checked = match operation {
            Operation::Read => Ok(()),
            Operation::Write => disk.check_writable(offset, self.data.len() as u64),
            Operation::Flush => Ok(()),
            Operation::Discard | Operation::WriteZeroes { .. } => {
                disk.present(offset, len).map(|present| self.left = present)
            }
        };
        if let Err(e) = checked {
            self.finish(Err(e));
            return;
        }
        self.phase = match operation {
            Operation::Read | Operation::Write if self.data.len() == 0 => Phase::Done,
            Operation::Read | Operation::Write => Phase::Transfer,
            Operation::Flush if !disk.flushes() => Phase::Done,
            Operation::Flush => Phase::Sync,
            Operation::Discard | Operation::WriteZeroes { .. } if self.left == 0 => Phase::Done,
            Operation::Discard | Operation::WriteZeroes { unmap: true } => Phase::Punch,
            Operation::WriteZeroes { unmap: false } => Phase::ZeroRange,
        };
        self.unaligned = self.phase == Phase::Transfer && !self.data.is_aligned(disk.align());
        if self.phase == Phase::Done {
            self.overlay = None;
        }
    }

    /// What of the disk matters for the steps.
    fn know(&mut self, disk: &Disk) {
        (self.size, self.image) = (disk.size(), disk.image_size());
        (self.overlay, self.formatted) = (disk.overlay().cloned(), disk.is_formatted());
    }

    /// For one that was held: whether what is left of it still lies within `disk`, as it is now and was
    /// last measured. Ends it otherwise.
    pub fn renew(&mut self, disk: &Disk) {
        if self.is_finished() {
            return;
        }
        self.know(disk);
        let fits = match self.phase {
            Phase::Sync | Phase::Done => Ok(()),
            Phase::Transfer if self.operation == Operation::Read => {
                let end = self.at.checked_add(self.data.len() as u64);
                let fits = end.is_some_and(|end| end <= disk.sectors() * SECTOR);
                if fits { Ok(()) } else { Err(io::Error::from_raw_os_error(libc::ENOSPC)) }
            }
            Phase::Transfer => disk.check_writable(self.at, self.data.len() as u64),
            _ => disk.check_writable(self.at, self.left),
        };
        if let Err(e) = fits {
            self.finish(Err(e));
        }
    }

    /// Whether nothing is left to do. A job that comes back from an engine without being finished
    /// was held there between two steps; submitted again it goes on.
    pub fn is_finished(&self) -> bool {
        self.phase == Phase::Done
    }

    /// How it went.
    ///
    /// # Errors
    /// The host's, once retrying was no use; `EROFS` and `ENOSPC` for a write that may not be;
    /// `UnexpectedEof` when the file has become shorter since it was opened: what is lost must not
    /// look like zeroes, nor become them.
    pub fn result(&self) -> &io::Result<()> {
        &self.result
    }

    /// Ends it with an error.
    pub(super) fn fail(&mut self, error: io::Error) {
        self.finish(Err(error));
    }

    /// The system call to make; `None` when there is nothing left to do.
    pub(super) fn step(&mut self) -> Option<Step<'_>> {
        let reads = self.phase == Phase::Transfer && self.operation == Operation::Read;
        let (part, most) = if reads {
            self.source()
        } else {
            (if self.overlay.is_some() { Part::Layer } else { Part::Image }, PIECE)
        };
        let offset = match to_i64(self.at) {
            Ok(offset) => offset,
            Err(e) => {
                self.finish(Err(e));
                return None;
            }
        };
        // A range is at most as long as the disk, whose size is an i64.
        let len = self.left as i64;
        match self.phase {
            Phase::Done => None,
            Phase::Sync => Some(Step::Sync),
            Phase::Punch => {
                let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
                Some(Step::Allocate { part, mode, offset, len })
            }
            Phase::ZeroRange => {
                let mode = libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE;
                Some(Step::Allocate { part, mode, offset, len })
            }
            Phase::ZeroByHand => {
                zeroes(&mut self.data, self.left);
                Some(Step::Write { part, from: self.data.front(usize::MAX), offset })
            }
            Phase::Transfer => {
                self.bounced = self.unaligned || self.formatted && part == Part::Image;
                if let Err(e) = self.fill_bounce(!reads) {
                    self.finish(Err(e));
                    return None;
                }
                let to = self.pieces(most);
                Some(if reads {
                    Step::Read { part, to, offset }
                } else {
                    Step::Write { part, from: to, offset }
                })
            }
        }
    }

    /// Where the next bytes to read are, and how many of them at most. What is nowhere is zeroed on
    /// the way.
    fn source(&mut self) -> (Part, usize) {
        if self.overlay.is_none() && !self.formatted {
            return (Part::Image, PIECE);
        }
        while self.data.len() > 0 {
            let most = self.data.len().min(PIECE);
            let (written, run) = match &self.overlay {
                Some(overlay) => overlay.run(self.at, most),
                None => (false, most),
            };
            if written {
                return (Part::Layer, run);
            }
            let there = self.image.saturating_sub(self.at);
            if there > 0 {
                let run = if self.formatted { run.min(to_usize(there)) } else { run };
                return (Part::Image, run);
            }
            // SAFETY: the submitter vouches for the data's memory until the job is back.
            if let Err(e) = unsafe { self.data.fill_zero(run) } {
                self.finish(Err(e));
                return (Part::Image, 0);
            }
            self.at += run as u64;
        }
        self.complete();
        (Part::Image, 0)
    }

    /// Has in the bounce buffer what the next step writes from there, if it does.
    fn fill_bounce(&mut self, write: bool) -> io::Result<()> {
        if !self.bounced || !write {
            return Ok(());
        }
        let bounce = self.bounce.get_or_insert_with(Bounce::default);
        // SAFETY: the submitter vouches for the data's memory until the job is back.
        unsafe { self.data.copy_to(bounce.bytes()) }
    }

    /// The pieces of the next step of a transfer, of at most `most` bytes together.
    fn pieces(&mut self, most: usize) -> &[Segment] {
        if self.bounced {
            let bounce = self.bounce.get_or_insert_with(Bounce::default);
            self.part = [bounce.piece(self.data.len().min(most))];
            return &self.part;
        }
        if self.data.front(most).is_empty() {
            let first = self.data.first().unwrap_or(Segment::EMPTY);
            self.part = [first.cut(0, most)];
            return &self.part;
        }
        self.data.front(most)
    }

    /// Takes the answer to [`Job::step`]: the system call's value, or minus its `errno`.
    pub(super) fn answer(&mut self, returned: i32) {
        if returned == -libc::EINTR {
            return;
        }
        match self.phase {
            Phase::Done => {}
            Phase::Sync => self.finish(outcome(returned)),
            Phase::Punch | Phase::ZeroRange => match -returned {
                0 => {
                    self.written(self.left);
                    self.complete();
                }
                // EINVAL: a block device wants its own, larger blocks.
                libc::EOPNOTSUPP | libc::ENOSYS | libc::ENODEV | libc::EINVAL => {
                    match (self.phase, self.operation) {
                        (_, Operation::Discard) => self.complete(),
                        (Phase::Punch, _) => self.phase = Phase::ZeroRange,
                        _ => self.phase = Phase::ZeroByHand,
                    }
                }
                _ => self.finish(outcome(returned)),
            },
            Phase::ZeroByHand => match returned {
                0 => self.finish(Err(io::ErrorKind::WriteZero.into())),
                1.. => {
                    self.written(returned as u64);
                    self.at += returned as u64;
                    self.left = self.left.saturating_sub(returned as u64);
                    if self.left == 0 {
                        self.complete();
                    }
                }
                _ => self.finish(outcome(returned)),
            },
            Phase::Transfer => self.transferred(returned),
        }
    }

    fn transferred(&mut self, returned: i32) {
        let read = self.operation == Operation::Read;
        match returned {
            0 if read && self.at >= self.size => {
                // SAFETY: the submitter vouches for the data's memory until the job is back.
                match unsafe { self.data.fill_zero(usize::MAX) } {
                    Ok(()) => self.complete(),
                    Err(e) => self.finish(Err(e)),
                }
            }
            0 if read => self.finish(Err(io::ErrorKind::UnexpectedEof.into())),
            0 => self.finish(Err(io::ErrorKind::WriteZero.into())),
            1.. => {
                let count = returned as usize;
                if self.bounced
                    && read
                    && let Some(bounce) = &mut self.bounce
                {
                    let bytes = bounce.bytes();
                    let filled = bytes.get(..count).unwrap_or_default();
                    // SAFETY: the submitter vouches for the data's memory until the job is back.
                    if let Err(e) = unsafe { self.data.copy_from(filled) } {
                        return self.finish(Err(e));
                    }
                }
                if !read {
                    self.written(returned as u64);
                }
                self.data.advance(count);
                self.at += returned as u64;
                if self.data.len() == 0 {
                    self.complete();
                }
            }
            _ => self.finish(outcome(returned)),
        }
    }

    /// The next `len` bytes are in the overlay now, if there is one.
    fn written(&self, len: u64) {
        if let Some(overlay) = &self.overlay {
            overlay.mark(self.at, self.at.saturating_add(len), self.size);
        }
    }

    /// What was wanted is done, except that it may have to be made stable.
    fn complete(&mut self) {
        if self.durable {
            self.phase = Phase::Sync;
        } else {
            self.finish(Ok(()));
        }
    }

    fn finish(&mut self, result: io::Result<()>) {
        self.result = result;
        self.phase = Phase::Done;
        // A job that waits for its next use keeps nothing.
        self.overlay = None;
    }
}

fn to_usize(value: u64) -> usize {
    usize::try_from(value).unwrap_or(usize::MAX)
}

fn outcome(returned: i32) -> io::Result<()> {
    if returned < 0 { Err(io::Error::from_raw_os_error(-returned)) } else { Ok(()) }
}

/// Aligned as any disk's `O_DIRECT` wants it.
#[repr(align(4096))]
struct Aligned([u8; BOUNCE]);

static ZEROES: Aligned = Aligned([0; BOUNCE]);

/// Makes `list` the next at most [`PIECE`] of `left` bytes of zeroes.
fn zeroes(list: &mut IovecBuffer, left: u64) {
    list.clear();
    let mut left = left.min(PIECE as u64) as usize;
    while left > 0 {
        let now = left.min(BOUNCE);
        // Only ever written to a file from: never through this pointer.
        list.push(Segment::new(ZEROES.0.as_ptr().cast_mut(), now));
        left -= now;
    }
}

/// A buffer for guest memory that is not aligned as `O_DIRECT` wants it.
struct Bounce(Box<[Page]>);

#[derive(Clone, Copy)]
#[repr(C, align(4096))]
struct Page([u8; 4096]);

impl Default for Bounce {
    fn default() -> Self {
        Bounce(vec![Page([0; 4096]); BOUNCE / 4096].into_boxed_slice())
    }
}

impl Bounce {
    fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: pages are bytes without padding, BOUNCE of them, borrowed as self is.
        unsafe { std::slice::from_raw_parts_mut(self.0.as_mut_ptr().cast(), BOUNCE) }
    }

    fn piece(&mut self, len: usize) -> Segment {
        Segment::new(self.0.as_mut_ptr().cast(), len.min(BOUNCE))
    }
}

fn to_i64(value: u64) -> io::Result<i64> {
    i64::try_from(value).map_err(|_| io::Error::from_raw_os_error(libc::EFBIG))
}
