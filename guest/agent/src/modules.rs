//! The kernel modules that husk put into the initramfs, loaded in the order it says: those that everything
//! waits for first, the others when there is nothing to do.

use crate::say;
use crate::sys::{Errno, Fd, Result, file, machine, process};
use crate::text::{Digits, Path, lines};

/// Bytes of a list that are read.
const ORDER_MAX: usize = 64 << 10;
/// The most modules that are loaded later.
const LATER_MAX: usize = 16;

/// Loads those that are needed. One that does not load is named on the console: what needs it fails, and
/// says so.
pub fn load() {
    each(c"/husk/modules", |name| {
        open(name).map_or_else(|error| complain(name, error), |fd| insert(name, fd));
    });
}

/// Modules that wait, open: once the machine has its root, their files have no name any more.
pub struct Later {
    files: [Fd; LATER_MAX],
    count: usize,
}

impl Later {
    /// None, in a machine whose own init loads modules.
    pub fn none() -> Later {
        Later { files: [Fd::NONE; LATER_MAX], count: 0 }
    }

    /// Those of the list.
    pub fn open() -> Later {
        let mut later = Later::none();
        each(c"/husk/modules.later", |name| match later.files.get_mut(later.count) {
            Some(place) => match open(name) {
                Ok(fd) => {
                    *place = fd;
                    later.count += 1;
                }
                Err(error) => complain(name, error),
            },
            None => complain(name, Errno::TOOBIG),
        });
        later
    }

    /// Whether there are any.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Loads them.
    pub fn load(&mut self) {
        for fd in self.files.iter().take(self.count) {
            insert(b"of those that are loaded later", *fd);
        }
        self.count = 0;
    }
}

fn each(list: &core::ffi::CStr, mut with: impl FnMut(&[u8])) {
    let Ok(room) = process::memory(ORDER_MAX) else { return };
    let Ok(order) = file::read_file(list, room) else { return };
    lines(order).for_each(&mut with);
}

fn open(name: &[u8]) -> Result<Fd> {
    let path = Path::of(&[b"/husk/", name, b".ko"])?;
    file::open(path.as_c_str(), file::READ | file::CLOEXEC, 0)
}

fn insert(name: &[u8], mut fd: Fd) {
    if let Err(error) = machine::load_module(fd) {
        complain(name, error);
    }
    fd.close();
}

fn complain(name: &[u8], Errno(number): Errno) {
    let digits = Digits::of(number as u64);
    say::line(&[b"module ", name, b" does not load (errno ", digits.bytes(), b")"]);
}
