//! SIGTERM, SIGINT and SIGHUP, taken as messages instead of interruptions.

use std::io;
use std::mem::MaybeUninit;

/// The signals that ask husk to end.
const ENDING: [libc::c_int; 3] = [libc::SIGTERM, libc::SIGINT, libc::SIGHUP];

/// The signals, blocked in this thread and in every thread it starts from now on.
pub struct Signals(libc::sigset_t);

impl Signals {
    /// Blocks the signals. Called before other threads are started.
    pub fn block() -> io::Result<Self> {
        let mut set = MaybeUninit::uninit();
        // SAFETY: sigemptyset initialises the set, sigaddset takes valid signal numbers, and
        // pthread_sigmask a valid set.
        let (set, error) = unsafe {
            libc::sigemptyset(set.as_mut_ptr());
            let mut set = set.assume_init();
            for signal in ENDING {
                libc::sigaddset(&mut set, signal);
            }
            (set, libc::pthread_sigmask(libc::SIG_BLOCK, &set, std::ptr::null_mut()))
        };
        if error == 0 { Ok(Self(set)) } else { Err(io::Error::from_raw_os_error(error)) }
    }

    /// Waits for the next one.
    pub fn wait(&self) -> libc::c_int {
        loop {
            let mut signal = 0;
            // SAFETY: a valid set and a valid place for the number.
            if unsafe { libc::sigwait(&self.0, &mut signal) } == 0 {
                return signal;
            }
        }
    }
}
