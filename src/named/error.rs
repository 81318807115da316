//! What can go wrong with names.

use std::io;
use std::path::PathBuf;

use super::NAME_MAX;
use crate::guest::error::ExecError;

/// A named VM cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum NameError {
    /// It is no name.
    #[error(
        "`{0}` is no name for a VM: 1 to {NAME_MAX} letters, digits, `-`, `_` or `.`, no `.` first"
    )]
    Name(String),
    /// Another VM has it.
    #[error(
        "there is a VM called `{0}` already: stop it with `husk stop {0}`, or take another name"
    )]
    InUse(String),
    /// Nobody has it.
    #[error("there is no VM called `{0}`; `husk ps` lists those that there are")]
    Unknown(String),
    /// Whoever had it has ended, and is remembered.
    #[error("the VM `{name}` has ended{}", told_end(name, *.status, *.is_logged))]
    Ended {
        /// What it was called.
        name: String,
        /// What it was concluded with; `None` when nobody has said.
        status: Option<u8>,
        /// Whether what it wrote is there still.
        is_logged: bool,
    },
    /// What is in the place of its socket is none.
    #[error("{path}: it is in the place of the VM's socket, and is none: remove it, or take another name", path = .0.display())]
    NoSocket(PathBuf),
    /// The runtime directory is not the user's own.
    #[error(
        "{path}: {why}, and is not used: mend that, or set XDG_RUNTIME_DIR to a directory of your own",
        path = .path.display()
    )]
    Directory {
        /// The directory.
        path: PathBuf,
        /// What is wrong with it.
        why: &'static str,
    },
    /// The VM said no.
    #[error("the VM `{name}` says: {why}")]
    Refused {
        /// Which.
        name: String,
        /// Why.
        why: String,
    },
    /// Nobody can sit in front of it.
    #[error(
        "{0}: it has no terminal of its own; `husk run --detach` gives a VM one, and with `--tty` a command in it"
    )]
    NoTerminal(String),
    /// It has gone, and what became of it is not known.
    #[error("the husk of the VM `{0}` was ended before it could tell how the VM ended")]
    NoStatus(String),
    /// It says what no husk says.
    #[error("the VM `{0}` answers what no husk does; is it of another version?")]
    Nonsense(String),
    /// Its husk is there and says nothing: it is stopped, or hangs.
    #[error("the husk of the VM `{name}` does not answer; {}", way_out(*.pid))]
    Silent {
        /// Which.
        name: String,
        /// The process, or 0 if that is not known.
        pid: u32,
    },
    /// What was to be done in its guest could not be.
    #[error(transparent)]
    Exec(#[from] ExecError),
    /// The host refused.
    #[error("{path}: {what}: {source}", path = .path.display())]
    Host {
        /// What it is about.
        path: PathBuf,
        /// What was tried.
        what: &'static str,
        /// Why not.
        r#source: io::Error,
    },
}

fn way_out(pid: u32) -> String {
    match pid {
        0 => "it is stopped, or hangs".to_owned(),
        pid => format!("it is process {pid}, and `kill -KILL {pid}` ends both"),
    }
}

fn told_end(name: &str, status: Option<u8>, is_logged: bool) -> String {
    let how = match status {
        Some(status) => format!(" with status {status}"),
        None => ", and its husk could not tell how".to_owned(),
    };
    match is_logged {
        true => format!("{how}; `husk logs {name}` has what it wrote"),
        false => how,
    }
}

/// Makes an error of the host's one that names path and deed.
pub(super) fn host(path: &std::path::Path, what: &'static str) -> impl Fn(io::Error) -> NameError {
    let path = path.to_owned();
    move |source| NameError::Host { path: path.clone(), what, source }
}
