//! Where a file that is copied needs no room: blocks of nothing but zeros, which its receiver leaves out of the
//! new file, as `cp --sparse=always` does. Both sides of a copy receive, and both ask here.
//!
//! The bytes that go over the wire are the same: a file with holes is as long there as one without.

/// What is left out is left out in pieces of one block of the file's, as file systems have them, in bytes.
pub const BLOCK: usize = 4096;

/// A run of a file's bytes that is written, or is nothing but zeros.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Run<'a> {
    /// To be written.
    Data(&'a [u8]),
    /// So many zeros.
    Hole(usize),
}

/// Cuts `bytes`, which lie at `at` in their file, into runs that are as long as they can be; each ends with
/// `bytes` or where a block of the file does.
pub fn runs(at: u64, bytes: &[u8]) -> Runs<'_> {
    Runs { at, bytes }
}

/// See [`runs`].
#[derive(Debug, Clone)]
pub struct Runs<'a> {
    at: u64,
    bytes: &'a [u8],
}

impl<'a> Iterator for Runs<'a> {
    type Item = Run<'a>;

    fn next(&mut self) -> Option<Run<'a>> {
        let mut len = 0;
        let mut is_hole = None;
        while let Some(rest) = self.bytes.get(len..).filter(|rest| !rest.is_empty()) {
            let into = (self.at.wrapping_add(len as u64) % BLOCK as u64) as usize;
            let block = rest.get(..BLOCK - into).unwrap_or(rest);
            let zeros = is_zeros(block);
            if *is_hole.get_or_insert(zeros) != zeros {
                break;
            }
            len += block.len();
        }
        let (run, rest) = self.bytes.split_at_checked(len)?;
        self.at = self.at.wrapping_add(len as u64);
        self.bytes = rest;
        Some(if is_hole? { Run::Hole(len) } else { Run::Data(run) })
    }
}

/// A number at a time, and no further than the first that is not zero: with data that is the end of it.
fn is_zeros(bytes: &[u8]) -> bool {
    let (numbers, rest) = bytes.as_chunks::<16>();
    numbers.iter().all(|number| u128::from_ne_bytes(*number) == 0)
        && rest.iter().all(|byte| *byte == 0)
}
