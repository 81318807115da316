//! fork and exec: what every other one has on top of it.

use super::super::CompareError;
use super::super::launch::Call;
use super::super::workload::script_of;
use super::{Start, words};

/// The workload's shell, in the tree of its files.
pub fn call(start: &Start<'_>) -> Result<Call, CompareError> {
    let root = start.lab.root();
    let command = words![root.join("bin/busybox"), "sh", script_of(start.job)].to_vec();
    Ok(Call { command, undo: None, directory: Some(root) })
}
