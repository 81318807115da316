//! Our terminal while the command inside has it: raw mode, put back on every way out (also SIGTERM
//! and SIGHUP), and its size.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result};

const STDIN: libc::c_int = libc::STDIN_FILENO;

static ORIGINAL: OnceLock<libc::termios> = OnceLock::new();
static RAW: AtomicBool = AtomicBool::new(false);

/// True when both our input and our output are a terminal.
pub fn present() -> bool {
    // SAFETY: isatty only looks at the descriptor.
    unsafe { libc::isatty(STDIN) == 1 && libc::isatty(libc::STDOUT_FILENO) == 1 }
}

/// Rows and columns of our terminal.
pub fn window() -> (u16, u16) {
    let mut size = libc::winsize { ws_row: 0, ws_col: 0, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: TIOCGWINSZ fills in the winsize it is given, which outlives the call.
    let got = unsafe { libc::ioctl(STDIN, libc::TIOCGWINSZ, &raw mut size) };
    if got != 0 || size.ws_row == 0 || size.ws_col == 0 {
        return (24, 80);
    }
    (size.ws_row, size.ws_col)
}

/// Raw mode for as long as this lives.
pub struct Raw;

impl Raw {
    pub fn enter() -> Result<Self> {
        // SAFETY: termios is plain data, for which all zeros is a value; tcgetattr fills it in.
        let mut now: libc::termios = unsafe { std::mem::zeroed() };
        // SAFETY: `now` outlives the call.
        if unsafe { libc::tcgetattr(STDIN, &raw mut now) } != 0 {
            return Err(std::io::Error::last_os_error()).context("reading the terminal's mode");
        }
        let _ = ORIGINAL.set(now);
        let mut mode = now;
        // SAFETY: both functions only work on the termios they are given.
        let set = unsafe {
            libc::cfmakeraw(&raw mut mode);
            libc::tcsetattr(STDIN, libc::TCSANOW, &raw const mode)
        };
        if set != 0 {
            return Err(std::io::Error::last_os_error()).context("setting the terminal raw");
        }
        RAW.store(true, Ordering::SeqCst);
        for signal in [libc::SIGTERM, libc::SIGHUP, libc::SIGINT] {
            // SAFETY: the handler calls only what signal-safety(7) allows.
            unsafe { libc::signal(signal, on_signal as *const () as libc::sighandler_t) };
        }
        Ok(Self)
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        restore();
    }
}

fn restore() {
    if RAW.swap(false, Ordering::SeqCst)
        && let Some(original) = ORIGINAL.get()
    {
        // SAFETY: `original` is a termios that tcgetattr filled in.
        unsafe { libc::tcsetattr(STDIN, libc::TCSANOW, original) };
    }
}

extern "C" fn on_signal(signal: libc::c_int) {
    restore();
    // SAFETY: _exit ends the process at once; QEMU dies with it (PR_SET_PDEATHSIG).
    unsafe { libc::_exit(128 + signal) };
}
