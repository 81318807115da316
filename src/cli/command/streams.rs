//! husk's standard streams, connected to those of a command.

use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::sync::mpsc::Sender;

use husk::{ChildInput, ChildOutput, EscapeFilter};

use crate::cli::escape::{self, Escape};
use crate::cli::stdout::was_closed;

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
        let mut filter = EscapeFilter::new(escape::OWNER);
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
                    filter.filter(bytes, &mut typed, |key| {
                        // Nobody listens any more when the VM is ending anyway.
                        let _ = Escape::of(key).map(|escape| escapes.send(escape));
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

/// A stream that is shown has ended. False when some of it is lost, which has been said then.
pub type Shown = bool;

/// Writes what the command writes, as it comes, and sends word at the end of it.
///
/// # Errors
/// When no thread can be started.
pub fn show(mut from: ChildOutput, to: To, done: Sender<Shown>) -> io::Result<()> {
    super::super::life::watch(move || {
        let (name, file) = match to {
            To::Stdout => ("stdout", own(io::stdout())),
            To::Stderr => ("stderr", own(io::stderr())),
        };
        let carried = match (to, file) {
            // What stands in its place takes everything.
            (To::Stdout, _) if was_closed() => lose(&mut from),
            (_, Ok(mut file)) => carry(&mut from, &mut file),
            // One that is closed has no reader.
            (_, Err(_)) => Ok(()),
        };
        // The command is told that nobody takes any more of it.
        drop(from);
        if let Err(e) = &carried {
            tell!("husk: the command's {name} is lost from here on: it cannot be written: {e}\n");
        }
        // Whoever waited may have had enough.
        let _ = done.send(carried.is_ok());
    })
}

/// Writes what comes until there is no more, or nobody reads it any more: that is no error.
fn carry(from: &mut impl Read, to: &mut File) -> io::Result<()> {
    let mut room = vec![0; PIECE];
    // Reading it is without errors.
    while let Ok(count @ 1..) = from.read(&mut room) {
        match write_all(to, room.get(..count).unwrap_or_default()) {
            Err(e) if e.kind() == ErrorKind::BrokenPipe => break,
            written => written?,
        }
    }
    Ok(())
}

/// What a stream that is closed does with what comes: of nothing nothing is lost.
fn lose(from: &mut impl Read) -> io::Result<()> {
    match from.read(&mut [0]) {
        Ok(1..) => Err(io::Error::from_raw_os_error(libc::EBADF)),
        _ => Ok(()),
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_is_an_error_and_a_reader_that_has_gone_is_none() {
        let mut full = File::options().write(true).open("/dev/full").unwrap();
        let error = carry(&mut &b"some output"[..], &mut full).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENOSPC));
        let closed = lose(&mut &b"some output"[..]).unwrap_err();
        assert_eq!(closed.raw_os_error(), Some(libc::EBADF));
        assert!(lose(&mut io::empty()).is_ok(), "nothing was written");
        let (_, writer) = io::pipe().unwrap();
        let mut gone = File::from(std::os::fd::OwnedFd::from(writer));
        assert!(carry(&mut &b"some output"[..], &mut gone).is_ok());
        let (mut reader, writer) = io::pipe().unwrap();
        carry(&mut &b"some output"[..], &mut File::from(std::os::fd::OwnedFd::from(writer)))
            .unwrap();
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        assert_eq!(text, "some output");
    }
}
