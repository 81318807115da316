//! Putting a kernel's segments into guest memory.
//!
//! [`begin`] is called once per start, by [`Kernel::begin_load`](super::Kernel::begin_load), with
//! segments whose headers are checked; it checks that the guest has the memory, maps what is to be mapped,
//! and cuts the rest into pieces, which any number of threads [read](Reading::read): each byte
//! goes from the file to its place once. What is zero in the guest and was never touched stays
//! untouched, so the parts of a kernel that begin as zeros cost no page here.
//!
//! ```text
//!   file      ├──────── filesz ────────┤
//!   memory  ┊ ├────────────────────────┤──── zeros ────┤   memsz
//!           ┊   ┊ whole pages: mapped ┊                    with LoadMethod::Map,
//!           └───┘ head, tail: read    └─┘                  (and what is rarely read);
//!                                                          else all of it is read
//! ```

use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};

use super::elf::{Segment, is_mappable};
use super::host::{HUGE_PAGE, for_each_span};
use super::image::Image;
use super::{PAGE, align_down, align_up};

/// How a kernel gets into guest memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LoadMethod {
    /// Read it there, into huge pages where the host gives them; only what Linux hardly ever reads is
    /// mapped where it can be.
    #[default]
    Read,
    /// Map the file's pages there, copy-on-write: nothing is copied before the guest writes to it,
    /// and machines with the same kernel share it. Read is used instead where that cannot be: for
    /// shared guest memory, for segments that do not lie in the file as in memory, and for files
    /// husk did not write itself (a kernel rebuilt in place would change under a running guest).
    Map,
}

/// Why a kernel cannot be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The guest has too little memory, or a hole where the kernel goes.
    #[error(
        "it goes to guest memory at {start:#x} to {end:#x}, but the guest's memory ends at \
         {ram_end:#x}: it needs at least {} MiB", .end.div_ceil(1 << 20)
    )]
    OutsideMemory {
        /// Where the segment begins.
        start: u64,
        /// Where it ends.
        end: u64,
        /// The end of the memory the guest has from address 0 (or the first hole).
        ram_end: u64,
    },
    /// The file could not be read.
    #[error("cannot be read into guest memory: {0}")]
    Read(io::Error),
    /// The file could not be mapped, though guest memory allows it.
    #[error("cannot be mapped into guest memory: {0}")]
    Map(io::Error),
}

impl From<io::Error> for LoadError {
    fn from(e: io::Error) -> Self {
        Self::Read(e)
    }
}

/// Segments on their way into guest memory.
#[derive(Debug)]
pub(super) struct Reading {
    memory: GuestMemoryMmap,
    pieces: Vec<Piece>,
    /// The first that nobody reads yet.
    next: AtomicUsize,
    /// How they get there: [`LoadMethod::Map`] if that was wanted and at least one page was mapped.
    pub method: LoadMethod,
}

/// What is read at once.
#[derive(Debug)]
struct Piece {
    /// Where it begins in the file, in bytes.
    offset: u64,
    /// Where it goes.
    start: u64,
    len: u64,
}

/// The most that is read at once: a huge page, which no two threads shall make at the same time.
const PIECE: u64 = HUGE_PAGE;

/// Begins to load `segments` of `image` into `memory`, which is as it was mapped: zeros are left to be.
pub(super) fn begin(
    memory: &GuestMemoryMmap,
    image: &Image,
    segments: &[Segment],
    method: LoadMethod,
) -> Result<Reading, LoadError> {
    for segment in segments {
        let len = usize::try_from(segment.memsz).unwrap_or(usize::MAX);
        if !memory.check_range(GuestAddress(segment.paddr), len) {
            return Err(LoadError::OutsideMemory {
                start: segment.paddr,
                end: segment.end(),
                ram_end: ram_end(memory),
            });
        }
    }
    let (mut used, mut pieces) = (LoadMethod::Read, Vec::new());
    for segment in segments {
        let (start, end) = (segment.paddr, segment.paddr + segment.filesz);
        let pages = mapped_pages(image, segment, method);
        if let Some(pages) = pages
            && map(memory, image, segment, &pages).map_err(LoadError::Map)?
        {
            used = method;
            cut(segment, start..pages.start, &mut pieces);
            cut(segment, pages.end..end, &mut pieces);
        } else {
            for_each_span(memory, start, segment.filesz, |span, _| {
                span.advise_huge();
                Ok(())
            })?;
            cut(segment, start..end, &mut pieces);
        }
    }
    Ok(Reading { memory: memory.clone(), pieces, next: AtomicUsize::new(0), method: used })
}

impl Reading {
    /// Whether it is worth a thread more.
    pub fn is_long(&self) -> bool {
        self.pieces.iter().map(|piece| piece.len).sum::<u64>() > PIECE
    }

    /// Reads pieces of `image` until nobody has to begin one. All are there when everybody who called this
    /// has returned.
    pub fn read(&self, image: &Image) -> Result<(), LoadError> {
        while let Some(piece) = self.pieces.get(self.next.fetch_add(1, Ordering::Relaxed)) {
            for_each_span(&self.memory, piece.start, piece.len, |span, done| {
                let offset = piece.offset + done;
                match image {
                    Image::File { file, .. } => {
                        span.touch();
                        span.read_from(file, offset)
                    }
                    Image::Bytes(_) => span.copy_from(image.slice(offset, span.len())?),
                }
            })?;
        }
        Ok(())
    }
}

/// The guest addresses of the whole pages of `segment` that are mapped, if guest memory can be mapped over:
/// of no file but husk's own, which nobody writes over under a running guest.
pub(super) fn mapped_pages(
    image: &Image,
    segment: &Segment,
    method: LoadMethod,
) -> Option<Range<u64>> {
    let is_ours = matches!(image, Image::File { immutable: true, .. });
    let is_wanted = method == LoadMethod::Map || segment.rare;
    let from = align_up(segment.paddr, PAGE)?;
    let to = align_down(segment.paddr + segment.filesz, PAGE);
    (is_ours && is_wanted && is_mappable(segment) && from < to).then_some(from..to)
}

/// The end of the guest's memory as it goes on from address 0 without a hole.
fn ram_end(memory: &GuestMemoryMmap) -> u64 {
    let mut end = 0;
    for region in memory.iter() {
        if region.start_addr().0 > end {
            break;
        }
        end = region.start_addr().0.saturating_add(region.len());
    }
    end
}

/// Where in the file the byte for the guest address `at` is.
fn offset_of(segment: &Segment, at: u64) -> u64 {
    segment.offset + (at - segment.paddr)
}

/// Maps the file's `pages`; false if guest memory is not such that it could be, and all must be read.
fn map(
    memory: &GuestMemoryMmap,
    image: &Image,
    segment: &Segment,
    pages: &Range<u64>,
) -> io::Result<bool> {
    let Image::File { file, .. } = image else { return Ok(false) };
    let (len, offset) = (pages.end - pages.start, offset_of(segment, pages.start));
    let mut can_be = true;
    for_each_span(memory, pages.start, len, |span, done| {
        can_be &= span.can_be_mapped(offset + done);
        Ok(())
    })?;
    if can_be {
        for_each_span(memory, pages.start, len, |span, done| span.map_from(file, offset + done))?;
    }
    Ok(can_be)
}

/// Cuts what goes to `range` into pieces that end at multiples of their size.
fn cut(segment: &Segment, range: Range<u64>, pieces: &mut Vec<Piece>) {
    let mut start = range.start;
    while start < range.end {
        let end = align_down(start, PIECE).saturating_add(PIECE).min(range.end);
        pieces.push(Piece { offset: offset_of(segment, start), start, len: end - start });
        start = end;
    }
}

#[cfg(test)]
mod tests;
