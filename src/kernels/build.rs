//! Building a guest kernel for speed from the distribution's source package.
//!
//! The source comes as `husk kernel fetch` brings a kernel, through apt, unpacked and never
//! installed; the options are those of `resources/kernel`, over a configuration of nothing
//! (`make allnoconfig`), and every one of them is checked to have been taken. No module is built and
//! no initramfs is needed: what the result has, it has built in.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::apt::{self, Apt};
use super::error::FetchError;
use super::fetch::Fetched;
use super::store::{self, Store};
use super::tool::{Runner, find};

const COMMON: &str = include_str!("../../resources/kernel/common.config");
const FULL: &str = include_str!("../../resources/kernel/full.config");
const FAST: &str = include_str!("../../resources/kernel/fast.config");

/// The source package of Debian's and Ubuntu's current kernel.
const SOURCE: &str = "linux-source";
/// How often is said how far a build is.
const TICK: Duration = Duration::from_secs(5);

/// Which kernel to build.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Variant {
    /// One processor, no ACPI: the least time to init.
    #[default]
    Fast,
    /// Several processors, ACPI, a power button.
    Full,
}

impl Variant {
    fn name(self) -> &'static str {
        match self {
            Self::Fast => "fast",
            Self::Full => "full",
        }
    }

    /// All its options, one a line, comments between.
    fn options(self) -> String {
        let own = match self {
            Self::Fast => FAST,
            Self::Full => FULL,
        };
        format!("{COMMON}\n{own}CONFIG_LOCALVERSION=\"-husk-{}\"\n", self.name())
    }
}

/// What to build.
#[derive(Debug, Clone, Default)]
pub struct BuildRequest {
    /// Which kernel.
    pub variant: Variant,
    /// A tree of Linux sources, instead of the distribution's package. It stays as it is.
    pub source: Option<PathBuf>,
    /// Set from another thread, it makes the build give up soon, with [`FetchError::Cancelled`].
    pub cancel: Arc<AtomicBool>,
}

/// Why no kernel was built.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// Tools that are not there.
    #[error(
        "building a kernel takes tools that are not installed here: run `apt-get install -y {0}` as root"
    )]
    Tools(String),
    /// A directory that holds no Linux.
    #[error("{} holds no Linux sources (no Makefile and Kconfig in it)", .0.display())]
    NoSource(PathBuf),
    /// Options that this Linux does not have, or has under other conditions.
    #[error("this Linux does not take {0}: build from another version, one like Debian 12's 6.1")]
    Options(String),
    /// The source, or its place, could not be had; or a tool failed.
    #[error(transparent)]
    Fetch(#[from] FetchError),
}

/// Builds a kernel, puts it into husk's own directory and makes it the default. Takes minutes.
/// `progress` is told what is being done, in a line at a time.
///
/// # Errors
/// When tools or the source are missing, or the build fails. Then, and when it is cancelled,
/// everything is as it was before.
pub fn build(
    request: &BuildRequest,
    progress: &mut dyn FnMut(&str),
) -> Result<Fetched, BuildError> {
    if let Some(tree) = &request.source {
        check_source(tree)?;
    }
    let directory = super::directory().ok_or(FetchError::NoDirectory)?;
    check_tools(|tool| find(tool).is_some(), Path::new("/usr/include/gelf.h").exists())?;
    let runner = Runner::new(request.cancel.clone());
    let store = Store::open(&directory, || runner.check())?;
    let (source, origin) = match &request.source {
        Some(tree) => (tree.clone(), format!("{}\n", tree.display())),
        None => {
            let full = |e: FetchError| e.or_no_room(&directory);
            let package = Package::find(&runner, &store, progress).map_err(full)?;
            let origin = origin(&package.file, request.variant);
            if let Some(version) = store.find(&origin) {
                store.make_default(&version)?;
                let directory = directory.join(&version);
                return Ok(Fetched { version, directory, was_there: true });
            }
            (package.unpack(&runner, &store, progress).map_err(full)?, origin)
        }
    };
    check_source(&source)?;
    let build = Build { runner: &runner, source: &source, objects: &store.scratch("objects")? };
    build.configure(&request.variant.options())?;
    let version = build.make(&["kernelrelease"])?.trim().to_owned();
    if !store::is_name(&version) {
        return Err(BuildError::NoSource(source));
    }
    progress(&format!("building {version}; this takes minutes"));
    build.compile(progress)?;

    let kernel = store.scratch("kernel")?;
    for (from, to) in [("vmlinux", "vmlinux"), (".config", "config")] {
        let to = kernel.join(to);
        fs::rename(build.objects.join(from), &to)
            .map_err(FetchError::file("move a file to", &to))?;
    }
    let packages = kernel.join("packages");
    fs::write(&packages, origin).map_err(FetchError::file("write", &packages))?;
    let directory = store.install(&kernel, &version)?;
    store.make_default(&version)?;
    Ok(Fetched { version, directory, was_there: false })
}

/// What says that a kernel was built of the same: the package, and the options.
fn origin(file: &str, variant: Variant) -> String {
    use sha2::{Digest, Sha256};
    let options = Sha256::digest(variant.options().as_bytes());
    let hash: String = options.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    format!("{file}\n{} {hash}\n", variant.name())
}

fn check_source(tree: &Path) -> Result<(), BuildError> {
    let whole = ["Makefile", "Kconfig"].iter().all(|name| tree.join(name).is_file());
    if whole { Ok(()) } else { Err(BuildError::NoSource(tree.to_owned())) }
}

/// Names the packages of the tools a build takes that are missing.
fn check_tools(has: impl Fn(&str) -> bool, gelf: bool) -> Result<(), BuildError> {
    const TOOLS: [(&str, &str); 8] = [
        ("make", "make"),
        ("gcc", "gcc"),
        ("ld", "binutils"),
        ("flex", "flex"),
        ("bison", "bison"),
        ("bc", "bc"),
        ("xz", "xz-utils"),
        ("perl", "perl"),
    ];
    let missing = TOOLS.iter().filter(|(tool, _)| !has(tool)).map(|(_, package)| *package);
    let missing: Vec<&str> = missing.chain((!gelf).then_some("libelf-dev")).collect();
    if missing.is_empty() { Ok(()) } else { Err(BuildError::Tools(missing.join(" "))) }
}

/// The source package, not downloaded yet.
struct Package {
    apt: Apt,
    name: String,
    file: String,
    size: u64,
}

impl Package {
    fn find(
        runner: &Runner,
        store: &Store,
        progress: &mut dyn FnMut(&str),
    ) -> Result<Self, FetchError> {
        let mut apt = Apt::host(runner.clone())?;
        let found = match source_of(&apt) {
            Err(FetchError::Tool { .. } | FetchError::NoPackage { .. }) => {
                progress("this host's package lists do not do; bringing new ones for this build");
                apt.use_own_lists(&store.scratch("apt")?)?;
                source_of(&apt)?
            }
            other => other?,
        };
        let (name, archive) = found;
        Ok(Self { apt, name, file: archive.file, size: archive.size })
    }

    /// Downloads and unpacks it, and gives the tree of sources.
    fn unpack(
        self,
        runner: &Runner,
        store: &Store,
        progress: &mut dyn FnMut(&str),
    ) -> Result<PathBuf, FetchError> {
        let size = self.size as f64 / f64::from(1 << 20);
        progress(&format!("downloading {} ({size:.1} MiB)", self.name));
        let directory = store.scratch("download")?;
        self.apt.download(&[self.name], &directory)?;
        progress("unpacking the source");
        let root = store.scratch("package")?;
        for archive in super::entries(&directory) {
            apt::extract(runner, &archive, &root)?;
        }
        let inside = super::entries(&root.join("usr/src"));
        let is_tar = |path: &PathBuf| super::name_of(path).contains(".tar.") && path.is_file();
        let tar = inside
            .into_iter()
            .find(is_tar)
            .ok_or(FetchError::NoKernelInside { packages: self.file })?;
        let tree = store.scratch("source")?;
        let mut command = Command::new("tar");
        command.arg("-C").arg(&tree).args(["--strip-components=1", "-xf"]).arg(&tar);
        runner.run(command, &format!("tar -xf {}", super::name_of(&tar)))?;
        Ok(tree)
    }
}

/// The package with the current kernel's source, and its archive.
fn source_of(apt: &Apt) -> Result<(String, apt::Archive), FetchError> {
    let name = apt.dependency(SOURCE, "linux-source-")?;
    let absent = || FetchError::NoPackage { package: name.clone() };
    let archive = apt.archives(std::slice::from_ref(&name))?.into_iter().next();
    let archive = archive.ok_or_else(absent)?;
    Ok((name, archive))
}

/// A build under way.
struct Build<'a> {
    runner: &'a Runner,
    source: &'a Path,
    objects: &'a Path,
}

impl Build<'_> {
    /// Writes `.config`.
    fn configure(&self, options: &str) -> Result<(), BuildError> {
        let wanted = self.objects.join("husk.config");
        fs::write(&wanted, options).map_err(FetchError::file("write", &wanted))?;
        let chosen = format!("KCONFIG_ALLCONFIG={}", wanted.display());
        self.make(&[&chosen, "allnoconfig"])?;
        let config = self.objects.join(".config");
        let config = fs::read_to_string(&config).map_err(FetchError::file("read", &config))?;
        let refused = refused(options, &config);
        if refused.is_empty() { Ok(()) } else { Err(BuildError::Options(refused.join(", "))) }
    }

    fn compile(&self, progress: &mut dyn FnMut(&str)) -> Result<(), FetchError> {
        let jobs = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let mut command = self.command(&[&format!("-j{jobs}"), "vmlinux"]);
        // Not `-s`: a line for each file is how far it is.
        command.env_remove("KBUILD_VERBOSE");
        let (mut files, mut said) = (0u32, Instant::now());
        self.runner.watch(command, "make vmlinux", &mut |_| {
            files += 1;
            if said.elapsed() >= TICK {
                said = Instant::now();
                progress(&format!("{files} files built"));
            }
        })
    }

    fn make(&self, targets: &[&str]) -> Result<String, FetchError> {
        let mut command = self.command(targets);
        command.arg("-s");
        self.runner.run(command, &format!("make {}", targets.join(" ")))
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("make");
        command.arg("-C").arg(self.source).arg(format!("O={}", self.objects.display()));
        command.args(arguments).env("LC_ALL", "C");
        // The same sources and options make the same kernel, whoever builds it and when.
        command.env("KBUILD_BUILD_USER", "husk").env("KBUILD_BUILD_HOST", "husk");
        for name in ["MAKEFLAGS", "MFLAGS", "ARCH", "CROSS_COMPILE"] {
            command.env_remove(name);
        }
        command
    }
}

/// Those of the lines of `options` that are not in `config`: what they need is not there.
fn refused<'a>(options: &'a str, config: &str) -> Vec<&'a str> {
    let taken: std::collections::HashSet<&str> = config.lines().collect();
    let options = options.lines().filter(|line| line.starts_with("CONFIG_"));
    options.filter(|line| !taken.contains(line)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tools_that_are_missing_are_named_by_their_packages() {
        assert!(check_tools(|_| true, true).is_ok());
        let error = check_tools(|tool| tool != "flex", false).unwrap_err().to_string();
        assert!(error.contains("apt-get install -y flex libelf-dev`"), "{error}");
    }

    #[test]
    fn an_option_that_was_not_taken_is_noticed() {
        let config = "CONFIG_A=y\n# CONFIG_B is not set\nCONFIG_C=\"x\"\n";
        assert!(refused("# why\nCONFIG_A=y\nCONFIG_C=\"x\"\n", config).is_empty());
        assert_eq!(refused("CONFIG_A=y\nCONFIG_B=y\n", config), ["CONFIG_B=y"]);
    }

    #[test]
    fn every_option_stands_once_and_the_variants_differ_in_name() {
        for variant in [Variant::Fast, Variant::Full] {
            let options = variant.options();
            let mut names: Vec<&str> = options
                .lines()
                .filter(|line| line.starts_with("CONFIG_"))
                .map(|line| line.split('=').next().unwrap_or(line))
                .collect();
            let all = names.len();
            names.sort_unstable();
            names.dedup();
            assert_eq!(names.len(), all, "{variant:?}");
            assert!(options.contains(&format!("-husk-{}", variant.name())));
        }
        assert_ne!(origin("a.deb", Variant::Fast), origin("a.deb", Variant::Full));
    }
}
