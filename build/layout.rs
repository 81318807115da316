//! Tells the linker where the code stands that runs as long as a VM runs, see
//! `resources/link/resident.ld`. Only for what is released, and only if the linker at hand can do it:
//! without it husk is the same but for half a megabyte or more of memory for each VM.

use std::env;
use std::path::Path;
use std::process::{Command, Stdio};

const SCRIPT: &str = "resources/link/resident.ld";

/// Tells it.
pub fn arrange() {
    println!("cargo::rerun-if-changed={SCRIPT}");
    if variable("PROFILE") != "release" {
        return;
    }
    let script = Path::new(&variable("CARGO_MANIFEST_DIR")).join(SCRIPT);
    let argument = format!("-Wl,-T,{}", script.display());
    if links_with(&argument) {
        println!("cargo::rustc-link-arg-bin=husk={argument}");
    }
}

/// Whether a program can be linked with `argument`, as this package's are going to be.
fn links_with(argument: &str) -> bool {
    let directory = variable("OUT_DIR");
    let source = Path::new(&directory).join("probe.rs");
    if std::fs::write(&source, "fn main() {}\n").is_err() {
        return false;
    }
    let mut rustc = Command::new(variable("RUSTC"));
    rustc.arg(&source).arg("-o").arg(source.with_extension("out"));
    rustc.args(["--target", &variable("TARGET"), &format!("-Clink-arg={argument}")]);
    let flags = variable("CARGO_ENCODED_RUSTFLAGS");
    rustc.args(flags.split('\x1f').filter(|flag| !flag.is_empty()));
    if let Ok(linker) = env::var("RUSTC_LINKER") {
        rustc.arg(format!("-Clinker={linker}"));
    }
    let status = rustc.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status();
    status.is_ok_and(|status| status.success())
}

/// What cargo says; nothing if it says nothing.
fn variable(name: &str) -> String {
    env::var(name).unwrap_or_default()
}
