//! What is wrong with a configuration by itself, before anything is opened.

use std::collections::HashSet;

use husk_devices::virtio::console::ports::PORTS_MAX;

use super::{ConsoleDevice, Size, VmConfig};
use crate::x86_64::layout;

/// Less memory than this boots no Linux.
const MEMORY_MIN: Size = Size::mib(32);
/// 16 TiB: more than any host husk was thought for has.
const MEMORY_MAX: Size = Size(1 << 44);
/// A virtio serial number has 20 bytes (virtio 1.3 §5.2.6), and a name should be typeable.
const ID_MAX: usize = 20;

/// As long as anybody's (`org.qemu.guest_agent.0`), and far below a control buffer.
const PORT_NAME_MAX: usize = 64;

/// A configuration that no host can run.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// Number of vCPUs.
    #[error("--cpus {0}: a VM has 1 to {max} vCPUs", max = layout::VCPUS_MAX)]
    Cpus(u32),
    /// Amount of memory.
    #[error("--memory {size}: {why}")]
    Memory {
        /// What was asked for.
        size: Size,
        /// What is wrong with it.
        why: String,
    },
    /// A balloon that does not fit its machine.
    #[error("--balloon {size}: {why}")]
    Balloon {
        /// What was asked for.
        size: Size,
        /// What is wrong with it.
        why: String,
    },
    /// Two devices share an id.
    #[error("two devices are called `{0}`; give one of them another id=")]
    DuplicateId(String),
    /// An id that cannot be used.
    #[error("`{id}` is no device id: 1 to {ID_MAX} letters, digits, `-`, `_` or `.`")]
    BadId {
        /// The id.
        id: String,
    },
    /// More devices than interrupts.
    #[error("{0} virtio devices, but there are interrupts for {max}", max = layout::VIRTIO_MAX)]
    TooManyDevices(usize),
    /// A network interface without a host side, or with two.
    #[error("network interface `{0}`: give it either tap=NAME or fd=N")]
    NetBackend(String),
    /// A TAP name Linux would refuse.
    #[error("`{0}` is no interface name: 1 to 15 bytes without `/`, `%` and spaces")]
    TapName(String),
    /// A port without a host side, or with two.
    #[error("port `{0}`: give it either socket=PATH or file=PATH")]
    PortBackend(String),
    /// A port's name that cannot be used.
    #[error("`{0}` is no name for a port: 1 to {PORT_NAME_MAX} letters, digits, `-`, `_` or `.`")]
    PortName(String),
    /// Two ports share a name.
    #[error("two ports are called `{0}`; give one of them another name=")]
    DuplicatePort(String),
    /// More ports than the device has.
    #[error("{0} ports, but a VM has at most {PORTS_MAX}")]
    TooManyPorts(usize),
    /// A MAC address that cannot be used.
    #[error(
        "`{0}` is no MAC address for a guest: six hex bytes such as 52:54:00:12:34:56, the first one even"
    )]
    Mac(String),
    /// A parameter with which the guest would find a device twice.
    #[error("the command line has `{0}`, but husk describes its devices to the guest itself")]
    ReservedParameter(&'static str),
}

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
        for (n, net) in self.nets.iter_mut().enumerate() {
            if net.id.is_empty() {
                net.id = format!("net{n}");
            }
        }
    }

    /// Checks everything that can be checked without the host.
    pub fn validate(&self) -> Result<(), ConfigError> {
        if self.cpus == 0 || self.cpus > layout::VCPUS_MAX {
            return Err(ConfigError::Cpus(self.cpus));
        }
        self.validate_memory()?;
        self.validate_balloon()?;
        let ids = self.disks.iter().map(|d| &d.id).chain(self.nets.iter().map(|n| &n.id));
        let ids = ids.chain(self.pmem.iter().map(|p| &p.id));
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
        let devices = self.disks.len() + self.pmem.len() + self.nets.len() + single.len();
        if devices > layout::VIRTIO_MAX {
            return Err(ConfigError::TooManyDevices(devices));
        }
        for net in &self.nets {
            if net.tap.is_some() == net.fd.is_some() {
                return Err(ConfigError::NetBackend(net.id.clone()));
            }
            if let Some(tap) = net.tap.as_ref().filter(|name| !is_interface_name(name)) {
                return Err(ConfigError::TapName(tap.clone()));
            }
            if let Some(mac) = &net.mac {
                parse_mac(mac)?;
            }
        }
        self.validate_ports()?;
        // The guest would find a device twice. To the kernel - and _ are the same in a name.
        let parameters = [self.cmdline.as_deref().unwrap_or_default(), &self.append];
        let described =
            parameters.iter().any(|p| p.replace('-', "_").contains("virtio_mmio.device="));
        if described {
            return Err(ConfigError::ReservedParameter("virtio_mmio.device="));
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
            return error(format!("that is {} bytes; did you mean {}M?", size.0, size.0));
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

/// `dev_valid_name` of Linux.
fn is_interface_name(name: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_graphic() && !matches!(b, b'/' | b':' | b'%');
    (1..16).contains(&name.len()) && name != "." && name != ".." && name.bytes().all(allowed)
}

/// Reads a unicast MAC address.
pub(crate) fn parse_mac(text: &str) -> Result<[u8; 6], ConfigError> {
    let error = || ConfigError::Mac(text.to_owned());
    let mut mac = [0; 6];
    let mut parts = text.split([':', '-']);
    for byte in &mut mac {
        let part = parts.next().filter(|p| p.len() == 2).ok_or_else(error)?;
        *byte = u8::from_str_radix(part, 16).map_err(|_| error())?;
    }
    let multicast = mac[0] & 1 != 0;
    if parts.next().is_some() || multicast || mac == [0; 6] {
        return Err(error());
    }
    Ok(mac)
}
