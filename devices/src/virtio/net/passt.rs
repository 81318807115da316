//! The host's own networks without privileges: passt, a process that turns a guest's frames into
//! sockets of the host's (<https://passt.top>).
//!
//! husk starts it with one end of a socket pair and speaks to it as [`Stream`] does. It ends when the
//! other end is closed, also when husk was killed, and is killed when the device goes. The guest's
//! network is the same on every host:
//!
//! ```text
//! guest 10.0.2.15/24            gateway 10.0.2.2          = the host, with what listens on its loopback
//!       fd68:7573:6b::15/64             fd68:7573:6b::2
//! DHCP, router advertisements and DHCPv6, with the host's name servers
//! ```
//!
//! passt has IPv6 only with an interface of the host's that has it, which the loopback is not to it.

use std::fs::File;
use std::io::{self, Read};
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};

use super::backend::{Backend, Received};
use super::stream::Stream;
use crate::virtio::queue::Iovecs;

/// The largest packet, in bytes: what passt itself proposes.
pub const MTU: u16 = 65520;

/// The guest's address, the bits of its network's prefix, and the gateway: what passt is told below, for
/// who gives them to a guest that does not ask.
pub const GUEST: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 15);
/// See [`GUEST`].
pub const PREFIX: u8 = 24;
/// See [`GUEST`].
pub const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);

/// How long it may take to begin, in milliseconds.
const PATIENCE: libc::c_int = 10_000;
/// How much of what it says is kept.
const LAST_WORDS: usize = 4096;
/// The gateway's; passt would else take what the guest sees from an interface of the host's.
const MAC: &str = "52:55:0a:00:02:02";
/// The same for IPv6; the prefix is a unique local one (RFC 4193), its length always 64.
const IPV6: [&str; 4] = ["-a", "fd68:7573:6b::15", "-g", "fd68:7573:6b::2"];

/// A port of the host that leads to the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Forward {
    /// Which of the host's addresses; all of IPv4 without.
    pub address: Option<IpAddr>,
    /// The host's port.
    pub host: u16,
    /// The guest's.
    pub guest: u16,
    /// UDP instead of TCP.
    pub udp: bool,
}

/// passt could not be started. Each says what to do.
#[derive(Debug, thiserror::Error)]
pub enum PasstError {
    /// There is no such program.
    #[error(
        "passt is not there: `apt install passt` (Debian, Ubuntu) or `dnf install passt` (Fedora) \
         brings it; tap=NAME does without"
    )]
    Missing,
    /// A port is to be forwarded that passt cannot have here.
    #[error(
        "{address} is an IPv6 address, and no interface of the host beside its loopback has one, without \
         which passt has no IPv6; publish the port at an IPv4 address, or bring such an interface up"
    )]
    NoIpv6 {
        /// What the user gave.
        address: IpAddr,
    },
    /// It ended at once.
    #[error("passt does not start: {0}")]
    Refused(String),
    /// The host refused something.
    #[error("starting passt: {0}")]
    Host(io::Error),
}

impl From<io::Error> for PasstError {
    fn from(e: io::Error) -> Self {
        PasstError::Host(e)
    }
}

/// A passt of our own, and the socket to it.
pub struct Passt {
    stream: Stream,
    child: Child,
    /// What it says. It does not wait for us to read it.
    words: File,
}

impl Passt {
    /// Starts one with an MTU in bytes.
    ///
    /// # Errors
    /// See [`PasstError`]; a port that cannot be had is one.
    pub fn start(mtu: u16, forwards: &[Forward]) -> Result<Passt, PasstError> {
        let ipv6 = ipv6_interface();
        let forwarded = forwards.iter().filter_map(|forward| forward.address);
        if let (None, Some(address)) = (&ipv6, forwarded.into_iter().find(IpAddr::is_ipv6)) {
            return Err(PasstError::NoIpv6 { address });
        }
        let (ours, theirs) = UnixStream::pair()?;
        ours.set_nonblocking(true)?;
        // It writes its process id when it is ready: as somebody else, if it was started by root.
        let (started, ready) = pipe()?;
        ready.set_permissions(PermissionsExt::from_mode(0o666))?;
        let (words, say) = pipe()?;
        let socket = theirs.as_raw_fd();
        let mut command = Command::new("passt");
        command.args(["--foreground", "--quiet", "--fd", &socket.to_string()]);
        command.args(["--pid", "/dev/stdout", "--mtu", &mtu.to_string(), "-M", MAC]);
        command.args(["-a", &GUEST.to_string(), "-n", &PREFIX.to_string()]);
        command.args(["-g", &GATEWAY.to_string()]);
        // What `-i` names it takes nothing of but a link-local address; so it needs no default route.
        match &ipv6 {
            Some(interface) => command.args(IPV6).args(["-i", interface]),
            None => command.args(["--ipv4-only", "-i", "lo"]),
        };
        for (option, udp) in [("-t", false), ("-u", true)] {
            let specs: Vec<_> = forwards.iter().filter(|f| f.udp == udp).map(spec).collect();
            // It would else take ports of its own accord.
            let none = specs.is_empty().then(|| "none".to_owned());
            for spec in specs.into_iter().chain(none) {
                command.args([option, &spec]);
            }
        }
        command.stdin(Stdio::null()).stdout(Stdio::from(ready)).stderr(Stdio::from(say));
        // The terminal's Ctrl-C is husk's to answer, which may let the guest end in peace.
        command.process_group(0);
        // SAFETY: between fork and exec only a bare system call is made, which takes no pointer.
        unsafe {
            command.pre_exec(move || match libc::fcntl(socket, libc::F_SETFD, 0) {
                0 => Ok(()),
                _ => Err(io::Error::last_os_error()),
            });
        }
        let child = command.spawn().map_err(|e| match e.kind() {
            io::ErrorKind::NotFound => PasstError::Missing,
            _ => PasstError::Host(e),
        })?;
        // The ends of the pipes that are the child's.
        drop((command, theirs));
        let passt = Passt { stream: Stream::new(ours.into()), child, words };
        if !says_something(&started)? {
            let words = passt.last_words();
            let words = if words.is_empty() { "it does not say why".to_owned() } else { words };
            return Err(PasstError::Refused(words));
        }
        Ok(passt)
    }

    /// The process' id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it has said since it was last asked, on one line.
    fn last_words(&self) -> String {
        let mut bytes = Vec::new();
        // Ends with WouldBlock when it still runs.
        let _ = (&self.words).take(LAST_WORDS as u64).read_to_end(&mut bytes);
        let text = String::from_utf8_lossy(&bytes);
        // That it changes to nobody, and has no system log, is as it should be.
        let noise = ["to syslog", "Changing to nobody"];
        let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
        let lines: Vec<_> =
            lines.filter(|line| !noise.iter().any(|noise| line.contains(noise))).collect();
        lines.join("; ").replace(char::is_control, "\u{fffd}")
    }
}

impl Drop for Passt {
    fn drop(&mut self) {
        // It would end by itself now, but perhaps not before somebody else wants its ports. An error
        // means that it has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Backend for Passt {
    fn name(&self) -> String {
        match self.stream.is_up() {
            true => "passt".to_owned(),
            false => match self.last_words().as_str() {
                "" => "passt".to_owned(),
                words => format!("passt (last words: {words})"),
            },
        }
    }

    fn descriptor(&self) -> RawFd {
        self.stream.descriptor()
    }

    fn is_up(&self) -> bool {
        self.stream.is_up()
    }

    fn expects(&self) -> usize {
        self.stream.expects()
    }

    fn receive(&mut self, to: Iovecs<'_>) -> io::Result<Received> {
        self.stream.receive(to)
    }

    fn skip(&mut self) {
        self.stream.skip();
    }

    fn send(&mut self, frame: Iovecs<'_>) -> io::Result<()> {
        self.stream.send(frame)
    }

    fn is_sending(&self) -> bool {
        self.stream.is_sending()
    }

    fn keep(&mut self, frame: Iovecs<'_>) {
        self.stream.keep(frame);
    }
}

/// As passt's `-t` and `-u` take it.
fn spec(forward: &Forward) -> String {
    let Forward { address, host, guest, .. } = forward;
    match address {
        Some(address) => format!("{address}/{host}:{guest}"),
        // Whoever came by IPv6 would wait for a guest that perhaps does not speak it.
        None => format!("{}/{host}:{guest}", Ipv4Addr::UNSPECIFIED),
    }
}

/// An interface of the host's, in this thread's network namespace, with a link-local IPv6 address.
fn ipv6_interface() -> Option<String> {
    // Where the host has no IPv6 there is no such file.
    link_local(&std::fs::read_to_string("/proc/thread-self/net/if_inet6").ok()?)
}

/// The first such interface in the kernel's list (`if6_seq_show` of `net/ipv6/addrconf.c`): address,
/// index, length of the prefix, scope, flags, name.
fn link_local(list: &str) -> Option<String> {
    const LINK: &str = "20";
    /// `IFA_F_DADFAILED`: somebody else has it.
    const FAILED: u32 = 0x08;
    list.lines().find_map(|line| {
        let mut words = line.split_whitespace().skip(3);
        let (scope, flags, name) = (words.next()?, words.next()?, words.next()?);
        let usable = u32::from_str_radix(flags, 16).ok()? & FAILED == 0;
        (scope == LINK && usable).then(|| name.to_owned())
    })
}

/// A pipe whose ends do not block: (to read, to write).
fn pipe() -> io::Result<(File, File)> {
    let mut fds = [0; 2];
    // SAFETY: fds has room for the two descriptors.
    if unsafe { libc::pipe2(fds.as_mut_ptr(), libc::O_CLOEXEC | libc::O_NONBLOCK) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: both are fresh and ours.
    let [read, write] = fds.map(|fd| unsafe { OwnedFd::from_raw_fd(fd) });
    Ok((read.into(), write.into()))
}

/// Waits for the other end of the pipe; false when it is closed without a word, or time is up.
fn says_something(mut pipe: &File) -> io::Result<bool> {
    let mut poll = libc::pollfd { fd: pipe.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    // SAFETY: poll is given one pollfd, which lives through the call.
    let ready =
        super::backend::uninterrupted(|| match unsafe { libc::poll(&mut poll, 1, PATIENCE) } {
            ..0 => Err(io::Error::last_os_error()),
            count => Ok(count),
        })?;
    Ok(ready > 0 && pipe.read(&mut [0; 32])? > 0)
}

#[cfg(test)]
mod tests;
