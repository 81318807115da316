//! The file systems that every Linux program expects.

use core::ffi::CStr;

use crate::sys::Result;
use crate::sys::directory::{HERE, mode_at};
use crate::sys::file::{
    device_minor, make_directory, remove_directory, set_attribute, symlink, write_file,
};
use crate::sys::machine::{NO_ATIME, NO_DEV, NO_EXEC, NO_SUID, READ_ONLY, detach, mount};
use crate::text::{Digits, Path};

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

/// Once everything is mounted: of the directories that have moved into /usr in most systems those that are there
/// are found in their old places, too, unless there is something. Without a root of its own a machine has only
/// what it was given, which is /usr if anything.
pub fn links_into_usr() {
    for (target, path) in [
        (c"/usr/bin", c"/bin"),
        (c"/usr/lib", c"/lib"),
        (c"/usr/lib64", c"/lib64"),
        (c"/usr/sbin", c"/sbin"),
    ] {
        if mode_at(HERE, target, true).is_ok() {
            // It is there.
            let _ = symlink(target, path);
        }
    }
}

/// The place for a mount at `path`, which is made with all that leads to it.
///
/// # Errors
/// The kernel's.
pub fn place(path: &[u8]) -> Result<Path> {
    for (at, byte) in path.iter().enumerate().skip(1) {
        if *byte == b'/' {
            make_directory(Path::of(&[path.get(..at).unwrap_or_default()])?.as_c_str(), 0o755)?;
        }
    }
    let path = Path::of(&[path])?;
    make_directory(path.as_c_str(), 0o755)?;
    Ok(path)
}

/// A fresh directory in memory.
///
/// # Errors
/// The kernel's.
pub fn in_memory(path: &CStr) -> Result<()> {
    mount(c"tmpfs", path, c"tmpfs", NO_SUID | NO_DEV, c"mode=1777")
}

/// The shared directory `tag`.
///
/// # Errors
/// The kernel's.
pub fn volume(tag: &[u8], path: &CStr, flags: usize) -> Result<()> {
    mount(Path::of(&[tag])?.as_c_str(), path, c"virtiofs", flags, c"")?;
    // A slower mount is still one.
    let _ = read_ahead(path);
    Ok(())
}

/// Has the kernel read more of a shared file at a time than of a disk's: each request is a way to the host
/// and back, whatever its size.
fn read_ahead(path: &CStr) -> Result<()> {
    // Linux `Documentation/ABI/testing/sysfs-class-bdi`; what is mounted without a disk has major 0.
    let minor = Digits::of(device_minor(path)?.into());
    let place = Path::of(&[b"/sys/class/bdi/0:", minor.bytes(), b"/read_ahead_kb"])?;
    write_file(place.as_c_str(), READ_AHEAD_KIB)
}

const READ_AHEAD_KIB: &[u8] = b"512";

/// What is said when there is no [`upper`].
pub const NO_UPPER: &[u8] =
    b"what is written has no place: a tmpfs, or on a disk an ext4 (CONFIG_VIRTIO_BLK, CONFIG_EXT4_FS)";

/// The file system for what is written above what is only read: on `disk`, or in memory.
///
/// # Errors
/// The kernel's.
pub fn upper(disk: Option<&CStr>, path: &CStr, flags: usize) -> Result<()> {
    match disk {
        Some(disk) => mount(disk, path, c"ext4", flags | NO_ATIME, c""),
        None => mount(c"tmpfs", path, c"tmpfs", flags, c"mode=0755"),
    }
}

/// The shared directory `tag`, only read, and above it a layer on `disk` or in memory. Neither of the two can be
/// reached afterwards but through the overlay, which holds them.
///
/// # Errors
/// The kernel's.
pub fn overlay(tag: &[u8], path: &CStr, disk: Option<&CStr>) -> Result<()> {
    make_directory(c"/run/husk", 0o700)?;
    upper(disk, c"/run/husk", NO_SUID | NO_DEV)?;
    let mounted = layers(tag, path);
    let _ = detach(c"/run/husk");
    let _ = remove_directory(c"/run/husk");
    mounted
}

/// The layers of [`overlay`], in directories that are `tag`'s: on a disk there are those of others, too.
fn layers(tag: &[u8], path: &CStr) -> Result<()> {
    const OWN: &[u8] = b"/run/husk/of-";
    for directory in [&b""[..], b"/lower", b"/upper", b"/work"] {
        make_directory(Path::of(&[OWN, tag, directory])?.as_c_str(), 0o755)?;
    }
    volume(tag, Path::of(&[OWN, tag, b"/lower"])?.as_c_str(), READ_ONLY)?;
    let (lower, upper, work) = (b"/lower,upperdir=", b"/upper,workdir=", b"/work");
    let layers = Path::of(&[b"lowerdir=", OWN, tag, lower, OWN, tag, upper, OWN, tag, work])?;
    mount(c"overlay", path, c"overlay", 0, layers.as_c_str())
}

/// Has an overlay show this directory of its upper layer alone, without what lies below it (Linux
/// `Documentation/filesystems/overlayfs.rst`, opaque directories). Without attributes in tmpfs it cannot; then what
/// lies below is there, and mostly in nobody's way.
pub fn hide_below(path: &CStr) {
    let _ = set_attribute(path, c"trusted.overlay.opaque", b"y");
}
