//! Why there is no comparison.

use std::io;
use std::path::PathBuf;

use crate::kernels::{NoKernel, UnpackFileError};

/// Why a comparison cannot be made. What is wrong with one contestant alone is no such reason: it is
/// left out, and the results say why.
#[derive(Debug, thiserror::Error)]
pub enum CompareError {
    /// A word that is none of those there are.
    #[error(
        "there is no {what} called {name:?}{}; there are {known}",
        .meant.map(|meant| format!("; did you mean {meant}?")).unwrap_or_default()
    )]
    Unknown {
        /// What it was to name.
        what: &'static str,
        /// The word.
        name: String,
        /// The one it is a typo of, perhaps.
        meant: Option<&'static str>,
        /// All there are.
        known: String,
    },
    /// A list or number that leaves nothing to do, or too much.
    #[error("{what} must be {range}, and is {value}")]
    Range {
        /// The option.
        what: &'static str,
        /// What it may be.
        range: &'static str,
        /// What it is.
        value: usize,
    },
    /// A contestant that was asked for by name is not installed.
    #[error("{name} is not on PATH: {package}")]
    NotInstalled {
        /// The contestant.
        name: &'static str,
        /// What brings it.
        package: &'static str,
    },
    /// VMs were asked for, and Linux does not boot in any here.
    #[error(
        "{vms} cannot be compared here: {why}. What needs no KVM can: `husk compare --with {}`. \
         For work on husk itself there is the testbed, see docs/compare.md",
        if .others.is_empty() { "process" } else { .others }
    )]
    NoLinux {
        /// The VMs that were asked for.
        vms: String,
        /// The examination's words.
        why: String,
        /// What could be compared.
        others: String,
    },
    /// No statically linked busybox.
    #[error(
        "the workload of all contestants is a statically linked busybox, and there is none on PATH{}: \
         `apt-get install busybox-static` brings it",
        .dynamic.as_ref().map(|path| format!(" ({} is linked dynamically)", path.display()))
            .unwrap_or_default()
    )]
    NoBusybox {
        /// One that is not.
        dynamic: Option<PathBuf>,
    },
    /// No python3 to give to all contestants.
    #[error(
        "the workload python takes this host's python3 for all contestants, and {}",
        .tried.as_ref().map_or_else(
            || "there is none: `apt-get install python3` brings it".to_owned(),
            |path| format!("{} does not run the workload (Python 3.8 or newer does)", path.display()),
        )
    )]
    NoPython {
        /// The one that does not do.
        tried: Option<PathBuf>,
    },
    /// No kernel for the VMs.
    #[error(transparent)]
    NoKernel(#[from] NoKernel),
    /// The kernel is not to be unpacked for those who want it so.
    #[error(transparent)]
    Unpack(#[from] UnpackFileError),
    /// The host would not.
    #[error("{what}: {source}")]
    Host {
        /// What was tried, with the path.
        what: String,
        /// Why not.
        r#source: io::Error,
    },
    /// Not one contestant does its work.
    #[error("nothing is left to compare: {}", .0.join("; "))]
    NobodyLeft(Vec<String>),
    /// Given up.
    #[error("given up; nothing of it is left behind")]
    Cancelled,
}

impl CompareError {
    /// For `map_err`: what was tried, when the host refuses.
    pub(super) fn host(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |source| Self::Host { what, source }
    }
}
