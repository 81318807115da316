//! QEMU's microvm machine, on KVM and nothing else.

use super::super::CompareError;
use super::super::lab::MEMORY_MIB;
use super::super::launch::Call;
use super::{NO_PCI, Start, words};

/// The machine without what Linux does not need there, but with an RTC: without one it waits for three
/// seconds for an update of the clock that never ends. The guest ends it by a reset.
pub fn call(start: &Start<'_>) -> Result<Call, CompareError> {
    let kernel = start.kernel()?;
    Ok(start.with(words![
        "-M",
        "microvm,accel=kvm,pit=off,pic=off,rtc=on",
        "-cpu",
        "host",
        "-m",
        format!("{MEMORY_MIB}M"),
        "-smp",
        "1",
        "-kernel",
        &kernel.unpacked,
        "-initrd",
        start.lab.initrd(start.job),
        "-append",
        start.cmdline(&[NO_PCI, "END=reboot", "reboot=t"]),
        "-nodefaults",
        "-no-user-config",
        "-nographic",
        "-serial",
        "stdio",
        "-no-reboot",
    ]))
}
