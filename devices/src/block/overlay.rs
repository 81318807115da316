//! What is written to a disk whose image is only read: a layer above the image, thrown away at the end.
//!
//! The layer is a sparse file without a name, as long as the disk, in which a sector stands where it
//! stands on the disk. A bit for each sector says whether it is there. A sector is the least that a
//! guest reads or writes, so nothing is ever copied up, and no write waits for a read.

use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::error::DiskError;
use super::temporary;
use super::types::SECTOR;

/// The largest disk with an overlay, in bytes: the bits of 16 TiB take 4 GiB where all is written.
pub(super) const SIZE_MAX: u64 = 16 << 40;

/// The layer of one disk.
#[derive(Debug)]
pub(super) struct Overlay {
    layer: Arc<File>,
    /// A bit for each sector of the disk that is in the layer.
    there: Box<[AtomicU64]>,
}

impl Overlay {
    /// An empty layer for the disk at `path`, which has `size` bytes.
    ///
    /// # Errors
    /// When the bits need more memory than there is, or the file cannot be made.
    pub fn create(path: &Path, size: u64, dir: Option<&Path>) -> Result<Overlay, DiskError> {
        let too_large = || DiskError::OverlaySize { path: path.into(), size, most: SIZE_MAX };
        let there = bits(size).ok_or_else(too_large)?;
        let layer = temporary::make(dir, size.next_multiple_of(SECTOR), 0);
        let (layer, _) = layer.map_err(|(dir, source)| {
            let dir = dir.display().to_string();
            DiskError::Overlay { path: path.into(), dir, source }
        })?;
        Ok(Overlay { layer: Arc::new(layer), there })
    }

    /// The file.
    pub fn layer(&self) -> &Arc<File> {
        &self.layer
    }

    /// Whether the byte at `at` of the disk is in the layer, and how many bytes from there, up to
    /// `most`, are where it is.
    pub fn run(&self, at: u64, most: usize) -> (bool, usize) {
        let first = at / SECTOR;
        let end = at.saturating_add(most as u64).div_ceil(SECTOR);
        let there = self.is_there(first);
        let mut sector = first;
        while sector < end {
            // The bits from `sector` on that differ are ones.
            let word = self.word(sector) ^ if there { u64::MAX } else { 0 };
            let rest = word >> (sector % 64);
            let left = 64 - sector % 64;
            let same = u64::from(rest.trailing_zeros()).min(left);
            sector += same;
            if same < left {
                break;
            }
        }
        let bytes = sector.saturating_mul(SECTOR).saturating_sub(at).min(most as u64);
        // At most `most`, so the cast keeps the number.
        (there, bytes as usize)
    }

    /// The bytes from `at` to `end` of the disk, which has `size`, are in the layer now; of a sector
    /// that is not whole yet, only when it is the disk's last.
    pub fn mark(&self, at: u64, end: u64, size: u64) {
        let end = if end >= size { end.div_ceil(SECTOR) } else { end / SECTOR };
        let mut sector = at / SECTOR;
        while sector < end {
            let first = sector % 64;
            let count = (end - sector).min(64 - first);
            let ones = if count == 64 { u64::MAX } else { (1 << count) - 1 };
            if let Some(word) = self.there.get(to_index(sector)) {
                word.fetch_or(ones << first, Ordering::AcqRel);
            }
            sector += count;
        }
    }

    /// The same layer for a disk of another size: what lies behind its end, or did before, is gone.
    /// `None` when there is no memory for its bits.
    ///
    /// # Errors
    /// The host's.
    pub fn resized(&self, old: u64, new: u64) -> io::Result<Option<Overlay>> {
        let Some(there) = bits(new) else { return Ok(None) };
        let kept = old.min(new);
        // Nothing behind the end of the shorter one comes back.
        self.layer.set_len(kept.next_multiple_of(SECTOR))?;
        self.layer.set_len(new.next_multiple_of(SECTOR))?;
        let resized = Overlay { layer: self.layer.clone(), there };
        for (from, to) in self.there.iter().zip(&resized.there) {
            let word = from.load(Ordering::Acquire);
            // Most of it is zero, and memory that is only read stays unused.
            if word != 0 {
                to.store(word, Ordering::Release);
            }
        }
        resized.forget_from(kept.div_ceil(SECTOR));
        Ok(Some(resized))
    }

    fn forget_from(&self, sector: u64) {
        let first = to_index(sector);
        for (index, word) in self.there.iter().enumerate().skip(first) {
            let keep = if index == first { (1 << (sector % 64)) - 1 } else { 0 };
            if word.load(Ordering::Acquire) & !keep != 0 {
                word.fetch_and(keep, Ordering::AcqRel);
            }
        }
    }

    fn is_there(&self, sector: u64) -> bool {
        self.word(sector) >> (sector % 64) & 1 != 0
    }

    fn word(&self, sector: u64) -> u64 {
        self.there.get(to_index(sector)).map_or(0, |word| word.load(Ordering::Acquire))
    }
}

fn to_index(sector: u64) -> usize {
    usize::try_from(sector / 64).unwrap_or(usize::MAX)
}

/// No bit set, for a disk of `size` bytes; the memory is not touched before it is needed.
fn bits(size: u64) -> Option<Box<[AtomicU64]>> {
    if size > SIZE_MAX {
        return None;
    }
    let words = usize::try_from(size.div_ceil(SECTOR).div_ceil(64)).ok()?;
    if words == 0 {
        return Some(Box::default());
    }
    let layout = std::alloc::Layout::array::<AtomicU64>(words).ok()?;
    // SAFETY: the layout is not empty.
    let memory = unsafe { std::alloc::alloc_zeroed(layout) }.cast::<AtomicU64>();
    if memory.is_null() {
        return None;
    }
    let slice = std::ptr::slice_from_raw_parts_mut(memory, words);
    // SAFETY: allocated just now for so many, which are zero as an AtomicU64 may be, with the layout
    // that a box of them has.
    Some(unsafe { Box::from_raw(slice) })
}

#[cfg(test)]
mod tests;
