//! What of a kernel Linux reads only to tell what went wrong.
//!
//! Of the unwinder's tables `.orc_unwind`, six bytes a place in the code, is read for nothing but a
//! stack trace since Linux 5.6, which no longer sorts it at boot; the other, `.orc_unwind_ip`, is walked at every boot. The former is a fourteenth of what
//! a distribution's kernel loads. [`relayout`](super::relayout) asks [`pages`] for it and makes a segment
//! of its own of it, which is mapped where everything else is read. Section headers are believed no
//! further than that: a file that lies about them gets other pages mapped, with the same contents.

use std::ops::Range;

use super::elf::{EHDR_SIZE, Segment};
use super::host::HUGE_PAGE;
use super::image::Image;
use super::{PAGE, align_down, align_up, u16_at, u32_at, u64_at};

/// The section, with the NUL of the string table.
const NAME: &[u8] = b".orc_unwind\0";
/// Bytes of a section header (`Elf64_Shdr`).
const SHDR_SIZE: u64 = 64;

/// The bytes of the file `image`, in memory, that are read only for a stack trace, if its section
/// headers tell.
pub(super) fn bytes(image: &Image) -> Option<Range<u64>> {
    let ehdr = image.slice(0, EHDR_SIZE as u64).ok()?;
    let (table, size, count, names) =
        (u64_at(ehdr, 40)?, u16_at(ehdr, 58)?, u16_at(ehdr, 60)?, u16_at(ehdr, 62)?);
    if u64::from(size) != SHDR_SIZE {
        return None;
    }
    let headers = image.slice(table, u64::from(count) * SHDR_SIZE).ok()?;
    let header = |index: usize| headers.chunks_exact(SHDR_SIZE as usize).nth(index);
    let place = |header: &[u8]| Some((u64_at(header, 24)?, u64_at(header, 32)?));
    let (names_at, names_len) = place(header(usize::from(names))?)?;
    let names = image.slice(names_at, names_len).ok()?;
    let is_it = |header: &&[u8]| {
        let name = u32_at(header, 0).and_then(|at| names.get(usize::try_from(at).ok()?..));
        name.is_some_and(|name| name.starts_with(NAME))
    };
    let (start, len) = place(headers.chunks_exact(SHDR_SIZE as usize).find(is_it)?)?;
    Some(start..start.checked_add(len)?)
}

/// The guest addresses of the pages of `segment` that hold nothing but `bytes` of the file, as far as
/// it is worth while to map them: from the beginning of a huge page on, for what shares a huge page
/// with them is then behind small pages, each of which costs the guest a fault.
pub(super) fn pages(segment: &Segment, bytes: &Range<u64>) -> Option<Range<u64>> {
    let file = segment.offset..segment.offset.checked_add(segment.filesz)?;
    if bytes.start < file.start || bytes.end > file.end {
        return None;
    }
    let at = |offset: u64| segment.paddr.checked_add(offset - segment.offset);
    let start = align_up(at(bytes.start)?, HUGE_PAGE)?;
    let end = align_down(at(bytes.end)?, PAGE);
    let last = align_down(end, HUGE_PAGE);
    let end = if end - last >= MOST_OF_IT { end } else { last };
    (start < end).then_some(start..end)
}

/// So much of a huge page must be mapped for the rest of it to be worth small pages.
const MOST_OF_IT: u64 = HUGE_PAGE / 4 * 3;

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn segment() -> Segment {
        Segment { offset: 4096, paddr: 16 * MIB, filesz: 16 * MIB, memsz: 20 * MIB, rare: false }
    }

    /// What [`pages`] makes of the bytes at these guest addresses, in KiB from 16 MiB on.
    fn mapped(start: u64, end: u64) -> Option<(u64, u64)> {
        let bytes = 4096 + (start << 10)..4096 + (end << 10);
        let pages = pages(&segment(), &bytes)?;
        Some(((pages.start - 16 * MIB) >> 10, (pages.end - 16 * MIB) >> 10))
    }

    #[test]
    fn whole_huge_pages_are_mapped_and_the_last_if_there_is_most_of_it() {
        assert_eq!(mapped(0, 4096), Some((0, 4096)));
        assert_eq!(mapped(3, 4096), Some((2048, 4096)));
        assert_eq!(mapped(3, 4096 + 1535), Some((2048, 4096)));
        assert_eq!(mapped(3, 4096 + 1536), Some((2048, 4096 + 1536)));
        assert_eq!(mapped(3, 4096 + 1539), Some((2048, 4096 + 1536)));
        assert_eq!(mapped(3, 2048 + 1000), None);
        assert_eq!(mapped(3, 1900), None);
    }

    #[test]
    fn bytes_that_are_not_of_the_segment_are_not_mapped() {
        assert_eq!(pages(&segment(), &(0..8 * MIB)), None);
        assert_eq!(pages(&segment(), &(8 * MIB..17 * MIB)), None);
        assert_eq!(pages(&segment(), &(8 * MIB..u64::MAX)), None);
    }

    /// An ELF's beginning with a section of this name at `8..24`.
    fn with_section(name: &[u8]) -> Vec<u8> {
        let mut file = vec![0; EHDR_SIZE];
        let mut put = |at: usize, bytes: &[u8]| file[at..at + bytes.len()].copy_from_slice(bytes);
        put(40, &64u64.to_le_bytes());
        put(58, &(SHDR_SIZE as u16).to_le_bytes());
        put(60, &2u16.to_le_bytes());
        put(62, &1u16.to_le_bytes());
        for (name_at, at, len) in [(1u32, 8u64, 16u64), (0, 64 + 2 * 64, 32)] {
            let mut header = [0; SHDR_SIZE as usize];
            header[..4].copy_from_slice(&name_at.to_le_bytes());
            header[24..32].copy_from_slice(&at.to_le_bytes());
            header[32..40].copy_from_slice(&len.to_le_bytes());
            file.extend(header);
        }
        let names = [b"\0", name, &[0; 32]].concat();
        file.extend(&names[..32]);
        file
    }

    #[test]
    fn the_section_is_found_by_its_whole_name() {
        assert_eq!(bytes(&Image::Bytes(with_section(b".orc_unwind"))), Some(8..24));
        assert_eq!(bytes(&Image::Bytes(with_section(b".orc_unwind_ip"))), None);
    }

    #[test]
    fn a_damaged_table_of_sections_names_nothing() {
        let whole = with_section(b".orc_unwind");
        for len in 0..whole.len() {
            assert_eq!(bytes(&Image::Bytes(whole[..len].to_vec())), None, "{len}");
        }
        // Every byte of the headers, made as large as it can be.
        for at in 0..64 + 2 * 64 {
            let mut file = whole.clone();
            file[at] = 0xff;
            let _ = bytes(&Image::Bytes(file));
        }
    }
}
