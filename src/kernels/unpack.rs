//! The `vmlinux` a `bzImage` carries, written to a file: for a debugger, or other machine monitors.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
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
/// When `input` carries none, or `output` cannot be written.
pub fn unpack(input: &Path, output: &Path) -> Result<u64, UnpackFileError> {
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

    /// The smallest bzImage that carries `payload`, by boot.rst's offsets.
    fn bzimage(payload: &[u8]) -> Vec<u8> {
        let mut image = vec![0; 1024 + 0x400];
        image[0x1f1] = 1;
        image[0x1fe..0x200].copy_from_slice(&[0x55, 0xaa]);
        image[0x201] = 0x66;
        image[0x202..0x206].copy_from_slice(b"HdrS");
        image[0x206..0x208].copy_from_slice(&0x020fu16.to_le_bytes());
        image[0x211] = 1;
        image[0x214..0x218].copy_from_slice(&0x10_0000u32.to_le_bytes());
        image[0x248..0x24c].copy_from_slice(&0x400u32.to_le_bytes());
        image[0x24c..0x250].copy_from_slice(&(payload.len() as u32).to_le_bytes());
        image.extend_from_slice(payload);
        image.resize(image.len().next_multiple_of(16), 0);
        let paragraphs = ((image.len() - 1024) / 16) as u32;
        image[0x1f4..0x1f8].copy_from_slice(&paragraphs.to_le_bytes());
        image
    }

    fn lz4(content: &[u8]) -> Vec<u8> {
        let block = lz4_flex::block::compress(content);
        let mut payload = vec![0x02, 0x21, 0x4c, 0x18];
        payload.extend_from_slice(&(block.len() as u32).to_le_bytes());
        payload.extend_from_slice(&block);
        payload.extend_from_slice(&(content.len() as u32).to_le_bytes());
        payload
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
