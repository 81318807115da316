//! What only the first process of a machine does: mounts, modules, clock, power.

use core::ffi::CStr;

use super::{Errno, Fd, Result, call, pointer};
use crate::text::has_word;

pub const READ_ONLY: usize = 1;
pub const NO_SUID: usize = 2;
pub const NO_DEV: usize = 4;
pub const NO_EXEC: usize = 8;
pub const REMOUNT: usize = 32;
pub const NO_ATIME: usize = 1024;
pub const MOVE: usize = 8192;

/// mount(2)
pub fn mount(from: &CStr, to: &CStr, kind: &CStr, flags: usize, options: &CStr) -> Result<()> {
    let arguments = [pointer(from), pointer(to), pointer(kind), flags, pointer(options), 0];
    // SAFETY: strings that outlive the call.
    unsafe { call(165, arguments) }.map(drop)
}

/// umount2(2) with `MNT_DETACH`: from its place at once, and gone when nobody uses it any more.
pub fn detach(path: &CStr) -> Result<()> {
    const MNT_DETACH: usize = 2;
    // SAFETY: a string that outlives the call.
    unsafe { call(166, [pointer(path), MNT_DETACH, 0, 0, 0, 0]) }.map(drop)
}

/// chroot(2)
pub fn change_root(path: &CStr) -> Result<()> {
    // SAFETY: a string that outlives the call.
    unsafe { call(161, [pointer(path), 0, 0, 0, 0, 0]) }.map(drop)
}

/// finit_module(2); one that is there already is as good.
pub fn load_module(fd: Fd) -> Result<()> {
    // SAFETY: a string that outlives the call.
    match unsafe { call(313, [fd.raw(), pointer(c""), 0, 0, 0, 0]) } {
        Ok(_) | Err(Errno::EXIST) => Ok(()),
        Err(e) => Err(e),
    }
}

/// sethostname(2)
pub fn set_host_name(name: &[u8]) -> Result<()> {
    // SAFETY: the kernel reads `len` bytes there.
    unsafe { call(170, [name.as_ptr().addr(), name.len(), 0, 0, 0, 0]) }.map(drop)
}

/// clock_settime(2) of the time of day.
pub fn set_clock(seconds: u64, nanos: u32) -> Result<()> {
    let time = [seconds, nanos.into()];
    // SAFETY: a timespec, which the kernel reads.
    unsafe { call(227, [0, time.as_ptr().addr(), 0, 0, 0, 0]) }.map(drop)
}

/// sync(2)
pub fn sync() {
    // SAFETY: sync has no arguments.
    let _ = unsafe { call(162, [0; 6]) };
}

/// reboot(2): turns the machine off. Comes back only if it may not. A machine without ACPI cannot be
/// turned off, and would stand still; it asks for a reset, which the host takes for its end as well.
pub fn power_off() {
    const MAGIC: [usize; 2] = [0xfee1_dead, 0x2812_1969];
    const POWER_OFF: usize = 0x4321_fedc;
    const RESTART: usize = 0x0123_4567;
    let end = if acpi() == Acpi::Present { POWER_OFF } else { RESTART };
    let [one, two] = MAGIC;
    // SAFETY: this reboot takes no pointers.
    let _ = unsafe { call(169, [one, two, end, 0, 0, 0]) };
}

/// What there is of ACPI, by which a machine tells of its devices and is turned off.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Acpi {
    /// The kernel uses it.
    Present,
    /// The machine has none, and tells of its devices otherwise.
    Off,
    /// The machine has it, and the kernel knows nothing of it.
    Unknown,
}

/// Finds out. Where there is no /sys, it is taken to be there.
pub fn acpi() -> Acpi {
    let is_there = |path| {
        let there = super::file::open(path, super::file::READ | super::file::CLOEXEC, 0);
        there.map(|mut fd| fd.close()).is_ok()
    };
    let mut line = [0; 4096];
    let line = super::file::read_file(c"/proc/cmdline", &mut line).unwrap_or_default();
    if has_word(line, b"acpi=off") {
        Acpi::Off
    } else if is_there(c"/sys/firmware") && !is_there(c"/sys/firmware/acpi") {
        Acpi::Unknown
    } else {
        Acpi::Present
    }
}

/// Brings up the interface `lo`.
pub fn loopback_up() -> Result<()> {
    super::interface::up(b"lo")
}
