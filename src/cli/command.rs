//! `husk run … -- CMD`: the options that make a guest which runs a command, as a configuration and a
//! command of the library's.

mod connect;
mod job;
mod root;
mod streams;

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use clap::Args;
use husk::config::{ConsoleConfig, VmConfig};
use husk::{GuestCommand, Vm};

use super::Error;
pub use connect::{attach, for_terminal};
pub use job::{Job, Limits, run, status_of, status_of_error};
use root::Files;
pub use root::Place;

/// What a command runs in.
#[derive(Args)]
pub struct Surroundings {
    /// A variable of the command's environment, NAME=VALUE, or NAME to take husk's own; may be
    /// repeated
    #[arg(long, value_name = "NAME=VALUE")]
    env: Vec<OsString>,
    /// Whom the command runs as: USER[:GROUP], names or numbers [default: root]
    #[arg(long, value_name = "USER[:GROUP]")]
    user: Option<String>,
    /// The directory the command runs in [default: /]
    #[arg(long, value_name = "DIR")]
    workdir: Option<OsString>,
}

/// What is run when nothing is named.
const SHELL: &str = "/bin/sh";

/// What `husk run` has for a guest that runs a command.
#[derive(Args)]
pub struct Exec {
    #[command(flatten)]
    files: Files,
    #[command(flatten)]
    surroundings: Surroundings,
    /// What a guest that runs a command is called [default: husk]
    #[arg(long, value_name = "NAME")]
    hostname: Option<String>,
    /// The kernel's modules, /lib/modules/RELEASE of its own [default: looked for beside the kernel]
    #[arg(long, value_name = "DIR")]
    modules: Option<PathBuf>,
    /// Give the command a terminal also where husk has none (for `husk attach`); without a command a
    /// shell is run
    #[arg(long)]
    tty: bool,
    /// A command to run in the guest, which husk prepares for that: its streams and its exit status are
    /// husk's
    #[arg(last = true, value_name = "CMD")]
    command: Vec<OsString>,
}

impl Exec {
    /// Whether the guest is to run a command, by these options.
    pub fn is_wanted(&self) -> bool {
        !self.command.is_empty() || self.files.root.is_some() || self.tty
    }

    /// Whether a command has a terminal in any case.
    pub fn tty(&self) -> bool {
        self.tty
    }

    /// Makes `config` one of a guest that runs a command, if it is to be, and gives the command.
    /// `console` was given as an option. For who is `interactive`, and did not ask for anything else, that is a
    /// shell where the kernel would have nothing to run.
    ///
    /// # Errors
    /// What cannot be.
    pub fn apply(
        self,
        config: &mut VmConfig,
        console: Option<&ConsoleConfig>,
        interactive: bool,
    ) -> Result<Option<GuestCommand>, Error> {
        // In this order: at last all of the kernel is looked at.
        let is_wanted = self.is_wanted()
            || config.guest.is_some()
            || interactive && Vm::has_nothing_to_run(config);
        if !is_wanted {
            let alone = [
                ("--env", !self.surroundings.env.is_empty()),
                ("--user", self.surroundings.user.is_some()),
                ("--workdir", self.surroundings.workdir.is_some()),
                ("--hostname", self.hostname.is_some()),
                ("--modules", self.modules.is_some()),
                ("--rw", !self.files.rw.is_empty()),
                ("--tmpfs", !self.files.tmpfs.is_empty()),
                ("--cwd", self.files.cwd),
                ("--overlay", self.files.overlay.is_some()),
            ];
            return match alone.into_iter().find(|(_, given)| *given) {
                Some((option, _)) => {
                    Err(format!("{option} is for a command: end with `-- CMD`, or give --root")
                        .into())
                }
                None => Ok(None),
            };
        }
        if console == Some(&ConsoleConfig::Stdio) {
            return Err(
                "--console stdio: the standard streams are the command's; name a file to see \
                        what the kernel says"
                    .into(),
            );
        }
        if config.console == ConsoleConfig::Stdio {
            config.console = ConsoleConfig::None;
        }
        let described = config.guest.is_some();
        let mut guest = config.guest.take().unwrap_or_default();
        let command = self.command.first().map(OsString::as_os_str);
        let place = self.files.apply(config, &mut guest, described, command)?;
        guest.modules = self.modules.clone().or(guest.modules);
        guest.host_name = self.hostname.clone().unwrap_or(guest.host_name);
        config.guest = Some(guest);
        self.surroundings.command(&self.command, place).map(Some)
    }
}

impl Surroundings {
    /// The command of these words, or a shell, unless said otherwise in that place.
    ///
    /// # Errors
    /// What cannot be.
    pub fn command(self, words: &[OsString], place: Place) -> Result<GuestCommand, Error> {
        let mut command = match words.is_empty() {
            true => GuestCommand::new([SHELL]),
            false => GuestCommand::new(words),
        };
        if let Some(home) = place.home.filter(|_| self.user.is_none()) {
            command = command.env("HOME", home);
        }
        for variable in &self.env {
            let bytes = variable.as_bytes();
            match bytes.iter().position(|byte| *byte == b'=') {
                Some(0) => {
                    return Err(format!("--env {}: it has no name", variable.display()).into());
                }
                None if bytes.is_empty() => {
                    return Err("--env '': it has no name: NAME=VALUE, or NAME".into());
                }
                Some(at) => {
                    let (name, value) = bytes.split_at(at);
                    let value = value.get(1..).unwrap_or_default();
                    command = command.env(OsStr::from_bytes(name), OsStr::from_bytes(value));
                }
                None => {
                    if let Some(value) = std::env::var_os(variable) {
                        command = command.env(variable, value);
                    }
                }
            }
        }
        if let Some(user) = self.user {
            if user.split(':').any(str::is_empty) {
                return Err(format!("--user '{user}': it is USER or USER:GROUP").into());
            }
            command = command.user(user);
        }
        if let Some(directory) = self.workdir.as_ref().filter(|it| !Path::new(it).is_absolute()) {
            let directory = directory.display();
            return Err(format!(
                "--workdir '{directory}': a directory in the guest begins with `/`"
            )
            .into());
        }
        if let Some(directory) = self.workdir.or(place.directory.map(PathBuf::into_os_string)) {
            command = command.directory(directory);
        }
        Ok(command)
    }
}
