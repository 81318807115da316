//! Whether a guest may keep a directory's entries, and whether it is to use those that it has kept.
//!
//! As of a file's pages, what it has kept is right as long as the directory looks as it did when it was opened
//! last ([`super::stamp`]). To read it anew is not in vain, though: with the entries the guest is told what they
//! are, and need not ask for each of them when it has forgotten (`READDIRPLUS`). Who has asked for most of them one
//! by one before it opens the directory has no use for that: `git status` does so. Who asks afterwards has (`du`).

use std::time::{Duration, Instant};

use super::share::Cache;
use super::wire::{FOPEN_CACHE_DIR, FOPEN_KEEP_CACHE};

/// File systems (`f_type` of statfs(2), Linux `include/uapi/linux/magic.h`) that move the time of a directory's
/// last change of status whenever a name in it comes, goes or becomes another file's: ext2 to ext4, XFS, btrfs, F2FS,
/// tmpfs, overlay, ZFS. Those of the kernel's own (sysfs, cgroups) do not, nor does FUSE if its server does not.
const TIMED: [i64; 7] =
    [0xef53, 0x5846_5342, 0x9123_683e, 0xf2f5_2010, 0x0102_1994, 0x794c_7630, 0x2fc1_2fc1];

/// Whether a directory on a file system of that kind has changed can be seen.
pub(super) fn is_timed(kind: i64) -> bool {
    TIMED.contains(&kind)
}

/// What a guest did last with a directory's names.
#[derive(Default)]
pub(super) struct Listing {
    /// Entries there were when the guest read the directory to its end, and that it was told of since it began anew.
    entries: u32,
    told: u32,
    /// Names that it looked up, and when it began with that.
    asked: u32,
    since: Option<Instant>,
    /// When it opened the directory last.
    opened: Option<Instant>,
    /// Whether it can be seen that the directory has changed: its file system is always the same.
    timed: Option<bool>,
}

impl Listing {
    /// Whether it can be seen that the directory has changed; the kind of its file system is asked for once.
    pub(super) fn is_timed(&mut self, kind: impl FnOnce() -> Option<i64>) -> bool {
        *self.timed.get_or_insert_with(|| kind().is_some_and(is_timed))
    }

    /// The guest was told of so many entries, from a position on; there are no more when it is none.
    pub(super) fn was_read(&mut self, position: u64, entries: u32) {
        if position == 0 {
            self.told = 0;
        }
        self.told = self.told.saturating_add(entries);
        if entries == 0 {
            self.entries = self.told;
        }
    }

    /// The guest was told of one name that it asked for.
    pub(super) fn was_asked(&mut self, now: Instant) {
        if self.since.is_none() || self.opened >= self.since {
            (self.asked, self.since) = (0, Some(now));
        }
        self.asked = self.asked.saturating_add(1);
    }

    /// Whether the guest has asked what most entries are, and for the sake of its opening the directory now: it
    /// believes the answers yet, or that was nearer to now than to the time when it opened the directory last.
    fn is_known(&self, now: Instant) -> bool {
        let Some(since) = self.since else { return false };
        let before =
            self.opened.map_or(Duration::ZERO, |opened| since.saturating_duration_since(opened));
        let ago = now.saturating_duration_since(since);
        self.asked >= self.entries / 2 && ago < before.max(Cache::Auto.lifetime())
    }

    /// The guest opens the directory, which looks the `same` as when it did so last (`None`: that cannot be told).
    /// The flags of the answer.
    pub(super) fn open(&mut self, same: Option<bool>, now: Instant) -> u32 {
        let is_known = self.is_known(now);
        self.opened = Some(now);
        match same {
            None => 0,
            // What it has kept goes, and it keeps what it reads.
            Some(false) => FOPEN_CACHE_DIR,
            Some(true) if is_known => FOPEN_CACHE_DIR | FOPEN_KEEP_CACHE,
            Some(true) => FOPEN_KEEP_CACHE,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const USED: u32 = FOPEN_CACHE_DIR | FOPEN_KEEP_CACHE;
    const TOLD: u32 = FOPEN_KEEP_CACHE;

    const fn ms(count: u64) -> Duration {
        Duration::from_millis(count)
    }

    /// A directory of 20 entries, read a while ago.
    fn read(then: Instant) -> Listing {
        let mut listing = Listing::default();
        assert_eq!(listing.open(Some(false), then), FOPEN_CACHE_DIR);
        for (position, entries) in [(0, 50), (0, 12), (7, 8), (5, 0)] {
            listing.was_read(position, entries);
        }
        listing
    }

    /// What is said to who opens it, unchanged, so long after asking for so many, and that so long after reading it.
    fn said(later: Duration, asked: u32, ago: Duration) -> u32 {
        let then = Instant::now();
        let mut listing = read(then);
        (0..asked).for_each(|_| listing.was_asked(then + later));
        listing.open(Some(true), then + later + ago)
    }

    #[test]
    fn entries_are_used_again_by_who_has_asked_what_most_of_them_are_before() {
        assert_eq!(said(ms(1), 20, ms(999)), USED);
        assert_eq!(said(ms(2000), 10, ms(1500)), USED);
        // All others are told, and keep what they have for another time.
        assert_eq!(said(ms(2000), 9, ms(0)), TOLD);
        assert_eq!(said(ms(2000), 0, ms(0)), TOLD);
        assert_eq!(said(ms(1), 20, ms(1000)), TOLD, "it asked because it had read them");
        assert_eq!(said(ms(2000), 20, ms(2000)), TOLD);
    }

    #[test]
    fn what_was_asked_before_another_opening_counts_as_long_as_it_is_believed() {
        let then = Instant::now();
        let mut listing = read(then);
        let at = |ms| then + Duration::from_millis(ms);
        (0..20).for_each(|n| listing.was_asked(at(5000 + n)));
        let mut open = |ms| listing.open(Some(true), at(ms));
        assert_eq!([5100, 5900, 6100].map(&mut open), [USED, USED, TOLD]);
        // Those of an opening begin anew.
        listing.was_asked(at(9000));
        assert_eq!(listing.open(Some(true), at(9001)), TOLD);
    }

    #[test]
    fn what_was_kept_of_a_directory_that_has_changed_goes() {
        let now = Instant::now();
        let mut listing = Listing::default();
        listing.was_asked(now);
        assert_eq!([None, Some(false), Some(true)].map(|same| listing.open(same, now)), [0, 8, 10]);
    }
}
