//! The user's terminal: raw while a guest has it, and restored on every way out.

use std::io::IsTerminal;
use std::mem::MaybeUninit;
use std::sync::{Mutex, Once, PoisonError};

/// The settings to go back to, while the terminal is raw.
static SAVED: Mutex<Option<libc::termios>> = Mutex::new(None);

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
    let settings = unsafe { settings.assume_init() };
    let mut raw = settings;
    // SAFETY: both calls take a valid pointer to an initialised structure.
    unsafe {
        libc::cfmakeraw(&mut raw);
        if libc::tcsetattr(libc::STDIN_FILENO, libc::TCSANOW, &raw) != 0 {
            return;
        }
    }
    *SAVED.lock().unwrap_or_else(PoisonError::into_inner) = Some(settings);
    ON_PANIC.call_once(|| {
        let previous = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            restore();
            previous(info);
        }));
    });
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
    SAVED.lock().unwrap_or_else(PoisonError::into_inner).is_some()
}

/// Brings the terminal back. Harmless at any time, any number of times.
pub fn restore() {
    let saved = SAVED.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let Some(settings) = saved {
        // SAFETY: the settings came from tcgetattr.
        unsafe { libc::tcsetattr(libc::STDIN_FILENO, libc::TCSANOW, &settings) };
    }
}

/// Restores the terminal when dropped.
pub struct Restore;

impl Drop for Restore {
    fn drop(&mut self) {
        restore();
    }
}
