//! The course of a VM of `husk run`: [`Stage`] says how far it is and what happens next; here that is done, in
//! threads, because a guest that hangs takes no frame and a host that hangs no command.

mod stage;

use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use husk::{GuestChild, RunningVm};

use super::life::{kill, watch};
use super::signals::{self, Signals};
use super::terminal;
use stage::{Deed, Event, Stage};

/// How long husk has for its end once nothing is waited for any more.
const LAST: Duration = Duration::from_secs(3);

/// How a guest that is there for itself is asked to turn itself off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// By its power button, and the user is told so.
    PowerButton,
    /// By its agent.
    Agent,
}

/// What is still done before the process is ended, which has this exit status.
type Last = Box<dyn Fn(u8) + Send + Sync>;

/// A VM's course.
#[derive(Clone)]
pub struct Course(Arc<Inner>);

struct Inner {
    stage: Mutex<Stage<Arc<RunningVm>, Arc<GuestChild>>>,
    grace: Duration,
    way: Way,
    last: OnceLock<Last>,
}

impl Course {
    /// One that begins. A thread waits for `signals` as long as the process lives.
    ///
    /// # Errors
    /// When there is none.
    pub fn begin(signals: Signals, grace: Duration, way: Way) -> std::io::Result<Course> {
        let (stage, last) = (Mutex::new(Stage::Preparing), OnceLock::new());
        let course = Course(Arc::new(Inner { stage, grace, way, last }));
        let this = course.clone();
        watch(move || {
            loop {
                this.happens(Event::Signal(signals.wait()));
            }
        })?;
        Ok(course)
    }

    /// The VM runs, and its guest comes up to run a command.
    pub fn starts(&self, vm: Arc<RunningVm>) {
        self.happens(Event::Starts(vm));
    }

    /// The VM runs, and has no command.
    pub fn starts_alone(&self, vm: Arc<RunningVm>) {
        self.happens(Event::StartsAlone(vm));
    }

    /// There is a command to be told.
    pub fn begins(&self, child: Arc<GuestChild>) {
        self.happens(Event::Begins(child));
    }

    /// The VM stays without its command.
    pub fn stays(&self) {
        self.happens(Event::Stays);
    }

    /// Does what the first SIGTERM does, but for the end after the grace: whoever asks has one of their own.
    pub fn stop(&self) {
        self.happens(Event::Stop);
    }

    /// When the process is ended although something in it goes on, `last` is done before. It does not wait.
    pub fn at_last(&self, last: impl Fn(u8) + Send + Sync + 'static) {
        // Called once.
        let _ = self.0.last.set(Box::new(last));
    }

    /// The signal for which the VM is ended, if it is for one.
    pub fn signal(&self) -> Option<i32> {
        self.stage().signal()
    }

    /// Whether the end of the command was somebody's wish.
    pub fn is_end_wanted(&self) -> bool {
        self.stage().is_wanted()
    }

    fn stage(&self) -> MutexGuard<'_, Stage<Arc<RunningVm>, Arc<GuestChild>>> {
        // No code panics while it holds the lock.
        self.0.stage.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn happens(&self, event: Event<Arc<RunningVm>, Arc<GuestChild>>) {
        // The lock is not held while it is done.
        let deed = self.stage().on(event);
        match deed {
            Deed::Nothing => {}
            Deed::Exit(signal) => exit(signal),
            Deed::PassOn { child, signal } => self.pass_on(child, signal),
            Deed::Terminate(child) => beside(move || send(&child, libc::SIGTERM)),
            Deed::Leave { vm, signal } => self.leave(vm, signal),
            Deed::TurnOff(vm) => self.ask(vm),
            Deed::EndAll { vm, signal } => self.end_all(&vm, signal),
            Deed::EndLate { vm, signal, of_command } => {
                if of_command {
                    tell!(
                        "husk: the command still ran {} s after {}: the VM is turned off\n",
                        self.0.grace.as_secs_f64(),
                        signals::name(signal)
                    );
                }
                if !kill(&vm) {
                    self.exit_at_last(signal);
                }
            }
        }
    }

    /// Sends the command the signal, and looks for it when the grace is over.
    fn pass_on(&self, child: Arc<GuestChild>, signal: i32) {
        let sending = child.clone();
        beside(move || send(&sending, signal));
        self.grant(move |grace| matches!(child.wait_timeout(grace), Ok(None)));
    }

    /// Asks the guest to turn itself off, and looks for it when the grace is over.
    fn leave(&self, vm: Arc<RunningVm>, signal: i32) {
        if self.0.way == Way::PowerButton {
            tell!(
                "husk: {}: the guest's power button is pressed; it has {} s to turn itself off, and a \
                 second signal ends it at once\n",
                signals::name(signal),
                self.0.grace.as_secs_f64()
            );
        }
        self.ask(vm.clone());
        self.grant(move |grace| vm.wait_timeout(grace).is_none());
    }

    /// Asks the guest to turn itself off.
    fn ask(&self, vm: Arc<RunningVm>) {
        let way = self.0.way;
        beside(move || match way {
            // An error means that it has ended.
            Way::PowerButton => drop(vm.press_power_button()),
            Way::Agent => vm.ask_to_shut_down(),
        });
    }

    /// Waits for the grace, in which something should end; `is_late` does the waiting, and tells when not.
    fn grant(&self, is_late: impl FnOnce(Duration) -> bool + Send + 'static) {
        let this = self.clone();
        beside(move || {
            if is_late(this.0.grace) {
                this.happens(Event::GraceOver);
            }
        });
    }

    /// Ends the VM, and the process when whatever else goes on in it takes its time.
    fn end_all(&self, vm: &Arc<RunningVm>, signal: i32) {
        if kill(vm) {
            // Whoever does not read what the command wrote is not waited for.
            std::thread::sleep(LAST);
        }
        self.exit_at_last(signal);
    }

    /// Ends the process although something in it goes on.
    fn exit_at_last(&self, signal: i32) {
        if let Some(last) = self.0.last.get() {
            last(u8::try_from(128 + signal).unwrap_or(u8::MAX));
        }
        exit(signal);
    }
}

/// Ends the process, for this signal.
fn exit(signal: i32) {
    terminal::restore();
    std::process::exit(128 + signal);
}

/// Sends the command a signal. After its end it needs none.
fn send(child: &GuestChild, signal: i32) {
    let _ = child.signal(u8::try_from(signal).unwrap_or_default());
}

/// Does what may take its time beside everything else.
fn beside(work: impl FnOnce() + Send + 'static) {
    if let Err(e) = watch(work) {
        log::error!("the guest is not told to end: {e}");
    }
}
