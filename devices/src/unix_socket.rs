//! The host's unix sockets: one that listens at the path the user gave, for its owner alone, and
//! connections. None of them ever blocks. What a path is for, and how long it may be, its users say.

use std::fs::{self, File, Permissions};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

/// Why nobody can listen at a path, which the caller names.
#[derive(Debug)]
pub(crate) enum BindError {
    /// Another process listens there.
    InUse,
    /// Something stands there that is no socket.
    NotASocket,
    /// The host refused what is named.
    Host(&'static str, io::Error),
}

/// A socket that listens, only for its owner. Its path goes when it is dropped.
#[derive(Debug)]
pub(crate) struct Listener {
    socket: UnixListener,
    path: PathBuf,
    /// Device and inode of what stands at `path`.
    identity: (u64, u64),
}

impl Listener {
    /// Listens at `path`. What a process that is gone has left there is replaced.
    ///
    /// # Errors
    /// See [`BindError`]; then nothing is left at `path` that was not there.
    pub(crate) fn bind(path: &Path) -> Result<Listener, BindError> {
        make_way(path)?;
        let host = |what| move |source| BindError::Host(what, source);
        let socket = File::from(socket(libc::SOCK_STREAM).map_err(host("socket"))?);
        // Before bind: what has no path yet cannot be connected to meanwhile, and the process' umask,
        // which is every thread's, stays as it is.
        socket.set_permissions(Permissions::from_mode(0o600)).map_err(host("chmod"))?;
        let (address, len) = address(path).map_err(host("bind"))?;
        // SAFETY: `address` is a sockaddr_un of which `len` bytes are filled.
        let bound =
            check(unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), len) });
        bound.map_err(|source| match source.kind() {
            io::ErrorKind::AddrInUse => BindError::InUse,
            _ => BindError::Host("bind", source),
        })?;
        let made = fs::symlink_metadata(path).map_err(host("stat"))?;
        let listener = Listener {
            socket: UnixListener::from(OwnedFd::from(socket)),
            path: path.to_owned(),
            identity: (made.dev(), made.ino()),
        };
        // SAFETY: listen takes no pointers.
        check(unsafe { libc::listen(listener.as_raw_fd(), libc::SOMAXCONN) })
            .map_err(host("listen"))?;
        Ok(listener)
    }

    /// Where it listens.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The next connection, which does not block; `WouldBlock` when there is none.
    ///
    /// # Errors
    /// The host's.
    pub(crate) fn accept(&self) -> io::Result<UnixStream> {
        let (stream, _) = self.socket.accept()?;
        stream.set_nonblocking(true)?;
        Ok(stream)
    }
}

impl AsRawFd for Listener {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        // Somebody may have put something else there.
        let ours = |found: fs::Metadata| (found.dev(), found.ino()) == self.identity;
        if fs::symlink_metadata(&self.path).is_ok_and(ours)
            && let Err(e) = fs::remove_file(&self.path)
        {
            log::warn!("socket {}: it stays: {e}", self.path.display());
        }
    }
}

/// Removes a socket nobody listens to any more.
fn make_way(path: &Path) -> Result<(), BindError> {
    match fs::symlink_metadata(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(BindError::Host("stat", e)),
        Ok(found) if !found.file_type().is_socket() => return Err(BindError::NotASocket),
        Ok(_) => {}
    }
    match connect(path) {
        Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path)
            .map_err(|e| BindError::Host("removing what a dead process left", e)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        // Alive, with or without room for us.
        Ok(_) => Err(BindError::InUse),
        Err(e) if e.kind() == io::ErrorKind::WouldBlock => Err(BindError::InUse),
        Err(e) => Err(BindError::Host("connect", e)),
    }
}

/// Connects to whoever listens at `path`.
///
/// # Errors
/// The host's; `WouldBlock` when more wait there already than it accepts.
pub(crate) fn connect(path: &Path) -> io::Result<UnixStream> {
    let socket = socket(libc::SOCK_STREAM)?;
    let (address, len) = address(path)?;
    // SAFETY: `address` is a sockaddr_un of which `len` bytes are filled.
    check(unsafe { libc::connect(socket.as_raw_fd(), (&raw const address).cast(), len) })?;
    Ok(UnixStream::from(socket))
}

/// A reference to what is at `path`, of a link itself, by which nothing is opened.
///
/// # Errors
/// The host's.
pub(crate) fn reference(path: &Path) -> io::Result<File> {
    let flags = libc::O_PATH | libc::O_NOFOLLOW | libc::O_CLOEXEC;
    fs::OpenOptions::new().read(true).custom_flags(flags).open(path)
}

/// A socket of a kind (`SOCK_STREAM`, `SOCK_SEQPACKET`), which does not block.
///
/// # Errors
/// The host's.
pub(crate) fn socket(kind: libc::c_int) -> io::Result<OwnedFd> {
    let kind = kind | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
    // SAFETY: socket takes no pointers.
    let fd = unsafe { libc::socket(libc::AF_UNIX, kind, 0) };
    check(fd)?;
    // SAFETY: the descriptor was made just now and is nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// The address of a socket at `path`, and its length in bytes.
///
/// # Errors
/// `InvalidFilename` for a path that no address can hold.
pub(crate) fn address(path: &Path) -> io::Result<(libc::sockaddr_un, libc::socklen_t)> {
    let mut address =
        libc::sockaddr_un { sun_family: libc::AF_UNIX as libc::sa_family_t, sun_path: [0; 108] };
    let bytes = path.as_os_str().as_bytes();
    // An empty one would be a name of the kernel's choice, and the last byte stays 0.
    if bytes.is_empty() || bytes.len() >= address.sun_path.len() || bytes.contains(&0) {
        return Err(io::ErrorKind::InvalidFilename.into());
    }
    for (to, from) in address.sun_path.iter_mut().zip(bytes) {
        *to = from.cast_signed();
    }
    // Family, path and NUL: at most the size of the struct.
    let len = size_of::<libc::sa_family_t>() + bytes.len() + 1;
    Ok((address, len as libc::socklen_t))
}

fn check(done: libc::c_int) -> io::Result<()> {
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_its_owner_may_connect_and_the_path_goes_with_the_listener() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("v.sock");
        let listener = Listener::bind(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let _peer = UnixStream::connect(&path).unwrap();
        listener.accept().unwrap();
        assert_eq!(listener.accept().unwrap_err().kind(), io::ErrorKind::WouldBlock);
        drop(listener);
        assert!(!path.exists());
    }

    #[test]
    fn what_is_alive_is_refused_what_is_dead_replaced_and_what_is_no_socket_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("v.sock");
        let other = UnixListener::bind(&path).unwrap();
        assert!(matches!(Listener::bind(&path), Err(BindError::InUse)));
        drop(other);
        assert!(path.exists());
        let ours = Listener::bind(&path).unwrap();
        UnixStream::connect(&path).unwrap();
        // Another one's path is not ours to remove.
        fs::remove_file(&path).unwrap();
        fs::write(&path, "precious").unwrap();
        drop(ours);
        assert!(matches!(Listener::bind(&path), Err(BindError::NotASocket)));
        assert_eq!(fs::read(&path).unwrap(), b"precious");
    }
}
