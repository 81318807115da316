//! Runtimes with the command line of runc: crun, runc, and gVisor's runsc.

use std::ffi::OsString;

use super::super::CompareError;
use super::super::lab::not_root;
use super::super::launch::Call;
use super::{Start, words};

/// crun; for a user who is not root without control groups.
pub fn crun(start: &Start<'_>) -> Result<Call, CompareError> {
    let rootless = not_root().map(|_| OsString::from("--cgroup-manager=disabled"));
    Ok(runtime(start, rootless.into_iter().collect()))
}

/// runc, which sees by itself that it is not root's.
pub fn runc(start: &Start<'_>) -> Result<Call, CompareError> {
    Ok(runtime(start, Vec::new()))
}

/// runsc, without the network stack of its own that nobody here uses.
pub fn runsc(start: &Start<'_>) -> Result<Call, CompareError> {
    let mut options = words!["--network=none"].to_vec();
    if not_root().is_some() {
        options.extend(words!["--rootless", "--ignore-cgroups"]);
    }
    Ok(runtime(start, options))
}

/// `RUNTIME [OPTIONS] --root STATE run --bundle BUNDLE ID`; its state is kept in the lab, where it is
/// counted and goes with everything else.
fn runtime(start: &Start<'_>, options: Vec<OsString>) -> Call {
    let name = start.program.file_name().unwrap_or_default().to_owned();
    let state = start.lab.path("state").join(name);
    let common: Vec<OsString> = options.into_iter().chain(words!["--root", state]).collect();
    let bundle = start.lab.bundle(start.job);
    let run = words!["run", "--bundle", bundle, start.id];
    let delete = start.with(common.iter().cloned().chain(words!["delete", "--force", start.id]));
    Call { undo: Some(delete.command), ..start.with(common.into_iter().chain(run)) }
}
