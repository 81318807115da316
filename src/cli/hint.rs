//! A word for who sits at a terminal on which nothing happens: said once, and only there.

use std::io::IsTerminal;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::time::Duration;

use super::life::watch;

/// How long nothing may happen.
const SILENCE: Duration = Duration::from_secs(3);

/// A word that may still be said; not any more when this is dropped.
pub struct Hint {
    _ended: Option<Sender<()>>,
}

/// Says `words` after a while if nothing `has_come` by then; never where somebody else than a user at a terminal
/// would type or read.
pub fn after_silence(words: &'static str, has_come: impl Fn() -> bool + Send + 'static) -> Hint {
    if !std::io::stdin().is_terminal() || !std::io::stderr().is_terminal() {
        return Hint { _ended: None };
    }
    let (ended, is_ended) = channel::<()>();
    let wait = move || {
        if is_ended.recv_timeout(SILENCE) == Err(RecvTimeoutError::Timeout) && !has_come() {
            tell!("husk: {words}\n");
        }
    };
    // Where there is no thread for it there is more to worry about than a hint.
    Hint { _ended: watch(wait).is_ok().then_some(ended) }
}
