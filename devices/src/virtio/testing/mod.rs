//! The driver's side, for tests: rings in guest memory, and a driver of the MMIO registers.
//!
//! Guest memory here stands between pages that may not be touched, so that a device that strays
//! ends the test with a fault.

pub mod subject;

use std::time::{Duration, Instant};

use vm_memory::mmap::MmapRegion;
use vm_memory::{
    Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestRegionCollection,
    GuestRegionMmap,
};

use crate::bus::BusDevice;
use crate::virtio::device::VirtioDevice;
use crate::virtio::mmio::MmioTransport;
use crate::virtio::queue::QueueState;
use crate::virtio::registers::Registers;

/// `VIRTQ_DESC_F_NEXT`, `_WRITE`, `_INDIRECT` (virtio 1.3 §2.7.5).
pub const NEXT: u16 = 1;
pub const WRITE: u16 = 2;
pub const INDIRECT: u16 = 4;

const PAGE: usize = 4096;

/// Guest memory of `(address, length)` regions, each between two forbidden pages. Never unmapped.
pub fn guarded_memory(regions: &[(u64, usize)]) -> GuestMemoryMmap {
    let regions = regions
        .iter()
        .map(|&(start, len)| {
            assert_eq!(len % PAGE, 0);
            // SAFETY: a fresh mapping of the kernel's choice; the result is checked below.
            let base = unsafe {
                libc::mmap(
                    std::ptr::null_mut(),
                    len + 2 * PAGE,
                    libc::PROT_NONE,
                    libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                    -1,
                    0,
                )
            };
            assert_ne!(base, libc::MAP_FAILED);
            let inner = base.cast::<u8>().wrapping_add(PAGE);
            let prot = libc::PROT_READ | libc::PROT_WRITE;
            // SAFETY: `inner..inner + len` lies in the mapping made above.
            assert_eq!(unsafe { libc::mprotect(inner.cast(), len, prot) }, 0);
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
            // SAFETY: the mapping is never taken away again.
            let region = unsafe { MmapRegion::build_raw(inner, len, prot, flags) }.unwrap();
            GuestRegionMmap::new(region, GuestAddress(start)).unwrap()
        })
        .collect();
    GuestRegionCollection::from_regions(regions).unwrap()
}

/// A descriptor as the driver writes it.
#[derive(Debug, Clone, Copy)]
pub struct Desc {
    pub addr: u64,
    pub len: u32,
    pub flags: u16,
    pub next: u16,
}

impl Desc {
    pub fn bytes(&self) -> [u8; 16] {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&self.addr.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.len.to_le_bytes());
        bytes[12..14].copy_from_slice(&self.flags.to_le_bytes());
        bytes[14..].copy_from_slice(&self.next.to_le_bytes());
        bytes
    }
}

/// A piece of a chain, for [`Ring::push`].
#[derive(Debug, Clone, Copy)]
pub enum Piece {
    /// The driver filled this.
    Out(u64, u32),
    /// The device is to fill this.
    In(u64, u32),
}

/// The driver's side of a queue.
pub struct Ring {
    pub memory: GuestMemoryMmap,
    pub size: u16,
    pub desc: u64,
    pub avail: u64,
    pub used: u64,
    /// Next free descriptor; wraps without asking whether it is free.
    next_desc: u16,
    avail_idx: u16,
    seen_used: u16,
}

impl Ring {
    /// Bytes that a ring of `size` entries takes up from its base on.
    pub fn footprint(size: u16) -> u64 {
        (u64::from(size) * 26 + 12 + 64).next_multiple_of(4096)
    }

    /// An empty ring at `base`, a multiple of 16.
    pub fn new(memory: &GuestMemoryMmap, base: u64, size: u16) -> Ring {
        let n = u64::from(size);
        let (avail, used) = (base + 16 * n, (base + 18 * n + 6).next_multiple_of(4));
        let ring = Ring {
            memory: memory.clone(),
            size,
            desc: base,
            avail,
            used,
            next_desc: 0,
            avail_idx: 0,
            seen_used: 0,
        };
        let zeroes = vec![0; Ring::footprint(size) as usize];
        memory.write_slice(&zeroes, GuestAddress(base)).unwrap();
        ring
    }

    pub fn state(&self) -> QueueState {
        QueueState {
            size: self.size,
            ready: true,
            desc: self.desc,
            avail: self.avail,
            used: self.used,
            event_idx: false,
            indirect: true,
            ..QueueState::default()
        }
    }

    pub fn write(&self, addr: u64, data: &[u8]) {
        self.memory.write_slice(data, GuestAddress(addr)).unwrap();
    }

    pub fn read(&self, addr: u64, len: usize) -> Vec<u8> {
        let mut data = vec![0; len];
        self.memory.read_slice(&mut data, GuestAddress(addr)).unwrap();
        data
    }

    fn u16_at(&self, addr: u64) -> u16 {
        let order = std::sync::atomic::Ordering::SeqCst;
        self.memory.load(GuestAddress(addr), order).unwrap()
    }

    fn set_u16(&self, addr: u64, value: u16) {
        let order = std::sync::atomic::Ordering::SeqCst;
        self.memory.store(value, GuestAddress(addr), order).unwrap();
    }

    pub fn set_desc(&self, index: u16, desc: Desc) {
        self.write(self.desc + 16 * u64::from(index), &desc.bytes());
    }

    /// Puts `head` into the available ring without moving its index.
    pub fn stage(&mut self, head: u16) {
        let slot = u64::from(self.avail_idx % self.size);
        self.set_u16(self.avail + 4 + 2 * slot, head);
        self.avail_idx = self.avail_idx.wrapping_add(1);
    }

    pub fn publish(&self) {
        self.set_avail_idx(self.avail_idx);
    }

    pub fn set_avail_idx(&self, index: u16) {
        self.set_u16(self.avail + 2, index);
    }

    /// The head of the chain that is pushed next.
    pub fn next_head(&self) -> u16 {
        self.next_desc % self.size
    }

    /// Makes a direct chain available and returns its head.
    pub fn push(&mut self, pieces: &[Piece]) -> u16 {
        let head = self.next_desc % self.size;
        for (i, piece) in pieces.iter().enumerate() {
            let index = self.next_desc % self.size;
            self.next_desc = self.next_desc.wrapping_add(1);
            let next = self.next_desc % self.size;
            let more = if i + 1 < pieces.len() { NEXT } else { 0 };
            let (addr, len, write) = match *piece {
                Piece::Out(addr, len) => (addr, len, 0),
                Piece::In(addr, len) => (addr, len, WRITE),
            };
            self.set_desc(index, Desc { addr, len, flags: more | write, next });
        }
        self.stage(head);
        self.publish();
        head
    }

    /// The used elements that are new, as (head, length).
    pub fn used(&mut self) -> Vec<(u32, u32)> {
        let mut new = Vec::new();
        while self.seen_used != self.u16_at(self.used + 2) {
            let slot = u64::from(self.seen_used % self.size);
            let raw = self.read(self.used + 4 + 8 * slot, 8);
            let word = |at: usize| u32::from_le_bytes(raw[at..at + 4].try_into().unwrap());
            new.push((word(0), word(4)));
            self.seen_used = self.seen_used.wrapping_add(1);
        }
        new
    }

    pub fn used_flags(&self) -> u16 {
        self.u16_at(self.used)
    }

    pub fn set_avail_flags(&self, flags: u16) {
        self.set_u16(self.avail, flags);
    }

    pub fn set_used_event(&self, index: u16) {
        self.set_u16(self.avail + 4 + 2 * u64::from(self.size), index);
    }

    pub fn avail_event(&self) -> u16 {
        self.u16_at(self.used + 4 + 8 * u64::from(self.size))
    }
}

/// A driver of the registers.
pub struct Driver {
    pub transport: MmioTransport,
    pub memory: GuestMemoryMmap,
    pub rings: Vec<Ring>,
}

/// Where [`Driver`]'s memory begins and how long it is; rings come first, data from [`DATA`] on.
pub const MEMORY: (u64, usize) = (0x10_0000, 0x20_0000);
pub const DATA: u64 = 0x18_0000;
pub const MEMORY_END: u64 = MEMORY.0 + MEMORY.1 as u64;

pub const VERSION_1: u64 = 1 << 32;
pub const EVENT_IDX: u64 = 1 << 29;

/// A transport in front of `device` whose registers no guest has.
pub fn transport(
    name: &str,
    device: Box<dyn VirtioDevice>,
    memory: GuestMemoryMmap,
) -> MmioTransport {
    MmioTransport::new(name, device, memory, Registers::alone().unwrap()).unwrap()
}

impl Driver {
    /// A device that nobody has touched yet, over fresh guarded memory.
    pub fn idle(device: Box<dyn VirtioDevice>) -> Driver {
        Driver::over(guarded_memory(&[MEMORY]), device)
    }

    /// The same over `memory`, which has [`MEMORY`].
    pub fn over(memory: GuestMemoryMmap, device: Box<dyn VirtioDevice>) -> Driver {
        let transport = transport("test", device, memory.clone());
        Driver { transport, memory, rings: Vec::new() }
    }

    /// A device that is driven with `features` (and `VERSION_1`), rings of `size` entries.
    pub fn start(device: Box<dyn VirtioDevice>, features: u64, size: u16) -> Driver {
        let mut driver = Driver::idle(device);
        driver.bring_up(features, size);
        driver
    }

    /// Status, features, queues, `DRIVER_OK` (virtio 1.3 §3.1.1).
    pub fn bring_up(&mut self, features: u64, size: u16) {
        self.negotiate(features | VERSION_1);
        assert_eq!(self.status(), 1 | 2 | 8, "the device refused the features");
        self.rings.clear();
        let mut base = MEMORY.0;
        for queue in 0.. {
            self.set(0x30, queue);
            if self.get(0x34) == 0 {
                break;
            }
            let ring = Ring::new(&self.memory, base, size);
            base += Ring::footprint(size);
            self.set_queue(queue, &ring.state());
            self.rings.push(ring);
        }
        assert!(base <= DATA);
        self.set(0x70, 1 | 2 | 4 | 8);
    }

    pub fn negotiate(&self, features: u64) {
        self.set(0x70, 0);
        self.set(0x70, 1);
        self.set(0x70, 1 | 2);
        self.set(0x24, 0);
        self.set(0x20, features as u32);
        self.set(0x24, 1);
        self.set(0x20, (features >> 32) as u32);
        self.set(0x70, 1 | 2 | 8);
    }

    pub fn set_queue(&self, queue: u32, state: &QueueState) {
        self.set(0x30, queue);
        self.set(0x38, state.size.into());
        for (register, address) in [(0x80, state.desc), (0x90, state.avail), (0xa0, state.used)] {
            self.set(register, address as u32);
            self.set(register + 4, (address >> 32) as u32);
        }
        self.set(0x44, 1);
    }

    pub fn offered(&self) -> u64 {
        self.set(0x14, 0);
        let low = self.get(0x10);
        self.set(0x14, 1);
        u64::from(self.get(0x10)) << 32 | u64::from(low)
    }

    pub fn get(&self, offset: u64) -> u32 {
        let mut data = [0xaa; 4];
        self.transport.read(offset, &mut data);
        u32::from_le_bytes(data)
    }

    pub fn set(&self, offset: u64, value: u32) {
        self.transport.write(offset, &value.to_le_bytes());
    }

    pub fn status(&self) -> u32 {
        self.get(0x70)
    }

    pub fn config(&self, offset: u64, len: usize) -> Vec<u8> {
        let mut data = vec![0xaa; len];
        self.transport.read(0x100 + offset, &mut data);
        data
    }

    pub fn ring(&self, queue: u32) {
        self.set(0x50, queue);
    }

    /// Makes a chain available and rings.
    pub fn send(&mut self, queue: usize, pieces: &[Piece]) -> u16 {
        let head = self.rings[queue].push(pieces);
        self.ring(queue as u32);
        head
    }

    /// Waits (at most some seconds) until `count` used elements have come.
    pub fn wait_used(&mut self, queue: usize, count: usize) -> Vec<(u32, u32)> {
        let mut used = Vec::new();
        wait_until("used buffers", || {
            used.extend(self.rings[queue].used());
            used.len() >= count
        });
        assert_eq!(used.len(), count);
        used
    }

    /// Waits until the device says `DEVICE_NEEDS_RESET`.
    pub fn wait_broken(&self) {
        wait_until("DEVICE_NEEDS_RESET", || self.status() & 0x40 != 0);
    }

    pub fn write(&self, addr: u64, data: &[u8]) {
        self.memory.write_slice(data, GuestAddress(addr)).unwrap();
    }

    pub fn read(&self, addr: u64, len: usize) -> Vec<u8> {
        let mut data = vec![0; len];
        self.memory.read_slice(&mut data, GuestAddress(addr)).unwrap();
        data
    }
}

/// Looks again and again until `done`, for ten seconds.
pub fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !done() {
        assert!(begin.elapsed() < Duration::from_secs(10), "no {what} within ten seconds");
        std::thread::sleep(Duration::from_micros(50));
    }
}

/// Gives memory of [`guarded_memory`] back, with its forbidden pages.
pub fn release(memory: GuestMemoryMmap) {
    let areas: Vec<(*mut u8, usize)> = memory
        .iter()
        .map(|region| (region.get_mmap().as_ptr(), region.get_mmap().size()))
        .collect();
    drop(memory);
    for (base, len) in areas {
        let base = base.wrapping_sub(PAGE);
        // SAFETY: guarded_memory made this mapping, and the caller is done with it.
        assert_eq!(unsafe { libc::munmap(base.cast(), len + 2 * PAGE) }, 0);
    }
}
