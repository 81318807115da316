//! A signal that is waited for by a thread, as a message instead of an interruption.

use std::io;
use std::mem::MaybeUninit;

/// A signal, blocked in this thread and in every thread it starts from now on.
pub struct Awaited(libc::sigset_t);

impl Awaited {
    /// Blocks `signal`. Called before other threads are started.
    pub fn block(signal: libc::c_int) -> io::Result<Self> {
        let mut set = MaybeUninit::uninit();
        // SAFETY: sigemptyset initialises the set, sigaddset takes it then, and pthread_sigmask a
        // valid set.
        let (set, error) = unsafe {
            libc::sigemptyset(set.as_mut_ptr());
            let mut set = set.assume_init();
            libc::sigaddset(&mut set, signal);
            (set, libc::pthread_sigmask(libc::SIG_BLOCK, &set, std::ptr::null_mut()))
        };
        if error == 0 { Ok(Self(set)) } else { Err(io::Error::from_raw_os_error(error)) }
    }

    /// Waits for the next one.
    pub fn wait(&self) {
        let mut signal = 0;
        // SAFETY: a valid set and a valid place for the number.
        while unsafe { libc::sigwait(&self.0, &mut signal) } != 0 {}
    }
}
