//! A network namespace of a test's own, so that the host's stays as it is, and what is done in it.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use super::PATIENCE;
use super::tools::host;

/// Puts this thread, and what it starts, into a network namespace of its own.
pub fn enter_namespace() {
    // SAFETY: unshare takes no pointers; it changes this thread only.
    let done = unsafe { libc::unshare(libc::CLONE_NEWNET) };
    assert_eq!(done, 0, "a network namespace: {}", std::io::Error::last_os_error());
    ip("link set lo up");
}

/// Runs `ip` with these words, which must end well.
#[track_caller]
pub fn ip(words: &str) {
    host("ip", words.split_whitespace());
}

/// Fetches a page from a server that may still be starting.
pub fn fetch(address: &str, path: &str) -> Vec<u8> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let mut answer = Vec::new();
        let done = TcpStream::connect(address).and_then(|mut stream| {
            stream.set_read_timeout(Some(PATIENCE))?;
            write!(stream, "GET {path} HTTP/1.0\r\n\r\n")?;
            stream.read_to_end(&mut answer)
        });
        if done.is_ok() && !answer.is_empty() {
            return answer;
        }
        assert!(Instant::now() < deadline, "{address} never answered: {done:?}");
        std::thread::sleep(Duration::from_millis(100));
    }
}
