//! A kernel, from a path to an entry point.
//!
//! [`Kernel::open`] recognises what the user gave, an ELF `vmlinux` or a `bzImage`, and unpacks the
//! latter (or finds it unpacked in the [`Cache`]); [`Kernel::load`] puts it into guest memory and
//! says how to enter it. Which vCPU registers that means is for the caller to know.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use vm_memory::GuestMemoryMmap;

use super::bzimage::{self, HeaderError, SetupHeader};
use super::cache::{Cache, Key, Stamp};
use super::elf::{Elf, ElfError, Segment};
use super::image::Image;
use super::load::{self, LoadError, LoadMethod};
use super::relayout;
use super::unpack::{self, Compression, UnpackError};

/// The longest command line of an x86 Linux, in bytes without the NUL (`COMMAND_LINE_SIZE` 2048).
pub const LINUX_CMDLINE_MAX: usize = 2047;
/// The highest address of an initrd's last byte that every x86-64 Linux takes
/// (`initrd_addr_max` in `arch/x86/boot/header.S`).
pub const LINUX_INITRD_MAX: u64 = 0x7fff_ffff;
/// No `bzImage` is longer, in bytes (the largest carry their initramfs).
const MAX_BZIMAGE: u64 = 1 << 30;
/// A longer `vmlinux` is read as it is each time, in bytes: hashing and copying what is mostly
/// debugging information would cost more than it saves.
const MAX_CACHED_ELF: u64 = 128 << 20;
/// No command line may be longer than this whatever the header says.
const CMDLINE_CEILING: u32 = 64 << 10;

/// How a kernel is entered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// Xen's PVH: 32-bit protected mode without paging, `hvm_start_info` in EBX
    /// (`xen/include/public/arch-x86/hvm/start_info.h`).
    Pvh,
    /// Linux's 64-bit boot protocol: long mode, identity-mapped, `boot_params` in RSI
    /// (`Documentation/arch/x86/boot.rst`, "64-bit Boot Protocol").
    Linux64,
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Protocol::Pvh => "PVH",
            Protocol::Linux64 => "the 64-bit Linux boot protocol",
        })
    }
}

/// Why a kernel cannot be booted. All name the path the user gave.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the fields are the path and the cause in each")]
pub enum KernelError {
    /// It cannot be opened.
    #[error("kernel {}: {source}{}", .path.display(), hint(.source))]
    Open { path: PathBuf, source: io::Error },
    /// It cannot be read.
    #[error("kernel {}: {source}", .path.display())]
    Read { path: PathBuf, source: io::Error },
    /// It is a directory, a pipe or a device.
    #[error("kernel {}: it is {what}, not a file", .path.display())]
    NotAFile { path: PathBuf, what: &'static str },
    /// It is a file of another kind.
    #[error(
        "kernel {}: it is {what}; a kernel is an ELF file (vmlinux) or a bzImage (vmlinuz)",
        .path.display()
    )]
    NotAKernel { path: PathBuf, what: &'static str },
    /// Its ELF headers will not do.
    #[error("kernel {}: {source}", .path.display())]
    Elf { path: PathBuf, source: ElfError },
    /// Its setup header will not do.
    #[error("kernel {}: {source}", .path.display())]
    Header { path: PathBuf, source: HeaderError },
    /// The compressed kernel in it is damaged.
    #[error("kernel {}: {source}", .path.display())]
    Unpack { path: PathBuf, source: UnpackError },
    /// What was unpacked from it will not do.
    #[error("kernel {}: of what is packed in it: {source}", .path.display())]
    Carried { path: PathBuf, source: ElfError },
    /// It cannot be entered as wanted.
    #[error("kernel {}: it cannot be entered by {protocol}", .path.display())]
    NoSuchEntry { path: PathBuf, protocol: Protocol },
    /// There is no 64-bit entry point.
    #[error(
        "kernel {}: it has neither a Linux ELF in it nor a 64-bit entry point (a 32-bit kernel?)",
        .path.display()
    )]
    No64Bit { path: PathBuf },
    /// It cannot be loaded.
    #[error("kernel {}: {source}", .path.display())]
    Load { path: PathBuf, source: LoadError },
}

/// What may be done about it.
fn hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::PermissionDenied => {
            " (some distributions keep /boot/vmlinuz-* readable by root only: copy it and make the \
             copy readable)"
        }
        _ => "",
    }
}

/// What a caller may want otherwise than by default.
#[derive(Debug, Clone, Copy)]
pub struct LoadOptions {
    /// How the bytes get there.
    pub method: LoadMethod,
    /// The only protocol to enter by, or `None`: PVH if the kernel can, else `Linux64`.
    pub protocol: Option<Protocol>,
    /// Nobody has written to guest memory since it was mapped, so what must be zero is. False when
    /// a machine that ran is loaded again.
    pub memory_is_zero: bool,
}

impl Default for LoadOptions {
    fn default() -> Self {
        LoadOptions { method: LoadMethod::Read, protocol: None, memory_is_zero: true }
    }
}

/// A kernel in guest memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Loaded {
    /// The guest-physical address to begin at.
    pub entry: u64,
    /// In which state and with which parameters.
    pub protocol: Protocol,
    /// The first address free to use above it, its zeroed data and early heap included.
    pub end: u64,
    /// The highest address the last byte of an initrd may have.
    pub initrd_max: u64,
    /// The longest command line it takes, in bytes without the NUL.
    pub cmdline_max: usize,
    /// The header of the `bzImage` it came in, for `boot_params`.
    pub setup_header: Option<SetupHeader>,
    /// How it was loaded: `Map` if any of it was mapped.
    pub method: LoadMethod,
}

/// A kernel file, recognised and checked, open until dropped.
#[derive(Debug)]
pub struct Kernel {
    path: PathBuf,
    image: Image,
    body: Body,
    header: Option<SetupHeader>,
}

/// What is loaded.
#[derive(Debug)]
enum Body {
    Elf(Elf),
    /// The protected-mode code of a `bzImage`, as it is.
    Code(Segment),
}

impl Kernel {
    /// Opens the kernel at `path`. It is looked up in `cache`, or made ready to load and kept there:
    /// a `bzImage` unpacked, a `vmlinux` without its zeros and its debugging information.
    ///
    /// # Errors
    /// When there is no such file, or it is no kernel husk can boot.
    pub fn open(path: &Path, cache: &Cache) -> Result<Kernel, KernelError> {
        let (file, stamp, len) = open_file(path)?;
        let read_error = |source| KernelError::Read { path: path.to_owned(), source };
        let image = Image::File { file, len, immutable: false };
        let mut head = vec![0; bzimage::HEAD_SIZE.min(usize::try_from(len).unwrap_or(usize::MAX))];
        image.read_exact_at(&mut head, 0).map_err(read_error)?;

        if Elf::is_elf(&head) {
            let (image, elf) = bare(path, image, stamp, cache)?;
            return Ok(Kernel { path: path.to_owned(), image, body: Body::Elf(elf), header: None });
        }
        if !SetupHeader::is_present(&head) {
            return Err(KernelError::NotAKernel { path: path.to_owned(), what: describe(&head) });
        }
        let header = SetupHeader::parse(&head, len)
            .map_err(|source| KernelError::Header { path: path.to_owned(), source })?;
        let (image, body) = match carried(path, &image, &header, stamp, cache)? {
            Some((image, elf)) => (image, Body::Elf(elf)),
            None => (image, Body::Code(code_segment(path, &header)?)),
        };
        Ok(Kernel { path: path.to_owned(), image, body, header: Some(header) })
    }

    /// The path it was opened by.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether it is a `bzImage` that carries no Linux husk could see: memtest86+, say.
    pub fn is_opaque(&self) -> bool {
        matches!(self.body, Body::Code(_))
    }

    /// The guest addresses it is put at: where its file may be mapped over the guest's memory.
    pub fn extent(&self) -> Vec<Range<u64>> {
        self.segments().iter().map(|segment| segment.paddr..segment.end()).collect()
    }

    fn segments(&self) -> &[Segment] {
        match &self.body {
            Body::Elf(elf) => elf.segments.as_slice(),
            Body::Code(segment) => std::slice::from_ref(segment),
        }
    }

    /// Puts it into `memory`.
    ///
    /// # Errors
    /// When it cannot be entered by the protocol wanted, the guest has no memory where it goes, or
    /// it cannot be read.
    pub fn load(
        &self,
        memory: &GuestMemoryMmap,
        options: LoadOptions,
    ) -> Result<Loaded, KernelError> {
        let (entry, protocol) = self.choose_entry(options.protocol)?;
        let segments = self.segments();
        let method = load::load_segments(
            memory,
            &self.image,
            segments,
            options.method,
            options.memory_is_zero,
        )
        .map_err(|source| KernelError::Load { path: self.path.clone(), source })?;

        let start = segments.first().map_or(0, |segment| segment.paddr);
        // boot.rst, "init_size": counted from where the kernel runs, which for one that cannot be
        // relocated is its preferred address, wherever it was loaded.
        let needs = self.header.as_ref().map_or(0, |header| {
            header.pref_address.max(start).saturating_add(u64::from(header.init_size))
        });
        let end = segments.last().map_or(0, Segment::end).max(needs);
        Ok(Loaded {
            entry,
            protocol,
            end,
            initrd_max: self.initrd_max(protocol),
            cmdline_max: self.cmdline_max(),
            setup_header: self.header.clone(),
            method,
        })
    }

    fn choose_entry(&self, wanted: Option<Protocol>) -> Result<(u64, Protocol), KernelError> {
        let (pvh, linux64) = match &self.body {
            Body::Elf(elf) => (elf.pvh_entry, elf.entry),
            Body::Code(segment) => (None, Some(segment.paddr + bzimage::ENTRY64)),
        };
        let pvh = pvh.map(|entry| (entry, Protocol::Pvh));
        let linux64 = linux64.map(|entry| (entry, Protocol::Linux64));
        let chosen = match wanted {
            Some(Protocol::Pvh) => pvh,
            Some(Protocol::Linux64) => linux64,
            None => pvh.or(linux64),
        };
        chosen.ok_or_else(|| KernelError::NoSuchEntry {
            path: self.path.clone(),
            protocol: wanted.unwrap_or(Protocol::Linux64),
        })
    }

    fn initrd_max(&self, protocol: Protocol) -> u64 {
        match &self.header {
            Some(header) if protocol == Protocol::Linux64 && header.can_be_above_4g() => u64::MAX,
            Some(header) => u64::from(header.initrd_addr_max),
            None => LINUX_INITRD_MAX,
        }
    }

    fn cmdline_max(&self) -> usize {
        match &self.header {
            Some(header) => header.cmdline_size.min(CMDLINE_CEILING) as usize,
            None => LINUX_CMDLINE_MAX,
        }
    }
}

/// Opens a file of at least one byte. Non-blocking, or a FIFO would hang here.
fn open_file(path: &Path) -> Result<(File, Stamp, u64), KernelError> {
    let failed = |source| KernelError::Open { path: path.to_owned(), source };
    let file =
        OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path).map_err(failed)?;
    let metadata = file.metadata().map_err(failed)?;
    if let Some(what) = not_a_file(&metadata) {
        return Err(KernelError::NotAFile { path: path.to_owned(), what });
    }
    if metadata.len() == 0 {
        return Err(KernelError::NotAKernel { path: path.to_owned(), what: "an empty file" });
    }
    Ok((file, Stamp::of(&metadata), metadata.len()))
}

/// What it is, if it is no regular file.
pub(super) fn not_a_file(metadata: &std::fs::Metadata) -> Option<&'static str> {
    let kind = metadata.file_type();
    match () {
        () if kind.is_file() => None,
        () if kind.is_dir() => Some("a directory"),
        () if kind.is_fifo() => Some("a pipe"),
        () => Some("a device or socket"),
    }
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
    let small = image.len() <= MAX_CACHED_ELF;
    if let Some(found) = cache.find_unread(&stamp).filter(|_| small) {
        return Ok(found);
    }
    let elf =
        Elf::parse(&image).map_err(|source| KernelError::Elf { path: path.to_owned(), source })?;
    if !small || cache.is_off() {
        return Ok((image, elf));
    }
    let (bytes, stamp) = read_settled(path, &image, stamp)?;
    let key = Key::of(&bytes);
    if let Some(found) = cache.find(&key, &stamp) {
        return Ok(found);
    }
    // What was read once more is what is kept: the file may have changed since it was parsed.
    let image = Image::Bytes(bytes);
    let elf =
        Elf::parse(&image).map_err(|source| KernelError::Elf { path: path.to_owned(), source })?;
    let elf = relayout::without_zeros(&elf, &image);
    Ok(cache.store(&key, &stamp, &elf, &image).unwrap_or((image, elf)))
}

/// All of `image`, and its stamp: one that will not be remembered when it changed meanwhile.
fn read_settled(
    path: &Path,
    image: &Image,
    mut stamp: Stamp,
) -> Result<(Vec<u8>, Stamp), KernelError> {
    let read_error = |source| KernelError::Read { path: path.to_owned(), source };
    let bytes = read_whole(image).map_err(read_error)?;
    if let Image::File { file, .. } = image {
        let after = file.metadata().map_err(read_error)?;
        if !Stamp::of(&after).is_same(&stamp) {
            stamp.unsettle(); // it is being written to
        }
    }
    Ok((bytes, stamp))
}

/// The Linux ELF a `bzImage` carries: from the cache, or unpacked now. `None` if it carries none, or
/// none that husk can unpack.
fn carried(
    path: &Path,
    image: &Image,
    header: &SetupHeader,
    stamp: Stamp,
    cache: &Cache,
) -> Result<Option<(Image, Elf)>, KernelError> {
    let read_error = |source| KernelError::Read { path: path.to_owned(), source };
    let Some(payload) = header.payload else { return Ok(None) };
    let mut magic = [0; 6];
    let magic_len = magic.len().min(usize::try_from(payload.len).unwrap_or(usize::MAX));
    let magic = magic.get_mut(..magic_len).unwrap_or_default();
    image.read_exact_at(magic, payload.offset).map_err(read_error)?;
    let Some(compression) = Compression::detect(magic) else {
        log::info!(
            "{}: its payload is packed in an unknown way: it unpacks itself",
            path.display()
        );
        return Ok(None);
    };
    if let Some(found) = cache.find_unread(&stamp) {
        return Ok(Some(found));
    }

    let (packed, stamp) = read_settled(path, image, stamp)?;
    let key = Key::of(&packed);
    if let Some(found) = cache.find(&key, &stamp) {
        return Ok(Some(found));
    }

    let start = usize::try_from(payload.offset).unwrap_or(usize::MAX);
    let bytes = packed.get(start..).unwrap_or_default();
    let bytes = bytes.get(..usize::try_from(payload.len).unwrap_or(usize::MAX));
    let limit = match header.init_size {
        0 => unpack::MAX_UNPACKED,
        init_size => u64::from(init_size),
    };
    let unpacked = unpack::unpack(bytes.unwrap_or_default(), compression, limit)
        .map_err(|source| KernelError::Unpack { path: path.to_owned(), source })?;
    drop(packed);
    if !Elf::is_elf(&unpacked) {
        return Ok(None);
    }
    let unpacked = Image::Bytes(unpacked);
    let elf = Elf::parse(&unpacked)
        .map_err(|source| KernelError::Carried { path: path.to_owned(), source })?;
    let elf = relayout::without_zeros(&elf, &unpacked);
    Ok(Some(cache.store(&key, &stamp, &elf, &unpacked).unwrap_or((unpacked, elf))))
}

fn read_whole(image: &Image) -> io::Result<Vec<u8>> {
    if image.len() > MAX_BZIMAGE {
        return Err(io::Error::other("the file is longer than 1 GiB"));
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
    })
}

#[cfg(test)]
mod tests;
