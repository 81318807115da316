//! Kernels that husk brings by itself, with `husk kernel fetch` and `husk kernel build`: for soaks only, and made
//! outside of the testbed, in which there is no network. Each is a data directory, as husk has it in
//! `~/.local/share`. That there is none for want of a network or of tools is no failure of husk's.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::{BUILT, BUILT_FULL, FETCHED};
use crate::limited::{self, Ended, Errors};
use crate::{apt, cache, deadline, host};

/// By what a kernel is built; see `husk kernel build`.
const TOOLS: &[(&str, &str)] = &[
    ("make", "make"),
    ("gcc", "gcc"),
    ("flex", "flex"),
    ("bison", "bison"),
    ("bc", "bc"),
    ("perl", "perl"),
    ("xz", "xz-utils"),
];
/// A header, which is not found as tools are, and its package.
const ELF_HEADER: (&str, &str) = ("/usr/include/gelf.h", "libelf-dev");
/// Kernels that are built: by which name of husk's, and what each is made of.
const VARIANTS: [(&str, [&[u8]; 2]); 2] = [
    ("fast", [COMMON, include_bytes!("../../../resources/kernel/fast.config")]),
    ("full", [COMMON, include_bytes!("../../../resources/kernel/full.config")]),
];
const COMMON: &[u8] = include_bytes!("../../../resources/kernel/common.config");
/// A small package, for trying whether there is a network.
const SMALL: &str = "busybox-static";
/// No fetch takes so long, nor a build on a slow machine.
const LIMITS: (Duration, Duration) = (Duration::from_secs(20 * 60), Duration::from_secs(90 * 60));

/// What could be had.
#[derive(Default)]
pub struct Brought {
    pub links: Vec<(&'static str, PathBuf)>,
    /// What could not, for want of what husk cannot be blamed for.
    pub missing: Vec<String>,
    /// What should have been had.
    pub problems: Vec<String>,
}

/// Has `husk` fetch a kernel, each time anew, and build one of each variant, unless that is there.
pub fn all(husk: &Path) -> Brought {
    let mut brought = Brought::default();
    let built = [BUILT, BUILT_FULL].into_iter().zip(VARIANTS).map(|(name, (variant, options))| {
        let command = format!("husk kernel build --variant {variant}");
        (name, command, built(husk, variant, &options))
    });
    let fetched = (FETCHED, "husk kernel fetch".to_owned(), fetched(husk));
    for (name, command, made) in std::iter::once(fetched).chain(built) {
        match made {
            Ok(Ok(directory)) => brought.links.push((name, directory)),
            Ok(Err(why)) => {
                host::say(format!("tests of what `{command}` brings will be skipped: {why}"));
                brought.missing.push(name.to_owned());
            }
            Err(error) => {
                brought.missing.push(name.to_owned());
                brought.problems.push(format!("`{command}`: {error:#}"));
            }
        }
    }
    brought
}

/// A directory, or why none can be expected.
type Made = Result<std::result::Result<PathBuf, String>>;

fn fetched(husk: &Path) -> Made {
    let directory = cache::target_dir().join("soak").join(FETCHED);
    cache::remove(&directory)?;
    host::say("having husk fetch the distribution's kernel (husk kernel fetch)");
    match call(husk, &["kernel", "fetch"], &directory, LIMITS.0) {
        Ok(()) => Ok(Ok(directory)),
        Err(error) => Ok(Err(offline(error)?)),
    }
}

fn built(husk: &Path, variant: &str, options: &[&[u8]]) -> Made {
    let prefix = format!("husk-{variant}-");
    let name = format!("{prefix}{}", cache::fingerprint(options));
    let guests = cache::guest_dir();
    if !guests.join(&name).exists()
        && let Err(error) = tools()
    {
        return Ok(Err(format!("{error:#}")));
    }
    let made = cache::entry(&guests, &name, |fresh| {
        host::say(format!(
            "having husk build a kernel (husk kernel build --variant {variant}), which takes 10 to 30 \
             minutes"
        ));
        call(husk, &["kernel", "build", "--variant", variant], fresh, LIMITS.1)
    });
    match made {
        Ok(directory) => {
            cache::forget_others(&guests, &prefix, &[&name]);
            Ok(Ok(directory))
        }
        Err(error) => Ok(Err(offline(error)?)),
    }
}

fn tools() -> Result<()> {
    let mut needed = TOOLS.to_vec();
    if !Path::new(ELF_HEADER.0).exists() {
        needed.push(ELF_HEADER);
    }
    apt::need(&needed)
}

/// Runs husk with `directory` for its data.
fn call(husk: &Path, args: &[&str], directory: &Path, limit: Duration) -> Result<()> {
    std::fs::create_dir_all(directory)
        .with_context(|| format!("making {}", directory.display()))?;
    let mut command = host::command(husk);
    command.args(args).env("XDG_DATA_HOME", directory);
    let limit = deadline::within(limit);
    let done = limited::run_with(&mut command, limit, true, Errors::Joined)?;
    match done.ended {
        Ended::With(status) if status.success() => Ok(()),
        Ended::With(status) => bail!("it failed: {status}"),
        Ended::TimedOut => bail!("it was not done after {}", deadline::shown(limit)),
    }
}

/// That there is no network, if so: husk failed with `error`, and apt by our own hand fails as well.
fn offline(error: anyhow::Error) -> Result<String> {
    let directory = cache::target_dir().join("soak").join("try");
    cache::remove(&directory)?;
    let tried = apt::unpack(SMALL, &directory);
    cache::remove(&directory)?;
    match tried {
        Ok(()) => Err(error),
        Err(ours) => Ok(format!("apt has no network here: {ours:#}")),
    }
}
