//! What this process may have.

/// Lets this process have as many descriptors as it is allowed at most: each connection of the
/// guest's sockets takes one, and the usual limit of 1024 is for programs that use select(2), which
/// husk does not. What husk starts with is kept when the host refuses.
pub fn raise_descriptors() {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: getrlimit writes an rlimit, setrlimit reads one.
    unsafe {
        if libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) == 0 {
            limit.rlim_cur = limit.rlim_max;
            libc::setrlimit(libc::RLIMIT_NOFILE, &limit);
        }
    }
}
