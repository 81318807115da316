//! Writing a kernel's ELF anew, so that it can be mapped.
//!
//! Of an unpacked kernel only what is loaded is kept (section headers, symbols and relocations are
//! not), each segment at a file offset that equals its physical address within a page, and long
//! runs of zeros not at all: a third of a distribution's kernel is its zeroed data, which its
//! segments spell out. What Linux reads only to tell what went wrong ([`rare`]) is a segment of its own.
//! The result is an ELF like any other, read back by [`Elf::parse`](super::elf::Elf::parse).
//!
//! ```text
//!   0     64        + 56 per header   page                         page
//!   ├ ehdr ┼ phdrs ──┼ PVH note ─ 0 ──┼ segment 0 ──────── 0 ───────┼ segment 1 …
//! ```

use std::io::{self, Write};

use super::elf::{self, EHDR_SIZE, Elf, PHDR_SIZE, Segment};
use super::image::Image;
use super::{PAGE, align_up, rare};

/// Bytes of the one note: three words, the name, an 8-byte address.
const NOTE_SIZE: u64 = 12 + 4 + 8;

/// The shortest run of zero bytes that is left out: what it saves must be worth a segment.
const ZERO_RUN: u64 = 64 << 10;
/// No more segments are made than this: with the note there are as many headers as [`Elf::parse`]
/// takes back.
const MAX_SEGMENTS: usize = elf::MAX_PHNUM as usize - 1;

/// `elf` with its segments cut where `image` (in memory) has nothing but zeros for long, and around
/// what is rarely read.
pub(super) fn in_pieces(elf: &Elf, image: &Image) -> Elf {
    let mut cut = Elf { segments: Vec::new(), ..elf.clone() };
    let mut cuts = MAX_SEGMENTS.saturating_sub(elf.segments.len());
    let rare = rare::bytes(image);
    for segment in &elf.segments {
        let pages =
            rare.as_ref().and_then(|bytes| rare::pages(segment, bytes)).filter(|_| cuts >= 2);
        let Some(pages) = pages else {
            cut_segment(segment, image, &mut cuts, &mut cut.segments);
            continue;
        };
        cuts -= 2;
        let (before, rest) = split(segment, pages.start);
        let (rare, after) = split(&rest, pages.end);
        cut_segment(&before, image, &mut cuts, &mut cut.segments);
        cut.segments.push(Segment { rare: true, ..rare });
        cut_segment(&after, image, &mut cuts, &mut cut.segments);
    }
    cut.segments.retain(|segment| segment.memsz > 0);
    let held = |entry: Option<u64>| entry.is_none_or(|entry| cut.holds(entry));
    // Nobody begins in zeros, but a file may say so.
    if held(cut.entry) && held(cut.pvh_entry) { cut } else { elf.clone() }
}

/// The parts of `segment` below the address `at`, which is among those that the file has bytes for, and
/// from it on.
fn split(segment: &Segment, at: u64) -> (Segment, Segment) {
    let len = at - segment.paddr;
    let Segment { offset, filesz, memsz, .. } = *segment;
    let after = Segment {
        offset: offset + len,
        paddr: at,
        filesz: filesz - len,
        memsz: memsz - len,
        rare: false,
    };
    (Segment { filesz: len, memsz: len, ..*segment }, after)
}

/// Adds the pieces of `segment`: bytes that are not all zero, and the zeros up to the next piece. It
/// is cut at most as often as `cuts` says, from which that is taken.
fn cut_segment(segment: &Segment, image: &Image, cuts: &mut usize, pieces: &mut Vec<Segment>) {
    const ZEROS: [u8; PAGE as usize] = [0; PAGE as usize];
    let Ok(bytes) = image.slice(segment.offset, segment.filesz) else {
        return pieces.push(*segment);
    };
    // Of the piece being made: where it begins and where its bytes end, both from the segment's
    // beginning. A piece begins at a page of the segment's, so it lies in the page as before.
    let (mut start, mut data_end) = (0, 0);
    let mut push = |start: u64, data_end: u64, end: u64| {
        let Segment { offset, paddr, .. } = *segment;
        pieces.push(Segment {
            offset: offset + start,
            paddr: paddr + start,
            filesz: data_end - start,
            memsz: end - start,
            rare: false,
        });
    };
    for (index, page) in bytes.chunks(ZEROS.len()).enumerate() {
        if ZEROS.get(..page.len()) == Some(page) {
            continue;
        }
        let at = index as u64 * PAGE;
        if *cuts > 0 && at - data_end >= ZERO_RUN {
            push(start, data_end, at);
            *cuts -= 1;
            start = at;
        }
        data_end = at + page.len() as u64;
    }
    push(start, data_end, segment.memsz);
}

/// Writes `elf`, whose segments are in `image` (in memory), to `out`.
///
/// # Errors
/// What `out` says, or that a segment is not in `image`.
pub(super) fn write(elf: &Elf, image: &Image, out: &mut impl Write) -> io::Result<()> {
    let too_large = || io::Error::other("the kernel's segments are too large to lay out");
    let notes = u64::from(elf.pvh_entry.is_some());
    let phnum = elf.segments.len() as u64 + notes;
    let note_at = EHDR_SIZE as u64 + phnum * PHDR_SIZE as u64;

    let mut head = file_header(elf.entry.unwrap_or(0), phnum);
    let mut end = note_at + notes * NOTE_SIZE;
    let mut offsets = Vec::with_capacity(elf.segments.len());
    for segment in &elf.segments {
        let offset = align_up(end, PAGE).ok_or_else(too_large)? + segment.paddr % PAGE;
        end = offset.checked_add(segment.filesz).ok_or_else(too_large)?;
        offsets.push(offset);
        // PF_R | PF_W | PF_X: who boots it has no protection yet.
        let flags = if segment.rare { elf::PF_R } else { 7 };
        let sizes = (segment.filesz, segment.memsz);
        put_phdr(&mut head, elf::PT_LOAD, flags, offset, segment.paddr, sizes, PAGE);
    }
    if let Some(entry) = elf.pvh_entry {
        put_phdr(&mut head, elf::PT_NOTE, 4, note_at, 0, (NOTE_SIZE, NOTE_SIZE), 4);
        for word in [4, 8, elf::XEN_ELFNOTE_PHYS32_ENTRY] {
            head.extend(word.to_le_bytes());
        }
        head.extend(elf::XEN_NOTE_NAME);
        head.extend(entry.to_le_bytes());
    }

    out.write_all(&head)?;
    let mut at = head.len() as u64;
    for (segment, offset) in elf.segments.iter().zip(offsets) {
        io::copy(&mut io::Read::take(io::repeat(0), offset - at), out)?;
        out.write_all(image.slice(segment.offset, segment.filesz)?)?;
        at = offset + segment.filesz;
    }
    Ok(())
}

fn file_header(entry: u64, phnum: u64) -> Vec<u8> {
    let mut head = Vec::with_capacity(PAGE as usize);
    // ELFCLASS64, ELFDATA2LSB, EV_CURRENT, and no particular OS ABI.
    head.extend(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
    head.extend(elf::ET_EXEC.to_le_bytes());
    head.extend(elf::EM_X86_64.to_le_bytes());
    head.extend(1u32.to_le_bytes()); // e_version
    head.extend(entry.to_le_bytes());
    head.extend((EHDR_SIZE as u64).to_le_bytes()); // e_phoff
    head.extend(0u64.to_le_bytes()); // e_shoff
    head.extend(0u32.to_le_bytes()); // e_flags
    // e_ehsize, e_phentsize, e_phnum (at most MAX_PHNUM), and no sections.
    for field in [EHDR_SIZE as u16, PHDR_SIZE as u16, phnum as u16, 0, 0, 0] {
        head.extend(field.to_le_bytes());
    }
    head
}

fn put_phdr(
    head: &mut Vec<u8>,
    kind: u32,
    flags: u32,
    offset: u64,
    paddr: u64,
    (filesz, memsz): (u64, u64),
    align: u64,
) {
    head.extend(kind.to_le_bytes());
    head.extend(flags.to_le_bytes());
    for field in [offset, paddr, paddr, filesz, memsz, align] {
        head.extend(field.to_le_bytes());
    }
}

#[cfg(test)]
mod tests;
