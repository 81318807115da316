//! husk's own words, which nobody has to read: a stderr that is full delays nothing for long.

use std::io::Write;
use std::time::{Duration, Instant};

/// A pipe or terminal that polls writable takes this much without blocking (`PIPE_BUF` is 4096).
const PIECE: usize = 512;

/// `text` as a terminal may have it: control characters, which may come from a file, an argument or a
/// guest, are written out. Ends of lines are husk's own.
pub fn plain(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\n' | '\t' => plain.push(c),
            c if c.is_control() || is_direction(c) => plain.extend(c.escape_default()),
            c => plain.push(c),
        }
    }
    plain
}

/// Whether `c` reverses the order of what stands around it (Unicode's UAX #9, table of explicit
/// formatting characters): a path could be made to look like another.
fn is_direction(c: char) -> bool {
    matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// Writes `text`, made [`plain`], as far as it is read within `patience`. In one write if it is short, so that the
/// words of two threads do not mix.
pub fn say(text: &str, patience: Duration) {
    let mut text = plain(text);
    if super::terminal::is_raw() {
        text = text.replace('\n', "\r\n");
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_are_written_out_and_ends_of_lines_kept() {
        assert_eq!(plain("é\tx\n\u{1b}[2J\r\u{7}\u{9b}\n"), "é\tx\n\\u{1b}[2J\\r\\u{7}\\u{9b}\n");
        assert_eq!(plain("a\u{202e}b"), "a\\u{202e}b");
    }
}
