//! What a frame's `virtio_net_hdr` (virtio 1.3 §5.1.6) leaves to the other side, and how it is done here
//! where that side cannot: checksums completed, large TCP packets cut into segments.
//!
//! Both the header and the frame are a guest's or another process's, so nothing of them is believed: a
//! header that promises what the frame does not hold is refused, and what is passed on is made anew from what
//! was understood. What a frame carries is not copied: a piece is headers, and a part of the frame.

use std::ops::Range;

use virtio_bindings::bindings::virtio_net::{
    VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_ECN, VIRTIO_NET_F_GUEST_TSO4,
    VIRTIO_NET_F_GUEST_TSO6, VIRTIO_NET_HDR_F_NEEDS_CSUM, VIRTIO_NET_HDR_GSO_ECN,
    VIRTIO_NET_HDR_GSO_NONE, VIRTIO_NET_HDR_GSO_TCPV4, VIRTIO_NET_HDR_GSO_TCPV6,
};

use super::HEADER_LEN;
use super::backend::{ETHERNET_HEADER, VLAN_TAG};

/// The least that a TCP segment carries here: Linux' `TCP_MIN_SND_MSS`. Whoever is content with less is
/// after the work and the headers that each segment costs.
const LEAST_SEGMENT: u16 = 48;
/// The most bytes of all headers of a packet that is cut, for they stand before every segment. IPv4's are
/// at most 138; of IPv6 that leaves 136 for extensions.
const HEADERS_MAX: usize = 256;
/// Where the checksum stands in a TCP header (RFC 9293 §3.1), and the least of such a header.
const TCP_CHECKSUM: usize = 16;
const TCP_HEADER: usize = 20;
const TCP: u8 = 6;
/// The least of an IPv4 header (RFC 791 §3.1), and an IPv6 header (RFC 8200 §3).
const IPV4_HEADER: usize = 20;
const IPV6_HEADER: usize = 40;
/// IPv6's extension headers that are every segment's: hop by hop, routing, destination (RFC 8200 §4).
const EXTENSIONS: [u8; 3] = [0, 43, 60];
const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_IPV6: u16 = 0x86dd;
const ETHERTYPE_VLAN: [u16; 2] = [0x8100, 0x88a8];
/// TCP flags (RFC 9293 §3.1, RFC 3168 §6.1): the last segment's, and the first one's.
const FIN_AND_PSH: u8 = 0x09;
const CWR: u8 = 0x80;

/// The parts of a `virtio_net_hdr` that mean something, checked against its frame's length.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Header {
    /// From where on the checksum is to be computed, and where from there it is to be put.
    checksum: Option<(u16, u16)>,
    segments: Option<Segments>,
    /// What the sender says of the length of all headers; a hint.
    hint: u16,
}

/// TCP, to be cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Segments {
    ipv6: bool,
    ecn: bool,
    /// The most bytes that one carries.
    size: u16,
}

impl Header {
    /// What [`Header::needs`] says at most.
    pub(super) const NEEDS_AT_MOST: u64 = 1 << VIRTIO_NET_F_GUEST_CSUM
        | 1 << VIRTIO_NET_F_GUEST_TSO4
        | 1 << VIRTIO_NET_F_GUEST_TSO6
        | 1 << VIRTIO_NET_F_GUEST_ECN;

    /// Reads the header of a frame of `len` bytes; `None` when it makes no sense.
    pub(super) fn read(bytes: &[u8; HEADER_LEN], len: usize) -> Option<Header> {
        let [flags, kind, h0, h1, s0, s1, c0, c1, o0, o1, ..] = *bytes;
        let word = |low, high| u16::from_le_bytes([low, high]);
        let mut header = Header::default();
        // The other flags are not a sender's (§5.1.6.2).
        if u32::from(flags) & VIRTIO_NET_HDR_F_NEEDS_CSUM != 0 {
            let (start, offset) = (word(c0, c1), word(o0, o1));
            let end = usize::from(start) + usize::from(offset) + 2;
            if usize::from(start) < ETHERNET_HEADER || end > len {
                return None;
            }
            header.checksum = Some((start, offset));
        }
        let ecn = u32::from(kind) & VIRTIO_NET_HDR_GSO_ECN != 0;
        let ipv6 = match u32::from(kind) & !VIRTIO_NET_HDR_GSO_ECN {
            VIRTIO_NET_HDR_GSO_NONE => return Some(header),
            VIRTIO_NET_HDR_GSO_TCPV4 => false,
            VIRTIO_NET_HDR_GSO_TCPV6 => true,
            _ => return None,
        };
        let (start, offset) = header.checksum?;
        let ip = if ipv6 { IPV6_HEADER } else { IPV4_HEADER };
        let size = word(s0, s1);
        let is_tcp = usize::from(start) >= ETHERNET_HEADER + ip
            && usize::from(offset) == TCP_CHECKSUM
            && usize::from(start) + TCP_HEADER <= len;
        if !is_tcp || size < LEAST_SEGMENT {
            return None;
        }
        header.segments = Some(Segments { ipv6, ecn, size });
        let hint = word(h0, h1);
        header.hint = if usize::from(hint) <= len { hint } else { 0 };
        Some(header)
    }

    /// The header as it is passed on; `num_buffers` is 0.
    pub(super) fn bytes(&self) -> [u8; HEADER_LEN] {
        let mut bytes = [0; HEADER_LEN];
        let [flags, kind, h0, h1, s0, s1, c0, c1, o0, o1, ..] = &mut bytes;
        if let Some((start, offset)) = self.checksum {
            *flags = VIRTIO_NET_HDR_F_NEEDS_CSUM as u8;
            ([*c0, *c1], [*o0, *o1]) = (start.to_le_bytes(), offset.to_le_bytes());
        }
        if let Some(Segments { ipv6, ecn, size }) = self.segments {
            let sort = if ipv6 { VIRTIO_NET_HDR_GSO_TCPV6 } else { VIRTIO_NET_HDR_GSO_TCPV4 };
            *kind = (sort | if ecn { VIRTIO_NET_HDR_GSO_ECN } else { 0 }) as u8;
            ([*h0, *h1], [*s0, *s1]) = (self.hint.to_le_bytes(), size.to_le_bytes());
        }
        bytes
    }

    /// Whether nothing is left to the other side.
    pub(super) fn is_plain(&self) -> bool {
        self.checksum.is_none()
    }

    /// Whether the frame is to be cut into segments.
    pub(super) fn is_large(&self) -> bool {
        self.segments.is_some()
    }

    /// The features of the driver that is to take such a frame as it is (§5.1.3).
    pub(super) fn needs(&self) -> u64 {
        let mut features = 0;
        if self.checksum.is_some() {
            features |= 1 << VIRTIO_NET_F_GUEST_CSUM;
        }
        if let Some(Segments { ipv6, ecn, .. }) = self.segments {
            let tso = if ipv6 { VIRTIO_NET_F_GUEST_TSO6 } else { VIRTIO_NET_F_GUEST_TSO4 };
            features |= 1 << tso | u64::from(ecn) << VIRTIO_NET_F_GUEST_ECN;
        }
        features
    }
}

/// How one frame becomes frames with which nothing is left to do.
#[derive(Debug, Clone, Copy)]
pub(super) enum Pieces {
    /// It is one, of so many bytes.
    One(usize),
    /// It is cut.
    Many(Cut),
}

/// Where the parts of a TCP packet are, in bytes from the start of its frame.
#[derive(Debug, Clone, Copy)]
pub(super) struct Cut {
    ipv6: bool,
    ip: usize,
    tcp: usize,
    payload: usize,
    end: usize,
    size: usize,
}

impl Pieces {
    /// What becomes of `frame`, whose checksum is put where it belongs if it stays in one piece; `None` when it
    /// is not what its header says.
    pub(super) fn of(header: Header, frame: &mut [u8]) -> Option<Pieces> {
        let Some(Segments { ipv6, size, .. }) = header.segments else {
            if let Some((start, offset)) = header.checksum {
                let (from, offset) = (usize::from(start), usize::from(offset));
                let sum = sum(0, frame.get(from..).unwrap_or_default());
                put(frame, from + offset, &checksum(sum));
            }
            return Some(Pieces::One(frame.len()));
        };
        let frame = &*frame;
        let tcp = usize::from(header.checksum?.0);
        let mut ip = ETHERNET_HEADER;
        let mut kind = u16_at(frame, ip - 2)?;
        if ETHERTYPE_VLAN.contains(&kind) {
            ip += VLAN_TAG;
            kind = u16_at(frame, ip - 2)?;
        }
        let first = *frame.get(ip)?;
        let fits = if ipv6 {
            kind == ETHERTYPE_IPV6 && first >> 4 == 6 && ipv6_leads_to_tcp(frame, ip, tcp)
        } else {
            let len = usize::from(first & 15) * 4;
            // Neither a fragment itself, nor are its segments: those bits are copied.
            let fragment = u16_at(frame, ip + 6)? & 0x3fff != 0;
            kind == ETHERTYPE_IPV4
                && first >> 4 == 4
                && len >= IPV4_HEADER
                && ip + len == tcp
                && *frame.get(ip + 9)? == TCP
                && !fragment
        };
        let header = usize::from(*frame.get(tcp + 12)? >> 4) * 4;
        let payload = tcp + header;
        if !fits || header < TCP_HEADER || payload > frame.len().min(HEADERS_MAX) {
            return None;
        }
        let end = frame.len();
        Some(Pieces::Many(Cut { ipv6, ip, tcp, payload, end, size: size.into() }))
    }

    /// Bytes that a piece has beside its part of what the frame carries.
    pub(super) fn headers(&self) -> usize {
        match self {
            Pieces::One(_) => 0,
            Pieces::Many(cut) => cut.payload,
        }
    }

    /// How many there are.
    pub(super) fn count(&self) -> usize {
        match self {
            Pieces::One(_) => 1,
            Pieces::Many(cut) => (cut.end - cut.payload).div_ceil(cut.size).max(1),
        }
    }

    /// Puts the headers of piece number `n` behind what is in `to`; gives what of `frame` follows them.
    pub(super) fn write(&self, n: usize, frame: &[u8], to: &mut Vec<u8>) -> Range<usize> {
        match self {
            Pieces::One(len) => 0..*len,
            Pieces::Many(cut) => cut.write(n, frame, to),
        }
    }
}

impl Cut {
    fn write(&self, n: usize, frame: &[u8], to: &mut Vec<u8>) -> Range<usize> {
        let Cut { ipv6, ip, tcp, payload, end, size } = *self;
        let from = payload + n * size;
        let until = end.min(from + size);
        let carried = frame.get(from..until).unwrap_or_default();
        let start = to.len();
        to.extend_from_slice(frame.get(..payload).unwrap_or_default());
        let headers = to.get_mut(start..).unwrap_or_default();
        let len = headers.len() + carried.len();

        // Lengths of at most a frame's, so the casts keep them, or it was none of IP's to begin with.
        if ipv6 {
            put(headers, ip + 4, &((len - ip - IPV6_HEADER) as u16).to_be_bytes());
        } else {
            put(headers, ip + 2, &((len - ip) as u16).to_be_bytes());
            let id = u16_at(headers, ip + 4).unwrap_or_default().wrapping_add(n as u16);
            put(headers, ip + 4, &id.to_be_bytes());
            put(headers, ip + 10, &[0, 0]);
            let sum = sum(0, headers.get(ip..tcp).unwrap_or_default());
            put(headers, ip + 10, &checksum(sum));
        }
        let number = headers.get(tcp + 4..tcp + 8).and_then(|bytes| bytes.try_into().ok());
        let number = u32::from_be_bytes(number.unwrap_or_default());
        put(headers, tcp + 4, &number.wrapping_add((n * size) as u32).to_be_bytes());
        if let Some(flags) = headers.get_mut(tcp + 13) {
            *flags &= if n > 0 { !CWR } else { u8::MAX };
            *flags &= if until < end { !FIN_AND_PSH } else { u8::MAX };
        }
        put(headers, tcp + TCP_CHECKSUM, &[0, 0]);
        // The pseudo-header (RFC 9293 §3.1, RFC 8200 §8.1): addresses, protocol, length.
        let addresses = if ipv6 { ip + 8..ip + 40 } else { ip + 12..ip + 20 };
        let pseudo = (len - tcp) as u64 + u64::from(TCP);
        let pseudo = sum(pseudo, headers.get(addresses).unwrap_or_default());
        // A TCP header's length is a multiple of 4, so that what it carries begins a word of the sum's.
        let sum = sum(sum(pseudo, headers.get(tcp..).unwrap_or_default()), carried);
        put(headers, tcp + TCP_CHECKSUM, &checksum(sum));
        from..until
    }
}

/// Whether nothing but extension headers that are every segment's is between IPv6's at `ip` and TCP's at
/// `tcp`. A fragment is none: its segments would be parts of one packet.
fn ipv6_leads_to_tcp(frame: &[u8], ip: usize, tcp: usize) -> bool {
    let (mut next, mut at) = (frame.get(ip + 6), ip + IPV6_HEADER);
    // Each is 8 bytes at least, so this ends.
    while at < tcp.min(HEADERS_MAX) && next.is_some_and(|next| EXTENSIONS.contains(next)) {
        let Some(len) = frame.get(at + 1) else { return false };
        next = frame.get(at);
        at += (usize::from(*len) + 1) * 8;
    }
    at == tcp && next == Some(&TCP)
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    let pair = bytes.get(at..at + 2)?.try_into().ok()?;
    Some(u16::from_be_bytes(pair))
}

/// Writes `bytes` at `at`, where there is room.
fn put(to: &mut [u8], at: usize, bytes: &[u8]) {
    if let Some(place) = to.get_mut(at..at + bytes.len()) {
        place.copy_from_slice(bytes);
    }
}

/// Adds the big-endian words of `bytes` to `sum` (RFC 1071). A frame's are far from filling it.
fn sum(sum: u64, bytes: &[u8]) -> u64 {
    let (words, last) = bytes.as_chunks::<2>();
    let words: u64 = words.iter().map(|word| u64::from(u16::from_be_bytes(*word))).sum();
    sum + words + last.first().map_or(0, |byte| u64::from(*byte) << 8)
}

/// The checksum that follows from a sum. UDP's 0 means that there is none; both zeros are equal.
fn checksum(mut sum: u64) -> [u8; 2] {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    match !(sum as u16) {
        0 => [0xff; 2],
        other => other.to_be_bytes(),
    }
}

#[cfg(test)]
mod tests;
