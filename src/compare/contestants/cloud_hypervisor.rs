//! Cloud Hypervisor, from its options.

use std::path::Path;
use std::sync::atomic::AtomicBool;

use super::super::CompareError;
use super::super::lab::{Lab, MEMORY_MIB};
use super::super::launch::Call;
use super::{Ready, Start, words};

/// Nothing, but the kernel must have ACPI: it is the only way to turn this machine off, or to end it.
pub fn prepare(lab: &Lab, _: &Path, _: &AtomicBool) -> Ready {
    match &lab.kernel {
        Some(kernel) if !kernel.has.acpi => Err(format!(
            "{} has no ACPI, and without it nothing a guest does ends this VMM; `husk kernel build \
             --variant full` makes one that has",
            kernel.given.display()
        )),
        _ => Ok(None),
    }
}

/// One vCPU and a serial console; the guest turns itself off.
pub fn call(start: &Start<'_>) -> Result<Call, CompareError> {
    let kernel = start.kernel()?;
    Ok(start.with(words![
        "--kernel",
        &kernel.unpacked,
        "--initramfs",
        start.lab.initrd(start.job),
        "--cmdline",
        // No NO_PCI: it has a PCI bus, and its devices are there.
        start.cmdline(&["END=poweroff"]),
        "--cpus",
        "boot=1",
        "--memory",
        format!("size={MEMORY_MIB}M"),
        "--serial",
        "tty",
        "--console",
        "off",
    ]))
}
