//! How a VM ended.

use crate::vcpu::report::CrashReport;

/// How a VM ended.
#[derive(Debug, Clone)]
pub enum Outcome {
    /// The guest turned itself off.
    PowerOff,
    /// The guest asked for a reset and [`crate::config::OnReboot::Exit`] was wanted.
    Reboot,
    /// The guest ended itself with this exit status, through the debug-exit port.
    Exit(u8),
    /// The guest's kernel panicked.
    Panic {
        /// The last lines of the console.
        console: String,
    },
    /// A vCPU could not go on.
    Crash {
        /// Which, why and where.
        report: Box<CrashReport>,
        /// The last lines of the console.
        console: String,
    },
    /// The host ended it.
    Killed,
    /// husk could not go on: a reboot failed, or a bug of its own.
    Failed {
        /// What failed.
        why: String,
    },
}

impl Outcome {
    /// What the console of a guest that died has said last; nothing of another.
    pub(crate) fn console(&self) -> &str {
        match self {
            Outcome::Panic { console } | Outcome::Crash { console, .. } => console,
            _ => "",
        }
    }
}
