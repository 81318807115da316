//! Named byte ports (virtio 1.3 §5.3 with `F_MULTIPORT`): `/dev/virtio-ports/NAME` in the guest.
//!
//! ```text
//! queue 0, 1      port 0, to the guest and from it
//! queue 2, 3      control, to the guest and from it
//! queue 4, 5 …    port 1 …
//! ```
//!
//! What the guest writes to a port whose reader is slow stays in its own queue, and what the host
//! writes to a guest that does not read stays in the socket: nothing is kept here, and no port waits
//! for another. What a driver has still to be told of a port are bits of that port and no list, so
//! that a driver that asks and never listens fills nothing.

mod port;

use std::os::fd::AsRawFd;

use event_manager::{EventOps, Events, MutEventSubscriber};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::epoll::EventSet;

use super::control::{self, FromDriver};
use super::endpoint::Endpoint;
use super::{DEVICE_TYPE, QUEUE_SIZE, VIRTIO_CONSOLE_F_MULTIPORT};
use crate::virtio::device::{Activation, StartError, VirtioDevice};
use crate::virtio::interrupt::Interrupt;
use crate::virtio::queue::{Answer, Queue, QueueState};
use crate::virtio::seat::Seat;
use crate::worker::WorkerHandle;
use port::{Port, PortState};

/// The most ports of a device.
pub const PORTS_MAX: usize = 16;
/// Where the control queues are among a device's queues.
const CONTROL_RX: usize = 2;
const CONTROL_TX: usize = 3;

/// The device; it runs on a worker between start and stop.
pub struct Ports {
    /// `virtio_console_config` up to `max_nr_ports` (virtio 1.3 §5.3.4).
    config: [u8; 8],
    queue_sizes: Vec<u16>,
    worker: WorkerHandle,
    /// Here while the device is stopped.
    ports: Vec<Port>,
    driver: DriverState,
    seat: Seat<Serve>,
}

/// What the device knows of the driver beside its ports.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct DriverState {
    /// It speaks of more ports than one.
    multiport: bool,
    /// It has said that it takes ports.
    ready: bool,
}

/// What a snapshot keeps of the ports; connections to the host's side end with the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct State {
    driver: DriverState,
    ports: Vec<PortState>,
}

impl Ports {
    /// A device with these ports, in the order of their numbers; no more than [`PORTS_MAX`] of them
    /// are taken.
    pub fn new(ports: Vec<(String, Endpoint)>, worker: WorkerHandle) -> Ports {
        let ports: Vec<Port> = (0..)
            .zip(ports.into_iter().take(PORTS_MAX))
            .map(|(id, (name, endpoint))| Port::new(id, name, endpoint))
            .collect();
        let mut config = [0; 8];
        for (to, from) in config.iter_mut().skip(4).zip((ports.len() as u32).to_le_bytes()) {
            *to = from;
        }
        let queue_sizes = vec![QUEUE_SIZE; 2 * ports.len().max(1) + 2];
        let (driver, seat) = (DriverState::default(), Seat::default());
        Ports { config, queue_sizes, worker, ports, driver, seat }
    }
}

impl VirtioDevice for Ports {
    fn device_type(&self) -> u32 {
        DEVICE_TYPE
    }

    fn features(&self) -> u64 {
        1 << VIRTIO_CONSOLE_F_MULTIPORT
    }

    fn queue_sizes(&self) -> &[u16] {
        &self.queue_sizes
    }

    fn config(&self) -> Vec<u8> {
        self.config.to_vec()
    }

    fn start(&mut self, activation: Activation) -> Result<(), StartError> {
        let Activation { features, queues, memory, interrupt } = activation;
        if let Some(late) = self.seat.reclaim() {
            self.ports = late.ports;
            self.ports.iter_mut().for_each(Port::reset);
        }
        if self.seat.is_late() {
            return Err(StartError::Hangs);
        }
        self.driver.multiport = features & 1 << VIRTIO_CONSOLE_F_MULTIPORT != 0;
        let serve = Serve {
            queues,
            ports: std::mem::take(&mut self.ports),
            driver: self.driver,
            memory,
            interrupt,
        };
        for queue in serve.queues.iter().flatten() {
            queue.ring();
        }
        self.seat.start(&self.worker, |_| serve)
    }

    fn recall(&mut self) {
        self.seat.recall();
    }

    fn stop(&mut self) -> Vec<QueueState> {
        let Some(serve) = self.seat.stop() else { return Vec::new() };
        self.ports = serve.ports;
        self.driver = serve.driver;
        serve.queues.iter().flatten().map(Queue::state).collect()
    }

    fn is_busy(&mut self) -> bool {
        self.seat.may_touch()
    }

    fn save(&self) -> Value {
        let ports = self.ports.iter().map(Port::state).collect();
        // A struct of plain data always has a JSON form.
        serde_json::to_value(State { driver: self.driver, ports }).unwrap_or_default()
    }

    fn restore(&mut self, state: &Value) -> Result<(), String> {
        let state = State::deserialize(state).map_err(|e| e.to_string())?;
        let names: Vec<_> = self.ports.iter().map(Port::name).collect();
        if !state.ports.iter().map(|port| port.name.as_str()).eq(names.iter().copied()) {
            return Err(format!("its ports are not {}", names.join(", ")));
        }
        self.driver = state.driver;
        for (port, state) in self.ports.iter_mut().zip(state.ports) {
            port.restore(state);
        }
        Ok(())
    }

    fn reset(&mut self) {
        self.driver = DriverState::default();
        self.ports.iter_mut().for_each(Port::reset);
    }
}

/// Where the queue to the guest of port `n` is; the one from it follows.
fn rx_of(n: usize) -> usize {
    if n == 0 { 0 } else { 2 + 2 * n }
}

fn numbered(ports: &mut [Port], id: u32) -> Option<&mut Port> {
    ports.get_mut(usize::try_from(id).ok()?)
}

/// What runs in the worker.
struct Serve {
    queues: Vec<Option<Queue>>,
    ports: Vec<Port>,
    driver: DriverState,
    memory: GuestMemoryMmap,
    interrupt: Interrupt,
}

impl Serve {
    /// Hears what the driver says.
    fn hear(&mut self) {
        let Serve { queues, ports, driver, memory, interrupt } = self;
        let Some(Some(queue)) = queues.get_mut(CONTROL_TX) else { return };
        queue.quiet();
        queue.process(memory, interrupt, |chain| {
            let mut message = [0; control::LEN];
            if chain.copy_to(0, &mut message).is_err() {
                return Answer::Broken("a control message of less than 8 bytes");
            }
            match FromDriver::parse(message) {
                FromDriver::DeviceReady(ready) => {
                    driver.ready = ready;
                    ports.iter_mut().for_each(|port| port.announce(ready));
                }
                FromDriver::PortReady(id, ready) => {
                    if let Some(port) = numbered(ports, id) {
                        port.known(ready);
                    }
                }
                FromDriver::PortOpen(id, open) => {
                    if let Some(port) = numbered(ports, id) {
                        port.opened(open);
                    }
                }
                FromDriver::Other => {}
            }
            Answer::Done(0)
        });
    }

    /// Tells the driver what it has still to be told, as far as it has given buffers.
    fn tell(&mut self) {
        let Serve { queues, ports, memory, interrupt, .. } = self;
        let Some(Some(queue)) = queues.get_mut(CONTROL_RX) else { return };
        queue.quiet();
        queue.process(memory, interrupt, |chain| {
            let Some((port, message)) =
                ports.iter_mut().find_map(|port| port.message().map(|m| (port, m)))
            else {
                return Answer::Stop;
            };
            if chain.copy_from(0, &message).is_err() {
                return Answer::Broken("a control buffer that is too small for a port's name");
            }
            port.told();
            // A name has some dozen bytes at most, so the cast keeps the number.
            Answer::Done(message.len() as u32)
        });
    }

    /// Moves what can be moved through port `n`.
    fn carry(&mut self, n: usize, ops: &mut EventOps) {
        let Serve { queues, ports, memory, interrupt, .. } = self;
        let Some(port) = ports.get_mut(n) else { return };
        let at = rx_of(n);
        if let Some(Some(tx)) = queues.get_mut(at + 1) {
            port.send(tx, memory, interrupt);
        }
        if let Some(Some(rx)) = queues.get_mut(at) {
            port.receive(rx, memory, interrupt);
        }
        if port.settle(ops, interrupt)
            && let Some(Some(tx)) = queues.get_mut(at + 1)
        {
            // What was kept for it is nobody's.
            port.send(tx, memory, interrupt);
        }
    }

    /// Everything once.
    fn run(&mut self, ops: &mut EventOps) {
        if self.driver.multiport {
            self.hear();
            (0..self.ports.len()).for_each(|n| self.carry(n, ops));
            self.tell();
        }
    }
}

impl MutEventSubscriber for Serve {
    fn init(&mut self, ops: &mut EventOps) {
        for queue in self.queues.iter().flatten() {
            if let Err(e) = ops.add(Events::new(queue.doorbell(), EventSet::IN)) {
                self.interrupt.needs_reset(&e);
            }
        }
        // A driver of one port without a name has nobody on the host.
        if self.driver.multiport {
            self.ports.iter_mut().for_each(|port| port.begin(ops, &self.interrupt));
        }
    }

    fn process(&mut self, events: Events, ops: &mut EventOps) {
        let fd = events.fd();
        let queue = self.queues.iter().position(|queue| {
            queue.as_ref().is_some_and(|queue| queue.doorbell().as_raw_fd() == fd)
        });
        if !self.driver.multiport {
            // See init.
            if let Some(Some(queue)) = queue.and_then(|n| self.queues.get(n)) {
                queue.quiet();
            }
            return;
        }
        match queue {
            // Rarely: what was said may have made any port ready.
            Some(CONTROL_TX) => self.run(ops),
            Some(CONTROL_RX) => self.tell(),
            Some(at) => {
                let n = if at < CONTROL_RX { 0 } else { (at - CONTROL_RX) / 2 };
                self.carry(n, ops);
                self.tell();
            }
            None => {
                if let Some(n) = self.ports.iter().position(|port| port.watches(fd)) {
                    if let Some(port) = self.ports.get_mut(n) {
                        port.happened(&events, ops, &self.interrupt);
                    }
                    self.carry(n, ops);
                    self.tell();
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
