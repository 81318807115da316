//! The command's streams: how its output is told from the end mark that follows it, and how bytes
//! get from our standard input to it.

use std::fs::File;
use std::io::{Read, Write};
use std::mem::ManuallyDrop;
use std::net::Shutdown;
use std::os::fd::{AsRawFd, FromRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Passes a stream on up to an end mark, holding back only what might be the mark's beginning.
pub struct UntilMark {
    mark: Vec<u8>,
    held: Vec<u8>,
}

impl UntilMark {
    pub fn new(mark: &[u8]) -> Self {
        Self { mark: mark.to_vec(), held: Vec::new() }
    }

    /// Takes what came; gives what may be passed on, and whether the mark has come.
    pub fn take(&mut self, came: &[u8]) -> (Vec<u8>, bool) {
        self.held.extend_from_slice(came);
        let found = self.held.windows(self.mark.len()).position(|w| w == self.mark);
        if let Some(at) = found {
            self.held.truncate(at);
            return (std::mem::take(&mut self.held), true);
        }
        let keep = (0..self.mark.len().min(self.held.len() + 1))
            .rev()
            .find(|&n| self.mark.get(..n).is_some_and(|start| self.held.ends_with(start)))
            .unwrap_or(0);
        let rest = self.held.split_off(self.held.len() - keep);
        (std::mem::replace(&mut self.held, rest), false)
    }

    /// What is still held back when the stream ends without a mark.
    pub fn rest(self) -> Vec<u8> {
        self.held
    }
}

/// How a stream of the command's output ended.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// With the mark: all of it has been passed on.
    Marked,
    /// The outer machine closed it.
    Cut,
    /// Nobody reads on our side (a closed pipe).
    Unread,
}

/// Copies one output stream to `sink` until its mark.
pub fn copy_out(
    mut from: UnixStream,
    mark: &[u8],
    sink: &mut dyn Write,
    bytes: &AtomicU64,
) -> Ended {
    let mut filter = UntilMark::new(mark);
    let mut buffer = vec![0; 65536];
    loop {
        let got = match from.read(&mut buffer) {
            Ok(0) => break,
            Ok(got) => got,
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(_) => break,
        };
        bytes.fetch_add(got as u64, Ordering::Relaxed);
        let (pass, ended) = filter.take(buffer.get(..got).unwrap_or_default());
        if sink.write_all(&pass).and_then(|()| sink.flush()).is_err() {
            return Ended::Unread;
        }
        if ended {
            return Ended::Marked;
        }
    }
    let _ = sink.write_all(&filter.rest());
    Ended::Cut
}

/// Copies our standard input to the command until its end, or until the machine is gone. On a
/// terminal (`keys`), three times Ctrl-] in a row sets `hang_up` instead.
///
/// `to` must stay open after this returns: QEMU drops what it has not read yet when it is closed.
pub fn copy_in(to: &UnixStream, keys: bool, hang_up: &AtomicBool, consumed: &AtomicU64) {
    const STDIN: RawFd = libc::STDIN_FILENO;
    // SAFETY: descriptor 0 belongs to the process; ManuallyDrop keeps it open.
    let mut stdin = ManuallyDrop::new(unsafe { File::from_raw_fd(STDIN) });
    let mut to = to;
    let mut buffer = vec![0; 16384];
    let mut brackets = 0;
    loop {
        match wait_readable(STDIN, to.as_raw_fd()) {
            Readable::Yes => {}
            Readable::PeerGone => return,
        }
        let got = match stdin.read(&mut buffer) {
            Ok(0) => break,
            Ok(got) => got,
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(_) => break,
        };
        let data = buffer.get(..got).unwrap_or_default();
        consumed.fetch_add(got as u64, Ordering::Relaxed);
        for byte in data.iter().filter(|_| keys) {
            brackets = if *byte == 0x1d { brackets + 1 } else { 0 };
            if brackets == 3 {
                hang_up.store(true, Ordering::Relaxed);
                return;
            }
        }
        if to.write_all(data).is_err() {
            return;
        }
    }
    // The end of the input for the other side; fails only when that is gone.
    let _ = to.shutdown(Shutdown::Write);
}

enum Readable {
    Yes,
    PeerGone,
}

/// Waits until `input` can be read, or `peer` is closed at its other end.
fn wait_readable(input: RawFd, peer: RawFd) -> Readable {
    let mut fds = [
        libc::pollfd { fd: input, events: libc::POLLIN, revents: 0 },
        libc::pollfd { fd: peer, events: 0, revents: 0 },
    ];
    loop {
        // SAFETY: `fds` is an array of two pollfd that outlives the call.
        let ready = unsafe { libc::poll(fds.as_mut_ptr(), 2, -1) };
        let [input, peer] = &fds;
        if ready > 0 && peer.revents != 0 {
            return Readable::PeerGone;
        }
        if ready > 0 && input.revents != 0 {
            return Readable::Yes;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_before_the_mark_passes_however_it_is_cut() {
        let text = b"hello <en <end> world<end>after";
        for size in 1..text.len() {
            let mut filter = UntilMark::new(b"d<end>");
            let mut passed = Vec::new();
            let mut ended = false;
            for piece in text.chunks(size) {
                let (pass, end) = filter.take(piece);
                passed.extend(pass);
                if end {
                    ended = true;
                    break;
                }
            }
            assert!(ended);
            assert_eq!(passed, b"hello <en <end> worl");
        }
    }

    #[test]
    fn nothing_is_held_back_that_cannot_be_a_mark() {
        let mut filter = UntilMark::new(b"<end>");
        assert_eq!(filter.take(b"prompt> "), (b"prompt> ".to_vec(), false));
        assert_eq!(filter.take(b"a<en"), (b"a".to_vec(), false));
        assert_eq!(filter.rest(), b"<en");
    }
}
