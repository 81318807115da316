//! One job of the testbed: the directory shared with `resources/testbed-enter.sh` inside, which
//! says what the files in it mean.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result, bail};

use super::Options;
use crate::{cache, host};

const ENTER: &str = include_str!("../../../resources/testbed-enter.sh");

/// What of the environment outside is also seen inside, beside every variable `HUSK_…`.
const PASSED: &[&str] = &[
    "HOME",
    "USER",
    "LOGNAME",
    "TERM",
    "LANG",
    "LC_ALL",
    "TZ",
    "CARGO_HOME",
    "RUSTUP_HOME",
    "RUSTUP_TOOLCHAIN",
    "CARGO_TARGET_DIR",
    "RUST_BACKTRACE",
    "RUST_LOG",
];

/// A job's directory; it is removed when this is dropped.
pub struct Job {
    dir: PathBuf,
    /// What testbed-enter.sh writes at the end of each output stream.
    pub end: Vec<u8>,
}

impl Job {
    /// Writes down what is to be run. `window` is the terminal's size, if it runs on one.
    pub fn new(options: &Options, results: &Path, window: Option<(u16, u16)>) -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let runs = cache::testbed_dir().join("runs");
        sweep(&runs);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let dir = runs.join(format!("{}-{number}", std::process::id()));
        fs::create_dir_all(&dir).with_context(|| format!("making {}", dir.display()))?;
        let nonce = fs::read("/proc/sys/kernel/random/uuid").unwrap_or_default();
        let mut end = b"\x02husk-testbed-end ".to_vec();
        end.extend(nonce.trim_ascii());
        end.push(3);
        let job = Self { dir, end };
        job.write("end", &job.end)?;
        job.write("enter", ENTER.as_bytes())?;
        job.write("results", results.as_os_str().as_bytes())?;
        job.write("command", &script(options, results)?)?;
        if let Some(window) = window {
            job.write("tty", b"")?;
            job.set_window(window)?;
        }
        Ok(job)
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The serial console of the outer machine goes here.
    pub fn console(&self) -> PathBuf {
        self.dir.join("console.log")
    }

    pub fn set_window(&self, (rows, columns): (u16, u16)) -> Result<()> {
        self.write("winsize", format!("{rows} {columns}\n").as_bytes())
    }

    /// The heartbeat, as written last.
    pub fn heartbeat(&self) -> Vec<u8> {
        fs::read(self.dir.join("heartbeat")).unwrap_or_default()
    }

    /// The command's exit status, once it has one.
    pub fn status(&self) -> Option<u8> {
        fs::read_to_string(self.dir.join("status")).ok()?.trim().parse().ok()
    }

    /// The last lines of the outer machine's serial console.
    pub fn console_tail(&self, lines: usize) -> String {
        let bytes = fs::read(self.console()).unwrap_or_default();
        let text = String::from_utf8_lossy(&bytes);
        let all: Vec<&str> = text.lines().collect();
        all.get(all.len().saturating_sub(lines)..).unwrap_or_default().join("\n")
    }

    fn write(&self, name: &str, data: &[u8]) -> Result<()> {
        let path = self.dir.join(name);
        fs::write(&path, data).with_context(|| format!("writing {}", path.display()))
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        // What is left behind is swept by the next run.
        let _ = fs::remove_dir_all(&self.dir);
    }
}

/// Removes the directories of runs whose process is gone.
fn sweep(runs: &Path) {
    for entry in fs::read_dir(runs).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        let process = name.split('-').next().unwrap_or_default();
        if !Path::new("/proc").join(process).exists() {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

/// The shell script that becomes the command: changes directory, sets the environment, execs.
fn script(options: &Options, results: &Path) -> Result<Vec<u8>> {
    if options.command.is_empty() {
        bail!("no command given to run in the testbed");
    }
    let mut script = b"cd ".to_vec();
    script.extend(quote(options.directory.as_os_str()));
    script.extend(b" || exit 126\nexec /usr/bin/env -i");
    for (name, value) in environment(options, results) {
        let mut word = name;
        word.push("=");
        word.push(value);
        script.push(b' ');
        script.extend(quote(&word));
    }
    for word in &options.command {
        script.push(b' ');
        script.extend(quote(word));
    }
    script.push(b'\n');
    Ok(script)
}

fn environment(options: &Options, results: &Path) -> Vec<(OsString, OsString)> {
    let mut all: Vec<(OsString, OsString)> = std::env::vars_os()
        .filter(|(name, _)| {
            PASSED.iter().any(|p| name == p) || name.as_bytes().starts_with(b"HUSK_")
        })
        .collect();
    all.push(("PATH".into(), host::path_with_sbin()));
    all.push(("HUSK_TESTBED".into(), "1".into()));
    all.push(("HUSK_RESULTS".into(), results.into()));
    all.extend(options.env.iter().cloned());
    all
}

/// `word` as a shell reads it back unchanged.
fn quote(word: &OsStr) -> Vec<u8> {
    let mut quoted = vec![b'\''];
    for &byte in word.as_bytes() {
        match byte {
            b'\'' => quoted.extend(b"'\\''"),
            _ => quoted.push(byte),
        }
    }
    quoted.push(b'\'');
    quoted
}

/// `NAME=VALUE` from the command line.
pub fn parse_env(word: &OsStr) -> Result<(OsString, OsString), String> {
    let bytes = word.as_bytes();
    match bytes.iter().position(|&b| b == b'=') {
        Some(at) if at > 0 => {
            let (name, value) = bytes.split_at(at);
            let value = value.get(1..).unwrap_or_default();
            Ok((OsString::from_vec(name.to_vec()), OsString::from_vec(value.to_vec())))
        }
        _ => Err("wanted NAME=VALUE".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn a_shell_reads_quoted_words_back_unchanged() {
        for word in ["", "a b", "it's", "$HOME `id` \"x\" \\ \n*", "ü\u{1}"] {
            let mut script = b"printf %s ".to_vec();
            script.extend(quote(OsStr::new(word)));
            let out = Command::new("sh").arg("-c").arg(OsStr::from_bytes(&script)).output();
            assert_eq!(out.unwrap().stdout, word.as_bytes());
        }
    }

    #[test]
    fn the_environment_argument_is_split_at_its_first_equals_sign() {
        let pair = parse_env(OsStr::new("A=b=c")).unwrap();
        assert_eq!(pair, ("A".into(), "b=c".into()));
        assert!(parse_env(OsStr::new("=x")).is_err());
        assert!(parse_env(OsStr::new("x")).is_err());
    }
}
