//! Firecracker, from a configuration file, without its API's socket.

use super::super::CompareError;
use super::super::lab::{MEMORY_MIB, text};
use super::super::launch::Call;
use super::super::workload::script_of;
use super::{NO_PCI, Start, words};

/// Of its default line, which ours replaces: its keyboard controller can do nothing but reset, and Linux
/// waits for answers to all else (its `src/vmm/src/vmm_config/boot_source.rs`).
const KEYBOARD: &str = "i8042.noaux i8042.nomux i8042.dumbkbd";

/// One vCPU and a serial console; the guest ends it by the keyboard controller's reset line.
pub fn call(start: &Start<'_>) -> Result<Call, CompareError> {
    let kernel = start.kernel()?;
    let config = serde_json::json!({
        "boot-source": {
            "kernel_image_path": text(&kernel.unpacked)?,
            "initrd_path": text(&start.lab.initrd(start.job))?,
            "boot_args": start.cmdline(&[NO_PCI, KEYBOARD, "END=reboot", "reboot=k"]),
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
