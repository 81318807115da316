//! What the tests that boot Linux share: a [`Lab`] with the guests' kernels, initramfs images and
//! a directory in RAM, and a [`Guest`], which is a husk process with a guest in it whose console
//! is read and typed to. When something is not as it should be the panic says what the console and
//! husk said last.
//!
//! Without `$HUSK_ASSETS` there is no lab, and each test says that it was not run. `cargo xtask
//! test` sets it, and `$HUSK_BIN`; `cargo xtask soak` sets `$HUSK_SOAK` as well.

#![allow(dead_code, reason = "each test executable uses the part of it that it needs")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a fixture of tests ends the test when something is not as it should be"
)]

mod initrd;
pub mod tools;

use std::ffi::OsString;
use std::io::{Read, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// A guest does in that time whatever one boot asks of it, also under two emulators on a busy
/// machine. What is waited for longer is not slow but dead.
pub const PATIENCE: Duration = Duration::from_secs(120);

pub const VMLINUZ_CLOUD: &str = "vmlinuz-cloud";
pub const VMLINUZ_STD: &str = "vmlinuz-std";
pub const VMLINUX_CLOUD: &str = "vmlinux-cloud";
pub const TINY: &str = "initrd-tiny.cpio";
pub const FULL: &str = "initrd-full.cpio";
pub const FULL_STD: &str = "initrd-full-std.cpio";
pub const DEBIAN: &str = "debian.ext4";
pub const MEMTEST: &str = "memtest86+x64.bin";

/// How many rounds of something that can go wrong once in a while: `usual`, or `soak` times
/// `$HUSK_SOAK` when that is set.
pub fn soak_rounds(usual: usize, soak: usize) -> usize {
    match std::env::var("HUSK_SOAK") {
        Ok(factor) => soak * factor.parse::<usize>().expect("HUSK_SOAK is a number"),
        Err(_) => usual,
    }
}

/// The guests' kernels and images, and a directory of the test's own.
pub struct Lab {
    assets: PathBuf,
    dir: TempDir,
}

impl Lab {
    /// `None`, said on standard error, where the assets are not.
    pub fn open() -> Option<Lab> {
        let Some(assets) = std::env::var_os("HUSK_ASSETS") else {
            eprintln!("not run: it boots Linux and needs $HUSK_ASSETS (`cargo xtask test`)");
            return None;
        };
        let dir = tempfile::Builder::new().prefix("husk-test-").tempdir_in(ram()).unwrap();
        Some(Lab { assets: assets.into(), dir })
    }

    /// One of the assets. Not to be written to.
    pub fn asset(&self, name: &str) -> PathBuf {
        self.assets.join(name)
    }

    /// A place in the test's own directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A file of `bytes` bytes, all of them a hole.
    pub fn hole(&self, name: &str, bytes: u64) -> PathBuf {
        let path = self.path(name);
        std::fs::File::create(&path).unwrap().set_len(bytes).unwrap();
        path
    }

    /// An initramfs image with a script in it, for whoever does not start husk.
    pub fn initrd_with(&self, initrd: &str, script: &str) -> PathBuf {
        let count = self.dir.path().read_dir().unwrap().count();
        let path = self.path(&format!("initrd-{count}"));
        initrd::with_script(&self.asset(initrd), script, &path);
        path
    }

    /// The cloud kernel with the initramfs that has modules.
    pub fn guest(&self) -> Builder<'_> {
        self.kernel(VMLINUZ_CLOUD).initrd(FULL)
    }

    /// The cloud kernel with the initramfs that has none: no disk, no network, quicker.
    pub fn tiny(&self) -> Builder<'_> {
        self.kernel(VMLINUZ_CLOUD).initrd(TINY)
    }

    /// Any kernel, and nothing else yet.
    pub fn kernel(&self, name: &str) -> Builder<'_> {
        Builder {
            lab: self,
            kernel: self.asset(name),
            initrd: None,
            script: None,
            append: Vec::new(),
            args: Vec::new(),
            inherit: Vec::new(),
            reading: true,
        }
    }
}

/// RAM where there is a file system in it; the kernels husk unpacks are kept there between tests.
fn ram() -> PathBuf {
    let shm = Path::new("/dev/shm");
    if shm.is_dir() { shm.to_owned() } else { std::env::temp_dir() }
}

/// Where husk keeps unpacked kernels during these tests: never in the user's own cache.
pub fn kernel_cache() -> PathBuf {
    ram().join("husk-test-kernels")
}

/// The husk binary under test.
pub fn husk() -> PathBuf {
    std::env::var_os("HUSK_BIN").map_or_else(|| env!("CARGO_BIN_EXE_husk").into(), PathBuf::from)
}

/// A `husk run` that has not been started.
pub struct Builder<'a> {
    lab: &'a Lab,
    kernel: PathBuf,
    initrd: Option<String>,
    script: Option<String>,
    append: Vec<String>,
    args: Vec<OsString>,
    inherit: Vec<i32>,
    reading: bool,
}

impl Builder<'_> {
    pub fn initrd(mut self, name: &str) -> Self {
        self.initrd = Some(name.to_owned());
        self
    }

    /// What the guest does when it is up; the machine ends after it as `husk.end=` says.
    pub fn script(mut self, script: &str) -> Self {
        self.script = Some(script.to_owned());
        self
    }

    /// Words for the kernel's command line.
    pub fn append(mut self, words: &str) -> Self {
        self.append.push(words.to_owned());
        self
    }

    /// An option of `husk run`.
    pub fn arg(mut self, arg: impl Into<OsString>) -> Self {
        self.args.push(arg.into());
        self
    }

    /// Options of `husk run`, split at blanks.
    pub fn args(mut self, args: &str) -> Self {
        self.args.extend(args.split_whitespace().map(OsString::from));
        self
    }

    /// `--disk path=PATH,more`
    pub fn disk(self, path: &Path, more: &str) -> Self {
        let comma = if more.is_empty() { "" } else { "," };
        self.arg("--disk").arg(format!("path={}{comma}{more}", path.display()))
    }

    /// Lets husk inherit the descriptor, which stays ours as well.
    pub fn inherit(mut self, fd: i32) -> Self {
        self.inherit.push(fd);
        self
    }

    /// Nobody reads husk's standard output.
    pub fn unread(mut self) -> Self {
        self.reading = false;
        self
    }

    /// The whole command line.
    fn command(&self) -> Command {
        let mut command = Command::new(husk());
        command.env("XDG_CACHE_HOME", kernel_cache()).env("XDG_DATA_HOME", self.lab.path("data"));
        command.arg("run").arg("--kernel").arg(&self.kernel);
        let initrd = self.initrd.as_ref().map(|name| match &self.script {
            Some(script) => self.lab.initrd_with(name, script),
            None => self.lab.asset(name),
        });
        if let Some(initrd) = initrd {
            command.arg("--initrd").arg(initrd);
        }
        command.arg("--append").arg("quiet");
        for words in &self.append {
            command.arg("--append").arg(words);
        }
        command.args(&self.args);
        let inherit = self.inherit.clone();
        // SAFETY: prctl and fcntl are bare system calls; nothing is allocated after the fork.
        unsafe {
            command.pre_exec(move || {
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                for fd in &inherit {
                    libc::fcntl(*fd, libc::F_SETFD, 0);
                }
                Ok(())
            });
        }
        command
    }

    /// Starts husk. Its standard input is a pipe that stays open.
    pub fn start(self) -> Guest {
        let mut command = self.command();
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let started = Instant::now();
        let mut child = command.spawn().unwrap_or_else(|e| panic!("{command:?}: {e}"));
        let stdin = child.stdin.take();
        let console = Arc::new(Stream::default());
        let stderr = Arc::new(Stream::default());
        stderr.follow(child.stderr.take().unwrap());
        if self.reading {
            console.follow(child.stdout.take().unwrap());
        }
        let shown = format!("{command:?}");
        Guest { child, stdin, console, stderr, shown, started, seen: 0 }
    }

    /// Starts husk and waits for its end.
    pub fn run(self) -> Done {
        self.start().finish()
    }
}

/// What a process has written so far.
#[derive(Default)]
struct Stream {
    state: Mutex<(Vec<u8>, bool)>,
    more: Condvar,
}

impl Stream {
    fn state(&self) -> MutexGuard<'_, (Vec<u8>, bool)> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn follow(self: &Arc<Self>, mut from: impl Read + Send + 'static) {
        let stream = self.clone();
        thread::spawn(move || {
            let mut chunk = [0; 4096];
            while let Ok(got @ 1..) = from.read(&mut chunk) {
                stream.state().0.extend_from_slice(chunk.get(..got).unwrap_or_default());
                stream.more.notify_all();
            }
            stream.state().1 = true;
            stream.more.notify_all();
        });
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.state().0).replace('\r', "")
    }

    /// The end of the first `text` at or after `from`; `None` when the stream ends or the time is
    /// up without it.
    fn find(&self, text: &str, from: usize, deadline: Instant) -> Option<usize> {
        let mut state = self.state();
        loop {
            let rest = state.0.get(from..).unwrap_or_default();
            if let Some(at) = rest.windows(text.len()).position(|w| w == text.as_bytes()) {
                return Some(from + at + text.len());
            }
            let left = deadline.checked_duration_since(Instant::now())?;
            if state.1 {
                return None;
            }
            let waited = self.more.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Waits until the writer has closed it.
    fn wait_end(&self, deadline: Instant) {
        let mut state = self.state();
        while !state.1 {
            let Some(left) = deadline.checked_duration_since(Instant::now()) else { return };
            let waited = self.more.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

/// A husk process. Killed when dropped.
pub struct Guest {
    child: Child,
    stdin: Option<ChildStdin>,
    console: Arc<Stream>,
    stderr: Arc<Stream>,
    shown: String,
    started: Instant,
    /// How much of the console [`Guest::wait_for`] has gone past.
    seen: usize,
}

impl Guest {
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// When husk was started.
    pub fn started(&self) -> Instant {
        self.started
    }

    /// Waits until the console says `text`, after what was waited for before.
    pub fn wait_for(&mut self, text: &str) {
        match self.console.find(text, self.seen, Instant::now() + PATIENCE) {
            Some(end) => self.seen = end,
            None => self.fail(&format!("the console never said {text:?}")),
        }
    }

    /// The rest of a line, of which `start` is waited for as by [`Guest::wait_for`].
    pub fn wait_line(&mut self, start: &str) -> String {
        self.wait_for(start);
        let from = self.seen;
        self.wait_for("\n");
        let state = self.console.state();
        let line = state.0.get(from..self.seen).unwrap_or_default();
        String::from_utf8_lossy(line).trim().to_owned()
    }

    /// Waits until husk's standard error says `text`.
    pub fn wait_stderr(&self, text: &str) {
        if self.stderr.find(text, 0, Instant::now() + PATIENCE).is_none() {
            self.fail(&format!("husk never said {text:?}"));
        }
    }

    /// Everything the console has said so far.
    pub fn console(&self) -> String {
        self.console.text()
    }

    /// Types a line on the console.
    pub fn type_line(&mut self, line: &str) {
        let stdin = self.stdin.as_mut().expect("the standard input is open");
        writeln!(stdin, "{line}").unwrap();
    }

    /// Ends husk's standard input.
    pub fn close_stdin(&mut self) {
        self.stdin = None;
    }

    /// Sends husk a signal.
    pub fn signal(&self, signal: i32) {
        let pid = libc::pid_t::try_from(self.child.id()).unwrap();
        // SAFETY: kill touches no memory; the child has not been waited for, so the id is its own.
        assert_eq!(unsafe { libc::kill(pid, signal) }, 0);
    }

    /// Whether husk still runs.
    pub fn is_up(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// Waits for husk's end.
    pub fn finish(self) -> Done {
        self.finish_within(PATIENCE)
    }

    /// Waits for husk's end, at most so long.
    pub fn finish_within(mut self, limit: Duration) -> Done {
        let deadline = Instant::now() + limit;
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            if Instant::now() > deadline {
                self.fail(&format!("husk still runs after {} s", limit.as_secs()));
            }
            thread::sleep(Duration::from_millis(10));
        };
        let took = self.started.elapsed();
        let soon = Instant::now() + Duration::from_secs(5);
        self.stderr.wait_end(soon);
        if self.child.stdout.is_none() {
            self.console.wait_end(soon);
        }
        let status = status.code().or(status.signal().map(|n| 128 + n)).unwrap();
        Done {
            status,
            console: self.console.text(),
            stderr: self.stderr.text(),
            shown: self.shown.clone(),
            took,
        }
    }

    /// Ends the test and says what the console and husk said last.
    #[track_caller]
    pub fn fail(&self, what: &str) -> ! {
        fail(what, &self.shown, &self.console.text(), &self.stderr.text())
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        // Both fail only when it has ended and been waited for.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[track_caller]
fn fail(what: &str, command: &str, console: &str, stderr: &str) -> ! {
    let last = |text: &str| {
        let lines: Vec<_> = text.lines().collect();
        lines.get(lines.len().saturating_sub(60)..).unwrap_or_default().join("\n  ")
    };
    panic!(
        "{what}\n{command}\nThe console's last lines:\n  {}\nhusk's last lines:\n  {}\n",
        last(console),
        last(stderr)
    );
}

/// A husk that has ended.
pub struct Done {
    /// As a shell gives it: 128 + n for a signal n.
    pub status: i32,
    pub console: String,
    pub stderr: String,
    pub took: Duration,
    shown: String,
}

impl Done {
    /// Ends the test unless the exit status is this.
    #[track_caller]
    pub fn expect_status(&self, status: i32) -> &Self {
        if self.status != status {
            self.fail(&format!("the exit status is {} and should be {status}", self.status));
        }
        self
    }

    /// Ends the test unless the guest's script ended well, husk with 0, and husk had nothing to
    /// complain of.
    #[track_caller]
    pub fn expect_clean(&self) -> &Self {
        self.expect_status(0);
        self.expect("HUSK-EXIT 0\n");
        if !self.stderr.is_empty() {
            self.fail("husk complained");
        }
        self
    }

    /// Ends the test unless the console said `text`.
    #[track_caller]
    pub fn expect(&self, text: &str) -> &Self {
        if !self.console.contains(text) {
            self.fail(&format!("the console never said {text:?}"));
        }
        self
    }

    /// Ends the test unless husk said `text`.
    #[track_caller]
    pub fn expect_stderr(&self, text: &str) -> &Self {
        if !self.stderr.contains(text) {
            self.fail(&format!("husk never said {text:?}"));
        }
        self
    }

    /// Ends the test unless the guest printed a line `name=value`, the only one of that name.
    #[track_caller]
    pub fn expect_fact(&self, name: &str, value: &str) -> &Self {
        let fact = self.fact(name);
        if fact != value {
            self.fail(&format!("{name} is {fact:?} and should be {value:?}"));
        }
        self
    }

    /// The value of the line `name=value`, the only one of that name.
    #[track_caller]
    pub fn fact(&self, name: &str) -> &str {
        let start = format!("{name}=");
        let mut found = self.console.lines().filter_map(|line| line.strip_prefix(&start));
        match (found.next(), found.next()) {
            (Some(value), None) => value.trim_end(),
            (None, _) => self.fail(&format!("the guest never printed {name}=")),
            (Some(_), Some(_)) => self.fail(&format!("the guest printed {name}= twice")),
        }
    }

    /// The same as a number.
    #[track_caller]
    pub fn number(&self, name: &str) -> u64 {
        let fact = self.fact(name);
        fact.parse().unwrap_or_else(|_| self.fail(&format!("{name}={fact} is no number")))
    }

    /// How often the console said `text`.
    pub fn count(&self, text: &str) -> usize {
        self.console.matches(text).count()
    }

    /// Ends the test and says what the console and husk said last.
    #[track_caller]
    pub fn fail(&self, what: &str) -> ! {
        fail(what, &self.shown, &self.console, &self.stderr)
    }
}
