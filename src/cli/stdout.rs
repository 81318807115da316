//! What husk itself has to say on stdout, where it is no guest's: a list, a report, a configuration.

use std::io::{self, ErrorKind, Write};

/// Writes `text` to stdout. Whoever closed it (`| head`) has read enough, which is no error.
///
/// # Errors
/// The host's, but for that.
pub fn print(text: &str) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(e) if e.kind() == ErrorKind::BrokenPipe => Ok(()),
        other => other,
    }
}

/// Whoever closed the output has read enough, and nothing more is written: that is the end of it, and no error.
///
/// # Errors
/// Any other.
pub fn nobody_reads(error: io::Error) -> io::Result<bool> {
    if error.kind() == ErrorKind::BrokenPipe { Ok(false) } else { Err(error) }
}
