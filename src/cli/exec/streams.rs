//! husk's standard streams, connected to those of a command.

use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::sync::mpsc::Sender;

use husk::{ChildInput, ChildOutput, Escape, EscapeFilter};

/// Bytes that are carried at a time.
const PIECE: usize = 32 << 10;

/// A copy of a standard stream that nobody else buffers.
fn own(stream: impl AsFd) -> io::Result<File> {
    stream.as_fd().try_clone_to_owned().map(File::from)
}

/// Gives the command what is typed or piped, to its end; escapes are taken out of what is typed.
///
/// # Errors
/// When no thread can be started, or standard input is closed.
pub fn feed(mut to: ChildInput, on_escape: Option<Sender<Escape>>) -> io::Result<()> {
    let Ok(mut from) = own(io::stdin()) else { return Ok(()) };
    super::super::life::watch(move || {
        let mut room = vec![0; PIECE];
        let mut filter = EscapeFilter::default();
        let mut typed = Vec::new();
        loop {
            let count = match from.read(&mut room) {
                Ok(count) => count,
                Err(e) if e.kind() == ErrorKind::Interrupted => continue,
                Err(e) if e.kind() == ErrorKind::WouldBlock => {
                    wait(&from, libc::POLLIN);
                    continue;
                }
                // A terminal that is hung up, or one of another session.
                Err(_) => 0,
            };
            let bytes = room.get(..count).unwrap_or_default();
            let bytes = match &on_escape {
                None => bytes,
                Some(escapes) => {
                    typed.clear();
                    filter.filter(bytes, &mut typed, |escape| {
                        // Nobody listens any more when the VM is ending anyway.
                        let _ = escapes.send(escape);
                    });
                    &typed
                }
            };
            // An error: the command reads no more.
            if count == 0 || to.write_all(bytes).is_err() {
                return;
            }
        }
    })
}

/// Where what a command writes goes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum To {
    Stdout,
    Stderr,
}

/// Writes what the command writes, as it comes, and sends word at the end of it.
///
/// # Errors
/// When no thread can be started.
pub fn show(mut from: ChildOutput, to: To, done: Sender<()>) -> io::Result<()> {
    super::super::life::watch(move || {
        let file = match to {
            To::Stdout => own(io::stdout()),
            To::Stderr => own(io::stderr()),
        };
        if let Ok(mut file) = file {
            let mut room = vec![0; PIECE];
            // Reading it is without errors.
            while let Ok(count @ 1..) = from.read(&mut room) {
                if write_all(&mut file, room.get(..count).unwrap_or_default()).is_err() {
                    break;
                }
            }
        }
        // If nobody reads husk's stream any more, then nobody the command's: it is told so.
        drop(from);
        // Whoever waited may have had enough.
        let _ = done.send(());
    })
}

/// Also to a stream that somebody made non-blocking.
fn write_all(file: &mut File, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match file.write(bytes) {
            Ok(0) => return Err(ErrorKind::WriteZero.into()),
            Ok(count) => bytes = bytes.get(count..).unwrap_or_default(),
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) if e.kind() == ErrorKind::WouldBlock => wait(file, libc::POLLOUT),
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

fn wait(file: &File, events: libc::c_short) {
    let mut fds = libc::pollfd { fd: file.as_raw_fd(), events, revents: 0 };
    // SAFETY: one pollfd that lives through the call. An error is found by the next read or write.
    unsafe { libc::poll(&mut fds, 1, -1) };
}
