//! The gate that lets the vCPUs of a VM run, holds them, or sends them home.
//!
//! A vCPU in KVM_RUN is reached in two steps that cannot lose a kick: `immediate_exit` is set in
//! its `kvm_run`, then its thread gets a signal. A signal that comes before KVM_RUN does nothing by
//! itself, but KVM_RUN then sees `immediate_exit` and returns at once; one that comes inside it
//! makes it return (`Documentation/virt/kvm/api.rst`, "KVM_RUN"). The vCPU clears `immediate_exit`
//! *before* it looks at the gate, and whoever kicks changes the gate *before* setting it.

use std::io;
use std::marker::PhantomData;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};

use vmm_sys_util::signal::{SIGRTMIN, register_signal_handler};

use crate::hypervisor::RunPage;

/// What the gate tells a vCPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pass {
    /// Go on.
    Run,
    /// Go on after having been held.
    Resumed,
    /// End the thread.
    Stop,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Want {
    Run,
    Hold,
    Stop,
}

struct State {
    want: Want,
    /// vCPUs waiting at the gate.
    held: usize,
    inside: Vec<Target>,
}

/// How to reach a vCPU thread that lives.
struct Target {
    thread: libc::pthread_t,
    page: Arc<RunPage>,
}

/// One gate for all vCPUs of a machine.
pub struct Gate {
    state: Mutex<State>,
    changed: Condvar,
}

extern "C" fn interrupt(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}

/// The signal that interrupts KVM_RUN, its empty handler installed once. It is the first real-time
/// signal; nothing is done when it comes, but without a handler it would end the process.
fn kick_signal() -> io::Result<libc::c_int> {
    static INSTALLED: OnceLock<Result<(), i32>> = OnceLock::new();
    let signal = SIGRTMIN();
    INSTALLED
        .get_or_init(|| register_signal_handler(signal, interrupt).map_err(|e| e.errno()))
        .map_err(io::Error::from_raw_os_error)?;
    Ok(signal)
}

impl Gate {
    /// A gate that holds every vCPU until [`Gate::open`].
    ///
    /// # Errors
    /// When the signal's handler cannot be installed.
    pub fn new() -> io::Result<Self> {
        kick_signal()?;
        let state = State { want: Want::Hold, held: 0, inside: Vec::new() };
        Ok(Self { state: Mutex::new(state), changed: Condvar::new() })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // No code panics while it holds the lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does `work` in the calling thread, as the one that runs the vCPU of `page`.
    pub fn within<R>(&self, page: &Arc<RunPage>, work: impl FnOnce(&Inside<'_>) -> R) -> R {
        // SAFETY: unblocks one signal in this thread; the set is initialised by sigemptyset.
        unsafe {
            let mut set: libc::sigset_t = std::mem::zeroed();
            libc::sigemptyset(&mut set);
            libc::sigaddset(&mut set, SIGRTMIN());
            libc::pthread_sigmask(libc::SIG_UNBLOCK, &set, std::ptr::null_mut());
        }
        // SAFETY: pthread_self has no preconditions.
        let thread = unsafe { libc::pthread_self() };
        self.state().inside.push(Target { thread, page: page.clone() });
        // Dropped here, in this thread, however `work` ends: nobody else ever owns it.
        let inside = Inside { gate: self, page, here: PhantomData };
        work(&inside)
    }

    /// Changes what is wanted and reaches every vCPU.
    fn set(&self, want: Want) {
        let mut state = self.state();
        if state.want == Want::Stop {
            return;
        }
        state.want = want;
        self.changed.notify_all();
        if want == Want::Run {
            return;
        }
        for target in &state.inside {
            target.page.immediate_exit().store(1, Ordering::SeqCst);
            // SAFETY: a thread in the list has not ended: it leaves the list before, under the lock
            // held here (see `within`).
            unsafe { libc::pthread_kill(target.thread, SIGRTMIN()) };
        }
    }

    /// Lets the vCPUs run.
    pub fn open(&self) {
        self.set(Want::Run);
    }

    /// Holds the vCPUs and returns when none is in KVM_RUN any more.
    pub fn hold(&self) {
        self.set(Want::Hold);
        let mut state = self.state();
        while state.want == Want::Hold && state.held < state.inside.len() {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Sends every vCPU home. Final.
    pub fn stop(&self) {
        self.set(Want::Stop);
    }
}

/// A vCPU thread's place in the gate.
pub struct Inside<'a> {
    gate: &'a Gate,
    page: &'a RunPage,
    /// No other thread may use it.
    here: PhantomData<*const ()>,
}

impl Inside<'_> {
    /// Called by the vCPU when KVM_RUN was interrupted, and before the first: waits as long as the
    /// gate is closed.
    pub fn pass(&self) -> Pass {
        self.page.immediate_exit().store(0, Ordering::SeqCst);
        let mut state = self.gate.state();
        let mut held = false;
        while state.want == Want::Hold {
            state.held += 1;
            self.gate.changed.notify_all();
            state = self.gate.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            state.held -= 1;
            held = true;
        }
        match state.want {
            Want::Stop => Pass::Stop,
            _ if held => Pass::Resumed,
            _ => Pass::Run,
        }
    }

    /// Called by a vCPU that cannot go on: counts as held until it is sent home.
    pub fn rest(&self) {
        let mut state = self.gate.state();
        state.held += 1;
        self.gate.changed.notify_all();
        while state.want != Want::Stop {
            state = self.gate.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.held -= 1;
    }
}

impl Drop for Inside<'_> {
    fn drop(&mut self) {
        let mut state = self.gate.state();
        state.inside.retain(|target| !std::ptr::eq(&*target.page, self.page));
        self.gate.changed.notify_all();
    }
}
