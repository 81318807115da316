//! The host's unix sockets: one that listens at the path the user gave, and connections to
//! `<path>_<port>` for the guest. None of them ever blocks.

use std::fs::{self, File, Permissions};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

/// The longest path in bytes: `sun_path` has 108 (`man 7 unix`), one of them for the final NUL and
/// 11 for `_` and the port that a guest's connection adds.
pub const PATH_MAX: usize = 108 - 1 - 11;

/// The socket cannot be made. Each names it and the way out.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// Not usable as an address.
    #[error(
        "vsock socket {path}: a path of 1 to {PATH_MAX} bytes without NUL is needed; name a shorter one",
        path = .0.display()
    )]
    Path(PathBuf),
    /// Another process listens there.
    #[error(
        "vsock socket {path} is in use; stop the other VM, or name another socket",
        path = .0.display()
    )]
    InUse(PathBuf),
    /// Something stands there that is no socket.
    #[error(
        "vsock socket {path}: there is something else already; remove it, or name another path",
        path = .0.display()
    )]
    NotASocket(PathBuf),
    /// The host refused.
    #[error("vsock socket {path}: {what}: {source}", path = path.display())]
    Host {
        /// What the user gave.
        path: PathBuf,
        /// What was tried.
        what: &'static str,
        /// The host's answer.
        r#source: io::Error,
    },
}

/// A socket that listens, only for its owner. Its path goes when it is dropped.
#[derive(Debug)]
pub struct Listener {
    socket: UnixListener,
    path: PathBuf,
    /// Device and inode of what stands at `path`.
    identity: (u64, u64),
}

impl Listener {
    /// Listens at `path`. What a process that is gone has left there is replaced.
    ///
    /// # Errors
    /// See [`SocketError`].
    pub fn bind(path: &Path) -> Result<Listener, SocketError> {
        let bytes = path.as_os_str().len();
        if !(1..=PATH_MAX).contains(&bytes) || path.as_os_str().as_bytes().contains(&0) {
            return Err(SocketError::Path(path.to_owned()));
        }
        make_way(path)?;
        let host = |what| {
            move |source: io::Error| match source.kind() {
                io::ErrorKind::AddrInUse => SocketError::InUse(path.to_owned()),
                _ => SocketError::Host { path: path.to_owned(), what, source },
            }
        };
        let socket = File::from(socket().map_err(host("socket"))?);
        // Before bind: what has no path yet cannot be connected to meanwhile, and the process' umask,
        // which is every thread's, stays as it is.
        socket.set_permissions(Permissions::from_mode(0o600)).map_err(host("chmod"))?;
        let (address, len) = address(path).map_err(host("bind"))?;
        // SAFETY: `address` is a sockaddr_un of which `len` bytes are filled.
        check(unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), len) })
            .map_err(host("bind"))?;
        // SAFETY: listen takes no pointers.
        check(unsafe { libc::listen(socket.as_raw_fd(), libc::SOMAXCONN) })
            .map_err(host("listen"))?;
        let made = fs::symlink_metadata(path).map_err(host("stat"))?;
        Ok(Listener {
            socket: UnixListener::from(OwnedFd::from(socket)),
            path: path.to_owned(),
            identity: (made.dev(), made.ino()),
        })
    }

    /// The next connection, which does not block; `WouldBlock` when there is none.
    ///
    /// # Errors
    /// The host's.
    pub fn accept(&self) -> io::Result<UnixStream> {
        let (stream, _) = self.socket.accept()?;
        stream.set_nonblocking(true)?;
        Ok(stream)
    }

    /// Connects to whoever listens for `port` of the host's.
    ///
    /// # Errors
    /// The host's; `WouldBlock` when more wait there already than it accepts.
    pub fn connect(&self, port: u32) -> io::Result<UnixStream> {
        let mut path = self.path.clone().into_os_string();
        path.push(format!("_{port}"));
        connect(Path::new(&path))
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
            log::warn!("vsock socket {}: it stays: {e}", self.path.display());
        }
    }
}

/// Removes a socket nobody listens to any more.
fn make_way(path: &Path) -> Result<(), SocketError> {
    let host = |what| move |source| SocketError::Host { path: path.to_owned(), what, source };
    match fs::symlink_metadata(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(host("stat")(e)),
        Ok(found) if !found.file_type().is_socket() => {
            return Err(SocketError::NotASocket(path.to_owned()));
        }
        Ok(_) => {}
    }
    match connect(path) {
        Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => {
            fs::remove_file(path).map_err(host("removing what a dead process left"))
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        // Alive, with or without room for us.
        Ok(_) => Err(SocketError::InUse(path.to_owned())),
        Err(e) if e.kind() == io::ErrorKind::WouldBlock => Err(SocketError::InUse(path.to_owned())),
        Err(e) => Err(host("connect")(e)),
    }
}

fn connect(path: &Path) -> io::Result<UnixStream> {
    let socket = socket()?;
    let (address, len) = address(path)?;
    // SAFETY: `address` is a sockaddr_un of which `len` bytes are filled.
    check(unsafe { libc::connect(socket.as_raw_fd(), (&raw const address).cast(), len) })?;
    Ok(UnixStream::from(socket))
}

/// A stream socket that does not block.
fn socket() -> io::Result<OwnedFd> {
    let kind = libc::SOCK_STREAM | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
    // SAFETY: socket takes no pointers.
    let fd = unsafe { libc::socket(libc::AF_UNIX, kind, 0) };
    check(fd)?;
    // SAFETY: the descriptor was made just now and is nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn address(path: &Path) -> io::Result<(libc::sockaddr_un, libc::socklen_t)> {
    let mut address =
        libc::sockaddr_un { sun_family: libc::AF_UNIX as libc::sa_family_t, sun_path: [0; 108] };
    let bytes = path.as_os_str().as_bytes();
    if bytes.len() >= address.sun_path.len() {
        return Err(io::ErrorKind::InvalidFilename.into());
    }
    for (to, from) in address.sun_path.iter_mut().zip(bytes) {
        *to = *from as libc::c_char;
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
        assert!(matches!(Listener::bind(&path), Err(SocketError::InUse(_))));
        drop(other);
        assert!(path.exists());
        let ours = Listener::bind(&path).unwrap();
        UnixStream::connect(&path).unwrap();
        // Another one's path is not ours to remove.
        fs::remove_file(&path).unwrap();
        fs::write(&path, "precious").unwrap();
        drop(ours);
        assert!(matches!(Listener::bind(&path), Err(SocketError::NotASocket(_))));
        assert_eq!(fs::read(&path).unwrap(), b"precious");
    }

    #[test]
    fn a_path_has_room_for_every_port_behind_it_or_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let fill = PATH_MAX - dir.path().as_os_str().len() - 1;
        let longest = dir.path().join("x".repeat(fill));
        let listener = Listener::bind(&longest).unwrap();
        let port = PathBuf::from(format!("{}_{}", longest.display(), u32::MAX));
        let served = UnixListener::bind(&port).unwrap();
        listener.connect(u32::MAX).unwrap();
        served.accept().unwrap();
        for path in [dir.path().join("x".repeat(fill + 1)), "".into(), "a\0b".into()] {
            assert!(matches!(Listener::bind(&path), Err(SocketError::Path(_))), "{path:?}");
        }
        let missing = Listener::bind(&dir.path().join("no/sock")).unwrap_err().to_string();
        assert!(missing.contains("no/sock"), "{missing}");
    }
}
