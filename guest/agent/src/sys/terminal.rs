//! Pseudo-terminals.

use super::{Fd, Result, call, file};
use crate::text::{Digits, Path};

const TIOCSCTTY: usize = 0x540e;
const TIOCSWINSZ: usize = 0x5414;
const TIOCGPTN: usize = 0x8004_5430;
const TIOCSPTLCK: usize = 0x4004_5431;

/// A new one: its master, which is read from and written to, and its slave, a command's terminal.
pub fn open() -> Result<(Fd, Fd)> {
    let mut master = file::open(c"/dev/ptmx", file::READ_WRITE | file::NO_TTY | file::CLOEXEC, 0)?;
    slave_of(master).inspect_err(|_| master.close()).map(|slave| (master, slave))
}

fn slave_of(master: Fd) -> Result<Fd> {
    let (unlock, mut number) = (0i32, 0u32);
    // SAFETY: the first reads a number, the second writes one.
    unsafe {
        call(16, [master.raw(), TIOCSPTLCK, (&raw const unlock).addr(), 0, 0, 0])?;
        call(16, [master.raw(), TIOCGPTN, (&raw mut number).addr(), 0, 0, 0])?;
    }
    let path = Path::of(&[b"/dev/pts/", Digits::of(number.into()).bytes()])?;
    file::open(path.as_c_str(), file::READ_WRITE | file::NO_TTY | file::CLOEXEC, 0)
}

/// Tells the terminal its size.
pub fn resize(terminal: Fd, columns: u16, rows: u16) -> Result<()> {
    let size = [rows, columns, 0, 0];
    // SAFETY: a struct winsize, which the kernel reads.
    unsafe { call(16, [terminal.raw(), TIOCSWINSZ, size.as_ptr().addr(), 0, 0, 0]) }.map(drop)
}

/// Makes it the controlling terminal of this session.
pub fn control(terminal: Fd) -> Result<()> {
    // SAFETY: this ioctl takes no pointers.
    unsafe { call(16, [terminal.raw(), TIOCSCTTY, 0, 0, 0, 0]) }.map(drop)
}
