//! What tests do on the host beside the guest: run its tools, hash, look at a process.

use std::ffi::OsStr;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};

/// Runs a program of the host's, which must end well, and gives its standard output.
#[track_caller]
pub fn host<S: AsRef<OsStr>>(program: &str, args: impl IntoIterator<Item = S>) -> String {
    let (status, output) = try_host(program, args);
    assert_eq!(status, 0, "{program}: {output}");
    output
}

/// Runs a program of the host's and gives its exit status and what it wrote.
#[track_caller]
pub fn try_host<S: AsRef<OsStr>>(
    program: &str,
    args: impl IntoIterator<Item = S>,
) -> (i32, String) {
    let mut command = Command::new(program);
    // The tools of a file system live where a user's PATH may not look.
    let path = std::env::var("PATH").unwrap_or_default();
    command.args(args).env("PATH", format!("{path}:/usr/sbin:/sbin"));
    let Output { status, stdout, stderr } =
        command.output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    let mut text = String::from_utf8_lossy(&stdout).into_owned();
    if !status.success() {
        text.push_str(&String::from_utf8_lossy(&stderr));
    }
    (status.code().unwrap_or(-1), text)
}

/// SHA-256 in hexadecimal. By the host's own program: it is built for speed, and a test is not.
pub fn sha256(bytes: &[u8]) -> String {
    let mut child = Command::new("sha256sum")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("sha256sum");
    child.stdin.take().unwrap().write_all(bytes).unwrap();
    let text = String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap();
    text.split_whitespace().next().unwrap().to_owned()
}

/// Makes an ext4 file system in the file `image`.
pub fn mkfs(image: &Path) {
    host("mkfs.ext4", [OsStr::new("-q"), OsStr::new("-F"), image.as_os_str()]);
}

/// Ends the test unless the file system in `image` is without a fault.
#[track_caller]
pub fn fsck(image: &Path) {
    host("fsck.ext4", [OsStr::new("-fn"), image.as_os_str()]);
}

/// The file `name` of the file system in `image`.
pub fn read_from(image: &Path, name: &str) -> Vec<u8> {
    let request = format!("cat {name}");
    let mut command = Command::new("debugfs");
    let path = std::env::var("PATH").unwrap_or_default();
    command.env("PATH", format!("{path}:/usr/sbin:/sbin"));
    command.args(["-R", &request]).arg(image).output().unwrap().stdout
}

/// Puts the file `from` into the file system in `image` as `name`, which is replaced.
#[track_caller]
pub fn write_into(image: &Path, from: &Path, name: &str, mode: u32) {
    let script =
        format!("rm {name}\nwrite {} {name}\nsif {name} mode 0100{mode:o}\n", from.display());
    let commands = from.with_extension("debugfs");
    std::fs::write(&commands, script).unwrap();
    host("debugfs", [OsStr::new("-w"), OsStr::new("-f"), commands.as_os_str(), image.as_os_str()]);
    assert_eq!(read_from(image, name), std::fs::read(from).unwrap(), "{name} is not there");
}

/// How many descriptors and threads a process has, without those the kernel adds for io_uring and
/// takes away again as it likes.
pub fn holdings(pid: u32) -> (usize, usize) {
    let entries = |what: &str| std::fs::read_dir(format!("/proc/{pid}/{what}")).unwrap();
    let threads = entries("task").filter(|task| {
        let name = task.as_ref().ok().and_then(|t| std::fs::read(t.path().join("comm")).ok());
        name.is_some_and(|name| !name.starts_with(b"iou-wrk"))
    });
    (entries("fd").count(), threads.count())
}
