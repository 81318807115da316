//! What xtask has cargo build, and where the results are.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::limited::{self, Ended, Errors};
use crate::{cache, deadline, host};

/// The same cargo that runs us, in the workspace.
pub fn cargo() -> Command {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(cache::workspace());
    cargo
}

/// Builds the husk binary for release and gives its path.
pub fn build_husk() -> Result<PathBuf> {
    host::say("building husk (cargo build --release)");
    let built = executables(&["build", "--release", "--package", "husk-vmm", "--bin", "husk"])?;
    let husk = built.into_iter().find(|built| built.name == "husk");
    husk.map(|husk| husk.path).context("cargo built no executable called husk")
}

/// Builds the program `bin` of `package` for release and gives its path.
pub fn build_bin(package: &str, bin: &str) -> Result<PathBuf> {
    let built = executables(&["build", "--release", "--package", package, "--bin", bin])?;
    let found = built.into_iter().find(|built| built.name == bin);
    found.map(|found| found.path).with_context(|| format!("cargo built no executable called {bin}"))
}

/// Compiles the one file `source`, which uses only std, to a static executable at `to`: it runs
/// where there is no library at all. The C library's static half comes with what links Rust programs.
pub fn static_program(source: &Path, to: &Path) -> Result<()> {
    let mut rustc = host::command(std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()));
    rustc.args([
        "--edition",
        "2024",
        "--crate-name",
        "program",
        "-C",
        "target-feature=+crt-static",
    ]);
    rustc.args(["-C", "opt-level=s", "-C", "panic=abort", "-C", "strip=symbols", "-o"]);
    host::output(rustc.arg(to).arg(source)).map(drop).with_context(|| {
        format!(
            "linking {} statically; run `apt-get install -y gcc libc6-dev` as root",
            source.display()
        )
    })
}

/// Installs the one program of a crate of the registry, linked statically, as `ROOT/bin/NAME`.
pub fn install(name: &str, version: &str, root: &Path) -> Result<()> {
    let mut cargo = cargo();
    cargo.args(["install", "--quiet", "--locked", &format!("{name}@{version}")]);
    // With the target's name, or it would hit proc macros; the workspace's configuration is not for this.
    cargo.args(["--target", "x86_64-unknown-linux-gnu"]);
    cargo.arg("--root").arg(root).arg("--target-dir").arg(root.join("target"));
    cargo.env("RUSTFLAGS", "-Ctarget-feature=+crt-static");
    let done = limited::run(&mut cargo, deadline::within(BUILD_LIMIT), false)?;
    match done.status() {
        0 => Ok(()),
        status => bail!("`cargo install {name}@{version}` ended with {status}: {}", done.text()),
    }
}

/// No build takes so long, a first one on a slow machine with everything to fetch included.
const BUILD_LIMIT: Duration = Duration::from_secs(40 * 60);

/// Runs cargo with `args`, which build or check and start nothing that was built; what it prints
/// goes to our standard error, or is the result.
pub fn build(args: &[&str]) -> Result<String> {
    let limit = deadline::within(BUILD_LIMIT);
    let done = limited::run_with(cargo().args(args), limit, false, Errors::Ours)?;
    match done.ended {
        Ended::With(status) if status.success() => Ok(done.text()),
        Ended::With(status) => bail!("`cargo {}` failed: {status}", args.join(" ")),
        Ended::TimedOut => {
            bail!("`cargo {}` was not done after {}", args.join(" "), deadline::shown(limit))
        }
    }
}

/// An executable that cargo made.
#[derive(Debug, PartialEq, Eq)]
pub struct Executable {
    /// The name of its target.
    pub name: String,
    pub path: PathBuf,
    /// Its package's directory, where cargo would start a test.
    pub package: PathBuf,
    /// Whether it runs tests, and is not the program that is tested.
    pub is_test: bool,
}

/// Runs cargo with `args` and gives the executables it made.
pub fn executables(args: &[&str]) -> Result<Vec<Executable>> {
    let args = [args, &["--message-format=json-render-diagnostics"]].concat();
    Ok(parse_artifacts(&build(&args)?))
}

fn parse_artifacts(lines: &str) -> Vec<Executable> {
    let artifact = |line: &str| {
        let message: Value = serde_json::from_str(line).ok()?;
        let path = PathBuf::from(message.get("executable")?.as_str()?);
        let name = message.get("target")?.get("name")?.as_str()?.to_owned();
        let manifest = Path::new(message.get("manifest_path")?.as_str()?);
        let is_test = message.get("profile")?.get("test")?.as_bool()?;
        Some(Executable { name, path, package: manifest.parent()?.to_owned(), is_test })
    };
    lines.lines().filter_map(artifact).collect()
}

/// The names of all integration tests of the workspace.
pub fn integration_tests() -> Result<Vec<String>> {
    let metadata =
        host::text(cargo().args(["metadata", "--no-deps", "--format-version", "1", "--quiet"]))?;
    let metadata: Value = serde_json::from_str(&metadata).context("reading cargo's metadata")?;
    let list = |value: &Value, key: &str| -> Vec<Value> {
        value.get(key).and_then(Value::as_array).cloned().unwrap_or_default()
    };
    let targets = list(&metadata, "packages").into_iter().flat_map(|p| list(&p, "targets"));
    let tests = targets.filter(|t| list(t, "kind").iter().any(|kind| kind == "test"));
    Ok(tests.filter_map(|t| Some(t.get("name")?.as_str()?.to_owned())).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn executables_are_found_among_cargos_messages() {
        let lines = r#"{"reason":"compiler-artifact","target":{"name":"husk"},"executable":null}
not json
{"executable":"/t/linux_boot-1","target":{"name":"linux_boot"},"manifest_path":"/w/Cargo.toml","profile":{"test":true}}
{"reason":"build-finished","success":true}"#;
        let wanted = Executable {
            name: "linux_boot".to_owned(),
            path: "/t/linux_boot-1".into(),
            package: "/w".into(),
            is_test: true,
        };
        assert_eq!(parse_artifacts(lines), [wanted]);
    }
}
