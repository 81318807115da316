//! Cloud Hypervisor, from its options.

use super::super::CompareError;
use super::super::lab::MEMORY_MIB;
use super::super::launch::Call;
use super::{Start, words};

/// One vCPU and a serial console; the guest turns itself off.
pub fn call(start: &Start<'_>) -> Result<Call, CompareError> {
    let kernel = start.kernel()?;
    Ok(start.with(words![
        "--kernel",
        &kernel.unpacked,
        "--initramfs",
        start.lab.initrd(start.job),
        "--cmdline",
        start.cmdline("console=ttyS0 quiet panic=-1 cryptomgr.notests END=poweroff"),
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
