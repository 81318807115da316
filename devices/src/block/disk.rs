//! A disk's bytes on the host: a raw file, a block device, or an image with a format of its own.
//!
//! Knows nothing of virtio. The file is locked for as long as a clone of it lives: many readers or
//! one writer, whichever process they are in. The size in bytes need not be a multiple of a
//! sector; the capacity is rounded up, the missing bytes of the last sector read as zero, and a
//! write that would reach them fails before it writes anything: only [`Disk::resize`] makes a file
//! longer, and nothing one that somebody has cut short meanwhile ([`Disk::measure`]).

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::sync::Arc;

use super::error::DiskError;
use super::format;
use super::open::open_locked;
use super::overlay::Overlay;
use super::qcow2::{self, Qcow2};
use super::temporary::Scratch;
use super::types::{Cache, DiskFormat, DiskOptions, Part, SECTOR};

/// An open and locked disk.
#[derive(Debug, Clone)]
pub struct Disk {
    pub(super) path: Arc<Path>,
    file: Arc<File>,
    options: DiskOptions,
    /// Bytes the guest sees.
    size: u64,
    /// Bytes of the image that it may see: other than `size` where there is an overlay.
    image: u64,
    /// As much of `size` as was there when it was last measured.
    present: u64,
    /// A regular file that is what the guest sees, which can be cut short.
    is_file: bool,
    /// The block size that suits the host, in bytes.
    block: u64,
    /// Memory, offsets and lengths must be multiples of this: 1, or what `O_DIRECT` wants.
    align: usize,
    pub(super) overlay: Option<Arc<Overlay>>,
    formatted: Option<Arc<Qcow2>>,
}

impl Disk {
    /// Opens and locks the disk at `path`.
    ///
    /// # Errors
    /// See [`DiskError`].
    pub fn open(path: impl AsRef<Path>, options: DiskOptions) -> Result<Disk, DiskError> {
        let path = path.as_ref().to_path_buf();
        let (file, size) = open_locked(&path, options.read_only)?;
        let host = |what, source| DiskError::Host { path: path.clone(), what, source };
        let metadata = file.metadata().map_err(|e| host("examine", e))?;
        let found = format::of(&file, &path, options)?;
        if found == DiskFormat::Qcow2 {
            qcow2::check(&file, &path, !options.read_only)?;
        }
        // Without O_NONBLOCK: io_uring would answer EAGAIN for what is not in the page cache.
        let direct = options.cache == Cache::Direct;
        let align = set_flags(&file, if direct { libc::O_DIRECT } else { 0 })
            .and_then(|()| if direct { direct_align(&file) } else { Ok(1) })
            .map_err(|source| DiskError::Direct { path: path.clone(), source })?;
        let formatted = match found {
            DiskFormat::Raw => None,
            DiskFormat::Qcow2 => Some(Arc::new(Qcow2::open(&file, &path, options)?)),
        };
        let size = formatted.as_ref().map_or(size, |image| image.size());
        let (path, file) = (Arc::from(path), Arc::new(file));
        Ok(Disk {
            path,
            file,
            options,
            size,
            image: size,
            present: size,
            is_file: metadata.is_file() && found == DiskFormat::Raw,
            block: metadata.blksize(),
            align,
            overlay: None,
            formatted,
        })
    }

    /// The disk that `scratch` is, as long as its file is now. Nothing of it outlives it, so that a flush does
    /// nothing.
    ///
    /// # Errors
    /// When the host does not tell of the file.
    pub fn scratch(scratch: Scratch) -> Result<Disk, DiskError> {
        let Scratch { file, directory: path } = scratch;
        let metadata = file.metadata().map_err(|source| {
            let path = path.clone();
            DiskError::Host { path, what: "examine", source }
        })?;
        let size = metadata.len();
        Ok(Disk {
            path: Arc::from(path),
            file: Arc::new(file),
            options: DiskOptions { cache: Cache::Unsafe, ..DiskOptions::default() },
            size,
            image: size,
            present: size,
            is_file: true,
            block: metadata.blksize(),
            align: 1,
            overlay: None,
            formatted: None,
        })
    }

    /// The same disk with a layer above it that takes what is written, and is thrown away with the
    /// disk. The layer's file has no name and lies in `dir`, or in a directory for what is large and
    /// temporary. Nothing is written to the disk itself from now on; who opens it to be read only has
    /// the lock of a reader, too.
    ///
    /// # Errors
    /// When the disk is too large for it, or there can be no such file.
    pub fn with_overlay(mut self, dir: Option<&Path>) -> Result<Disk, DiskError> {
        self.options.read_only = true;
        self.overlay = Some(Arc::new(Overlay::create(&self.path, self.size, dir)?));
        Ok(self)
    }

    /// From now on the guest sees `size` bytes, of which `image` are the image's.
    pub(super) fn set_size(&mut self, size: u64, image: u64) {
        (self.size, self.image, self.present) = (size, image, size);
    }

    /// One of the open files.
    pub(super) fn part(&self, part: Part) -> &File {
        match (part, &self.overlay) {
            (Part::Layer, Some(overlay)) => overlay.layer(),
            _ => &self.file,
        }
    }

    /// All of them: the image, and the overlay's.
    pub(super) fn files(&self) -> impl Iterator<Item = &File> {
        let layer = self.overlay.as_ref().map(|overlay| &**overlay.layer());
        std::iter::once(&*self.file).chain(layer)
    }

    /// What takes the writes instead of the image.
    pub(super) fn overlay(&self) -> Option<&Arc<Overlay>> {
        self.overlay.as_ref()
    }

    /// The image, if it is more than its bytes.
    pub(super) fn formatted(&self) -> Option<&Arc<Qcow2>> {
        self.formatted.as_ref()
    }

    /// Whether the image is more than its bytes, and no system call reads it.
    pub fn is_formatted(&self) -> bool {
        self.formatted.is_some()
    }

    /// Whether the code of the image's format has panicked.
    #[cfg(all(test, feature = "qcow2"))]
    pub fn has_panicked(&self) -> bool {
        self.formatted.as_ref().is_some_and(|image| image.has_panicked())
    }

    /// See [`Cache`].
    pub fn cache(&self) -> Cache {
        self.options.cache
    }

    /// Whether a flush does anything: what is thrown away, or never written, needs none.
    pub(super) fn flushes(&self) -> bool {
        !self.options.read_only && self.options.cache != Cache::Unsafe
    }

    /// Whether the image itself is never written.
    pub(super) fn image_read_only(&self) -> bool {
        self.options.read_only
    }

    /// Bytes of the image that the guest may see.
    pub(super) fn image_size(&self) -> u64 {
        self.image
    }

    /// What memory must be aligned to, in bytes, so that it is read to and written from directly;
    /// offsets and lengths must be multiples of it in any case.
    pub fn align(&self) -> usize {
        self.align
    }

    /// Whether writes are refused.
    pub fn read_only(&self) -> bool {
        self.options.read_only && self.overlay.is_none()
    }

    /// Bytes, as they were when the disk was opened or last resized.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Sectors of 512 bytes; a part of one counts as one.
    pub fn sectors(&self) -> u64 {
        self.size.div_ceil(SECTOR)
    }

    /// The host's preferred block, in bytes.
    pub fn block_size(&self) -> u64 {
        self.block
    }

    /// Looks how long the file is now, for the writes to come: `pwrite` would make a file that was cut
    /// short as long again as it was, and nobody could tell its zeroes from what is lost. Linux has no
    /// write that does not (`RWF_NOAPPEND` is about `O_APPEND`), so its length is asked for before. That
    /// is a system call, but a cheap one: it asks for what the host's kernel knows anyway, waits for no
    /// server, and is done once for all the writes of a round of a queue. Who cuts the file within that
    /// round, or on another machine, is noticed late.
    pub fn measure(&mut self) {
        if !self.is_file || self.options.read_only {
            return;
        }
        // SAFETY: all zeroes is a statx.
        let mut found: libc::statx = unsafe { std::mem::zeroed() };
        let flags = libc::AT_EMPTY_PATH | libc::AT_STATX_DONT_SYNC;
        let (fd, path) = (self.file.as_raw_fd(), c"".as_ptr());
        // SAFETY: path and statx live through the call.
        let done = unsafe { libc::statx(fd, path, flags, libc::STATX_SIZE, &mut found) };
        // A file whose length cannot be had is not written to at all.
        self.present = if done == 0 { self.size.min(found.stx_size) } else { 0 };
    }

    /// How many of the bytes are there: those that lack in the last sector are zero already.
    pub(super) fn present(&self, offset: u64, len: u64) -> io::Result<u64> {
        let lacking = self.sectors() * SECTOR - self.size;
        let end = offset.saturating_add(len);
        let len = len.saturating_sub(end.saturating_sub(self.size).min(lacking));
        self.check_writable(offset, len)?;
        Ok(len)
    }

    pub(super) fn check_writable(&self, offset: u64, len: u64) -> io::Result<()> {
        if self.read_only() {
            return Err(io::Error::from_raw_os_error(libc::EROFS));
        }
        match offset.checked_add(len) {
            Some(end) if end <= self.present => Ok(()),
            Some(end) if end <= self.size => {
                let why = "the file is shorter than it was when it was opened";
                Err(io::Error::new(io::ErrorKind::UnexpectedEof, why))
            }
            _ => Err(io::Error::from_raw_os_error(libc::ENOSPC)),
        }
    }
}

/// Sets the status flags that can be set on an open file, and no others.
fn set_flags(file: &File, flags: libc::c_int) -> io::Result<()> {
    // SAFETY: F_SETFL takes no pointer.
    match unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETFL, flags) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// What `O_DIRECT` wants memory, offsets and lengths to be multiples of: found by trying, because
/// not every file system and kernel tells.
fn direct_align(file: &File) -> io::Result<usize> {
    #[repr(align(8192))]
    struct Buffer([u8; 8192]);
    let mut buffer = Buffer([0; 8192]);
    let mut refused = None;
    for align in [512, 4096] {
        // No more aligned than that.
        let Some(part) = buffer.0.get_mut(align..2 * align) else { continue };
        match file.read_at(part, 0) {
            Ok(_) => return Ok(align),
            Err(e) => refused = Some(e),
        }
    }
    Err(refused.unwrap_or_else(|| io::ErrorKind::Unsupported.into()))
}
