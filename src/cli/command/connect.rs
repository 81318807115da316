//! A command's streams, husk's, until its end.

use std::io::IsTerminal;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use husk::error::ExecError;
use husk::{GuestChild, GuestCommand, Status, WindowSize};

use super::streams::{self, Shown, To};
use crate::cli::awaited::Awaited;
use crate::cli::escape::Escape;
use crate::cli::life::whenever;
use crate::cli::{Error, terminal};

/// How long what the command wrote is waited for after its end without a limit: for ever, nearly.
const EVER: Duration = Duration::from_secs(1 << 32);

/// A terminal's size where there is none to tell it.
const USUAL: WindowSize = WindowSize { columns: 80, rows: 24 };

/// A command whose streams are husk's.
pub struct Attached {
    pub child: Arc<GuestChild>,
    done: Receiver<Shown>,
    /// Streams that are shown.
    shown: usize,
}

/// How a command ended whose streams were husk's.
pub struct End {
    pub status: Status,
    /// All that it wrote was shown, as far as anybody read it.
    pub is_whole: bool,
    /// Processes that the guest's kernel ended for want of memory meanwhile.
    pub starved: u32,
}

/// On a terminal, `command` with one of the same kind and size; and whether that is so. With `tty` it has one
/// in any case.
pub fn for_terminal(command: GuestCommand, tty: bool) -> (GuestCommand, bool) {
    if !std::io::stdin().is_terminal() || !std::io::stdout().is_terminal() {
        return (if tty { command.terminal(USUAL) } else { command }, false);
    }
    let size = terminal::size().unwrap_or(USUAL);
    let command = command.terminal(size);
    match std::env::var_os("TERM") {
        Some(kind) => (command.env("TERM", kind), true),
        None => (command, true),
    }
}

/// Connects the streams of `child`. With `resized` it has the terminal; `escapes` hears of escapes
/// typed there. `has_begun` is called before any of them is read.
///
/// # Errors
/// When no thread can be started, or `has_begun` says so.
pub fn attach(
    mut child: GuestChild,
    resized: Option<Awaited>,
    escapes: Option<Sender<Escape>>,
    has_begun: impl FnOnce(&Arc<GuestChild>) -> Result<(), Error>,
) -> Result<Attached, Error> {
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let child = Arc::new(child);
    has_begun(&child)?;
    if let Some(resized) = resized {
        terminal::make_raw();
        attend_window(resized, &child)?;
    }
    let (done, all_done) = channel();
    let mut shown = 0;
    for (from, to) in [(stdout, To::Stdout), (stderr, To::Stderr)] {
        if let Some(from) = from {
            streams::show(from, to, done.clone())?;
            shown += 1;
        }
    }
    if let Some(stdin) = stdin {
        streams::feed(stdin, escapes)?;
    }
    Ok(Attached { child, done: all_done, shown })
}

impl Attached {
    /// Waits for the command's end; `None` when that is not in time, of which `left` tells how much there is
    /// still. Waits then until what it wrote is shown, which may take the grace beyond that time.
    ///
    /// # Errors
    /// When the guest has gone before.
    pub fn wait(
        &self,
        left: impl Fn() -> Option<Duration>,
        grace: Duration,
    ) -> Result<Option<End>, ExecError> {
        let status = match left() {
            None => Some(self.child.wait()?),
            Some(left) => self.child.wait_timeout(left)?,
        };
        let limit = left().map_or(EVER, |left| left.saturating_add(grace));
        let end = |status| End::after(status, &self.done, self.shown, limit);
        Ok(status.map(|status| End { starved: self.child.killed_for_memory(), ..end(status) }))
    }
}

impl End {
    /// That of a command whose `count` streams are still shown, which is waited for as long as that.
    fn after(status: Status, done: &Receiver<Shown>, count: usize, limit: Duration) -> End {
        let is_whole = are_shown(done, count, limit);
        if is_whole.is_none() {
            tell!(
                "husk: the command has ended, but its output was not read in time, and the rest of it \
                 is lost\n"
            );
        }
        End { status, is_whole: is_whole.unwrap_or(false), starved: 0 }
    }
}

/// Waits at most so long for the ends of so many streams, and tells whether nothing of them was lost; `None`
/// when some have not ended.
fn are_shown(done: &Receiver<Shown>, count: usize, limit: Duration) -> Option<bool> {
    let begun = Instant::now();
    (0..count).try_fold(true, |whole, _| {
        let shown = done.recv_timeout(limit.saturating_sub(begun.elapsed())).ok()?;
        Some(whole && shown)
    })
}

/// Tells the command's terminal its size whenever that changes, as long as there is a command.
fn attend_window(resized: Awaited, child: &Arc<GuestChild>) -> std::io::Result<()> {
    whenever(resized, child, |child| {
        if let Some(size) = terminal::size() {
            // After its end it has none.
            let _ = child.resize(size);
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_has_its_own_end_also_when_its_output_is_read_late_or_never() {
        let (done, all_done) = channel();
        done.send(true).unwrap();
        let late = done.clone();
        let reader = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(50));
            late.send(true).unwrap();
        });
        let end = |count, limit| End::after(Status::Exited(3), &all_done, count, limit);
        let whole = end(2, EVER);
        assert_eq!((whole.status, whole.is_whole), (Status::Exited(3), true));
        reader.join().unwrap();
        done.send(false).unwrap();
        assert!(!end(1, Duration::ZERO).is_whole, "it could not be written");
        let unread = end(1, Duration::from_millis(10));
        assert_eq!((unread.status, unread.is_whole), (Status::Exited(3), false));
    }
}
