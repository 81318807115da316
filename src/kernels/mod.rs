//! The kernels husk knows of: its own directory, the environment, the host's /boot.
//!
//! ```text
//! $XDG_DATA_HOME/husk/kernels/      (or ~/.local/share/husk/kernels/)
//!   6.1.0-32-cloud-amd64/           one directory a kernel, named after its version
//!     vmlinuz                       or vmlinux, of one that husk built
//!     config                        what it was built with, if its package says
//!     lib/modules/6.1.0-32-cloud-amd64/…
//!     packages                      the files it came from, a line each
//!   default                         a link to the one `husk run` takes
//!   .fetch-…/                       a fetch under way, or what an interrupted one left
//! ```

mod apt;
mod build;
mod error;
mod fetch;
mod store;
mod tool;
mod unpack;
mod version;

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

pub use apt::Flavour;
pub use build::{BuildError, BuildRequest, Variant, build};
pub use error::FetchError;
pub use fetch::{Fetched, Request, fetch};
pub use unpack::{UnpackFileError, unpack};
use version::Version;

/// What the host's kernels in /boot are called, before their version.
const OF_HOST: &str = "vmlinuz-";

/// No kernel was given and none was found.
#[derive(Debug, thiserror::Error)]
#[error(
    "no kernel: give one with --kernel, or let `husk kernel fetch` bring the distribution's.\n\
     Looked for: {}", .looked.join(", ")
)]
pub struct NoKernel {
    looked: Vec<String>,
}

impl NoKernel {
    /// The same for who has no command line.
    pub(crate) fn of_a_test(&self) -> String {
        format!(
            "there is none: name one by `kernel` or $HUSK_KERNEL, or let `husk kernel fetch` bring the \
             distribution's.\nLooked for: {}",
            self.looked.join(", ")
        )
    }
}

/// Who put a kernel where it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Origin {
    /// The user, in `$HUSK_KERNEL`.
    Environment,
    /// `husk kernel fetch`.
    Husk,
    /// The host's own package manager, in /boot.
    Host,
}

/// A kernel husk knows of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KnownKernel {
    /// Its version, or the file's name where that does not tell.
    pub version: String,
    /// Who put it there.
    pub origin: Origin,
    /// The kernel's file. That of `$HUSK_KERNEL` need not exist.
    pub path: PathBuf,
    /// Its modules, if they are there.
    pub modules: Option<PathBuf>,
    /// Whether `husk run` takes it when none is given.
    pub default: bool,
}

/// husk's own kernel directory, whether it exists or not. `None` without a home directory.
pub fn directory() -> Option<PathBuf> {
    let absolute = |name| std::env::var_os(name).map(PathBuf::from).filter(|p| p.is_absolute());
    let data =
        absolute("XDG_DATA_HOME").or_else(|| Some(absolute("HOME")?.join(".local/share")))?;
    Some(data.join("husk/kernels"))
}

/// The kernel `husk run` boots when none is given: `$HUSK_KERNEL`, the default or newest of husk's
/// own directory, the host's `/boot/vmlinuz-$(uname -r)`.
///
/// # Errors
/// Where it was looked for, when there is none.
pub fn default_kernel() -> Result<PathBuf, NoKernel> {
    Places::here().default_kernel()
}

/// All kernels husk knows of: `$HUSK_KERNEL`, then husk's own, then the host's, newest first.
pub fn list() -> Vec<KnownKernel> {
    Places::here().list()
}

/// What the kernel at `path` is called: its version, where that is known, as [`list`] has it, and else its file's name.
pub(crate) fn name(path: &Path) -> String {
    Places::here().name(path)
}

/// Where kernels are looked for.
struct Places {
    /// `$HUSK_KERNEL`.
    variable: Option<OsString>,
    own: Option<PathBuf>,
    boot: PathBuf,
    /// The host's `uname -r`.
    release: String,
}

impl Places {
    fn here() -> Self {
        let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        Self {
            variable: std::env::var_os("HUSK_KERNEL").filter(|path| !path.is_empty()),
            own: directory(),
            boot: "/boot".into(),
            release: release.trim().to_owned(),
        }
    }

    fn default_kernel(&self) -> Result<PathBuf, NoKernel> {
        let mut looked = Vec::new();
        if let Some(path) = &self.variable {
            // What was asked for is not replaced by something else: if it is missing, that is the
            // error.
            return Ok(path.into());
        }
        looked.push("$HUSK_KERNEL (not set)".to_owned());
        if let Some(directory) = &self.own {
            if let Some(kernel) = newest(directory) {
                return Ok(kernel);
            }
            looked.push(format!("{}/*/vmlinu[zx]", directory.display()));
        }
        let host = self.boot.join(format!("vmlinuz-{}", self.release));
        if host.exists() {
            return Ok(host);
        }
        looked.push(host.display().to_string());
        Err(NoKernel { looked })
    }

    fn name(&self, path: &Path) -> String {
        // By what the path leads to, now: the default is another one tomorrow.
        let real = path.canonicalize().unwrap_or_else(|_| path.to_owned());
        let lies_in = |file: &Path, place: &Path| {
            place.canonicalize().is_ok_and(|place| file.parent() == Some(&place))
        };
        let directory =
            real.parent().filter(|_| ["vmlinuz", "vmlinux"].contains(&&*name_of(&real)));
        if let (Some(directory), Some(own)) = (directory, &self.own)
            && lies_in(directory, own)
        {
            return name_of(directory);
        }
        match name_of(&real).strip_prefix(OF_HOST) {
            Some(version) if lies_in(&real, &self.boot) => version.to_owned(),
            _ => name_of(path),
        }
    }

    fn list(&self) -> Vec<KnownKernel> {
        let known = |version: String, origin, path, modules: Option<PathBuf>| {
            let modules = modules.filter(|modules| modules.is_dir());
            KnownKernel { version, origin, path, modules, default: false }
        };
        let mut all: Vec<KnownKernel> = Vec::new();
        if let Some(path) = self.variable.as_ref().map(PathBuf::from) {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            all.push(known(name, Origin::Environment, path, None));
        }
        for directory in self.own.iter().flat_map(|own| kernels_in(own)) {
            let Some(image) = image(&directory) else { continue };
            let version = name_of(&directory);
            let modules = directory.join("lib/modules").join(&version);
            all.push(known(version, Origin::Husk, image, Some(modules)));
        }
        for path in host_kernels(&self.boot) {
            let version = name_of(&path).split_off(OF_HOST.len());
            let modules = Path::new("/lib/modules").join(&version);
            all.push(known(version, Origin::Host, path, Some(modules)));
        }
        // By what the paths lead to: the default kernel is mostly reached through a link.
        let real = |path: &Path| path.canonicalize().unwrap_or_else(|_| path.to_owned());
        if let Ok(default) = self.default_kernel().map(|path| real(&path))
            && let Some(kernel) = all.iter_mut().find(|kernel| real(&kernel.path) == default)
        {
            kernel.default = true;
        }
        all
    }
}

/// The default kernel of `directory`, else the one with the highest version.
fn newest(directory: &Path) -> Option<PathBuf> {
    image(&directory.join("default"))
        .or_else(|| kernels_in(directory).first().and_then(|kernel| image(kernel)))
}

/// The kernel's file in its directory.
fn image(kernel: &Path) -> Option<PathBuf> {
    ["vmlinuz", "vmlinux"].map(|name| kernel.join(name)).into_iter().find(|path| path.exists())
}

/// Whether the kernel at `path` is one of husk's own that was built without ACPI: a machine that
/// describes itself by it would have no device for such a guest.
pub fn is_without_acpi(path: &Path) -> bool {
    directory().is_some_and(|own| is_without_acpi_in(&own, path))
}

fn is_without_acpi_in(own: &Path, path: &Path) -> bool {
    // By what the paths lead to: the default is a link.
    let (Ok(own), Ok(path)) = (own.canonicalize(), path.canonicalize()) else { return false };
    // What was fetched is a vmlinuz, and every start would read its configuration for nothing.
    let built = path.file_name().is_some_and(|name| name == "vmlinux");
    let config = path.parent().filter(|parent| built && parent.parent() == Some(&own));
    config
        .and_then(|parent| std::fs::read_to_string(parent.join("config")).ok())
        .is_some_and(|config| !config.lines().any(|line| line == "CONFIG_ACPI=y"))
}

/// The kernels of husk's own `directory`, newest first. Names with a dot in front are fetches
/// under way.
fn kernels_in(directory: &Path) -> Vec<PathBuf> {
    let found = entries(directory)
        .filter(|path| !path.is_symlink() && !name_of(path).starts_with('.'))
        .filter(|path| image(path).is_some());
    newest_first(found.collect())
}

/// The host's kernels, newest first.
fn host_kernels(boot: &Path) -> Vec<PathBuf> {
    let found = entries(boot).filter(|path| name_of(path).starts_with(OF_HOST) && path.is_file());
    newest_first(found.collect())
}

fn entries(directory: &Path) -> impl Iterator<Item = PathBuf> + use<> {
    std::fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.path())
}

fn newest_first(mut paths: Vec<PathBuf>) -> Vec<PathBuf> {
    paths.sort_by_cached_key(|path| std::cmp::Reverse(Version::of(&name_of(path))));
    paths
}

fn name_of(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests;
