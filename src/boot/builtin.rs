//! Which drivers a Linux has in itself, as far as that is to be seen: those it certainly has not.
//!
//! A driver carries its name, by which it is registered; where that name is nowhere in the kernel, the
//! driver is not built in. That it is there proves nothing. It is looked for once for each kernel, when it is
//! put into the cache, and not at all in what is no Linux or is not kept.

use super::drivers::{Driver, VIRTIO_MMIO, VIRTIO_VSOCK};

/// Drivers, and the names by which they are registered, each with its zero: those without which no guest of husk's
/// reaches it (`drivers/virtio/virtio_mmio.c`, `net/vmw_vsock/virtio_transport.c`).
const DRIVERS: [(Driver, &[u8]); 2] =
    [(VIRTIO_MMIO, b"virtio-mmio\0"), (VIRTIO_VSOCK, b"vmw_vsock_virtio_transport\0")];
/// What every Linux has (`linux_banner`, init/version-timestamp.c).
const BANNER: &[u8] = b"Linux version ";

/// Drivers that a kernel certainly has not: a bit for each of [`DRIVERS`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Absent(u64);

impl Absent {
    /// Those of the kernel of which these are the `parts`.
    pub(super) fn of(parts: &[&[u8]]) -> Absent {
        let has = |name: &[u8]| parts.iter().any(|part| contains(part, name));
        if !has(BANNER) {
            return Absent::default();
        }
        let absent = (0..).zip(DRIVERS).filter(|(_, (_, name))| !has(name));
        Absent(absent.map(|(bit, _)| 1u64 << bit).sum())
    }

    /// As it is kept.
    pub(super) fn bits(self) -> u64 {
        self.0
    }

    /// What was kept.
    pub(super) fn from_bits(bits: u64) -> Absent {
        Absent(bits)
    }

    /// Their modules' names.
    pub fn modules(self) -> Vec<&'static str> {
        let absent = (0..).zip(DRIVERS).filter(|(bit, _)| self.0 & (1u64 << bit) != 0);
        absent.map(|(_, (driver, _))| driver.module).collect()
    }
}

/// Whether `needle`, of 1 to 255 bytes, is anywhere in `bytes` (Horspool's way: a byte that is none of the needle's
/// is passed over with all that is before it).
fn contains(bytes: &[u8], needle: &[u8]) -> bool {
    let mut skips = [needle.len() as u8; 256];
    let Some((last, first)) = needle.split_last() else { return true };
    for (at, byte) in first.iter().enumerate() {
        if let Some(skip) = skips.get_mut(usize::from(*byte)) {
            *skip = (first.len() - at) as u8;
        }
    }
    let mut rest = bytes;
    while let Some(window) = rest.get(..needle.len()) {
        let Some(byte) = window.last() else { return false };
        if byte == last && window == needle {
            return true;
        }
        let skip = skips.get(usize::from(*byte)).copied().map_or(1, usize::from);
        rest = rest.get(skip..).unwrap_or_default();
    }
    false
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::boot::synth::{BASE, Spec};
    use crate::boot::{Cache, Kernel};

    /// What is known of a kernel with these bytes in it, found out and then kept.
    fn absent(bytes: &[u8]) -> Vec<&'static str> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("vmlinux");
        let segments = vec![(BASE, [&[7; 5000], bytes, &[7; 5000]].concat(), 0x8000)];
        std::fs::write(&path, Spec { segments, ..Spec::default() }.build()).unwrap();
        let cache = Cache::at(dir.path().join("cache"));
        let known = |cache| Kernel::open(&path, cache).unwrap().absent().modules();
        let first = known(&cache);
        assert_eq!(first, known(&cache), "not what was kept");
        assert!(known(&Cache::off()).is_empty(), "nobody has looked");
        first
    }

    #[test]
    fn a_linux_without_the_names_of_drivers_has_them_not_and_of_others_nothing_is_known() {
        let both = ["virtio_mmio", "vmw_vsock_virtio_transport"];
        assert_eq!(absent(b"Linux version 6.1\0"), both);
        assert_eq!(absent(b"Linux version 6.1\0virtio-mmio\0"), both[1..]);
        assert_eq!(absent(b"virtio-mmio.x\0Linux version "), both, "another name");
        let all = b"Linux version 6.1\0virtio-mmio\0xvmw_vsock_virtio_transport\0";
        assert!(absent(all).is_empty());
        assert!(absent(b"something else").is_empty());
    }

    proptest! {
        #[test]
        fn what_is_looked_for_is_found_wherever_it_is(
            bytes in prop::collection::vec(0u8..3, 0..60), needle in prop::collection::vec(0u8..3, 1..6),
        ) {
            let there = bytes.windows(needle.len()).any(|window| window == needle);
            prop_assert_eq!(contains(&bytes, &needle), there);
        }
    }
}
