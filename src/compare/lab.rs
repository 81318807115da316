//! What all contestants share: one directory with the files of the workload, as a tree for
//! containers and as an initramfs for VMs, the kernel, and whatever they keep of their own. It is
//! made anew for each comparison and gone at its end.

use std::ffi::OsString;
use std::fs;
use std::io::Read;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use husk_initramfs::Cpio;
use serde_json::Value;

use super::kernel::Inside;
use super::program::find;
use super::workload::{self, Job, Workload};
use super::{CompareError, bundle, python};
use crate::kernels::{self, UnpackFileError};

/// The memory of every VM, in MiB.
pub const MEMORY_MIB: u32 = 128;

/// The shared directory and what is in it.
pub struct Lab {
    scratch: Scratch,
    /// The kernels, if there are VMs among the contestants.
    pub kernel: Option<Kernel>,
    /// The size of the files of the workload, in bytes.
    pub files: u64,
    /// What every guest has on its kernel's command line besides what its VMM needs.
    pub append: String,
}

/// The kernel of all VMs.
pub struct Kernel {
    /// As the user gave it: for husk.
    pub given: PathBuf,
    /// The same kernel unpacked, which is what the others load fastest.
    pub unpacked: PathBuf,
    /// What the unpacked one has in it.
    pub has: Inside,
}

impl Lab {
    /// Makes the directory; `kernel` if there are VMs, and `filter` of system calls for bundles.
    ///
    /// # Errors
    /// No static busybox, no room, or a kernel that does not unpack.
    pub fn make(
        workload: Workload,
        kernel: Option<PathBuf>,
        filter: Option<Value>,
    ) -> Result<Self, CompareError> {
        let busybox = busybox()?;
        let scratch = Scratch::make()?;
        let mut lab = Self { scratch, kernel: None, files: 0, append: String::new() };
        lab.files = lab.lay_out(&busybox, workload, filter.as_ref())?;
        if let Some(given) = kernel {
            let unpacked = lab.path("vmlinux");
            let unpacked = match kernels::unpack(&given, &unpacked) {
                Ok(_) => unpacked,
                Err(UnpackFileError::NotPacked(_) | UnpackFileError::NoVmlinux(_)) => given.clone(),
                Err(e) => return Err(e.into()),
            };
            let has = Inside::of(&unpacked).map_err(host("reading", &unpacked))?;
            lab.kernel = Some(Kernel { given, unpacked, has });
        }
        Ok(lab)
    }

    /// A place in the directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.scratch.0.join(name)
    }

    /// The files of the workload.
    pub fn root(&self) -> PathBuf {
        self.path("root")
    }

    /// The same files as an initramfs whose init does `job`.
    pub fn initrd(&self, job: Job) -> PathBuf {
        self.path(&format!("initrd-{}", workload::script_of(job)))
    }

    /// The OCI bundle of a container that does `job`.
    pub fn bundle(&self, job: Job) -> PathBuf {
        self.path(&format!("bundle-{}", workload::script_of(job)))
    }

    /// Bytes on the disk, or in RAM, that everything in the directory takes.
    pub fn usage(&self) -> u64 {
        usage(&self.scratch.0)
    }

    fn lay_out(
        &self,
        busybox: &[u8],
        workload: Workload,
        filter: Option<&Value>,
    ) -> Result<u64, CompareError> {
        let root = self.root();
        fs::create_dir_all(&root).map_err(host("making", &root))?;
        if workload == Workload::Python {
            python::lay_out(&root, &self.scratch.0)?;
        }
        for dir in ["bin", "dev", "proc", "sys", "tmp"] {
            let dir = root.join(dir);
            fs::create_dir_all(&dir).map_err(host("making", &dir))?;
        }
        write(&root.join("bin/busybox"), busybox)?;
        let (script, idle) = (workload.script(), workload::idle_script());
        let more = [("workload", script), ("idle", idle)].into_iter().chain(workload.files());
        for (name, text) in more {
            let path = root.join(name);
            let parent = path.parent().unwrap_or(&root);
            fs::create_dir_all(parent).map_err(host("making", parent))?;
            write(&path, text.as_bytes())?;
        }
        let python::Tree { directories, files } =
            python::tree(&root).map_err(host("reading", &root))?;
        for job in [Job::Work, Job::Idle] {
            let mut cpio = Cpio::default();
            for dir in &directories {
                cpio.directory(dir);
            }
            // The kernel opens it for init before any devtmpfs is mounted.
            cpio.device("dev/console", 0o600, 5, 1);
            // As containers have them; an interpreter wants the second.
            cpio.device("dev/null", 0o666, 1, 3);
            cpio.device("dev/urandom", 0o666, 1, 9);
            for (name, bytes) in &files {
                cpio.file(name, 0o755, bytes);
            }
            cpio.file("init", 0o755, workload::init(workload, job).as_bytes());
            write(&self.initrd(job), &cpio.finish())?;

            let bundle = self.bundle(job);
            fs::create_dir_all(&bundle).map_err(host("making", &bundle))?;
            let args = ["/bin/busybox", "sh", workload::script_of(job)];
            let config = bundle::config(text(&root)?, &args, not_root(), filter);
            write(&bundle.join("config.json"), config.to_string().as_bytes())?;
        }
        Ok(files.iter().map(|(_, bytes)| bytes.len() as u64).sum())
    }
}

/// This user and group, unless it is root.
pub fn not_root() -> Option<(u32, u32)> {
    // SAFETY: neither touches memory or fails.
    let (uid, gid) = unsafe { (libc::geteuid(), libc::getegid()) };
    (uid != 0).then_some((uid, gid))
}

fn host(verb: &str, path: &Path) -> impl FnOnce(std::io::Error) -> CompareError + use<> {
    CompareError::host(format!("{verb} {}", path.display()))
}

fn write(path: &Path, bytes: &[u8]) -> Result<(), CompareError> {
    use std::os::unix::fs::PermissionsExt;
    fs::write(path, bytes).map_err(host("writing", path))?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).map_err(host("writing", path))
}

/// `path` as JSON can hold it.
///
/// # Errors
/// It is not UTF-8.
pub fn text(path: &Path) -> Result<&str, CompareError> {
    path.to_str().ok_or_else(|| CompareError::Host {
        what: format!("{path:?}"),
        source: std::io::Error::other("it is not UTF-8, and JSON cannot hold it"),
    })
}

/// A directory of our own, gone when dropped.
struct Scratch(PathBuf);

impl Scratch {
    fn make() -> Result<Self, CompareError> {
        let template = std::env::temp_dir().join("husk-compare-XXXXXX");
        text(&template)?;
        let mut bytes = template.as_os_str().as_bytes().to_vec();
        bytes.push(0);
        // SAFETY: a NUL-terminated string of ours, which mkdtemp writes the last letters of.
        let made = unsafe { libc::mkdtemp(bytes.as_mut_ptr().cast()) };
        if made.is_null() {
            let error = std::io::Error::last_os_error();
            return Err(host("making a directory like", &template)(error));
        }
        bytes.pop();
        Ok(Self(OsString::from_vec(bytes).into()))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // What cannot be removed now is left in a directory for such things.
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// What everything at `path` takes; what vanishes meanwhile takes nothing.
fn usage(path: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let own = fs::symlink_metadata(path).map(|m| (m.blocks() * 512, m.is_dir()));
    let Ok((own, is_dir)) = own else { return 0 };
    let entries = is_dir.then(|| fs::read_dir(path).ok()).flatten();
    let inside = entries.into_iter().flatten().flatten().map(|entry| usage(&entry.path()));
    own + inside.sum::<u64>()
}

/// The statically linked busybox of this machine.
fn busybox() -> Result<Vec<u8>, CompareError> {
    let mut dynamic = None;
    for name in ["busybox", "busybox-static", "busybox.static"] {
        let Some(path) = find(name) else { continue };
        let mut bytes = Vec::new();
        let read = fs::File::open(&path).and_then(|file| {
            // Some 2 MB; what is far larger is no busybox.
            file.take(64 << 20).read_to_end(&mut bytes)
        });
        read.map_err(host("reading", &path))?;
        // A dynamically linked program names its interpreter near the start of its file.
        let head = bytes.get(..4096).unwrap_or(&bytes);
        if bytes.starts_with(b"\x7fELF") && !head.windows(4).any(|w| w == b"/ld-") {
            return Ok(bytes);
        }
        dynamic = Some(path);
    }
    Err(CompareError::NoBusybox { dynamic })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn containers_and_vms_get_the_same_files_and_all_of_it_goes() {
        if busybox().is_err() {
            crate::skipped::skipped("no static busybox");
            return;
        }
        let lab = Lab::make(Workload::True, None, None).unwrap();
        let root = lab.root();
        let script = fs::read(root.join("workload")).unwrap();
        let initrd = fs::read(lab.initrd(Job::Work)).unwrap();
        assert!(initrd.windows(script.len()).any(|w| w == script));
        let config = fs::read_to_string(lab.bundle(Job::Idle).join("config.json")).unwrap();
        assert!(config.contains("\"idle\"") && config.contains(root.to_str().unwrap()));
        assert!(lab.usage() > lab.files);
        let all = lab.path("");
        drop(lab);
        assert!(!all.exists());
    }
}
