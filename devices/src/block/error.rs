//! Why a disk cannot be opened, in words for who named it.

use std::io;
use std::path::PathBuf;

/// A disk that cannot be opened. Each names the path and the way out.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// It is not there, or not ours to open.
    #[error("cannot open disk {path}: {source}; {remedy}")]
    Open {
        /// What the user gave.
        path: PathBuf,
        /// The host's answer.
        r#source: io::Error,
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
    /// `cache=direct` and a file system that cannot.
    #[error("cannot use disk {path} without the host's page cache: {source}; use cache=writeback")]
    Direct {
        /// What the user gave.
        path: PathBuf,
        /// The host's answer.
        r#source: io::Error,
    },
    /// A file that is written and looks like an image of another format than raw.
    #[error(
        "disk {path} looks like a qcow2 image, and husk does not guess what it is to write to: say \
         format=qcow2, or format=raw if a guest has written that to a raw disk"
    )]
    Ambiguous {
        /// What the user gave.
        path: PathBuf,
    },
    /// An image of a format that cannot be used.
    #[error("disk {path}: {why}")]
    Format {
        /// What the user gave, or what it is based on.
        path: PathBuf,
        /// What is wrong, and what to do about it.
        why: String,
    },
    /// A disk whose overlay would need too much memory.
    #[error(
        "disk {path} has {size} bytes, too many for an overlay, which remembers in a bit of memory \
         for each sector where it is: at most {most} bytes"
    )]
    OverlaySize {
        /// What the user gave.
        path: PathBuf,
        /// Bytes of it.
        size: u64,
        /// Bytes it may have.
        most: u64,
    },
    /// Nowhere to put what is written to an overlay.
    #[error(
        "cannot make a file for the overlay of disk {path} in {dir}: {source}; name a directory with \
         overlay_dir=DIR"
    )]
    Overlay {
        /// What the user gave.
        path: PathBuf,
        /// Where it was tried.
        dir: String,
        /// The host's answer.
        r#source: io::Error,
    },
    /// Nowhere to put a disk that only its VM knows.
    #[error(
        "what the guest writes cannot be kept in a file in {dir}: {source}; name another directory, \
         `--overlay disk,dir=DIR`"
    )]
    Scratch {
        /// Where it was tried.
        dir: PathBuf,
        /// The host's answer.
        r#source: io::Error,
    },
    /// The file system cannot lock, or the size cannot be found.
    #[error("cannot {what} disk {path}: {source}; copy it to a local file system")]
    Host {
        /// What the user gave.
        path: PathBuf,
        /// What was tried.
        what: &'static str,
        /// The host's answer.
        r#source: io::Error,
    },
}
