//! The machine xtask runs on: its tools, run with errors that name them, and its memory. Nothing
//! here is assumed present; what is missing comes from [`crate::apt`].

use std::ffi::OsString;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::deadline;
use crate::limited::{self, Ended, Errors};

/// Tools live in these too, though a user's PATH often leaves them out.
const SBIN: &str = "/usr/local/sbin:/usr/sbin:/sbin";

/// Prints a progress line: what is being done now.
pub fn say(what: impl std::fmt::Display) {
    let what = what.to_string();
    deadline::doing(&what);
    eprintln!("xtask: {what}");
}

/// PATH with the system directories appended.
pub fn path_with_sbin() -> OsString {
    let mut path = std::env::var_os("PATH").unwrap_or_else(|| "/usr/bin:/bin".into());
    path.push(":");
    path.push(SBIN);
    path
}

/// A command that is also found in the system directories.
pub fn command(program: impl AsRef<std::ffi::OsStr>) -> Command {
    let mut command = Command::new(program);
    command.env("PATH", path_with_sbin());
    command
}

/// No tool takes so long unless it hangs: packages are fetched over slow networks too.
const TOOL_LIMIT: Duration = Duration::from_secs(20 * 60);

/// Runs `command`, standard input empty, and gives its standard output; when it fails, or takes
/// longer than any tool may, the error carries its last words.
pub fn output(command: &mut Command) -> Result<Vec<u8>> {
    let limit = deadline::within(TOOL_LIMIT);
    let done = limited::run_with(command, limit, false, Errors::Apart)
        .map_err(|error| not_started(command, error))?;
    let how = match done.ended {
        Ended::With(status) if status.success() => return Ok(done.output),
        Ended::With(status) => format!("failed: {status}"),
        Ended::TimedOut => format!("was not done after {}", deadline::shown(limit)),
    };
    let words = String::from_utf8_lossy(&done.errors);
    let tail: Vec<&str> = words.trim_end().lines().rev().take(12).collect();
    let tail: Vec<&str> = tail.into_iter().rev().collect();
    bail!("`{}` {how}\n{}", shown(command), tail.join("\n"));
}

/// As [`output`], as text.
pub fn text(command: &mut Command) -> Result<String> {
    Ok(String::from_utf8_lossy(&output(command)?).into_owned())
}

fn not_started(command: &Command, error: anyhow::Error) -> anyhow::Error {
    let kind = error.downcast_ref::<std::io::Error>().map(std::io::Error::kind);
    if kind == Some(ErrorKind::NotFound) {
        let name = command.get_program().to_string_lossy();
        return anyhow::anyhow!("the command `{name}` is not installed here (not found in PATH)");
    }
    error
}

fn shown(command: &Command) -> String {
    let mut words = vec![command.get_program().to_string_lossy().into_owned()];
    words.extend(command.get_args().map(|a| a.to_string_lossy().into_owned()));
    words.join(" ")
}

/// Where `tool` is, if it is installed.
pub fn find(tool: &str) -> Option<PathBuf> {
    std::env::split_paths(&path_with_sbin()).map(|d| d.join(tool)).find(|p| is_executable(p))
}

fn is_executable(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    path.metadata().is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0)
}

/// A path as an argument.
pub fn arg(path: &Path) -> String {
    path.display().to_string()
}

/// True when this process may install packages and make TAP devices.
pub fn is_root() -> bool {
    // SAFETY: geteuid takes nothing and cannot fail.
    unsafe { libc::geteuid() == 0 }
}

/// Memory available on this machine now, in MiB.
pub fn available_memory_mib() -> Result<u64> {
    let info = std::fs::read_to_string("/proc/meminfo").context("reading /proc/meminfo")?;
    info.lines()
        .find_map(|l| l.strip_prefix("MemAvailable:"))
        .and_then(|l| l.split_whitespace().next())
        .and_then(|n| n.parse::<u64>().ok())
        .map(|kib| kib / 1024)
        .context("/proc/meminfo has no MemAvailable line")
}
