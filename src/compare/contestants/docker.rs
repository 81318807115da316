//! docker, with its daemon, containerd, and the shim of each container. It takes images only: the files
//! become one, which is removed at the end.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use super::super::CompareError;
use super::super::lab::Lab;
use super::super::launch::{self, Call};
use super::super::workload::script_of;
use super::{Ready, Start, words};

/// How long the daemon may take to answer.
const ANSWER: Duration = Duration::from_secs(20);
/// How long an image may take: 12 MB for the largest workload.
const IMPORT: Duration = Duration::from_secs(120);

/// Makes an image of the files, if there is a daemon.
pub fn prepare(lab: &Lab, program: &Path, cancel: &AtomicBool) -> Ready {
    let docker = |words: &[OsString]| {
        let program = program.as_os_str().to_owned();
        std::iter::once(program).chain(words.iter().cloned()).collect::<Vec<_>>()
    };
    let asked = docker(&words!["version", "--format", "{{.Server.Version}}"]);
    launch::told(&asked, ANSWER, cancel).map_err(|why| format!("no daemon answers: {why}"))?;
    // Its client takes no directory. Every workload's busybox can write an archive.
    let (tar, root) = (lab.path("docker.tar"), lab.root());
    let pack = words![root.join("bin/busybox"), "tar", "-c", "-f", &tar, "-C", &root, "."];
    launch::told(&pack, IMPORT, cancel).map_err(|why| format!("the files for an image: {why}"))?;
    let image = image(lab);
    let imported = launch::told(&docker(&words!["import", &tar, &image]), IMPORT, cancel);
    // Of no more use, and the lab may lie in memory.
    let _ = std::fs::remove_file(&tar);
    let remove = docker(&words!["rmi", "--force", &image]);
    match imported {
        Ok(_) => Ok(Some(remove)),
        Err(why) => {
            // The daemon may have made it all the same.
            let _ = launch::quietly(&remove, ANSWER);
            Err(format!("docker import: {why}"))
        }
    }
}

/// The image's name, of which the tag is the lab's own.
fn image(lab: &Lab) -> String {
    let name = lab.path("").file_name().unwrap_or_default().to_string_lossy().into_owned();
    // Tags have letters, numbers, `_`, `.` and `-`, names no capitals (the OCI's distribution
    // specification, "Pulling manifests").
    format!("husk-compare:{}", name.rsplit('-').next().unwrap_or("lab"))
}

/// Where the client writes the number by which the shim knows an instance's container.
pub fn number(lab: &Lab, id: &str) -> PathBuf {
    lab.path(&format!("docker-{id}"))
}

/// `docker run --rm IMAGE …`
pub fn call(start: &Start<'_>) -> Result<Call, CompareError> {
    let run = words![
        "run",
        "--rm",
        "--name",
        start.id,
        "--cidfile",
        number(start.lab, start.id),
        "--pull=never",
        "--network=none",
        "--read-only",
        "--log-driver=none",
        image(start.lab),
        "/bin/busybox",
        "sh",
        script_of(start.job),
    ];
    let remove = start.with(words!["rm", "--force", start.id]);
    Ok(Call { undo: Some(remove.command), ..start.with(run) })
}
