//! Virtio devices of which others than the guest want something while it runs: the console, the balloon,
//! files as memory; and the byte ports, which are opened after everything else, for their files are
//! emptied.

use std::ops::Range;
use std::sync::Arc;

use husk_devices::serial::Uart;
use husk_devices::virtio::balloon::ram::Plain;
use husk_devices::virtio::balloon::{Balloon, BalloonDevice};
use husk_devices::virtio::console::endpoint::Endpoint;
use husk_devices::virtio::console::ports::Ports;
use husk_devices::virtio::console::tty::{Tty, TtyDevice};
use husk_devices::virtio::pmem::Pmem;
use husk_devices::virtio::vsock::{Inside, Vsock};
use vm_memory::{GuestMemoryMmap, GuestMemoryRegion};

use super::error::{VmError, host};
use super::opening::Opening;
use super::pmem::{self, PmemRegion};
use crate::config::{ConsoleDevice, PortConfig, VmConfig, VsockConfig};
use crate::guest::control::Agent;

/// The host's side of these devices.
pub(super) struct Handles {
    /// The console, where it is not the UART.
    pub tty: Option<Arc<Tty>>,
    pub balloon: Option<Arc<Balloon>>,
    /// The agent in the guest.
    pub agent: Option<Arc<Agent>>,
    /// This process' own end of the sockets between guest and host.
    pub inside: Option<Arc<Inside>>,
    /// Files in the guest's address space.
    pub pmem: Vec<PmemRegion>,
}

/// What these devices are put into.
pub(super) struct Place<'a> {
    /// The guest's RAM, without files.
    pub ram: &'a GuestMemoryMmap,
    /// Guest addresses in it at which a file is mapped all the same.
    pub not_ram: Vec<Range<u64>>,
    pub uart: &'a Arc<Uart>,
}

impl Handles {
    /// Opens them and adds them to those that are open, with a worker of its own for each that blocks.
    ///
    /// # Errors
    /// What cannot be opened, by its name in the configuration.
    pub fn open(
        config: &VmConfig,
        place: Place<'_>,
        opening: &mut Opening,
    ) -> Result<Self, VmError> {
        let Place { ram, not_ram, uart } = place;
        let worker = opening.worker.handle();
        let mut handles = Self {
            tty: None,
            balloon: None,
            agent: None,
            inside: None,
            pmem: pmem::open(&config.pmem, ram)?,
        };
        let with_agent = config.guest.is_some() || config.agent;
        if config.vsock.is_some() || with_agent {
            let inside = Inside::new().map_err(host("vsock"))?;
            let cid = config.vsock.as_ref().map_or_else(VsockConfig::default_cid, |v| v.cid);
            let socket = config.vsock.as_ref().map(|vsock| vsock.socket.as_path());
            let device = Vsock::new(cid, socket, inside.clone(), worker.clone())?;
            opening.add("vsock", device);
            if with_agent {
                let agent = Agent::expect(inside.clone(), config);
                handles.agent = Some(agent.map_err(host("the thread of the guest's agent"))?);
            }
            handles.inside = Some(inside);
        }
        if config.console_device == ConsoleDevice::Virtio {
            let tty = Tty::beside(uart.clone()).map_err(host("console"))?;
            opening.add("tty", TtyDevice::new(tty.clone(), worker.clone()));
            handles.tty = Some(tty);
        }
        if let Some(config) = &config.balloon {
            let balloon = Balloon::new(config.size.0).map_err(host("balloon"))?;
            // Giving memory back takes long enough to have a worker of its own.
            let own = opening.own_worker("husk-balloon".to_owned())?;
            let plain = Plain::new(ram.clone(), not_ram);
            opening.add("balloon", BalloonDevice::new(balloon.clone(), plain, own));
            handles.balloon = Some(balloon);
        }
        for (config, file) in config.pmem.iter().zip(&handles.pmem) {
            // Flushing blocks, as a disk does.
            let own = opening.own_worker(format!("husk-{}", config.id))?;
            let start = file.region.start_addr().0;
            opening.add(&config.id, Pmem::new(file.file.clone(), start, own));
        }
        if !config.ports.is_empty() {
            let ports = config.ports.iter().map(open_port).collect::<Result<_, _>>()?;
            opening.add("ports", Ports::new(ports, worker));
        }
        Ok(handles)
    }
}

fn open_port(port: &PortConfig) -> Result<(String, Endpoint), VmError> {
    let endpoint = match (&port.socket, &port.file) {
        (Some(path), _) => Endpoint::socket(path)?,
        (None, Some(path)) => Endpoint::file(path)?,
        // Refused by VmConfig::validate.
        (None, None) => {
            return Err(crate::config::ConfigError::PortBackend(port.name.clone()).into());
        }
    };
    Ok((port.name.clone(), endpoint))
}
