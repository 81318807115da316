//! Sockets between guest and host (`man 7 vsock`), and to the guest's kernel (`man 7 netlink`).

use super::{Errno, Fd, Result, call, file, retry};

const AF_NETLINK: usize = 16;
const AF_VSOCK: u16 = 40;
const STREAM: usize = 1;
const RAW: usize = 3;
/// The host.
const HOST: u32 = 2;
const ANY: u32 = u32::MAX;

/// `struct sockaddr_vm`, linux/vm_sockets.h.
#[repr(C)]
struct Address {
    family: u16,
    reserved: u16,
    port: u32,
    cid: u32,
    rest: u32,
}

fn socket(family: usize, kind: usize) -> Result<Fd> {
    // SAFETY: socket takes no pointers.
    unsafe { call(41, [family, kind | file::CLOEXEC as usize, 0, 0, 0, 0]) }.map(|fd| Fd(fd as i32))
}

/// A socket to tell the kernel of interfaces, addresses and routes (`NETLINK_ROUTE`).
pub fn route() -> Result<Fd> {
    // That is the protocol of number 0.
    socket(AF_NETLINK, RAW)
}

fn at(number: usize, fd: Fd, cid: u32, port: u32) -> Result<()> {
    let address = Address { family: AF_VSOCK, reserved: 0, port, cid, rest: 0 };
    let len = size_of::<Address>();
    // SAFETY: the kernel reads `len` bytes there.
    retry(|| unsafe { call(number, [fd.raw(), (&raw const address).addr(), len, 0, 0, 0]) })
        .map(drop)
}

/// Connects to `port` of the host's. Linux waits two seconds for an answer, and a busy host may take
/// longer; how long it may is for the host to say, so this asks for some minutes.
pub fn connect_to_host(port: u32) -> Result<Fd> {
    const TIMES: usize = 100;
    let connect = || {
        let mut fd = socket(AF_VSOCK.into(), STREAM)?;
        at(42, fd, HOST, port).inspect_err(|_| fd.close()).map(|()| fd)
    };
    for _ in 1..TIMES {
        match connect() {
            Err(Errno::TIMEDOUT) => {}
            other => return other,
        }
    }
    connect()
}

/// Listens at `port`.
pub fn listen(port: u32) -> Result<Fd> {
    const BACKLOG: usize = 128;
    let mut fd = socket(AF_VSOCK.into(), STREAM)?;
    let done = at(49, fd, ANY, port).and_then(|()| {
        // SAFETY: listen takes no pointers.
        unsafe { call(50, [fd.raw(), BACKLOG, 0, 0, 0, 0]) }
    });
    done.inspect_err(|_| fd.close()).map(|_| fd)
}

/// The next connection, and whether it is the host's.
pub fn accept(fd: Fd) -> Result<(Fd, bool)> {
    let mut address = Address { family: 0, reserved: 0, port: 0, cid: 0, rest: 0 };
    let mut len = size_of::<Address>() as u32;
    let (place, flags) = ((&raw mut address).addr(), file::CLOEXEC as usize);
    // SAFETY: the kernel writes at most `len` bytes of an address there, and its length.
    let fd = retry(|| unsafe { call(288, [fd.raw(), place, (&raw mut len).addr(), flags, 0, 0]) })?;
    Ok((Fd(fd as i32), address.cid == HOST))
}
