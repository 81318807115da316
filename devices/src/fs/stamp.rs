//! Whether a file has changed since a guest opened it last: then its pages need not be read again.
//!
//! A change is seen by the time of the file's last change of status, which nobody can set. That time has steps, of
//! some milliseconds on most file systems: what has changed within the step before it was looked at may change
//! once more and look the same, so such a file is not believed yet.
//!
//! It is a time of writes. Stores of a host's program through a shared mapping move it only where the file
//! system is asked before a clean page becomes dirty, and those that follow do not (tmpfs: none does): no stamp
//! tells of them. `docs/devices/fs.md` says so to the user.

use std::time::{Duration, SystemTime};

/// The longest step of a file system's times there is (FAT's) is 2 s.
const STEP: Duration = Duration::from_secs(3);

/// How a file looked when it was opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stamp {
    changed: (i64, i64),
    size: i64,
}

impl Stamp {
    /// How it looks, if it has looked so for long enough to be told from what it may become.
    pub(super) fn of(stat: &libc::stat, now: SystemTime) -> Option<Stamp> {
        let seconds = u64::try_from(stat.st_ctime).ok()?;
        let then = SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds))?;
        // One that lies in the future is a clock's that is not ours.
        let age = now.duration_since(then).ok()?;
        let changed = (stat.st_ctime, stat.st_ctime_nsec);
        (age >= STEP).then_some(Stamp { changed, size: stat.st_size })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_has_just_changed_or_will_have_is_not_believed() {
        // SAFETY: all zeroes is a stat.
        let mut stat: libc::stat = unsafe { std::mem::zeroed() };
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1000);
        for (changed, believed) in [
            (0, true),
            (990, true),
            (997, true),
            (998, false),
            (1000, false),
            (2000, false),
            (-1, false),
        ] {
            stat.st_ctime = changed;
            assert_eq!(Stamp::of(&stat, now).is_some(), believed, "{changed}");
        }
        stat.st_ctime = 5;
        let before = Stamp::of(&stat, now);
        stat.st_ctime_nsec = 1;
        assert_ne!(Stamp::of(&stat, now), before);
    }
}
