//! The two address spaces a vCPU can exit to: port I/O and MMIO.
//!
//! A [`Bus`] is a sorted table of address ranges, made once with [`BusBuilder`] and never changed
//! while vCPUs run, so that a lookup takes no lock and no linear scan. Devices answer through
//! [`BusDevice`]; they never return an error to the guest and never panic, whatever it asks.

use std::sync::Arc;

/// What stands behind a range of guest addresses.
///
/// Called from any vCPU thread, several at once. `data` is 1 to 8 bytes long; any width and any
/// alignment is answered. An access never reaches past the range it was registered with.
pub trait BusDevice: Send + Sync {
    /// The guest reads `data.len()` bytes at `offset` (bytes from the start of the range). What the
    /// device leaves alone in `data` reads as `0xff`, as an absent device would.
    fn read(&self, offset: u64, data: &mut [u8]);
    /// The guest writes `data` at `offset` (bytes from the start of the range).
    fn write(&self, offset: u64, data: &[u8]);
}

/// A range that cannot be placed on a bus.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum BusError {
    /// The range is empty or runs past the end of the address space.
    #[error("{name}: {base:#x}+{len:#x} is not an address range")]
    BadRange {
        /// The device.
        name: String,
        /// First address.
        base: u64,
        /// Length in bytes.
        len: u64,
    },
    /// Two devices claim one address.
    #[error("{name} at {base:#x} overlaps {other}")]
    Overlap {
        /// The device that came second.
        name: String,
        /// Its first address.
        base: u64,
        /// The device that was there.
        other: String,
    },
}

struct Range {
    base: u64,
    /// Last address of the range, inclusive.
    last: u64,
    name: String,
    device: Arc<dyn BusDevice>,
}

/// Collects ranges; [`BusBuilder::build`] freezes them.
#[derive(Default)]
pub struct BusBuilder {
    ranges: Vec<Range>,
}

impl BusBuilder {
    /// Places `device` at `base..base + len`. `name` is used in errors only.
    ///
    /// # Errors
    /// [`BusError`]: an empty or overflowing range, or one that overlaps another's.
    pub fn add(
        &mut self,
        name: impl Into<String>,
        base: u64,
        len: u64,
        device: Arc<dyn BusDevice>,
    ) -> Result<(), BusError> {
        let name = name.into();
        let Some(last) = len.checked_sub(1).and_then(|n| base.checked_add(n)) else {
            return Err(BusError::BadRange { name, base, len });
        };
        if let Some(other) = self.ranges.iter().find(|r| r.base <= last && base <= r.last) {
            return Err(BusError::Overlap { name, base, other: other.name.clone() });
        }
        self.ranges.push(Range { base, last, name, device });
        Ok(())
    }

    /// The finished table.
    pub fn build(mut self) -> Bus {
        self.ranges.sort_by_key(|r| r.base);
        Bus { ranges: self.ranges.into_boxed_slice() }
    }
}

/// An immutable table of address ranges and the devices behind them.
#[derive(Default)]
pub struct Bus {
    ranges: Box<[Range]>,
}

impl Bus {
    /// The device at `addr`, and how many of `len` bytes fall into its range.
    fn find(&self, addr: u64, len: usize) -> Option<(&Range, usize)> {
        let after = self.ranges.partition_point(|r| r.base <= addr);
        let range = self.ranges.get(after.checked_sub(1)?)?;
        let room = range.last.checked_sub(addr)?.saturating_add(1);
        Some((range, usize::try_from(room).unwrap_or(usize::MAX).min(len)))
    }

    /// Reads `data.len()` bytes at `addr`; what no device answers reads as `0xff`.
    pub fn read(&self, addr: u64, data: &mut [u8]) {
        data.fill(0xff);
        if let Some((range, len)) = self.find(addr, data.len())
            && let Some(part) = data.get_mut(..len)
        {
            range.device.read(addr - range.base, part);
        }
    }

    /// Writes `data` at `addr`; what no device claims is dropped.
    pub fn write(&self, addr: u64, data: &[u8]) {
        if let Some((range, len)) = self.find(addr, data.len())
            && let Some(part) = data.get(..len)
        {
            range.device.write(addr - range.base, part);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    #[derive(Default)]
    struct Recorder(Mutex<Vec<(u64, Vec<u8>)>>);

    impl BusDevice for Recorder {
        fn read(&self, offset: u64, data: &mut [u8]) {
            data.fill(offset as u8);
        }
        fn write(&self, offset: u64, data: &[u8]) {
            self.0.lock().unwrap().push((offset, data.to_vec()));
        }
    }

    #[test]
    fn an_access_finds_its_device_and_stops_at_the_end_of_the_range() {
        let device = Arc::new(Recorder::default());
        let mut builder = BusBuilder::default();
        builder.add("b", 0x20, 8, device.clone()).unwrap();
        builder.add("a", 0x10, 8, device.clone()).unwrap();
        let bus = builder.build();

        let mut data = [0; 4];
        bus.read(0x16, &mut data);
        assert_eq!(data, [6, 6, 0xff, 0xff]);
        bus.read(0x18, &mut data);
        assert_eq!(data, [0xff; 4]);
        bus.read(0xf, &mut data);
        assert_eq!(data, [0xff; 4]);
        bus.write(0x27, &[1, 2]);
        assert_eq!(*device.0.lock().unwrap(), [(7, vec![1])]);
    }

    #[test]
    fn overlapping_empty_and_wrapping_ranges_are_refused() {
        let device = Arc::new(Recorder::default());
        let mut builder = BusBuilder::default();
        builder.add("a", 0x10, 8, device.clone()).unwrap();
        assert!(matches!(
            builder.add("b", 0x17, 1, device.clone()),
            Err(BusError::Overlap { other, .. }) if other == "a"
        ));
        assert!(matches!(builder.add("c", 0, 0, device.clone()), Err(BusError::BadRange { .. })));
        assert!(matches!(builder.add("d", u64::MAX, 2, device), Err(BusError::BadRange { .. })));
    }

    #[test]
    fn the_last_address_of_the_space_can_be_claimed() {
        let mut builder = BusBuilder::default();
        builder.add("top", u64::MAX, 1, Arc::new(Recorder::default())).unwrap();
        let mut data = [0; 2];
        builder.build().read(u64::MAX, &mut data);
        assert_eq!(data, [0, 0xff]);
    }
}
