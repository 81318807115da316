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
    Datagrams(UnixDatagram),
    Stream(UnixStream),
}

/// Which device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Rng,
    Blk,
    Net,
    NetStream,
    Vsock,
    Tty,
    Ports,
    Balloon,
    Pmem,
    Fs,
}

impl Kind {
    /// What a driver of it accepts beside what is every device's.
    pub fn features(self) -> u64 {
        match self {
            Kind::Rng | Kind::Blk | Kind::Pmem | Kind::Vsock | Kind::Fs => 0,
            Kind::Net | Kind::NetStream => 1 << 15,
            Kind::Tty => 1,
            Kind::Ports => 2,
            Kind::Balloon => 0x36,
        }
    }
}

impl Subject {
    pub fn new(kind: Kind) -> Subject {
        Subject::on(Worker::spawn("subject").unwrap(), kind)
    }

    /// The same on a given worker; a disk has workers of its own.
    pub fn on(worker: Worker, kind: Kind) -> Subject {
        let memory = guarded_memory(&[MEMORY]);
        let (mut image, mut wire, mut dir, mut door) = (None, Wire::None, None, None);
        let device: Box<dyn VirtioDevice> = match kind {
            Kind::Rng => Box::new(Rng::new(worker.handle())),
            Kind::Blk => {
                let mut file = tempfile::NamedTempFile::new().unwrap();
                file.write_all(&[7; 65536]).unwrap();
                let disk = Disk::open(file.path(), DiskOptions::default()).unwrap();
                image = Some(file);
                Box::new(Blk::new("disk", disk, BlkOptions::default()).unwrap())
            }
            Kind::Net => {
                let (ours, theirs) = UnixDatagram::pair().unwrap();
                ours.set_nonblocking(true).unwrap();
                theirs.set_nonblocking(true).unwrap();
                wire = Wire::Datagrams(theirs);
                let backend = Box::new(PlainWire(OwnedFd::from(ours)));
                Box::new(Net::new("net", backend, Card::default(), worker.handle()))
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
                let place = dir.insert(tempfile::tempdir().unwrap());
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
                let place = tempfile::tempdir().unwrap();
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
                let file = tempfile::NamedTempFile::new().unwrap();
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
    pub fn stir(&self) {
        // A wire that is full or empty is as good.
        match &self.wire {
            Wire::None => {}
            Wire::Datagrams(wire) => {
                let _ = wire.send(&[0; 3000]);
                let _ = wire.recv(&mut [0; 100]);
            }
            Wire::Stream(wire) => {
                // Lengths and frames, and not always whole ones.
                let mut wire = wire;
                let _ = wire.write(&[0, 0, 3, 0].repeat(500));
                let _ = wire.read(&mut [0; 1000]);
            }
        }
        if let Some(door) = &self.door {
            let mut peer = UnixStream::connect(door).unwrap();
            // It may have been told already that the guest is not ready.
            let _ = peer.write_all(b"CONNECT 5\nhello");
        }
    }

    /// A reset, and then a driver that behaves gets what it asks for.
    pub fn assert_works_after_reset(&mut self) {
        let driver = &mut self.driver;
        driver.transport.resume();
        driver.transport.reset();
        if let Wire::Datagrams(wire) = &self.wire {
            while wire.recv(&mut [0; 1]).is_ok() {}
        }
        driver.bring_up(INDIRECT_DESC | self.kind.features(), SIZE);
        match self.kind {
            Kind::Rng => {
                driver.send(0, &[Piece::In(DATA, 64)]);
                assert_eq!(driver.wait_used(0, 1), [(0, 64)]);
            }
            Kind::Blk => {
                driver.write(DATA, &[0; 16]);
                let status = Piece::In(DATA + 0x800, 1);
                driver.send(0, &[Piece::Out(DATA, 16), Piece::In(DATA + 0x100, 512), status]);
                assert_eq!(driver.wait_used(0, 1), [(0, 513)]);
                assert_eq!(driver.read(DATA + 0x800, 1), [0]);
            }
            Kind::Net | Kind::NetStream | Kind::Tty | Kind::Ports | Kind::Balloon => {
                if let Wire::Stream(wire) = &self.wire {
                    let mut wire = wire;
                    while wire.read(&mut [0; 65536]).is_ok() {}
                }
                driver.send(1, &[Piece::Out(DATA, 77)]);
                assert_eq!(driver.wait_used(1, 1), [(0, 0)]);
            }
            Kind::Vsock => {
                // An RW of no connection's, from port 7 of CID 3 to port 8 of CID 2: an RST.
                let mut packet = [0; 44];
                for (at, byte) in [(0, 3), (8, 2), (16, 7), (20, 8), (28, 1), (30, 5)] {
                    packet[at] = byte;
                }
                driver.write(DATA, &packet);
                driver.send(1, &[Piece::Out(DATA, 44)]);
                assert_eq!(driver.wait_used(1, 1), [(0, 0)]);
                for n in 1..=u64::from(SIZE) {
                    driver.send(0, &[Piece::In(DATA + n * 64, 64)]);
                }
                wait_until("an RST", || {
                    (1..=u64::from(SIZE)).any(|n| {
                        let got = driver.read(DATA + n * 64, 44);
                        (got[16], got[20], got[30]) == (8, 7, 3)
                    })
                });
            }
            Kind::Pmem => {
                driver.write(DATA, &[0; 4]);
                driver.send(0, &[Piece::Out(DATA, 4), Piece::In(DATA + 8, 4)]);
                assert_eq!(driver.wait_used(0, 1), [(0, 4)]);
            }
            Kind::Fs => {
                // Too short for anything, and answered all the same.
                driver.send(1, &[Piece::Out(DATA, 8), Piece::In(DATA + 64, 16)]);
                assert_eq!(driver.wait_used(1, 1), [(0, 16)]);
            }
        }
        assert_eq!(driver.status() & 0x40, 0);
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
