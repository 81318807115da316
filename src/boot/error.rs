//! Why a kernel cannot be booted.

use std::io;
use std::path::PathBuf;

use super::bzimage::HeaderError;
use super::elf::ElfError;
use super::load::LoadError;
use super::unpack::UnpackError;
use crate::x86_64::entry::Protocol;

/// Why a kernel cannot be booted. All name the path the user gave.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the fields are the path and the cause in each")]
pub enum KernelError {
    /// It cannot be opened.
    #[error("kernel {}: {source}{}", .path.display(), hint(.source))]
    Open { path: PathBuf, r#source: io::Error },
    /// It cannot be read.
    #[error("kernel {}: {source}", .path.display())]
    Read { path: PathBuf, r#source: io::Error },
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
    Elf { path: PathBuf, r#source: ElfError },
    /// Its setup header will not do.
    #[error("kernel {}: {source}", .path.display())]
    Header { path: PathBuf, r#source: HeaderError },
    /// The compressed kernel in it is damaged.
    #[error("kernel {}: {source}", .path.display())]
    Unpack { path: PathBuf, r#source: UnpackError },
    /// What was unpacked from it will not do.
    #[error("kernel {}: of what is packed in it: {source}", .path.display())]
    Carried { path: PathBuf, r#source: ElfError },
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
    Load { path: PathBuf, r#source: LoadError },
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
