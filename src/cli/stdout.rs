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
