//! An exact reader of the one kind of ELF husk boots: a 64-bit little-endian x86-64 executable.
//!
//! `Elf::parse` reads the file header, the program headers and the notes, and checks all of them
//! against the file before anything is loaded; section headers are never looked at. The layout is
//! that of the *System V ABI, chapters 4 and 5* (ELF64), and the PVH entry point that of Xen's
//! `public/elfnote.h`. It never touches guest memory.

use std::io;

use super::builtin::Absent;
use super::image::Image;
use super::{PAGE, align_up, u16_at, u32_at, u64_at};

/// Bytes of the ELF64 file header (`Elf64_Ehdr`).
pub(super) const EHDR_SIZE: usize = 64;
/// Bytes of an ELF64 program header (`Elf64_Phdr`).
pub(super) const PHDR_SIZE: usize = 56;
/// Program header types: a segment to load, the interpreter of a user program, a note.
pub(super) const PT_LOAD: u32 = 1;
const PT_INTERP: u32 = 3;
pub(super) const PT_NOTE: u32 = 4;
/// `p_flags` of a segment that is only read.
pub(super) const PF_R: u32 = 4;
/// `e_type` of an executable, and `e_machine` of x86-64.
pub(super) const ET_EXEC: u16 = 2;
pub(super) const EM_X86_64: u16 = 62;
/// Xen `public/elfnote.h`: the 32-bit physical address of the PVH entry point.
pub(super) const XEN_ELFNOTE_PHYS32_ENTRY: u32 = 18;
/// The name that note goes by, with its NUL.
pub(super) const XEN_NOTE_NAME: &[u8; 4] = b"Xen\0";

/// No kernel has more program headers (Linux has five).
pub(super) const MAX_PHNUM: u16 = 128;
/// No kernel has longer notes, in bytes (Linux has some 500).
const MAX_NOTES: u64 = 64 << 10;
/// Nothing is loaded below this: the first MiB belongs to the boot data and to what looks like a PC.
const LOWEST: u64 = 1 << 20;

/// Nothing is loaded at or above this: the page tables of the 64-bit entry map what is below, and
/// PVH enters without any, with 32-bit addresses.
const HIGHEST: u64 = 1 << 32;

/// What is wrong with an ELF file.
#[derive(Debug, thiserror::Error)]
pub enum ElfError {
    /// The file could not be read.
    #[error("cannot be read: {0}")]
    Read(io::Error),
    /// An ELF, but not for the machine husk runs.
    #[error("it is an ELF for {0}; husk runs 64-bit x86 kernels")]
    OtherMachine(String),
    /// An ELF for x86-64, but not a kernel.
    #[error("it is {0}, not a kernel")]
    NotKernel(&'static str),
    /// The file ends before what its headers describe.
    #[error("{what} ends at byte {end}, but the file has only {len}: it is truncated or damaged")]
    Truncated {
        /// What does not fit.
        what: String,
        /// Where it would end, in bytes.
        end: u64,
        /// The length of the file, in bytes.
        len: u64,
    },
    /// A segment goes to where no entry into the kernel reaches.
    #[error(
        "segment {index} goes to the physical addresses up to {end:#x}, but a kernel is entered with \
         no more than the first 4 GiB mapped"
    )]
    TooHigh {
        /// Which one.
        index: usize,
        /// The first address after it.
        end: u64,
    },
    /// A header says something that cannot be.
    #[error("the ELF headers are damaged: {0}")]
    Damaged(String),
    /// Neither way of entering the kernel is there.
    #[error("its entry point {0:#x} is in none of its segments, and it has no PVH note")]
    NoEntry(u64),
}

impl From<io::Error> for ElfError {
    fn from(e: io::Error) -> Self {
        Self::Read(e)
    }
}

/// A piece of the file and where in guest-physical memory it goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// Where it begins in the file, in bytes.
    pub offset: u64,
    /// Where it begins in guest-physical memory.
    pub paddr: u64,
    /// Bytes from the file.
    pub filesz: u64,
    /// Bytes in memory; those past `filesz` are zero.
    pub memsz: u64,
    /// Linux reads it only to tell what went wrong, if husk wrote the file: its header says then that it
    /// is read and nothing else, which husk says of no other segment.
    pub rare: bool,
}

impl Segment {
    /// The first address after it. (Parsing has checked that it does not overflow.)
    pub fn end(&self) -> u64 {
        self.paddr.saturating_add(self.memsz)
    }

    fn holds(&self, address: u64) -> bool {
        self.paddr <= address && address < self.paddr.saturating_add(self.filesz)
    }
}

/// A kernel's ELF headers, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Elf {
    /// What to load, in order of address, without overlaps, all of it inside the file.
    pub segments: Vec<Segment>,
    /// The file header's entry point, if it is a physical address inside a segment: for Linux, the
    /// 64-bit boot protocol's `startup_64`.
    pub entry: Option<u64>,
    /// The PVH entry point, if there is a note of it.
    pub pvh_entry: Option<u64>,
    /// Drivers that it certainly has not, if somebody has looked.
    pub absent: Absent,
}

impl Elf {
    /// Whether `head`, the first bytes of a file, begin an ELF of whatever kind.
    pub fn is_elf(head: &[u8]) -> bool {
        head.starts_with(b"\x7fELF")
    }

    /// Reads and checks the headers.
    ///
    /// # Errors
    /// What is wrong with them, or the file.
    pub(super) fn parse(image: &Image) -> Result<Elf, ElfError> {
        let ehdr: [u8; EHDR_SIZE] = read_array(image, "the ELF header", 0)?;
        check_kind(&ehdr)?;
        let phdrs = read_phdrs(image, &ehdr)?;

        let mut segments = Vec::new();
        let mut pvh_entry = None;
        for (index, phdr) in phdrs.iter().enumerate() {
            match phdr.kind {
                PT_INTERP => return Err(ElfError::NotKernel("a program for Linux")),
                PT_LOAD if phdr.memsz != 0 || phdr.filesz != 0 => {
                    segments.push(phdr.segment(index, image.len())?);
                }
                PT_NOTE if pvh_entry.is_none() => {
                    pvh_entry = find_pvh_entry(&phdr.read_notes(index, image)?);
                }
                _ => {}
            }
        }
        if segments.is_empty() {
            return Err(ElfError::NotKernel("an ELF with nothing to load"));
        }
        segments.sort_by_key(|segment| segment.paddr);
        for (a, b) in segments.iter().zip(segments.iter().skip(1)) {
            if a.end() > b.paddr {
                return Err(ElfError::Damaged(format!(
                    "its segments at {:#x} and {:#x} overlap",
                    a.paddr, b.paddr
                )));
            }
        }

        let e_entry = u64_at(&ehdr, 24).unwrap_or(0);
        let absent = Absent::default();
        let mut elf = Elf { segments, entry: None, pvh_entry, absent };
        elf.entry = Some(e_entry).filter(|entry| elf.holds(*entry));
        if let Some(entry) = pvh_entry.filter(|entry| !elf.holds(*entry)) {
            return Err(ElfError::Damaged(format!(
                "the PVH entry point {entry:#x} is in none of its segments"
            )));
        }
        if elf.entry.is_none() && pvh_entry.is_none() {
            return Err(ElfError::NoEntry(e_entry));
        }
        Ok(elf)
    }

    /// Whether a byte of the file goes to `address`.
    pub(super) fn holds(&self, address: u64) -> bool {
        self.segments.iter().any(|segment| segment.holds(address))
    }
}

/// One program header as the file has it.
struct Phdr {
    kind: u32,
    flags: u32,
    offset: u64,
    paddr: u64,
    filesz: u64,
    memsz: u64,
    align: u64,
}

impl Phdr {
    fn decode(bytes: &[u8]) -> Option<Phdr> {
        Some(Phdr {
            kind: u32_at(bytes, 0)?,
            flags: u32_at(bytes, 4)?,
            offset: u64_at(bytes, 8)?,
            paddr: u64_at(bytes, 24)?,
            filesz: u64_at(bytes, 32)?,
            memsz: u64_at(bytes, 40)?,
            align: u64_at(bytes, 48)?,
        })
    }

    /// Checks that the bytes from the file are in it.
    fn check_in_file(&self, what: &str, len: u64) -> Result<(), ElfError> {
        match self.offset.checked_add(self.filesz) {
            Some(end) if end <= len => Ok(()),
            end => Err(ElfError::Truncated {
                what: what.to_owned(),
                end: end.unwrap_or(u64::MAX),
                len,
            }),
        }
    }

    fn segment(&self, index: usize, len: u64) -> Result<Segment, ElfError> {
        let Phdr { offset, paddr, filesz, memsz, .. } = *self;
        self.check_in_file(&format!("segment {index}"), len)?;
        if filesz > memsz {
            return Err(ElfError::Damaged(format!(
                "segment {index} has {filesz} bytes in the file but {memsz} in memory"
            )));
        }
        if paddr < LOWEST {
            return Err(ElfError::Damaged(format!(
                "segment {index} goes to the physical address {paddr:#x}, below 1 MiB (is this a \
                 kernel?)"
            )));
        }
        if paddr.checked_add(memsz).and_then(|end| align_up(end, PAGE)).is_none() {
            return Err(ElfError::Damaged(format!(
                "segment {index} does not end ({paddr:#x} + {memsz:#x})"
            )));
        }
        let end = paddr.saturating_add(memsz);
        if end > HIGHEST {
            return Err(ElfError::TooHigh { index, end });
        }
        Ok(Segment { offset, paddr, filesz, memsz, rare: self.flags == PF_R })
    }

    fn read_notes(&self, index: usize, image: &Image) -> Result<Notes, ElfError> {
        if self.filesz > MAX_NOTES {
            return Err(ElfError::Damaged(format!(
                "the notes in program header {index} have {} bytes",
                self.filesz
            )));
        }
        self.check_in_file(&format!("note {index}"), image.len())?;
        let mut bytes = vec![0; usize::try_from(self.filesz).unwrap_or(0)];
        image.read_exact_at(&mut bytes, self.offset)?;
        // The ABI says 8 for ELF64, everybody writes 4, and the header's alignment tells.
        Ok(Notes { bytes, align: if self.align == 8 { 8 } else { 4 } })
    }
}

/// The contents of a `PT_NOTE` segment.
struct Notes {
    bytes: Vec<u8>,
    align: u64,
}

/// The descriptor of the `XEN_ELFNOTE_PHYS32_ENTRY` note: an address in 4 or 8 bytes.
fn find_pvh_entry(notes: &Notes) -> Option<u64> {
    let padded = |len: u32| usize::try_from(align_up(u64::from(len), notes.align)?).ok();
    let mut rest = notes.bytes.as_slice();
    loop {
        let (namesz, descsz, kind) = (u32_at(rest, 0)?, u32_at(rest, 4)?, u32_at(rest, 8)?);
        let name = rest.get(12..)?.get(..usize::try_from(namesz).ok()?)?;
        // Offsets are aligned from the start of the note: with 8, the 12 bytes of its header count.
        let desc_at = usize::try_from(align_up(12 + u64::from(namesz), notes.align)?).ok()?;
        let desc = rest.get(desc_at..)?.get(..usize::try_from(descsz).ok()?)?;
        if kind == XEN_ELFNOTE_PHYS32_ENTRY && name == XEN_NOTE_NAME {
            return match desc.len() {
                4 => u32_at(desc, 0).map(u64::from),
                8 => u64_at(desc, 0),
                _ => None,
            };
        }
        rest = rest.get(desc_at.checked_add(padded(descsz)?)?..)?;
    }
}

/// Refuses what is not an executable for x86-64, saying what it is.
fn check_kind(ehdr: &[u8; EHDR_SIZE]) -> Result<(), ElfError> {
    let [_, _, _, _, class, data, ..] = *ehdr;
    if !Elf::is_elf(ehdr) {
        return Err(ElfError::Damaged("it does not begin with the ELF magic".into()));
    }
    let big_endian = data == 2;
    let field = |offset| match super::bytes_at(ehdr, offset) {
        Some(bytes) if big_endian => u16::from_be_bytes(bytes),
        Some(bytes) => u16::from_le_bytes(bytes),
        None => 0,
    };
    let (kind, machine) = (field(16), field(18));
    if machine != EM_X86_64 || class != 2 || data != 1 {
        let bits = if class == 1 { "32-bit " } else { "" };
        let order = if big_endian { "big-endian " } else { "" };
        return Err(ElfError::OtherMachine(format!("{order}{}", machine_name(machine, bits))));
    }
    match kind {
        ET_EXEC => Ok(()),
        1 => Err(ElfError::NotKernel("a relocatable object (a kernel module?)")),
        3 => Err(ElfError::NotKernel("a shared object or position-independent program")),
        4 => Err(ElfError::NotKernel("a core dump")),
        _ => Err(ElfError::NotKernel("an ELF of an unknown type")),
    }
}

/// What `e_machine` is called (the numbers are in `elf.h`).
fn machine_name(machine: u16, bits: &str) -> String {
    let name = match machine {
        3 => return "32-bit x86".into(),
        8 => "MIPS",
        20 => "PowerPC",
        21 => "PowerPC 64",
        22 => "s390x",
        40 => return "32-bit Arm".into(),
        62 => "x86-64",
        183 => "aarch64",
        243 => "RISC-V",
        258 => "LoongArch",
        other => return format!("{bits}machine {other}"),
    };
    format!("{bits}{name}")
}

fn read_phdrs(image: &Image, ehdr: &[u8; EHDR_SIZE]) -> Result<Vec<Phdr>, ElfError> {
    let phoff = u64_at(ehdr, 32).unwrap_or(0);
    let phentsize = u16_at(ehdr, 54).unwrap_or(0);
    let phnum = u16_at(ehdr, 56).unwrap_or(0);
    if phnum == 0 {
        return Err(ElfError::NotKernel("an ELF with nothing to load"));
    }
    if usize::from(phentsize) != PHDR_SIZE || phnum > MAX_PHNUM {
        return Err(ElfError::Damaged(format!("{phnum} program headers of {phentsize} bytes")));
    }
    let len = usize::from(phnum) * PHDR_SIZE;
    let mut bytes = vec![0; len];
    check_range(image, "the table of program headers", phoff, len as u64)?;
    image.read_exact_at(&mut bytes, phoff)?;
    Ok(bytes.chunks_exact(PHDR_SIZE).filter_map(Phdr::decode).collect())
}

fn read_array<const N: usize>(image: &Image, what: &str, at: u64) -> Result<[u8; N], ElfError> {
    check_range(image, what, at, N as u64)?;
    let mut bytes = [0; N];
    image.read_exact_at(&mut bytes, at)?;
    Ok(bytes)
}

fn check_range(image: &Image, what: &str, at: u64, len: u64) -> Result<(), ElfError> {
    match at.checked_add(len) {
        Some(end) if end <= image.len() => Ok(()),
        end => Err(ElfError::Truncated {
            what: what.to_owned(),
            end: end.unwrap_or(u64::MAX),
            len: image.len(),
        }),
    }
}

/// Whether a segment can be mapped from the file as it lies: both addresses agree within a page.
pub(super) fn is_mappable(segment: &Segment) -> bool {
    segment.offset.wrapping_sub(segment.paddr).is_multiple_of(PAGE)
}

#[cfg(test)]
mod tests;
