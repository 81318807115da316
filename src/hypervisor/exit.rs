//! Why KVM_RUN returned, in this machine's words.

use std::fmt;

use kvm_bindings::KVM_INTERNAL_ERROR_EMULATION;
use kvm_ioctls::VcpuExit;

/// What a vCPU came out of the guest for.
#[derive(Debug)]
pub(crate) enum Exit<'a> {
    /// Writes to a port, each of `width` bytes: a string instruction brings several at once.
    PortWrite { port: u16, width: usize, data: &'a [u8] },
    /// Reads from a port, each of `width` bytes, to be answered in `data`.
    PortRead { port: u16, width: usize, data: &'a mut [u8] },
    /// A write to an address without memory.
    MmioWrite { address: u64, data: &'a [u8] },
    /// A read from an address without memory, to be answered in `data`.
    MmioRead { address: u64, data: &'a mut [u8] },
    /// A signal, or `immediate_exit`.
    Interrupted,
    /// Nothing: a vCPU that waits for its SIPI was woken.
    Again,
    /// The guest cannot go on.
    Last(Cause),
}

/// Why a vCPU cannot go on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cause {
    /// A fault while handling a fault while handling a fault.
    TripleFault,
    /// The CPU refused the guest's state (KVM_EXIT_FAIL_ENTRY).
    EntryFailed {
        /// The CPU's own reason code.
        reason: u64,
    },
    /// KVM gave up (KVM_EXIT_INTERNAL_ERROR).
    InternalError {
        /// KVM's sub-reason.
        suberror: u32,
    },
    /// KVM_RUN itself failed.
    RunFailed {
        /// The error number.
        errno: i32,
    },
    /// An exit this machine never asked for.
    UnexpectedExit(
        /// What KVM called it.
        String,
    ),
}

impl Cause {
    /// Why `exit` is a vCPU's last; `suberror` is that of a KVM internal error.
    pub(super) fn of(exit: &VcpuExit<'_>, suberror: impl FnOnce() -> u32) -> Self {
        match exit {
            VcpuExit::Shutdown => Cause::TripleFault,
            VcpuExit::FailEntry(reason, _) => Cause::EntryFailed { reason: *reason },
            VcpuExit::InternalError => Cause::InternalError { suberror: suberror() },
            other => Cause::UnexpectedExit(format!("{other:?}")),
        }
    }

    /// Whether KVM met an instruction of the guest that it cannot interpret.
    pub fn is_emulation_failure(&self) -> bool {
        matches!(self, Cause::InternalError { suberror } if *suberror == KVM_INTERNAL_ERROR_EMULATION)
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Cause::TripleFault => write!(f, "triple fault"),
            Cause::EntryFailed { reason } => {
                write!(f, "the CPU refused the guest's state (KVM_EXIT_FAIL_ENTRY, {reason:#x})")
            }
            Cause::InternalError { suberror } => {
                let words = match suberror {
                    1 => "an instruction it cannot emulate",
                    2 => "simultaneous exceptions",
                    3 => "an event while delivering another",
                    4 => "an unexpected exit reason",
                    _ => "unknown",
                };
                write!(f, "KVM internal error {suberror}: {words}")
            }
            Cause::RunFailed { errno } => {
                write!(f, "KVM_RUN failed: {}", std::io::Error::from_raw_os_error(*errno))
            }
            Cause::UnexpectedExit(exit) => write!(f, "unexpected exit {exit}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The exits that no guest of the tests can bring about on every host: the CPU's refusal needs a
    /// state that KVM lets pass and the CPU does not.
    #[test]
    fn an_exit_that_is_the_last_is_told_as_what_it_is() {
        let cause = |exit| Cause::of(&exit, || 3);
        let refused = cause(VcpuExit::FailEntry(0x8000_0021, 1));
        assert_eq!(refused, Cause::EntryFailed { reason: 0x8000_0021 });
        let text = refused.to_string();
        assert!(text.contains("the CPU refused the guest's state"), "{text}");
        assert!(text.contains("KVM_EXIT_FAIL_ENTRY, 0x80000021"), "{text}");
        assert_eq!(cause(VcpuExit::InternalError), Cause::InternalError { suberror: 3 });
        assert_eq!(cause(VcpuExit::Shutdown), Cause::TripleFault);
        assert_eq!(cause(VcpuExit::Hlt), Cause::UnexpectedExit("Hlt".to_owned()));
    }
}
