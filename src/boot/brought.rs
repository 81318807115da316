//! What a Linux has brought along that it can run: an initial RAM file system, a root that its own command line
//! names, or tests of its own, which need none. It is looked for where a guest is given nothing, so that one which
//! must panic need not be started for that.
//!
//! A Linux that was configured without an initial RAM file system of its own has one all the same: the
//! kernel's `usr/default_cpio_list`, three entries, never packed (`usr/Makefile`). Finding it proves that
//! there is no other; not finding it proves nothing, and is taken for one that could be.

use std::io;

use super::image::Image;

/// The names in that archive, in their order, with their ends.
const DEFAULT: [&[u8]; 4] = [b"dev\0", b"dev/console\0", b"root\0", b"TRAILER!!!\0"];
/// An entry's header, and the place of two lengths in it, eight hexadecimal digits each
/// (`Documentation/driver-api/early-userspace/buffer-format.rst`, newc).
const HEADER_LEN: usize = 110;
const FILE_LEN_AT: usize = 54;
const NAME_LEN_AT: usize = 94;
/// Bytes of the archive: four headers and names, each padded to four bytes, are shorter.
const ARCHIVE_MAX: usize = 1024;
/// Bytes of a piece's end that are looked at once more: more than stands before what is looked for.
const OVERLAP: usize = 16;
/// Bytes that are looked at a time.
const PIECE: usize = 1 << 20;

/// Whether `image` is a Linux that has nothing of its own that it could run.
///
/// # Errors
/// When it cannot be read.
pub(super) fn nothing(image: &Image) -> io::Result<bool> {
    let len = usize::try_from(image.len()).unwrap_or(usize::MAX);
    let mut room = vec![0; (PIECE + ARCHIVE_MAX).min(len)];
    let (mut has_default, mut at) = (false, 0);
    while at < len {
        let piece = room.get_mut(..(PIECE + ARCHIVE_MAX).min(len - at)).unwrap_or_default();
        image.read_exact_at(piece, at as u64)?;
        // What the next piece begins with is looked at here, too, where what is before it is known.
        for (place, byte) in piece.iter().enumerate().take(PIECE + OVERLAP) {
            match byte {
                // Those of an archive lie at multiples of four, which the pieces begin at.
                b'0' if place.is_multiple_of(4) && is_default(piece.get(place..)) => {
                    has_default = true;
                }
                b'=' if names_a_root(piece, place) => return Ok(false),
                // A parameter of KUnit's where it is built in: it runs before the root is looked for, and may turn
                // the machine off then (`lib/kunit/executor.c`).
                b'_' if is_between(piece, place, b"kunit", b"shutdown") => return Ok(false),
                _ => {}
            }
        }
        at += PIECE;
    }
    Ok(has_default)
}

/// Whether the archive that everybody has begins there.
fn is_default(bytes: Option<&[u8]>) -> bool {
    let mut rest = bytes.unwrap_or_default();
    for name in DEFAULT {
        let number = |at: usize| {
            let digits = std::str::from_utf8(rest.get(at..at + 8)?).ok()?;
            usize::from_str_radix(digits, 16).ok()
        };
        let known = rest.starts_with(b"07070")
            && number(NAME_LEN_AT) == Some(name.len())
            && number(FILE_LEN_AT) == Some(0)
            && rest.get(HEADER_LEN..).is_some_and(|rest| rest.starts_with(name));
        if !known {
            return false;
        }
        let entry = (HEADER_LEN + name.len()).next_multiple_of(4);
        rest = rest.get(entry..).unwrap_or_default();
    }
    true
}

/// Whether the `=` at `place` is one of a `root=` with a value, as in a command line that is built in
/// (CONFIG_CMDLINE); the parameter's own name in the kernel has none, and what it prints has a `%` there.
fn names_a_root(bytes: &[u8], place: usize) -> bool {
    const NAME: &[u8] = b"root";
    let Some(begin) = place.checked_sub(NAME.len()) else { return false };
    let before = begin.checked_sub(1).and_then(|before| bytes.get(before));
    bytes.get(begin..place) == Some(NAME)
        && matches!(before, None | Some(0 | b' ' | b'"'))
        && bytes.get(place + 1).is_some_and(|value| value.is_ascii_alphanumeric() || *value == b'/')
}

/// Whether what is at `place` has that before and behind it.
fn is_between(bytes: &[u8], place: usize, before: &[u8], behind: &[u8]) -> bool {
    let begin = place.checked_sub(before.len());
    begin.is_some_and(|begin| bytes.get(begin..place) == Some(before))
        && bytes.get(place + 1..).is_some_and(|rest| rest.starts_with(behind))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The archive that everybody has, with an entry more.
    fn archive(more: Option<&str>) -> Vec<u8> {
        let mut bytes = Vec::new();
        for name in ["dev", "dev/console", "root"].into_iter().chain(more).chain(["TRAILER!!!"]) {
            let mut fields = [0; 13];
            fields[11] = name.len() + 1;
            bytes.extend(b"070701");
            bytes.extend(fields.map(|field| format!("{field:08X}")).concat().bytes());
            bytes.extend(name.bytes());
            bytes.push(0);
            bytes.resize(bytes.len().next_multiple_of(4), 0);
        }
        bytes
    }

    /// A kernel that has that at `at`.
    fn has_nothing(at: usize, what: &[u8]) -> bool {
        let mut bytes = vec![b'x'; at];
        bytes.extend(what);
        bytes.resize(2 * PIECE + 9, 0);
        nothing(&Image::Bytes(bytes)).unwrap()
    }

    #[test]
    fn a_linux_with_the_archive_that_everybody_has_has_nothing_wherever_that_lies() {
        for at in [0, 4, PIECE - 4, PIECE, 2 * PIECE - 480] {
            assert!(has_nothing(at, &archive(None)), "{at}");
        }
        assert!(!has_nothing(0, b""));
        assert!(!has_nothing(0, &archive(Some("init"))));
        assert!(!has_nothing(0, &archive(None)[..300]), "one that is cut off");
        assert!(!nothing(&Image::Bytes(Vec::new())).unwrap());
    }

    #[test]
    fn a_root_that_a_built_in_command_line_names_is_something_and_so_are_tests_that_need_none() {
        for (line, named) in [
            (&b"\0console=ttyS0 root=/dev/nfs\0"[..], true),
            (b"\0root=PARTUUID=1\0", true),
            (b"\0kunit_shutdown\0", true),
            (b"\0kunit_shut\0", false),
            (b"\0root=\0", false),
            (b"\0dst_root=1", false),
            (b" root=%d id", false),
            (b"a correct \"root=\" boot option", false),
        ] {
            let text = String::from_utf8_lossy(line);
            let mut both = archive(None);
            both.extend(line);
            assert_eq!(has_nothing(64, &both), !named, "{text}");
        }
    }
}
