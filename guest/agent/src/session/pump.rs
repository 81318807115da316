//! The streams of a command: what has come for its stdin and was not taken yet, and how much the host
//! still takes of the others.

use husk_guest_protocol::{Frame, WINDOW, stream};

use crate::sys::{Errno, Fd, Result, file, process};
use crate::wire::Wire;

/// Bytes on their way to a command's stdin: a ring as large as the window.
pub struct Input {
    to: Fd,
    ring: &'static mut [u8],
    start: usize,
    len: usize,
    /// The host has no more.
    ended: bool,
    is_terminal: bool,
    /// It is a terminal's, which has no end, and the Ctrl-D that is typed for one is still to come: it is not
    /// the host's, so that there need be no room for it yet.
    end_owed: bool,
    /// Bytes taken since the host was last told.
    taken: u32,
}

impl Input {
    /// Nothing has come yet.
    ///
    /// # Errors
    /// Without memory for the ring.
    pub fn new(to: Fd, is_terminal: bool) -> Result<Input> {
        let ring = process::memory(WINDOW as usize)?;
        let (ended, end_owed) = (false, false);
        Ok(Input { to, ring, start: 0, len: 0, ended, is_terminal, end_owed, taken: 0 })
    }

    /// What to wait for before [`Input::flush`]: this can be written to.
    pub fn waits(&self) -> Fd {
        if self.len > 0 { self.to } else { Fd::NONE }
    }

    /// Takes what the host sent.
    ///
    /// # Errors
    /// When that is more than it was granted.
    pub fn push(&mut self, bytes: &[u8]) -> Result<()> {
        if !self.to.is_open() {
            return Ok(());
        }
        if bytes.len() > self.ring.len() - self.len {
            return Err(Errno::PROTO);
        }
        self.append(bytes);
        Ok(())
    }

    /// Adds what there is room for.
    fn append(&mut self, bytes: &[u8]) {
        for byte in bytes {
            let size = self.ring.len();
            if let Some(place) = self.ring.get_mut((self.start + self.len) % size) {
                *place = *byte;
                self.len += 1;
            }
        }
    }

    /// No more comes.
    pub fn end(&mut self) {
        self.end_owed |= self.is_terminal && !self.ended;
        self.ended = true;
    }

    /// Gives the command what it takes, and grants the host as much.
    ///
    /// # Errors
    /// When the host has gone.
    pub fn flush(&mut self, wire: &Wire) -> Result<()> {
        while self.to.is_open() {
            if self.end_owed && self.len < self.ring.len() {
                self.end_owed = false;
                self.append(&[4]);
            }
            if self.len == 0 {
                break;
            }
            let end = (self.start + self.len).min(self.ring.len());
            match file::write(self.to, self.ring.get(self.start..end).unwrap_or_default()) {
                Ok(count) => {
                    self.start = (self.start + count) % self.ring.len();
                    self.len -= count;
                    self.taken += count as u32;
                }
                Err(Errno::AGAIN) => break,
                Err(_) => {
                    // Nobody reads it any more.
                    self.len = 0;
                    // A terminal's descriptor is the output's as well, which closes it.
                    if self.is_terminal {
                        self.to = Fd::NONE
                    } else {
                        self.to.close()
                    }
                    wire.send(Frame::Close(stream::STDIN))?;
                }
            }
        }
        if self.taken >= WINDOW / 4 || (self.taken > 0 && self.len == 0) {
            wire.send(Frame::Credit(stream::STDIN, self.taken))?;
            self.taken = 0;
        }
        if self.ended && self.len == 0 && !self.is_terminal {
            self.to.close();
        }
        Ok(())
    }
}

/// What [`Output::forward`] came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Forwarded {
    /// Some bytes, or none for want of credit.
    Some,
    /// There is nothing to be read now.
    Nothing,
}

/// A stream of the command's on its way to the host.
pub struct Output {
    name: u8,
    pub from: Fd,
    credit: u32,
}

impl Output {
    /// The stream called `name`.
    pub fn new(name: u8, from: Fd) -> Output {
        Output { name, from, credit: WINDOW }
    }

    /// What to wait for before [`Output::forward`]: this can be read from.
    pub fn waits(&self) -> Fd {
        if self.credit > 0 { self.from } else { Fd::NONE }
    }

    /// The host takes so many bytes more.
    pub fn grant(&mut self, bytes: u32) {
        self.credit = self.credit.saturating_add(bytes).min(WINDOW);
    }

    /// Sends the host what there is, as far as it takes it, but at most `room` bytes.
    ///
    /// # Errors
    /// When the host has gone.
    pub fn forward(&mut self, wire: &Wire, room: &mut [u8]) -> Result<Forwarded> {
        if !self.from.is_open() {
            return Ok(Forwarded::Nothing);
        }
        let most = room.len().min(self.credit as usize);
        let Some(room) = room.get_mut(..most).filter(|room| !room.is_empty()) else {
            return Ok(Forwarded::Some);
        };
        match file::read(self.from, room) {
            Err(Errno::AGAIN) => Ok(Forwarded::Nothing),
            // EIO: nobody has the terminal any more.
            Ok(0) | Err(_) => {
                self.from.close();
                wire.send(Frame::OutputEnd(self.name)).map(|()| Forwarded::Nothing)
            }
            Ok(count) => {
                self.credit -= count as u32;
                let bytes = room.get(..count).unwrap_or_default();
                wire.send(Frame::Output(self.name, bytes)).map(|()| Forwarded::Some)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_terminals_input_comes_also_when_the_ring_is_full() {
        let (from, to) = file::pipe().unwrap();
        for fd in [from, to] {
            file::set_nonblocking(fd).unwrap();
        }
        let null = file::open(c"/dev/null", file::WRITE | file::CLOEXEC, 0).unwrap();
        let wire = Wire::new(null);
        let mut input = Input::new(to, true).unwrap();
        input.push(&[b'x'; WINDOW as usize]).unwrap();
        assert_eq!(input.push(b"y"), Err(Errno::PROTO), "it is full");
        input.end();
        // Said twice it is still one.
        input.end();
        let mut came = Vec::new();
        let mut room = [0; 64 << 10];
        loop {
            input.flush(&wire).unwrap();
            match file::read(from, &mut room) {
                Ok(count) => came.extend_from_slice(&room[..count]),
                Err(Errno::AGAIN) => break,
                Err(e) => panic!("{e:?}"),
            }
        }
        assert_eq!(came.len(), WINDOW as usize + 1);
        assert_eq!((came[WINDOW as usize - 1], came[WINDOW as usize]), (b'x', 4));
        for mut fd in [from, to, null] {
            fd.close();
        }
    }
}
