//! The kernel modules that husk put into the initramfs, loaded in the order it says.

use crate::say;
use crate::sys::{Errno, file, machine, process};
use crate::text::{Digits, Path, lines};

/// Loads them. One that does not load is named on the console: what needs it fails, and says so.
pub fn load() {
    const ORDER_MAX: usize = 64 << 10;
    let Ok(room) = process::memory(ORDER_MAX) else { return };
    let Ok(order) = file::read_file(c"/husk/modules", room) else { return };
    for name in lines(order) {
        let loaded = Path::of(&[b"/husk/", name, b".ko"])
            .and_then(|path| file::open(path.as_c_str(), file::READ | file::CLOEXEC, 0))
            .and_then(|mut fd| {
                let loaded = machine::load_module(fd);
                fd.close();
                loaded
            });
        if let Err(Errno(number)) = loaded {
            let digits = Digits::of(number as u64);
            say::line(&[b"module ", name, b" does not load (errno ", digits.bytes(), b")"]);
        }
    }
}
