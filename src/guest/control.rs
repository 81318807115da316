//! The agent of a VM: whether it is up, and how to reach it.
//!
//! It connects once, says Hello, is told what the machine is to be, and says Ready. The connection lives
//! as long as the agent does; a thread of the host's waits at it. Everything else goes over connections
//! of its own ([`Agent::dial`]). One that a guest's own init starts may come again: it was started anew,
//! or the guest was.

use std::borrow::Cow;
use std::io;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::Receiver;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use husk_devices::virtio::net::passt;
use husk_devices::virtio::vsock::Inside;
use husk_guest_protocol::{Frame, GUEST_PORT, HOST_PORT, INTERFACE_LEN, VERSION, record_head, tag};

use super::session::{Frames, send};
use crate::config::{GuestConfig, InterfaceAddress, NetConfig, OVERLAY, VmConfig, VolumeConfig};

/// How long an agent that has connected may take for its words.
const PATIENCE: Duration = Duration::from_secs(60);
/// Bytes of stack of the thread that waits at the agent's connection.
const STACK: usize = 128 << 10;
/// The most of an agent's complaint that is shown, in bytes.
const WORDS_MAX: usize = 1024;

/// What is known of the agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Known {
    /// It has not said that it is ready, or not again.
    Waiting,
    /// It runs commands.
    Ready,
    /// It could not set the machine up; in its own words.
    Failed(String),
    /// Its connection has ended, or never came before the VM's end.
    Gone,
}

/// The agent of a VM.
#[derive(Debug)]
pub struct Agent {
    inside: Arc<Inside>,
    known: Mutex<Known>,
    changed: Condvar,
    connection: Mutex<Option<UnixStream>>,
    /// The guest has an init of its own, which starts it.
    service: bool,
}

impl Agent {
    /// Waits for the agent of the guest of `config` in a thread that ends with the device. One that is the
    /// guest's first process is told what the machine is to be, and one that another init starts nothing.
    ///
    /// # Errors
    /// When there is no thread.
    pub fn expect(inside: Arc<Inside>, config: &VmConfig) -> io::Result<Arc<Agent>> {
        let arriving = inside.listen(HOST_PORT);
        let agent = Arc::new(Agent {
            inside,
            known: Mutex::new(Known::Waiting),
            changed: Condvar::new(),
            connection: Mutex::new(None),
            service: config.guest.is_none(),
        });
        let this = agent.clone();
        let orders = config.guest.as_ref().map(|guest| Orders {
            guest: guest.clone(),
            volumes: config.volumes.clone(),
            nets: config.nets.clone(),
        });
        let thread = std::thread::Builder::new().name("husk-agent".to_owned()).stack_size(STACK);
        thread.spawn(move || match orders {
            Some(orders) => this.attend(arriving, &orders),
            None => this.attend_service(arriving),
        })?;
        Ok(agent)
    }

    /// Whether the guest has an init of its own, which starts the agent.
    pub fn is_service(&self) -> bool {
        self.service
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        // No code panics while it holds the lock.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn learn(&self, known: Known) {
        *self.known() = known;
        self.changed.notify_all();
    }

    fn attend(&self, arriving: Receiver<UnixStream>, orders: &Orders) {
        // An error: the VM has ended.
        let arrived = arriving.recv();
        // Whoever else connects to that port is not the agent.
        drop(arriving);
        let end = match arrived {
            Ok(connection) => self.converse(connection, Some(orders)).unwrap_or(Known::Gone),
            Err(_) => Known::Gone,
        };
        let failed = matches!(end, Known::Failed(_));
        self.learn(end);
        if failed {
            self.shut_down();
        }
    }

    /// Attends to one after the other.
    fn attend_service(&self, mut arriving: Receiver<UnixStream>) {
        while let Ok(connection) = arriving.recv() {
            // As above, as long as this one is there.
            drop(arriving);
            let end = self.converse(connection, None).unwrap_or(Known::Gone);
            *self.connection.lock().unwrap_or_else(PoisonError::into_inner) = None;
            self.learn(if end == Known::Gone { Known::Waiting } else { end });
            arriving = self.inside.listen(HOST_PORT);
        }
        self.learn(Known::Gone);
    }

    /// Speaks with the agent until it goes. One without orders finds its machine as another init made it.
    fn converse(&self, connection: UnixStream, orders: Option<&Orders>) -> io::Result<Known> {
        connection.set_read_timeout(Some(PATIENCE))?;
        let kept = connection.try_clone()?;
        *self.connection.lock().unwrap_or_else(PoisonError::into_inner) = Some(kept);
        let mut frames = Frames::new(connection.try_clone()?);
        match frames.next()? {
            Some(Frame::Hello(VERSION)) => {}
            Some(Frame::Hello(other)) => {
                return Ok(Known::Failed(format!(
                    "its agent speaks version {other} of the protocol, and husk {VERSION}"
                )));
            }
            _ => return Ok(Known::Gone),
        }
        // Not before now: the time is among them.
        let orders = orders.map(Orders::records).unwrap_or_default();
        send(&connection, Frame::Setup(&orders))?;
        match frames.next()? {
            Some(Frame::Ready) => {}
            Some(Frame::Failed(words)) => {
                let words = String::from_utf8_lossy(words.get(..WORDS_MAX).unwrap_or(words));
                return Ok(Known::Failed(words.into_owned()));
            }
            _ => return Ok(Known::Gone),
        }
        connection.set_read_timeout(None)?;
        self.learn(Known::Ready);
        // It has nothing more to say; whatever it says is the end of it.
        frames.next()?;
        Ok(Known::Gone)
    }

    /// Waits until it is ready or will never be, at most for `limit`.
    pub fn wait(&self, limit: Duration) -> Known {
        let deadline = Instant::now().checked_add(limit);
        let mut known = self.known();
        while *known == Known::Waiting {
            known = match deadline {
                None => self.changed.wait(known).unwrap_or_else(PoisonError::into_inner),
                Some(deadline) => {
                    let Some(left) = deadline.checked_duration_since(Instant::now()) else { break };
                    let waited = self.changed.wait_timeout(known, left);
                    waited.unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
        known.clone()
    }

    /// A connection for a session, until then.
    ///
    /// # Errors
    /// When the agent does not take it; `TimedOut` or `WouldBlock` when it does not in time.
    pub fn dial(&self, until: Instant) -> io::Result<UnixStream> {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        self.inside.dial(GUEST_PORT, left)
    }

    /// A connection to another port of the guest's.
    ///
    /// # Errors
    /// `ConnectionRefused` when nobody listens there; else as [`Agent::dial`].
    pub fn connect(&self, port: u32, patience: Duration) -> io::Result<UnixStream> {
        self.inside.dial(port, patience)
    }

    /// Asks it to write everything to the disks and turn the machine off.
    pub fn shut_down(&self) {
        let connection = self.connection.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(connection) = &*connection {
            // One that has gone needs not be told; a guest that takes nothing is not waited for.
            let _ = connection.set_write_timeout(Some(Duration::from_secs(1)));
            let _ = send(connection, Frame::Shutdown);
        }
    }
}

/// What the machine is to be.
struct Orders {
    guest: GuestConfig,
    /// Some of them are mounted, or the root.
    volumes: Vec<VolumeConfig>,
    /// Some of them have addresses.
    nets: Vec<NetConfig>,
}

impl Orders {
    /// As records.
    fn records(&self) -> Vec<u8> {
        let Orders { guest: config, volumes, nets } = self;
        let mut records = Vec::new();
        let mut add = |tag, bytes: &[u8]| {
            // Names and numbers, all short.
            records.extend(record_head(tag, bytes.len() as u32));
            records.extend(bytes);
            records.push(0);
        };
        let now = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
        let nanos = now.subsec_nanos().to_le_bytes();
        add(tag::CLOCK, &[&now.as_secs().to_le_bytes()[..], &nanos].concat());
        add(tag::HOST_NAME, config.host_name.as_bytes());
        if let Some(root) = &config.root {
            if let Some(disk) = &root.disk {
                add(tag::ROOT, disk.as_bytes());
            }
            let volume = volumes.iter().find(|volume| root.volume.as_ref() == Some(&volume.id));
            if let Some(volume) = volume {
                add(tag::ROOT_VOLUME, volume.tag.as_bytes());
            }
            if root.writable {
                add(tag::ROOT_WRITABLE, &[]);
            }
            if root.readonly {
                add(tag::ROOT_READ_ONLY, &[]);
            }
        }
        if config.overlay_disk().is_some() {
            add(tag::OVERLAY_DISK, OVERLAY.as_bytes());
        }
        for (_, tag, record) in mounts(config, volumes) {
            add(tag, record.as_bytes());
        }
        for (number, net) in (0u8..).zip(nets) {
            if let Some(interface) = interface(number, net) {
                add(tag::INTERFACE, &interface);
            }
        }
        records
    }
}

/// What the interface of that number is to have: the address that is given, or passt's.
fn interface(number: u8, net: &NetConfig) -> Option<[u8; INTERFACE_LEN]> {
    let passts = InterfaceAddress { address: passt::GUEST, prefix: passt::PREFIX };
    let InterfaceAddress { address, prefix } = net.address.or(net.user.then_some(passts))?;
    let [a0, a1, a2, a3] = address.octets();
    let [g0, g1, g2, g3] = if net.user { passt::GATEWAY.octets() } else { [0; 4] };
    Some([number, a0, a1, a2, a3, prefix, g0, g1, g2, g3])
}

/// What the agent mounts: where, as what record, and the record. What lies in another comes after it; at the
/// same place a volume after a directory in memory.
fn mounts<'a>(
    config: &'a GuestConfig,
    volumes: &'a [VolumeConfig],
) -> Vec<(&'a str, u8, Cow<'a, str>)> {
    let in_memory = config.tmpfs.iter().map(|path| (&path[..], tag::TMPFS, Cow::from(path)));
    let volumes = volumes.iter().filter_map(|volume| {
        let tag = match (volume.readonly, volume.overlay) {
            (true, _) => tag::VOLUME_READ_ONLY,
            (_, true) => tag::VOLUME_OVERLAY,
            _ => tag::VOLUME,
        };
        let mount = volume.mount.as_deref()?;
        Some((mount, tag, format!("{}:{mount}", volume.tag).into()))
    });
    let mut all: Vec<_> = in_memory.chain(volumes).collect();
    all.sort_by_key(|(path, ..)| path.split('/').filter(|name| !name.is_empty()).count());
    all
}

#[cfg(test)]
mod tests {
    use husk_guest_protocol::{PAYLOAD_MAX, Records};

    use super::*;

    #[test]
    fn the_agent_is_told_which_volumes_it_mounts_and_as_many_as_there_can_be_fit() {
        let volume = |tag: &str, mount: Option<&str>, readonly| VolumeConfig {
            tag: tag.to_owned(),
            mount: mount.map(str::to_owned),
            readonly,
            ..VolumeConfig::default()
        };
        let volumes = [
            volume("a", Some("/in/a"), false),
            volume("b", None, true),
            volume("c", Some("/c"), true),
        ];
        let guest = GuestConfig::default();
        let orders = Orders { guest, volumes: volumes.to_vec(), nets: Vec::new() };
        let records = orders.records();
        let told: Vec<_> = Records(&records)
            .map(|record| record.map(|record| (record.tag, record.bytes())).unwrap())
            .filter(|(tag, _)| *tag >= tag::VOLUME)
            .collect();
        assert_eq!(told, [(tag::VOLUME_READ_ONLY, &b"c:/c"[..]), (tag::VOLUME, b"a:/in/a")]);

        let nets = [
            NetConfig { tap: Some("t".into()), ..NetConfig::default() },
            NetConfig { user: true, ..NetConfig::default() },
            NetConfig { address: "10.0.9.1/24".parse().ok(), ..NetConfig::default() },
        ];
        let records = Orders { volumes: Vec::new(), nets: nets.to_vec(), ..orders }.records();
        let told: Vec<_> = Records(&records)
            .map(Result::unwrap)
            .filter(|record| record.tag == tag::INTERFACE)
            .map(|record| record.bytes())
            .collect();
        assert_eq!(told[0], [1, 10, 0, 2, 15, 24, 10, 0, 2, 2]);
        assert_eq!(told[1], [2, 10, 0, 9, 1, 24, 0, 0, 0, 0]);
        assert_eq!(told.len(), 2);

        let longest = volume(&"t".repeat(36), Some(&"/".repeat(255)), false);
        let volumes = vec![longest; crate::config::VIRTIO_DEVICES_MAX];
        let tmpfs = vec!["/".repeat(255); 32];
        let guest = GuestConfig { tmpfs, ..GuestConfig::default() };
        assert!(Orders { guest, volumes, nets: nets.to_vec() }.records().len() < PAYLOAD_MAX);
    }

    #[test]
    fn what_lies_in_another_directory_is_mounted_after_it() {
        let volume = |tag: &str, mount: &str| VolumeConfig {
            tag: tag.to_owned(),
            mount: Some(mount.to_owned()),
            overlay: tag == "cow",
            ..VolumeConfig::default()
        };
        let volumes =
            [volume("a", "/tmp/deep/er"), volume("cow", "/tmp/deep/"), volume("b", "/tmp")];
        let config = GuestConfig { tmpfs: vec!["/tmp".to_owned()], ..GuestConfig::default() };
        let order = mounts(&config, &volumes);
        let order: Vec<_> = order.iter().map(|(_, tag, record)| (*tag, &record[..])).collect();
        let wanted = [
            (tag::TMPFS, "/tmp"),
            (tag::VOLUME, "b:/tmp"),
            (tag::VOLUME_OVERLAY, "cow:/tmp/deep/"),
            (tag::VOLUME, "a:/tmp/deep/er"),
        ];
        assert_eq!(order, wanted);
    }
}
