//! Whether to let the guest go on for a moment before its requests are served, so that there are more of them.
//!
//! Where guest and worker share a processor, the worker that a doorbell wakes takes the vCPU's place at once.
//! A guest that asks for many things at a time (threads at a shared directory, a disk's queue) then pays exits, an
//! interrupt and four changes of thread for each request. A worker of `SCHED_BATCH` (sched(7)) waits until the vCPU has nothing more to do, or has had
//! its turn: the others ask, too, and without a doorbell. A thread that is alone with its request gains nothing by
//! that, and neither does a guest that computes meanwhile: so it is tried, and tried rarely where it does
//! not pay. Where a processor is free, the worker runs there at once either way.

use std::cell::RefCell;

/// It pays when so many requests are found at a time.
const PAYS: usize = 3;
/// Rounds in which it did not pay, one after the other, that end a try.
const POOR: u8 = 3;
/// Rounds until the next one, at most.
const RARELY: u16 = 128;

thread_local! {
    /// A worker's policy is for all that runs on it, and outlives a driver's reset.
    static WORKER: RefCell<Gather> = RefCell::default();
}

/// To be called by a worker before a round for the guest that finds so many requests.
pub(super) fn before_round(found: usize) {
    WORKER.with_borrow_mut(|worker| worker.before_round(found));
}

/// The same before a round that gains nothing by more requests: the guest has only so much credit for what it
/// sends, and waits for whoever takes it.
pub(super) fn at_once() {
    WORKER.with_borrow_mut(Gather::at_once);
}

/// What has been learnt of the guest by one worker.
#[derive(Default)]
struct Gather {
    /// Whether the worker's policy is ours to change: not where the user has chosen one.
    may: Option<bool>,
    /// The worker waits for its turn.
    patient: bool,
    poor: u8,
    /// Rounds until the next try, and until the one after that, should it be in vain.
    skip: u16,
    then: u16,
}

impl Gather {
    fn before_round(&mut self, found: usize) {
        let may = *self.may.get_or_insert_with(|| policy() == libc::SCHED_OTHER);
        if may && let Some(patient) = self.learn(found) {
            set_policy(patient);
        }
    }

    fn at_once(&mut self) {
        if std::mem::take(&mut self.patient) {
            self.skip = RARELY;
            set_policy(false);
        }
    }

    /// Whether to be patient from now on, if that changes.
    fn learn(&mut self, found: usize) -> Option<bool> {
        if found == 0 {
            return None;
        }
        if !self.patient {
            if self.skip > 0 {
                self.skip -= 1;
                return None;
            }
            (self.patient, self.poor) = (true, 0);
            return Some(true);
        }
        if found >= PAYS {
            (self.poor, self.then) = (0, 0);
            return None;
        }
        self.poor += 1;
        if self.poor < POOR {
            return None;
        }
        self.then = (2 * self.then).clamp(8, RARELY);
        (self.patient, self.skip) = (false, self.then);
        Some(false)
    }
}

/// How the calling thread comes to its turn.
fn policy() -> i32 {
    // SAFETY: no memory is passed.
    unsafe { libc::sched_getscheduler(0) }
}

/// Sets it.
fn set_policy(patient: bool) {
    let policy = if patient { libc::SCHED_BATCH } else { libc::SCHED_OTHER };
    // SAFETY: all zeroes is the only sched_param that these policies have.
    let param: libc::sched_param = unsafe { std::mem::zeroed() };
    // SAFETY: a whole sched_param, which is not kept. Should the host refuse, it stays as it was, which is right, too.
    unsafe { libc::sched_setscheduler(0, policy, &raw const param) };
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::virtio::testing::subject::{Kind, Subject};
    use crate::worker::Worker;

    /// How the thread of that name in this process comes to its turn; `None` where this test could not tell.
    pub fn policy_of(thread: &str) -> Option<i32> {
        if policy() != libc::SCHED_OTHER {
            crate::skipped::skipped("the tests run under a scheduling policy of their own");
            return None;
        }
        let tasks = std::fs::read_dir("/proc/self/task").unwrap();
        let found = tasks.map(|task| task.unwrap()).find(|task| {
            let name = std::fs::read_to_string(task.path().join("comm"));
            name.is_ok_and(|name| name.trim_end() == thread)
        });
        let id = found.expect(thread).file_name().to_str().unwrap().parse().unwrap();
        // SAFETY: no memory is passed.
        Some(unsafe { libc::sched_getscheduler(id) })
    }

    #[test]
    fn cards_and_shares_let_the_guest_ask_for_more_and_what_waits_for_credit_is_taken_at_once() {
        for (name, kind, wanted) in [
            ("gather-net", Kind::Net, libc::SCHED_BATCH),
            ("gather-stream", Kind::NetStream, libc::SCHED_BATCH),
            ("gather-fs", Kind::Fs, libc::SCHED_BATCH),
            ("gather-vsock", Kind::Vsock, libc::SCHED_OTHER),
        ] {
            let mut subject = Subject::on(Worker::spawn(name).unwrap(), kind);
            subject.assert_works_after_reset();
            let Some(found) = policy_of(name) else { return };
            assert_eq!(found, wanted, "{kind:?}");
        }
    }

    /// In how many of `rounds` rounds, each with so many requests, the worker is patient.
    fn patient(gather: &mut Gather, rounds: u32, found: usize) -> u32 {
        (0..rounds)
            .map(|_| {
                gather.learn(found);
                u32::from(gather.patient)
            })
            .sum()
    }

    #[test]
    fn who_asks_for_much_at_a_time_is_let_go_on_and_who_does_not_is_served_at_once() {
        let mut gather = Gather::default();
        assert_eq!(patient(&mut gather, 100, 8), 100);
        // Three rounds of each 131 or so, once that is known.
        let alone = patient(&mut gather, 13_100, 1);
        assert!((290..=330).contains(&alone), "{alone}");
        // A single try finds that it is otherwise now.
        let again = patient(&mut gather, 1000, 3);
        assert!(again >= 1000 - u32::from(RARELY), "{again}");
    }

    #[test]
    fn a_few_rounds_with_little_to_do_and_those_with_nothing_are_no_change() {
        let mut gather = Gather::default();
        assert_eq!(gather.learn(0), None);
        assert_eq!(gather.learn(1), Some(true));
        for found in [1, 2, 9, 0, 2, 0, 1, 8, 1] {
            assert_eq!(gather.learn(found), None);
        }
        assert_eq!((gather.learn(2), gather.learn(1)), (None, Some(false)));
    }

    #[test]
    fn the_worker_changes_its_policy_and_no_other_threads() {
        let before = policy();
        if before != libc::SCHED_OTHER {
            return crate::skipped::skipped("the tests run under a scheduling policy of their own");
        }
        std::thread::scope(|scope| {
            scope.spawn(|| {
                before_round(1);
                assert_eq!(policy(), libc::SCHED_BATCH);
                for _ in 0..POOR {
                    before_round(1);
                }
                assert_eq!(policy(), libc::SCHED_OTHER);
                (0..=RARELY).for_each(|_| before_round(PAYS));
                assert_eq!(policy(), libc::SCHED_BATCH);
                at_once();
                before_round(PAYS);
                assert_eq!(policy(), libc::SCHED_OTHER);
            });
        });
        assert_eq!(policy(), before);
    }
}
