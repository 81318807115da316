//! The file systems that every Linux program expects.

use crate::sys::Result;
use crate::sys::file::{make_directory, symlink};
use crate::sys::machine::{NO_DEV, NO_EXEC, NO_SUID, mount};
use crate::text::Path;

/// What is needed to find out anything: /proc, /sys and /dev. What there is already, or this kernel
/// does not have, is passed over: what needs it says so.
pub fn early() {
    let quiet = NO_SUID | NO_DEV | NO_EXEC;
    for directory in [c"/proc", c"/sys", c"/dev", c"/run"] {
        let _ = make_directory(directory, 0o755);
    }
    let _ = mount(c"proc", c"/proc", c"proc", quiet, c"");
    let _ = mount(c"sysfs", c"/sys", c"sysfs", quiet, c"");
    let _ = mount(c"devtmpfs", c"/dev", c"devtmpfs", NO_SUID, c"mode=0755");
    let _ = mount(c"tmpfs", c"/run", c"tmpfs", NO_SUID | NO_DEV, c"mode=0755");
    for directory in [c"/dev/pts", c"/dev/shm"] {
        let _ = make_directory(directory, 0o755);
    }
    let pts = c"gid=5,mode=620,ptmxmode=666";
    let _ = mount(c"devpts", c"/dev/pts", c"devpts", NO_SUID | NO_EXEC, pts);
    let _ = mount(c"tmpfs", c"/dev/shm", c"tmpfs", NO_SUID | NO_DEV, c"mode=1777");
    let _ = mount(c"cgroup2", c"/sys/fs/cgroup", c"cgroup2", quiet, c"");
    for (target, path) in [
        (c"/proc/self/fd", c"/dev/fd"),
        (c"/proc/self/fd/0", c"/dev/stdin"),
        (c"/proc/self/fd/1", c"/dev/stdout"),
        (c"/proc/self/fd/2", c"/dev/stderr"),
    ] {
        let _ = symlink(target, path);
    }
}

/// The rest, in a machine whose root is its initramfs.
pub fn complete() {
    let _ = make_directory(c"/tmp", 0o1777);
    let _ = mount(c"tmpfs", c"/tmp", c"tmpfs", NO_SUID | NO_DEV, c"mode=1777");
}

/// The shared directory `tag`, at `path`, which is made with all that leads to it.
///
/// # Errors
/// The kernel's.
pub fn volume(tag: &[u8], path: &[u8], flags: usize) -> Result<()> {
    for (at, byte) in path.iter().enumerate().skip(1) {
        if *byte == b'/' {
            make_directory(Path::of(&[path.get(..at).unwrap_or_default()])?.as_c_str(), 0o755)?;
        }
    }
    let (tag, path) = (Path::of(&[tag])?, Path::of(&[path])?);
    make_directory(path.as_c_str(), 0o755)?;
    mount(tag.as_c_str(), path.as_c_str(), c"virtiofs", flags, c"")
}
