//! What the command writes under one kernel, among what it writes under others: by lines, each with the
//! kernel before it.

use std::io::{BufRead, BufReader, Read, Write};

/// Bytes of a line after which another one is begun.
const LINE_MAX: u64 = 16 << 10;

/// Writes all lines of `from` to `to`, with `prefix`. What nobody reads any more, or a full disk does not
/// take, is lost; the command goes on.
pub fn carry<W: Write>(from: impl Read, prefix: &str, to: impl Fn() -> W) {
    let mut from = BufReader::new(from);
    let mut line = prefix.as_bytes().to_vec();
    // An error of a pipe is its end.
    while let Ok(1..) = (&mut from).take(LINE_MAX).read_until(b'\n', &mut line) {
        if line.last() != Some(&b'\n') {
            line.push(b'\n');
        }
        // In one piece, so that those of two kernels do not mix.
        let _ = to().write_all(&line);
        line.truncate(prefix.len());
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

    #[test]
    fn every_line_has_its_kernel_and_one_without_an_end_gets_one() {
        let pieces = Pieces::default();
        carry(&b"one\n\nlast"[..], "k | ", || pieces.clone());
        assert_eq!(*pieces.0.borrow(), ["k | one\n", "k | \n", "k | last\n"]);
        let (long, pieces) = (vec![b'x'; (LINE_MAX + 1) as usize], Pieces::default());
        carry(&long[..], "", || pieces.clone());
        assert_eq!(pieces.0.borrow().iter().map(String::len).collect::<Vec<_>>(), [16385, 2]);
    }
}
