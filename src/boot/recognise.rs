//! What the file is that somebody gave for a kernel.
//!
//! An ELF `vmlinux` or a `bzImage`, or something that is told by its first bytes. The first is read
//! as it is, the second unpacked; what that takes time to make is kept in the [`Cache`] and found
//! there next time. Called by [`Kernel::open`](super::Kernel::open), once for each machine.

use std::fs::File;
use std::io;
use std::path::Path;

use super::builtin::Absent;
use super::bzimage::{self, SetupHeader};
use super::cache::{Cache, Key, Stamp};
use super::elf::{Elf, Segment};
use super::error::KernelError;
use super::image::Image;
use super::unpack::Compression;
use super::{carried, relayout};
use crate::files;

/// A longer `vmlinux` is read as it is each time, in bytes: hashing and copying what is mostly
/// debugging information would cost more than it saves.
const MAX_CACHED_ELF: u64 = 128 << 20;

/// A kernel file, checked.
pub(super) struct Recognised {
    pub image: Image,
    pub body: Body,
    /// Of the `bzImage` it came in.
    pub header: Option<SetupHeader>,
}

/// What is loaded.
#[derive(Debug)]
pub(super) enum Body {
    Elf(Elf),
    /// The protected-mode code of a `bzImage`, as it is.
    Code(Segment),
}

/// Opens the kernel at `path` and finds out what it is.
///
/// # Errors
/// When there is no such file, or it is no kernel husk can boot.
pub(super) fn recognise(path: &Path, cache: &Cache) -> Result<Recognised, KernelError> {
    let (file, stamp, len) = open_file(path)?;
    let image = Image::File { file, len, immutable: false };
    let mut head = vec![0; bzimage::HEAD_SIZE.min(usize::try_from(len).unwrap_or(usize::MAX))];
    image.read_exact_at(&mut head, 0).map_err(read_error(path))?;

    if Elf::is_elf(&head) {
        let (image, elf) = bare(path, image, stamp, cache)?;
        return Ok(Recognised { image, body: Body::Elf(elf), header: None });
    }
    if !SetupHeader::is_present(&head) {
        return Err(KernelError::NotAKernel { path: path.to_owned(), what: describe(&head) });
    }
    let header = SetupHeader::parse(&head, len)
        .map_err(|source| KernelError::Header { path: path.to_owned(), source })?;
    let (image, body) = match packed(path, &image, &header, stamp, cache)? {
        Some((image, elf)) => (image, Body::Elf(elf)),
        None => (image, Body::Code(code_segment(path, &header)?)),
    };
    Ok(Recognised { image, body, header: Some(header) })
}

fn read_error(path: &Path) -> impl Fn(io::Error) -> KernelError {
    |source| KernelError::Read { path: path.to_owned(), source }
}

/// Opens a file of at least one byte.
fn open_file(path: &Path) -> Result<(File, Stamp, u64), KernelError> {
    let failed = |source| KernelError::Open { path: path.to_owned(), source };
    let file = files::open(path).map_err(failed)?;
    let metadata = file.metadata().map_err(failed)?;
    if let Some(what) = files::not_a_file(&metadata) {
        return Err(KernelError::NotAFile { path: path.to_owned(), what });
    }
    if metadata.len() == 0 {
        return Err(KernelError::NotAKernel { path: path.to_owned(), what: "an empty file" });
    }
    Ok((file, Stamp::of(&metadata), metadata.len()))
}

/// What a file that begins like this might be.
fn describe(head: &[u8]) -> &'static str {
    let zboot = head.get(4..8) == Some(b"zimg");
    match head {
        _ if head.get(56..60) == Some(b"ARM\x64") => "an arm64 kernel",
        [b'M', b'Z', ..] if zboot => "a kernel packed for EFI only",
        [b'M', b'Z', ..] => "an EFI or Windows program",
        [0x1f, 0x8b, ..] => "a gzip file (unpack it first: gunzip)",
        [0xfd, b'7', b'z', b'X', b'Z', ..] => "an xz file (unpack it first: unxz)",
        [0x28, 0xb5, 0x2f, 0xfd, ..] => "a zstd file (unpack it first: unzstd)",
        [b'Q', b'F', b'I', 0xfb, ..] => "a qcow2 disk image",
        _ if head.starts_with(b"!<arch>") => "an archive or Debian package",
        _ if head.starts_with(b"070701") => "a cpio archive (an initrd?)",
        _ if head.iter().all(|b| matches!(b, b'\t' | b'\n' | b'\r' | 0x20..=0x7e | 0x80..)) => {
            "a text file"
        }
        _ => "a file of a kind husk does not know",
    }
}

/// The ELF at `path`, as `cache` has it, or as it is when it is too large to be worth keeping.
fn bare(
    path: &Path,
    image: Image,
    stamp: Stamp,
    cache: &Cache,
) -> Result<(Image, Elf), KernelError> {
    let parse = |image: &Image| {
        Elf::parse(image).map_err(|source| KernelError::Elf { path: path.to_owned(), source })
    };
    if image.len() <= MAX_CACHED_ELF && !cache.is_off() {
        let found = cached(path, &image, stamp, cache, |bytes| {
            let image = Image::Bytes(bytes);
            Ok(Some((parse(&image)?, image)))
        })?;
        if let Some(found) = found {
            return Ok(found);
        }
    }
    let elf = parse(&image)?;
    Ok((image, elf))
}

/// The Linux ELF a `bzImage` carries: from the cache, or unpacked now. `None` if it carries none, or
/// none that husk can unpack.
fn packed(
    path: &Path,
    image: &Image,
    header: &SetupHeader,
    stamp: Stamp,
    cache: &Cache,
) -> Result<Option<(Image, Elf)>, KernelError> {
    let Some(payload) = header.payload else { return Ok(None) };
    let mut magic = [0; 6];
    let magic_len = magic.len().min(usize::try_from(payload.len).unwrap_or(usize::MAX));
    let magic = magic.get_mut(..magic_len).unwrap_or_default();
    image.read_exact_at(magic, payload.offset).map_err(read_error(path))?;
    if Compression::detect(magic).is_none() {
        log::info!(
            "{}: its payload is packed in an unknown way: it unpacks itself",
            path.display()
        );
        return Ok(None);
    }
    cached(path, image, stamp, cache, |whole| {
        let unpacked = carried::vmlinux(&whole, header)
            .map_err(|source| KernelError::Unpack { path: path.to_owned(), source })?;
        let Some(unpacked) = unpacked.map(Image::Bytes) else { return Ok(None) };
        let elf = Elf::parse(&unpacked)
            .map_err(|source| KernelError::Carried { path: path.to_owned(), source })?;
        Ok(Some((elf, unpacked)))
    })
}

/// What `cache` has of the file `image` with this `stamp`; or what `make` makes of all its bytes, kept
/// for the next time, without its zeros. `None` when `make` says so.
fn cached(
    path: &Path,
    image: &Image,
    stamp: Stamp,
    cache: &Cache,
    make: impl FnOnce(Vec<u8>) -> Result<Option<(Elf, Image)>, KernelError>,
) -> Result<Option<(Image, Elf)>, KernelError> {
    if let Some(found) = cache.find_unread(&stamp) {
        return Ok(Some(found));
    }
    let (whole, stamp) = read_settled(path, image, stamp)?;
    let key = Key::of(&whole);
    if let Some(found) = cache.find(&key, &stamp) {
        return Ok(Some(found));
    }
    let Some((mut elf, image)) = make(whole)? else { return Ok(None) };
    let parts = elf.segments.iter();
    let parts: Vec<_> =
        parts.filter_map(|part| image.slice(part.offset, part.filesz).ok()).collect();
    elf.absent = Absent::of(&parts);
    let elf = relayout::in_pieces(&elf, &image);
    Ok(Some(cache.store(&key, &stamp, &elf, &image).unwrap_or((image, elf))))
}

/// All of `image`, and its stamp: one that will not be remembered when it changed meanwhile.
fn read_settled(
    path: &Path,
    image: &Image,
    mut stamp: Stamp,
) -> Result<(Vec<u8>, Stamp), KernelError> {
    let bytes = read_whole(image).map_err(read_error(path))?;
    if let Image::File { file, .. } = image {
        let after = file.metadata().map_err(read_error(path))?;
        if !Stamp::of(&after).is_same(&stamp) {
            stamp.unsettle(); // it is being written to
        }
    }
    Ok((bytes, stamp))
}

fn read_whole(image: &Image) -> io::Result<Vec<u8>> {
    if image.len() > bzimage::MAX_LEN {
        let limit = bzimage::MAX_LEN >> 20;
        return Err(io::Error::other(format!("the file is longer than {limit} MiB")));
    }
    let len = usize::try_from(image.len()).map_err(io::Error::other)?;
    let mut bytes = Vec::new();
    bytes.try_reserve_exact(len).map_err(|_| io::ErrorKind::OutOfMemory)?;
    bytes.resize(len, 0);
    image.read_exact_at(&mut bytes, 0)?;
    Ok(bytes)
}

/// A `bzImage` entered by its own 64-bit entry point.
fn code_segment(path: &Path, header: &SetupHeader) -> Result<Segment, KernelError> {
    if !header.has_entry64() {
        return Err(KernelError::No64Bit { path: path.to_owned() });
    }
    Ok(Segment {
        offset: header.code.offset,
        paddr: header.load_address,
        filesz: header.code.len,
        memsz: header.code.len.max(u64::from(header.init_size)),
        rare: false,
    })
}
