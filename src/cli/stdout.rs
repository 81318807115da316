//! What husk itself has to say on stdout, where it is no guest's: a list, a report, a configuration.

use std::io::{self, ErrorKind, Write};
use std::sync::atomic::{AtomicBool, Ordering};

/// Writes `text` to stdout. Whoever closed it meanwhile (`| head`) has read enough, which is no error.
///
/// # Errors
/// The host's, but for that; when husk began with stdout closed, as every program's.
pub fn print(text: &str) -> io::Result<()> {
    if was_closed() && !text.is_empty() {
        let closed = io::Error::from_raw_os_error(libc::EBADF);
        return Err(io::Error::other(format!("standard output: {closed}")));
    }
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

/// Whether this process began with stdout closed. The runtime has put `/dev/null` there since, which takes all.
pub fn was_closed() -> bool {
    CLOSED.load(Ordering::Relaxed)
}

static CLOSED: AtomicBool = AtomicBool::new(false);

/// Runs before the runtime looks after the standard streams.
extern "C" fn look() {
    // SAFETY: it asks for a descriptor's flags, and touches no memory.
    let open = unsafe { libc::fcntl(libc::STDOUT_FILENO, libc::F_GETFD) } >= 0;
    CLOSED.store(!open, Ordering::Relaxed);
}

// SAFETY: what stands there is called once with what main gets, none of which `look` takes, and it needs
// nothing that is set up later (System V ABI, gABI chapter 5, "Initialization and Termination Functions").
#[used]
#[unsafe(link_section = ".init_array")]
static LOOK: extern "C" fn() = look;
