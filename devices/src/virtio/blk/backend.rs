//! A disk's bytes on the host: a raw file or a block device.
//!
//! Knows nothing of virtio. The file is locked for as long as the backend lives: many readers or
//! one writer, whichever process they are in. The size in bytes need not be a multiple of a
//! sector; the capacity is rounded up, the missing bytes of the last sector read as zero, and a
//! write that would reach them fails before it writes anything: husk never makes a file longer.

use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::virtio::queue::{IovecBuffer, Iovecs};

/// Bytes of a sector, whatever the disk's own are (virtio 1.3 §5.2).
pub const SECTOR: u64 = 512;

/// A disk that cannot be opened. Each names the path and the way out.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// It is not there, or not ours to open.
    #[error("cannot open disk {path}: {source}; {remedy}")]
    Open {
        /// What the user gave.
        path: PathBuf,
        /// The host's answer.
        source: io::Error,
        /// What to do about it.
        remedy: &'static str,
    },
    /// It is no regular file and no block device.
    #[error("disk {path} is {kind}; a disk is a raw image file or a block device")]
    Kind {
        /// What the user gave.
        path: PathBuf,
        /// What it is.
        kind: &'static str,
    },
    /// Another disk has it.
    #[error(
        "disk {path} is in use{}; stop the other VM, or make both disks read-only",
        if *.read_only { " by a writer" } else { "" }
    )]
    InUse {
        /// What the user gave.
        path: PathBuf,
        /// This one only wants to read.
        read_only: bool,
    },
    /// The file system cannot lock, or the size cannot be found.
    #[error("cannot {what} disk {path}: {source}; copy it to a local file system")]
    Host {
        /// What the user gave.
        path: PathBuf,
        /// What was tried.
        what: &'static str,
        /// The host's answer.
        source: io::Error,
    },
}

/// An open and locked disk.
#[derive(Debug)]
pub struct DiskBackend {
    file: File,
    read_only: bool,
    size: u64,
    /// The block size that suits the host, in bytes.
    block: u64,
}

impl DiskBackend {
    /// Opens and locks the disk at `path`.
    ///
    /// # Errors
    /// See [`DiskError`].
    pub fn open(path: impl AsRef<Path>, read_only: bool) -> Result<DiskBackend, DiskError> {
        let path = path.as_ref().to_path_buf();
        // A FIFO would block us without O_NONBLOCK; files and block devices ignore it.
        let opened = OpenOptions::new()
            .read(true)
            .write(!read_only)
            .custom_flags(libc::O_CLOEXEC | libc::O_NONBLOCK)
            .open(&path);
        let mut file = match opened {
            Ok(file) => file,
            Err(e) if e.raw_os_error() == Some(libc::EISDIR) => {
                return Err(DiskError::Kind { path, kind: "a directory" });
            }
            Err(source) => {
                let remedy = remedy(&source, read_only);
                return Err(DiskError::Open { path, source, remedy });
            }
        };
        let host = |what, source| DiskError::Host { path: path.clone(), what, source };
        let metadata = file.metadata().map_err(|e| host("examine", e))?;
        let kind = metadata.file_type();
        if !kind.is_file() && !kind.is_block_device() {
            let kind = if kind.is_dir() { "a directory" } else { "a special file" };
            return Err(DiskError::Kind { path, kind });
        }
        match lock(&file, read_only) {
            Ok(()) => {}
            Err(e) if matches!(e.raw_os_error(), Some(libc::EAGAIN | libc::EACCES)) => {
                return Err(DiskError::InUse { path, read_only });
            }
            Err(e) => return Err(host("lock", e)),
        }
        let size = file.seek(SeekFrom::End(0)).map_err(|e| host("measure", e))?;
        Ok(DiskBackend { file, read_only, size, block: metadata.blksize() })
    }

    /// Whether writes are refused.
    pub fn read_only(&self) -> bool {
        self.read_only
    }

    /// Bytes, as they were when the disk was opened.
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

    /// Fills all of `to` from byte `offset` on; past the end of the disk with zeroes.
    ///
    /// # Errors
    /// The host's, once retrying is no use; `UnexpectedEof` when the file has become shorter since
    /// it was opened: what is lost must not look like zeroes.
    pub fn read(&self, mut to: Iovecs<'_>, offset: u64) -> io::Result<()> {
        let mut at = to_i64(offset)?;
        while !to.is_empty() {
            match to.preadv(self.file.as_fd(), at) {
                Ok(0) if at as u64 >= self.size => to.fill_zero(),
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(count) => {
                    to.advance(count);
                    at += count as i64;
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    /// Writes all of `from` at byte `offset`.
    ///
    /// # Errors
    /// The host's; `EROFS` on a read-only disk; `ENOSPC` when the file ends before, and then
    /// nothing has been written.
    pub fn write(&self, mut from: Iovecs<'_>, offset: u64) -> io::Result<()> {
        self.check_writable(offset, from.len() as u64)?;
        let mut at = to_i64(offset)?;
        while !from.is_empty() {
            match from.pwritev(self.file.as_fd(), at) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => {
                    from.advance(count);
                    at += count as i64;
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    /// What was written before is on stable storage after this.
    ///
    /// # Errors
    /// The host's.
    pub fn flush(&self) -> io::Result<()> {
        if self.read_only { Ok(()) } else { self.file.sync_data() }
    }

    /// The bytes' contents do not matter any more: their space is given back where the host can,
    /// and nothing happens where it cannot.
    ///
    /// # Errors
    /// As for [`DiskBackend::write`], but what lacks in the last sector does not matter.
    pub fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        let len = self.present(offset, len)?;
        self.fallocate(libc::FALLOC_FL_PUNCH_HOLE, offset, len).map(drop)
    }

    /// Makes the bytes read as zero; with `unmap` their space may be given back.
    ///
    /// # Errors
    /// As for [`DiskBackend::write`], but what lacks in the last sector does not matter.
    pub fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> io::Result<()> {
        let len = self.present(offset, len)?;
        if unmap && self.fallocate(libc::FALLOC_FL_PUNCH_HOLE, offset, len)?
            || self.fallocate(libc::FALLOC_FL_ZERO_RANGE, offset, len)?
        {
            return Ok(());
        }
        let mut zeroes = [0; 4096];
        let mut list = IovecBuffer::default();
        let mut done = 0;
        while done < len {
            let now = (len - done).min(zeroes.len() as u64);
            let mut piece = [&mut zeroes[..]];
            let mut iovecs = Iovecs::over(&mut piece, &mut list);
            iovecs.truncate(now as usize);
            self.write(iovecs, offset + done)?;
            done += now;
        }
        Ok(())
    }

    /// Whether the host could do it.
    fn fallocate(&self, mode: i32, offset: u64, len: u64) -> io::Result<bool> {
        if len == 0 {
            return Ok(true);
        }
        let (offset, len) = (to_i64(offset)?, to_i64(len)?);
        loop {
            // SAFETY: takes no pointers.
            let done = unsafe {
                let mode = mode | libc::FALLOC_FL_KEEP_SIZE;
                libc::fallocate(self.file.as_raw_fd(), mode, offset, len)
            };
            if done == 0 {
                return Ok(true);
            }
            let e = io::Error::last_os_error();
            match e.raw_os_error() {
                Some(libc::EINTR) => {}
                // EINVAL: a block device wants its own, larger blocks.
                Some(libc::EOPNOTSUPP | libc::ENOSYS | libc::ENODEV | libc::EINVAL) => {
                    return Ok(false);
                }
                _ => return Err(e),
            }
        }
    }

    /// How many of the bytes are there: those that lack in the last sector are zero already.
    fn present(&self, offset: u64, len: u64) -> io::Result<u64> {
        let lacking = self.sectors() * SECTOR - self.size;
        let end = offset.saturating_add(len);
        let len = len.saturating_sub(end.saturating_sub(self.size).min(lacking));
        self.check_writable(offset, len)?;
        Ok(len)
    }

    fn check_writable(&self, offset: u64, len: u64) -> io::Result<()> {
        if self.read_only {
            return Err(io::Error::from_raw_os_error(libc::EROFS));
        }
        match offset.checked_add(len) {
            Some(end) if end <= self.size => Ok(()),
            _ => Err(io::Error::from_raw_os_error(libc::ENOSPC)),
        }
    }
}

fn to_i64(value: u64) -> io::Result<i64> {
    i64::try_from(value).map_err(|_| io::Error::from_raw_os_error(libc::EFBIG))
}

/// An open file description lock over the whole file: it belongs to this opening of the file, not
/// to the process, so that two disks of one process exclude each other too.
pub(crate) fn lock(file: &File, read_only: bool) -> io::Result<()> {
    let kind = if read_only { libc::F_RDLCK } else { libc::F_WRLCK };
    let range = libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    };
    // SAFETY: the third argument of F_OFD_SETLK is a flock, which lives through the call.
    match unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &range) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

pub(crate) fn remedy(error: &io::Error, read_only: bool) -> &'static str {
    match error.kind() {
        io::ErrorKind::NotFound => "check the path, or make it with `truncate -s 1G FILE`",
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem if !read_only => {
            "make it writable for you, or make the disk read-only"
        }
        io::ErrorKind::PermissionDenied => "make it readable for you",
        _ => "check the path",
    }
}
