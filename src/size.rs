//! Sizes as people write them: `512M`, `2G`, `1.5G`, `4096K`, `1073741824`.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// A number of bytes. In JSON a number of bytes or a string such as `"512M"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Size(
    /// Bytes.
    pub u64,
);

const UNITS: [(&str, u32); 4] = [("T", 40), ("G", 30), ("M", 20), ("K", 10)];

/// A size that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a size; write it as 512M, 2G or a number of bytes")]
pub struct SizeError(String);

impl Size {
    /// `n` MiB.
    pub const fn mib(n: u64) -> Self {
        Self(n << 20)
    }
}

impl FromStr for Size {
    type Err = SizeError;

    fn from_str(text: &str) -> Result<Self, SizeError> {
        let error = || SizeError(text.to_owned());
        let upper = text.trim().to_ascii_uppercase();
        // 512M, 512MB and 512MiB all mean the same: memory comes in powers of two.
        let stem = upper.strip_suffix("IB").or_else(|| upper.strip_suffix('B')).unwrap_or(&upper);
        let (number, shift) = UNITS
            .iter()
            .find_map(|(unit, shift)| stem.strip_suffix(unit).map(|n| (n, *shift)))
            .unwrap_or((stem, 0));
        let number = number.trim();
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        let digits = |s: &str| !s.is_empty() && s.bytes().all(|b| b.is_ascii_digit());
        if !digits(whole) || (number.contains('.') && (!digits(fraction) || fraction.len() > 6)) {
            return Err(error());
        }
        let whole = whole.parse::<u64>().ok().and_then(|n| n.checked_mul(1 << shift));
        // At most six digits, shifted by at most 40: fits into 64 bits.
        let tail = fraction.parse::<u64>().unwrap_or(0) << shift;
        let scale = 10u64.pow(fraction.len() as u32);
        if tail % scale != 0 {
            return Err(error());
        }
        whole.and_then(|n| n.checked_add(tail / scale)).map(Size).ok_or_else(error)
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (unit, shift) in UNITS {
            if self.0 != 0 && self.0.trailing_zeros() >= shift {
                return write!(f, "{}{unit}", self.0 >> shift);
            }
        }
        write!(f, "{}", self.0)
    }
}

impl Serialize for Size {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = Size;
            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("a size such as \"512M\", or a number of bytes")
            }
            fn visit_u64<E: de::Error>(self, bytes: u64) -> Result<Size, E> {
                Ok(Size(bytes))
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Size, E> {
                text.parse().map_err(E::custom)
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_people_write_them() {
        for (text, bytes) in [
            ("512M", 512 << 20),
            ("2g", 2 << 30),
            ("1.5G", 3 << 29),
            ("64KiB", 64 << 10),
            ("4096", 4096),
            (" 1 MB ", 1 << 20),
            ("0", 0),
        ] {
            assert_eq!(text.parse(), Ok(Size(bytes)), "{text}");
        }
    }

    #[test]
    fn nonsense_and_overflow_are_refused() {
        for text in
            ["", "M", "-1M", "1..5G", ".5G", "12X", "1e3", "0x10", "99999999999T", "0.3K", "1.G"]
        {
            assert!(text.parse::<Size>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_printed_size_reads_back() {
        for bytes in [0, 1, 4096, 5 << 30, (1 << 40) + 512, u64::MAX] {
            assert_eq!(Size(bytes).to_string().parse(), Ok(Size(bytes)));
        }
    }
}
