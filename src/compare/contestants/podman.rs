//! podman, with its monitor and whatever runtime it is set up with. No image: the root files are
//! given as they are.

use super::super::CompareError;
use super::super::launch::Call;
use super::super::workload::script_of;
use super::{Start, words};

/// `podman run --rm --rootfs ROOT …`
pub fn call(start: &Start<'_>) -> Result<Call, CompareError> {
    let run = words![
        "run",
        "--rm",
        "--name",
        start.id,
        "--network=none",
        "--read-only",
        "--log-driver=none",
        "--rootfs",
        start.lab.root(),
        "/bin/busybox",
        "sh",
        script_of(start.job),
    ];
    let remove = start.with(words!["rm", "--force", "--time=0", start.id]);
    Ok(Call { undo: Some(remove.command), ..start.with(run) })
}
