//! Ordinary crates of the registry with tests of their own, for soaks only: husk runs these as cargo's runner.
//! Their sources stand in a workspace whose tests are built outside of the testbed, in which there is no
//! network, and where they stand: cargo takes what it has built for fresh there. Their versions are fixed.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::limited::{self, Errors};
use crate::{cache, cargo, deadline, host};

/// One works with files, the other with nothing but its memory.
const CRATES: [(&str, &str); 2] = [("tempfile", "3.27.0"), ("semver", "1.0.28")];
/// One of ours, whose tests know where they are.
const OURS: &str = "in-guest";
const IN_GUEST: &str = include_str!("../../../resources/in-guest.rs");
/// Without debugging information they are a tenth as large, and are read by many guests.
const PROFILE: &str = "[profile.dev]\ndebug = false\n";
/// No build of theirs takes so long, on a slow machine and with everything to fetch.
const LIMIT: Duration = Duration::from_secs(20 * 60);

/// Makes the workspace unless it is there, and builds what is not built in it.
pub fn get() -> Result<PathBuf> {
    let mut parts: Vec<&str> =
        CRATES.iter().flat_map(|(name, version)| [*name, *version]).collect();
    parts.extend([IN_GUEST, PROFILE]);
    let parts: Vec<&[u8]> = parts.into_iter().map(str::as_bytes).collect();
    let name = format!("crates-{}", cache::fingerprint(&parts));
    let dir = cache::guest_dir();
    let workspace = cache::entry(&dir, &name, fetch)?;
    cache::forget_others(&dir, "crates-", &[&name]);
    cargo_in(&workspace, &["test", "--no-run", "--quiet"])?;
    Ok(workspace)
}

/// Has cargo download them for a package that needs them, and makes a workspace of them.
fn fetch(fresh: &Path) -> Result<()> {
    host::say("fetching the crates whose tests are run in guests");
    let needs = fresh.with_extension("needs");
    cache::remove(&needs)?;
    let wanted: Vec<_> =
        CRATES.iter().map(|(name, version)| format!("{name} = \"={version}\"\n")).collect();
    let package = "[package]\nname = \"needs\"\nedition = \"2021\"\n[workspace]\n[dependencies]\n";
    write(&needs.join("src/lib.rs"), "")?;
    write(&needs.join("Cargo.toml"), &format!("{package}{}", wanted.concat()))?;
    let metadata = cargo_in(&needs, &["metadata", "--format-version", "1", "--quiet"])?;
    let metadata: Value = serde_json::from_str(&metadata).context("reading cargo's metadata")?;
    let names: Vec<_> = CRATES.iter().map(|(name, _)| *name).chain([OURS]).collect();
    write(
        &fresh.join("Cargo.toml"),
        &format!("[workspace]\nresolver = \"2\"\nmembers = {names:?}\n{PROFILE}"),
    )?;
    for (name, version) in CRATES {
        let from = source_of(&metadata, name, version)
            .with_context(|| format!("cargo brought no {name} {version}"))?;
        let to = fresh.join(name);
        host::output(host::command("cp").args(["--recursive", "-T"]).arg(from).arg(to))?;
    }
    let ours = fresh.join(OURS);
    write(
        &ours.join("Cargo.toml"),
        &format!("[package]\nname = \"{OURS}\"\nedition = \"2021\"\n"),
    )?;
    write(&ours.join("src/lib.rs"), "")?;
    write(&ours.join("tests/in_guest.rs"), IN_GUEST)?;
    cache::remove(&needs)
}

/// The directory of a package's sources.
fn source_of(metadata: &Value, name: &str, version: &str) -> Option<PathBuf> {
    let is = |package: &&Value| package["name"] == name && package["version"] == version;
    let package = metadata["packages"].as_array()?.iter().find(is)?;
    Some(Path::new(package["manifest_path"].as_str()?).parent()?.to_owned())
}

fn write(path: &Path, text: &str) -> Result<()> {
    let made = path.parent().map_or(Ok(()), fs::create_dir_all);
    made.and_then(|()| fs::write(path, text)).with_context(|| format!("writing {}", path.display()))
}

/// Runs cargo in `directory`, as `tests/soak_runner.rs` does: what is husk's own (the flags in its `.cargo`, a
/// directory for what is built) is not for them.
fn cargo_in(directory: &Path, args: &[&str]) -> Result<String> {
    let mut cargo = cargo::cargo();
    cargo.current_dir(directory).args(args);
    cargo.env("CARGO_TARGET_DIR", directory.join("target")).env("RUSTFLAGS", "--cap-lints=allow");
    let done = limited::run_with(&mut cargo, deadline::within(LIMIT), false, Errors::Ours)?;
    match done.status() {
        0 => Ok(done.text()),
        status => {
            bail!("`cargo {}` in {} ended with {status}", args.join(" "), directory.display())
        }
    }
}
