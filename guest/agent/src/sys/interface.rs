//! Network interfaces: brought up, with addresses and the default route, by messages to the kernel
//! (`man 7 rtnetlink`), each of which it answers at once.
//!
//! ```text
//! length u32 │ type u16 │ flags u16 │ number u32 │ port u32 │ what it is about │ attributes: length u16, type u16, value
//! ```

use super::{Errno, Result, file, socket};
use crate::text::{Path, number};

/// Types of messages (linux/rtnetlink.h), and of the answer (linux/netlink.h).
const NEW_LINK: u16 = 16;
const NEW_ADDRESS: u16 = 20;
const NEW_ROUTE: u16 = 24;
const ANSWER: u16 = 2;
/// `NLM_F_REQUEST | NLM_F_ACK`, and `NLM_F_CREATE`.
const ANSWERED: u16 = 5;
const CREATE: u16 = 0x400;
/// `IFLA_IFNAME`, `IFA_ADDRESS`, `IFA_LOCAL`, `IFA_BROADCAST` and `RTA_GATEWAY`.
const NAME: u16 = 3;
const ADDRESS: u16 = 1;
const LOCAL: u16 = 2;
const BROADCAST: u16 = 4;
const GATEWAY: u16 = 5;
/// `AF_INET`
const INET: u8 = 2;
/// Bytes of a message's head, and what none of ours is longer than.
const HEAD: usize = 16;
const LEN_MAX: usize = 128;
/// Bytes of a name with its zero (`IFNAMSIZ`).
const NAME_MAX: usize = 16;

/// A message to the kernel.
struct Message {
    bytes: [u8; LEN_MAX],
    len: usize,
}

impl Message {
    /// One of that type, about `what`, a structure of the type's.
    fn new(kind: u16, flags: u16, what: &[u8]) -> Result<Message> {
        let mut message = Message { bytes: [0; LEN_MAX], len: HEAD };
        message.put(4, &kind.to_le_bytes())?;
        message.put(6, &(flags | ANSWERED).to_le_bytes())?;
        message.add(what)?;
        Ok(message)
    }

    fn put(&mut self, at: usize, bytes: &[u8]) -> Result<()> {
        let place = self.bytes.get_mut(at..at + bytes.len()).ok_or(Errno::NAMETOOLONG)?;
        place.copy_from_slice(bytes);
        Ok(())
    }

    /// Adds bytes, and zeros up to the next four.
    fn add(&mut self, bytes: &[u8]) -> Result<()> {
        self.put(self.len, bytes)?;
        self.len = (self.len + bytes.len()).next_multiple_of(4);
        Ok(())
    }

    fn attribute(&mut self, kind: u16, value: &[u8]) -> Result<()> {
        let [a, b] = (4 + value.len() as u16).to_le_bytes();
        let [c, d] = kind.to_le_bytes();
        self.add(&[a, b, c, d])?;
        self.add(value)
    }

    /// The whole of it.
    fn finish(&mut self) -> Result<&[u8]> {
        self.put(0, &(self.len as u32).to_le_bytes())?;
        self.bytes.get(..self.len).ok_or(Errno::NAMETOOLONG)
    }

    /// Has the kernel do it.
    fn send(mut self) -> Result<()> {
        let mut fd = socket::route()?;
        let mut room = [0; 512];
        let heard = file::write(fd, self.finish()?).and_then(|_| file::read(fd, &mut room));
        fd.close();
        answer(room.get(..heard?).unwrap_or_default())
    }
}

/// What the kernel has answered: an error of its, negative, or 0.
fn answer(bytes: &[u8]) -> Result<()> {
    let kind = bytes.get(4..6).and_then(|kind| kind.first_chunk());
    let said = bytes.get(HEAD..).and_then(|said| said.first_chunk());
    match (kind.map(|kind| u16::from_le_bytes(*kind)), said.map(|said| i32::from_le_bytes(*said))) {
        (Some(ANSWER), Some(0)) => Ok(()),
        (Some(ANSWER), Some(error)) => Err(Errno(error.wrapping_neg())),
        _ => Err(Errno::PROTO),
    }
}

/// Has every interface tell its network of its address when it comes up (`arp_notify`). passt sends what
/// comes to a published port to the hardware address that it last saw; before it has seen one, to none.
///
/// # Errors
/// The kernel's.
pub fn announce() -> Result<()> {
    file::write_file(c"/proc/sys/net/ipv4/conf/all/arp_notify", b"1")
}

/// Brings up the interface `name`.
///
/// # Errors
/// The kernel's; `ENODEV` when there is none.
pub fn up(name: &[u8]) -> Result<()> {
    up_message(name)?.send()
}

fn up_message(name: &[u8]) -> Result<Message> {
    // `struct ifinfomsg`: which one, for which there is the name, then flags (`IFF_UP`), and which of them change.
    let mut message = Message::new(NEW_LINK, 0, &[0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0])?;
    let mut zeroed = [0; NAME_MAX];
    if name.len() >= NAME_MAX {
        return Err(Errno::NAMETOOLONG);
    }
    zeroed.iter_mut().zip(name).for_each(|(to, from)| *to = *from);
    message.attribute(NAME, zeroed.get(..=name.len()).unwrap_or_default())?;
    Ok(message)
}

/// Gives the interface `name` an address in a network with this prefix.
///
/// # Errors
/// The kernel's; `ENOENT` when there is no such interface.
pub fn set_address(name: &[u8], address: [u8; 4], prefix: u8) -> Result<()> {
    let mut text = [0; 16];
    let place = Path::of(&[b"/sys/class/net/", name, b"/ifindex"])?;
    let index = file::read_file(place.as_c_str(), &mut text)?.trim_ascii_end();
    let [a, b, c, d] = number(index).ok_or(Errno::INVAL)?.to_le_bytes();
    // `struct ifaddrmsg`: family, prefix, flags, scope (global), which interface.
    let mut message = Message::new(NEW_ADDRESS, CREATE, &[INET, prefix, 0, 0, a, b, c, d])?;
    message.attribute(LOCAL, &address)?;
    message.attribute(ADDRESS, &address)?;
    if prefix < 31 {
        message.attribute(BROADCAST, &broadcast(address, prefix))?;
    }
    message.send()
}

/// Sends what is for no network of the machine's to `gateway`.
///
/// # Errors
/// The kernel's; `ENETUNREACH` when no interface leads there.
pub fn add_default_route(gateway: [u8; 4]) -> Result<()> {
    // `struct rtmsg`: family, no bits of destination and source, type of service, the main table, at boot
    // (`RTPROT_BOOT`), global, to one host (`RTN_UNICAST`), flags.
    let route = [INET, 0, 0, 0, 254, 3, 0, 1, 0, 0, 0, 0];
    let mut message = Message::new(NEW_ROUTE, CREATE, &route)?;
    message.attribute(GATEWAY, &gateway)?;
    message.send()
}

/// The address of everybody in the network.
fn broadcast(address: [u8; 4], prefix: u8) -> [u8; 4] {
    let hosts = u32::MAX.checked_shr(prefix.into()).unwrap_or(0);
    (u32::from_be_bytes(address) | hosts).to_be_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everybody_in_a_network_has_an_address() {
        assert_eq!(broadcast([10, 0, 2, 15], 24), [10, 0, 2, 255]);
        assert_eq!(broadcast([172, 31, 0, 2], 30), [172, 31, 0, 3]);
        assert_eq!(broadcast([10, 0, 2, 15], 0), [255; 4]);
        assert_eq!(broadcast([10, 0, 2, 15], 200), [10, 0, 2, 15]);
    }

    #[test]
    fn a_message_is_laid_out_as_the_kernel_reads_it_and_a_name_without_room_is_refused() {
        let mut message = up_message(b"eth0").unwrap();
        let mut wanted = vec![44, 0, 0, 0, 16, 0, 5, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        wanted.extend([0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0]);
        wanted.extend([9, 0, 3, 0, b'e', b't', b'h', b'0', 0, 0, 0, 0]);
        assert_eq!(message.finish(), Ok(&wanted[..]));
        assert!(up_message(&[b'x'; 16]).is_err());
    }

    #[test]
    fn an_answer_is_an_error_or_none_and_nothing_else_is_one() {
        let told = |kind: u8, error: i32| {
            let mut bytes = [0; 36];
            bytes[4] = kind;
            bytes[HEAD..HEAD + 4].copy_from_slice(&error.to_le_bytes());
            answer(&bytes)
        };
        assert_eq!(told(2, 0), Ok(()));
        assert_eq!(told(2, -19), Err(Errno::NODEV));
        assert_eq!(told(3, 0), Err(Errno::PROTO));
        assert_eq!(answer(&[]), Err(Errno::PROTO));
        assert_eq!(answer(&[0; 19]), Err(Errno::PROTO));
    }

    #[test]
    fn the_kernel_answers() {
        // Of an interface that is not there, or of who may change none.
        let error = up(b"there-is-none").unwrap_err();
        assert!([Errno::NODEV, Errno::PERM].contains(&error), "{error:?}");
    }
}
