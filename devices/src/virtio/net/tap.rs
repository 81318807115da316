//! A TAP interface of the host's: frames in and out, each behind a 12-byte `virtio_net_hdr`.
//!
//! The descriptor never blocks. Offloads are off until [`Tap::set_offloads`] says what the guest
//! can take. See `Documentation/networking/tuntap.rst`.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::sync::Arc;

use virtio_bindings::bindings::virtio_net::{
    VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_ECN, VIRTIO_NET_F_GUEST_TSO4,
    VIRTIO_NET_F_GUEST_TSO6,
};

use super::HEADER_LEN;
use super::backend::{Backend, Received, uninterrupted};
use super::control::Source;
use crate::virtio::queue::Iovecs;

/// A TAP that cannot be used. Each names it and the way out.
#[derive(Debug, thiserror::Error)]
pub enum TapError {
    /// See [`is_interface_name`].
    #[error("{0:?} is not the name of a network interface: {INTERFACE_NAME}")]
    Name(String),
    /// There is no `/dev/net/tun`, or it is not ours.
    #[error("cannot open /dev/net/tun for TAP {name}: {source}; try `modprobe tun`")]
    Device {
        /// What the user gave.
        name: String,
        /// The host's answer.
        r#source: io::Error,
    },
    /// It is not there and we may not make it, or it belongs to another user.
    #[error(
        "no permission for TAP {name}; make it with `ip tuntap add {name} mode tap user $USER` \
         (as root), or give husk CAP_NET_ADMIN"
    )]
    Permission {
        /// What the user gave.
        name: String,
    },
    /// Somebody else has it.
    #[error("TAP {name} is in use; stop the other VM, or use another TAP")]
    InUse {
        /// What the user gave.
        name: String,
    },
    /// It was made with one queue, or is no TAP: Linux has one answer for both.
    #[error(
        "{name} is an interface of the host's, but no TAP with the queues that are wanted (it may be \
         another kind of interface); name another, make it with `ip tuntap add {name} mode tap \
         multi_queue`, or give queues=1"
    )]
    Queues {
        /// What the user gave.
        name: String,
    },
    /// The descriptor is no TAP, or not set up as one that carries Ethernet frames and headers.
    #[error(
        "descriptor {fd} is not a TAP with IFF_TAP, IFF_NO_PI and IFF_VNET_HDR; open it with these"
    )]
    NotATap {
        /// The descriptor's number.
        fd: RawFd,
    },
    /// The host refused something else.
    #[error("TAP {name}: {what}: {source}")]
    Host {
        /// What the user gave.
        name: String,
        /// What was tried.
        what: &'static str,
        /// The host's answer.
        r#source: io::Error,
    },
}

/// `struct ifreq`: a name, and a union of which the first bytes are used here.
#[repr(C, align(8))]
struct IfReq {
    name: [u8; libc::IFNAMSIZ],
    value: [u8; 24],
}

impl IfReq {
    /// Of `name`, which has fewer than 16 bytes.
    fn named(name: &str) -> IfReq {
        let mut request = IfReq { name: [0; libc::IFNAMSIZ], value: [0; 24] };
        for (to, from) in request.name.iter_mut().zip(name.bytes()) {
            *to = from;
        }
        request
    }

    fn short(&self) -> libc::c_short {
        let [low, high, ..] = self.value;
        libc::c_short::from_ne_bytes([low, high])
    }

    fn set_short(&mut self, value: libc::c_short) {
        for (to, from) in self.value.iter_mut().zip(value.to_ne_bytes()) {
            *to = from;
        }
    }

    fn int(&self) -> libc::c_int {
        let [a, b, c, d, ..] = self.value;
        libc::c_int::from_ne_bytes([a, b, c, d])
    }
}

const FLAGS: libc::c_int = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;

/// What [`is_interface_name`] wants, in words.
pub const INTERFACE_NAME: &str = "1 to 15 bytes without '/', ':', '%' and white space";

/// Whether Linux takes `name` for a network interface (`dev_valid_name` of `net/core/dev.c`) as it
/// is: with a `%` it would be a pattern, of which Linux makes a name (`dev_alloc_name`).
pub fn is_interface_name(name: &str) -> bool {
    // White space as the kernel's `isspace` has it: Latin-1, with the no-break space.
    let bad = |b: u8| matches!(b, 0 | b'/' | b':' | b'%' | b'\t'..=b'\r' | b' ' | 0xa0);
    (1..libc::IFNAMSIZ).contains(&name.len())
        && name != "."
        && name != ".."
        && !name.bytes().any(bad)
}

/// A queue of an open TAP; most have one. Closing it leaves a persistent interface in place.
#[derive(Debug)]
pub struct Tap {
    fd: OwnedFd,
    name: String,
}

impl Tap {
    /// Opens the TAP called `name`, or makes one that lives as long as this does.
    ///
    /// # Errors
    /// See [`TapError`].
    pub fn open(name: &str) -> Result<Tap, TapError> {
        // A persistent one that was made with queues is opened only with that flag.
        match Tap::attach(name, FLAGS) {
            Err(TapError::Queues { .. }) => Tap::attach(name, FLAGS | libc::IFF_MULTI_QUEUE),
            opened => opened,
        }
    }

    /// The same with `count` queues; the host spreads connections over them.
    ///
    /// # Errors
    /// See [`TapError`]; [`TapError::Queues`] when the TAP was made with one.
    pub fn open_queues(name: &str, count: u16) -> Result<Vec<Tap>, TapError> {
        if count <= 1 {
            return Tap::open(name).map(|tap| vec![tap]);
        }
        (0..count).map(|_| Tap::attach(name, FLAGS | libc::IFF_MULTI_QUEUE)).collect()
    }

    fn attach(name: &str, flags: libc::c_int) -> Result<Tap, TapError> {
        if !is_interface_name(name) {
            return Err(TapError::Name(name.into()));
        }
        let opened = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
            .open("/dev/net/tun");
        let fd = match opened {
            Ok(file) => OwnedFd::from(file),
            Err(source) => return Err(TapError::Device { name: name.into(), source }),
        };
        let mut request = IfReq::named(name);
        request.set_short(flags as libc::c_short);
        // SAFETY: TUNSETIFF reads and writes an ifreq, which IfReq is as long as.
        let done = unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETIFF, &mut request) };
        if done < 0 {
            let (name, source) = (name.to_string(), io::Error::last_os_error());
            return Err(match source.raw_os_error() {
                Some(libc::EPERM | libc::EACCES) => TapError::Permission { name },
                Some(libc::EBUSY | libc::E2BIG) => TapError::InUse { name },
                // What tun_set_iff says when the flag is not as the interface was made.
                Some(libc::EINVAL) => TapError::Queues { name },
                _ => TapError::Host { name, what: "TUNSETIFF", source },
            });
        }
        Tap::prepare(fd, name.into())
    }

    /// Takes a copy of descriptor `number`, a TAP this process has inherited.
    ///
    /// # Errors
    /// See [`TapError`]; they name `number`.
    pub fn inherited(number: RawFd) -> Result<Tap, TapError> {
        // SAFETY: a number that is no open descriptor fails and touches nothing.
        let copy = unsafe { libc::fcntl(number, libc::F_DUPFD_CLOEXEC, 3) };
        if copy < 0 {
            return Err(TapError::NotATap { fd: number });
        }
        // SAFETY: fcntl gave us this descriptor just now.
        Tap::from_fd(unsafe { OwnedFd::from_raw_fd(copy) }).map_err(|e| match e {
            TapError::NotATap { .. } => TapError::NotATap { fd: number },
            other => other,
        })
    }

    /// Takes over a TAP that somebody else has opened, with `IFF_TAP | IFF_NO_PI | IFF_VNET_HDR`.
    ///
    /// # Errors
    /// See [`TapError`].
    pub fn from_fd(fd: OwnedFd) -> Result<Tap, TapError> {
        let mut request = IfReq::named("");
        // SAFETY: TUNGETIFF writes an ifreq, which IfReq is as long as.
        let done = unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNGETIFF, &mut request) };
        if done < 0 || libc::c_int::from(request.short()) & FLAGS != FLAGS {
            return Err(TapError::NotATap { fd: fd.as_raw_fd() });
        }
        let name = request.name.iter().take_while(|b| **b != 0).copied().collect();
        let name = String::from_utf8(name).unwrap_or_else(|_| "?".into());
        // SAFETY: F_GETFL and F_SETFL take no pointers.
        let done = unsafe {
            let flags = libc::fcntl(fd.as_raw_fd(), libc::F_GETFL);
            libc::fcntl(fd.as_raw_fd(), libc::F_SETFL, flags | libc::O_NONBLOCK)
        };
        if done < 0 {
            let source = io::Error::last_os_error();
            return Err(TapError::Host { name, what: "O_NONBLOCK", source });
        }
        Tap::prepare(fd, name)
    }

    fn prepare(fd: OwnedFd, name: String) -> Result<Tap, TapError> {
        let tap = Tap { fd, name };
        let host = |what| {
            let name = tap.name.clone();
            move |source| TapError::Host { name, what, source }
        };
        let len = HEADER_LEN as libc::c_int;
        // SAFETY: TUNSETVNETHDRSZ reads an int.
        check(unsafe { libc::ioctl(tap.fd.as_raw_fd(), libc::TUNSETVNETHDRSZ, &len) })
            .map_err(host("TUNSETVNETHDRSZ"))?;
        tap.set_offloads(0).map_err(host("TUNSETOFFLOAD"))?;
        Ok(tap)
    }

    /// The interface's name on the host.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The interface's largest packet, in bytes, if this process can see it.
    pub fn mtu(&self) -> Option<u16> {
        // SAFETY: a new descriptor, ours when the call succeeded, which is checked first.
        let socket = unsafe {
            let fd = libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0);
            (fd >= 0).then(|| OwnedFd::from_raw_fd(fd))?
        };
        let mut request = IfReq::named(&self.name);
        // SAFETY: SIOCGIFMTU reads and writes an ifreq, which IfReq is as long as.
        let done = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFMTU, &mut request) };
        check(done).ok()?;
        u16::try_from(request.int()).ok()
    }

    /// Whether the interface was deleted. What this has open is no TAP any more then.
    pub fn is_gone(&self) -> bool {
        let mut request = IfReq::named("");
        // SAFETY: TUNGETIFF writes an ifreq, which IfReq is as long as.
        let asked = unsafe { libc::ioctl(self.fd.as_raw_fd(), libc::TUNGETIFF, &mut request) };
        check(asked).is_err_and(|e| e.raw_os_error() == Some(libc::EBADFD))
    }

    /// Lets the host send what a guest that accepted these virtio `features` can take: frames
    /// without checksum, and larger than the wire's.
    ///
    /// # Errors
    /// The host's.
    pub fn set_offloads(&self, features: u64) -> io::Result<()> {
        let has = |bit: u32| features & 1 << bit != 0;
        let mut offloads = 0;
        if has(VIRTIO_NET_F_GUEST_CSUM) {
            offloads |= libc::TUN_F_CSUM;
            for (bit, offload) in [
                (VIRTIO_NET_F_GUEST_TSO4, libc::TUN_F_TSO4),
                (VIRTIO_NET_F_GUEST_TSO6, libc::TUN_F_TSO6),
            ] {
                if has(bit) {
                    offloads |= offload;
                    if has(VIRTIO_NET_F_GUEST_ECN) {
                        offloads |= libc::TUN_F_TSO_ECN;
                    }
                }
            }
        }
        let offloads = libc::c_ulong::from(offloads);
        // SAFETY: TUNSETOFFLOAD takes a number, no pointer.
        check(unsafe { libc::ioctl(self.fd.as_raw_fd(), libc::TUNSETOFFLOAD, offloads) })
    }
}

/// For a TAP that was opened with several queues.
impl Source for Tap {
    fn turn(&self, on: bool) -> io::Result<()> {
        let mut request = IfReq::named("");
        let flag = if on { libc::IFF_ATTACH_QUEUE } else { libc::IFF_DETACH_QUEUE };
        request.set_short(flag as libc::c_short);
        // SAFETY: TUNSETQUEUE reads an ifreq, which IfReq is as long as.
        match check(unsafe { libc::ioctl(self.fd.as_raw_fd(), libc::TUNSETQUEUE, &request) }) {
            // It was so already.
            Err(e) if e.raw_os_error() == Some(libc::EINVAL) => Ok(()),
            done => done,
        }
    }
}

/// The frames of one queue of a TAP.
pub(super) struct TapFrames(pub(super) Arc<Tap>);

impl Backend for TapFrames {
    fn name(&self) -> String {
        format!("TAP {}", self.0.name)
    }

    fn descriptor(&self) -> RawFd {
        self.0.as_raw_fd()
    }

    fn has_headers(&self) -> bool {
        true
    }

    fn receive(&mut self, to: Iovecs<'_>) -> io::Result<Received> {
        uninterrupted(|| to.readv(self.0.as_fd())).map(Received::Whole)
    }

    fn send(&mut self, frame: Iovecs<'_>) -> io::Result<()> {
        uninterrupted(|| frame.writev(self.0.as_fd())).map(drop)
    }
}

impl AsFd for Tap {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl AsRawFd for Tap {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

fn check(done: libc::c_int) -> io::Result<()> {
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
