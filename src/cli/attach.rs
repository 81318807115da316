//! `husk attach`: the keyboard and the screen of a VM that was detached. What it writes is read from its log,
//! so that one who reads slowly holds nobody up; what is typed goes through its husk.

use std::io::{self, IsTerminal, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use clap::Args;
use husk::EscapeFilter;
use husk::named::{self, LogReader, Remote};

use super::awaited::Awaited;
use super::escape::{self, Escape};
use super::life::watch;
use super::signals::Signals;
use super::{Error, terminal};

/// So much of what was written before is shown, in bytes.
const BEFORE: u64 = 4096;
/// How long its husk may take to notice that one leaves.
const PATIENCE: Duration = Duration::from_secs(2);
/// What the keys do.
const HELP: &str = "\nhusk: Ctrl-a d  leave the VM, which goes on\n      Ctrl-a x  end it\n      \
                    Ctrl-a h  this help\n      Ctrl-a a  send Ctrl-a\n";

/// Sit in front of a VM that was detached: its console, or the terminal of its command (--tty). Ctrl-a d leaves
/// it again
#[derive(Args)]
pub struct Attach {
    /// The VM
    name: String,
}

impl Attach {
    /// Shows what the VM writes and sends what is typed, until one of both ends.
    pub fn execute(self) -> Result<u8, Error> {
        let vm = named::find(&self.name)?;
        let resized = Awaited::block(libc::SIGWINCH)?;
        let signals = Signals::block()?;
        let _restore = terminal::Restore;
        let connection = vm.attach()?;
        let mut log = LogReader::open(&self.name)?
            .ok_or_else(|| format!("{}: what it writes is not kept", self.name))?;
        watch(move || {
            let signal = signals.wait();
            terminal::restore();
            std::process::exit(128 + signal);
        })?;
        let left = Arc::new(AtomicBool::new(false));
        if io::stdin().is_terminal() {
            terminal::make_raw();
            tell_size(resized, vm.clone())?;
        }
        type_in(connection.try_clone()?, vm, left.clone())?;
        log.skip(BEFORE)?;
        let mut goes_on = true;
        while goes_on {
            goes_on = log
                .carry(show)
                .and_then(|()| log.wait(&connection))
                .or_else(super::stdout::nobody_reads)?;
        }
        if !left.load(Ordering::Acquire) {
            log.carry(show).map(|()| false).or_else(super::stdout::nobody_reads)?;
        }
        terminal::restore();
        Ok(0)
    }
}

fn show(bytes: &[u8]) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(bytes)?;
    stdout.flush()
}

/// Tells the VM the size of the terminal, now and whenever it changes.
fn tell_size(resized: Awaited, vm: Remote) -> io::Result<()> {
    watch(move || {
        loop {
            if let Some(size) = terminal::size()
                && let Err(e) = vm.resize(size)
            {
                log::debug!("the size of the terminal is not told: {e}");
            }
            resized.wait();
        }
    })
}

/// Sends what is typed, and does what is asked by escapes. `left` becomes true when that is to leave.
fn type_in(connection: UnixStream, vm: Remote, left: Arc<AtomicBool>) -> io::Result<()> {
    let is_terminal = io::stdin().is_terminal();
    watch(move || {
        let (mut room, mut typed) = ([0; 4096], Vec::new());
        let mut filter = EscapeFilter::new(escape::VISITOR);
        let mut guest = Guest { connection, is_full: false };
        loop {
            let count = match io::stdin().lock().read(&mut room) {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Ok(count @ 1..) => count,
                // What it writes is still of interest.
                Ok(0) | Err(_) => return,
            };
            let bytes = room.get(..count).unwrap_or_default();
            if !is_terminal {
                // Nobody is there to leave, and nothing of a file is lost: as slowly as the guest reads it. An
                // error: it has ended, and that is noticed elsewhere.
                if guest.connection.write_all(bytes).is_err() {
                    return;
                }
                continue;
            }
            typed.clear();
            let mut leaves = false;
            // One by one, for what comes after the escape is not the guest's.
            for byte in bytes.chunks(1) {
                filter.filter(byte, &mut typed, |key| match Escape::of(key) {
                    Some(Escape::Help) => tell!("{HELP}"),
                    Some(Escape::Leave) => leaves = true,
                    Some(Escape::End) => {
                        if let Err(e) = vm.kill() {
                            tell!("\nhusk: {e}\n");
                        }
                    }
                    None => {}
                });
                if leaves {
                    break;
                }
            }
            if guest.is_given(&typed).is_err() {
                return;
            }
            if leaves {
                left.store(true, Ordering::Release);
                // Its husk closes the other side when the next may come; one that hangs is left, too.
                let _ = guest.connection.shutdown(Shutdown::Write);
                std::thread::sleep(PATIENCE);
                let _ = guest.connection.shutdown(Shutdown::Both);
                return;
            }
        }
    })
}

/// The guest that is typed to. One that reads nothing keeps nobody from leaving.
struct Guest {
    connection: UnixStream,
    /// What was typed last did not fit any more.
    is_full: bool,
}

impl Guest {
    /// Gives it what is typed, as far as it takes that in a moment: the rest is lost, and that is said.
    fn is_given(&mut self, mut typed: &[u8]) -> io::Result<()> {
        let patience = if self.is_full { Duration::from_millis(1) } else { PATIENCE };
        self.connection.set_write_timeout(Some(patience))?;
        while !typed.is_empty() {
            match self.connection.write(typed) {
                Ok(count) => typed = typed.get(count..).unwrap_or_default(),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    if !self.is_full {
                        tell!("\nhusk: the guest reads nothing, and what is typed now is lost\n");
                    }
                    self.is_full = true;
                    return Ok(());
                }
                Err(e) => return Err(e),
            }
        }
        self.is_full = false;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_that_reads_nothing_takes_what_fits_and_holds_nobody_up() {
        let (connection, mut far) = UnixStream::pair().unwrap();
        let mut guest = Guest { connection, is_full: false };
        guest.is_given(b"first").unwrap();
        // As after one wait: this is to be quick.
        guest.is_full = true;
        // More than a socket takes.
        guest.is_given(&vec![b'x'; 4 << 20]).unwrap();
        assert!(guest.is_full);
        far.set_nonblocking(true).unwrap();
        let mut all = Vec::new();
        assert!(far.read_to_end(&mut all).is_err(), "the other end is open");
        assert!(all.starts_with(b"first") && all.len() < 4 << 20, "{}", all.len());
        guest.is_given(b"last").unwrap();
        assert!(!guest.is_full);
        drop(far);
        assert!(guest.is_given(b"x").is_err());
    }
}
