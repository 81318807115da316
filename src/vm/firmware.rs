//! What a PC's firmware does: the kernel, its initrd, its command line and the description of the
//! machine, put into guest memory.

use husk_devices::virtio::mmio::MMIO_WINDOW;
use vm_memory::{GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};

use super::VmError;
use crate::boot::params::{self, BootInfo, E820_RAM, E820_RESERVED, E820Entry};
use crate::boot::{Cmdline, Initrd, Kernel, LoadMethod, LoadOptions, Loaded, Protocol};
use crate::config::{BootProtocol, ConsoleDevice, VmConfig};
use crate::memory;
use crate::x86_64::acpi::{self, VirtioSlot};
use crate::x86_64::{layout, mptable, reset};

/// The command line when the user gives none. There is no PCI to be looked for.
fn default_cmdline(console: ConsoleDevice) -> &'static str {
    match console {
        ConsoleDevice::Serial => "console=ttyS0 pci=off",
        ConsoleDevice::Virtio => "console=hvc0 pci=off",
    }
}

/// The opened files a guest boots from.
pub(super) struct Software {
    pub kernel: Kernel,
    pub initrd: Option<Initrd>,
}

/// The description of a machine for its guest.
pub(super) struct Firmware<'a> {
    pub config: &'a VmConfig,
    pub slots: &'a [VirtioSlot],
}

impl Firmware<'_> {
    /// Fills guest memory and returns how the kernel is entered.
    pub fn load(
        &self,
        software: &Software,
        memory: &GuestMemoryMmap,
        memory_is_zero: bool,
    ) -> Result<Loaded, VmError> {
        let options = LoadOptions {
            method: match self.config.share_kernel {
                true => LoadMethod::Map,
                false => LoadMethod::Read,
            },
            protocol: match self.config.boot_protocol {
                BootProtocol::Auto => None,
                BootProtocol::Pvh => Some(Protocol::Pvh),
                BootProtocol::Linux64 => Some(Protocol::Linux64),
            },
            memory_is_zero,
        };
        let loaded = software.kernel.load(memory, options)?;
        let initrd = match &software.initrd {
            Some(initrd) => Some(initrd.load(
                memory,
                memory::low_end(memory).0,
                loaded.initrd_max,
                loaded.end,
            )?),
            None => None,
        };
        let cmdline = self.cmdline()?;
        let max = loaded.cmdline_max.min(layout::CMDLINE_LEN as usize - 1);
        let cmdline = cmdline.write(memory, layout::CMDLINE, max)?;

        reset::write(memory)?;
        let cpus = self.config.cpus as u8;
        let rsdp = match self.config.acpi {
            true => Some(acpi::write(memory, cpus, self.slots)?.0),
            false => {
                mptable::write(memory, cpus)?;
                None
            }
        };
        let e820 = memory_map(memory);
        let info = BootInfo { e820: &e820, cmdline, initrd, rsdp };
        match loaded.protocol {
            Protocol::Pvh => params::write_start_info(memory, layout::PVH_INFO, &info)?,
            Protocol::Linux64 => {
                let header = loaded.setup_header.as_ref();
                params::write_boot_params(memory, layout::ZERO_PAGE, &info, header)?;
            }
        }
        Ok(loaded)
    }

    /// The kernel's command line: the user's, and what this machine needs.
    fn cmdline(&self) -> Result<Cmdline, VmError> {
        let default = default_cmdline(self.config.console_device);
        let mut cmdline = Cmdline::new(self.config.cmdline.as_deref().unwrap_or(default))?;
        cmdline.append(&self.config.append)?;
        // A panic must end the VM, not stop it: the reset is how we learn of it.
        if !cmdline.has("panic=") {
            cmdline.append("panic=-1")?;
        }
        let disk = self.config.disks.first().map(|disk| ("vda", disk.readonly));
        let pmem = self.config.pmem.first().map(|pmem| ("pmem0", pmem.readonly));
        if let Some((root, readonly)) = disk.or(pmem)
            && self.config.cmdline.is_none()
            && !cmdline.has("root=")
        {
            let how = if readonly { "ro" } else { "rw" };
            cmdline.append(&format!("root=/dev/{root} {how}"))?;
        }
        if !self.config.acpi {
            cmdline.append("acpi=off")?;
            for slot in self.slots {
                let (size, base, gsi) = (MMIO_WINDOW >> 10, slot.base, slot.gsi);
                cmdline.append(&format!("virtio_mmio.device={size}K@{base:#x}:{gsi}"))?;
            }
        }
        Ok(cmdline)
    }
}

/// RAM as the guest may use it: all of it but the legacy areas below 1 MiB.
fn memory_map(memory: &GuestMemoryMmap) -> Vec<E820Entry> {
    let legacy = E820Entry {
        start: layout::LOW_RAM_END,
        len: layout::HIGH_RAM - layout::LOW_RAM_END,
        kind: E820_RESERVED,
    };
    let mut map = vec![E820Entry { start: 0, len: layout::LOW_RAM_END, kind: E820_RAM }, legacy];
    for region in memory.iter() {
        let start = region.start_addr().0.max(layout::HIGH_RAM);
        let end = region.start_addr().0 + region.len();
        map.push(E820Entry { start, len: end - start, kind: E820_RAM });
    }
    map
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{DiskConfig, MemoryConfig, PmemConfig, Size};

    fn firmware(config: &VmConfig) -> String {
        let slots = [VirtioSlot { base: 0xd000_0000, gsi: 6 }];
        Firmware { config, slots: &slots }.cmdline().unwrap().text()
    }

    #[test]
    fn the_command_line_ends_a_panicked_guest_unless_the_user_says_otherwise() {
        let mut config = VmConfig::new("k");
        assert_eq!(firmware(&config), "console=ttyS0 pci=off panic=-1");
        config.console_device = ConsoleDevice::Virtio;
        assert_eq!(firmware(&config), "console=hvc0 pci=off panic=-1");
        config.console_device = ConsoleDevice::Serial;
        config.append = "panic=5 quiet".to_owned();
        assert_eq!(firmware(&config), "console=ttyS0 pci=off panic=5 quiet");
        config.cmdline = Some("mine".to_owned());
        config.append = String::new();
        assert_eq!(firmware(&config), "mine panic=-1");
    }

    #[test]
    fn the_first_disk_is_the_root_unless_the_user_says_otherwise() {
        let mut config = VmConfig::new("k");
        config.disks = vec![DiskConfig { id: "d".into(), path: "p".into(), readonly: true }];
        assert!(firmware(&config).ends_with("root=/dev/vda ro"));
        config.pmem = vec![PmemConfig { id: "p".into(), path: "p".into(), readonly: true }];
        assert!(firmware(&config).ends_with("root=/dev/vda ro"));
        config.disks.clear();
        assert!(firmware(&config).ends_with("root=/dev/pmem0 ro"));
        config.append = "root=/dev/vdb".to_owned();
        assert!(!firmware(&config).contains("pmem"));
    }

    #[test]
    fn devices_are_on_the_command_line_only_without_acpi() {
        let mut config = VmConfig::new("k");
        assert!(!firmware(&config).contains("virtio_mmio"));
        config.acpi = false;
        assert!(firmware(&config).ends_with("acpi=off virtio_mmio.device=4K@0xd0000000:6"));
    }

    #[test]
    fn the_memory_map_leaves_out_the_legacy_areas_and_the_hole() {
        let config = MemoryConfig { size: Size::mib(5 << 10), shared: false, hugepages: false };
        let memory = memory::allocate(&config).unwrap();
        let ram: Vec<_> = memory_map(&memory)
            .iter()
            .filter(|e| e.kind == E820_RAM)
            .map(|e| (e.start, e.start + e.len))
            .collect();
        assert_eq!(ram, [(0, 0x9_fc00), (1 << 20, 3 << 30), (4 << 30, 6 << 30)]);
    }
}
