//! Putting a kernel's segments into guest memory.
//!
//! `load_segments` is called once per start, by [`Kernel::load`](super::Kernel::load), with
//! segments whose headers are checked; it checks that the guest has the memory, and then each byte
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
use std::sync::atomic::{AtomicUsize, Ordering};

use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};

use super::elf::{Segment, is_mappable};
use super::host::for_each_span;
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
}

impl From<io::Error> for LoadError {
    fn from(e: io::Error) -> Self {
        Self::Read(e)
    }
}

/// Loads `segments` of `image` into `memory`, and says how it did: [`LoadMethod::Map`] if that was
/// wanted and at least one page was mapped. `memory` is as it was mapped, so zeros are left to be.
pub(super) fn load_segments(
    memory: &GuestMemoryMmap,
    image: &Image,
    segments: &[Segment],
    method: LoadMethod,
) -> Result<LoadMethod, LoadError> {
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
    let mut used = LoadMethod::Read;
    let mut pieces = Vec::new();
    for segment in segments {
        let target = Target { memory, image, segment };
        let (start, end) = (segment.paddr, segment.paddr + segment.filesz);
        let pages = match is_to_be_mapped(segment, method) {
            true => target.mappable_pages(),
            false => None,
        };
        if let Some((from, to)) = pages.filter(|(from, to)| target.map(*from, *to)) {
            used = method;
            target.read(start, from)?;
            target.read(to, end)?;
        } else {
            for_each_span(memory, start, segment.filesz, |span, _| {
                span.advise_huge();
                Ok(())
            })?;
            target.cut(start, end, &mut pieces);
        }
    }
    read_all(&pieces)?;
    Ok(used)
}

/// Whether the pages of `segment` are mapped, if they can be.
pub(super) fn is_to_be_mapped(segment: &Segment, method: LoadMethod) -> bool {
    method == LoadMethod::Map || segment.rare
}

/// The most that is read at once: a few huge pages, so that threads share the work evenly.
const PIECE: u64 = 4 << 20;
/// Threads that read: most of the time goes into zeroing and filling fresh pages, which two do in
/// half the time; more would take processors from other machines that start.
const READERS: usize = 2;

/// Reads every piece, the larger kernels in two threads.
fn read_all(pieces: &[(Target<'_>, u64, u64)]) -> io::Result<()> {
    let next = AtomicUsize::new(0);
    let work = || -> io::Result<()> {
        while let Some((target, from, to)) = pieces.get(next.fetch_add(1, Ordering::Relaxed)) {
            target.read(*from, *to)?;
        }
        Ok(())
    };
    let alone = pieces.len() < READERS
        || std::thread::available_parallelism().is_ok_and(|n| n.get() < READERS);
    if alone {
        return work();
    }
    std::thread::scope(|scope| {
        let helper = std::thread::Builder::new()
            .name("husk-load".to_owned())
            .stack_size(HELPER_STACK)
            .spawn_scoped(scope, work);
        let mine = work();
        // Where no thread can be had, this one has read everything.
        let theirs = helper.map_or(Ok(()), |thread| {
            thread.join().unwrap_or_else(|_| Err(io::Error::other("the loading thread panicked")))
        });
        mine.and(theirs)
    })
}

/// Bytes of stack for a thread that only makes system calls.
const HELPER_STACK: usize = 64 << 10;

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

/// A segment on its way.
#[derive(Clone, Copy)]
struct Target<'a> {
    memory: &'a GuestMemoryMmap,
    image: &'a Image,
    segment: &'a Segment,
}

impl Target<'_> {
    /// Where in the file the byte for the guest address `at` is.
    fn offset_of(&self, at: u64) -> u64 {
        self.segment.offset + (at - self.segment.paddr)
    }

    /// The whole pages of the segment that could be mapped.
    fn mappable_pages(&self) -> Option<(u64, u64)> {
        let Image::File { immutable: true, .. } = self.image else { return None };
        let from = align_up(self.segment.paddr, PAGE)?;
        let to = align_down(self.segment.paddr + self.segment.filesz, PAGE);
        (is_mappable(self.segment) && from < to).then_some((from, to))
    }

    /// Maps the file's pages at `[from, to)`; false if it could not be, and all must be read.
    fn map(&self, from: u64, to: u64) -> bool {
        let Image::File { file, .. } = self.image else { return false };
        let mapped = for_each_span(self.memory, from, to - from, |span, done| {
            span.map_from(file, self.offset_of(from) + done)
        });
        mapped.is_ok()
    }

    /// Cuts `[from, to)` into pieces that end at multiples of their size.
    fn cut(self, from: u64, to: u64, pieces: &mut Vec<(Self, u64, u64)>) {
        let mut from = from;
        while from < to {
            let end = align_down(from, PIECE).saturating_add(PIECE).min(to);
            pieces.push((self, from, end));
            from = end;
        }
    }

    /// Reads what belongs to `[from, to)`.
    fn read(&self, from: u64, to: u64) -> io::Result<()> {
        let offset = self.offset_of(from);
        for_each_span(self.memory, from, to - from, |span, done| match self.image {
            Image::File { file, .. } => span.read_from(file, offset + done),
            Image::Bytes(_) => span.copy_from(self.image.slice(offset + done, span.len())?),
        })
    }
}

#[cfg(test)]
mod tests;
