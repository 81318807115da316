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

/// Descriptors for a directory of some size that is shared, and everything else: Linux has 90,000 files. It is
/// also what a guest can make husk of a privileged user hold, in the host's memory.
const DESCRIPTORS: libc::rlim_t = 1 << 18;

/// The hard limit that Linux begins with (`INR_OPEN_MAX`). Where it stands nobody has chosen one.
const UNCHOSEN: libc::rlim_t = 4096;

/// Lets this process have as many descriptors as it is allowed at most, and [`DESCRIPTORS`] where nobody has
/// said how many and it may say so itself (CAP_SYS_RESOURCE): each connection of the guest's sockets takes one, and each file it
/// knows of a shared directory, and the usual limit of 1024 is for programs that use select(2), which
/// husk does not. What husk starts with is kept when the host refuses.
pub fn raise_descriptors() {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: getrlimit writes an rlimit, setrlimit reads one.
    unsafe {
        if libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) != 0 {
            return;
        }
        let more = libc::rlimit { rlim_cur: DESCRIPTORS, rlim_max: DESCRIPTORS };
        if limit.rlim_max == UNCHOSEN && libc::setrlimit(libc::RLIMIT_NOFILE, &more) == 0 {
            return;
        }
        limit.rlim_cur = limit.rlim_max;
        libc::setrlimit(libc::RLIMIT_NOFILE, &limit);
    }
}
