//! What this process may have, and what is said when that is not enough.

/// Lets a write that makes a file larger than this process may (`ulimit -f`) fail, as a write to a
/// full disk does, instead of ending the VM.
pub fn ignore_file_size_signal() {
    // SAFETY: no handler is installed, so no code runs at the signal; it cannot fail.
    unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
}

/// What helps against an error with these words, if it is a limit of this process' that was reached.
pub fn remedy(words: &str) -> Option<&'static str> {
    let is = |errno| words.contains(&std::io::Error::from_raw_os_error(errno).to_string());
    if is(libc::EMFILE) {
        return Some(
            "this process may have no more files open: allow it more with `ulimit -n`, as in \
             `ulimit -n 4096`",
        );
    }
    is(libc::EFBIG).then_some(
        "this process may make no larger files, which is true of what it keeps in memory, too: `ulimit -f` \
         says how large, and `ulimit -f unlimited` lifts that",
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_that_was_reached_is_named_with_the_way_out() {
        let remedy = |errno| {
            remedy(&format!("the guest's initramfs: {}", std::io::Error::from_raw_os_error(errno)))
        };
        assert!(remedy(libc::EFBIG).is_some_and(|words| words.contains("ulimit -f")));
        assert!(remedy(libc::EMFILE).is_some_and(|words| words.contains("ulimit -n")));
        assert_eq!(remedy(libc::ENOSPC), None);
    }
}
