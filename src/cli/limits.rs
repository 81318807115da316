//! What this process may have, and what is said when that is not enough.

/// Lets a write that makes a file larger than this process may (`ulimit -f`) fail, as a write to a
/// full disk does, instead of ending the VM.
pub fn ignore_file_size_signal() {
    // SAFETY: no handler is installed, so no code runs at the signal; it cannot fail.
    unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
}

/// What helps against an error with these words, if it is that this process has too many files open.
pub fn remedy(words: &str) -> Option<&'static str> {
    let too_many = std::io::Error::from_raw_os_error(libc::EMFILE).to_string();
    words.contains(&too_many).then_some(
        "this process may have no more files open: allow it more with `ulimit -n`, as in \
         `ulimit -n 4096`",
    )
}

/// Lets this process have as many descriptors as it is allowed at most: each connection of the
/// guest's sockets takes one, and each file it knows of a shared directory, and the usual limit of 1024 is for programs that use select(2), which
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
