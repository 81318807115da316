//! The host's side of vsock: a socket that listens at the path the user gave, and connections to
//! `<path>_<port>` for the guest.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use crate::unix_socket::{self, BindError};

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

/// Listens for the host's programs, and connects to them.
#[derive(Debug)]
pub struct Listener {
    socket: unix_socket::Listener,
    /// The directory of `path`, which somebody else may write to: a guest, say, with whom it is shared.
    dir: OwnedFd,
}

impl Listener {
    /// Listens at `path`. What a process that is gone has left there is replaced.
    ///
    /// # Errors
    /// See [`SocketError`].
    pub fn bind(path: &Path) -> Result<Listener, SocketError> {
        let bytes = path.as_os_str().as_bytes();
        if !(1..=PATH_MAX).contains(&bytes.len()) || bytes.contains(&0) {
            return Err(SocketError::Path(path.to_owned()));
        }
        let host = |what, source| SocketError::Host { path: path.to_owned(), what, source };
        let socket = unix_socket::Listener::bind(path).map_err(|why| match why {
            BindError::InUse => SocketError::InUse(path.to_owned()),
            BindError::NotASocket => SocketError::NotASocket(path.to_owned()),
            BindError::Host(what, source) => host(what, source),
        })?;
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
        let dir = unix_socket::reference(parent.unwrap_or(Path::new(".")))
            .map_err(|source| host("opening its directory", source))?;
        Ok(Listener { socket, dir: dir.into() })
    }

    /// The next connection, which does not block; `WouldBlock` when there is none.
    ///
    /// # Errors
    /// The host's.
    pub fn accept(&self) -> io::Result<UnixStream> {
        self.socket.accept()
    }

    /// Connects to whoever listens for `port` of the host's. Links are not followed: where a guest may put
    /// one it would reach any socket that husk may connect to.
    ///
    /// # Errors
    /// The host's; `WouldBlock` when more wait there already than it accepts.
    pub fn connect(&self, port: u32) -> io::Result<UnixStream> {
        let mut name = self.socket.path().file_name().unwrap_or_default().to_owned();
        name.push(format!("_{port}"));
        let dir = PathBuf::from(format!("/proc/self/fd/{}", self.dir.as_raw_fd()));
        let found = unix_socket::reference(&dir.join(name))?;
        if !found.metadata()?.file_type().is_socket() {
            return Err(io::ErrorKind::ConnectionRefused.into());
        }
        unix_socket::connect(Path::new(&format!("/proc/self/fd/{}", found.as_raw_fd())))
    }
}

impl AsRawFd for Listener {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

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
        assert!(matches!(Listener::bind(&longest), Err(SocketError::InUse(_))));
    }

    #[test]
    fn a_guest_that_can_put_a_link_there_reaches_no_other_socket() {
        let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let secret = other.path().join("secret");
        let _secret = UnixListener::bind(&secret).unwrap();
        let listener = Listener::bind(&dir.path().join("v.sock")).unwrap();
        let place = |port: u32| dir.path().join(format!("v.sock_{port}"));
        std::os::unix::fs::symlink(&secret, place(1)).unwrap();
        std::fs::write(place(2), "").unwrap();
        for port in [1, 2, 3] {
            listener.connect(port).unwrap_err();
        }
        let _served = UnixListener::bind(place(4)).unwrap();
        listener.connect(4).unwrap();
        // Another directory in the place of this one.
        std::os::unix::net::UnixListener::bind(other.path().join("v.sock_5")).unwrap();
        let moved = other.path().join("moved");
        std::fs::rename(dir.path(), &moved).unwrap();
        std::os::unix::fs::symlink(other.path(), dir.path()).unwrap();
        listener.connect(5).unwrap_err();
        listener.connect(4).unwrap();
        std::fs::remove_file(dir.path()).unwrap();
        std::fs::rename(&moved, dir.path()).unwrap();
    }
}
