//! A qcow2 image: clusters of a disk, found through tables. The format is the crate `imago`'s; here
//! stands what husk lets it do.
//!
//! The threads' engine hands its steps to [`Qcow2::make`], always with memory of the host's own: a guest
//! may change its memory at any time, and a slice over it would be a lie. An image is opened only after
//! [`header`] has looked at it, and no file it names unless that is asked for. A panic in the format's
//! code (there should be none) ends the use of that image, not of husk.

mod header;

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use imago::file::File as Storage;
use imago::format::PreallocateMode;
use imago::{FormatAccess, StorageOpenOptions, qcow2, raw};

use super::error::DiskError;
use super::open::open_locked;
use super::types::{Cache, DiskOptions, Step};
use crate::complaints::Complaints;
use crate::panics::caught;
use crate::segment::Segment;

type Image = FormatAccess<Storage>;

/// How many images may stand on each other, the guest's included.
const CHAIN_MAX: usize = 16;

/// An open image.
#[derive(Debug)]
pub(super) struct Qcow2 {
    path: Arc<Path>,
    /// Discards and smaller sizes want it alone. There is one, but while it is being closed.
    image: RwLock<Option<Image>>,
    /// The format's code has panicked: what it has in memory is worth nothing.
    broken: AtomicBool,
    complaints: Complaints,
}

impl Qcow2 {
    /// Opens the image in `file`, which was opened and locked at `path` and has passed [`check`].
    ///
    /// # Errors
    /// When it is damaged, or needs what husk has not, or may not have.
    pub fn open(file: &File, path: &Path, options: DiskOptions) -> Result<Qcow2, DiskError> {
        let writable = !options.read_only;
        // A duplicate shares the lock.
        let file = file.try_clone();
        let file = file.map_err(|e| refused(path, e.to_string()))?;
        let opened = caught("opening a qcow2 image", || layer(file, path, writable, options, 1));
        let image = opened.map_err(|why| refused(path, why))??;
        Ok(Qcow2 {
            path: path.into(),
            image: RwLock::new(Some(image)),
            broken: AtomicBool::new(false),
            complaints: Complaints::default(),
        })
    }

    /// Whether the format's code has panicked.
    #[cfg(test)]
    pub fn has_panicked(&self) -> bool {
        self.broken.load(Ordering::Acquire)
    }

    /// Bytes of the disk in it.
    pub fn size(&self) -> u64 {
        let image = self.image.read().unwrap_or_else(PoisonError::into_inner);
        image.as_ref().map_or(0, Image::size)
    }

    /// Makes the disk in it longer or shorter.
    ///
    /// # Errors
    /// The host's, and the format's.
    pub fn resize(&self, size: u64) -> io::Result<()> {
        self.guarded(|image| {
            let mut image = image.write().unwrap_or_else(PoisonError::into_inner);
            let image = image.as_mut().ok_or(io::ErrorKind::NotConnected)?;
            image.resize(size, PreallocateMode::None)?;
            image.flush()
        })
    }

    /// Does what a system call would do; its value, or minus its `errno`.
    pub fn make(&self, step: Step<'_>) -> i32 {
        match self.guarded(|image| run(image, step)) {
            // At most a bounce buffer, so the cast keeps the number.
            Ok(count) => count as i32,
            Err(e) => -self.errno(&e),
        }
    }

    fn guarded<T>(
        &self,
        work: impl FnOnce(&RwLock<Option<Image>>) -> io::Result<T>,
    ) -> io::Result<T> {
        if self.broken.load(Ordering::Acquire) {
            return Err(io::Error::from_raw_os_error(libc::EIO));
        }
        caught("the qcow2 format", || work(&self.image)).unwrap_or_else(|why| {
            self.broken.store(true, Ordering::Release);
            log::error!("disk {}: {why}; it is not used any more", self.path.display());
            Err(io::Error::from_raw_os_error(libc::EIO))
        })
    }

    fn errno(&self, error: &io::Error) -> i32 {
        if let Some(number) = error.raw_os_error() {
            return number;
        }
        match error.kind() {
            io::ErrorKind::Unsupported => libc::EOPNOTSUPP,
            _ => {
                if let Some(silent) = self.complaints.admit() {
                    let path = self.path.display();
                    log::warn!("disk {path}: {error}{silent}");
                }
                libc::EIO
            }
        }
    }
}

impl Drop for Qcow2 {
    /// Closing it writes what of its tables is in memory only, unless that is worth nothing.
    fn drop(&mut self) {
        let image = self.image.get_mut().unwrap_or_else(PoisonError::into_inner).take();
        let Some(image) = image else { return };
        if *self.broken.get_mut() {
            // Closing would write it. Its lock goes with the process.
            std::mem::forget(image);
            return;
        }
        let closed = caught("closing a qcow2 image", || {
            let flushed = image.flush();
            drop(image);
            flushed
        });
        let why = match closed {
            Ok(Ok(())) => return,
            Ok(Err(e)) => e.to_string(),
            Err(why) => why,
        };
        log::error!("disk {}: it was not closed well: {why}", self.path.display());
    }
}

/// Carries out a step; how many bytes that were.
fn run(image: &RwLock<Option<Image>>, step: Step<'_>) -> io::Result<usize> {
    let gone = || io::Error::from(io::ErrorKind::NotConnected);
    if let Step::Allocate { mode, offset, len, .. } = step
        && mode & libc::FALLOC_FL_PUNCH_HOLE != 0
    {
        let mut image = image.write().unwrap_or_else(PoisonError::into_inner);
        let image = image.as_mut().ok_or_else(gone)?;
        image.discard_to_zero(offset as u64, len as u64)?;
        return Ok(0);
    }
    let image = image.read().unwrap_or_else(PoisonError::into_inner);
    let image = image.as_ref().ok_or_else(gone)?;
    match step {
        Step::Read { to, offset, .. } => pieces(to, |piece, done| {
            let (base, len) = (piece.base().cast_mut(), piece.len());
            // SAFETY: what a formatted image is read to is the bounce buffer of its job (see
            // `Job::step`), which belongs to the job, and the job to the caller until it has an answer.
            let bytes = unsafe { std::slice::from_raw_parts_mut(base, len) };
            image.read(bytes, offset as u64 + done)
        }),
        Step::Write { from, offset, .. } => pieces(from, |piece, done| {
            // SAFETY: what is written to it is that buffer, or zeroes that are there for ever; nobody
            // writes to either meanwhile.
            let bytes = unsafe { std::slice::from_raw_parts(piece.base(), piece.len()) };
            image.write(bytes, offset as u64 + done)
        }),
        Step::Allocate { offset, len, .. } => {
            image.write_zeroes(offset as u64, len as u64).map(|()| 0)
        }
        Step::Sync => image.flush().and_then(|()| image.sync()).map(|()| 0),
    }
}

/// Does `work` with each of the pieces, and how far it is.
fn pieces(
    pieces: &[Segment],
    mut work: impl FnMut(&Segment, u64) -> io::Result<()>,
) -> io::Result<usize> {
    let mut done = 0;
    for piece in pieces {
        work(piece, done as u64)?;
        done += piece.len();
    }
    Ok(done)
}

/// Refuses an image that cannot be used, or not safely, before anything else looks at it.
///
/// # Errors
/// What is wrong with it.
pub(super) fn check(file: &File, path: &Path, writable: bool) -> Result<(), DiskError> {
    header::check(file, writable).map_err(|e| refused(path, e.to_string()))
}

fn refused(path: &Path, why: impl Into<String>) -> DiskError {
    DiskError::Format { path: path.to_path_buf(), why: why.into() }
}

/// The image in `file`, which was checked, with those that it stands on.
fn layer(
    file: File,
    path: &Path,
    writable: bool,
    options: DiskOptions,
    depth: usize,
) -> Result<Image, DiskError> {
    let cannot = |e: io::Error| refused(path, format!("the qcow2 image cannot be used: {e}"));
    let direct = depth == 1 && options.cache == Cache::Direct;
    let how = StorageOpenOptions::new().write(writable).direct(direct);
    let storage = Storage::from_open_file(file, how).map_err(cannot)?;
    let mut image = qcow2::Qcow2::<Storage>::open_image(storage, writable).map_err(cannot)?;
    image.set_data_file(None);
    let below = match image.implicit_backing_file() {
        None => None,
        Some(name) if !options.backing || options.format.is_none() => {
            return Err(refused(
                path,
                format!(
                    "the image is based on {name:?}, and husk opens no file that an image names; say \
                     format=qcow2,backing=on if you trust the image"
                ),
            ));
        }
        Some(name) => {
            let format = image.implicit_backing_format().map(String::as_str);
            Some(below(path, name, format, options, depth)?)
        }
    };
    image.set_backing(below);
    Ok(Image::new(image))
}

/// What the image at `path` is based on: the file called `name` there, only to be read.
fn below(
    path: &Path,
    name: &str,
    format: Option<&str>,
    options: DiskOptions,
    depth: usize,
) -> Result<Image, DiskError> {
    if depth >= CHAIN_MAX {
        return Err(refused(path, format!("more than {CHAIN_MAX} images stand on each other")));
    }
    let name = Path::new(OsStr::from_bytes(name.as_bytes()));
    let below: PathBuf = path.parent().unwrap_or(Path::new("")).join(name);
    let (file, _) = open_locked(&below, true)?;
    match format {
        Some("qcow2") => {
            check(&file, &below, false)?;
            layer(file, &below, false, options, depth + 1)
        }
        Some("raw" | "file") => {
            let raw = Storage::from_open_file(file, StorageOpenOptions::new())
                .and_then(|storage| raw::Raw::open_image(storage, false));
            raw.map(Image::new).map_err(|e| refused(&below, e.to_string()))
        }
        other => {
            let what = other.map_or("does not say what that is".to_owned(), |other| {
                format!("says that it is {other}, which husk does not read")
            });
            let below = below.display();
            let why = format!(
                "the image is based on {below} and {what}; `qemu-img rebase -u -b {below} -F raw|qcow2` \
                 tells it"
            );
            Err(refused(path, why))
        }
    }
}
