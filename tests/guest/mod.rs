//! What the tests that boot Linux share: a [`Lab`] with the guests' kernels, initramfs images and
//! a directory in RAM, and a [`Guest`], which is a husk process with a guest in it whose console
//! is read and typed to. When something is not as it should be the panic says what the console and
//! husk said last.
//!
//! Without `$HUSK_ASSETS` there is no lab, and each test says that it is skipped. `cargo xtask
//! test` sets it, and `$HUSK_BIN`; `cargo xtask soak` sets `$HUSK_SOAK` as well.

#![allow(dead_code, reason = "each test executable uses the part of it that it needs")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a fixture of tests ends the test when something is not as it should be"
)]

#[path = "../../xtask/src/assets/names.rs"]
mod assets;
mod builder;
pub mod command;
mod done;
#[path = "../fixture/hugepages.rs"]
mod hugepages;
mod initrd;
pub mod network;
#[path = "../fixture/process.rs"]
pub mod process;
#[path = "../fixture/pty.rs"]
mod pty;
#[path = "../fixture/skipped.rs"]
mod skipped;
mod stream;
pub mod terminal;
pub mod tools;
pub mod user;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use tempfile::TempDir;

#[allow(unused_imports, reason = "as above")]
pub use {assets::*, builder::Builder, done::Done, hugepages::HugePages, skipped::skipped};

use stream::Stream;

/// A guest does in that time whatever one boot asks of it, also under two emulators on a busy
/// machine. What is waited for longer is not slow but dead.
pub const PATIENCE: Duration = Duration::from_secs(120);

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
            skipped("it boots Linux and needs $HUSK_ASSETS (`cargo xtask test`)");
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
        Builder::new(self, self.asset(name))
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
        Done {
            status: process::status(status),
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
