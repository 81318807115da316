//! What xtask has cargo build, and where the results are.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::{cache, host};

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
    let husk = built.into_iter().find(|(name, _)| name == "husk");
    husk.map(|(_, path)| path).context("cargo built no executable called husk")
}

/// Builds the program `bin` of `package` for release and gives its path.
pub fn build_bin(package: &str, bin: &str) -> Result<PathBuf> {
    let built = executables(&["build", "--release", "--package", package, "--bin", bin])?;
    let found = built.into_iter().find(|(name, _)| name == bin);
    found.map(|(_, path)| path).with_context(|| format!("cargo built no executable called {bin}"))
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

/// Runs cargo with `args` and gives the executables it made, as (target name, path).
pub fn executables(args: &[&str]) -> Result<Vec<(String, PathBuf)>> {
    let out = cargo()
        .args(args)
        .arg("--message-format=json-render-diagnostics")
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .context("starting cargo")?;
    if !out.status.success() {
        bail!("`cargo {}` failed: {}", args.join(" "), out.status);
    }
    Ok(parse_artifacts(&String::from_utf8_lossy(&out.stdout)))
}

fn parse_artifacts(lines: &str) -> Vec<(String, PathBuf)> {
    let artifact = |line: &str| {
        let message: Value = serde_json::from_str(line).ok()?;
        let executable = message.get("executable")?.as_str()?;
        let name = message.get("target")?.get("name")?.as_str()?;
        Some((name.to_owned(), PathBuf::from(executable)))
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
{"reason":"compiler-artifact","target":{"name":"linux_boot"},"executable":"/t/linux_boot-1"}
{"reason":"build-finished","success":true}"#;
        assert_eq!(
            parse_artifacts(lines),
            [("linux_boot".to_owned(), PathBuf::from("/t/linux_boot-1"))]
        );
    }
}
