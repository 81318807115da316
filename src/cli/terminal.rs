//! The user's terminal: raw while a guest has it, and restored on every way out.

use std::io::IsTerminal;
use std::mem::MaybeUninit;
use std::sync::{Mutex, MutexGuard, Once, PoisonError};

/// What was found and what was made of it, while a guest has the terminal.
static TAKEN: Mutex<Option<Taken>> = Mutex::new(None);

struct Taken {
    /// The settings to go back to.
    before: libc::termios,
    raw: libc::termios,
    /// False while this process is stopped, and the terminal is as it was before.
    is_raw: bool,
}

fn taken() -> MutexGuard<'static, Option<Taken>> {
    TAKEN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Makes the terminal on standard input raw. Does nothing when there is none.
pub fn make_raw() {
    static ON_PANIC: Once = Once::new();
    if !std::io::stdin().is_terminal() {
        return;
    }
    let mut settings = MaybeUninit::<libc::termios>::uninit();
    // SAFETY: tcgetattr fills the structure behind the pointer or fails.
    if unsafe { libc::tcgetattr(libc::STDIN_FILENO, settings.as_mut_ptr()) } != 0 {
        return;
    }
    // SAFETY: tcgetattr succeeded and filled it.
    let before = unsafe { settings.assume_init() };
    let mut raw = before;
    // SAFETY: a valid pointer to an initialised structure.
    unsafe { libc::cfmakeraw(&mut raw) };
    ON_PANIC.call_once(|| {
        let previous = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            restore();
            previous(info);
        }));
    });
    let mut taken = taken();
    if set(&raw) {
        *taken = Some(Taken { before, raw, is_raw: true });
    }
}

/// Whether the terminal on standard input is another job's now: setting it, or reading from it, stops a
/// job in the background (SIGTTOU, SIGTTIN).
pub fn is_anothers() -> bool {
    // SAFETY: both take plain numbers and touch no memory.
    let (foreground, own) = unsafe { (libc::tcgetpgrp(libc::STDIN_FILENO), libc::getpgrp()) };
    // No answer: it is not the terminal by which a shell controls its jobs.
    foreground > 0 && foreground != own
}

/// Sets the terminal on standard input; says whether that was possible.
fn set(settings: &libc::termios) -> bool {
    // SAFETY: a valid pointer to settings that came from tcgetattr.
    unsafe { libc::tcsetattr(libc::STDIN_FILENO, libc::TCSANOW, settings) == 0 }
}

/// The size of the window of the terminal on standard input, where it has one.
pub fn size() -> Option<husk::WindowSize> {
    let mut size = MaybeUninit::<libc::winsize>::uninit();
    // SAFETY: TIOCGWINSZ fills the structure behind the pointer or fails.
    if unsafe { libc::ioctl(libc::STDIN_FILENO, libc::TIOCGWINSZ, size.as_mut_ptr()) } != 0 {
        return None;
    }
    // SAFETY: TIOCGWINSZ succeeded and filled it.
    let size = unsafe { size.assume_init() };
    let known = size.ws_col > 0 && size.ws_row > 0;
    known.then_some(husk::WindowSize { columns: size.ws_col, rows: size.ws_row })
}

/// Whether the terminal is raw now.
pub fn is_raw() -> bool {
    taken().as_ref().is_some_and(|taken| taken.is_raw)
}

/// Lends the terminal to the shell, as it was: this process is about to stop.
pub fn lend() {
    if let Some(taken) = &mut *taken() {
        set(&taken.before);
        taken.is_raw = false;
    }
}

/// Makes the terminal raw again if it was before this process stopped. Whoever had it meanwhile may
/// have changed it, also when there was no time to lend it.
pub fn take_back() {
    if let Some(taken) = &mut *taken() {
        taken.is_raw = set(&taken.raw);
    }
}

/// Brings the terminal back. Harmless at any time, any number of times.
pub fn restore() {
    if let Some(taken) = taken().take() {
        set(&taken.before);
    }
}

/// Restores the terminal when dropped.
pub struct Restore;

impl Drop for Restore {
    fn drop(&mut self) {
        restore();
    }
}

#[cfg(test)]
mod tests;
