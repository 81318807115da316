//! The host's side of a byte port: a unix socket for one client at a time, or a file.
//!
//! Nothing here blocks, and nothing is buffered: bytes go between the guest's buffers and the socket
//! or file in one system call.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

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
        listener: UnixListener,
        path: PathBuf,
        /// Device and inode of what stands at `path`.
        identity: (u64, u64),
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
        let host = |source| EndpointError::Host { path: path.to_owned(), what: "socket", source };
        match std::fs::symlink_metadata(path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(host(e)),
            Ok(found) if !found.file_type().is_socket() => {
                return Err(EndpointError::NotASocket(path.to_owned()));
            }
            Ok(_) if is_dead(path).map_err(host)? => std::fs::remove_file(path).map_err(host)?,
            Ok(_) => return Err(EndpointError::InUse(path.to_owned())),
        }
        let listener = UnixListener::bind(path).map_err(host)?;
        let mode = std::fs::Permissions::from_mode(0o600);
        std::fs::set_permissions(path, mode).map_err(host)?;
        listener.set_nonblocking(true).map_err(host)?;
        let made = std::fs::symlink_metadata(path).map_err(host)?;
        let identity = (made.dev(), made.ino());
        Ok(Endpoint {
            kind: Kind::Socket { listener, path: path.to_owned(), identity, client: None },
        })
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
        let Ok((stream, _)) = listener.accept() else { return false };
        if stream.set_nonblocking(true).is_err() {
            return false;
        }
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

/// Whether nobody listens to the socket at `path` any more. Somebody who has no time for another
/// connection is alive, and is not waited for.
fn is_dead(path: &Path) -> io::Result<bool> {
    let kind = libc::SOCK_STREAM | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
    // SAFETY: socket takes no pointers.
    let fd = unsafe { libc::socket(libc::AF_UNIX, kind, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor was made just now and is nobody else's.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    let mut address =
        libc::sockaddr_un { sun_family: libc::AF_UNIX as libc::sa_family_t, sun_path: [0; 108] };
    let bytes = path.as_os_str().as_bytes();
    if bytes.len() >= address.sun_path.len() {
        return Err(io::ErrorKind::InvalidFilename.into());
    }
    for (to, from) in address.sun_path.iter_mut().zip(bytes) {
        *to = *from as libc::c_char;
    }
    let len = size_of::<libc::sockaddr_un>() as libc::socklen_t;
    // SAFETY: `address` is a whole sockaddr_un, whose path ends with a NUL.
    let done = unsafe { libc::connect(socket.as_raw_fd(), (&raw const address).cast(), len) };
    Ok(done != 0 && io::Error::last_os_error().kind() == io::ErrorKind::ConnectionRefused)
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        let Kind::Socket { path, identity, .. } = &self.kind else { return };
        // Somebody may have put something else there.
        let ours = |found: std::fs::Metadata| (found.dev(), found.ino()) == *identity;
        if std::fs::symlink_metadata(path).is_ok_and(ours)
            && let Err(e) = std::fs::remove_file(path)
        {
            log::warn!("port socket {}: it stays: {e}", path.display());
        }
    }
}
