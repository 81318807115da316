//! husk's own words, which nobody has to read: a stderr that is full delays nothing for long.

use std::io::Write;
use std::time::{Duration, Instant};

/// A pipe or terminal that polls writable takes this much without blocking (`PIPE_BUF` is 4096).
const PIECE: usize = 512;

/// Writes `text`, as far as it is read within `patience`. In one write if it is short, so that the
/// words of two threads do not mix.
pub fn say(text: &str, patience: Duration) {
    let end = Instant::now() + patience;
    for piece in text.as_bytes().chunks(PIECE) {
        let left = end.saturating_duration_since(Instant::now()).as_millis();
        let millis = libc::c_int::try_from(left).unwrap_or(libc::c_int::MAX);
        let mut fds = libc::pollfd { fd: libc::STDERR_FILENO, events: libc::POLLOUT, revents: 0 };
        // SAFETY: `fds` is one pollfd that lives through the call.
        let ready = unsafe { libc::poll(&mut fds, 1, millis) } > 0;
        // If nobody reads it any more there is nobody to tell, and that is no reason to panic, as
        // `eprint!` would.
        if !ready || std::io::stderr().write_all(piece).is_err() {
            return;
        }
    }
}
