//! What a guest's kernel is and can, read from the strings in it. A kernel that lies anywhere has no
//! configuration beside it; and where a VMM describes its machine by ACPI, it matters whether the kernel
//! will read that.

use std::fs::File;
use std::io::{self, Read};
use std::ops::Range;
use std::path::Path;

/// `linux_banner` (init/version-timestamp.c) begins so, and goes on with the release.
const BANNER: &[u8] = b"Linux version ";
/// What ACPICA puts before what it complains of (`ACPI_MSG_BIOS_ERROR`, include/acpi/acoutput.h), in
/// every kernel with CONFIG_ACPI and in no other.
const ACPICA: &[u8] = b"ACPI BIOS Error (bug): ";
/// The longest release of a kernel (`__NEW_UTS_LEN`, include/uapi/linux/utsname.h).
const RELEASE: usize = 64;
/// A kernel with its symbols is far smaller, in bytes.
const MOST: u64 = 1 << 30;
/// How much is looked at at once, in bytes.
const PIECE: usize = 256 << 10;

/// What is known of a kernel.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Inside {
    /// Its release, as `uname -r` says it; `None` if it is no ELF file of Linux.
    pub release: Option<String>,
    /// Whether it has ACPI. What is no Linux is not thought to lack it.
    pub acpi: bool,
    /// From its first to its last physical address, if it is an ELF file that says it.
    pub physical: Option<Range<u64>>,
}

impl Inside {
    /// Of the ELF file at `path`.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn of(path: &Path) -> io::Result<Self> {
        Self::read(File::open(path)?.take(MOST))
    }

    fn read(mut from: impl Read) -> io::Result<Self> {
        let (mut release, mut acpi, mut elf, mut physical) = (None, false, None, None);
        // What is looked for may lie across two pieces: the end of one is kept for the next.
        const KEPT: usize = BANNER.len() + RELEASE + 1;
        let mut window: Vec<u8> = Vec::with_capacity(PIECE + KEPT);
        loop {
            let read = from.by_ref().take(PIECE as u64).read_to_end(&mut window)?;
            if elf.is_none() {
                physical = physical_in(&window);
            }
            if !*elf.get_or_insert_with(|| window.starts_with(b"\x7fELF")) {
                return Ok(Self { release: None, acpi: true, physical: None });
            }
            if release.is_none() {
                release = release_in(&window);
            }
            acpi = acpi || find(&window, ACPICA).is_some();
            if read == 0 || (acpi && release.is_some()) {
                return Ok(Self { acpi: acpi || release.is_none(), release, physical });
            }
            window.drain(..window.len().saturating_sub(KEPT));
        }
    }
}

/// The release that follows a banner in `bytes`, if all of it is there.
fn release_in(bytes: &[u8]) -> Option<String> {
    let mut rest = bytes;
    while let Some(at) = find(rest, BANNER) {
        rest = rest.get(at + BANNER.len()..)?;
        let end = rest.iter().take(RELEASE + 1).position(|byte| *byte == b' ');
        let word = end.and_then(|end| rest.get(..end)).unwrap_or_default();
        // Other sentences may begin so.
        if word.first().is_some_and(u8::is_ascii_digit) && word.iter().all(u8::is_ascii_graphic) {
            return Some(String::from_utf8_lossy(word).into_owned());
        }
    }
    None
}

/// From the first to the last address in memory of what an ELF file loads, by its headers, which are at its
/// beginning. (System V ABI, chapters 4 and 5, ELF64.)
fn physical_in(head: &[u8]) -> Option<Range<u64>> {
    const PT_LOAD: u64 = 1;
    let number = |at: u64, size: usize| {
        let at = usize::try_from(at).ok()?;
        let bytes = head.get(at..at.checked_add(size)?)?;
        Some(bytes.iter().rev().fold(0, |all, byte| all << 8 | u64::from(*byte)))
    };
    let (at, size, count) = (number(32, 8)?, number(54, 2)?, number(56, 2)?);
    let mut all: Option<Range<u64>> = None;
    for nth in 0..count {
        let at = at.checked_add(nth * size)?;
        let (start, memory) = (number(at.checked_add(24)?, 8)?, number(at.checked_add(40)?, 8)?);
        if number(at, 4)? != PT_LOAD || memory == 0 {
            continue;
        }
        let end = start.checked_add(memory)?;
        let so_far = all.unwrap_or(start..end);
        all = Some(so_far.start.min(start)..so_far.end.max(end));
    }
    all
}

/// Where `needle` is in `bytes`.
fn find(bytes: &[u8], needle: &[u8]) -> Option<usize> {
    let first = *needle.first()?;
    let mut at = 0;
    loop {
        let rest = bytes.get(at..)?;
        at += rest.iter().position(|byte| *byte == first)?;
        if bytes.get(at..)?.starts_with(needle) {
            return Some(at);
        }
        at += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is known of a file of these parts, with so many other bytes before each.
    fn inside(gap: usize, parts: &[&[u8]]) -> Inside {
        let mut file = b"\x7fELF".to_vec();
        for part in parts {
            file.extend(std::iter::repeat_n(b'L', gap));
            file.extend_from_slice(part);
        }
        Inside::read(file.as_slice()).unwrap()
    }

    #[test]
    fn a_kernel_says_its_release_and_whether_it_has_acpi_wherever_that_lies() {
        let banner: &[u8] = b"Linux version mismatch\0Linux version 6.1.0-48-amd64 (a@b) #1\n\0";
        let release = || Some("6.1.0-48-amd64".to_owned());
        // Across the ends of the pieces, too.
        let close = (PIECE - 100)..(PIECE + 20);
        for gap in [0, 1000, 3 * PIECE].into_iter().chain(close.step_by(7)) {
            let with = Inside { release: release(), acpi: true, physical: None };
            assert_eq!(inside(gap, &[banner, ACPICA, b"\0"]), with, "{gap}");
            assert_eq!(inside(gap, &[ACPICA, banner]), with, "{gap}");
            let without = Inside { acpi: false, ..with };
            assert_eq!(inside(gap, &[banner, b"ACPI"]), without);
        }
    }

    #[test]
    fn where_it_lies_in_memory_is_from_the_first_to_the_last_segment_it_loads() {
        // Headers from byte 64 on, of 56 bytes each: kind, address and size in memory.
        let file = |segments: &[(u64, u64, u64)]| {
            let mut file = b"\x7fELF".to_vec();
            file.resize(64 + 56 * segments.len(), 0);
            let mut put =
                |at: usize, bytes: &[u8]| file[at..at + bytes.len()].copy_from_slice(bytes);
            put(32, &64u64.to_le_bytes());
            put(54, &56u16.to_le_bytes());
            put(56, &(segments.len() as u16).to_le_bytes());
            for (n, (kind, start, memory)) in segments.iter().enumerate() {
                put(64 + 56 * n, &kind.to_le_bytes()[..4]);
                put(64 + 56 * n + 24, &start.to_le_bytes());
                put(64 + 56 * n + 40, &memory.to_le_bytes());
            }
            file
        };
        let linux = file(&[(1, 0x300_0000, 0x1000), (1, 0x100_0000, 0x20), (4, 7, 7), (1, 0, 0)]);
        assert_eq!(physical_in(&linux), Some(0x100_0000..0x300_1000));
        assert_eq!(Inside::read(linux.as_slice()).unwrap().physical, physical_in(&linux));
        // Headers that are not there, lead out of all bounds, or load nothing.
        assert_eq!(physical_in(&linux[..100]), None);
        assert_eq!(physical_in(&file(&[(1, u64::MAX, 2)])), None);
        assert_eq!(physical_in(&file(&[(4, 1, 1)])), None);
        let mut far = linux;
        far[32..40].copy_from_slice(&(u64::MAX - 8).to_le_bytes());
        assert_eq!(physical_in(&far), None);
    }

    #[test]
    fn of_what_is_no_linux_or_no_elf_nothing_is_believed() {
        let nothing = Inside { release: None, acpi: true, physical: None };
        assert_eq!(inside(5, &[b"memtest"]), nothing);
        assert_eq!(inside(5, &[b"Linux version "]), nothing);
        assert_eq!(Inside::read(&b"Linux version 6.1 (a)"[..]).unwrap(), nothing);
        assert_eq!(Inside::read(&b""[..]).unwrap(), nothing);
        assert!(Inside::of(Path::new("/no/such/kernel")).is_err());
    }
}
