//! The gate that lets the vCPUs of a VM run, holds them, or sends them home.
//!
//! A vCPU in KVM_RUN is reached in two steps that cannot lose a kick: `immediate_exit` is set in
//! its `kvm_run`, then its thread gets a signal. A signal that comes before KVM_RUN does nothing by
//! itself, but KVM_RUN then sees `immediate_exit` and returns at once; one that comes inside it
//! makes it return (`Documentation/virt/kvm/api.rst`, "KVM_RUN"). The vCPU clears `immediate_exit`
//! *before* it looks at the gate, and whoever kicks changes the gate *before* setting it.

use std::io;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, OnceLock, PoisonError};

use kvm_ioctls::VcpuFd;
use vmm_sys_util::signal::{SIGRTMIN, register_signal_handler};

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

/// How to reach a vCPU thread.
struct Target {
    thread: libc::pthread_t,
    immediate_exit: *const AtomicU8,
}

// SAFETY: the pointer is used only under the gate's lock, and a target leaves the gate under that
// lock before its `kvm_run` is unmapped.
unsafe impl Send for Target {}

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

    /// Registers the calling thread as the one that runs `vcpu`, until the guard is dropped.
    ///
    /// # Safety
    /// The guard must be dropped, not forgotten, before `vcpu` is and before the thread ends:
    /// whoever closes the gate writes into `vcpu`'s `kvm_run` and signals the thread.
    pub unsafe fn enter(&self, vcpu: &mut VcpuFd) -> Inside<'_> {
        // SAFETY: unblocks one signal in this thread; the set is initialised by sigemptyset.
        unsafe {
            let mut set: libc::sigset_t = std::mem::zeroed();
            libc::sigemptyset(&mut set);
            libc::sigaddset(&mut set, SIGRTMIN());
            libc::pthread_sigmask(libc::SIG_UNBLOCK, &set, std::ptr::null_mut());
        }
        let flag = &raw mut vcpu.get_kvm_run().immediate_exit;
        // SAFETY: pthread_self has no preconditions.
        let thread = unsafe { libc::pthread_self() };
        self.state().inside.push(Target { thread, immediate_exit: flag.cast() });
        Inside { gate: self, thread, immediate_exit: flag.cast() }
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
            // SAFETY: a target in the list is a live thread with a mapped `kvm_run` (see `Inside`),
            // and the byte is only ever accessed atomically on our side.
            unsafe {
                (*target.immediate_exit).store(1, Ordering::SeqCst);
                libc::pthread_kill(target.thread, SIGRTMIN());
            }
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
    thread: libc::pthread_t,
    immediate_exit: *const AtomicU8,
}

impl Inside<'_> {
    /// Called by the vCPU when KVM_RUN was interrupted, and before the first: waits as long as the
    /// gate is closed.
    pub fn pass(&self) -> Pass {
        // SAFETY: `kvm_run` is mapped as long as this guard lives.
        unsafe { (*self.immediate_exit).store(0, Ordering::SeqCst) };
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
}

impl Inside<'_> {
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
        let thread = self.thread;
        // SAFETY: pthread_equal compares two ids and has no preconditions.
        state.inside.retain(|t| unsafe { libc::pthread_equal(t.thread, thread) } == 0);
        self.gate.changed.notify_all();
    }
}
