//! Frames over a socket.

use husk_guest_protocol::{Frame, HEADER_LEN, Header, PAYLOAD_MAX};

use crate::sys::{Errno, Fd, Result, file};

/// A peer and room for what it says.
pub struct Wire {
    pub fd: Fd,
    payload: [u8; PAYLOAD_MAX],
}

impl Wire {
    /// Over a socket that is connected.
    pub fn new(fd: Fd) -> Wire {
        Wire { fd, payload: [0; PAYLOAD_MAX] }
    }

    /// The next frame; `None` at the end.
    ///
    /// # Errors
    /// When the peer says what is no frame, or has gone amidst one.
    pub fn receive(&mut self) -> Result<Option<Frame<'_>>> {
        let mut header = [0; HEADER_LEN];
        if !file::read_exact(self.fd, &mut header)? {
            return Ok(None);
        }
        let header = Header::decode(header).map_err(|_| Errno::PROTO)?;
        let payload = self.payload.get_mut(..header.len).ok_or(Errno::PROTO)?;
        if header.len > 0 && !file::read_exact(self.fd, payload)? {
            return Err(Errno::PROTO);
        }
        Frame::decode(header, payload).map(Some).map_err(|_| Errno::PROTO)
    }

    /// Sends a frame.
    ///
    /// # Errors
    /// When the peer has gone.
    pub fn send(&self, frame: Frame<'_>) -> Result<()> {
        let encoded = frame.encode();
        file::write_all(self.fd, encoded.head())?;
        file::write_all(self.fd, encoded.bytes())
    }
}
