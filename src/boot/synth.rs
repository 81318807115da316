//! Kernels made for tests: small ELF files, payloads of every compression, bzImages around them.

use std::io::Write;

use lzma_rust2::{LzmaOptions, LzmaWriter, XzOptions, XzWriter};

use super::unpack::Compression;

#[path = "../../tests/fixture/bzimage.rs"]
mod shared;

use shared::BzImage;

/// The ways a kernel may be packed.
pub(crate) const ALL: [Compression; 6] = [
    Compression::Gzip,
    Compression::Xz,
    Compression::Zstd,
    Compression::Lz4,
    Compression::Lzma,
    Compression::Bzip2,
];

/// Where the synthetic kernel's first segment goes, and where it is entered.
pub(crate) const BASE: u64 = 0x0100_0000;
pub(crate) const PVH_ENTRY: u64 = BASE + 0x850;
/// A header's `init_size` that has room for all of it.
pub(crate) const INIT_SIZE: u32 = 0x0040_0000;

/// An ELF to be written.
#[derive(Clone)]
pub(crate) struct Spec {
    pub machine: u16,
    pub kind: u16,
    pub entry: u64,
    /// The descriptor of a PVH note.
    pub pvh: Option<Vec<u8>>,
    /// Address, contents, and size in memory.
    pub segments: Vec<(u64, Vec<u8>, u64)>,
    /// What a segment's file offset is a multiple of (plus its address, from a page on).
    pub align: usize,
    /// Name, address and length of a section to be named in section headers.
    pub section: Option<(&'static str, u64, u64)>,
}

impl Default for Spec {
    /// A kernel with two segments. The first has a hole of zeros in it and ends within a page; the
    /// second begins within a page, and most of it is zero in memory.
    fn default() -> Self {
        let mut text = noise(0x5123, 1);
        text.extend(vec![0; 0x30000]);
        text.extend(noise(0x2fff, 2));
        Spec {
            machine: 62,
            kind: 2,
            entry: BASE,
            pvh: Some((PVH_ENTRY as u32).to_le_bytes().to_vec()),
            segments: vec![(BASE, text, 0x39000), (BASE + 0x20_0010, noise(0x3456, 3), 0x20000)],
            align: 4096,
            section: None,
        }
    }
}

impl Spec {
    /// The bytes of the file.
    pub(crate) fn build(&self) -> Vec<u8> {
        let phnum = self.segments.len() + usize::from(self.pvh.is_some());
        let mut head = Vec::new();
        head.extend(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
        head.extend(self.kind.to_le_bytes());
        head.extend(self.machine.to_le_bytes());
        head.extend(1u32.to_le_bytes());
        head.extend(self.entry.to_le_bytes());
        head.extend(64u64.to_le_bytes());
        head.extend([0; 12]);
        for field in [64, 56, phnum as u16, 0, 0, 0] {
            head.extend(field.to_le_bytes());
        }
        let mut body = vec![0; 64 + 56 * phnum];
        let mut section_at = None;
        if let Some(desc) = &self.pvh {
            // A note of another name first, as Linux has.
            let mut notes = note(b"Linux\0", 0x101, b"abcd");
            notes.extend(note(b"Xen\0", 18, desc));
            put_phdr(&mut head, 4, body.len(), 0, notes.len(), notes.len() as u64);
            body.extend(notes);
        }
        for (paddr, bytes, memsz) in &self.segments {
            let within = if self.align >= 4096 { *paddr as usize % 4096 } else { 0 };
            body.resize(body.len().next_multiple_of(self.align) + within, 0);
            put_phdr(&mut head, 1, body.len(), *paddr, bytes.len(), *memsz);
            let (at, end) = (body.len() as u64, paddr + bytes.len() as u64);
            let within = |(_, address, _): &(_, u64, _)| (*paddr..end).contains(address);
            section_at = self.section.filter(within).map(|s| at + s.1 - paddr).or(section_at);
            body.extend(bytes);
        }
        if let (Some(at), Some((name, _, len))) = (section_at, self.section) {
            put_sections(&mut head, &mut body, name, at, len);
        }
        body[..head.len()].copy_from_slice(&head);
        body
    }

    /// What guest memory from [`BASE`] on is to hold.
    pub(crate) fn memory(&self) -> Vec<u8> {
        let mut memory = Vec::new();
        for (paddr, bytes, memsz) in &self.segments {
            memory.resize((paddr - BASE) as usize, 0);
            memory.extend(bytes);
            memory.resize((paddr - BASE + memsz) as usize, 0);
        }
        memory
    }
}

fn put_phdr(head: &mut Vec<u8>, kind: u32, offset: usize, paddr: u64, filesz: usize, memsz: u64) {
    head.extend(kind.to_le_bytes());
    head.extend(7u32.to_le_bytes());
    let virt = paddr.wrapping_add(0xffff_ffff_8000_0000);
    let align = if kind == 4 { 4 } else { 0x1000 };
    for field in [offset as u64, virt, paddr, filesz as u64, memsz, align] {
        head.extend(field.to_le_bytes());
    }
}

/// Appends headers of two sections, one called `name` and the names, and tells the file header.
fn put_sections(head: &mut [u8], body: &mut Vec<u8>, name: &str, at: u64, len: u64) {
    let table = body.len() as u64;
    head[40..48].copy_from_slice(&table.to_le_bytes());
    for (offset, value) in [(58, 64u16), (60, 2), (62, 1)] {
        head[offset..offset + 2].copy_from_slice(&value.to_le_bytes());
    }
    for (at, len) in [(at, len), (table + 2 * 64, name.len() as u64 + 1)] {
        let mut header = [0; 64];
        header[24..32].copy_from_slice(&at.to_le_bytes());
        header[32..40].copy_from_slice(&len.to_le_bytes());
        body.extend(header);
    }
    body.extend(name.bytes().chain([0]));
}

fn note(name: &[u8], kind: u32, desc: &[u8]) -> Vec<u8> {
    let mut note = Vec::new();
    for word in [name.len() as u32, desc.len() as u32, kind] {
        note.extend(word.to_le_bytes());
    }
    for part in [name, desc] {
        note.extend(part);
        note.resize(note.len().next_multiple_of(4), 0);
    }
    note
}

/// Bytes that compress a little and repeat for a seed; none of them is zero.
pub(crate) fn noise(len: usize, seed: u32) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9) | 1;
    let mut step = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        (state >> 24) as u8 & 0x3f | 0x40
    };
    (0..len).map(|_| step()).collect()
}

/// `bytes` packed as the kernel's build packs them, with their length behind them.
pub(crate) fn pack(compression: Compression, bytes: &[u8]) -> Vec<u8> {
    let mut packed = Vec::new();
    match compression {
        Compression::Gzip => {
            let mut out =
                flate2::write::GzEncoder::new(&mut packed, flate2::Compression::default());
            out.write_all(bytes).unwrap();
            out.finish().unwrap();
            return packed; // the format ends in the length
        }
        Compression::Xz => {
            let mut options = XzOptions::with_preset(6);
            options.set_check_sum_type(lzma_rust2::CheckType::Crc32);
            options.prepend_pre_filter(lzma_rust2::FilterType::BcjX86, 0);
            let mut out = XzWriter::new(&mut packed, options).unwrap();
            out.write_all(bytes).unwrap();
            out.finish().unwrap();
        }
        Compression::Zstd => {
            let level = ruzstd::encoding::CompressionLevel::Fastest;
            packed = ruzstd::encoding::compress_to_vec(bytes, level);
        }
        Compression::Lz4 => {
            packed.extend([0x02, 0x21, 0x4c, 0x18]);
            for block in bytes.chunks(8 << 20) {
                let block = lz4_flex::block::compress(block);
                packed.extend((block.len() as u32).to_le_bytes());
                packed.extend(block);
            }
        }
        Compression::Lzma => {
            let options = LzmaOptions::with_preset(6);
            let mut out = LzmaWriter::new_use_header(&mut packed, &options, None).unwrap();
            out.write_all(bytes).unwrap();
            out.finish().unwrap();
        }
        Compression::Bzip2 => {
            let mut out = bzip2::write::BzEncoder::new(&mut packed, bzip2::Compression::best());
            out.write_all(bytes).unwrap();
            out.finish().unwrap();
        }
    }
    packed.extend((bytes.len() as u32).to_le_bytes());
    packed
}

const BZIMAGE: BzImage = BzImage {
    setup_sectors: 2,
    payload_at: 0x2cc,
    xloadflags: 0x7f,
    pref_address: BASE,
    init_size: INIT_SIZE,
};
/// The length of the real-mode part of a synthetic bzImage.
pub(crate) const SETUP_LEN: usize = BZIMAGE.code_at();
/// Where its payload begins in the protected-mode code.
pub(crate) const PAYLOAD_AT: usize = BZIMAGE.payload_at as usize;

/// A bzImage of protocol 2.15 around `payload`.
pub(crate) fn bzimage(payload: &[u8]) -> Vec<u8> {
    BZIMAGE.around(payload)
}
