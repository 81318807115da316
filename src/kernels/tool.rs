//! Running the tools a fetch needs, so that it can be given up at any moment.

use std::io;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

use super::error::FetchError;

/// How soon a running tool is ended after its fetch was given up.
const TICK: Duration = Duration::from_millis(50);

/// Runs tools until the fetch is given up.
#[derive(Debug, Clone, Default)]
pub struct Runner {
    cancel: Arc<AtomicBool>,
}

impl Runner {
    /// One that is given up when `cancel` becomes true.
    pub fn new(cancel: Arc<AtomicBool>) -> Self {
        Self { cancel }
    }

    /// An error once the fetch was given up.
    pub fn check(&self) -> Result<(), FetchError> {
        match self.cancel.load(Ordering::Acquire) {
            true => Err(FetchError::Cancelled),
            false => Ok(()),
        }
    }

    /// Runs `command` to its end and returns its standard output. `shown` names it in an error.
    pub fn run(&self, mut command: Command, shown: &str) -> Result<String, FetchError> {
        self.check()?;
        let failed = |said| FetchError::Tool { command: shown.to_owned(), said };
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let child = command.spawn().map_err(|e| match e.kind() {
            io::ErrorKind::NotFound => {
                FetchError::NoTool(command.get_program().to_string_lossy().into_owned())
            }
            _ => failed(e.to_string()),
        })?;
        let pid = libc::pid_t::try_from(child.id()).unwrap_or_default();
        let (sender, ended) = mpsc::channel();
        let output: io::Result<Output> = std::thread::scope(|scope| {
            // A receiver that is gone has no use for it.
            scope.spawn(move || drop(sender.send(child.wait_with_output())));
            loop {
                match ended.recv_timeout(TICK) {
                    Ok(output) => break output,
                    Err(RecvTimeoutError::Timeout) if self.check().is_ok() => {}
                    Err(RecvTimeoutError::Timeout) => {
                        // SAFETY: a signal to our own child; no memory is involved. It may have
                        // ended this moment, but its number is not given away so soon.
                        unsafe { libc::kill(pid, libc::SIGTERM) };
                    }
                    Err(RecvTimeoutError::Disconnected) => {
                        break Err(io::Error::other("its thread ended"));
                    }
                }
            }
        });
        let output = output.map_err(|e| failed(e.to_string()))?;
        self.check()?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        // Ctrl-C at a terminal ends the tool as well, and perhaps before we hear of it.
        let asked = [libc::SIGINT, libc::SIGTERM, libc::SIGHUP, libc::SIGQUIT];
        if output.status.signal().is_some_and(|signal| asked.contains(&signal)) {
            return Err(FetchError::Cancelled);
        }
        let said = errors(&String::from_utf8_lossy(&output.stderr));
        Err(failed(if said.is_empty() { output.status.to_string() } else { said }))
    }
}

/// The lines that matter of what a failed tool wrote to stderr: apt's errors, else the last lines.
fn errors(stderr: &str) -> String {
    let lines = || stderr.lines().map(str::trim).filter(|line| !line.is_empty());
    let mut worth: Vec<&str> = lines().filter_map(|line| line.strip_prefix("E: ")).collect();
    if worth.is_empty() {
        worth = lines().collect();
    }
    let last = worth.len().saturating_sub(3);
    worth.split_off(last).join("; ")
}

/// Where `tool` is. A user's PATH often lacks the directories in which Debian has depmod.
pub fn find(tool: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let usual = (tool == "depmod").then_some(["/usr/sbin", "/sbin"].map(PathBuf::from));
    std::env::split_paths(&path)
        .chain(usual.into_iter().flatten())
        .map(|directory| directory.join(tool))
        .find(|path| path.is_file())
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn what_a_tool_prints_is_returned_and_why_it_failed_said() {
        let runner = Runner::default();
        assert_eq!(runner.run(shell("echo yes"), "x").unwrap(), "yes\n");
        let error = runner.run(shell("echo 'E: no' >&2; exit 3"), "x y").unwrap_err().to_string();
        assert!(error.starts_with("`x y` failed: no\n"), "{error}");
        let absent = runner.run(Command::new("/no/such/tool"), "x");
        assert!(matches!(absent, Err(FetchError::NoTool(_))));
    }

    #[test]
    fn a_tool_is_ended_when_its_fetch_is_given_up() {
        let cancel = Arc::new(AtomicBool::new(false));
        let runner = Runner::new(cancel.clone());
        let start = Instant::now();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                std::thread::sleep(Duration::from_millis(100));
                cancel.store(true, Ordering::Release);
            });
            let ended = runner.run(shell("exec sleep 60"), "sleep");
            assert!(matches!(ended, Err(FetchError::Cancelled)), "{ended:?}");
        });
        assert!(start.elapsed() < Duration::from_secs(20));
        assert!(matches!(runner.run(shell("true"), "true"), Err(FetchError::Cancelled)));
    }

    #[test]
    fn of_a_failed_tools_words_its_errors_are_kept() {
        assert_eq!(errors("W: noise\nE: No packages found\n"), "No packages found");
        assert_eq!(errors("dpkg-deb: error: no such file\n"), "dpkg-deb: error: no such file");
        assert_eq!(errors(""), "");
    }
}
