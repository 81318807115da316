//! The header of a vsock packet (virtio 1.3 §5.10.6), between bytes and numbers.
//!
//! ```text
//!  0 src_cid u64 | 8 dst_cid u64 | 16 src_port u32 | 20 dst_port u32 | 24 len u32
//! 28 type u16 | 30 op u16 | 32 flags u32 | 36 buf_alloc u32 | 40 fwd_cnt u32       (little-endian)
//! ```
//!
//! Nothing is judged here: a header is what the guest wrote.

/// Bytes of a header.
pub const HEADER_LEN: usize = 44;
/// The host's context id (virtio 1.3 §5.10.4).
pub const HOST_CID: u64 = 2;
/// `VIRTIO_VSOCK_TYPE_STREAM` (virtio 1.3 §5.10.6).
pub const STREAM: u16 = 1;

/// What a packet is for (virtio 1.3 §5.10.6, `VIRTIO_VSOCK_OP_…`).
pub mod op {
    /// Wants a connection.
    pub const REQUEST: u16 = 1;
    /// Grants one.
    pub const RESPONSE: u16 = 2;
    /// Refuses or ends one.
    pub const RST: u16 = 3;
    /// Will not receive, or not send, any more; see [`super::shut`].
    pub const SHUTDOWN: u16 = 4;
    /// Carries bytes.
    pub const RW: u16 = 5;
    /// Tells the credit.
    pub const CREDIT_UPDATE: u16 = 6;
    /// Asks for the credit.
    pub const CREDIT_REQUEST: u16 = 7;
}

/// The flags of a SHUTDOWN (virtio 1.3 §5.10.6.5), of whoever sends it.
pub mod shut {
    /// Receives no more.
    pub const RECEIVE: u32 = 1;
    /// Sends no more.
    pub const SEND: u32 = 2;
    /// Neither.
    pub const BOTH: u32 = RECEIVE | SEND;
}

/// A packet's header.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Header {
    /// Context id of the sender.
    pub src_cid: u64,
    /// Context id of the receiver.
    pub dst_cid: u64,
    /// Port of the sender.
    pub src_port: u32,
    /// Port of the receiver.
    pub dst_port: u32,
    /// Bytes of payload behind the header.
    pub len: u32,
    /// Kind of socket; [`STREAM`] is the only one here.
    pub kind: u16,
    /// One of [`op`].
    pub op: u16,
    /// Those of [`shut`], for a SHUTDOWN.
    pub flags: u32,
    /// Bytes the sender has room for.
    pub buf_alloc: u32,
    /// Bytes the sender has consumed, modulo 2^32.
    pub fwd_cnt: u32,
}

impl Header {
    /// Reads a header.
    pub fn decode(bytes: &[u8; HEADER_LEN]) -> Header {
        let mut words = [0; HEADER_LEN / 4];
        for (word, chunk) in words.iter_mut().zip(bytes.as_chunks().0) {
            *word = u32::from_le_bytes(*chunk);
        }
        let [s0, s1, d0, d1, src_port, dst_port, len, what, flags, buf_alloc, fwd_cnt] = words;
        Header {
            src_cid: u64::from(s0) | u64::from(s1) << 32,
            dst_cid: u64::from(d0) | u64::from(d1) << 32,
            src_port,
            dst_port,
            len,
            kind: what as u16,
            op: (what >> 16) as u16,
            flags,
            buf_alloc,
            fwd_cnt,
        }
    }

    /// Writes the header.
    pub fn encode(&self) -> [u8; HEADER_LEN] {
        let words = [
            self.src_cid as u32,
            (self.src_cid >> 32) as u32,
            self.dst_cid as u32,
            (self.dst_cid >> 32) as u32,
            self.src_port,
            self.dst_port,
            self.len,
            u32::from(self.kind) | u32::from(self.op) << 16,
            self.flags,
            self.buf_alloc,
            self.fwd_cnt,
        ];
        let mut bytes = [0; HEADER_LEN];
        for (chunk, word) in bytes.as_chunks_mut().0.iter_mut().zip(words) {
            *chunk = word.to_le_bytes();
        }
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_field_lies_where_the_specification_puts_it() {
        let mut bytes = [0; HEADER_LEN];
        for (n, byte) in bytes.iter_mut().enumerate() {
            *byte = n as u8;
        }
        let header = Header::decode(&bytes);
        let wanted = Header {
            src_cid: 0x0706_0504_0302_0100,
            dst_cid: 0x0f0e_0d0c_0b0a_0908,
            src_port: 0x1312_1110,
            dst_port: 0x1716_1514,
            len: 0x1b1a_1918,
            kind: 0x1d1c,
            op: 0x1f1e,
            flags: 0x2322_2120,
            buf_alloc: 0x2726_2524,
            fwd_cnt: 0x2b2a_2928,
        };
        assert_eq!(header, wanted);
        assert_eq!(header.encode(), bytes);
    }
}
