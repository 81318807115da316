//! What is wrong with a configuration by itself, before anything is opened.

use std::collections::HashSet;
use std::os::unix::ffi::OsStrExt;

use husk_devices::virtio::blk::QUEUES_MAX;
use husk_devices::virtio::console::ports::PORTS_MAX;
use husk_devices::virtio::vsock::{GUEST_CIDS, PATH_MAX};

use super::error::ConfigError;
use super::limits::{
    CPUS_MAX, ID_MAX, MEMORY_MAX, MEMORY_MIN, OVERLAY, PORT_NAME_MAX, VIRTIO_DEVICES_MAX,
};
use super::{ConsoleDevice, DiskConfig, DiskEngine, DiskFormat, Size, VmConfig};
use crate::boot::Cmdline;

impl VmConfig {
    /// Gives every device without an id one (`disk0`, `net1`…).
    pub fn name_devices(&mut self) {
        for (n, disk) in self.disks.iter_mut().enumerate() {
            if disk.id.is_empty() {
                disk.id = format!("disk{n}");
            }
        }
        for (n, pmem) in self.pmem.iter_mut().enumerate() {
            if pmem.id.is_empty() {
                pmem.id = format!("pmem{n}");
            }
        }
        super::volume::name(&mut self.volumes);
        for (n, net) in self.nets.iter_mut().enumerate() {
            if net.id.is_empty() {
                net.id = format!("net{n}");
            }
        }
    }

    /// Checks everything that can be checked without the host.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn validate(&self) -> Result<(), ConfigError> {
        if self.kernel.as_os_str().is_empty() {
            return Err(ConfigError::NoKernel);
        }
        if self.cpus == 0 || self.cpus > CPUS_MAX {
            return Err(ConfigError::Cpus(self.cpus));
        }
        self.validate_memory()?;
        self.validate_balloon()?;
        let ids = self.disks.iter().map(|d| &d.id).chain(self.nets.iter().map(|n| &n.id));
        let ids = ids.chain(self.pmem.iter().map(|p| &p.id));
        let ids = ids.chain(self.volumes.iter().map(|v| &v.id));
        let mut seen = HashSet::new();
        let single = self.single_devices();
        seen.extend(&single);
        for id in ids {
            let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
            if id.is_empty() || id.len() > ID_MAX || !id.bytes().all(allowed) {
                return Err(ConfigError::BadId { id: id.clone() });
            }
            if !seen.insert(id) {
                return Err(ConfigError::DuplicateId(id.clone()));
            }
        }
        let lists = [self.disks.len(), self.pmem.len(), self.volumes.len(), self.nets.len()];
        let devices = lists.iter().sum::<usize>() + single.len();
        if devices > VIRTIO_DEVICES_MAX {
            return Err(ConfigError::TooManyDevices(devices));
        }
        for disk in &self.disks {
            if let Some(queues) = disk.queues.filter(|n| !(1..=QUEUES_MAX).contains(n)) {
                return Err(ConfigError::Queues { id: disk.id.clone(), queues });
            }
            if disk.bytes_per_second == Some(Size(0)) || disk.requests_per_second == Some(0) {
                return Err(ConfigError::NoBudget(disk.id.clone()));
            }
            if let Some(why) = disk.contradiction() {
                return Err(ConfigError::DiskOptions { id: disk.id.clone(), why });
            }
        }
        for net in &self.nets {
            net.validate()?;
        }
        self.validate_ports()?;
        super::volume::validate(&self.volumes, self.guest.is_some())?;
        self.validate_guest()?;
        if let Some(vsock) = &self.vsock {
            if !GUEST_CIDS.contains(&vsock.cid) {
                return Err(ConfigError::VsockCid(vsock.cid));
            }
            if !(1..=PATH_MAX).contains(&vsock.socket.as_os_str().len()) {
                return Err(ConfigError::VsockSocket(vsock.socket.clone()));
            }
        }
        for (what, path) in self.paths() {
            let bytes = path.as_os_str().as_bytes();
            if bytes.is_empty() {
                return Err(ConfigError::EmptyPath { what });
            }
            if bytes.contains(&0) {
                return Err(ConfigError::NulInPath { what, path: path.to_owned() });
            }
        }
        for text in [self.cmdline.as_deref().unwrap_or_default(), &self.append] {
            Cmdline::new(text).map_err(|e| ConfigError::Cmdline(e.to_string()))?;
        }
        // The guest would find a device twice.
        const DEVICE: &str = "virtio_mmio.device=";
        let has_device = |text: &str| Cmdline::new(text).is_ok_and(|line| line.has(DEVICE));
        if self.cmdline.as_deref().is_some_and(has_device) || has_device(&self.append) {
            return Err(ConfigError::ReservedParameter(DEVICE));
        }
        Ok(())
    }

    /// Names of the virtio devices of which a VM has one or none.
    fn single_devices(&self) -> Vec<String> {
        let devices = [
            (self.rng, "rng"),
            (self.console_device == ConsoleDevice::Virtio, "tty"),
            (!self.ports.is_empty(), "ports"),
            (self.balloon.is_some(), "balloon"),
            (self.overlay_disk().is_some(), OVERLAY),
            (self.vsock.is_some() || self.guest.is_some() || self.agent, "vsock"),
        ];
        let there = devices.into_iter().filter(|(there, _)| *there);
        there.map(|(_, name)| name.to_owned()).collect()
    }

    fn validate_ports(&self) -> Result<(), ConfigError> {
        if self.ports.len() > PORTS_MAX {
            return Err(ConfigError::TooManyPorts(self.ports.len()));
        }
        let mut seen = HashSet::new();
        for port in &self.ports {
            let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
            let name = &port.name;
            let long = (1..=PORT_NAME_MAX).contains(&name.len());
            if !long || !name.bytes().all(allowed) || matches!(&name[..], "." | "..") {
                return Err(ConfigError::PortName(name.clone()));
            }
            if port.socket.is_some() == port.file.is_some() {
                return Err(ConfigError::PortBackend(name.clone()));
            }
            if !seen.insert(name) {
                return Err(ConfigError::DuplicatePort(name.clone()));
            }
        }
        Ok(())
    }

    fn validate_balloon(&self) -> Result<(), ConfigError> {
        let Some(balloon) = self.balloon else { return Ok(()) };
        let size = balloon.size;
        let error = |why: String| Err(ConfigError::Balloon { size, why });
        if self.memory.hugepages {
            return error("a balloon gives back 4 KiB pages, and huge pages have none".to_owned());
        }
        if size >= self.memory.size {
            return error(format!("the guest has {}, and needs some of it", self.memory.size));
        }
        Ok(())
    }

    fn validate_memory(&self) -> Result<(), ConfigError> {
        let size = self.memory.size;
        let error = |why: String| Err(ConfigError::Memory { size, why });
        if (1..1 << 16).contains(&size.0) {
            return error(format!("that is in bytes; did you mean {}M?", size.0));
        }
        if size < MEMORY_MIN {
            return error(format!("a guest needs at least {MEMORY_MIN}"));
        }
        if size > MEMORY_MAX {
            return error(format!("a guest has at most {MEMORY_MAX}"));
        }
        if !size.0.is_multiple_of(4096) {
            return error("not a multiple of 4 KiB".to_owned());
        }
        if self.memory.hugepages && !size.0.is_multiple_of(2 << 20) {
            return error("with huge pages a multiple of 2 MiB is needed".to_owned());
        }
        Ok(())
    }
}

impl DiskConfig {
    /// What of it does not go together.
    fn contradiction(&self) -> Option<&'static str> {
        let qcow2 = self.format == Some(DiskFormat::Qcow2);
        match () {
            () if self.overlay && self.readonly => Some(
                "an overlay is there to be written, and the disk is read-only; leave one of them out",
            ),
            () if self.overlay_dir.is_some() && !self.overlay => {
                Some("overlay_dir says where an overlay is; add overlay")
            }
            () if self.backing && !qcow2 => {
                Some("backing is about images that are based on others; add format=qcow2")
            }
            () if qcow2 && self.engine == DiskEngine::IoUring => Some(
                "engine=io_uring does not read qcow2 images; use engine=threads, or leave it out",
            ),
            () => None,
        }
    }
}
