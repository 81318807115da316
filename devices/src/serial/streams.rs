//! What the console is connected to on the host, made so that no transfer blocks.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::PathBuf;

use super::Escapes;

/// What the console is connected to.
#[derive(Default)]
pub struct ConsoleStreams {
    /// Where typed bytes come from.
    pub input: Option<File>,
    /// Where the guest's bytes go.
    pub output: Option<File>,
    /// When set, `Ctrl-a` is an escape key.
    pub escapes: Option<Escapes>,
}

impl ConsoleStreams {
    /// Makes writing to `fd` non-blocking for us alone; see [`private`].
    ///
    /// # Errors
    /// The host's.
    pub fn private_output(fd: OwnedFd) -> io::Result<File> {
        private(fd.into(), OpenOptions::new().write(true))
    }

    /// Makes reading from `fd` non-blocking for us alone; see [`private`].
    ///
    /// # Errors
    /// The host's.
    pub fn private_input(fd: OwnedFd) -> io::Result<File> {
        private(fd.into(), OpenOptions::new().read(true))
    }
}

/// `O_NONBLOCK` belongs to the open file description, which a terminal or pipe shares with the shell
/// that started us, so it is opened anew where it can be. Regular files are left as they are: they
/// do not block, and their position is shared on purpose.
fn private(file: File, how: &mut OpenOptions) -> io::Result<File> {
    let kind = file.metadata()?.file_type();
    if !(kind.is_fifo() || kind.is_char_device()) {
        return Ok(file);
    }
    let again = how
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
        .open(format!("/proc/self/fd/{}", file.as_raw_fd()));
    // Not ours to open (another user's terminal): `Sink` looks before it writes.
    Ok(again.unwrap_or(file))
}

/// An output that never blocks, whatever it is.
pub(super) struct Sink {
    file: File,
    way: Way,
}

enum Way {
    /// Does not block by itself: a regular file, or opened so.
    Plain,
    /// Each write says that it must not block.
    Socket,
    /// Written to only when it polls writable, and then not more than it surely takes.
    Blocking,
}

/// A terminal or pipe that polls writable takes this much.
const SURELY: usize = 256;

impl Sink {
    pub(super) fn new(file: File) -> Self {
        let kind = file.metadata().map(|m| m.file_type());
        // SAFETY: reads the flags of a descriptor that `file` keeps open.
        let flags = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_GETFL) };
        let way = match kind {
            Ok(kind) if kind.is_socket() => Way::Socket,
            Ok(kind) if kind.is_file() => Way::Plain,
            _ if flags & libc::O_NONBLOCK != 0 => Way::Plain,
            _ => Way::Blocking,
        };
        Self { file, way }
    }

    pub(super) fn file(&self) -> &File {
        &self.file
    }

    /// Writes some of `bytes`, or fails with `WouldBlock`.
    pub(super) fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self.way {
            Way::Plain => self.file.write(bytes),
            Way::Socket => {
                let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
                // SAFETY: the pointer and length are those of `bytes`.
                let sent = unsafe {
                    libc::send(self.file.as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), flags)
                };
                usize::try_from(sent).map_err(|_| io::Error::last_os_error())
            }
            Way::Blocking if self.has_room_within(0) => {
                self.file.write(bytes.get(..SURELY).unwrap_or(bytes))
            }
            Way::Blocking => Err(ErrorKind::WouldBlock.into()),
        }
    }

    /// Whether it can be written to, now or within so many milliseconds.
    pub(super) fn has_room_within(&self, millis: libc::c_int) -> bool {
        let fd = self.file.as_raw_fd();
        let mut fds = libc::pollfd { fd, events: libc::POLLOUT, revents: 0 };
        // SAFETY: `fds` is one pollfd that lives through the call.
        unsafe { libc::poll(&mut fds, 1, millis) > 0 }
    }
}

/// A new pseudo-terminal: streams for the console, and the path of the side to attach to.
///
/// Both sides are kept open, so that output written while nobody is attached is not an error.
///
/// # Errors
/// The host's.
pub fn open_pty() -> io::Result<(ConsoleStreams, PathBuf, OwnedFd)> {
    let main = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NOCTTY | libc::O_NONBLOCK)
        .open("/dev/ptmx")?;
    let mut number: libc::c_uint = 0;
    let unlock: libc::c_int = 0;
    let fd = main.as_raw_fd();
    // SAFETY: both ioctls read or write one int behind a pointer that is valid for the call.
    let failed = unsafe {
        libc::ioctl(fd, libc::TIOCSPTLCK, &unlock) != 0
            || libc::ioctl(fd, libc::TIOCGPTN, &mut number) != 0
    };
    if failed {
        return Err(io::Error::last_os_error());
    }
    let path = PathBuf::from(format!("/dev/pts/{number}"));
    let other =
        OpenOptions::new().read(true).write(true).custom_flags(libc::O_NOCTTY).open(&path)?;
    // The guest's own tty echoes and edits; a second one in between would do both twice.
    // SAFETY: `raw` is plain data that tcgetattr fills before it is used, behind a valid pointer.
    let failed = unsafe {
        let mut raw: libc::termios = std::mem::zeroed();
        let got = libc::tcgetattr(other.as_raw_fd(), &mut raw);
        libc::cfmakeraw(&mut raw);
        got != 0 || libc::tcsetattr(other.as_raw_fd(), libc::TCSANOW, &raw) != 0
    };
    if failed {
        return Err(io::Error::last_os_error());
    }
    let streams = ConsoleStreams {
        input: Some(main.as_fd().try_clone_to_owned()?.into()),
        output: Some(main),
        escapes: None,
    };
    Ok((streams, path, other.into()))
}
