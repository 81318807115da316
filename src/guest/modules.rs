//! The modules of a kernel: where they are, and the files read.
//!
//! They and their index are files of whoever made the kernel: their length is bounded, packed and
//! unpacked, and no path or link of theirs leads out of the modules' directory.

use std::io::{self, Read};
use std::path::{Path, PathBuf};

use husk_initramfs::{ModuleIndex, Outside};

use super::error::ImageError;
use crate::files;

/// The longest index, in bytes: a distribution's has 2 MiB.
const INDEX_MAX: u64 = 64 << 20;
/// The largest module, in bytes, packed and unpacked: one with debugging information has some 10 MiB.
const MODULE_MAX: u64 = 64 << 20;
/// The most memory that an unpacker's window may have, in KiB: xz -9 has 64 MiB.
const WINDOW_MAX_KIB: u32 = 80 << 10;
/// Bytes of a bzImage's beginning in which its version stands.
const HEAD: u64 = 64 << 10;

/// A kernel's modules.
#[derive(Debug)]
pub struct Modules {
    directory: PathBuf,
    /// Which there are.
    pub index: ModuleIndex,
}

/// Where the modules of the kernel at `kernel` are: beside it as `husk kernel fetch` has them, as a
/// package has them, or the host's own.
pub fn directory_of(kernel: &Path) -> Option<PathBuf> {
    places_of(kernel).into_iter().find(|place| place.join("modules.dep").is_file())
}

/// Where the modules of the kernel at `kernel` are looked for; nowhere if it does not tell its release.
pub fn places_of(kernel: &Path) -> Vec<PathBuf> {
    let real = kernel.canonicalize().unwrap_or_else(|_| kernel.to_owned());
    let (Some(near), Some(release)) = (real.parent(), release_of(&real)) else {
        return Vec::new();
    };
    let above = [Some(near), near.parent(), Some(Path::new("/"))];
    above.into_iter().flatten().map(|above| above.join("lib/modules").join(&release)).collect()
}

/// What a kernel calls itself: in its setup header (`Documentation/arch/x86/boot.rst`, kernel_version),
/// or in its file's name or directory.
fn release_of(kernel: &Path) -> Option<String> {
    let mut head = Vec::new();
    let file = files::open_regular(kernel);
    let read = file.and_then(|file| file.take(HEAD).read_to_end(&mut head));
    if read.is_ok() && head.get(0x202..0x206) == Some(b"HdrS") {
        let at = head.get(0x20e..0x210)?.first_chunk().map(|at| u16::from_le_bytes(*at))?;
        let text = head.get(usize::from(at) + 0x200..)?;
        let text = text.split(|byte| matches!(byte, 0 | b' ')).next()?;
        return std::str::from_utf8(text).ok().and_then(plain);
    }
    let name = kernel.file_name()?.to_str()?;
    let named = ["vmlinuz-", "vmlinux-"].iter().find_map(|prefix| name.strip_prefix(prefix));
    plain(named.or_else(|| kernel.parent()?.file_name()?.to_str())?)
}

/// A release that is part of a path and does not lead elsewhere.
fn plain(release: &str) -> Option<String> {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b"-_.+~".contains(&b);
    let fine = release.bytes().all(allowed) && !release.is_empty() && !release.starts_with('.');
    fine.then(|| release.to_owned())
}

impl Modules {
    /// Reads the index in `directory` (`…/lib/modules/RELEASE`).
    ///
    /// # Errors
    /// When it is not there, cannot be read, or names files elsewhere.
    pub fn open(directory: &Path) -> Result<Modules, ImageError> {
        let read = |name: &str| match files::read_beneath(directory, Path::new(name), INDEX_MAX) {
            Ok(bytes) => Ok(String::from_utf8_lossy(&bytes).into_owned()),
            Err(source) => Err(ImageError::Modules { path: directory.join(name), source }),
        };
        let dep = read("modules.dep")?;
        // Not there in a tree that depmod made by itself.
        let builtin = match directory.join("modules.builtin").exists() {
            true => read("modules.builtin")?,
            false => String::new(),
        };
        Modules::parse(directory, &dep, &builtin)
    }

    fn parse(directory: &Path, dep: &str, builtin: &str) -> Result<Modules, ImageError> {
        let index = ModuleIndex::parse(dep, builtin);
        let index = index.map_err(|Outside { list, line, path }| ImageError::ModulePath {
            index: directory.join(list),
            line,
            path,
        })?;
        Ok(Modules { directory: directory.to_owned(), index })
    }

    /// Reads the module at `path`, and unpacks it: a kernel of another distribution may not do that.
    ///
    /// # Errors
    /// When it cannot be read, is damaged, is a link out of the directory, or has more than 64 MiB.
    pub fn read(&self, path: &str) -> Result<Vec<u8>, ImageError> {
        let full = self.directory.join(path);
        let failed = |source| ImageError::Modules { path: full.clone(), source };
        let bytes =
            files::read_beneath(&self.directory, Path::new(path), MODULE_MAX).map_err(failed)?;
        match full.extension().and_then(|ending| ending.to_str()) {
            Some("xz") => {
                let reader = lzma_rust2::XzReader::new_mem_limit(&*bytes, false, WINDOW_MAX_KIB);
                bounded(reader).map_err(failed)
            }
            Some("gz") => bounded(flate2::bufread::GzDecoder::new(&*bytes)).map_err(failed),
            Some("zst") => {
                let reader = ruzstd::decoding::StreamingDecoder::new(&*bytes);
                let reader = reader.map_err(|e| failed(io::Error::other(e)))?;
                bounded(reader).map_err(failed)
            }
            _ => Ok(bytes),
        }
    }
}

fn bounded(reader: impl Read) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    reader.take(MODULE_MAX + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MODULE_MAX {
        return Err(io::Error::other("it has more than 64 MiB unpacked"));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn a_module_is_unpacked_and_one_that_is_damaged_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let content = vec![7u8; 100_000];
        let mut xz = lzma_rust2::XzWriter::new(Vec::new(), Default::default()).unwrap();
        xz.write_all(&content).unwrap();
        std::fs::write(dir.path().join("x.ko.xz"), xz.finish().unwrap()).unwrap();
        std::fs::write(dir.path().join("p.ko"), &content).unwrap();
        std::fs::write(dir.path().join("d.ko.xz"), b"\xfd7zXZ\0nonsense").unwrap();
        let modules = Modules::parse(dir.path(), "", "").unwrap();
        assert_eq!(modules.read("x.ko.xz").unwrap(), content);
        assert_eq!(modules.read("p.ko").unwrap(), content);
        let error = modules.read("d.ko.xz").unwrap_err().to_string();
        assert!(error.contains("d.ko.xz"), "{error}");
    }

    #[test]
    fn a_path_out_of_the_directory_is_refused_by_file_and_line_and_no_link_leads_there() {
        let dir = tempfile::tempdir().unwrap();
        let modules = dir.path().join("modules");
        std::fs::create_dir(&modules).unwrap();
        std::fs::write(dir.path().join("secret.ko"), "secret").unwrap();
        std::fs::write(modules.join("modules.dep"), "a.ko:\n../secret.ko: a.ko\n").unwrap();
        let error = Modules::open(&modules).unwrap_err().to_string();
        let words = format!("{}, line 2: `../secret.ko`", modules.join("modules.dep").display());
        assert!(error.contains(&words), "{error}");
        std::os::unix::fs::symlink("../secret.ko", modules.join("l.ko")).unwrap();
        let error = Modules::parse(&modules, "l.ko:", "").unwrap().read("l.ko").unwrap_err();
        assert!(error.to_string().contains("l.ko: it leads out"), "{error}");
    }

    #[test]
    fn a_kernels_modules_are_found_beside_it_by_what_it_calls_itself() {
        let dir = tempfile::tempdir().unwrap();
        let modules = dir.path().join("lib/modules/6.1.0-test");
        std::fs::create_dir_all(&modules).unwrap();
        std::fs::create_dir(dir.path().join("boot")).unwrap();
        let kernel = dir.path().join("boot/any-name");
        let mut image = vec![0; 0x400];
        image[0x202..0x206].copy_from_slice(b"HdrS");
        image[0x20e..0x210].copy_from_slice(&0x100u16.to_le_bytes());
        image[0x300..0x310].copy_from_slice(b"6.1.0-test (me) ");
        std::fs::write(&kernel, &image).unwrap();
        assert_eq!(directory_of(&kernel), None, "without an index");
        std::fs::write(modules.join("modules.dep"), "").unwrap();
        assert_eq!(directory_of(&kernel), Some(modules.clone()));
        let link = dir.path().join("vmlinuz");
        std::os::unix::fs::symlink(&kernel, &link).unwrap();
        assert_eq!(directory_of(&link), Some(modules.clone()));
        image[0x300..0x310].copy_from_slice(b"../../../../etc ");
        std::fs::write(&kernel, &image).unwrap();
        assert_eq!(directory_of(&kernel), None);
        let elf = dir.path().join("vmlinux-6.1.0-test");
        std::fs::write(&elf, b"\x7fELF").unwrap();
        assert_eq!(directory_of(&elf), Some(modules));
    }
}
