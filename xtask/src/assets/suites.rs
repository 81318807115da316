//! Suites that try a file system, from the registry of crates: for soaks only, each as one static program that
//! runs in any guest. Their versions are fixed, so that what fails tomorrow has not changed over night.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::{cache, cargo, host};

/// fsx: whatever can be done with a file's data, at random, and compared with what it should be.
pub fn fsx() -> Result<PathBuf> {
    get("fsx", "0.3.2")
}

/// pjdfstest: what POSIX promises of each system call that takes a path, and its errors.
pub fn pjdfstest() -> Result<PathBuf> {
    get("pjdfstest", "0.2.2")
}

/// Builds the program of that name, if it is not there.
fn get(name: &str, version: &str) -> Result<PathBuf> {
    let dir = cache::guest_dir();
    let file = format!("{name}-{version}");
    let made = cache::entry(&dir, &file, |fresh| {
        host::say(format!("building {name} {version}"));
        let root = fresh.with_extension("cargo");
        cache::remove(&root)?;
        cargo::install(name, version, &root)?;
        let built = root.join("bin").join(name);
        fs::rename(&built, fresh).with_context(|| format!("moving {}", built.display()))?;
        cache::remove(&root)
    })?;
    cache::forget_others(&dir, &format!("{name}-"), &[&file]);
    Ok(made)
}
