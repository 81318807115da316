//! A disk's size, changed while a VM has the disk, between two requests.

use std::io;
use std::os::unix::fs::FileTypeExt;
use std::sync::Arc;

use super::disk::Disk;
use super::overlay::SIZE_MAX;
use super::types::{Part, SECTOR};

/// A disk that keeps its size.
#[derive(Debug, thiserror::Error)]
pub enum ResizeError {
    /// No whole number of sectors.
    #[error("{0} bytes are no multiple of a sector of {SECTOR}")]
    Sectors(u64),
    /// Its file is not ours to change.
    #[error("the disk is read-only; change its file, and have husk look at it again")]
    ReadOnly,
    /// A block device has the size it has.
    #[error("it is a block device of {0} bytes; change that, and have husk look at it again")]
    BlockDevice(u64),
    /// More than an overlay can be.
    #[error("a disk with an overlay has at most {SIZE_MAX} bytes, where there is memory for it")]
    Overlay,
    /// The host refuses.
    #[error("{0}")]
    Host(io::Error),
}

impl From<io::Error> for ResizeError {
    fn from(e: io::Error) -> Self {
        ResizeError::Host(e)
    }
}

impl Disk {
    /// Makes the disk `size` bytes long, or without one as long as its image is now, and gives its
    /// size. A file is made shorter or longer; what is above an overlay is forgotten where the disk
    /// ends. Nothing is at the host; jobs that were held are begun by [`super::Job::renew`], and
    /// other clones of the disk are not used any more.
    ///
    /// # Errors
    /// See [`ResizeError`]. Then the disk is as it was.
    pub fn resize(&mut self, size: Option<u64>) -> Result<u64, ResizeError> {
        if let Some(size) = size.filter(|size| !size.is_multiple_of(SECTOR)) {
            return Err(ResizeError::Sectors(size));
        }
        if self.overlay.is_some() {
            self.resize_overlay(size)?;
        } else if let Some(size) = size {
            self.resize_image(size)?;
        } else {
            let size = self.found()?;
            self.set_size(size, size);
        }
        Ok(self.size())
    }

    /// Bytes of the image now.
    fn found(&self) -> io::Result<u64> {
        match self.formatted() {
            Some(image) => Ok(image.size()),
            None => io::Seek::seek(&mut self.part(Part::Image), io::SeekFrom::End(0)),
        }
    }

    fn resize_image(&mut self, size: u64) -> Result<(), ResizeError> {
        let now = self.found()?;
        if size != now {
            let file = self.part(Part::Image);
            match self.formatted() {
                _ if self.image_read_only() => return Err(ResizeError::ReadOnly),
                Some(image) => image.resize(size)?,
                None if file.metadata()?.file_type().is_block_device() => {
                    return Err(ResizeError::BlockDevice(now));
                }
                None => file.set_len(size)?,
            }
        }
        self.set_size(size, size);
        Ok(())
    }

    fn resize_overlay(&mut self, size: Option<u64>) -> Result<(), ResizeError> {
        let (size, below) = match size {
            // What of the image was cut off does not come back.
            Some(size) => (size, self.image_size().min(size)),
            None => {
                let now = self.found()?;
                (now, now)
            }
        };
        let Some(overlay) = &self.overlay else { return Ok(()) };
        let resized = overlay.resized(self.size(), size)?.ok_or(ResizeError::Overlay)?;
        self.overlay = Some(Arc::new(resized));
        self.set_size(size, below);
        Ok(())
    }
}
