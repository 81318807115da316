//! `husk run` of a command, from outside.

use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use super::{Lab, MODULES_CLOUD, VMLINUZ_CLOUD, husk, kernel_cache};

/// The kernel's modules, where husk does not find them by itself: it is a copy then.
pub fn modules(lab: &Lab) -> Option<PathBuf> {
    Some(lab.asset(MODULES_CLOUD)).filter(|modules| modules.is_dir())
}

/// A `husk run` of the cloud kernel with these options.
pub fn cli(lab: &Lab, args: &[&str]) -> Command {
    let mut command = Command::new(husk());
    super::process::with_ordinary_signals(&mut command);
    command.env("XDG_CACHE_HOME", kernel_cache()).env("XDG_DATA_HOME", lab.path("data"));
    command.arg("run").arg("--kernel").arg(lab.asset(VMLINUZ_CLOUD));
    if let Some(modules) = modules(lab).filter(|_| !args.contains(&"--modules")) {
        command.arg("--modules").arg(modules);
    }
    command.args(args);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Runs it with this input: its exit status, and what it wrote to both.
pub fn finish(mut command: Command, input: &[u8]) -> (i32, String, String) {
    let mut child = command.spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(input).unwrap();
    drop(stdin);
    let output = child.wait_with_output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (super::process::status(output.status), text(&output.stdout), text(&output.stderr))
}
