//! How far a VM of `husk run` is, and what a signal means to it there: a stage and an event give the next stage
//! and what is to be done. Nothing is done here, and nobody is waited for.
//!
//! ```text
//! Preparing ─▶ Starting ─▶ Running ──stop──▶ Asked ─┐ signal
//!   │ │           │           │ └────signal───────────┴──▶ Told ─────────┐
//!   │ │           │ signal    │ the command is over¹         │ it is over  │
//!   │ │           │           ▼                              ▼             │
//!   │ └───────────┼──────▶ Alone ────────signal────────▶ Leaving           │
//!   │ signal      │                                         │ signal,      │ signal,
//!   ▼             ▼                                         ▼ grace over   ▼ grace over
//!  exit         Ending ◀────────────────────────────────────────────────────
//! ```
//!
//! ¹ or could not begin: from Starting.

/// A stage, and what it holds of the VM (`V`) and its command (`C`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stage<V, C> {
    /// There is nothing to end but the process.
    Preparing,
    /// The guest comes up to run a command.
    Starting { vm: V },
    /// The command runs.
    Running { vm: V, child: C },
    /// Somebody has asked for its end, by the VM's name.
    Asked { vm: V, child: C },
    /// It was told to end by this signal, and has the grace to do so.
    Told { vm: V, child: C, signal: i32 },
    /// The guest runs for itself: it has no command, or stays after it.
    Alone { vm: V },
    /// It was asked for its end, for this signal, and has the grace to come to it.
    Leaving { vm: V, signal: i32 },
    /// The VM is ended, for this signal.
    Ending { vm: V, signal: i32 },
}

/// What happens to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event<V, C> {
    /// A VM runs whose guest is to run a command.
    Starts(V),
    /// A VM runs whose guest is there for itself.
    StartsAlone(V),
    /// The command has begun.
    Begins(C),
    /// The command is over, or its time is, or it cannot begin, and the VM stays.
    Stays,
    /// One of the signals that ask husk to end.
    Signal(i32),
    /// The VM's end is asked for by its name, by one who knows how long to wait for it.
    Stop,
    /// What had a grace has not ended in it.
    GraceOver,
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Deed<V, C> {
    Nothing,
    /// The process ends, for this signal.
    Exit(i32),
    /// The command is sent the signal, and has the grace from now on.
    PassOn {
        child: C,
        signal: i32,
    },
    /// The command is sent SIGTERM.
    Terminate(C),
    /// The guest is asked to turn itself off, for which it has the grace.
    Leave {
        vm: V,
        signal: i32,
    },
    /// The same, and nobody here waits for it.
    TurnOff(V),
    /// The VM is ended at once, and then, whatever else goes on in it, the process.
    EndAll {
        vm: V,
        signal: i32,
    },
    /// The VM is ended, because its grace is over: that of a command, or the guest's own.
    EndLate {
        vm: V,
        signal: i32,
        of_command: bool,
    },
}

impl<V: Clone, C: Clone> Stage<V, C> {
    /// Goes on, and tells what is to be done.
    pub fn on(&mut self, event: Event<V, C>) -> Deed<V, C> {
        let (next, deed) = std::mem::replace(self, Stage::Preparing).next(event);
        *self = next;
        deed
    }

    fn next(self, event: Event<V, C>) -> (Self, Deed<V, C>) {
        use Stage::{Alone, Asked, Ending, Leaving, Preparing, Running, Starting, Told};
        let end_all =
            |vm: V, signal| (Ending { vm: vm.clone(), signal }, Deed::EndAll { vm, signal });
        match (self, event) {
            (Preparing, Event::Starts(vm)) => (Starting { vm }, Deed::Nothing),
            (Preparing, Event::StartsAlone(vm)) => (Alone { vm }, Deed::Nothing),
            (Preparing, Event::Signal(signal)) => (Preparing, Deed::Exit(signal)),
            (Starting { vm }, Event::Begins(child)) => (Running { vm, child }, Deed::Nothing),

            // The first is the command's.
            (Running { vm, child } | Asked { vm, child }, Event::Signal(signal)) => {
                (Told { vm, child: child.clone(), signal }, Deed::PassOn { child, signal })
            }
            (Running { vm, child } | Asked { vm, child }, Event::Stop) => {
                (Asked { vm, child: child.clone() }, Deed::Terminate(child))
            }
            (Told { vm, child, signal }, Event::Stop) => {
                (Told { vm, child: child.clone(), signal }, Deed::Terminate(child))
            }
            (Starting { vm } | Running { vm, .. } | Asked { vm, .. }, Event::Stays) => {
                (Alone { vm }, Deed::Nothing)
            }
            (Told { vm, signal, .. }, Event::Stays) => {
                (Leaving { vm: vm.clone(), signal }, Deed::Leave { vm, signal })
            }

            // Without a command the first is the guest's.
            (Alone { vm }, Event::Signal(signal)) => {
                (Leaving { vm: vm.clone(), signal }, Deed::Leave { vm, signal })
            }
            (Starting { vm }, Event::Stop) => (Starting { vm: vm.clone() }, Deed::TurnOff(vm)),
            (Alone { vm }, Event::Stop) => (Alone { vm: vm.clone() }, Deed::TurnOff(vm)),
            (Leaving { vm, signal }, Event::Stop) => {
                (Leaving { vm: vm.clone(), signal }, Deed::TurnOff(vm))
            }

            // A second one is for whatever does not end.
            (Starting { vm }, Event::Signal(signal)) => end_all(vm, signal),
            (
                Told { vm, signal, .. } | Leaving { vm, signal } | Ending { vm, signal },
                Event::Signal(_),
            ) => end_all(vm, signal),
            (Told { vm, signal, .. }, Event::GraceOver) => {
                let deed = Deed::EndLate { vm: vm.clone(), signal, of_command: true };
                (Ending { vm, signal }, deed)
            }
            (Leaving { vm, signal }, Event::GraceOver) => {
                let deed = Deed::EndLate { vm: vm.clone(), signal, of_command: false };
                (Ending { vm, signal }, deed)
            }
            // Too late, or too early to matter.
            (stage, _) => (stage, Deed::Nothing),
        }
    }

    /// The signal for which the VM is ended, if it is for one.
    pub fn signal(&self) -> Option<i32> {
        match self {
            Stage::Leaving { signal, .. } | Stage::Ending { signal, .. } => Some(*signal),
            _ => None,
        }
    }

    /// Whether the end of the command was somebody's wish.
    pub fn is_wanted(&self) -> bool {
        let told = matches!(self, Stage::Asked { .. } | Stage::Told { .. });
        told || self.signal().is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Plain = Stage<&'static str, &'static str>;
    type Happens = Event<&'static str, &'static str>;

    const TERM: i32 = libc::SIGTERM;
    const INT: i32 = libc::SIGINT;

    /// What is done at the last of these events, and where that leads.
    fn after(events: &[Happens]) -> (Plain, Deed<&'static str, &'static str>) {
        let (mut stage, mut last) = (Stage::Preparing, Deed::Nothing);
        for event in events {
            last = stage.on(event.clone());
        }
        (stage, last)
    }

    const STARTS: Happens = Event::Starts("vm");
    const BEGINS: Happens = Event::Begins("child");
    const ALONE: Happens = Event::StartsAlone("vm");
    const ONE: Happens = Event::Signal(TERM);
    const TWO: Happens = Event::Signal(INT);

    #[test]
    fn before_the_vm_a_signal_ends_the_process_and_before_the_command_the_vm() {
        assert_eq!(after(&[ONE]), (Stage::Preparing, Deed::Exit(TERM)));
        let (stage, deed) = after(&[STARTS, ONE]);
        assert_eq!(deed, Deed::EndAll { vm: "vm", signal: TERM });
        assert_eq!(stage.signal(), Some(TERM));
        // A command that has begun meanwhile changes nothing.
        assert_eq!(after(&[STARTS, ONE, BEGINS]).0, stage);
    }

    #[test]
    fn the_first_signal_is_the_commands_and_a_second_or_the_end_of_the_grace_is_the_vms() {
        let (stage, deed) = after(&[STARTS, BEGINS, ONE]);
        assert_eq!(deed, Deed::PassOn { child: "child", signal: TERM });
        assert!(stage.is_wanted() && stage.signal().is_none());
        // It ends for the first.
        let end = Deed::EndAll { vm: "vm", signal: TERM };
        assert_eq!(after(&[STARTS, BEGINS, ONE, TWO]).1, end);
        let (stage, deed) = after(&[STARTS, BEGINS, ONE, Event::GraceOver]);
        assert_eq!(deed, Deed::EndLate { vm: "vm", signal: TERM, of_command: true });
        assert_eq!(stage.signal(), Some(TERM));
        // One that still does not end, because of who reads nothing, say.
        assert_eq!(after(&[STARTS, BEGINS, ONE, Event::GraceOver, TWO]).1, end);
        // A grace that is over when that has been decided.
        assert_eq!(after(&[STARTS, BEGINS, ONE, TWO, Event::GraceOver]).1, Deed::Nothing);
    }

    #[test]
    fn who_asks_by_the_name_takes_no_signal_from_the_command() {
        let (stage, deed) = after(&[STARTS, BEGINS, Event::Stop]);
        assert_eq!(deed, Deed::Terminate("child"));
        assert!(stage.is_wanted());
        let passed_on = Deed::PassOn { child: "child", signal: TERM };
        assert_eq!(after(&[STARTS, BEGINS, Event::Stop, ONE]).1, passed_on);
        assert_eq!(after(&[STARTS, BEGINS, ONE, Event::Stop]).1, Deed::Terminate("child"));
        assert_eq!(after(&[STARTS, Event::Stop]).1, Deed::TurnOff("vm"));
        assert_eq!(after(&[Event::Stop]).1, Deed::Nothing);
    }

    #[test]
    fn a_guest_that_is_there_for_itself_is_asked_first() {
        // Without a command, after one, and with one that could not begin.
        for alone in [&[ALONE][..], &[STARTS, BEGINS, Event::Stays], &[STARTS, Event::Stays]] {
            let with = |more: &[Happens]| after(&[alone, more].concat());
            assert!(!with(&[]).0.is_wanted());
            assert_eq!(with(&[Event::Stop]), (Stage::Alone { vm: "vm" }, Deed::TurnOff("vm")));
            let (stage, deed) = with(&[ONE]);
            assert_eq!(deed, Deed::Leave { vm: "vm", signal: TERM });
            assert_eq!(stage.signal(), Some(TERM));
            assert_eq!(with(&[ONE, TWO]).1, Deed::EndAll { vm: "vm", signal: TERM });
            let late = Deed::EndLate { vm: "vm", signal: TERM, of_command: false };
            assert_eq!(with(&[ONE, Event::GraceOver]).1, late);
        }
    }

    #[test]
    fn a_guest_that_stays_after_a_command_that_was_told_to_end_is_told_next() {
        let told = [STARTS, BEGINS, ONE, Event::Stays];
        let leave = Deed::Leave { vm: "vm", signal: TERM };
        assert_eq!(after(&told), (Stage::Leaving { vm: "vm", signal: TERM }, leave));
        assert_eq!(after(&[&told[..], &[TWO]].concat()).1, Deed::EndAll { vm: "vm", signal: TERM });
    }
}
