//! Which ranges of files the guest's owners have locked with fcntl(2), kept beside what the host's kernel
//! has of them, for the one thing that it cannot tell us: who waits for whom.
//!
//! Owners that wait for each other do so for good, and a guest's process that waits for us cannot even be
//! killed. Linux refuses the lock that would close such a circle (EDEADLK), but not between open files,
//! which is what a guest's owners are to the host. So [`Claims::close_a_circle`] finds it, as
//! `posix_locks_deadlock` in Linux' `fs/locks.c` does: what owners of the host wait for is not known, and
//! neither are those of flock(2), for which Linux does not look either.

use std::collections::{HashMap, HashSet};
use std::ops::RangeInclusive;

use rangemap::RangeInclusiveMap;

use super::errno::{Errno, Result};

/// So many ranges a guest may have locked at once; the host's kernel keeps each of them, too.
const RANGES: usize = 1 << 16;

/// A lock that an owner has or wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Claim {
    pub node: u64,
    pub owner: u64,
    pub range: RangeInclusive<u64>,
    /// For itself alone.
    pub write: bool,
}

/// The ranges of one owner in one file, and whether they are its alone.
type Ranges = RangeInclusiveMap<u64, bool>;

/// What owners have.
#[derive(Default)]
pub(super) struct Claims {
    nodes: HashMap<u64, HashMap<u64, Ranges>>,
    /// Ranges in all.
    count: usize,
}

impl Claims {
    /// Whether there is room for what one more lock can add: a range, and another if it cuts one in two.
    ///
    /// # Errors
    /// `ENOLCK` if there is not.
    pub fn has_room(&self) -> Result<()> {
        if self.count + 2 <= RANGES { Ok(()) } else { Err(Errno(libc::ENOLCK)) }
    }

    /// Whether a range may be given up. Unlocking the middle of a range leaves two, so by unlocking there
    /// may come to be up to twice [`RANGES`].
    ///
    /// # Errors
    /// `ENOLCK` if there is not.
    pub fn may_give_up(&self, claim: &Claim) -> Result<()> {
        let (start, end) = (claim.range.start(), claim.range.end());
        let ranges = self.nodes.get(&claim.node).and_then(|owners| owners.get(&claim.owner));
        let around = ranges.and_then(|ranges| ranges.get_key_value(start));
        let cuts = around.is_some_and(|(around, _)| around.start() < start && end < around.end());
        if cuts && self.count >= 2 * RANGES { Err(Errno(libc::ENOLCK)) } else { Ok(()) }
    }

    /// Notes that an owner was given a lock, in place of what it had in that range.
    pub fn take(&mut self, claim: Claim) {
        let Claim { node, owner, range, write } = claim;
        self.change(node, owner, |ranges| ranges.insert(range, write));
    }

    /// Notes that an owner gave up what it had in a range.
    pub fn give_up(&mut self, node: u64, owner: u64, range: RangeInclusive<u64>) {
        self.change(node, owner, |ranges| ranges.remove(range));
    }

    /// Notes that an owner gave up all it had in a file.
    pub fn give_up_all(&mut self, node: u64, owner: u64) {
        self.change(node, owner, Ranges::clear);
    }

    /// Forgets everybody.
    pub fn clear(&mut self) {
        *self = Self::default();
    }

    fn change(&mut self, node: u64, owner: u64, change: impl FnOnce(&mut Ranges)) {
        let owners = self.nodes.entry(node).or_default();
        let ranges = owners.entry(owner).or_default();
        let before = ranges.len();
        change(ranges);
        let after = ranges.len();
        self.count = self.count - before + after;
        if after == 0 {
            owners.remove(&owner);
        }
        if owners.is_empty() {
            self.nodes.remove(&node);
        }
    }

    /// Whether the owner of `wanted` would wait for somebody who, through whatever of `waiting`, waits
    /// for that owner.
    pub fn close_a_circle(&self, wanted: &Claim, waiting: &[Claim]) -> bool {
        let all = [waiting, std::slice::from_ref(wanted)].concat();
        self.is_in_a_circle(waiting.len(), &all, &mut HashMap::new())
    }

    /// Which of those that are `waiting` waits for another that waits for it, through whatever others; the last.
    pub fn find_circle(&self, waiting: &[Claim]) -> Option<usize> {
        let mut known = HashMap::new();
        (0..waiting.len()).rev().find(|n| self.is_in_a_circle(*n, waiting, &mut known))
    }

    /// Whether one of `waiting` waits for its own owner in the end. `known` has for whom each waits, which is found
    /// out once.
    fn is_in_a_circle(
        &self,
        n: usize,
        waiting: &[Claim],
        known: &mut HashMap<usize, Vec<usize>>,
    ) -> bool {
        let owner = |n: usize| waiting.get(n).map(|claim| claim.owner);
        let (mut seen, mut next) = (HashSet::new(), vec![n]);
        while let Some(at) = next.pop() {
            for &other in &*known.entry(at).or_insert_with(|| self.waited_for(at, waiting)) {
                if owner(other) == owner(n) {
                    return true;
                }
                if seen.insert(other) {
                    next.push(other);
                }
            }
        }
        false
    }

    /// Those of `waiting` whose owners' locks are in the way of one of them.
    fn waited_for(&self, n: usize, waiting: &[Claim]) -> Vec<usize> {
        let owners: HashSet<u64> =
            waiting.get(n).into_iter().flat_map(|claim| self.in_the_way(claim)).collect();
        let others = waiting.iter().enumerate().filter(|(_, claim)| owners.contains(&claim.owner));
        others.map(|(other, _)| other).collect()
    }

    /// The owners whose locks are in the way of one.
    pub fn in_the_way<'a>(&'a self, claim: &'a Claim) -> impl Iterator<Item = u64> + 'a {
        let owners = self.nodes.get(&claim.node).into_iter().flatten();
        let others = owners.filter(|(owner, _)| **owner != claim.owner);
        let blocking = others.filter(|(_, ranges)| {
            ranges.overlapping(claim.range.clone()).any(|(_, write)| *write || claim.write)
        });
        blocking.map(|(owner, _)| *owner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claim(node: u64, owner: u64, range: RangeInclusive<u64>, write: bool) -> Claim {
        Claim { node, owner, range, write }
    }

    #[test]
    fn of_those_that_wait_the_last_of_a_circle_is_found() {
        let mut claims = Claims::default();
        let all = 0..=u64::MAX;
        for (node, owner) in [(1, 10), (2, 20), (3, 30)] {
            claims.take(claim(node, owner, all.clone(), true));
        }
        let wants = |owner, node| claim(node, owner, all.clone(), false);
        assert_eq!(claims.find_circle(&[]), None);
        assert_eq!(claims.find_circle(&[wants(10, 2), wants(20, 3), wants(40, 1)]), None);
        let circle = [wants(10, 2), wants(20, 3), wants(30, 1), wants(40, 1)];
        assert_eq!(claims.find_circle(&circle), Some(2));
        // A second request of an owner's that is in a circle is told of as well.
        assert_eq!(claims.find_circle(&[wants(10, 2), wants(20, 1), wants(20, 3)]), Some(1));
    }

    #[test]
    fn owners_that_would_wait_for_each_other_are_told() {
        let mut claims = Claims::default();
        claims.take(claim(1, 10, 0..=9, true));
        claims.take(claim(2, 20, 0..=9, true));
        claims.take(claim(3, 30, 0..=9, true));
        let (a, b) = (claim(2, 10, 5..=5, true), claim(3, 20, 0..=99, false));
        let c = claim(1, 30, 9..=12, false);
        assert!(!claims.close_a_circle(&a, &[]));
        assert!(!claims.close_a_circle(&b, std::slice::from_ref(&a)));
        assert!(claims.close_a_circle(&c, &[a.clone(), b.clone()]));
        // Without one of the links there is no circle, and none where nothing is in the way.
        assert!(!claims.close_a_circle(&c, std::slice::from_ref(&a)));
        assert!(!claims.close_a_circle(&claim(1, 30, 10..=12, true), &[a.clone(), b.clone()]));
        claims.give_up_all(2, 20);
        assert!(!claims.close_a_circle(&c, &[a, b]));
    }

    #[test]
    fn who_only_reads_is_in_the_way_of_who_writes() {
        let mut claims = Claims::default();
        for owner in [1, 2] {
            claims.take(claim(1, owner, 0..=0, false));
        }
        let wants = |owner, write| claim(1, owner, 0..=0, write);
        assert!(!claims.close_a_circle(&wants(1, true), &[]));
        assert!(claims.close_a_circle(&wants(2, true), &[wants(1, true)]));
        assert!(!claims.close_a_circle(&wants(2, false), &[wants(1, true)]));
    }

    #[test]
    fn others_that_wait_for_each_other_are_none_of_our_business_and_end_the_search() {
        let mut claims = Claims::default();
        claims.take(claim(1, 1, 0..=0, true));
        claims.take(claim(1, 2, 1..=1, true));
        let waiting = [claim(1, 1, 1..=1, true), claim(1, 2, 0..=0, true)];
        assert!(!claims.close_a_circle(&claim(1, 3, 0..=1, true), &waiting));
    }

    #[test]
    fn what_is_given_up_is_forgotten_and_there_is_an_end_to_what_is_kept() {
        let mut claims = Claims::default();
        claims.take(claim(1, 1, 0..=i64::MAX as u64, true));
        claims.give_up(1, 1, 5..=5);
        assert_eq!(claims.count, 2);
        claims.take(claim(1, 1, 5..=5, true));
        assert_eq!(claims.count, 1);
        claims.give_up(1, 1, 0..=i64::MAX as u64);
        assert!(claims.nodes.is_empty());
        for n in 0..RANGES as u64 - 1 {
            claims.has_room().unwrap();
            claims.take(claim(1, 1, 2 * n..=2 * n, true));
        }
        assert_eq!(claims.has_room().unwrap_err().0, libc::ENOLCK);
        claims.clear();
        claims.has_room().unwrap();
    }

    #[test]
    fn whatever_is_given_up_goes_unless_it_cuts_more_in_two_than_there_is_room_for() {
        let mut claims = Claims::default();
        claims.take(claim(1, 1, 0..=u64::MAX, true));
        let mut holes = (1..).map(|n| claim(1, 1, 10 * n..=10 * n, true));
        let refused = loop {
            let hole = holes.next().unwrap();
            match claims.may_give_up(&hole) {
                Ok(()) => claims.give_up(hole.node, hole.owner, hole.range),
                Err(why) => break (why.0, hole.range),
            }
        };
        let at = 20 * RANGES as u64;
        assert_eq!((claims.count, refused), (2 * RANGES, (libc::ENOLCK, at..=at)));
        // The whole of one, a part at an end of one, what was nobody's, what is another's.
        for range in [at - 9..=at, 11..=19, 11..=12, 18..=19, 15..=25, 10..=10, 0..=u64::MAX] {
            claims.may_give_up(&claim(1, 1, range, true)).unwrap();
        }
        claims.may_give_up(&claim(1, 2, at..=at, true)).unwrap();
        claims.may_give_up(&claim(2, 1, at..=at, true)).unwrap();
    }
}
