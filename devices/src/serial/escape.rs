//! The escape key of an interactive console: `Ctrl-a`, then a letter.

/// What the user asked of the VMM, not of the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Escape {
    /// `Ctrl-a x`: end the VM.
    End,
    /// `Ctrl-a h` or `Ctrl-a ?`: show the keys.
    Help,
    /// `Ctrl-a d`, where that is one: leave the VM, which goes on.
    Detach,
}

const CTRL_A: u8 = 0x01;

/// Takes escapes out of a stream of typed bytes.
#[derive(Default)]
pub struct EscapeFilter {
    armed: bool,
    detaches: bool,
}

impl EscapeFilter {
    /// One for whom the VM goes on without: `Ctrl-a d` is an escape, too.
    pub fn that_detaches() -> EscapeFilter {
        EscapeFilter { detaches: true, ..EscapeFilter::default() }
    }

    /// Appends to `out` what of `typed` is meant for the guest, and reports escapes to `on_escape`.
    /// `Ctrl-a a` and `Ctrl-a Ctrl-a` send one `Ctrl-a`; any other letter passes with its `Ctrl-a`.
    pub fn filter(&mut self, typed: &[u8], out: &mut Vec<u8>, mut on_escape: impl FnMut(Escape)) {
        for &byte in typed {
            if !std::mem::take(&mut self.armed) {
                if byte == CTRL_A {
                    self.armed = true;
                } else {
                    out.push(byte);
                }
                continue;
            }
            match byte {
                b'x' | b'X' => on_escape(Escape::End),
                b'h' | b'H' | b'?' => on_escape(Escape::Help),
                b'd' | b'D' if self.detaches => on_escape(Escape::Detach),
                CTRL_A | b'a' => out.push(CTRL_A),
                other => out.extend([CTRL_A, other]),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(chunks: &[&[u8]]) -> (Vec<u8>, Vec<Escape>) {
        let (mut filter, mut out, mut seen) = (EscapeFilter::default(), Vec::new(), Vec::new());
        for chunk in chunks {
            filter.filter(chunk, &mut out, |e| seen.push(e));
        }
        (out, seen)
    }

    #[test]
    fn escapes_are_taken_out_even_across_reads() {
        assert_eq!(
            run(&[b"ab\x01", b"xc\x01h"]),
            (b"abc".to_vec(), vec![Escape::End, Escape::Help])
        );
    }

    #[test]
    fn only_who_can_leave_has_an_escape_for_it() {
        let (mut filter, mut out, mut seen) = (EscapeFilter::that_detaches(), Vec::new(), vec![]);
        filter.filter(b"a\x01db", &mut out, |e| seen.push(e));
        assert_eq!((&out[..], &seen[..]), (&b"ab"[..], &[Escape::Detach][..]));
        assert_eq!(run(&[b"\x01d"]), (b"\x01d".to_vec(), vec![]));
    }

    #[test]
    fn a_doubled_ctrl_a_reaches_the_guest_once() {
        assert_eq!(run(&[b"\x01\x01-\x01a-\x01z"]), (b"\x01-\x01-\x01z".to_vec(), vec![]));
    }
}
