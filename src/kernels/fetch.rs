//! Bringing the distribution's kernel into husk's own directory: what to bring, in which order, and
//! what to say when it does not work. The tools are in `apt`, the directory in `store`.

use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use super::apt::{self, Apt, Archive, Flavour};
use super::error::FetchError;
use super::store::{self, Store};
use super::tool::Runner;
use crate::boot::bzimage::{self, SetupHeader};
use crate::boot::elf::Elf;

/// What to bring.
#[derive(Debug, Clone, Default)]
pub struct Request {
    /// This package, or the image it depends on; otherwise the distribution's current kernel.
    pub package: Option<String>,
    /// Which of the distribution's kernels.
    pub flavour: Flavour,
    /// Set from another thread, it makes the fetch give up soon, with [`FetchError::Cancelled`].
    pub cancel: Arc<AtomicBool>,
}

/// What was brought.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fetched {
    /// The kernel's version, and its directory's name.
    pub version: String,
    /// Its directory.
    pub directory: PathBuf,
    /// Whether it was there already, from the same packages.
    pub was_there: bool,
}

/// Brings a kernel package, unpacks it into husk's own directory and makes it the default.
/// `progress` is told what is being done, in a line at a time.
///
/// # Errors
/// When this host has no apt, the package is not to be had, or the directory cannot be written.
/// Then, and when it is cancelled, everything is as it was before.
pub fn fetch(request: &Request, progress: &mut dyn FnMut(&str)) -> Result<Fetched, FetchError> {
    if let Some(package) = request.package.as_ref().filter(|package| !apt::is_name(package)) {
        return Err(FetchError::BadPackage(package.escape_debug().to_string()));
    }
    let directory = super::directory().ok_or(FetchError::NoDirectory)?;
    let runner = Runner::new(request.cancel.clone());
    let mut apt = Apt::host(runner.clone())?;
    let candidates = match &request.package {
        Some(package) => vec![package.as_str()],
        None => {
            let os_release = fs::read_to_string("/etc/os-release").unwrap_or_default();
            apt::packages(&os_release, request.flavour).to_vec()
        }
    };
    if candidates.is_empty() {
        return Err(FetchError::UnknownDistribution);
    }
    let mut told = false;
    let store = Store::open(&directory, || {
        if !std::mem::replace(&mut told, true) {
            progress("waiting for another fetch to end");
        }
        runner.check()
    })?;
    let mut fetch = Fetch { runner: &runner, store: &store, progress };
    let full = |e: FetchError| e.or_no_room(&directory);
    let found = match fetch.download(&apt, &candidates).map_err(full) {
        Err(FetchError::Tool { .. } | FetchError::NoPackage { .. }) => {
            // The usual reason is package lists that are absent, or older than the archive.
            fetch.say("this host's package lists do not do; bringing new ones for this fetch");
            apt.use_own_lists(&store.scratch("apt")?).map_err(full)?;
            fetch.download(&apt, &candidates).map_err(full)?
        }
        other => other?,
    };
    let (version, was_there) = match found {
        Found::Here(version) => (version, true),
        Found::Downloaded { archives, directory } => {
            let (kernel, version) = fetch.unpack(&archives, &directory).map_err(full)?;
            store.install(&kernel, &version)?;
            (version, false)
        }
    };
    store.make_default(&version)?;
    Ok(Fetched { directory: directory.join(&version), version, was_there })
}

/// The packages wanted.
enum Found {
    /// What they unpack to is here already: this version.
    Here(String),
    /// They were downloaded into this directory.
    Downloaded { archives: Vec<Archive>, directory: PathBuf },
}

/// A fetch under way.
struct Fetch<'a> {
    runner: &'a Runner,
    store: &'a Store,
    progress: &'a mut dyn FnMut(&str),
}

impl Fetch<'_> {
    fn say(&mut self, line: &str) {
        (self.progress)(line);
    }

    /// Downloads the first of `candidates` that there is, unless it is here already.
    fn download(&mut self, apt: &Apt, candidates: &[&str]) -> Result<Found, FetchError> {
        let mut resolved = Err(FetchError::UnknownDistribution);
        for candidate in candidates {
            resolved = apt.resolve(candidate);
            if resolved.is_ok() {
                break;
            }
        }
        let packages = resolved?;
        let archives = apt.archives(&packages)?;
        let here = self.store.find(&list_of(&archives)).filter(|_| !archives.is_empty());
        if let Some(version) = here {
            return Ok(Found::Here(version));
        }
        let size = archives.iter().map(|archive| archive.size).sum::<u64>() as f64;
        let size = size / f64::from(1 << 20);
        self.say(&format!("downloading {} ({size:.1} MiB)", packages.join(" and ")));
        // A first try may have left its own.
        let again = |_| self.store.scratch("download-again");
        let directory = self.store.scratch("download").or_else(again)?;
        apt.download(&packages, &directory)?;
        Ok(Found::Downloaded { archives, directory })
    }

    /// Makes a kernel's directory of the `archives` in `directory`; returns it and the version.
    fn unpack(
        &mut self,
        archives: &[Archive],
        directory: &Path,
    ) -> Result<(PathBuf, String), FetchError> {
        self.say("unpacking");
        let mut roots = Vec::new();
        for archive in super::entries(directory) {
            // Each into a directory of its own: links of one must not lead the files of another.
            let root = self.store.scratch(&format!("root-{}", roots.len()))?;
            apt::extract(self.runner, &archive, &root)?;
            roots.push(root);
        }
        self.arrange(archives, &roots)
    }

    /// The same, of the files that were in the archives.
    fn arrange(
        &mut self,
        archives: &[Archive],
        roots: &[PathBuf],
    ) -> Result<(PathBuf, String), FetchError> {
        let files: Vec<&str> = archives.iter().map(|archive| archive.file.as_str()).collect();
        let packages = files.join(", ");
        let find = |place: &Path| find(roots, place, &packages);
        let boots = find("boot".as_ref())?;
        let images = boots.iter().flat_map(|boot| super::host_kernels(boot));
        let image = images.into_iter().find(|image| !image.is_symlink());
        let version =
            image.as_deref().map(|image| super::name_of(image).split_off("vmlinuz-".len()));
        let (Some(image), Some(version)) =
            (image, version.filter(|version| store::is_name(version)))
        else {
            return Err(FetchError::NoKernelInside { packages });
        };
        if !is_kernel(&image).map_err(FetchError::file("read", &image))? {
            let path = Path::new("boot").join(super::name_of(&image));
            return Err(FetchError::NotAKernel { packages, path });
        }

        let kernel = self.store.scratch("kernel")?;
        let rename = |from: &Path, to: PathBuf| {
            fs::rename(from, &to).map_err(FetchError::file("move a file to", &to))
        };
        rename(&image, kernel.join("vmlinuz"))?;
        let config = find(&Path::new("boot").join(format!("config-{version}")))?;
        if let Some(config) = config.iter().find(|config| config.is_file()) {
            rename(config, kernel.join("config"))?;
        }
        // Debian 13 and Ubuntu 24.10 have them in /usr/lib.
        let mut places = Vec::new();
        for place in ["lib/modules", "usr/lib/modules"] {
            places.append(&mut find(&Path::new(place).join(&version))?);
        }
        if let Some(modules) = places.into_iter().find(|place| place.is_dir()) {
            let place = kernel.join("lib/modules");
            fs::create_dir_all(&place).map_err(FetchError::file("make", &place))?;
            rename(&modules, place.join(&version))?;
            let indexed = place.join(&version).join("modules.dep").exists();
            if !indexed && !apt::depmod(self.runner, &kernel, &version)? {
                self.say("no depmod here (package kmod): the modules have no index for modprobe");
            }
        }
        let packages = kernel.join("packages");
        fs::write(&packages, list_of(archives)).map_err(FetchError::file("write", &packages))?;
        Ok((kernel, version))
    }
}

/// What there is at `place` in the `roots`, to which `packages` were unpacked. What is found lies in
/// them, and not where a link leads: such a one could have husk move the host's own files.
///
/// # Errors
/// When there is a link on the way to it, or in its place.
fn find(roots: &[PathBuf], place: &Path, packages: &str) -> Result<Vec<PathBuf>, FetchError> {
    let mut found = Vec::new();
    'roots: for root in roots {
        let mut path = root.clone();
        for part in place {
            path.push(part);
            match path.symlink_metadata() {
                Ok(metadata) if metadata.is_symlink() => {
                    let path = path.strip_prefix(root).unwrap_or(&path).to_owned();
                    return Err(FetchError::LinkInside { packages: packages.to_owned(), path });
                }
                Ok(_) => {}
                Err(_) => continue 'roots,
            }
        }
        found.push(path);
    }
    Ok(found)
}

/// Whether the file at `path` begins as a kernel does.
fn is_kernel(path: &Path) -> io::Result<bool> {
    let file = fs::File::open(path)?;
    let mut head = Vec::new();
    let len = file.metadata()?.len();
    file.take(bzimage::HEAD_SIZE as u64).read_to_end(&mut head)?;
    Ok(Elf::is_elf(&head) || SetupHeader::parse(&head, len).is_ok())
}

/// What `packages` of a kernel's directory holds.
fn list_of(archives: &[Archive]) -> String {
    archives.iter().map(|archive| format!("{}\n", archive.file)).collect()
}

#[cfg(test)]
mod tests;
