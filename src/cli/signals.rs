//! The signals that ask husk to end, or to stop for a while, taken as messages instead of
//! interruptions.

use std::io;
use std::mem::MaybeUninit;

use super::terminal;

/// The signals that ask husk to end.
const ENDING: [libc::c_int; 4] = [libc::SIGTERM, libc::SIGINT, libc::SIGHUP, libc::SIGQUIT];
/// The signals of a shell's job control that husk has something to do at: stop, and go on.
const JOB_CONTROL: [libc::c_int; 2] = [libc::SIGTSTP, libc::SIGCONT];

/// What the signals that ask husk to end are called.
pub fn name(signal: libc::c_int) -> &'static str {
    match signal {
        libc::SIGTERM => "SIGTERM",
        libc::SIGINT => "SIGINT",
        libc::SIGHUP => "SIGHUP",
        libc::SIGQUIT => "SIGQUIT",
        _ => "a signal",
    }
}

/// The signals, blocked in this thread and in every thread it starts from now on.
pub struct Signals(libc::sigset_t);

impl Signals {
    /// Blocks the signals, but those that husk was started to ignore, by `nohup` or a shell that
    /// runs it in the background: waiting for these would undo that. Called before other threads are
    /// started.
    pub fn block() -> io::Result<Self> {
        let mut set = MaybeUninit::uninit();
        // SAFETY: sigemptyset initialises the set, sigaddset takes valid signal numbers, and
        // pthread_sigmask a valid set.
        let (set, error) = unsafe {
            libc::sigemptyset(set.as_mut_ptr());
            let mut set = set.assume_init();
            let wanted = ENDING.into_iter().chain(JOB_CONTROL);
            for signal in wanted.filter(|signal| !is_ignored(*signal)) {
                libc::sigaddset(&mut set, signal);
            }
            (set, libc::pthread_sigmask(libc::SIG_BLOCK, &set, std::ptr::null_mut()))
        };
        if error == 0 { Ok(Self(set)) } else { Err(io::Error::from_raw_os_error(error)) }
    }

    /// Waits for the next one that asks husk to end. Meanwhile husk stops and goes on as its shell
    /// wants; the terminal is the shell's in between.
    pub fn wait(&self) -> libc::c_int {
        loop {
            let mut signal = 0;
            // SAFETY: a valid set and a valid place for the number.
            if unsafe { libc::sigwait(&self.0, &mut signal) } != 0 {
                continue;
            }
            match signal {
                libc::SIGTSTP => {
                    terminal::lend();
                    stop();
                    terminal::take_back();
                }
                // SIGSTOP, say, came before it, which nobody is told of.
                libc::SIGCONT => terminal::take_back(),
                ending => return ending,
            }
        }
    }
}

/// Whether whoever started this process wants it to ignore `signal`.
fn is_ignored(signal: libc::c_int) -> bool {
    let mut action = MaybeUninit::<libc::sigaction>::uninit();
    // SAFETY: a valid signal number, no new action, and a place for the one there is, which is
    // filled when the call succeeds, and read only then.
    unsafe {
        libc::sigaction(signal, std::ptr::null(), action.as_mut_ptr()) == 0
            && action.assume_init().sa_sigaction == libc::SIG_IGN
    }
}

/// Stops this process by SIGTSTP, as it would if it had not been blocked; returns when it goes on.
/// Where nobody could make it go on (an orphaned process group), Linux does not stop it.
fn stop() {
    let mut set = MaybeUninit::uninit();
    // SAFETY: sigemptyset initialises the set, the other calls take a valid set and valid signal
    // numbers. Nobody has given SIGTSTP a handler, so no code runs at it.
    unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        let mut set = set.assume_init();
        libc::sigaddset(&mut set, libc::SIGTSTP);
        libc::raise(libc::SIGTSTP);
        // Here it is delivered, and the whole process stops.
        libc::pthread_sigmask(libc::SIG_UNBLOCK, &set, std::ptr::null_mut());
        libc::pthread_sigmask(libc::SIG_BLOCK, &set, std::ptr::null_mut());
    }
}
