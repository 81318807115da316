//! What a guest tells of its memory (virtio 1.3 §5.5.6.4 "Memory Statistics Tags").

use serde::{Deserialize, Serialize};

/// Bytes of one statistic: a tag (le16) and a value (le64).
pub(super) const LEN: usize = 10;
/// The most of them that are looked at.
pub(super) const MAX: usize = 64;

/// A guest's statistics of its memory; what it did not tell is `None`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MemoryStatistics {
    /// Bytes swapped in since its start.
    pub swap_in: Option<u64>,
    /// Bytes swapped out since its start.
    pub swap_out: Option<u64>,
    /// Page faults that needed I/O.
    pub major_faults: Option<u64>,
    /// Page faults that did not.
    pub minor_faults: Option<u64>,
    /// Bytes not used for anything.
    pub free: Option<u64>,
    /// Bytes in all.
    pub total: Option<u64>,
    /// Bytes that could be had without swapping.
    pub available: Option<u64>,
    /// Bytes of caches.
    pub caches: Option<u64>,
}

impl MemoryStatistics {
    /// Takes over one statistic as the driver writes it; unknown tags are left alone.
    pub(super) fn take(&mut self, raw: [u8; LEN]) {
        let [a, b, value @ ..] = raw;
        let field = match u16::from_le_bytes([a, b]) {
            0 => &mut self.swap_in,
            1 => &mut self.swap_out,
            2 => &mut self.major_faults,
            3 => &mut self.minor_faults,
            4 => &mut self.free,
            5 => &mut self.total,
            6 => &mut self.available,
            7 => &mut self.caches,
            _ => return,
        };
        *field = Some(u64::from_le_bytes(value));
    }
}
