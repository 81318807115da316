//! `husk run … -- CMD`: the options that make a guest which runs a command, as a configuration and a
//! command of the library's.

mod attach;
mod forward;
mod run;
mod streams;

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

use clap::Args;
use husk::GuestCommand;
use husk::config::{ConsoleConfig, DiskConfig, GuestConfig, RootConfig, VmConfig};

use super::Error;
pub use attach::{attach, for_terminal};
pub use forward::Forward;
pub use run::{Job, Limits, run, status_of, status_of_error};

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

/// The id of the disk that `--root` makes.
const ROOT: &str = "root";
/// What is run when nothing is named.
const SHELL: &str = "/bin/sh";

/// What `husk run` has for a guest that runs a command.
#[derive(Args)]
pub struct Exec {
    /// The guest's root file system: IMAGE[:ro|rw], ext4, erofs, squashfs or another that its kernel
    /// knows. With ro, the default, it is only read, and what the guest writes is kept in memory;
    /// without a command a shell is run. Without --root the guest has what --initrd brings
    #[arg(long, value_name = "IMAGE[:ro|rw]")]
    root: Option<OsString>,
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
        !self.command.is_empty() || self.root.is_some() || self.tty
    }

    /// Whether a command has a terminal in any case.
    pub fn tty(&self) -> bool {
        self.tty
    }

    /// Makes `config` one of a guest that runs a command, if it is to be, and gives the command.
    /// `console` was given as an option.
    ///
    /// # Errors
    /// What cannot be.
    pub fn apply(
        self,
        config: &mut VmConfig,
        console: Option<&ConsoleConfig>,
    ) -> Result<Option<GuestCommand>, Error> {
        if !self.is_wanted() && config.guest.is_none() {
            let alone = [
                ("--env", !self.surroundings.env.is_empty()),
                ("--user", self.surroundings.user.is_some()),
                ("--workdir", self.surroundings.workdir.is_some()),
                ("--hostname", self.hostname.is_some()),
                ("--modules", self.modules.is_some()),
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
        let mut guest = config.guest.take().unwrap_or_default();
        if let Some(root) = &self.root {
            guest.root = Some(add_root(config, root)?);
        }
        guest.modules = self.modules.clone().or(guest.modules);
        guest.host_name = self.hostname.clone().unwrap_or(guest.host_name);
        config.guest = Some(GuestConfig { ..guest });
        self.surroundings.command(&self.command).map(Some)
    }
}

impl Surroundings {
    /// The command of these words, or a shell.
    ///
    /// # Errors
    /// What cannot be.
    pub fn command(self, words: &[OsString]) -> Result<GuestCommand, Error> {
        let mut command = match words.is_empty() {
            true => GuestCommand::new([SHELL]),
            false => GuestCommand::new(words),
        };
        for variable in &self.env {
            let bytes = variable.as_bytes();
            match bytes.iter().position(|byte| *byte == b'=') {
                Some(0) => {
                    return Err(format!("--env {}: it has no name", variable.display()).into());
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
            command = command.user(user);
        }
        if let Some(directory) = self.workdir {
            command = command.directory(directory);
        }
        Ok(command)
    }
}

/// Adds the root's disk, before all others.
fn add_root(config: &mut VmConfig, root: &OsStr) -> Result<RootConfig, Error> {
    let bytes = root.as_bytes();
    let (path, writable) = match bytes.strip_suffix(b":rw") {
        Some(path) => (path, true),
        None => (bytes.strip_suffix(b":ro").unwrap_or(bytes), false),
    };
    if config.disks.iter().any(|disk| disk.id == ROOT) {
        return Err("--root: there is a disk called `root` already; give it another id=".into());
    }
    let path = PathBuf::from(OsString::from_vec(path.to_vec()));
    if path.is_dir() {
        return Err(format!(
            "--root {}: it is a directory; an image of a file system is needed",
            path.display()
        )
        .into());
    }
    let disk = DiskConfig { id: ROOT.to_owned(), path, readonly: !writable, ..Default::default() };
    config.disks.insert(0, disk);
    Ok(RootConfig { disk: ROOT.to_owned(), writable })
}
