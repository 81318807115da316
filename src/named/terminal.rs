//! What a VM that was detached is typed to: the input of its console, or of its command's terminal. One
//! person types at a time; what it writes is read from its log.

use std::fmt;
use std::fs::File;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::sync::{Mutex, MutexGuard, PoisonError};

use husk_devices::virtio::console::tty::WindowSize;

/// Bytes that are carried at a time.
const PIECE: usize = 4096;

/// What is done with a size.
pub type Resize = Box<dyn Fn(WindowSize) + Send + Sync>;

/// What is typed to, and what is told of the size of the window.
pub struct Terminal {
    /// The writing end of a pipe.
    input: File,
    resize: Resize,
    sitting: Mutex<Sitting>,
}

/// Who sits there.
#[derive(Default)]
struct Sitting {
    client: Option<UnixStream>,
    /// Nobody does any more.
    over: bool,
}

impl fmt::Debug for Terminal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Terminal").field("input", &self.input).finish_non_exhaustive()
    }
}

impl Terminal {
    /// Of `input`, the writing end of a pipe, which is made non-blocking.
    ///
    /// # Errors
    /// The host's.
    pub fn new(input: File, resize: Resize) -> io::Result<Terminal> {
        // SAFETY: sets a flag of an open descriptor; no pointer is involved.
        match unsafe { libc::fcntl(input.as_raw_fd(), libc::F_SETFL, libc::O_NONBLOCK) } {
            -1 => Err(io::Error::last_os_error()),
            _ => Ok(Terminal { input, resize, sitting: Mutex::default() }),
        }
    }

    /// Its window has another size.
    pub(super) fn resize(&self, size: WindowSize) {
        (self.resize)(size);
    }

    fn sitting(&self) -> MutexGuard<'_, Sitting> {
        // No code panics while it holds the lock.
        self.sitting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// It is over: the connection of whoever sits there is closed.
    pub(super) fn end(&self) {
        let mut sitting = self.sitting();
        sitting.over = true;
        if let Some(client) = sitting.client.take() {
            // An error: it has closed it itself.
            let _ = client.shutdown(Shutdown::Both);
        }
    }

    /// Gives the guest what `client`, who sits there alone, types until that one has gone, or it is over.
    pub(super) fn sit(&self, client: &UnixStream) -> io::Result<()> {
        let kept = client.try_clone()?;
        {
            let mut sitting = self.sitting();
            if sitting.over {
                return Ok(());
            }
            sitting.client = Some(kept);
        }
        let carried = self.carry(client);
        self.sitting().client = None;
        carried
    }

    fn carry(&self, mut client: &UnixStream) -> io::Result<()> {
        client.set_read_timeout(None)?;
        let mut room = [0; PIECE];
        loop {
            let count = client.read(&mut room)?;
            if count == 0 {
                return Ok(());
            }
            let mut bytes = room.get(..count).unwrap_or_default();
            while !bytes.is_empty() {
                match (&self.input).write(bytes) {
                    Ok(count) => bytes = bytes.get(count..).unwrap_or_default(),
                    // The guest reads nothing; the client may have had enough.
                    Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                        if !self.wait(client) {
                            return Ok(());
                        }
                    }
                    Err(e) => return Err(e),
                }
            }
        }
    }

    /// Waits until there is room for more; false when `client` has gone first.
    fn wait(&self, client: &UnixStream) -> bool {
        let mut fds = [
            libc::pollfd { fd: self.input.as_raw_fd(), events: libc::POLLOUT, revents: 0 },
            libc::pollfd { fd: client.as_raw_fd(), events: libc::POLLRDHUP, revents: 0 },
        ];
        // SAFETY: two of them, which live through the call.
        unsafe { libc::poll(fds.as_mut_ptr(), 2, -1) };
        let [_, client] = fds;
        client.revents == 0
    }
}

/// A size as it is told: `COLUMNS ROWS`.
pub fn size(text: &str) -> Option<WindowSize> {
    let (columns, rows) = text.split_once(' ')?;
    let (columns, rows) = (columns.parse().ok()?, rows.parse().ok()?);
    (columns > 0 && rows > 0).then_some(WindowSize { columns, rows })
}

#[cfg(test)]
mod tests {
    use std::os::fd::OwnedFd;

    use super::*;

    #[test]
    fn a_client_that_goes_is_left_also_when_the_guest_reads_nothing() {
        let (mut reader, writer) = io::pipe().unwrap();
        let terminal = Terminal::new(OwnedFd::from(writer).into(), Box::new(|_| ())).unwrap();
        let (near, mut far) = UnixStream::pair().unwrap();
        far.set_nonblocking(true).unwrap();
        std::thread::scope(|scope| {
            let carried = scope.spawn(|| terminal.carry(&near));
            let mut bytes = [b'x'; 4096].to_vec();
            bytes[..5].copy_from_slice(b"first");
            // More than the pipe and the socket take.
            while far.write(&bytes).is_ok() {}
            drop(far);
            carried.join().unwrap().unwrap();
        });
        drop(terminal);
        let mut text = [0; 5];
        reader.read_exact(&mut text).unwrap();
        assert_eq!(&text, b"first");
    }

    #[test]
    fn who_sits_there_is_sent_away_at_the_end_and_nobody_comes_after_it() {
        let (mut reader, writer) = io::pipe().unwrap();
        let terminal = Terminal::new(OwnedFd::from(writer).into(), Box::new(|_| ())).unwrap();
        let (near, mut far) = UnixStream::pair().unwrap();
        far.write_all(b"x").unwrap();
        std::thread::scope(|scope| {
            let sat = scope.spawn(|| terminal.sit(&near));
            reader.read_exact(&mut [0]).unwrap();
            terminal.end();
            sat.join().unwrap().unwrap();
        });
        assert_eq!(far.read(&mut [0]).unwrap(), 0);
        let (near, _far) = UnixStream::pair().unwrap();
        terminal.sit(&near).unwrap();
    }

    #[test]
    fn a_size_is_two_numbers_and_nothing_else_is() {
        assert_eq!(size("80 24"), Some(WindowSize { columns: 80, rows: 24 }));
        for wrong in ["", "80", "80 0", "80 24 1", "a b", "70000 1", "-1 5"] {
            assert_eq!(size(wrong), None, "{wrong}");
        }
    }
}
