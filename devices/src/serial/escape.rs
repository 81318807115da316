//! The escape key of an interactive console: `Ctrl-a`, then a key of which whoever reads what is typed says what
//! it means. Here it is only told from what the guest is typed.

const CTRL_A: u8 = 0x01;

/// Called in the worker with the key that was typed after `Ctrl-a`, a letter in lower case.
pub type EscapeHandler = Box<dyn FnMut(u8) + Send>;

/// Keys that are not the guest's after `Ctrl-a`, and whose they are.
pub struct Escapes {
    /// Letters in lower case, which stand for both, and signs. `a` is none: it sends a `Ctrl-a`.
    pub keys: &'static [u8],
    /// Who is told.
    pub handler: EscapeHandler,
}

/// Takes escapes out of a stream of typed bytes.
pub struct EscapeFilter {
    keys: &'static [u8],
    armed: bool,
}

impl EscapeFilter {
    /// Those of `keys`, as [`Escapes::keys`] has them.
    pub fn new(keys: &'static [u8]) -> EscapeFilter {
        EscapeFilter { keys, armed: false }
    }

    /// Appends to `out` what of `typed` is meant for the guest, and calls `on_key` with the keys of escapes.
    /// `Ctrl-a a` and `Ctrl-a Ctrl-a` send one `Ctrl-a`; any other key passes with its `Ctrl-a`.
    pub fn filter(&mut self, typed: &[u8], out: &mut Vec<u8>, mut on_key: impl FnMut(u8)) {
        for &byte in typed {
            if !std::mem::take(&mut self.armed) {
                if byte == CTRL_A {
                    self.armed = true;
                } else {
                    out.push(byte);
                }
                continue;
            }
            match byte.to_ascii_lowercase() {
                CTRL_A | b'a' => out.push(CTRL_A),
                key if self.keys.contains(&key) => on_key(key),
                _ => out.extend([CTRL_A, byte]),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(keys: &'static [u8], chunks: &[&[u8]]) -> (Vec<u8>, Vec<u8>) {
        let (mut filter, mut out, mut seen) = (EscapeFilter::new(keys), Vec::new(), Vec::new());
        for chunk in chunks {
            filter.filter(chunk, &mut out, |key| seen.push(key));
        }
        (out, seen)
    }

    #[test]
    fn escapes_are_taken_out_even_across_reads() {
        assert_eq!(run(b"xh?", &[b"ab\x01", b"xc\x01H\x01?"]), (b"abc".to_vec(), b"xh?".to_vec()));
    }

    #[test]
    fn a_key_that_nobody_wants_is_the_guests() {
        assert_eq!(run(b"x", &[b"a\x01Db"]), (b"a\x01Db".to_vec(), vec![]));
        assert_eq!(run(b"xd", &[b"a\x01Db"]), (b"ab".to_vec(), b"d".to_vec()));
    }

    #[test]
    fn a_doubled_ctrl_a_reaches_the_guest_once() {
        let typed: &[&[u8]] = &[b"\x01\x01-\x01A-\x01z"];
        assert_eq!(run(b"ax", typed), (b"\x01-\x01-\x01z".to_vec(), vec![]));
    }
}
