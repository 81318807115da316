//! Text without an allocator: numbers, paths put together, words of a file.

use core::ffi::CStr;

use crate::sys::{Errno, Result};

/// A number from its decimal digits.
pub fn number(digits: &[u8]) -> Option<u32> {
    let mut value = 0u32;
    if digits.is_empty() {
        return None;
    }
    for digit in digits {
        let digit = digit.checked_sub(b'0').filter(|digit| *digit < 10)?;
        value = value.checked_mul(10)?.checked_add(digit.into())?;
    }
    Some(value)
}

/// A number's decimal digits.
pub struct Digits {
    digits: [u8; 20],
    start: usize,
}

impl Digits {
    /// Those of `value`.
    pub fn of(mut value: u64) -> Digits {
        let mut digits = [b'0'; 20];
        let mut start = digits.len();
        for (place, digit) in digits.iter_mut().enumerate().rev() {
            *digit = b'0' + (value % 10) as u8;
            value /= 10;
            start = place;
            if value == 0 {
                break;
            }
        }
        Digits { digits, start }
    }

    /// The digits.
    pub fn bytes(&self) -> &[u8] {
        self.digits.get(self.start..).unwrap_or_default()
    }
}

/// Whether `word` is one of the words of `line`, which are set apart by white space.
pub fn has_word(line: &[u8], word: &[u8]) -> bool {
    line.split(u8::is_ascii_whitespace).any(|other| other == word)
}

/// Bytes of a path with its zero, as the kernel has it (`PATH_MAX`).
const PATH_MAX: usize = 4096;

/// A path.
pub struct Path {
    bytes: [u8; PATH_MAX],
    len: usize,
}

impl Path {
    /// The parts, one after the other.
    ///
    /// # Errors
    /// When that is too long, or has a zero inside.
    pub fn of(parts: &[&[u8]]) -> Result<Path> {
        let mut path = Path { bytes: [0; PATH_MAX], len: 0 };
        for part in parts {
            let end = path.len + part.len();
            let last = path.bytes.len() - 1;
            let place = path.bytes.get_mut(path.len..end).filter(|_| end <= last);
            place.ok_or(Errno::NAMETOOLONG)?.copy_from_slice(part);
            if part.contains(&0) {
                return Err(Errno::INVAL);
            }
            path.len = end;
        }
        Ok(path)
    }

    /// Without its zero.
    pub fn bytes(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or_default()
    }

    /// As the kernel takes it.
    pub fn as_c_str(&self) -> &CStr {
        CStr::from_bytes_until_nul(&self.bytes).unwrap_or_default()
    }
}

/// The lines of a file.
pub fn lines(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    text.split(|byte| *byte == b'\n').filter(|line| !line.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_is_digits_and_nothing_else() {
        for value in [0, 7, 10, u64::from(u32::MAX), u64::MAX] {
            assert_eq!(Digits::of(value).bytes(), value.to_string().as_bytes());
        }
        assert_eq!(number(b"4294967295"), Some(u32::MAX));
        for wrong in [&b""[..], b"4294967296", b"-1", b"1x", b" 1"] {
            assert_eq!(number(wrong), None);
        }
    }

    #[test]
    fn a_word_of_a_line_is_a_whole_one() {
        assert!(has_word(b"quiet acpi=off\n", b"acpi=off"));
        for line in [&b""[..], b"acpi=offline", b"noacpi=off acpi=on"] {
            assert!(!has_word(line, b"acpi=off"));
        }
    }

    #[test]
    fn a_path_that_the_kernel_would_cut_is_refused() {
        assert_eq!(Path::of(&[b"/a", b"/b"]).map(|p| p.as_c_str().to_owned()), Ok(c"/a/b".into()));
        assert!(Path::of(&[&[b'x'; PATH_MAX - 1]]).is_ok());
        assert_eq!(Path::of(&[&[b'x'; PATH_MAX]]).err(), Some(Errno::NAMETOOLONG));
        assert_eq!(Path::of(&[b"a\0b"]).err(), Some(Errno::INVAL));
    }
}
