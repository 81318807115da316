//! Network interfaces: addresses and the default route, by the ioctls of `man 7 netdevice` and
//! `man 7 rtnetlink`'s older brother, `struct rtentry`.

use super::{Errno, Result, call, file, socket};

const SIOCADDRT: usize = 0x890b;
const SIOCGIFFLAGS: usize = 0x8913;
const SIOCSIFFLAGS: usize = 0x8914;
const SIOCSIFADDR: usize = 0x8916;
const SIOCSIFNETMASK: usize = 0x891c;

/// `IFF_UP`
const UP: u8 = 1;
/// `AF_INET`, the family of a `struct sockaddr_in`.
const INET: u8 = 2;
/// Bytes of a name in a request, with its zero (`IFNAMSIZ`).
const NAME_MAX: usize = 16;
/// Bytes of a `struct ifreq`: a name, then what the call is about.
const REQUEST_LEN: usize = 40;
/// Bytes of a `struct rtentry`, and where what is set of it lies.
const ROUTE_LEN: usize = 120;
const DESTINATION_AT: usize = 8;
const GATEWAY_AT: usize = 24;
const MASK_AT: usize = 40;
const FLAGS_AT: usize = 56;
/// `RTF_UP | RTF_GATEWAY`
const VIA_GATEWAY: u8 = 3;

/// A request about the interface `name`.
fn request(name: &[u8]) -> Result<[u8; REQUEST_LEN]> {
    let mut request = [0; REQUEST_LEN];
    if name.len() >= NAME_MAX {
        return Err(Errno::NAMETOOLONG);
    }
    request.get_mut(..name.len()).ok_or(Errno::INVAL)?.copy_from_slice(name);
    Ok(request)
}

/// Puts a `struct sockaddr_in` of `address` at this place of a request.
fn put(request: &mut [u8], at: usize, address: [u8; 4]) -> Result<()> {
    let [a, b, c, d] = address;
    let bytes = [INET, 0, 0, 0, a, b, c, d];
    request.get_mut(at..at + bytes.len()).ok_or(Errno::INVAL)?.copy_from_slice(&bytes);
    Ok(())
}

/// Asks the kernel; `request` is as long as that call's structure.
fn ask(number: usize, request: &mut [u8]) -> Result<()> {
    let mut fd = socket::inet()?;
    // SAFETY: the structure of this call, which the kernel reads and writes.
    let done = unsafe { call(16, [fd.raw(), number, request.as_mut_ptr().addr(), 0, 0, 0]) };
    fd.close();
    done.map(drop)
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
    let mut request = request(name)?;
    ask(SIOCGIFFLAGS, &mut request)?;
    if let Some(flags) = request.get_mut(NAME_MAX) {
        *flags |= UP;
    }
    ask(SIOCSIFFLAGS, &mut request)
}

/// Gives the interface `name` an address in a network with this prefix.
///
/// # Errors
/// As [`up`].
pub fn set_address(name: &[u8], address: [u8; 4], prefix: u8) -> Result<()> {
    let mut request = request(name)?;
    put(&mut request, NAME_MAX, address)?;
    ask(SIOCSIFADDR, &mut request)?;
    put(&mut request, NAME_MAX, mask(prefix))?;
    ask(SIOCSIFNETMASK, &mut request)
}

/// Sends what is for no network of the machine's to `gateway`.
///
/// # Errors
/// The kernel's; `ENETUNREACH` when no interface leads there.
pub fn add_default_route(gateway: [u8; 4]) -> Result<()> {
    let mut route = [0; ROUTE_LEN];
    put(&mut route, DESTINATION_AT, [0; 4])?;
    put(&mut route, GATEWAY_AT, gateway)?;
    put(&mut route, MASK_AT, [0; 4])?;
    if let Some(flags) = route.get_mut(FLAGS_AT) {
        *flags = VIA_GATEWAY;
    }
    ask(SIOCADDRT, &mut route)
}

fn mask(prefix: u8) -> [u8; 4] {
    let host_bits = 32u32.saturating_sub(prefix.into());
    u32::MAX.checked_shl(host_bits).unwrap_or(0).to_be_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_is_a_mask_and_a_name_without_room_is_refused() {
        assert_eq!(mask(24), [255, 255, 255, 0]);
        assert_eq!(mask(32), [255; 4]);
        assert_eq!(mask(0), [0; 4]);
        assert_eq!(mask(200), [255; 4]);
        assert!(request(&[b'x'; 16]).is_err() && request(b"eth0").is_ok());
    }
}
