//! Compiles what runs inside guests, `guest/`, and leaves it where `src/guest/` embeds it.
//!
//! By rustc alone: the program uses `core` and nothing else, so that it needs neither registry nor
//! network, and cargo, which waits for this script, is not called from it.

use std::env;
use std::error::Error;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The most bytes that the program may have: it is part of every husk, and unpacked in every guest.
const SIZE_MAX: u64 = 100 << 10;

/// Compiles it.
pub fn compile() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=guest");
    let out = PathBuf::from(variable("OUT_DIR")?);
    let guest = PathBuf::from(variable("CARGO_MANIFEST_DIR")?).join("guest");

    let protocol = out.join("libhusk_guest_protocol.rlib");
    let mut rustc = rustc("husk_guest_protocol", &guest.join("protocol/src/lib.rs"), &protocol)?;
    run(rustc.args(["--crate-type", "rlib"]))?;

    let agent = out.join("husk-agent");
    let mut rustc = rustc_agent(&guest, &protocol, &agent)?;
    run(&mut rustc)?;
    let size = std::fs::metadata(&agent)?.len();
    if size > SIZE_MAX {
        return Err(format!("{} has {size} bytes; it may have {SIZE_MAX}", agent.display()).into());
    }
    Ok(())
}

fn rustc_agent(guest: &Path, protocol: &Path, agent: &Path) -> Result<Command, Box<dyn Error>> {
    let mut rustc = rustc("husk_agent", &guest.join("agent/src/lib.rs"), agent)?;
    let mut dependency = OsString::from("husk_guest_protocol=");
    dependency.push(protocol);
    rustc.args(["--crate-type", "bin", "--cfg", "husk_guest", "-C", "strip=symbols"]);
    rustc.arg("--extern").arg(dependency);
    // A program that the kernel can start as it is: no C library, no loader, nothing to relocate.
    rustc.args(["-C", "relocation-model=static", "-C", "target-feature=+crt-static"]);
    for argument in ["-nostartfiles", "-nodefaultlibs", "-static", "-no-pie", "-Wl,--build-id=none"]
    {
        rustc.arg("-C").arg(format!("link-arg={argument}"));
    }
    Ok(rustc)
}

fn rustc(name: &str, source: &Path, to: &Path) -> Result<Command, Box<dyn Error>> {
    let mut rustc = Command::new(variable("RUSTC")?);
    rustc.args(["--edition", "2024", "--crate-name", name, "--cap-lints", "allow"]);
    rustc.arg("--target").arg(variable("TARGET")?);
    rustc.args(["-C", "opt-level=s", "-C", "panic=abort", "-C", "codegen-units=1"]);
    rustc.args(["-C", "debuginfo=0", "-o"]).arg(to).arg(source);
    Ok(rustc)
}

fn variable(name: &str) -> Result<OsString, String> {
    env::var_os(name).ok_or_else(|| format!("cargo did not set {name}"))
}

fn run(command: &mut Command) -> Result<(), Box<dyn Error>> {
    let output = command.output().map_err(|e| format!("{command:?}: {e}"))?;
    if output.status.success() {
        return Ok(());
    }
    let words = String::from_utf8_lossy(&output.stderr);
    Err(format!("{command:?}: {}\n{words}", output.status).into())
}
