//! What stays of a VM that was kept: how it ended, for who asks then. It is written when the VM has come to run, so
//! that one whose husk was killed is known, too, and once more at its end.

use std::fs;
use std::io::{self, Write};
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use super::directory::Directory;
use super::error::{NameError, host};
use super::{Info, fds, log};
use crate::files;

/// VMs of which that is kept; of more, those that ended first are forgotten.
const KEPT_MAX: usize = 32;
/// Those among them whose logs are kept, too: they are larger by far.
pub(super) const LOGS_MAX: usize = 8;
/// No record is longer, in bytes.
const RECORD_MAX: u64 = 64 << 10;

/// A VM that was kept and has ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ended {
    /// What it was called.
    pub name: String,
    /// Its kernel's version, as [`kernels::list`](crate::kernels::list) has it, or the file's name where that is
    /// not known.
    pub kernel: String,
    /// When it got its name, in seconds since the epoch.
    pub since: u64,
    /// When it ended, in seconds since the epoch; `None` when nobody has said, because its husk was killed.
    #[serde(default)]
    pub ended: Option<u64>,
    /// What it was [concluded](super::Named::conclude) with; `None` when it was not.
    #[serde(default)]
    pub status: Option<u8>,
}

/// Those that have ended and are remembered, the last first.
///
/// # Errors
/// When they cannot be looked for.
pub fn ended() -> Result<Vec<Ended>, NameError> {
    ended_in(&Directory::open()?)
}

pub(super) fn ended_in(directory: &Directory) -> Result<Vec<Ended>, NameError> {
    let names = directory.ended()?;
    let known = names.into_iter().filter_map(|name| read(directory, &name).ok().flatten());
    let mut all: Vec<_> =
        known.filter(|vm| vm.status.is_some() || !is_there(directory, &vm.name)).collect();
    let last = |vm: &Ended| vm.ended.unwrap_or(vm.since);
    all.sort_by(|a, b| (last(b), &a.name).cmp(&(last(a), &b.name)));
    Ok(all)
}

/// Whether somebody has that name, who may be too busy to answer.
fn is_there(directory: &Directory, name: &str) -> bool {
    let Ok(socket) = directory.socket(name) else { return false };
    match fds::connect(&socket, None) {
        Ok(_) => true,
        Err(e) => e.kind() == io::ErrorKind::WouldBlock,
    }
}

/// How the VM called `name` ended, if that is remembered.
pub(super) fn read(directory: &Directory, name: &str) -> Result<Option<Ended>, NameError> {
    let path = directory.end(name);
    match files::read(&path, RECORD_MAX) {
        // Of another version, or cut short: then nothing is known.
        Ok(bytes) => Ok(serde_json::from_slice(&bytes).ok()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(host(&path, "read")(e)),
    }
}

/// Remembers that the VM of `info` runs, or has ended with `status`.
pub(super) fn write(directory: &Directory, info: &Info, status: Option<u8>) -> io::Result<()> {
    let now = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default().as_secs();
    let ended = status.map(|_| now);
    let Info { name, kernel, since, .. } = info.clone();
    let text = serde_json::to_vec(&Ended { name, kernel, since, ended, status })?;
    files::write_renamed(&directory.end(&info.name), Some(0o600), |file| file.write_all(&text))
}

/// Forgets the VM called `name`. The directory is locked, and the name nobody's.
pub(super) fn forget(directory: &Directory, name: &str) {
    // What is not there need not go.
    let _ = fs::remove_file(directory.end(name));
    forget_log(directory, name);
}

/// Forgets what the VM called `name` wrote.
fn forget_log(directory: &Directory, name: &str) {
    let log = directory.log(name);
    for path in [log::next(&log), log::old(&log), log] {
        let _ = fs::remove_file(path);
    }
}

/// Makes room for another one, also where one ended without a word. The directory is locked.
pub(super) fn make_room(directory: &Directory) -> Result<(), NameError> {
    let mut known: Vec<_> = directory.remembered()?;
    known.sort_by(|(a, _), (b, _)| b.cmp(a));
    for (n, (_, name)) in known.into_iter().enumerate().skip(LOGS_MAX - 1) {
        if n < KEPT_MAX - 1 {
            forget_log(directory, &name);
        } else {
            forget(directory, &name);
        }
    }
    Ok(())
}
