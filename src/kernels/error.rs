//! Why a fetch failed: what everything that takes part in one returns.

use std::io;
use std::path::{Path, PathBuf};

/// Why no kernel could be brought.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// Nowhere to put it.
    #[error("there is no directory for kernels: set HOME or XDG_DATA_HOME to an absolute path")]
    NoDirectory,
    /// Not a Debian.
    #[error(
        "`{0}` is not installed here, and `husk kernel fetch` works only with Debian's and \
         Ubuntu's packages; give a kernel with `husk run --kernel FILE`, or name one in $HUSK_KERNEL"
    )]
    NoTool(String),
    /// A distribution whose packages are not known.
    #[error(
        "this is neither Debian nor Ubuntu (by /etc/os-release): name its kernel package with \
         --package, or give a kernel with `husk run --kernel FILE`"
    )]
    UnknownDistribution,
    /// What can be no package's name.
    #[error(
        "`{0}` can be no package's name, which is lower-case letters, digits, `+`, `-` and `.`: name another \
         with --package"
    )]
    BadPackage(String),
    /// A package that does not exist.
    #[error("apt knows no package {package}; name another with --package")]
    NoPackage {
        /// What was asked for.
        package: String,
    },
    /// A package that does not lead to a kernel.
    #[error("the package {package} leads to no kernel image; name another with --package")]
    NoImage {
        /// What was asked for.
        package: String,
    },
    /// A package without a kernel in it.
    #[error("there is no boot/vmlinuz-… in {packages}; name another package with --package")]
    NoKernelInside {
        /// The packages.
        packages: String,
    },
    /// A link where a package of a kernel has directories: what it leads to is not the package's.
    #[error("{path} in {packages} is a link, which no kernel package has there; it is not used")]
    LinkInside {
        /// The packages.
        packages: String,
        /// Where in them.
        path: PathBuf,
    },
    /// A file that is called a kernel and is none.
    #[error("{path} in {packages} is no kernel: neither a bzImage nor an ELF file")]
    NotAKernel {
        /// The packages.
        packages: String,
        /// Where in them.
        path: PathBuf,
    },
    /// A tool failed.
    #[error(
        "`{command}` failed: {said}\nCheck the network and the sources in /etc/apt, or give a \
         kernel with `husk run --kernel FILE`"
    )]
    Tool {
        /// What was run.
        command: String,
        /// What it said.
        said: String,
    },
    /// The disk is full.
    #[error(
        "there is no room for it in {directory}: {said}\nMake room there, or set XDG_DATA_HOME to a \
         directory on another disk", directory = .directory.display()
    )]
    NoRoom {
        /// Where the kernels are.
        directory: PathBuf,
        /// What the tool said.
        said: String,
    },
    /// The caller gave up.
    #[error("interrupted; nothing was changed")]
    Cancelled,
    /// A file of husk's own directory.
    #[error("cannot {action} {path}: {source}", path = .path.display())]
    File {
        /// What was tried.
        action: &'static str,
        /// With what.
        path: PathBuf,
        /// Why not.
        r#source: io::Error,
    },
}

impl FetchError {
    /// This, or that there is no room in `directory`, which is where the tools write.
    pub(super) fn or_no_room(self, directory: &Path) -> Self {
        match self {
            Self::Tool { said, .. } if is_full(&said) => {
                Self::NoRoom { directory: directory.to_owned(), said }
            }
            other => other,
        }
    }

    pub(super) fn file(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::File { action, path: path.to_owned(), source }
    }
}

/// Whether what a tool said in English is that a disk is full: the system's words (ENOSPC, EDQUOT), or apt's own.
pub(super) fn is_full(said: &str) -> bool {
    ["No space left on device", "Disk quota exceeded", "enough free space"]
        .iter()
        .any(|words| said.contains(words))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_is_no_matter_of_the_network() {
        let error = |said: &str| {
            let (command, said) = ("apt-get download x".to_owned(), said.to_owned());
            FetchError::Tool { command, said }.or_no_room(Path::new("/kernels")).to_string()
        };
        let full = error("Failed to fetch x: write error (28: No space left on device)");
        assert!(full.starts_with("there is no room for it in /kernels: "), "{full}");
        assert!(full.contains("XDG_DATA_HOME") && !full.contains("network"), "{full}");
        assert!(error("You don't have enough free space in /kernels/.").contains("XDG_DATA_HOME"));
        assert!(error("Could not resolve host").contains("Check the network"));
    }
}
