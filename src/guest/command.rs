//! A command as an embedder puts it together, and what becomes of it.

use std::ffi::{OsStr, OsString};
use std::io::{self, Read, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use husk_devices::virtio::console::tty::WindowSize;
use husk_guest_protocol::{Action, Begin, REQUEST_MAX, Stage, VERSION, record_head, tag};

use super::child::{ChildOutput, Explain, GuestChild, Status};
use super::error::ExecError;
use super::session::{self, End};

/// Where commands are looked for, unless the environment says otherwise.
const SEARCH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// What is collected of a command's output at most, unless said otherwise.
const COLLECTED_MAX: usize = 64 << 20;

/// A command to be run in a guest: like [`std::process::Command`], but that nothing is inherited. Its
/// environment has PATH, HOME (for root) and, on a terminal, TERM, unless they are set to something else.
#[derive(Debug, Clone)]
pub struct GuestCommand {
    arguments: Vec<OsString>,
    environment: Vec<(OsString, OsString)>,
    directory: Option<OsString>,
    user: Option<String>,
    terminal: Option<WindowSize>,
    timeout: Option<Duration>,
    input: Vec<u8>,
    collected_max: usize,
}

/// A command that has ended, and what it wrote.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    /// How it ended.
    pub status: Status,
    /// What it wrote to its standard output.
    pub stdout: Vec<u8>,
    /// What it wrote to its standard error.
    pub stderr: Vec<u8>,
}

impl GuestCommand {
    /// The program, a path or a name to be looked for in the guest's PATH, and its arguments.
    pub fn new<S: AsRef<OsStr>>(arguments: impl IntoIterator<Item = S>) -> GuestCommand {
        GuestCommand {
            arguments: arguments.into_iter().map(|word| word.as_ref().to_owned()).collect(),
            environment: Vec::new(),
            directory: None,
            user: None,
            terminal: None,
            timeout: None,
            input: Vec::new(),
            collected_max: COLLECTED_MAX,
        }
    }

    /// Another argument.
    pub fn arg(mut self, argument: impl AsRef<OsStr>) -> Self {
        self.arguments.push(argument.as_ref().to_owned());
        self
    }

    /// The program and its arguments.
    pub fn arguments(&self) -> &[OsString] {
        &self.arguments
    }

    /// A variable of its environment.
    pub fn env(mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.environment.retain(|(known, _)| known != name.as_ref());
        self.environment.push((name.as_ref().to_owned(), value.as_ref().to_owned()));
        self
    }

    /// The directory to run in [`/`].
    pub fn directory(mut self, directory: impl AsRef<OsStr>) -> Self {
        self.directory = Some(directory.as_ref().to_owned());
        self
    }

    /// `USER[:GROUP]`, names that the guest knows, or numbers [root]. A name alone has also the groups of which the
    /// guest's /etc/group says so.
    pub fn user(mut self, user: impl Into<String>) -> Self {
        self.user = Some(user.into());
        self
    }

    /// With a terminal of this size instead of pipes: all that it writes is its standard output then.
    pub fn terminal(mut self, size: WindowSize) -> Self {
        self.terminal = Some(size);
        self
    }

    /// How long [`GuestCommand`] may run when its output is collected; then it is killed.
    pub fn timeout(mut self, limit: Duration) -> Self {
        self.timeout = Some(limit);
        self
    }

    /// What it reads when its output is collected [nothing].
    pub fn input(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.input = bytes.into();
        self
    }

    /// The most bytes of either stream that are collected [64 MiB].
    pub fn collect_at_most(mut self, bytes: usize) -> Self {
        self.collected_max = bytes;
        self
    }

    /// Its words, for a message.
    pub(crate) fn shown(&self) -> String {
        const MAX: usize = 120;
        let words: Vec<_> = self.arguments.iter().map(|word| word.to_string_lossy()).collect();
        let words = words.join(" ");
        match words.char_indices().nth(MAX) {
            Some((at, _)) => format!("{}…", words.get(..at).unwrap_or_default()),
            None => words,
        }
    }

    /// Starts it, over a connection to an agent, until then.
    pub(crate) fn spawn_on(
        &self,
        socket: UnixStream,
        explain: Explain,
        until: Instant,
    ) -> Result<GuestChild, ExecError> {
        let request = self.request()?;
        let size = self.terminal.unwrap_or(WindowSize { columns: 0, rows: 0 });
        let begin = Begin {
            version: VERSION,
            action: Action::Exec,
            tty: self.terminal.is_some(),
            window: (size.columns, size.rows),
            mode: 0,
            // Checked where it was made.
            len: request.len() as u32,
        };
        match session::begin(socket, begin, &request, until) {
            Ok(session) => Ok(GuestChild::new(session, explain)),
            Err(End::Cannot(stage, errno)) => Err(self.refused(stage, errno)),
            Err(End::Lost) => Err(explain()),
            Err(End::Late) => Err(ExecError::NotStarted),
            Err(_) => Err(ExecError::Protocol),
        }
    }

    fn refused(&self, stage: Stage, errno: i32) -> ExecError {
        let source = io::Error::from_raw_os_error(errno);
        let word = |word: Option<&OsString>| {
            word.map(|word| word.to_string_lossy().into_owned()).unwrap_or_default()
        };
        let command = word(self.arguments.first());
        match stage {
            Stage::Command if errno == libc::ENOENT => ExecError::NotFound(command),
            Stage::Command => ExecError::NotExecutable { command, source },
            Stage::Directory => {
                ExecError::Directory { directory: word(self.directory.as_ref()), source }
            }
            Stage::User if errno == libc::ENOENT => ExecError::User {
                user: self.user.clone().unwrap_or_default(),
                source: io::Error::other("there is nobody of that name"),
            },
            Stage::User => ExecError::User { user: self.user.clone().unwrap_or_default(), source },
            Stage::File | Stage::Special | Stage::Agent => ExecError::Agent(source),
        }
    }

    /// Runs it to its end and collects what it writes.
    pub(crate) fn output_on(
        &self,
        socket: UnixStream,
        explain: Explain,
        until: Instant,
    ) -> Result<Output, ExecError> {
        let mut child = self.spawn_on(socket, explain, until)?;
        let (stdin, stdout, stderr) =
            (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let max = self.collected_max;
        std::thread::scope(|scope| {
            let child = &child;
            scope.spawn(move || {
                let Some(mut stdin) = stdin else { return };
                // A command need not read all there is.
                let _ = stdin.write_all(&self.input);
            });
            let stdout = scope.spawn(move || collect(child, stdout, max));
            let stderr = scope.spawn(move || collect(child, stderr, max));
            let in_time = child.ends_within(self.timeout);
            if !in_time {
                child.kill();
            }
            let joined = |thread: std::thread::ScopedJoinHandle<'_, Option<Vec<u8>>>| {
                thread.join().ok().flatten().ok_or(ExecError::TooMuchOutput(max))
            };
            let (stdout, stderr) = (joined(stdout), joined(stderr));
            match self.timeout {
                Some(limit) if !in_time => Err(ExecError::TimedOut(limit)),
                // A command that was killed for what it wrote has no other end to tell of.
                _ => Ok(Output { stdout: stdout?, stderr: stderr?, status: child.wait()? }),
            }
        })
    }

    /// The request's records.
    fn request(&self) -> Result<Vec<u8>, ExecError> {
        let mut request = Vec::new();
        let shown = |text: &OsStr| text.to_string_lossy().chars().take(80).collect::<String>();
        for argument in &self.arguments {
            record(&mut request, tag::ARGUMENT, argument.as_bytes(), || shown(argument))?;
        }
        for (name, value) in self.variables() {
            if name.is_empty() || name.as_bytes().contains(&b'=') {
                return Err(ExecError::Variable(shown(&name)));
            }
            let mut variable = name.clone().into_vec();
            variable.push(b'=');
            variable.extend(value.as_bytes());
            record(&mut request, tag::VARIABLE, &variable, || shown(&name))?;
        }
        if let Some(directory) = &self.directory {
            record(&mut request, tag::DIRECTORY, directory.as_bytes(), || shown(directory))?;
        }
        if let Some(user) = &self.user {
            record(&mut request, tag::USER, user.as_bytes(), || user.clone())?;
        }
        record(&mut request, tag::OUT_OF_MEMORY, &[], String::new)?;
        Ok(request)
    }

    fn variables(&self) -> Vec<(OsString, OsString)> {
        let mut all = Vec::new();
        let mut unless_set = |name: &str, value: &str| {
            if !self.environment.iter().any(|(set, _)| set == name) {
                all.push((name.into(), value.into()));
            }
        };
        unless_set("PATH", SEARCH);
        if self.user.is_none() {
            unless_set("HOME", "/root");
        }
        if self.terminal.is_some() {
            unless_set("TERM", "xterm");
        }
        all.extend(self.environment.iter().cloned());
        all
    }
}

/// Adds a record, unless it cannot be given to a command.
pub(super) fn record(
    request: &mut Vec<u8>,
    tag: u8,
    bytes: &[u8],
    shown: impl FnOnce() -> String,
) -> Result<(), ExecError> {
    if bytes.contains(&0) {
        return Err(ExecError::Nul(shown()));
    }
    let len = request.len() + bytes.len() + 6;
    if len > REQUEST_MAX as usize {
        return Err(ExecError::TooLong(len));
    }
    // Shorter than that, so the cast keeps the number.
    request.extend(record_head(tag, bytes.len() as u32));
    request.extend(bytes);
    request.push(0);
    Ok(())
}

/// All that comes, or `None` when that is too much; then the command is killed.
fn collect(child: &GuestChild, from: Option<ChildOutput>, max: usize) -> Option<Vec<u8>> {
    let mut all = Vec::new();
    let mut from = from?.take((max as u64).saturating_add(1));
    // Reading from a guest is without errors: what goes wrong is how the command ends.
    let _ = from.read_to_end(&mut all);
    if all.len() > max {
        child.kill();
        return None;
    }
    Some(all)
}
