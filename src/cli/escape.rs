//! What the keys mean that are husk's after `Ctrl-a`, on a terminal.

/// What is asked of husk, not of the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Escape {
    /// End the VM.
    End,
    /// Show the keys.
    Help,
    /// Leave the VM, which goes on.
    Leave,
}

/// The keys of who runs the VM.
pub const OWNER: &[u8] = b"xh?";
/// Those of who sits in front of one that is not theirs.
pub const VISITOR: &[u8] = b"xh?d";

impl Escape {
    /// What `key` asks, one of those above.
    pub fn of(key: u8) -> Option<Escape> {
        match key {
            b'x' => Some(Escape::End),
            b'h' | b'?' => Some(Escape::Help),
            b'd' => Some(Escape::Leave),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_means_something_and_only_a_visitor_can_leave() {
        let meant =
            |keys: &[u8]| keys.iter().map(|key| Escape::of(*key)).collect::<Option<Vec<_>>>();
        assert!(!meant(OWNER).unwrap().contains(&Escape::Leave));
        assert!(meant(VISITOR).unwrap().contains(&Escape::Leave));
    }
}
