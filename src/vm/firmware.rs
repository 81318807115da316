//! What a PC's firmware does: the kernel, its initrd, its command line and the description of the
//! machine, put into guest memory.

use std::sync::{Arc, Once};

use husk_devices::virtio::mmio::MMIO_WINDOW;
use vm_memory::{GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};

use super::VmError;
use super::background::Background;
use crate::boot::params::{self, BootInfo, E820_RAM, E820_RESERVED, E820Entry};
use crate::boot::{Cmdline, Initrd, Kernel, KernelError, Load, LoadMethod, LoadOptions, Loaded};
use crate::config::{BootProtocol, ConsoleDevice, VmConfig};
use crate::guest;
use crate::memory;
use crate::x86_64::acpi::{self, VirtioSlot};
use crate::x86_64::entry::Protocol;
use crate::x86_64::{layout, mptable, reset};

/// The command line when the user gives none.
fn default_cmdline(console: ConsoleDevice) -> &'static str {
    match console {
        ConsoleDevice::Serial => "console=ttyS0",
        ConsoleDevice::Virtio => "console=hvc0",
    }
}

/// The opened files a guest boots from.
pub(super) struct Software {
    pub kernel: Arc<Kernel>,
    pub initrd: Option<Initrd>,
    /// Said once, however often the guest reboots: that its kernel is not shared.
    pub unshared: Once,
}

impl Software {
    /// Whether it cannot do without a PC's timer. Linux finds its clocks in CPUID and ACPI; what was
    /// written for a PC does not, nor does a Linux without ACPI (Debian's reads no MP table either).
    pub fn needs_timer(&self, config: &VmConfig) -> bool {
        self.kernel.is_opaque() || !config.acpi
    }
}

/// How the kernel is loaded.
pub(super) fn load_method(config: &VmConfig) -> LoadMethod {
    match config.share_kernel {
        true => LoadMethod::Map,
        false => LoadMethod::Read,
    }
}

/// A kernel on its way into guest memory: what takes longest of a start, so it begins as soon as there is
/// a kernel and a memory, in a thread that who waits for it then helps.
pub(super) struct Loading {
    kernel: Arc<Kernel>,
    load: Arc<Load>,
    helper: Option<Background<Result<(), KernelError>>>,
}

impl Loading {
    /// Begins to load `kernel` into `memory`, which is as it was mapped.
    ///
    /// # Errors
    /// Those of [`Kernel::begin_load`], or that no thread can be started.
    pub fn begin(
        kernel: &Arc<Kernel>,
        config: &VmConfig,
        memory: &GuestMemoryMmap,
    ) -> Result<Self, VmError> {
        let protocol = match config.boot_protocol {
            BootProtocol::Auto => None,
            BootProtocol::Pvh => Some(Protocol::Pvh),
            BootProtocol::Linux64 => Some(Protocol::Linux64),
        };
        let options = LoadOptions { method: load_method(config), protocol };
        let load = Arc::new(kernel.begin_load(memory, options)?);
        let mut loading = Self { kernel: kernel.clone(), load, helper: None };
        if loading.load.is_long() {
            let (kernel, load) = (loading.kernel.clone(), loading.load.clone());
            let work = move || kernel.read(&load);
            let begun = Background::begin("husk-kernel", "the thread that loads the kernel", work);
            loading.helper = Some(begun?);
        }
        Ok(loading)
    }

    fn finish(self, software: &Software, config: &VmConfig) -> Result<Loaded, VmError> {
        let mine = self.kernel.read(&self.load);
        if let Some(helper) = self.helper {
            helper.finish()??;
        }
        mine?;
        let loaded = self.load.loaded().clone();
        if load_method(config) == LoadMethod::Map && loaded.method != LoadMethod::Map {
            software.unshared.call_once(|| {
                log::warn!(
                    "the kernel cannot be shared with other VMs: that takes husk's cache, memory \
                     that is private, and pages of 4 KiB"
                );
            });
        }
        Ok(loaded)
    }
}

/// The description of a machine for its guest.
pub(super) struct Firmware<'a> {
    pub config: &'a VmConfig,
    pub slots: &'a [VirtioSlot],
}

impl Firmware<'_> {
    /// Fills guest memory once the kernel is there, and returns how that is entered.
    ///
    /// # Errors
    /// When the kernel, its initrd or its command line does not fit, or cannot be read.
    pub fn load(
        &self,
        software: &Software,
        kernel: Loading,
        memory: &GuestMemoryMmap,
    ) -> Result<Loaded, VmError> {
        let loaded = kernel.finish(software, self.config)?;
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

    /// The kernel's command line, with what tells it of the devices.
    ///
    /// # Errors
    /// What is wrong with the user's.
    fn cmdline(&self) -> Result<Cmdline, VmError> {
        let mut cmdline = cmdline(self.config)?;
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

/// The kernel's command line: the user's, and what any machine of `config` needs.
///
/// # Errors
/// What is wrong with the user's.
pub(super) fn cmdline(config: &VmConfig) -> Result<Cmdline, VmError> {
    let default = default_cmdline(config.console_device);
    let mut cmdline = Cmdline::new(config.cmdline.as_deref().unwrap_or(default))?;
    cmdline.append(&config.append)?;
    if config.guest.is_some() {
        cmdline.append(&format!("rdinit={}", guest::INIT))?;
        // What is said on the console before a failure is of no use to anybody, and costs.
        if !cmdline.has("loglevel=") {
            cmdline.append("quiet")?;
        }
    }
    // A panic must end the VM, not stop it: the reset is how we learn of it.
    if !cmdline.has("panic=") {
        cmdline.append("panic=-1")?;
    }
    // There is no PCI; looking for it early costs two exits for each of 32 slots.
    if !cmdline.has("pci=") {
        cmdline.append("pci=off")?;
    }
    // Linux tries all its ciphers when it starts: two thirds of the instructions until its init. The host's
    // Linux has tried this processor. With fips=1 the guest's does so all the same.
    if config.cmdline.is_none() && !cmdline.has("cryptomgr.notests") {
        cmdline.append("cryptomgr.notests")?;
    }
    let disk = config.disks.first().map(|disk| ("vda", disk.readonly));
    let pmem = config.pmem.first().map(|pmem| ("pmem0", pmem.readonly));
    if let Some((root, readonly)) = disk.or(pmem)
        && config.cmdline.is_none()
        && config.guest.is_none()
        && !cmdline.has("root=")
    {
        let how = if readonly { "ro" } else { "rw" };
        cmdline.append(&format!("root=/dev/{root} {how}"))?;
    }
    Ok(cmdline)
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
    use vm_memory::GuestAddress;

    use super::*;
    use crate::config::{DiskConfig, GuestConfig, PmemConfig};

    fn firmware(config: &VmConfig) -> String {
        let slots = [VirtioSlot { base: 0xd000_0000, gsi: 6 }];
        Firmware { config, slots: &slots }.cmdline().unwrap().text()
    }

    #[test]
    fn the_command_line_ends_a_panicked_guest_unless_the_user_says_otherwise() {
        let mut config = VmConfig::new("k");
        assert_eq!(firmware(&config), "console=ttyS0 panic=-1 pci=off cryptomgr.notests");
        config.console_device = ConsoleDevice::Virtio;
        assert_eq!(firmware(&config), "console=hvc0 panic=-1 pci=off cryptomgr.notests");
        config.console_device = ConsoleDevice::Serial;
        config.append = "panic=5 quiet".to_owned();
        assert_eq!(firmware(&config), "console=ttyS0 panic=5 quiet pci=off cryptomgr.notests");
        config.append = "cryptomgr.notests=0".to_owned();
        assert_eq!(firmware(&config), "console=ttyS0 cryptomgr.notests=0 panic=-1 pci=off");
        config.cmdline = Some("mine".to_owned());
        config.append = String::new();
        assert_eq!(firmware(&config), "mine panic=-1 pci=off");
        config.cmdline = Some("mine panic=1 pci=noearly".to_owned());
        assert_eq!(firmware(&config), "mine panic=1 pci=noearly");
    }

    #[test]
    fn the_first_disk_is_the_root_unless_the_user_says_otherwise() {
        let mut config = VmConfig::new("k");
        config.disks = vec![DiskConfig { readonly: true, ..DiskConfig::default() }];
        assert!(firmware(&config).ends_with("root=/dev/vda ro"));
        config.pmem = vec![PmemConfig { id: "p".into(), path: "p".into(), readonly: true }];
        assert!(firmware(&config).ends_with("root=/dev/vda ro"));
        config.disks.clear();
        assert!(firmware(&config).ends_with("root=/dev/pmem0 ro"));
        config.append = "root=/dev/vdb".to_owned();
        assert!(!firmware(&config).contains("pmem"));
    }

    #[test]
    fn a_guest_that_runs_commands_begins_with_the_agent_and_is_quiet_unless_it_is_to_talk() {
        let mut config = VmConfig::new("k");
        config.guest = Some(GuestConfig::default());
        config.disks = vec![DiskConfig::default()];
        let all =
            |middle: &str| format!("console=ttyS0 {middle} panic=-1 pci=off cryptomgr.notests");
        assert_eq!(firmware(&config), all("rdinit=/husk/init quiet"));
        config.append = "loglevel=7".to_owned();
        assert_eq!(firmware(&config), all("loglevel=7 rdinit=/husk/init"));
    }

    #[test]
    fn devices_are_on_the_command_line_only_without_acpi() {
        let mut config = VmConfig::new("k");
        assert!(!firmware(&config).contains("virtio_mmio"));
        config.acpi = false;
        assert!(firmware(&config).ends_with("acpi=off virtio_mmio.device=4K@0xd0000000:6"));
    }

    /// What `vm_cmdline_set` of Linux' drivers/virtio/virtio_mmio.c makes of a parameter's value,
    /// `<size>@<base>:<irq>[:<id>]`: `memparse`, then `sscanf("@%lli:%u%n:%d%n")` with at least two
    /// numbers and nothing behind the last, and an interrupt that is not 0.
    fn as_linux_takes_it(value: &str) -> Option<(u64, u64, u32)> {
        /// `simple_strtoull` of base 0: the number and what is behind it.
        fn number(text: &str) -> Option<(u64, &str)> {
            let (digits, base) = match text.strip_prefix("0x") {
                Some(hex) => (hex, 16),
                None if text.starts_with('0') => (text, 8),
                None => (text, 10),
            };
            let end = digits.find(|c: char| !c.is_digit(base)).unwrap_or(digits.len());
            Some((u64::from_str_radix(&digits[..end], base).ok()?, &digits[end..]))
        }
        let (size, rest) = number(value)?;
        let (shift, rest) = match rest.as_bytes().first()? {
            b'K' | b'k' => (10, &rest[1..]),
            b'M' | b'm' => (20, &rest[1..]),
            _ => (0, rest),
        };
        let (base, rest) = number(rest.strip_prefix('@')?)?;
        let rest = rest.strip_prefix(':')?;
        // %u is decimal.
        let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        let irq: u32 = rest[..digits].parse().ok()?;
        (rest[digits..].is_empty() && irq != 0).then_some((size << shift, base, irq))
    }

    #[test]
    fn every_device_parameter_is_taken_by_linux_for_what_it_is() {
        let taken = as_linux_takes_it("0x1000@0xd0000000:6");
        assert_eq!(taken, Some((0x1000, 0xd000_0000, 6)), "the reading itself");
        for wrong in ["4K@0xd0000000", "4K@0xd0000000:0", "4K@0xd0000000:6 ", "@0xd0000000:6"] {
            assert_eq!(as_linux_takes_it(wrong), None, "{wrong}");
        }
        let slot =
            |n: u32| VirtioSlot { base: 0xd000_0000 + n * 0x1000, gsi: layout::VIRTIO_GSI + n };
        let slots: Vec<_> = (0..layout::VIRTIO_MAX as u32).map(slot).collect();
        let mut config = VmConfig::new("k");
        config.acpi = false;
        let line = Firmware { config: &config, slots: &slots }.cmdline().unwrap().text();
        let given = line.split(' ').filter_map(|word| word.strip_prefix("virtio_mmio.device="));
        let taken: Vec<_> = given.map(|value| as_linux_takes_it(value).unwrap()).collect();
        let wanted = slots.iter().map(|slot| (MMIO_WINDOW, u64::from(slot.base), slot.gsi));
        assert_eq!(taken, wanted.collect::<Vec<_>>());
    }

    #[test]
    fn the_memory_map_leaves_out_the_legacy_areas_and_the_hole() {
        // Mapped without a reservation, and not touched: a small host does.
        let ranges = [(GuestAddress(0), 3 << 30), (GuestAddress(4 << 30), 2 << 30)];
        let memory = GuestMemoryMmap::from_ranges(&ranges).unwrap();
        let ram: Vec<_> = memory_map(&memory)
            .iter()
            .filter(|e| e.kind == E820_RAM)
            .map(|e| (e.start, e.start + e.len))
            .collect();
        assert_eq!(ram, [(0, 0x9_fc00), (1 << 20, 3 << 30), (4 << 30, 6 << 30)]);
    }
}
