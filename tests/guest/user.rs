//! A user who is not root, in the group of /dev/kvm: husk needs no more.

use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::{Lab, skipped};

/// Whom no system has.
const USER: u32 = 65533;

/// That user, and the group.
#[derive(Clone, Copy)]
pub struct User {
    pub uid: u32,
    pub gid: u32,
}

impl User {
    /// `None`, said on standard error, unless root runs this, who can be anybody, and that group may open /dev/kvm.
    /// The user may enter the directory of `lab`.
    pub fn other(lab: &Lab) -> Option<User> {
        let kvm = std::fs::metadata("/dev/kvm").ok().filter(|kvm| kvm.mode() & 0o60 == 0o60);
        // SAFETY: it cannot fail.
        let Some(kvm) = kvm.filter(|_| unsafe { libc::geteuid() } == 0) else {
            skipped("it becomes another user, who must be let near /dev/kvm");
            return None;
        };
        std::fs::set_permissions(lab.path("."), PermissionsExt::from_mode(0o755)).unwrap();
        Some(User { uid: USER, gid: kvm.gid() })
    }

    /// A new directory of the user's own, closed to others.
    pub fn directory(&self, path: PathBuf) -> PathBuf {
        std::fs::create_dir(&path).unwrap();
        self.take(&path);
        path
    }

    /// Has `command` run as that user, with a cache of kernels that its tests share.
    pub fn run(&self, command: &mut Command) {
        let cache = super::ram().join("husk-test-kernels-of-another");
        if !cache.is_dir() {
            std::fs::create_dir_all(&cache).unwrap();
        }
        self.take(&cache);
        command.env("XDG_CACHE_HOME", cache).uid(self.uid).gid(self.gid);
    }

    fn take(&self, directory: &Path) {
        std::fs::set_permissions(directory, PermissionsExt::from_mode(0o700)).unwrap();
        chown(directory, Some(self.uid), Some(self.gid)).unwrap();
    }
}
