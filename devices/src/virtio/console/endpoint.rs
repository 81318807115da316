//! The host's side of a byte port: a unix socket for one client at a time, or a file.
//!
//! Nothing here blocks, and nothing is buffered: bytes go between the guest's buffers and the socket
//! or file in one system call.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use crate::unix_socket::{BindError, Listener};
use crate::virtio::queue::Iovecs;

/// A port's host side that cannot be had. Each names the path and the way out.
#[derive(Debug, thiserror::Error)]
pub enum EndpointError {
    /// Another process listens there.
    #[error("port socket {path} is in use; stop the other VM, or name another socket", path = .0.display())]
    InUse(PathBuf),
    /// Something stands there that is no socket.
    #[error("port socket {path}: there is something else already; remove it, or name another path", path = .0.display())]
    NotASocket(PathBuf),
    /// The host refused.
    #[error("port {what} {path}: {source}", path = path.display())]
    Host {
        /// What the user gave.
        path: PathBuf,
        /// A socket or a file.
        what: &'static str,
        /// The host's answer.
        r#source: io::Error,
    },
}

/// What a port is connected to on the host.
pub struct Endpoint {
    kind: Kind,
}

enum Kind {
    Socket {
        listener: Listener,
        client: Option<UnixStream>,
    },
    /// For what the guest writes; it reads nothing.
    File(File),
}

impl Endpoint {
    /// Listens at `path`, for its owner alone, and serves one client after the other. A socket that
    /// a dead process left there is replaced; this one's path goes when it is dropped.
    ///
    /// # Errors
    /// See [`EndpointError`].
    pub fn socket(path: &Path) -> Result<Endpoint, EndpointError> {
        let listener = Listener::bind(path).map_err(|why| match why {
            BindError::InUse => EndpointError::InUse(path.to_owned()),
            BindError::NotASocket => EndpointError::NotASocket(path.to_owned()),
            BindError::Host(_, source) => {
                EndpointError::Host { path: path.to_owned(), what: "socket", source }
            }
        })?;
        Ok(Endpoint { kind: Kind::Socket { listener, client: None } })
    }

    /// Writes to the file at `path`, which is made or emptied; a FIFO or a terminal is written to.
    ///
    /// # Errors
    /// See [`EndpointError`].
    pub fn file(path: &Path) -> Result<Endpoint, EndpointError> {
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            // Or a FIFO without a reader would hang here.
            .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
            .open(path)
            .map_err(|source| EndpointError::Host {
                path: path.to_owned(),
                what: "file",
                source,
            })?;
        Ok(Endpoint { kind: Kind::File(file) })
    }

    /// Whether there is somebody on the host's side.
    pub(super) fn is_open(&self) -> bool {
        match &self.kind {
            Kind::Socket { client, .. } => client.is_some(),
            Kind::File(_) => true,
        }
    }

    /// Whether clients come and go.
    pub(super) fn is_socket(&self) -> bool {
        matches!(self.kind, Kind::Socket { .. })
    }

    /// Whether there is something to read.
    pub(super) fn has_unread(&self) -> bool {
        let Kind::Socket { client: Some(client), .. } = &self.kind else { return false };
        let mut byte = 0u8;
        let flags = libc::MSG_PEEK | libc::MSG_DONTWAIT;
        // SAFETY: room for the one byte that is asked for.
        unsafe { libc::recv(client.as_raw_fd(), (&raw mut byte).cast(), 1, flags) > 0 }
    }

    /// What to watch for a client that comes; nothing while there is one.
    pub(super) fn listener(&self) -> Option<RawFd> {
        match &self.kind {
            Kind::Socket { listener, client: None, .. } => Some(listener.as_raw_fd()),
            _ => None,
        }
    }

    /// What to watch for bytes and room: the client, or the file where it can be watched.
    pub(super) fn stream(&self) -> Option<RawFd> {
        match &self.kind {
            Kind::Socket { client, .. } => client.as_ref().map(AsRawFd::as_raw_fd),
            Kind::File(file) => Some(file.as_raw_fd()),
        }
    }

    /// Takes the next client; false when none waits.
    pub(super) fn accept(&mut self) -> bool {
        let Kind::Socket { listener, client: client @ None, .. } = &mut self.kind else {
            return false;
        };
        let Ok(stream) = listener.accept() else { return false };
        *client = Some(stream);
        true
    }

    /// The client is gone, or is sent away.
    pub(super) fn hang_up(&mut self) {
        if let Kind::Socket { client, .. } = &mut self.kind {
            *client = None;
        }
    }

    /// Fills some of `to`: 0 when nothing will ever come any more.
    pub(super) fn read(&self, to: &Iovecs<'_>) -> io::Result<usize> {
        match &self.kind {
            Kind::Socket { client: Some(client), .. } => to.readv(client.as_fd()),
            _ => Err(io::ErrorKind::WouldBlock.into()),
        }
    }

    /// Writes some of `from`. Without a client everything is taken and lost.
    pub(super) fn write(&self, from: &Iovecs<'_>) -> io::Result<usize> {
        match &self.kind {
            Kind::Socket { client: Some(client), .. } => from.send(client.as_fd()),
            Kind::Socket { client: None, .. } => Ok(from.len()),
            Kind::File(file) => from.writev(file.as_fd()),
        }
    }
}
