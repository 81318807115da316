//! Directory entries as the host gives them (`struct linux_dirent64`), and those that a guest was told last.
//!
//! A program of the guest's that has less room than its kernel asks us for (musl's `readdir` has 2 KiB) leaves
//! the end of a reply, and its kernel asks for that again by its position. Not every file system finds a
//! place again in a directory from which something was removed meanwhile: before Linux 6.6, tmpfs counts
//! from the beginning, and whoever empties a directory while reading it would miss entries.

use std::collections::VecDeque;
use std::ffi::CStr;

use super::message::Words;

/// Bytes of a `linux_dirent64` before its name: inode, position, length, kind.
const FIXED: usize = 19;
/// Directories whose last replies are kept.
const DIRECTORIES: usize = 32;
/// The longest reply that is kept, in bytes: a kernel that asks for more than a page knows that its program has room for it.
const KEPT: usize = 4096;

/// One entry as the host has it.
pub(super) struct Entry<'a> {
    pub ino: u64,
    /// Where the next one is.
    pub next: u64,
    pub kind: u8,
    pub name: &'a CStr,
}

/// Takes the first entry from `bytes`.
pub(super) fn next_entry<'a>(bytes: &mut &'a [u8]) -> Option<Entry<'a>> {
    let mut words = Words(bytes);
    let (ino, next, len) =
        (words.object().ok()?, words.object().ok()?, words.object::<u16>().ok()?);
    let kind = words.object().ok()?;
    let (whole, rest) = bytes.split_at_checked(usize::from(len))?;
    let name = CStr::from_bytes_until_nul(whole.get(FIXED..)?).ok()?;
    *bytes = rest;
    Some(Entry { ino, next, kind, name })
}

/// What a reply has of a directory.
#[derive(Default)]
pub(super) struct Told {
    handle: u64,
    /// The position that was asked for.
    from: u64,
    pub entries: Vec<u8>,
}

impl Told {
    /// Leaves what comes after the entry that ends at `position`; nothing, if that is none of these.
    fn skip_to(&mut self, position: u64) {
        let (mut rest, mut here) = (&self.entries[..], self.from);
        while here != position {
            match next_entry(&mut rest) {
                Some(entry) => here = entry.next,
                None => break,
            }
        }
        let rest = if here == position { rest.len() } else { 0 };
        self.entries.drain(..self.entries.len() - rest);
        self.from = position;
    }
}

/// The last replies.
#[derive(Default)]
pub(super) struct LastTold(VecDeque<Told>);

impl LastTold {
    /// What was told of a directory's entries from a position on, to be put back with what is told now.
    pub(super) fn take(&mut self, handle: u64, position: u64) -> Told {
        let place = self.0.iter().position(|told| told.handle == handle);
        let full = (self.0.len() >= DIRECTORIES).then_some(0);
        let mut told = place.or(full).and_then(|at| self.0.remove(at)).unwrap_or_default();
        // Who begins anew wants to see what there is now.
        if told.handle != handle || position == 0 {
            told.entries.clear();
        }
        told.handle = handle;
        told.skip_to(position);
        told
    }

    /// Keeps what was told.
    pub(super) fn put(&mut self, told: Told) {
        if told.entries.len() <= KEPT {
            self.0.push_back(told);
        }
    }

    /// Forgets everything.
    pub(super) fn clear(&mut self) {
        self.0.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(next: u64, name: &str) -> Vec<u8> {
        let len = (FIXED + name.len() + 1).next_multiple_of(8);
        let head =
            [&7u64.to_le_bytes()[..], &next.to_le_bytes(), &(len as u16).to_le_bytes(), &[8]];
        let mut bytes = [&head.concat(), name.as_bytes()].concat();
        bytes.resize(len, 0);
        bytes
    }

    fn names(told: &Told) -> Vec<&str> {
        let mut rest = &told.entries[..];
        std::iter::from_fn(|| next_entry(&mut rest)).map(|e| e.name.to_str().unwrap()).collect()
    }

    fn tell(last: &mut LastTold, handle: u64, from: u64) {
        let mut told = last.take(handle, from);
        told.entries = [entry(5, "a"), entry(3, "bc"), entry(9, "d")].concat();
        last.put(told);
    }

    #[test]
    fn what_is_told_again_begins_where_the_guest_goes_on() {
        for (position, wanted) in [
            (1, &["a", "bc", "d"][..]),
            (5, &["bc", "d"]),
            (3, &["d"]),
            (9, &[]),
            (4, &[]),
            (0, &[]),
        ] {
            let mut last = LastTold::default();
            tell(&mut last, 1, 1);
            assert_eq!(names(&last.take(1, position)), wanted, "from {position}");
        }
        let mut last = LastTold::default();
        tell(&mut last, 1, 1);
        assert!(names(&last.take(2, 5)).is_empty(), "another's");
        let again = last.take(1, 5);
        last.put(again);
        assert!(names(&last.take(1, 1)).is_empty(), "what it has gone past");
    }

    #[test]
    fn a_beginning_is_always_what_there_is_now() {
        let mut last = LastTold::default();
        tell(&mut last, 1, 0);
        assert!(names(&last.take(1, 0)).is_empty());
    }

    #[test]
    fn there_is_an_end_to_what_is_kept() {
        let mut last = LastTold::default();
        (0..1000).for_each(|handle| tell(&mut last, handle, 1));
        assert_eq!(last.0.len(), DIRECTORIES);
        assert_eq!(names(&last.take(999, 3)), ["d"]);
        let mut told = last.take(7, 1);
        told.entries = vec![0; KEPT + 1];
        last.put(told);
        assert!(last.take(7, 1).entries.is_empty());
    }
}
