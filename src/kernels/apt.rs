//! The distribution's kernel packages, found and brought with apt's own tools and nothing else.
//!
//! `apt-cache depends` leads from a meta package to the real ones, `apt-get download` brings them
//! and checks them against the archive's signed lists, `dpkg-deb -x` unpacks them. Nothing is
//! installed, and nobody need be root: where the host's package lists are absent or old, lists of
//! our own are brought into the fetch's temporary directory.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde::{Deserialize, Serialize};

use super::error::{FetchError, is_full};
use super::tool::{Runner, find};

/// Which of the distribution's kernels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Flavour {
    /// The one for virtual machines: small, few drivers.
    #[default]
    Cloud,
    /// The one with drivers for everything.
    Generic,
}

/// The meta packages of a distribution whose `/etc/os-release` is `os_release`, best first; none
/// where its names are not known.
pub fn packages(os_release: &str, flavour: Flavour) -> &'static [&'static str] {
    let value = |key: &str| {
        let line = os_release.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
        line.unwrap_or_default().trim_matches(['"', '\'']).to_owned()
    };
    let like = value("ID_LIKE");
    let known = |name: &str| value("ID") == name || like.split(' ').any(|word| word == name);
    // Ubuntu's relatives say that they are like Debian too.
    match flavour {
        Flavour::Cloud if known("ubuntu") => &["linux-image-virtual", "linux-image-kvm"],
        Flavour::Generic if known("ubuntu") => &["linux-image-generic"],
        Flavour::Cloud if known("debian") => &["linux-image-cloud-amd64"],
        Flavour::Generic if known("debian") => &["linux-image-amd64"],
        _ => &[],
    }
}

/// Whether a package can be called that (Debian Policy §5.6.7), perhaps with an architecture (`name:amd64`).
pub fn is_name(package: &str) -> bool {
    let (name, architecture) = package.split_once(':').unwrap_or((package, "any"));
    let lower = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    name.len() >= 2
        && name.starts_with(lower)
        && name.chars().all(|c| lower(c) || matches!(c, '+' | '-' | '.'))
        && !architecture.is_empty()
        && architecture.chars().all(|c| lower(c) || c == '-')
}

/// What `apt-get download` would bring.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Archive {
    /// The file's name, with the package's version in it.
    pub file: String,
    /// Its length in bytes, where apt knows it.
    pub size: u64,
}

/// apt's tools, with the host's package lists or our own.
pub struct Apt {
    runner: Runner,
    options: Vec<String>,
}

impl Apt {
    /// With the host's package lists.
    ///
    /// # Errors
    /// When this host has no apt.
    pub fn host(runner: Runner) -> Result<Self, FetchError> {
        for tool in ["apt-get", "apt-cache", "dpkg-deb"] {
            find(tool).ok_or_else(|| FetchError::NoTool(tool.to_owned()))?;
        }
        let mut options = Vec::new();
        if crate::runtime::user() == 0 {
            // apt as root downloads as a user of its own, who may not write where we do, and warns.
            options.extend(["-o".to_owned(), "APT::Sandbox::User=root".to_owned()]);
        }
        Ok(Self { runner, options })
    }

    /// Brings package lists of our own into `directory` and uses them from now on.
    pub fn use_own_lists(&mut self, directory: &Path) -> Result<(), FetchError> {
        for (option, name) in [("Dir::State::Lists", "lists"), ("Dir::Cache", "cache")] {
            let path = directory.join(name);
            for part in ["partial", "archives/partial"] {
                let path = path.join(part);
                fs::create_dir_all(&path).map_err(FetchError::file("make", &path))?;
            }
            self.options.extend(["-o".to_owned(), format!("{option}={}", path.display())]);
        }
        // It also fails when one list of many, or a clean-up hook of root's, does; what counts is
        // whether the package is found afterwards.
        match self.run("apt-get", &["update", "-q"], directory) {
            Err(FetchError::Tool { said, .. }) if !is_full(&said) => Ok(()),
            other => other.map(drop),
        }
    }

    /// The real packages behind `package`: the image and, where they are apart, its modules.
    pub fn resolve(&self, package: &str) -> Result<Vec<String>, FetchError> {
        resolve(package, |package| self.depends(package))
    }

    fn depends(&self, package: &str) -> Result<Vec<String>, FetchError> {
        match self.run("apt-cache", &["depends", "--", package], Path::new("/")) {
            Ok(said) => Ok(dependencies(&said)),
            Err(FetchError::Tool { said, .. }) if said.contains("No packages found") => {
                Err(FetchError::NoPackage { package: package.to_owned() })
            }
            Err(e) => Err(e),
        }
    }

    /// The first dependency of `package` whose name begins with `prefix`.
    pub fn dependency(&self, package: &str, prefix: &str) -> Result<String, FetchError> {
        let absent = || FetchError::NoPackage { package: package.to_owned() };
        let found = self.depends(package)?.into_iter().find(|name| name.starts_with(prefix));
        found.ok_or_else(absent)
    }

    /// What downloading `packages` would bring.
    pub fn archives(&self, packages: &[String]) -> Result<Vec<Archive>, FetchError> {
        let mut arguments = vec!["download", "--print-uris", "-qq", "--"];
        arguments.extend(packages.iter().map(String::as_str));
        Ok(archives(&self.run("apt-get", &arguments, Path::new("/"))?))
    }

    /// Downloads `packages` into `directory`.
    pub fn download(&self, packages: &[String], directory: &Path) -> Result<(), FetchError> {
        let mut arguments = vec!["download", "-qq", "--"];
        arguments.extend(packages.iter().map(String::as_str));
        self.run("apt-get", &arguments, directory).map(drop)
    }

    /// Runs one of apt's tools and returns what it says. Its warnings are seen only if it fails.
    fn run(&self, tool: &str, arguments: &[&str], directory: &Path) -> Result<String, FetchError> {
        let mut command = Command::new(find(tool).unwrap_or_else(|| tool.into()));
        command.args(&self.options).args(arguments).current_dir(directory).env("LC_ALL", "C");
        self.runner.run(command, &format!("{tool} {}", arguments.join(" ")))
    }
}

/// Unpacks the package file at `archive` into `directory`.
pub fn extract(runner: &Runner, archive: &Path, directory: &Path) -> Result<(), FetchError> {
    let mut command = Command::new("dpkg-deb");
    command.arg("-x").args([archive, directory]);
    runner.run(command, &format!("dpkg-deb -x {}", archive.display())).map(drop)
}

/// Makes the index of the modules in `root`, which modprobe needs and packages leave to their
/// installation. `false` when this host has no depmod.
pub fn depmod(runner: &Runner, root: &Path, version: &str) -> Result<bool, FetchError> {
    let Some(tool) = find("depmod") else { return Ok(false) };
    let mut command = Command::new(tool);
    command.arg("-b").arg(root).arg(version);
    runner.run(command, &format!("depmod {version}")).map(|_| true)
}

/// Follows meta packages down to an image. `depends` answers with a package's dependencies.
fn resolve(
    package: &str,
    mut depends: impl FnMut(&str) -> Result<Vec<String>, FetchError>,
) -> Result<Vec<String>, FetchError> {
    /// linux-generic → linux-image-generic → linux-image-6.8.0-45-generic, and one to spare.
    const DEPTH: usize = 4;
    let mut image = package.to_owned();
    for _ in 0..DEPTH {
        let mut names = depends(&image)?.into_iter();
        if is_image(&image) {
            let modules = names.find(|name| is_versioned(name, "linux-modules-"));
            return Ok(std::iter::once(image).chain(modules).collect());
        }
        match names.find(|name| name.starts_with("linux-image-")) {
            Some(next) => image = next,
            // Perhaps a kernel packaged by other rules; what is in it will tell.
            None => return Ok(vec![image]),
        }
    }
    Err(FetchError::NoImage { package: package.to_owned() })
}

fn is_image(package: &str) -> bool {
    is_versioned(package, "linux-image-") || is_versioned(package, "linux-image-unsigned-")
}

fn is_versioned(package: &str, prefix: &str) -> bool {
    package.strip_prefix(prefix).is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
}

/// The packages that `apt-cache depends` lists as needed, alternatives included, virtual ones not.
fn dependencies(said: &str) -> Vec<String> {
    let needed = said.lines().filter_map(|line| {
        let line = line.trim_start().trim_start_matches('|');
        let name = line.strip_prefix("Depends: ").or_else(|| line.strip_prefix("PreDepends: "))?;
        let name = name.split(':').next().unwrap_or_default().trim();
        (!name.is_empty() && !name.starts_with('<')).then(|| name.to_owned())
    });
    needed.collect()
}

/// The archives in what `apt-get download --print-uris` says: `'URI' FILE SIZE HASH` a line.
fn archives(said: &str) -> Vec<Archive> {
    let lines = said.lines().filter(|line| line.starts_with('\''));
    let archives = lines.filter_map(|line| {
        let mut words = line.split_whitespace().skip(1);
        let file = words.next()?.to_owned();
        Some(Archive { file, size: words.next()?.parse().unwrap_or(0) })
    });
    archives.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_distribution_names_its_kernel_packages() {
        let debian = "PRETTY_NAME=\"Debian GNU/Linux 12\"\nID=debian\n";
        assert_eq!(packages(debian, Flavour::Cloud), ["linux-image-cloud-amd64"]);
        assert_eq!(packages(debian, Flavour::Generic), ["linux-image-amd64"]);
        let ubuntu = "ID=ubuntu\nID_LIKE=debian\n";
        assert_eq!(packages(ubuntu, Flavour::Cloud), ["linux-image-virtual", "linux-image-kvm"]);
        let mint = "ID=linuxmint\nID_LIKE=\"ubuntu debian\"\n";
        assert_eq!(packages(mint, Flavour::Generic), ["linux-image-generic"]);
        assert!(packages("ID=fedora\n", Flavour::Cloud).is_empty());
        assert!(packages("", Flavour::Cloud).is_empty());
    }

    #[test]
    fn what_can_be_no_package_is_known_by_its_name() {
        for right in ["linux-image-6.1.0-48-cloud-amd64", "g++", "linux-image-amd64:amd64"] {
            assert!(is_name(right), "{right}");
        }
        for wrong in
            ["", "x", "Linux", "-o", "a b", "../x", "linux-image*", "x y\n", "ab:", "ab:c:d"]
        {
            assert!(!is_name(wrong), "{wrong:?}");
        }
    }

    #[test]
    fn dependencies_are_read_from_what_apt_cache_prints() {
        let said = "linux-image-6.1.0-51-cloud-amd64\n  \
                    PreDepends: dpkg\n  Depends: kmod\n  Depends: linux-base:any\n \
                    |Depends: initramfs-tools\n  Depends: <linux-initramfs-tool>\n    dracut\n  \
                    Conflicts: <linux-image-x>\n  Breaks: fwupdate\n  Recommends: apparmor\n";
        assert_eq!(dependencies(said), ["dpkg", "kmod", "linux-base", "initramfs-tools"]);
        assert!(dependencies("").is_empty());
    }

    fn resolved(package: &str, tree: &[(&str, &[&str])]) -> Result<Vec<String>, FetchError> {
        resolve(package, |package| {
            let found = tree.iter().find(|(name, _)| *name == package);
            Ok(found.iter().flat_map(|(_, needs)| needs.iter().map(|n| (*n).to_owned())).collect())
        })
    }

    #[test]
    fn a_meta_package_leads_to_its_image_and_the_modules_beside_it() {
        let debian: &[(&str, &[&str])] = &[
            ("linux-image-cloud-amd64", &["linux-image-6.1.0-56-cloud-amd64"]),
            ("linux-image-6.1.0-56-cloud-amd64", &["kmod", "linux-base"]),
        ];
        let image = ["linux-image-6.1.0-56-cloud-amd64"];
        assert_eq!(resolved("linux-image-cloud-amd64", debian).unwrap(), image);
        assert_eq!(resolved("linux-image-6.1.0-56-cloud-amd64", debian).unwrap(), image);
        let ubuntu: &[(&str, &[&str])] = &[
            ("linux-virtual", &["linux-image-virtual", "linux-headers-virtual"]),
            ("linux-image-virtual", &["linux-image-6.8.0-45-generic"]),
            ("linux-image-6.8.0-45-generic", &["kmod", "linux-modules-6.8.0-45-generic"]),
        ];
        let both = ["linux-image-6.8.0-45-generic", "linux-modules-6.8.0-45-generic"];
        assert_eq!(resolved("linux-virtual", ubuntu).unwrap(), both);
    }

    #[test]
    fn packages_that_lead_nowhere_end() {
        assert_eq!(resolved("my-kernel", &[]).unwrap(), ["my-kernel"]);
        let circle: &[(&str, &[&str])] = &[("linux-image-a", &["linux-image-a"])];
        assert!(matches!(resolved("linux-image-a", circle), Err(FetchError::NoImage { .. })));
    }

    #[test]
    fn archives_are_read_from_apts_uris() {
        let said = "W: some warning\n'http://deb.debian.org/pool/x_6.1.192-2_amd64.deb' \
                    x_6.1.192-2_amd64.deb 26713492 SHA256:e7d0\n";
        let expected = Archive { file: "x_6.1.192-2_amd64.deb".to_owned(), size: 26_713_492 };
        assert_eq!(archives(said), [expected]);
    }
}
