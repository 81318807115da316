//! The agent's own words, for the end of the console that husk shows when something fails.

use crate::sys::{Fd, file};

/// Says a line: to the kernel's log, which the console shows, or to stderr where that cannot be had.
pub fn line(parts: &[&[u8]]) {
    let first = crate::sys::process::id() == 1;
    let prefix: &[u8] = if first { b"<2>husk-init: " } else { b"husk-agent: " };
    let mut text = [0u8; 512];
    let mut len = 0;
    for part in [prefix].iter().chain(parts).chain([&&b"\n"[..]]) {
        for (to, from) in text.iter_mut().skip(len).zip(*part) {
            *to = *from;
        }
        len = (len + part.len()).min(text.len());
    }
    let text = text.get(..len).unwrap_or_default();
    if first && let Ok(mut log) = file::open(c"/dev/kmsg", file::WRITE | file::CLOEXEC, 0) {
        let _ = file::write(log, text);
        log.close();
    } else {
        let _ = file::write(Fd(2), text.strip_prefix(b"<2>").unwrap_or(text));
    }
}
