//! A device of each kind on a worker of its own, over guarded memory, with the far end of what it
//! stands in front of: for whoever plays a driver that does anything at all, the property tests of
//! `adversary` and the fuzzers.

use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::PathBuf;

use super::{DATA, Driver, MEMORY, Piece, guarded_memory, release, transport, wait_until};
use crate::block::{Disk, DiskOptions};
use crate::fs::{Share, ShareOptions};
use crate::serial::{Line, Uart};
use crate::virtio::balloon::ram::Plain;
use crate::virtio::balloon::{Balloon, BalloonDevice};
use crate::virtio::blk::{Blk, BlkOptions};
use crate::virtio::console::endpoint::Endpoint;
use crate::virtio::console::ports::Ports;
use crate::virtio::console::tty::{Tty, TtyDevice};
use crate::virtio::device::VirtioDevice;
use crate::virtio::fs::Fs;
use crate::virtio::net::link::{self, Link};
use crate::virtio::net::{Card, Net, Plain as PlainWire, Stream};
use crate::virtio::pmem::{ALIGNMENT, Pmem, PmemFile};
use crate::virtio::rng::Rng;
use crate::virtio::vsock::{Inside, Vsock};
use crate::worker::Worker;

/// Entries of each queue.
pub const SIZE: u16 = 16;
/// `VIRTIO_F_INDIRECT_DESC` (virtio 1.3 §6).
pub const INDIRECT_DESC: u64 = 1 << 28;

/// A device on its worker, with the far end of what it stands in front of.
pub struct Subject {
    pub driver: Driver,
    pub kind: Kind,
    wire: Wire,
    pub worker: Worker,
    _image: Option<tempfile::NamedTempFile>,
    _dir: Option<tempfile::TempDir>,
    /// Where a host's process connects to the device.
    door: Option<PathBuf>,
}

enum Wire {
    None,
    /// One for each pair of queues.
    Datagrams(Vec<UnixDatagram>),
    Stream(UnixStream),
    /// Where the card's end of a link listens, and the other end.
    Link(PathBuf, Option<UnixDatagram>),
}

/// Which device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Rng,
    Blk,
    Net,
    NetStream,
    /// Two pairs of queues, and a control queue.
    NetPairs,
    NetLink,
    Vsock,
    Tty,
    Ports,
    Balloon,
    Pmem,
    Fs,
}

impl Kind {
    /// All there are.
    pub const ALL: [Kind; 12] = [
        Kind::Rng,
        Kind::Blk,
        Kind::Net,
        Kind::NetStream,
        Kind::NetPairs,
        Kind::NetLink,
        Kind::Vsock,
        Kind::Tty,
        Kind::Ports,
        Kind::Balloon,
        Kind::Pmem,
        Kind::Fs,
    ];

    /// What a driver of it accepts beside what is every device's.
    pub fn features(self) -> u64 {
        match self {
            Kind::Rng | Kind::Blk | Kind::Pmem | Kind::Vsock | Kind::Fs => 0,
            Kind::Net | Kind::NetStream | Kind::NetLink => 1 << 15,
            Kind::NetPairs => 1 << 15 | 1 << 17 | 1 << 22,
            Kind::Tty => 1,
            Kind::Ports => 2,
            Kind::Balloon => 0x36,
        }
    }

    /// What it may accept or not, of which `choice` is one set.
    pub fn options(self, choice: u8) -> u64 {
        match (self, choice & 3) {
            // Checksums and segmentation, both ways (virtio 1.3 §5.1.3).
            (Kind::Net | Kind::NetPairs | Kind::NetLink, 1) => 0x3b83,
            (Kind::Net | Kind::NetPairs | Kind::NetLink, 2) => 0x3,
            (Kind::Net | Kind::NetPairs | Kind::NetLink, 3) => 0x83,
            _ => 0,
        }
    }
}

/// Where what is made for one run is made: in memory, for a file system's journal may take a second to let
/// a file go.
const PLACE: &str = "/dev/shm";

/// Two ends of a wire that keeps borders; neither blocks.
fn datagrams() -> (OwnedFd, UnixDatagram) {
    let (ours, theirs) = UnixDatagram::pair().unwrap();
    ours.set_nonblocking(true).unwrap();
    theirs.set_nonblocking(true).unwrap();
    (ours.into(), theirs)
}

impl Subject {
    pub fn new(kind: Kind) -> Subject {
        Subject::on(Worker::spawn("subject").unwrap(), kind)
    }

    /// The same with a worker that has no thread, where the device can do without.
    pub fn here(kind: Kind) -> Subject {
        match kind {
            // Their host may keep them waiting.
            Kind::Blk | Kind::Fs => Subject::new(kind),
            _ => Subject::on(Worker::here("subject").unwrap(), kind),
        }
    }

    /// The same on a given worker; a disk has workers of its own.
    pub fn on(worker: Worker, kind: Kind) -> Subject {
        let memory = guarded_memory(&[MEMORY]);
        let (mut image, mut wire, mut dir, mut door) = (None, Wire::None, None, None);
        let device: Box<dyn VirtioDevice> = match kind {
            Kind::Rng => Box::new(Rng::new(worker.handle())),
            Kind::Blk => {
                let mut file = tempfile::NamedTempFile::new_in(PLACE).unwrap();
                file.write_all(&[7; 65536]).unwrap();
                let disk = Disk::open(file.path(), DiskOptions::default()).unwrap();
                image = Some(file);
                Box::new(Blk::new("disk", disk, BlkOptions::default()).unwrap())
            }
            Kind::Net => {
                let (ours, theirs) = datagrams();
                wire = Wire::Datagrams(vec![theirs]);
                Box::new(Net::new(
                    "net",
                    Box::new(PlainWire(ours)),
                    Card::default(),
                    worker.handle(),
                ))
            }
            Kind::NetPairs => {
                let (ours, theirs) = [datagrams(), datagrams()].into_iter().unzip();
                wire = Wire::Datagrams(theirs);
                Box::new(Net::over_sockets("net", ours, worker.handle()))
            }
            Kind::NetLink => {
                let place = tempfile::tempdir_in(PLACE).unwrap();
                let links = place.path().join("links");
                let link = Link::open(&links, "x").unwrap();
                wire = Wire::Link(links.join("x.link"), None);
                dir = Some(place);
                Box::new(Net::new("net", Box::new(link), Card::default(), worker.handle()))
            }
            Kind::NetStream => {
                let (ours, theirs) = UnixStream::pair().unwrap();
                ours.set_nonblocking(true).unwrap();
                theirs.set_nonblocking(true).unwrap();
                wire = Wire::Stream(theirs);
                let backend = Box::new(Stream::new(ours.into()));
                Box::new(Net::new("net", backend, Card::default(), worker.handle()))
            }
            Kind::Vsock => {
                let place = dir.insert(tempfile::tempdir_in(PLACE).unwrap());
                let socket = door.insert(place.path().join("v.sock"));
                Box::new(
                    Vsock::new(3, Some(socket), Inside::new().unwrap(), worker.handle()).unwrap(),
                )
            }
            Kind::Tty => {
                let tty = Tty::beside(Uart::new().unwrap()).unwrap();
                tty.receive(&[b'x'; 500]);
                Box::new(TtyDevice::new(tty, worker.handle()))
            }
            Kind::Ports => {
                let place = tempfile::tempdir_in(PLACE).unwrap();
                let socket = Endpoint::socket(&place.path().join("s")).unwrap();
                let file = Endpoint::file(&place.path().join("f")).unwrap();
                dir = Some(place);
                let ports = vec![("s".to_owned(), socket), ("f".to_owned(), file)];
                Box::new(Ports::new(ports, worker.handle()))
            }
            Kind::Balloon => {
                let plain = Plain::new(memory.clone(), Vec::new());
                let balloon = Balloon::new(1 << 20).unwrap();
                Box::new(BalloonDevice::new(balloon, plain, worker.handle()))
            }
            Kind::Pmem => {
                let file = tempfile::NamedTempFile::new_in(PLACE).unwrap();
                file.as_file().set_len(ALIGNMENT).unwrap();
                let open = PmemFile::open(file.path(), true).unwrap();
                image = Some(file);
                Box::new(Pmem::new(open.into(), 1 << 32, worker.handle()))
            }
            Kind::Fs => {
                let place = dir.insert(tempfile::tempdir().unwrap());
                let share = Share::open(place.path(), ShareOptions::default()).unwrap();
                Box::new(Fs::new("share", share, worker.handle()).unwrap())
            }
        };
        let transport = transport("subject", device, memory.clone());
        let driver = Driver { transport, memory, rings: Vec::new() };
        Subject { driver, kind, wire, worker, _image: image, _dir: dir, door }
    }

    /// Frames come and go on the far side.
    pub fn stir(&mut self) {
        match &self.wire {
            Wire::None => {}
            // Lengths and frames, and not always whole ones.
            Wire::Stream(_) => self.say(&[0, 0, 3, 0].repeat(500)),
            Wire::Datagrams(_) => self.say(&[0; 3000]),
            Wire::Link(..) => {
                for words in [&link::HELLO[..], &link::READY, &[0; 3000]] {
                    self.say(words);
                }
            }
        }
        if let Some(door) = &self.door {
            let mut peer = UnixStream::connect(door).unwrap();
            // It may have been told already that the guest is not ready.
            let _ = peer.write_all(b"CONNECT 5\nhello");
        }
        self.worker.turn();
    }

    /// The far side says this, and takes something of what it has got.
    pub fn say(&mut self, bytes: &[u8]) {
        // A wire that is full or empty is as good.
        match &mut self.wire {
            Wire::None => {}
            Wire::Datagrams(wires) => {
                for wire in wires {
                    let _ = wire.send(bytes);
                    let _ = wire.recv(&mut [0; 100]);
                }
            }
            Wire::Stream(wire) => {
                let _ = wire.write(bytes);
                let _ = wire.read(&mut [0; 1000]);
            }
            Wire::Link(path, peer) => {
                if peer.is_none() {
                    // Nobody listens before there is a driver.
                    *peer = link::connect(path).unwrap_or_default().map(UnixDatagram::from);
                }
                if let Some(wire) = peer {
                    let _ = wire.send(bytes);
                    let _ = wire.recv(&mut [0; 100]);
                }
            }
        }
        self.worker.turn();
    }

    /// The other end of a link leaves.
    pub fn leave(&mut self) {
        if let Wire::Link(_, peer) = &mut self.wire {
            *peer = None;
        }
        self.worker.turn();
    }

    /// The far side takes all that it has got.
    fn drain(&mut self) {
        match &mut self.wire {
            Wire::None => {}
            Wire::Datagrams(wires) => {
                wires.iter().for_each(|wire| while wire.recv(&mut [0; 1]).is_ok() {});
            }
            Wire::Stream(wire) => while wire.read(&mut [0; 65536]).is_ok() {},
            Wire::Link(_, peer) => {
                // One that has left gives an end, again and again.
                let more = |wire: &UnixDatagram| wire.recv(&mut [0; 1]).is_ok_and(|len| len > 0);
                peer.iter().for_each(|wire| while more(wire) {});
            }
        }
    }

    /// Waits for the only used element, which there must be.
    fn used(&mut self, queue: usize) -> (u32, u32) {
        let mut used = Vec::new();
        let Subject { driver, worker, .. } = self;
        wait_until("used buffers", || {
            worker.turn();
            used.extend(driver.rings[queue].used());
            !used.is_empty()
        });
        assert_eq!(used.len(), 1);
        used[0]
    }

    /// A reset, and then a driver that behaves gets what it asks for.
    pub fn assert_works_after_reset(&mut self) {
        self.driver.transport.resume();
        self.driver.transport.reset();
        self.drain();
        self.driver.bring_up(INDIRECT_DESC | self.kind.features(), SIZE);
        match self.kind {
            Kind::Rng => {
                self.driver.send(0, &[Piece::In(DATA, 64)]);
                assert_eq!(self.used(0), (0, 64));
            }
            Kind::Blk => {
                self.driver.write(DATA, &[0; 16]);
                let status = Piece::In(DATA + 0x800, 1);
                self.driver.send(0, &[Piece::Out(DATA, 16), Piece::In(DATA + 0x100, 512), status]);
                assert_eq!(self.used(0), (0, 513));
                assert_eq!(self.driver.read(DATA + 0x800, 1), [0]);
            }
            Kind::Net | Kind::NetStream | Kind::NetPairs | Kind::NetLink => {
                self.drain();
                self.driver.send(1, &[Piece::Out(DATA, 77)]);
                assert_eq!(self.used(1), (0, 0));
                if self.kind == Kind::NetPairs {
                    for (pairs, ack) in [(2, 0), (3, 1), (0, 1), (1, 0)] {
                        self.driver.write(DATA, &[4, 0, pairs, 0]);
                        self.driver.send(4, &[Piece::Out(DATA, 4), Piece::In(DATA + 8, 1)]);
                        assert_eq!(self.used(4).1, 1);
                        assert_eq!(self.driver.read(DATA + 8, 1), [ack], "{pairs} pairs");
                    }
                }
            }
            Kind::Tty | Kind::Ports | Kind::Balloon => {
                self.driver.send(1, &[Piece::Out(DATA, 77)]);
                assert_eq!(self.used(1), (0, 0));
            }
            Kind::Vsock => {
                // An RW of no connection's, from port 7 of CID 3 to port 8 of CID 2: an RST.
                let mut packet = [0; 44];
                for (at, byte) in [(0, 3), (8, 2), (16, 7), (20, 8), (28, 1), (30, 5)] {
                    packet[at] = byte;
                }
                self.driver.write(DATA, &packet);
                self.driver.send(1, &[Piece::Out(DATA, 44)]);
                assert_eq!(self.used(1), (0, 0));
                for n in 1..=u64::from(SIZE) {
                    self.driver.send(0, &[Piece::In(DATA + n * 64, 64)]);
                }
                let Subject { driver, worker, .. } = self;
                wait_until("an RST", || {
                    worker.turn();
                    (1..=u64::from(SIZE)).any(|n| {
                        let got = driver.read(DATA + n * 64, 44);
                        (got[16], got[20], got[30]) == (8, 7, 3)
                    })
                });
            }
            Kind::Pmem => {
                self.driver.write(DATA, &[0; 4]);
                self.driver.send(0, &[Piece::Out(DATA, 4), Piece::In(DATA + 8, 4)]);
                assert_eq!(self.used(0), (0, 4));
            }
            Kind::Fs => {
                // Too short for anything, and answered all the same.
                self.driver.send(1, &[Piece::Out(DATA, 8), Piece::In(DATA + 64, 16)]);
                assert_eq!(self.used(1), (0, 16));
            }
        }
        assert_eq!(self.driver.status() & 0x40, 0);
    }

    /// Where a host's process connects to the device.
    pub fn door(&self) -> Option<&std::path::Path> {
        self.door.as_deref()
    }

    /// Ends it and gives its memory back: there may be many in one process.
    pub fn end(self) {
        let Subject { driver, .. } = self;
        let Driver { transport, memory, rings } = driver;
        transport.reset();
        drop((transport, rings));
        release(memory);
    }
}
