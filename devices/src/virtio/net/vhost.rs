//! vhost-net: the host's kernel moves frames between a queue of a TAP and the guest's rings.
//!
//! husk tells the kernel where the guest's memory and its rings are, gives it the doorbells and the
//! interrupt line, and is in no frame's way any more (`include/uapi/linux/vhost.h`). A stop takes the
//! rings back as they stand. Only Linux's own checks stand between such a guest and the host.

use std::fs::OpenOptions;
use std::io;
use std::mem::size_of;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use event_manager::{EventOps, Events, MutEventSubscriber};
use virtio_bindings::bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::bindings::virtio_net::VIRTIO_NET_F_MRG_RXBUF;
use virtio_bindings::bindings::virtio_ring::{
    VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC,
};
use vm_memory::{GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::tap::Tap;
use crate::virtio::device::StartError;
use crate::virtio::interrupt::Interrupt;
use crate::virtio::queue::{Queue, QueueState};

const DEVICE: &str = "/dev/vhost-net";
/// What a driver may have been promised, and a kernel without which is not asked.
const NEEDED: u64 = 1 << VIRTIO_F_VERSION_1
    | 1 << VIRTIO_RING_F_EVENT_IDX
    | 1 << VIRTIO_RING_F_INDIRECT_DESC
    | 1 << VIRTIO_NET_F_MRG_RXBUF;

/// An ioctl of type `VHOST_VIRTIO` with an argument of `size` bytes (`include/uapi/asm-generic/ioctl.h`).
const fn request(direction: u64, number: u64, size: usize) -> libc::c_ulong {
    direction << 30 | (size as u64) << 16 | 0xaf << 8 | number
}
const WRITE: u64 = 1;
const READ: u64 = 2;

const GET_FEATURES: libc::c_ulong = request(READ, 0x00, size_of::<u64>());
const SET_FEATURES: libc::c_ulong = request(WRITE, 0x00, size_of::<u64>());
const SET_OWNER: libc::c_ulong = request(0, 0x01, 0);
/// Of the table's head only, as the header has it.
const SET_MEM_TABLE: libc::c_ulong = request(WRITE, 0x03, size_of::<u64>());
const SET_VRING_NUM: libc::c_ulong = request(WRITE, 0x10, size_of::<VringState>());
const SET_VRING_ADDR: libc::c_ulong = request(WRITE, 0x11, size_of::<VringAddr>());
const SET_VRING_BASE: libc::c_ulong = request(WRITE, 0x12, size_of::<VringState>());
const GET_VRING_BASE: libc::c_ulong = request(WRITE | READ, 0x12, size_of::<VringState>());
const SET_VRING_KICK: libc::c_ulong = request(WRITE, 0x20, size_of::<VringFile>());
const SET_VRING_CALL: libc::c_ulong = request(WRITE, 0x21, size_of::<VringFile>());
const SET_VRING_ERR: libc::c_ulong = request(WRITE, 0x22, size_of::<VringFile>());
const NET_SET_BACKEND: libc::c_ulong = request(WRITE, 0x30, size_of::<VringFile>());

#[repr(C)]
struct VringState {
    index: u32,
    num: u32,
}

#[repr(C)]
struct VringFile {
    index: u32,
    fd: RawFd,
}

#[repr(C)]
struct VringAddr {
    index: u32,
    flags: u32,
    desc: u64,
    used: u64,
    avail: u64,
    log: u64,
}

/// A pair of rings the kernel can serve.
pub struct Vhost {
    fd: OwnedFd,
    offered: u64,
    /// Receive and transmit, while they are served.
    queues: [Option<Queue>; 2],
    memory: Option<GuestMemoryMmap>,
    /// Written when a ring is malformed.
    broken: EventFd,
}

impl Vhost {
    /// Asks the kernel for one.
    ///
    /// # Errors
    /// The host's: there is no vhost-net, it is not ours, or it is too old.
    pub fn open() -> io::Result<Vhost> {
        let file = OpenOptions::new().read(true).write(true).open(DEVICE)?;
        let broken = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?;
        let (queues, memory) = ([None, None], None);
        let mut vhost = Vhost { fd: file.into(), offered: 0, queues, memory, broken };
        // SAFETY: SET_OWNER takes no argument.
        check(unsafe { libc::ioctl(vhost.fd.as_raw_fd(), SET_OWNER) })?;
        let mut offered = 0u64;
        // SAFETY: GET_FEATURES writes 64 bits.
        check(unsafe { libc::ioctl(vhost.fd.as_raw_fd(), GET_FEATURES, &mut offered) })?;
        if offered & NEEDED != NEEDED {
            return Err(io::Error::new(
                io::ErrorKind::Unsupported,
                format!("this kernel's vhost-net lacks features {:#x}", NEEDED & !offered),
            ));
        }
        vhost.offered = offered;
        Ok(vhost)
    }

    /// Lets the kernel serve the rings, over `tap`.
    ///
    /// # Errors
    /// The host's. [`Vhost::stop`] is to be called then, too.
    pub(super) fn start(
        &mut self,
        features: u64,
        queues: [Option<Queue>; 2],
        tap: &Tap,
        memory: &GuestMemoryMmap,
        interrupt: &Interrupt,
    ) -> Result<(), StartError> {
        let failed = |what| move |source| StartError::Host { what, source };
        self.memory = Some(memory.clone());
        self.queues = queues;
        self.set(SET_FEATURES, &(features & self.offered)).map_err(failed("VHOST_SET_FEATURES"))?;
        self.set_memory(memory).map_err(failed("VHOST_SET_MEM_TABLE"))?;
        for (index, queue) in (0..).zip(&self.queues) {
            let Some(queue) = queue else { continue };
            self.set_ring(index, queue, memory, interrupt).map_err(failed("vhost: a ring"))?;
        }
        for (index, queue) in (0..).zip(&self.queues) {
            let Some(queue) = queue else { continue };
            let backend = VringFile { index, fd: tap.as_raw_fd() };
            self.set(NET_SET_BACKEND, &backend).map_err(failed("VHOST_NET_SET_BACKEND"))?;
            // For what was made available while nobody served it.
            queue.ring();
        }
        Ok(())
    }

    /// Takes the rings back. Afterwards the kernel touches neither them nor the interrupt line.
    pub(super) fn stop(&mut self) -> [Option<QueueState>; 2] {
        let memory = self.memory.take();
        let mut states = [None, None];
        for ((index, state), queue) in (0..).zip(&mut states).zip(&mut self.queues) {
            let (Some(mut queue), Some(memory)) = (queue.take(), &memory) else { continue };
            let mut base = VringState { index, num: 0 };
            // It waits until the kernel has put its hands off. Both fail only when nothing was set.
            let none = VringFile { index, fd: -1 };
            // SAFETY: NET_SET_BACKEND reads a VringFile, GET_VRING_BASE reads and writes a VringState.
            let taken = unsafe {
                libc::ioctl(self.fd.as_raw_fd(), NET_SET_BACKEND, &none);
                libc::ioctl(self.fd.as_raw_fd(), GET_VRING_BASE, &mut base)
            };
            if check(taken).is_ok() {
                // 16 bits of a split ring, so the cast keeps the number. When the ring is not to be
                // read any more the state stays as it was, and the next start says so.
                let _ = queue.adopt(memory, base.num as u16);
            }
            *state = Some(queue.state());
        }
        states
    }

    fn set_ring(
        &self,
        index: u32,
        queue: &Queue,
        memory: &GuestMemoryMmap,
        interrupt: &Interrupt,
    ) -> io::Result<()> {
        let state = queue.state();
        let [desc, avail, used] = queue.host_addresses(memory).map_err(io::Error::other)?;
        let file = |fd: &EventFd| VringFile { index, fd: fd.as_raw_fd() };
        self.set(SET_VRING_NUM, &VringState { index, num: state.size.into() })?;
        self.set(SET_VRING_BASE, &VringState { index, num: state.next_avail.into() })?;
        self.set(SET_VRING_ADDR, &VringAddr { index, flags: 0, desc, used, avail, log: 0 })?;
        self.set(SET_VRING_CALL, &file(interrupt.event()))?;
        self.set(SET_VRING_ERR, &file(&self.broken))?;
        self.set(SET_VRING_KICK, &file(queue.doorbell()))
    }

    fn set_memory(&self, memory: &GuestMemoryMmap) -> io::Result<()> {
        // struct vhost_memory: a count (and padding), and of each region where it is for the guest, its
        // length, where it is here, and padding. All of them words.
        let mut table = vec![memory.num_regions() as u64];
        for region in memory.iter() {
            table.extend([region.start_addr().0, region.len(), region.as_ptr() as u64, 0]);
        }
        // SAFETY: SET_MEM_TABLE reads a count and as many regions, which the table has. They stay mapped
        // until `stop`, because this holds the memory until then.
        check(unsafe { libc::ioctl(self.fd.as_raw_fd(), SET_MEM_TABLE, table.as_ptr()) })
    }

    /// An ioctl that reads a `T`.
    fn set<T>(&self, request: libc::c_ulong, value: &T) -> io::Result<()> {
        // SAFETY: every request this is called with reads what it is called with, by its own size.
        check(unsafe { libc::ioctl(self.fd.as_raw_fd(), request, std::ptr::from_ref(value)) })
    }
}

impl Drop for Vhost {
    fn drop(&mut self) {
        // The kernel must not outlive the memory it was told of.
        self.stop();
    }
}

/// Tells the driver when the kernel has given a ring up.
pub(super) struct Watch {
    broken: EventFd,
    interrupt: Interrupt,
}

impl Watch {
    /// Of one pair.
    ///
    /// # Errors
    /// When the host has no descriptor left.
    pub(super) fn new(vhost: &Vhost, interrupt: Interrupt) -> io::Result<Watch> {
        // What it said before was of other rings.
        let _ = vhost.broken.read();
        Ok(Watch { broken: vhost.broken.try_clone()?, interrupt })
    }
}

impl MutEventSubscriber for Watch {
    fn init(&mut self, ops: &mut EventOps) {
        if let Err(e) = ops.add(Events::new(&self.broken, EventSet::IN)) {
            self.interrupt.needs_reset(&e);
        }
    }

    fn process(&mut self, _events: Events, _ops: &mut EventOps) {
        let _ = self.broken.read();
        self.interrupt.needs_reset(&"vhost-net found a ring malformed");
    }
}

fn check(done: libc::c_int) -> io::Result<()> {
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
