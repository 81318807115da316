//! Which parts of a kernel its guest hardly ever reads: tables for debuggers and for an oops.
//!
//! They are a tenth of a distribution's kernel, and at the start of every machine they would be copied
//! into fresh pages for nothing. [`relayout`](super::relayout) marks them in the kernels that husk
//! keeps, and [`load`](super::load) maps them from there. A section's name only decides how its bytes
//! come into memory, never which, so a kernel that lies about it is merely slower.

use std::ops::Range;

use super::elf::{EHDR_SIZE, Segment};
use super::image::Image;
use super::{align_down, align_up, bytes_at, u16_at, u32_at, u64_at};

/// Type descriptions for BPF, and what the unwinder knows of each address; the latter's index,
/// `.orc_unwind_ip`, is read whole at every boot.
const COLD: [&[u8]; 3] = [b".BTF", b".BTF_ids", b".orc_unwind"];

/// Bytes of an ELF64 section header (`Elf64_Shdr`).
const SHDR_SIZE: usize = 64;
/// `sh_type` of a section whose bytes are in the file.
const SHT_PROGBITS: u32 = 1;
/// The longest table of section names that is looked at, in bytes (Linux' has some 500).
const MAX_NAMES: u64 = 64 << 10;
/// Pages of this size stay whole: mapping a part of one would make small pages of the rest.
const HUGE_PAGE: u64 = 2 << 20;

/// The byte ranges of `image` (in memory) with cold sections in them, those that touch as one. None
/// where there is no table of sections, or it cannot be read.
pub(super) fn ranges(image: &Image) -> Vec<Range<u64>> {
    let mut found = find(image).unwrap_or_default();
    found.sort_by_key(|range| range.start);
    let mut joined: Vec<Range<u64>> = Vec::new();
    for range in found {
        match joined.last_mut() {
            // Sections are aligned; what lies between two is nobody's.
            Some(last) if range.start <= last.end.saturating_add(64) => {
                last.end = last.end.max(range.end);
            }
            _ => joined.push(range),
        }
    }
    joined
}

fn find(image: &Image) -> Option<Vec<Range<u64>>> {
    let ehdr = image.slice(0, EHDR_SIZE as u64).ok()?;
    let (shoff, shentsize) = (u64_at(ehdr, 40)?, u16_at(ehdr, 58)?);
    let (shnum, shstrndx) = (u16_at(ehdr, 60)?, u16_at(ehdr, 62)?);
    if usize::from(shentsize) != SHDR_SIZE {
        return None;
    }
    let table = image.slice(shoff, u64::from(shnum) * SHDR_SIZE as u64).ok()?;
    let place = |header: &[u8]| Some((u64_at(header, 24)?, u64_at(header, 32)?));
    let (at, len) = place(table.chunks_exact(SHDR_SIZE).nth(usize::from(shstrndx))?)?;
    let names = image.slice(at, len.min(MAX_NAMES)).ok()?;
    let is_cold = |header: &[u8]| {
        let name = names.get(usize::try_from(u32_at(header, 0)?).ok()?..)?;
        let name = name.split(|byte| *byte == 0).next()?;
        Some(COLD.contains(&name) && u32_at(header, 4)? == SHT_PROGBITS)
    };
    let cold = table.chunks_exact(SHDR_SIZE).filter(|header| is_cold(header) == Some(true));
    Some(cold.filter_map(|header| place(header)).filter_map(range).collect())
}

fn range((at, len): (u64, u64)) -> Option<Range<u64>> {
    Some(at..at.checked_add(len)?)
}

/// Cuts `segment` so that what is `cold` of it, in whole huge pages of the guest, is in pieces of its
/// own. The last such page need not be full where the segment's bytes end in it.
pub(super) fn cut(segment: &Segment, cold: &[Range<u64>], pieces: &mut Vec<Segment>) {
    let Segment { offset, paddr, filesz, memsz, .. } = *segment;
    // Counted from the segment's beginning.
    let piece = |start: u64, end: u64, cold: bool| Segment {
        offset: offset + start,
        paddr: paddr + start,
        filesz: end - start,
        memsz: if end == filesz { memsz } else { end } - start,
        cold,
    };
    let mut done = 0;
    for range in cold {
        let (from, to) = (range.start.max(offset), range.end.min(offset + filesz));
        let Some(begin) = from.checked_sub(offset).and_then(|at| align_up(paddr + at, HUGE_PAGE))
        else {
            continue;
        };
        let end = match to.checked_sub(offset) {
            Some(end) if end == filesz => paddr + end,
            Some(end) => align_down(paddr + end, HUGE_PAGE),
            None => continue,
        };
        if begin >= end {
            continue;
        }
        let (begin, end) = (begin - paddr, end - paddr);
        if begin > done {
            pieces.push(piece(done, begin, false));
        }
        pieces.push(piece(begin, end, true));
        done = end;
    }
    if done < filesz || filesz == 0 {
        pieces.push(piece(done, filesz, false));
    }
}

#[cfg(test)]
mod tests;
