//! Running the tools a fetch needs, so that it can be given up at any moment.

use std::io::{self, BufRead, BufReader, Read};
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{ChildStderr, ChildStdout, Command, Stdio};
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
    pub fn run(&self, command: Command, shown: &str) -> Result<String, FetchError> {
        let mut output = String::new();
        self.watch(command, shown, &mut |line| {
            output.push_str(line);
            output.push('\n');
        })?;
        Ok(output)
    }

    /// The same; `each` is given every line of its standard output as it comes.
    pub fn watch(
        &self,
        mut command: Command,
        shown: &str,
        each: &mut dyn FnMut(&str),
    ) -> Result<(), FetchError> {
        self.check()?;
        let failed = |said| FetchError::Tool { command: shown.to_owned(), said };
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().map_err(|e| match e.kind() {
            io::ErrorKind::NotFound => {
                FetchError::NoTool(command.get_program().to_string_lossy().into_owned())
            }
            _ => failed(e.to_string()),
        })?;
        let pid = libc::pid_t::try_from(child.id()).unwrap_or_default();
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        let (sender, lines) = mpsc::channel();
        let said: io::Result<Vec<u8>> = std::thread::scope(|scope| {
            scope.spawn(move || send_lines(stdout, &sender));
            let said = scope.spawn(move || read_all(stderr));
            loop {
                match lines.recv_timeout(TICK) {
                    Ok(line) => each(&line),
                    Err(RecvTimeoutError::Timeout) if self.check().is_ok() => {}
                    Err(RecvTimeoutError::Timeout) => {
                        // SAFETY: a signal to our own child; no memory is involved. It has not been
                        // waited for, so its number is nobody else's.
                        unsafe { libc::kill(pid, libc::SIGTERM) };
                    }
                    Err(RecvTimeoutError::Disconnected) => break,
                }
            }
            said.join().map_err(|_| io::Error::other("its reader panicked"))?
        });
        let status = child.wait().map_err(|e| failed(e.to_string()))?;
        let said = said.map_err(|e| failed(e.to_string()))?;
        self.check()?;
        if status.success() {
            return Ok(());
        }
        // Ctrl-C at a terminal ends the tool as well, and perhaps before we hear of it.
        let asked = [libc::SIGINT, libc::SIGTERM, libc::SIGHUP, libc::SIGQUIT];
        if status.signal().is_some_and(|signal| asked.contains(&signal)) {
            return Err(FetchError::Cancelled);
        }
        let said = errors(&String::from_utf8_lossy(&said));
        Err(failed(if said.is_empty() { status.to_string() } else { said }))
    }
}

/// Sends what comes, a line at a time, until its end.
fn send_lines(from: Option<ChildStdout>, to: &mpsc::Sender<String>) {
    let lines = from.into_iter().flat_map(|from| BufReader::new(from).split(b'\n'));
    for line in lines.map_while(Result::ok) {
        if to.send(String::from_utf8_lossy(&line).into_owned()).is_err() {
            return;
        }
    }
}

fn read_all(from: Option<ChildStderr>) -> io::Result<Vec<u8>> {
    let mut all = Vec::new();
    from.map_or(Ok(0), |mut from| from.read_to_end(&mut all))?;
    Ok(all)
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
