//! Firecracker, from a configuration file, without its API's socket.

use super::super::CompareError;
use super::super::lab::{MEMORY_MIB, text};
use super::super::launch::Call;
use super::super::workload::script_of;
use super::{Start, words};

/// One vCPU and a serial console; the guest ends it by the keyboard controller's reset line.
pub fn call(start: &Start<'_>) -> Result<Call, CompareError> {
    let kernel = start.kernel()?;
    let config = serde_json::json!({
        "boot-source": {
            "kernel_image_path": text(&kernel.unpacked)?,
            "initrd_path": text(&start.lab.initrd(start.job))?,
            "boot_args": start.cmdline("console=ttyS0 quiet panic=-1 pci=off cryptomgr.notests END=reboot reboot=k"),
        },
        "drives": [],
        "machine-config": { "vcpu_count": 1, "mem_size_mib": MEMORY_MIB },
    });
    let file = start.lab.path(&format!("firecracker-{}.json", script_of(start.job)));
    // The same for all instances.
    if !file.exists() {
        std::fs::write(&file, config.to_string())
            .map_err(CompareError::host(format!("writing {}", file.display())))?;
    }
    Ok(start.with(words!["--no-api", "--level", "Off", "--id", start.id, "--config-file", file]))
}
