//! Who can be compared: a table, and for each a function that makes the command of one instance.
//!
//! Each function knows the words of one program and nothing else; none starts anything. A new
//! contestant is a file here and a line in [`KINDS`].

mod cloud_hypervisor;
mod docker;
mod firecracker;
mod husk;
mod oci;
mod podman;
mod process;
mod qemu;

pub use docker::number as docker_number;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use super::CompareError;
use super::lab::{Kernel, Lab};
use super::launch::Call;
use super::program::find;
use super::workload::Job;
use crate::config::nearest;

/// What sort of thing an instance is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// A plain process: the floor.
    Process,
    /// A process in namespaces of its own.
    Container,
    /// A guest with a kernel of its own, on KVM.
    Vm,
}

impl Family {
    /// As it stands in tables.
    pub fn name(self) -> &'static str {
        match self {
            Family::Process => "process",
            Family::Container => "container",
            Family::Vm => "VM",
        }
    }
}

/// A sort of contestant.
pub struct Kind {
    /// As the user names it.
    pub name: &'static str,
    /// What it is.
    pub family: Family,
    /// The program, if it is looked for on PATH.
    program: Option<&'static str>,
    /// What brings the program.
    pub package: &'static str,
    /// Whether its instances are our bundles, whose filter of system calls is ours to choose.
    pub bundled: bool,
    /// Programs that run whether or not there are instances, and serve all of them.
    pub daemons: &'static [&'static str],
    /// Makes ready what all instances share.
    prepare: fn(&Lab, &Path, &AtomicBool) -> Ready,
    call: fn(&Start<'_>) -> Result<Call, CompareError>,
}

/// The command that removes what was made ready, if something was; or why the contestant cannot take part
/// with these files and this kernel.
pub type Ready = Result<Option<Vec<OsString>>, String>;

/// All there are, in the order of the tables.
pub static KINDS: [Kind; 10] = [
    Kind {
        name: "process",
        family: Family::Process,
        program: None,
        package: "it is always there",
        bundled: false,
        daemons: &[],
        prepare: nothing,
        call: process::call,
    },
    Kind {
        name: "crun",
        family: Family::Container,
        program: Some("crun"),
        package: "`apt-get install crun`",
        bundled: true,
        daemons: &[],
        prepare: nothing,
        call: oci::crun,
    },
    Kind {
        name: "runc",
        family: Family::Container,
        program: Some("runc"),
        package: "`apt-get install runc`",
        bundled: true,
        daemons: &[],
        prepare: nothing,
        call: oci::runc,
    },
    Kind {
        name: "runsc",
        family: Family::Container,
        program: Some("runsc"),
        package: "`apt-get install runsc`, or gVisor's release (https://gvisor.dev/docs/user_guide/install/)",
        bundled: true,
        daemons: &[],
        prepare: nothing,
        call: oci::runsc,
    },
    Kind {
        name: "podman",
        family: Family::Container,
        program: Some("podman"),
        package: "`apt-get install podman`",
        bundled: false,
        daemons: &[],
        prepare: nothing,
        call: podman::call,
    },
    Kind {
        name: "docker",
        family: Family::Container,
        program: Some("docker"),
        package: "`apt-get install docker.io`",
        bundled: false,
        daemons: &["dockerd", "containerd"],
        prepare: docker::prepare,
        call: docker::call,
    },
    Kind {
        name: "husk",
        family: Family::Vm,
        program: None,
        package: "it is this program",
        bundled: false,
        daemons: &[],
        prepare: nothing,
        call: husk::call,
    },
    Kind {
        name: "qemu",
        family: Family::Vm,
        program: Some("qemu-system-x86_64"),
        package: "`apt-get install qemu-system-x86`",
        bundled: false,
        daemons: &[],
        prepare: nothing,
        call: qemu::call,
    },
    Kind {
        name: "firecracker",
        family: Family::Vm,
        program: Some("firecracker"),
        package: "a release of https://github.com/firecracker-microvm/firecracker",
        bundled: false,
        daemons: &[],
        prepare: nothing,
        call: firecracker::call,
    },
    Kind {
        name: "cloud-hypervisor",
        family: Family::Vm,
        program: Some("cloud-hypervisor"),
        package: "a release of https://github.com/cloud-hypervisor/cloud-hypervisor",
        bundled: false,
        daemons: &[],
        prepare: cloud_hypervisor::prepare,
        call: cloud_hypervisor::call,
    },
];

/// Nothing is to be made ready.
fn nothing(_: &Lab, _: &Path, _: &AtomicBool) -> Ready {
    Ok(None)
}

impl Kind {
    /// The one called `name`.
    ///
    /// # Errors
    /// There is none of that name.
    pub fn named(name: &str) -> Result<&'static Kind, CompareError> {
        KINDS.iter().find(|kind| kind.name == name).ok_or_else(|| CompareError::Unknown {
            what: "contestant",
            name: name.to_owned(),
            meant: nearest(name, KINDS.iter().map(|kind| kind.name)),
            known: KINDS.iter().map(|kind| kind.name).collect::<Vec<_>>().join(", "),
        })
    }

    /// Its program; `husk` is this one. `None` when it is not installed.
    pub fn find(&self, husk: &Path) -> Option<PathBuf> {
        match self.program {
            Some(program) => find(program),
            None => Some(husk.to_owned()),
        }
    }

    /// Makes ready what all instances of its program share; gives up when `cancel` becomes true.
    ///
    /// # Errors
    /// Why it cannot take part.
    pub fn prepare(&self, lab: &Lab, program: &Path, cancel: &AtomicBool) -> Ready {
        (self.prepare)(lab, program, cancel)
    }

    /// The command of one instance.
    ///
    /// # Errors
    /// A file it needs cannot be written.
    pub fn call(&self, start: &Start<'_>) -> Result<Call, CompareError> {
        (self.call)(start)
    }
}

/// What every guest has on its kernel's command line, whatever its VMM would put there by itself: none is
/// to gain by a default that the others have not.
const CMDLINE: &str = "console=ttyS0 quiet panic=-1 cryptomgr.notests";
/// Besides where the machine has no PCI bus: the kernel does not look for one.
const NO_PCI: &str = "pci=off";

/// What a contestant is told of the instance it is to start.
pub struct Start<'a> {
    /// What all share.
    pub lab: &'a Lab,
    /// Its program.
    pub program: &'a Path,
    /// What the instance is called; no other is called so.
    pub id: &'a str,
    /// What it is to do.
    pub job: Job,
}

impl Start<'_> {
    fn kernel(&self) -> Result<&Kernel, CompareError> {
        self.lab.kernel.as_ref().ok_or_else(|| CompareError::Host {
            what: "the kernel".to_owned(),
            source: std::io::ErrorKind::NotFound.into(),
        })
    }

    /// A guest's command line: what all have, `own`, and what the user has for all.
    fn cmdline(&self, own: &[&str]) -> String {
        let mut words = vec![CMDLINE];
        words.extend(own);
        words.extend(Some(self.lab.append.as_str()).filter(|words| !words.is_empty()));
        words.join(" ")
    }

    /// A call of the program with `words`.
    fn with(&self, words: impl IntoIterator<Item = OsString>) -> Call {
        let program = self.program.as_os_str().to_owned();
        Call {
            command: std::iter::once(program).chain(words).collect(),
            undo: None,
            directory: None,
        }
    }
}

/// Words of a command line, of text and paths.
macro_rules! words {
    ($($word:expr),* $(,)?) => { [$(std::ffi::OsString::from($word)),*] };
}
use words;

#[cfg(test)]
mod tests;
