//! The modules of a kernel: where they are, which are needed for what, and in what order.
//!
//! Reads `modules.dep` and `modules.builtin`, which depmod and the kernel's build make. They are
//! files of whoever made the kernel: their length is bounded, a loop in them is no loop here, and no
//! path or link of theirs leads out of the modules' directory.

use std::collections::{HashMap, HashSet};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

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

/// The module index of a kernel.
#[derive(Debug)]
pub struct Modules {
    directory: PathBuf,
    /// Name to its path and its dependencies' paths, all relative to the directory.
    files: HashMap<String, (String, Vec<String>)>,
    builtin: HashSet<String>,
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
        let check = |index: &str, line: usize, path: &str| match files::is_beneath(Path::new(path))
        {
            true => Ok(()),
            false => Err(ImageError::ModulePath {
                index: directory.join(index),
                line: line + 1,
                path: path.to_owned(),
            }),
        };
        let mut files = HashMap::new();
        for (n, line) in dep.lines().enumerate() {
            let Some((path, dependencies)) = line.split_once(':') else { continue };
            let dependencies: Vec<_> = dependencies.split_whitespace().map(str::to_owned).collect();
            for path in dependencies.iter().map(String::as_str).chain([path]) {
                check("modules.dep", n, path)?;
            }
            files.insert(name_of(path), (path.to_owned(), dependencies));
        }
        let mut names = HashSet::new();
        for (n, path) in builtin.lines().enumerate().filter(|(_, path)| !path.is_empty()) {
            check("modules.builtin", n, path)?;
            names.insert(name_of(path));
        }
        Ok(Modules { directory: directory.to_owned(), files, builtin: names })
    }

    /// Whether the kernel has `name`, as a module or built in.
    pub fn has(&self, name: &str) -> bool {
        let name = name_of(name);
        self.files.contains_key(&name) || self.builtin.contains(&name)
    }

    /// Whether the kernel has `name` as a module, and not built in.
    pub fn is_loadable(&self, name: &str) -> bool {
        let name = name_of(name);
        self.files.contains_key(&name) && !self.builtin.contains(&name)
    }

    /// `wanted`, as far as it is there, and all that it needs, in an order in which it can be loaded:
    /// name and path. What is built in needs no file.
    pub fn closure(&self, wanted: &[&str]) -> Vec<(String, &str)> {
        let mut order = Vec::new();
        let mut seen = HashSet::new();
        for name in wanted {
            self.visit(name_of(name), &mut seen, &mut order);
        }
        order
    }

    fn visit<'a>(
        &'a self,
        name: String,
        seen: &mut HashSet<String>,
        order: &mut Vec<(String, &'a str)>,
    ) {
        let Some((path, dependencies)) = self.files.get(&name) else { return };
        if self.builtin.contains(&name) || !seen.insert(name.clone()) {
            return;
        }
        // depmod lists all of them, those of dependencies too, what is needed first at the end.
        for dependency in dependencies.iter().rev() {
            let dependency = name_of(dependency);
            if let Some((path, _)) = self.files.get(&dependency)
                && !self.builtin.contains(&dependency)
                && seen.insert(dependency.clone())
            {
                order.push((dependency, path));
            }
        }
        order.push((name, path));
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

/// `kernel/drivers/virtio/virtio-mmio.ko.xz` and `virtio_mmio` are the same module.
fn name_of(path: &str) -> String {
    let file = path.rsplit('/').next().unwrap_or(path);
    file.split('.').next().unwrap_or(file).replace('-', "_")
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    const DEP: &str = "kernel/v/blk.ko: kernel/v/virtio_ring.ko kernel/v/virtio.ko\n\
                       kernel/v/virtio_ring.ko: kernel/v/virtio.ko\n\
                       kernel/v/virtio.ko:\n\
                       kernel/l/a.ko: kernel/l/b.ko\n\
                       kernel/l/b.ko: kernel/l/a.ko\n\
                       kernel/n/net-card.ko.xz: kernel/v/virtio.ko\n";

    #[test]
    fn dependencies_come_first_and_once_and_a_loop_ends() {
        let modules = Modules::parse(Path::new(""), DEP, "kernel/fs/ext4/ext4.ko\n").unwrap();
        let names = |wanted: &[&str]| -> Vec<String> {
            modules.closure(wanted).into_iter().map(|(name, _)| name).collect()
        };
        assert_eq!(
            names(&["blk", "net_card", "virtio"]),
            ["virtio", "virtio_ring", "blk", "net_card"]
        );
        assert_eq!(names(&["ext4", "nobody"]), [""; 0]);
        assert_eq!(names(&["a"]), ["b", "a"]);
        assert!(modules.has("ext4") && modules.has("net-card") && !modules.has("nobody"));
    }

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
        let refusal = |dep: &str, builtin: &str| {
            std::fs::write(modules.join("modules.dep"), dep).unwrap();
            std::fs::write(modules.join("modules.builtin"), builtin).unwrap();
            Modules::open(&modules).unwrap_err().to_string()
        };
        for path in ["../secret.ko", "/etc/secret.ko", "k/../../secret.ko"] {
            for dep in [format!("a.ko:\n{path}: a.ko\n"), format!("a.ko:\nb.ko: a.ko {path}\n")] {
                let error = refusal(&dep, "");
                assert!(error.contains("modules.dep, line 2") && error.contains(path), "{error}");
            }
            let error = refusal("", &format!("a.ko\n\n{path}\n"));
            assert!(error.contains("modules.builtin, line 3"), "{error}");
        }
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
