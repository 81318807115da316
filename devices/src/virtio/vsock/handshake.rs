//! What a host says before its connection: `CONNECT <port>\n`.
//!
//! The line is bounded in length and in time, and so is the number of peers that are saying it;
//! others wait until one of these is done.

use std::io::{self, Read};
use std::os::unix::net::UnixStream;
use std::time::Instant;

/// Peers that may be saying their line at once.
pub const MAX_HANDSHAKES: usize = 64;
/// The longest line: `CONNECT 4294967295\n` has 19 bytes.
const LINE_MAX: usize = 32;

/// How far a peer has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Said {
    /// There is more to come.
    Part,
    /// It wants this port of the guest's.
    Port(u32),
    /// Something else.
    Nonsense,
    /// It has gone.
    Gone,
}

/// A peer that is saying its line.
pub struct Handshake {
    /// It does not block.
    pub socket: UnixStream,
    /// When it will have had long enough.
    pub deadline: Instant,
    line: [u8; LINE_MAX],
    len: usize,
}

impl Handshake {
    /// A peer that has said nothing yet.
    pub fn new(socket: UnixStream, deadline: Instant) -> Handshake {
        Handshake { socket, deadline, line: [0; LINE_MAX], len: 0 }
    }

    /// Reads on, to the end of the line and no further: what follows is the guest's.
    pub fn listen(&mut self) -> Said {
        while let Some(next) = self.line.get_mut(self.len..self.len + 1) {
            match (&self.socket).read(next) {
                Ok(0) => return Said::Gone,
                Ok(_) if next == b"\n" => {
                    return parse(self.line.get(..self.len).unwrap_or_default());
                }
                Ok(_) => self.len += 1,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Said::Part,
                Err(_) => return Said::Gone,
            }
        }
        Said::Nonsense
    }
}

/// `CONNECT`, blanks, and a decimal port; Firecracker takes lower case too.
fn parse(line: &[u8]) -> Said {
    let words = std::str::from_utf8(line).unwrap_or_default();
    let mut words = words.split_ascii_whitespace();
    match (words.next(), words.next(), words.next()) {
        (Some(verb), Some(port), None)
            if verb.eq_ignore_ascii_case("connect") && !port.starts_with('+') =>
        {
            port.parse().map_or(Said::Nonsense, Said::Port)
        }
        _ => Said::Nonsense,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn a_line_is_a_verb_and_a_port_and_nothing_else() {
        for (line, said) in [
            ("CONNECT 0", Said::Port(0)),
            ("CONNECT 4294967295", Said::Port(u32::MAX)),
            ("connect  52\r", Said::Port(52)),
            ("CONNECT 4294967296", Said::Nonsense),
            ("CONNECT -1", Said::Nonsense),
            ("CONNECT +1", Said::Nonsense),
            ("CONNECT 1 2", Said::Nonsense),
            ("CONNECT", Said::Nonsense),
            ("GET / HTTP/1.1", Said::Nonsense),
            ("", Said::Nonsense),
            ("\u{fffd} 1", Said::Nonsense),
        ] {
            assert_eq!(parse(line.as_bytes()), said, "{line}");
        }
    }

    #[test]
    fn a_line_may_come_in_pieces_and_what_follows_it_stays_in_the_socket() {
        let (mut peer, ours) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let mut handshake = Handshake::new(ours, Instant::now());
        assert_eq!(handshake.listen(), Said::Part);
        peer.write_all(b"CONN").unwrap();
        assert_eq!(handshake.listen(), Said::Part);
        peer.write_all(b"ECT 7\nhello").unwrap();
        assert_eq!(handshake.listen(), Said::Port(7));
        let mut rest = [0; 16];
        assert_eq!((&handshake.socket).read(&mut rest).unwrap(), 5);
        assert_eq!(&rest[..5], b"hello");
    }

    #[test]
    fn a_line_that_does_not_end_and_a_peer_that_leaves_are_noticed() {
        let (mut peer, ours) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let mut handshake = Handshake::new(ours, Instant::now());
        peer.write_all(&[b'C'; 100]).unwrap();
        assert_eq!(handshake.listen(), Said::Nonsense);
        let (peer, ours) = UnixStream::pair().unwrap();
        let mut handshake = Handshake::new(ours, Instant::now());
        drop(peer);
        assert_eq!(handshake.listen(), Said::Gone);
    }
}
