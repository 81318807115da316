//! What the command writes under one kernel, among what it writes under others: by lines, each with the
//! kernel before it.

use std::io::{BufRead, BufReader, IsTerminal, Read, Write};

use crate::cli::stderr::plain;

/// Bytes of a line after which another one is begun.
const LINE_MAX: u64 = 16 << 10;

/// Writes all lines of `from` to `to`, with `prefix`: as they are, but not to a terminal, where they could write
/// over whose they are. What nobody reads any more, or a full disk does not take, is lost; the command goes on.
pub fn carry<W: Write + IsTerminal>(from: impl Read, prefix: &str, to: impl Fn() -> W) {
    match to().is_terminal() {
        true => by_lines(from, prefix, to, shown),
        false => by_lines(from, prefix, to, |line, to| to.extend(line)),
    }
}

/// Makes `to` longer by `line` as a terminal may have it. A carriage return
/// at its end is part of that; another one is shown, like whatever else would move the cursor.
fn shown(line: &[u8], to: &mut Vec<u8>) {
    let text = String::from_utf8_lossy(line);
    to.extend(plain(text.trim_end_matches('\r')).bytes());
}

/// The lines of `from` with `prefix` before them, each made by `make` of what it is without its end.
fn by_lines<W: Write>(
    from: impl Read,
    prefix: &str,
    to: impl Fn() -> W,
    make: impl Fn(&[u8], &mut Vec<u8>),
) {
    let mut from = BufReader::new(from);
    let (mut line, mut whole) = (Vec::new(), prefix.as_bytes().to_vec());
    // An error of a pipe is its end.
    while let Ok(1..) = (&mut from).take(LINE_MAX).read_until(b'\n', &mut line) {
        make(line.strip_suffix(b"\n").unwrap_or(&line), &mut whole);
        whole.push(b'\n');
        // In one piece, so that those of two kernels do not mix.
        let _ = to().write_all(&whole);
        line.clear();
        whole.truncate(prefix.len());
    }
    let _ = to().flush();
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::rc::Rc;

    use super::*;

    #[derive(Clone, Default)]
    struct Pieces(Rc<RefCell<Vec<String>>>);

    impl Write for Pieces {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.borrow_mut().push(String::from_utf8(bytes.to_vec()).unwrap());
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    fn raw(line: &[u8], to: &mut Vec<u8>) {
        to.extend(line);
    }

    #[test]
    fn every_line_has_its_kernel_and_one_without_an_end_gets_one() {
        let pieces = Pieces::default();
        by_lines(&b"one\n\r\x1b[Alast"[..], "k | ", || pieces.clone(), raw);
        assert_eq!(*pieces.0.borrow(), ["k | one\n", "k | \r\x1b[Alast\n"]);
        let (long, pieces) = (vec![b'x'; (LINE_MAX + 1) as usize], Pieces::default());
        by_lines(&long[..], "", || pieces.clone(), raw);
        assert_eq!(pieces.0.borrow().iter().map(String::len).collect::<Vec<_>>(), [16385, 2]);
    }

    #[test]
    fn no_line_writes_over_whose_it_is_on_a_terminal() {
        let pieces = Pieces::default();
        let text = b"a\r\nother | b\rc\x1b[1G\x08d\xff\n\te";
        by_lines(&text[..], "k | ", || pieces.clone(), shown);
        let wanted = ["k | a\n", "k | other | b\\rc\\u{1b}[1G\\u{8}d\u{fffd}\n", "k | \te\n"];
        assert_eq!(*pieces.0.borrow(), wanted);
    }
}
