//! The root file system, on a disk or a directory of the host's: found by the disk's serial number or the
//! directory's tag, mounted, and made the root.
//!
//! ```text
//! only read:  /husk/lower + /husk/upper (tmpfs, or a disk) = /husk/root (overlay) ─▶ /
//! writable:   /husk/root ─▶ /
//! ```
//!
//! Below an overlay the root's own /dev, /proc, /sys and /run are never looked at: the host's root has its
//! /proc there, which husk lets nobody into.

use core::ffi::CStr;

use crate::mounts;
use crate::sys::machine::{MOVE, READ_ONLY, REMOUNT, change_root, mount};
use crate::sys::{Errno, Fd, Result, directory, file, process};
use crate::text::{Path, lines};

type Failed = (&'static [u8], Errno);

/// How long a disk may take to appear, and how often it is looked for.
const TRIES: u32 = 500;
const PAUSE_MILLIS: u32 = 10;

/// Where the root is.
#[derive(Clone, Copy)]
pub enum Place<'a> {
    /// On the disk with this serial number.
    Disk(&'a [u8]),
    /// The shared directory with this tag.
    Volume(&'a [u8]),
}

/// Makes that file system the root. If it is only read, what is written above it is on `disk`, or in memory.
///
/// # Errors
/// What could not be done, and why.
pub fn change_to(
    place: Place<'_>,
    writable: bool,
    disk: Option<&CStr>,
) -> core::result::Result<(), Failed> {
    let failed = |what: &'static [u8]| move |e| (what, e);
    for directory in [c"/husk", c"/husk/lower", c"/husk/upper", c"/husk/root"] {
        file::make_directory(directory, 0o755).map_err(failed(b"no directory can be made"))?;
    }
    if writable {
        mount_it(place, c"/husk/root", 0)?;
    } else {
        mount_it(place, c"/husk/lower", READ_ONLY)?;
        mounts::upper(disk, c"/husk/upper", 0).map_err(failed(mounts::NO_UPPER))?;
        overlay().map_err(failed(
            b"the overlay above the root cannot be made: the kernel needs CONFIG_OVERLAY_FS",
        ))?;
    }
    for (from, to) in [
        (c"/dev", c"/husk/root/dev"),
        (c"/proc", c"/husk/root/proc"),
        (c"/sys", c"/husk/root/sys"),
        (c"/run", c"/husk/root/run"),
    ] {
        let moved = file::make_directory(to, 0o755).and_then(|()| mount(from, to, c"", MOVE, c""));
        moved.map_err(failed(b"/dev, /proc, /sys or /run cannot be had in the root"))?;
    }
    enter().map_err(failed(b"the root cannot be entered"))
}

/// Makes the root read-only, when everything is mounted in it.
///
/// # Errors
/// The kernel's.
pub fn seal() -> core::result::Result<(), Failed> {
    let sealed = mount(c"", c"/", c"", REMOUNT | READ_ONLY, c"");
    sealed.map_err(|e| (&b"the root cannot be made read-only"[..], e))
}

fn mount_it(place: Place<'_>, at: &CStr, flags: usize) -> core::result::Result<(), Failed> {
    let failed = |what: &'static [u8]| move |e| (what, e);
    match place {
        Place::Disk(serial) => {
            let disk = find(serial).map_err(failed(b"the root's disk has not appeared"))?;
            mount_any(disk.as_c_str(), at, flags).map_err(|e| {
                let what: &[u8] = match is_divided(&disk) {
                    true => b"the root's disk has partitions: it must be one file system",
                    false => b"no file system that this kernel knows is on the root's disk",
                };
                (what, e)
            })
        }
        Place::Volume(tag) => mounts::volume(tag, at, flags).map_err(failed(
            b"the root's directory cannot be mounted: the kernel needs CONFIG_VIRTIO_FS",
        )),
    }
}

fn enter() -> Result<()> {
    file::change_directory(c"/husk/root")?;
    mount(c".", c"/", c"", MOVE, c"")?;
    change_root(c".")?;
    file::change_directory(c"/")
}

fn overlay() -> Result<()> {
    file::make_directory(c"/husk/upper/upper", 0o755)?;
    file::make_directory(c"/husk/upper/work", 0o755)?;
    for directory in [
        c"/husk/upper/upper/dev",
        c"/husk/upper/upper/proc",
        c"/husk/upper/upper/sys",
        c"/husk/upper/upper/run",
    ] {
        file::make_directory(directory, 0o755)?;
        mounts::hide_below(directory);
    }
    let layers = c"lowerdir=/husk/lower,upperdir=/husk/upper/upper,workdir=/husk/upper/work";
    mount(c"overlay", c"/husk/root", c"overlay", 0, layers)
}

/// Whether a disk has partitions: `vda1` is the first of `vda`.
fn is_divided(disk: &Path) -> bool {
    let first = Path::of(&[disk.as_c_str().to_bytes(), b"1"]);
    first.is_ok_and(|first| match file::open(first.as_c_str(), file::READ | file::CLOEXEC, 0) {
        Ok(mut fd) => {
            fd.close();
            true
        }
        Err(_) => false,
    })
}

/// Mounts `disk` with the first file system that takes it.
fn mount_any(disk: &CStr, at: &CStr, flags: usize) -> Result<()> {
    // Most are, and Linux' older drivers of that family would complain first.
    let first = mount(disk, at, c"ext4", flags, c"");
    if first.is_ok() {
        return Ok(());
    }
    // What was not unmounted has a journal to be replayed, which a disk that is read-only refuses.
    if flags & READ_ONLY != 0 && mount(disk, at, c"ext4", flags, c"noload").is_ok() {
        return Ok(());
    }
    let mut room = [0; 4096];
    for line in lines(file::read_file(c"/proc/filesystems", &mut room)?) {
        // "nodev\tNAME" has no disk, "\tNAME" has one.
        let Some(name) = line.strip_prefix(b"\t").filter(|name| *name != b"ext4") else { continue };
        let name = Path::of(&[name])?;
        if mount(disk, at, name.as_c_str(), flags, c"").is_ok() {
            return Ok(());
        }
    }
    first
}

/// The device node of the disk with this serial number.
///
/// # Errors
/// `ENOENT` when none has come, after five seconds; else the kernel's.
pub fn find(serial: &[u8]) -> Result<Path> {
    for _ in 0..TRIES {
        let mut directory = file::open(c"/sys/block", file::READ | file::DIRECTORY, 0)?;
        let found = among(directory, serial);
        directory.close();
        match found {
            Err(Errno::NOENT) => process::sleep_millis(PAUSE_MILLIS),
            other => return other,
        }
    }
    Err(Errno::NOENT)
}

fn among(blocks: Fd, serial: &[u8]) -> Result<Path> {
    let mut room = [0u8; 2048];
    loop {
        let len = directory::entries(blocks, &mut room)?;
        if len == 0 {
            return Err(Errno::NOENT);
        }
        let mut rest = room.get(..len).unwrap_or_default();
        while let Some((name, others)) = directory::entry(rest) {
            rest = others;
            let name = name.to_bytes();
            let path = Path::of(&[b"/sys/block/", name, b"/serial"])?;
            let mut text = [0; 64];
            let told = file::read_file(path.as_c_str(), &mut text).unwrap_or_default();
            if told.trim_ascii_end() == serial {
                return Path::of(&[b"/dev/", name]);
            }
        }
    }
}
