//! All VMs with names: asked at the same time, so that one whose husk does not answer holds up none of the others,
//! and sixty of them no more than one.

use std::time::Duration;

use super::STACK;
use super::directory::{Directory, clean};
use super::error::NameError;
use super::remote::{Info, Remote};

/// How long each may take to answer that is asked with all others.
const LIST_PATIENCE: Duration = Duration::from_secs(1);
/// How many are asked at the same time.
const ASKED_AT_ONCE: usize = 64;

/// All VMs with names that there are. Names of those that are gone are removed.
///
/// # Errors
/// When they cannot be looked for.
pub fn list() -> Result<Vec<Info>, NameError> {
    list_in(&Directory::open()?, LIST_PATIENCE)
}

pub(super) fn list_in(directory: &Directory, patience: Duration) -> Result<Vec<Info>, NameError> {
    let mut all = Vec::new();
    let place = |name: String| Ok(Remote { path: directory.socket(&name)?, name });
    let remotes: Result<Vec<_>, NameError> = directory.names()?.into_iter().map(place).collect();
    let remotes = remotes?;
    for (remote, told) in remotes.iter().zip(ask_all(&remotes, patience)) {
        match told {
            Ok(info) => all.push(info),
            Err(NameError::Silent { name, pid }) => {
                let kernel = String::new();
                all.push(Info { name, pid, kernel, since: 0, answers: false });
            }
            Err(NameError::Unknown(_)) => {
                let _lock = directory.lock()?;
                clean(&remote.path);
            }
            Err(e) => log::warn!("{e}"),
        }
    }
    Ok(all)
}

/// What each of them says of itself, in their order. They are asked at the same time: those that do not answer
/// are waited for together.
fn ask_all(remotes: &[Remote], patience: Duration) -> Vec<Result<Info, NameError>> {
    let mut all = Vec::with_capacity(remotes.len());
    for some in remotes.chunks(ASKED_AT_ONCE) {
        std::thread::scope(|scope| {
            let ask = |remote| {
                let thread = std::thread::Builder::new().stack_size(STACK);
                // Where there can be no thread it is asked here.
                let asked = move || Remote::info_within(remote, patience);
                thread.spawn_scoped(scope, asked).map_err(|_| remote)
            };
            let asked: Vec<_> = some.iter().map(ask).collect();
            all.extend(asked.into_iter().map(|asked| match asked {
                Ok(thread) => {
                    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
                }
                Err(remote) => remote.info_within(patience),
            }));
        });
    }
    all
}
