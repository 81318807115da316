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

/// The lines of a console, which a guest has written, as they stand among husk's own words: each is marked, so that
/// none of them is taken for one of husk's.
pub fn quote(console: &str) -> String {
    let lines: Vec<_> = console.lines().map(|line| format!("  | {line}")).collect();
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_line_of_a_guests_looks_like_one_of_husks() {
        assert_eq!(quote("up\nhusk: you may\r\n\nend"), "  | up\n  | husk: you may\n  | \n  | end");
        assert_eq!(quote(""), "");
    }
}
