//! Those who wait for a VM's end: connections that are answered when it has come, and cost nothing until
//! then.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;

use super::TOO_MANY;

/// Those who wait at once.
const WAITING_MAX: usize = 64;

/// Those who wait for the VM's end, and what they are told.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    clients: Vec<UnixStream>,
    /// What it was concluded with, once it was.
    pub status: Option<u8>,
    /// Why it ended, in a line, once they have been told.
    over: Option<String>,
}

impl Waiting {
    /// Has `client` wait, or tells it at once.
    pub fn join(&mut self, mut client: &UnixStream) -> io::Result<()> {
        if self.clients.len() >= WAITING_MAX {
            // Those that have gone.
            self.clients.retain(|waiting| !has_gone(waiting));
        }
        if self.clients.len() >= WAITING_MAX {
            return client.write_all(TOO_MANY);
        }
        // So it knows that it will hear of the end. Answers fit into any socket's buffer: nobody is waited for.
        client.write_all(b"OK\n")?;
        if let Some(why) = &self.over {
            return self.tell(client, why);
        }
        let client = client.try_clone()?;
        client.set_nonblocking(true)?;
        self.clients.push(client);
        Ok(())
    }

    /// A line with the status, empty when there is none, and one with the reason.
    fn tell(&self, mut client: &UnixStream, why: &str) -> io::Result<()> {
        let status = self.status.map(|status| status.to_string()).unwrap_or_default();
        client.write_all(format!("{status}\n{why}\n").as_bytes())
    }

    /// It is over, for that reason.
    pub fn end(&mut self, why: String) {
        for client in std::mem::take(&mut self.clients) {
            // Whoever has gone need not be told.
            let _ = self.tell(&client, &why);
        }
        self.over = Some(why);
    }
}

/// Whether a client that does not block has closed its connection.
fn has_gone(mut client: &UnixStream) -> bool {
    let read = client.read(&mut [0]);
    !matches!(read, Ok(1..)) && !matches!(read, Err(e) if e.kind() == io::ErrorKind::WouldBlock)
}
