//! A driver made of bytes: what a fuzzer's input does to a device.
//!
//! An input is read from its front as a list of acts; when it ends so does the list. Every input is
//! valid, so that a mutation always changes what happens. After the last act the device is reset and
//! a driver that behaves must get what it asks for: a guest breaks its own device at most.
//!
//! Devices whose host never keeps them waiting run on the fuzzer's own thread, and come to rest after
//! each act: an input does the same every time, and costs no change of thread.

pub mod sockets;

use std::io::Write;

use husk_devices::block::{Disk, DiskFormat, DiskOptions};
use husk_devices::bus::BusDevice;
use husk_devices::virtio::blk::{Blk, BlkOptions};
use husk_devices::virtio::testing::subject::{INDIRECT_DESC, Kind, SIZE, Subject};
use husk_devices::virtio::testing::{
    DATA, Desc, Driver, EVENT_IDX, MEMORY, MEMORY_END, Piece, Ring, release,
};

/// The most acts of one input: more only take time.
const MOST_ACTS: usize = 64;
/// Bytes of a device's registers and config space.
const WINDOW: u64 = 0x1000;

/// The rest of an input.
pub struct Script<'a>(&'a [u8]);

impl<'a> Script<'a> {
    /// All of `input`.
    pub fn new(input: &'a [u8]) -> Self {
        Self(input)
    }

    /// The next byte; 0 past the end.
    pub fn byte(&mut self) -> u8 {
        self.bytes(1).first().copied().unwrap_or(0)
    }

    fn u16(&mut self) -> u16 {
        u16::from_le_bytes([self.byte(), self.byte()])
    }

    fn u32(&mut self) -> u32 {
        u32::from(self.u16()) | u32::from(self.u16()) << 16
    }

    /// The next `len` bytes, or what is left.
    fn bytes(&mut self, len: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(len.min(self.0.len()));
        self.0 = rest;
        taken
    }

    fn is_over(&self) -> bool {
        self.0.is_empty()
    }

    /// An address that is mostly in guest memory, or just outside.
    fn address(&mut self) -> u64 {
        match self.byte() {
            0..=0xdf => DATA + u64::from(self.u16() & 0x7fff),
            0xe0..=0xef => MEMORY_END - 32 + u64::from(self.byte() & 63),
            0xf0..=0xf7 => MEMORY.0 + u64::from(self.u16()),
            0xf8..=0xfb => u64::MAX - u64::from(self.byte()),
            _ => u64::from(self.u32()) << 8,
        }
    }

    /// A length that is mostly short.
    fn length(&mut self) -> u32 {
        match self.byte() {
            0..=0xbf => u32::from(self.u16() & 0xfff),
            0xc0..=0xef => u32::from(self.u16()),
            _ => self.u32(),
        }
    }
}

/// Drives a device of `kind` that is up, by its queues first of all.
pub fn drive(kind: Kind, input: &[u8]) {
    drive_on(kind, Script::new(input));
}

/// Drives a card: which one the input says first.
pub fn drive_card(input: &[u8]) {
    let mut script = Script::new(input);
    let kind = [Kind::Net, Kind::NetPairs, Kind::NetLink][usize::from(script.byte()) % 3];
    drive_on(kind, script);
}

fn drive_on(kind: Kind, mut script: Script<'_>) {
    let mut subject = Subject::here(kind);
    let how = script.byte();
    let event_idx = if how & 1 == 0 { 0 } else { EVENT_IDX };
    let features = kind.features() | kind.options(how >> 1) | event_idx;
    subject.driver.bring_up(INDIRECT_DESC | features, SIZE);
    subject.worker.turn();
    for _ in 0..MOST_ACTS {
        if script.is_over() {
            break;
        }
        act(&mut subject, &mut script);
    }
    finish(subject);
}

/// A disk's requests upon an image of any content, which is in the input behind them.
pub fn image(input: &[u8]) {
    /// Bytes of a request in the input: what, where (in sectors), how many.
    const REQUEST: usize = 4;
    const REQUESTS: usize = 8;
    let mut script = Script::new(input);
    let (how, requests) = (script.byte(), script.bytes(REQUEST * REQUESTS));
    let mut file = tempfile::NamedTempFile::new_in("/dev/shm").expect("room for an image");
    file.write_all(script.0).expect("room for an image");
    let format = Some(DiskFormat::Qcow2);
    let options = DiskOptions { read_only: how & 1 != 0, format, ..DiskOptions::default() };
    let Ok(disk) = Disk::open(file.path(), options) else { return };
    let Ok(device) = Blk::new("image", disk, BlkOptions::default()) else { return };
    let mut driver = Driver::start(Box::new(device), 0, SIZE);
    for (n, request) in requests.as_chunks::<REQUEST>().0.iter().enumerate() {
        let [what, low, high, len] = *request;
        let kind = [0u32, 1, 4, 11, 13][usize::from(what) % 5];
        let sector = u64::from(u16::from_le_bytes([low, high]));
        let mut header = [0; 16];
        header[..4].copy_from_slice(&kind.to_le_bytes());
        header[8..].copy_from_slice(&sector.to_le_bytes());
        driver.write(DATA, &header);
        let bytes = (u32::from(len) + 1) * 512;
        // Discard and write zeroes say what they are about in one segment (virtio 1.3 §5.2.6).
        let mut segment = [0; 16];
        segment[..8].copy_from_slice(&sector.to_le_bytes());
        segment[8..12].copy_from_slice(&(u32::from(len) + 1).to_le_bytes());
        driver.write(DATA + 0x100, &segment);
        let data = match kind {
            0 => Some(Piece::In(DATA + 0x1000, bytes)),
            1 => Some(Piece::Out(DATA + 0x1000, bytes)),
            4 => None,
            _ => Some(Piece::Out(DATA + 0x100, 16)),
        };
        let pieces: Vec<Piece> = [Some(Piece::Out(DATA, 16)), data, Some(Piece::In(DATA + 16, 1))]
            .into_iter()
            .flatten()
            .collect();
        driver.send(0, &pieces);
        assert_eq!(driver.wait_used(0, 1).len(), 1, "request {n} has no answer");
    }
    let Driver { transport, memory, rings } = driver;
    drop((transport, rings));
    release(memory);
}

/// Drives registers alone, in any order, of a device that nobody has touched.
pub fn registers(kind: Kind, script: &mut Script<'_>) {
    let subject = Subject::here(kind);
    for _ in 0..2 * MOST_ACTS {
        if script.is_over() {
            break;
        }
        register(&subject, script);
        subject.worker.turn();
    }
    finish(subject);
}

fn finish(mut subject: Subject) {
    // Whatever was rung for is worked on, and handed back, before the reset.
    subject.driver.transport.pause();
    subject.driver.transport.resume();
    subject.assert_works_after_reset();
    subject.end();
}

fn act(subject: &mut Subject, script: &mut Script<'_>) {
    let what = script.byte();
    let place = script.byte();
    let queue = usize::from(place);
    let queues = subject.driver.rings.len();
    match what {
        // A chain as a driver makes it: bytes for the device, then room for its answer.
        0..=0x9f => {
            let Some(queue) = queue.checked_rem(queues) else { return };
            let len = usize::from(script.byte());
            let bytes = script.bytes(len);
            subject.driver.write(DATA, bytes);
            let mut pieces = Vec::new();
            // The border between two descriptors may be anywhere.
            let cut = usize::from(script.byte()).min(bytes.len());
            for (at, len) in [(0, cut), (cut, bytes.len() - cut)] {
                if len > 0 {
                    pieces.push(Piece::Out(DATA + at as u64, len as u32));
                }
            }
            for _ in 0..what & 3 {
                let (at, len) = (script.address(), script.length());
                pieces.push(if what & 4 == 0 { Piece::In(at, len) } else { Piece::Out(at, len) });
            }
            if what & 8 == 0 || pieces.is_empty() {
                pieces.push(Piece::In(DATA + 0x7000, 1));
            }
            subject.driver.send(queue, &pieces);
        }
        // A descriptor of any content, made available or not.
        0xa0..=0xbf => {
            let Some(queue) = queue.checked_rem(queues) else { return };
            let (addr, len) = (script.address(), script.length());
            let desc = Desc { addr, len, flags: script.u16() & 7, next: script.u16() };
            let index = script.u16() % SIZE;
            let Some(ring) = subject.driver.rings.get_mut(queue) else { return };
            ring.set_desc(index, desc);
            stage(ring, index, what);
            subject.driver.ring(queue as u32);
        }
        0xc0..=0xc7 => {
            let index = script.u16();
            if let Some(ring) = queue.checked_rem(queues).and_then(|q| subject.driver.rings.get(q))
            {
                ring.set_avail_idx(index);
                subject.driver.ring(queue as u32);
            }
        }
        0xc8..=0xdf => subject.driver.write(DATA, script.bytes(256)),
        0xe0..=0xef => register(subject, script),
        0xf0..=0xf3 => subject.stir(),
        // Bytes of the far side's, and zeroes behind them.
        0xf4..=0xf9 => {
            let mut bytes = script.bytes(usize::from(place)).to_vec();
            bytes.resize(bytes.len() + usize::from(script.u16()), 0);
            subject.say(&bytes);
        }
        0xfa..=0xfd => {
            subject.driver.transport.pause();
            subject.driver.transport.resume();
        }
        _ => subject.leave(),
    }
    // Otherwise it finds several things at once.
    if place & 0x80 == 0 {
        subject.worker.turn();
    }
}

fn stage(ring: &mut Ring, head: u16, what: u8) {
    if what & 1 == 0 {
        ring.stage(head);
    }
    if what & 2 == 0 {
        ring.publish();
    }
}

fn register(subject: &Subject, script: &mut Script<'_>) {
    let what = script.byte();
    // Registers of four bytes, or anything.
    let offset = match what & 3 {
        0 => u64::from(script.u16()) % WINDOW,
        _ => u64::from(script.byte() & 0x5f) * 4,
    };
    let transport = &subject.driver.transport;
    match what >> 2 & 7 {
        0 => {
            let width = usize::from(what >> 5) + 1;
            let room = usize::try_from(WINDOW - offset).unwrap_or(width);
            transport.read(offset, &mut [0; 8][..width.min(room)]);
        }
        1 => {
            let width = usize::from(what >> 5) + 1;
            let room = usize::try_from(WINDOW - offset).unwrap_or(width);
            transport.write(offset, script.bytes(width.min(room)));
        }
        2 => subject.driver.negotiate(u64::from(script.u32()) | 1 << 32),
        3 => subject.driver.set(offset, (script.address() & !15) as u32),
        4 => transport.pause(),
        5 => transport.resume(),
        6 => subject.driver.set(offset, script.u32()),
        _ => subject.driver.set(offset, u32::from(script.byte())),
    }
}
