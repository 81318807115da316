//! What the standard library has not of local sockets (`man 7 unix`): connections that are not waited for,
//! a descriptor sent with an answer (SCM_RIGHTS), and who is at the other end.

use std::io;
use std::mem::{MaybeUninit, size_of};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// Connects to the socket at `path`. Somebody who listens there and has too many waiting is waited for
/// at most for `patience`, or not at all.
///
/// # Errors
/// The host's; `WouldBlock` when somebody listens and does not answer in time.
pub fn connect(path: &Path, patience: Option<Duration>) -> io::Result<UnixStream> {
    // SAFETY: an address is numbers, all of which may be zero.
    let mut address: libc::sockaddr_un = unsafe { MaybeUninit::zeroed().assume_init() };
    address.sun_family = libc::AF_UNIX as libc::sa_family_t;
    let bytes = path.as_os_str().as_bytes();
    // The last byte stays the end of it.
    if bytes.is_empty() || bytes.len() >= address.sun_path.len() || bytes.contains(&0) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (to, from) in address.sun_path.iter_mut().zip(bytes) {
        *to = from.cast_signed();
    }
    // SAFETY: plain numbers; it makes a new descriptor, or fails.
    let fd = unsafe { libc::socket(libc::AF_UNIX, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: it is new, a socket, and nobody else's.
    let socket = unsafe { UnixStream::from_raw_fd(fd) };
    match patience {
        // It goes for connecting as well.
        Some(_) => socket.set_write_timeout(patience)?,
        None => socket.set_nonblocking(true)?,
    }
    let len = size_of_val(&address) as libc::socklen_t;
    // SAFETY: an open socket, and an address of that length, which is read.
    if unsafe { libc::connect(socket.as_raw_fd(), (&raw const address).cast(), len) } != 0 {
        return Err(io::Error::last_os_error());
    }
    socket.set_nonblocking(false)?;
    Ok(socket)
}

/// Room for the control message of one descriptor, aligned as one.
#[repr(C, align(8))]
struct Control([u8; 64]);

/// The message that carries `bytes`, and the control data `control`.
fn message(bytes: &mut libc::iovec, control: &mut Control) -> libc::msghdr {
    // SAFETY: a message header is numbers and pointers, all of which may be zero.
    let mut header: libc::msghdr = unsafe { MaybeUninit::zeroed().assume_init() };
    header.msg_iov = bytes;
    header.msg_iovlen = 1;
    header.msg_control = control.0.as_mut_ptr().cast();
    header.msg_controllen = control.0.len();
    header
}

const FD_LEN: u32 = size_of::<RawFd>() as u32;

/// Sends `bytes`, of which there are some, with `fd`.
///
/// # Errors
/// The host's.
pub fn send(socket: &UnixStream, bytes: &[u8], fd: RawFd) -> io::Result<()> {
    let mut control = Control([0; 64]);
    let mut iovec =
        libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    let mut header = message(&mut iovec, &mut control);
    // SAFETY: CMSG_SPACE and CMSG_LEN only compute; the first control message lies in `control`, which
    // has room for it and is aligned for it; sendmsg reads what the header points to.
    let sent = unsafe {
        header.msg_controllen = libc::CMSG_SPACE(FD_LEN) as usize;
        let first = libc::CMSG_FIRSTHDR(&header);
        (*first).cmsg_level = libc::SOL_SOCKET;
        (*first).cmsg_type = libc::SCM_RIGHTS;
        (*first).cmsg_len = libc::CMSG_LEN(FD_LEN) as usize;
        libc::CMSG_DATA(first).cast::<RawFd>().write_unaligned(fd);
        libc::sendmsg(socket.as_raw_fd(), &header, libc::MSG_NOSIGNAL)
    };
    match usize::try_from(sent) {
        Ok(count) if count == bytes.len() => Ok(()),
        Ok(_) => Err(io::ErrorKind::WriteZero.into()),
        Err(_) => Err(io::Error::last_os_error()),
    }
}

/// Receives bytes, and the descriptor that comes with them, if one does.
///
/// # Errors
/// The host's.
pub fn receive(socket: &UnixStream, room: &mut [u8]) -> io::Result<(usize, Option<OwnedFd>)> {
    let mut control = Control([0; 64]);
    let mut iovec = libc::iovec { iov_base: room.as_mut_ptr().cast(), iov_len: room.len() };
    let mut header = message(&mut iovec, &mut control);
    // One descriptor's worth: the kernel closes others.
    // SAFETY: CMSG_SPACE only computes; recvmsg writes into what the header points to.
    let count = unsafe {
        header.msg_controllen = libc::CMSG_SPACE(FD_LEN) as usize;
        libc::recvmsg(socket.as_raw_fd(), &mut header, libc::MSG_CMSG_CLOEXEC)
    };
    let count = usize::try_from(count).map_err(|_| io::Error::last_os_error())?;
    // SAFETY: the kernel filled the control data, of which the first message lies inside if there is
    // one; a descriptor in it was made for this process and is nobody else's.
    let fd = unsafe {
        let first = libc::CMSG_FIRSTHDR(&header);
        let is_fd = !first.is_null()
            && (*first).cmsg_level == libc::SOL_SOCKET
            && (*first).cmsg_type == libc::SCM_RIGHTS
            && (*first).cmsg_len == libc::CMSG_LEN(FD_LEN) as usize;
        is_fd.then(|| OwnedFd::from_raw_fd(libc::CMSG_DATA(first).cast::<RawFd>().read_unaligned()))
    };
    Ok((count, fd))
}

/// The process at the other end and its user; of a listening socket, whoever made it listen.
///
/// # Errors
/// The host's.
pub fn peer(socket: &UnixStream) -> io::Result<libc::ucred> {
    let mut peer = libc::ucred { pid: 0, uid: u32::MAX, gid: u32::MAX };
    let mut len = size_of::<libc::ucred>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `len` bytes of a ucred there.
    let done = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            (&raw mut peer).cast(),
            &mut len,
        )
    };
    if done == 0 { Ok(peer) } else { Err(io::Error::last_os_error()) }
}
