//! This husk, as its user runs it: `husk run`, the kernel as it was given.

use super::super::CompareError;
use super::super::lab::MEMORY_MIB;
use super::super::launch::Call;
use super::{NO_PCI, Start, words};

/// `husk run …`, with the timeline, which it prints when all is over.
pub fn call(start: &Start<'_>) -> Result<Call, CompareError> {
    let kernel = start.kernel()?;
    // husk knows that of a kernel of its own, and of no other. Without ACPI there is no way to turn the machine off: a reboot ends it.
    let end = if kernel.has.acpi { "END=poweroff" } else { "END=reboot reboot=k" };
    let no_acpi = (!kernel.has.acpi).then(|| "--no-acpi".into());
    let run = words![
        "run",
        "--kernel",
        &kernel.given,
        "--initrd",
        start.lab.initrd(start.job),
        "--memory",
        format!("{MEMORY_MIB}M"),
        "--cmdline",
        start.cmdline(&[NO_PCI, end]),
        "--on-reboot",
        "exit",
        "--timeline",
    ];
    Ok(start.with(run.into_iter().chain(no_acpi)))
}
