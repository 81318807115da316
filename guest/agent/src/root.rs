//! The root file system on a disk: found by the disk's serial number, mounted, and made the root.
//!
//! ```text
//! read-only:  /husk/lower (disk) + /husk/ram (tmpfs) = /husk/root (overlay) ─▶ /
//! writable:   /husk/root (disk) ─▶ /
//! ```

use core::ffi::CStr;

use crate::sys::machine::{MOVE, READ_ONLY, change_root, mount};
use crate::sys::{Errno, Fd, Result, file, process};
use crate::text::{Path, lines};

type Failed = (&'static [u8], Errno);

/// How long a disk may take to appear, and how often it is looked for.
const TRIES: u32 = 500;
const PAUSE_MILLIS: u32 = 10;

/// Makes the file system on the disk with this serial number the root.
///
/// # Errors
/// What could not be done, and why.
pub fn change_to(serial: &[u8], writable: bool) -> core::result::Result<(), Failed> {
    let failed = |what: &'static [u8]| move |e| (what, e);
    for directory in [c"/husk", c"/husk/lower", c"/husk/ram", c"/husk/root"] {
        file::make_directory(directory, 0o755).map_err(failed(b"no directory can be made"))?;
    }
    let disk = find(serial).map_err(failed(b"the root's disk has not appeared"))?;
    let disk = disk.as_c_str();
    if writable {
        mount_any(disk, c"/husk/root", 0).map_err(failed(NO_FILE_SYSTEM))?;
    } else {
        mount_any(disk, c"/husk/lower", READ_ONLY).map_err(failed(NO_FILE_SYSTEM))?;
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

const NO_FILE_SYSTEM: &[u8] = b"no file system that this kernel knows is on the root's disk";

fn enter() -> Result<()> {
    file::change_directory(c"/husk/root")?;
    mount(c".", c"/", c"", MOVE, c"")?;
    change_root(c".")?;
    file::change_directory(c"/")
}

fn overlay() -> Result<()> {
    mount(c"tmpfs", c"/husk/ram", c"tmpfs", 0, c"mode=0755")?;
    file::make_directory(c"/husk/ram/upper", 0o755)?;
    file::make_directory(c"/husk/ram/work", 0o755)?;
    let layers = c"lowerdir=/husk/lower,upperdir=/husk/ram/upper,workdir=/husk/ram/work";
    mount(c"overlay", c"/husk/root", c"overlay", 0, layers)
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
fn find(serial: &[u8]) -> Result<Path> {
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

fn among(directory: Fd, serial: &[u8]) -> Result<Path> {
    let mut room = [0u8; 2048];
    loop {
        let len = file::entries(directory, &mut room)?;
        if len == 0 {
            return Err(Errno::NOENT);
        }
        let mut rest = room.get(..len).unwrap_or_default();
        while let Some((name, others)) = entry(rest) {
            rest = others;
            let path = Path::of(&[b"/sys/block/", name, b"/serial"])?;
            let mut text = [0; 64];
            let told = file::read_file(path.as_c_str(), &mut text).unwrap_or_default();
            if told.trim_ascii_end() == serial {
                return Path::of(&[b"/dev/", name]);
            }
        }
    }
}

/// The name of the first linux_dirent64 (`man 2 getdents64`), and what follows it.
fn entry(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let &[a, b] = bytes.get(16..18)?.first_chunk()?;
    let (this, others) = bytes.split_at_checked(u16::from_le_bytes([a, b]).into())?;
    let name = this.get(19..)?.split(|byte| *byte == 0).next()?;
    Some((name, others))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_names_of_a_directory_are_read_as_the_kernel_writes_them() {
        let mut bytes = Vec::new();
        for name in [&b"vda"[..], b"loop0"] {
            let len = (19 + name.len() + 1).next_multiple_of(8);
            let mut one = vec![0; 16];
            one.extend((len as u16).to_le_bytes());
            one.push(10);
            one.extend(name);
            one.resize(len, 0);
            bytes.extend(one);
        }
        let (first, rest) = entry(&bytes).expect("an entry");
        let (second, rest) = entry(rest).expect("an entry");
        assert_eq!((first, second, rest), (&b"vda"[..], &b"loop0"[..], &b""[..]));
        assert!(entry(rest).is_none());
        assert!(entry(&bytes[..20]).is_none(), "one that is cut off");
    }
}
