//! A `husk run`, put together word by word and then started.

use std::ffi::OsString;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Instant;

use super::stream::Stream;
use super::{Done, Guest, Lab, husk, kernel_cache};

/// A `husk run` that has not been started.
pub struct Builder<'a> {
    lab: &'a Lab,
    kernel: PathBuf,
    initrd: Option<String>,
    script: Option<String>,
    append: Vec<String>,
    args: Vec<OsString>,
    inherit: Vec<i32>,
    env: Vec<(OsString, OsString)>,
    user: Option<(u32, u32)>,
    reading: bool,
}

impl<'a> Builder<'a> {
    /// The kernel, and nothing else yet.
    pub fn new(lab: &'a Lab, kernel: PathBuf) -> Self {
        Builder {
            lab,
            kernel,
            initrd: None,
            script: None,
            append: Vec::new(),
            args: Vec::new(),
            inherit: Vec::new(),
            env: Vec::new(),
            user: None,
            reading: true,
        }
    }

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

    /// A variable of husk's environment.
    pub fn env(mut self, name: impl Into<OsString>, value: impl Into<OsString>) -> Self {
        self.env.push((name.into(), value.into()));
        self
    }

    /// Another user and group runs husk, in the lab's directory, which all may enter then. For root's
    /// tests.
    pub fn user(mut self, uid: u32, gid: u32) -> Self {
        let open = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(self.lab.path("."), open).unwrap();
        let cache = self.lab.path("cache");
        std::fs::create_dir_all(&cache).unwrap();
        chown(&cache, Some(uid), Some(gid)).unwrap();
        self.user = Some((uid, gid));
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
        super::process::with_ordinary_signals(&mut command);
        command.env("XDG_CACHE_HOME", kernel_cache()).env("XDG_DATA_HOME", self.lab.path("data"));
        command.envs(self.env.iter().map(|(name, value)| (name, value)));
        if let Some((uid, gid)) = self.user {
            command.env("XDG_CACHE_HOME", self.lab.path("cache")).uid(uid).gid(gid);
        }
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
        } else {
            make_small(child.stdout.as_ref().unwrap());
        }
        let shown = format!("{command:?}");
        Guest { child, stdin, console, stderr, shown, started, seen: 0 }
    }

    /// Starts husk and waits for its end.
    pub fn run(self) -> Done {
        self.start().finish()
    }
}

/// The least of pipes, which is full soon.
fn make_small(pipe: &impl AsRawFd) {
    // SAFETY: fcntl with F_SETPIPE_SZ touches no memory of ours.
    let size = unsafe { libc::fcntl(pipe.as_raw_fd(), libc::F_SETPIPE_SZ, 4096) };
    assert_eq!(size, 4096, "F_SETPIPE_SZ: {}", std::io::Error::last_os_error());
}
