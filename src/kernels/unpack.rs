//! The `vmlinux` a `bzImage` carries, written to a file: for a debugger, or other machine monitors.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use crate::boot::bzimage::{self, HeaderError, SetupHeader};
use crate::boot::carried;
use crate::boot::elf::Elf;
use crate::boot::unpack::UnpackError;
use crate::files;

/// Why a kernel could not be unpacked into a file.
#[derive(Debug, thiserror::Error)]
pub enum UnpackFileError {
    /// The input cannot be read.
    #[error("{path}: {source}", path = .path.display())]
    Read {
        /// The input.
        path: PathBuf,
        /// Why.
        r#source: io::Error,
    },
    /// The output cannot be written.
    #[error("{path} cannot be written: {source}", path = .path.display())]
    Write {
        /// The output.
        path: PathBuf,
        /// Why.
        r#source: io::Error,
    },
    /// Input and output are one file, which would be gone.
    #[error("{path} cannot be unpacked into itself; name another file", path = .0.display())]
    Itself(PathBuf),
    /// The input is an ELF file already.
    #[error("{path} is not packed: it is an ELF file already; use it as it is", path = .0.display())]
    NotPacked(PathBuf),
    /// The input is no bzImage, or a damaged one.
    #[error("{path} is no bzImage husk can read: {source}", path = .path.display())]
    Header {
        /// The input.
        path: PathBuf,
        /// What is wrong with it.
        r#source: HeaderError,
    },
    /// The input carries no Linux kernel.
    #[error(
        "{path} is a bzImage that carries no Linux kernel husk knows how to unpack; \
         it can only be booted as it is",
        path = .0.display()
    )]
    NoVmlinux(PathBuf),
    /// What it carries does not unpack.
    #[error("{path}: {source}", path = .path.display())]
    Unpack {
        /// The input.
        path: PathBuf,
        /// What the decoder says.
        r#source: UnpackError,
    },
}

/// Writes the `vmlinux` that the `bzImage` at `input` carries to `output`; returns its length in
/// bytes. A file at `output` is replaced when all has been written, and not before.
///
/// # Errors
/// When `input` carries none, or is `output` under whatever name, or `output` cannot be written.
pub fn unpack(input: &Path, output: &Path) -> Result<u64, UnpackFileError> {
    let identity = |path: &Path| path.metadata().ok().map(|m| (m.dev(), m.ino()));
    if identity(output).is_some_and(|id| identity(input) == Some(id)) {
        return Err(UnpackFileError::Itself(input.to_owned()));
    }
    let vmlinux = vmlinux(input)?;
    write(output, &vmlinux)
        .map_err(|source| UnpackFileError::Write { path: output.to_owned(), source })?;
    Ok(vmlinux.len() as u64)
}

fn vmlinux(path: &Path) -> Result<Vec<u8>, UnpackFileError> {
    let image = files::read(path, bzimage::MAX_LEN)
        .map_err(|source| UnpackFileError::Read { path: path.to_owned(), source })?;
    if Elf::is_elf(&image) {
        return Err(UnpackFileError::NotPacked(path.to_owned()));
    }
    let head = image.get(..bzimage::HEAD_SIZE).unwrap_or(&image);
    let header = SetupHeader::parse(head, image.len() as u64)
        .map_err(|source| UnpackFileError::Header { path: path.to_owned(), source })?;
    let vmlinux = carried::vmlinux(&image, &header)
        .map_err(|source| UnpackFileError::Unpack { path: path.to_owned(), source })?;
    vmlinux.ok_or_else(|| UnpackFileError::NoVmlinux(path.to_owned()))
}

fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    // What a link leads to is replaced, not the link.
    let target = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let metadata = target.metadata().ok();
    if metadata.as_ref().is_some_and(|metadata| !metadata.is_file()) {
        // A pipe or device is written to; a directory says so.
        return File::options().write(true).open(&target)?.write_all(bytes);
    }
    // Who may read the old one may read the new one, and nobody else.
    let mode = metadata.map(|metadata| metadata.permissions().mode() & 0o777);
    files::write_renamed(&target, mode, |file| file.write_all(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::boot::synth::{self, bzimage};
    use crate::boot::unpack::Compression;

    fn lz4(content: &[u8]) -> Vec<u8> {
        synth::pack(Compression::Lz4, content)
    }

    #[test]
    fn what_a_bzimage_carries_is_written_out() {
        let dir = tempfile::tempdir().unwrap();
        let (input, output) = (dir.path().join("vmlinuz"), dir.path().join("vmlinux"));
        let kernel = [b"\x7fELF".as_slice(), &[7; 500]].concat();
        std::fs::write(&input, bzimage(&lz4(&kernel))).unwrap();
        std::fs::write(&output, "old").unwrap();
        assert_eq!(unpack(&input, &output).unwrap(), 504);
        assert_eq!(std::fs::read(&output).unwrap(), kernel);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2);
    }

    #[test]
    fn what_carries_no_kernel_is_refused_and_the_output_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let (input, output) = (dir.path().join("in"), dir.path().join("out"));
        std::fs::write(&output, "old").unwrap();
        for (image, word) in [
            (b"\x7fELF and more".to_vec(), "already"),
            (b"text".to_vec(), "no Linux setup header"),
            (bzimage(&lz4(b"not an ELF file")), "carries no Linux"),
            (bzimage(b"packed strangely"), "carries no Linux"),
        ] {
            std::fs::write(&input, image).unwrap();
            let error = unpack(&input, &output).unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        }
        assert!(unpack(&dir.path().join("absent"), &output).is_err());
        assert_eq!(std::fs::read(&output).unwrap(), b"old");
    }

    #[test]
    fn nothing_is_unpacked_into_itself_by_whatever_name() {
        let dir = tempfile::tempdir().unwrap();
        let input = dir.path().join("in");
        let image = bzimage(&lz4(b"\x7fELF"));
        std::fs::write(&input, &image).unwrap();
        let (soft, hard) = (dir.path().join("soft"), dir.path().join("hard"));
        std::os::unix::fs::symlink(&input, &soft).unwrap();
        std::fs::hard_link(&input, &hard).unwrap();
        for output in [&input, &soft, &hard] {
            let error = unpack(&input, output).unwrap_err().to_string();
            assert!(error.contains("itself"), "{error}");
            assert_eq!(std::fs::read(&input).unwrap(), image);
        }
    }

    #[test]
    fn an_output_that_cannot_be_written_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let input = dir.path().join("in");
        std::fs::write(&input, bzimage(&lz4(b"\x7fELF"))).unwrap();
        let error = unpack(&input, dir.path()).unwrap_err().to_string();
        assert!(error.contains("cannot be written"), "{error}");
    }

    #[test]
    fn an_output_keeps_its_permissions_and_links_beside_it_are_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let (input, output) = (dir.path().join("in"), dir.path().join("out"));
        std::fs::write(&input, bzimage(&lz4(b"\x7fELF"))).unwrap();
        std::fs::write(&output, "old").unwrap();
        std::fs::set_permissions(&output, PermissionsExt::from_mode(0o600)).unwrap();
        // Where the temporary file was expected.
        let victim = dir.path().join("victim");
        std::fs::write(&victim, "precious").unwrap();
        let link = dir.path().join(format!(".out.{}", std::process::id()));
        std::os::unix::fs::symlink(&victim, link).unwrap();
        unpack(&input, &output).unwrap();
        assert_eq!(output.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(std::fs::read(&victim).unwrap(), b"precious");
    }

    #[test]
    fn an_input_that_is_a_pipe_is_refused_and_not_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let fifo = dir.path().join("fifo");
        assert!(std::process::Command::new("mkfifo").arg(&fifo).status().unwrap().success());
        let error = unpack(&fifo, &dir.path().join("out")).unwrap_err().to_string();
        assert!(error.contains("fifo: it is a pipe, not a file"), "{error}");
    }
}
