//! Whether a TAP was deleted under its card, where the host's kernel moves the frames: nobody here reads
//! of it then, and its descriptor wakes nobody who does not wait for frames.
//!
//! Linux tells whoever listens in a network namespace of each interface that goes (rtnetlink(7),
//! `RTNLGRP_LINK`). What it says is not read: whether it is about this TAP is known by its descriptor.

use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::sync::Arc;

use event_manager::{EventOps, Events, MutEventSubscriber};
use vmm_sys_util::epoll::EventSet;

use super::pair::{Status, tell};
use super::tap::Tap;
use crate::virtio::interrupt::Interrupt;

/// What runs in the worker, for a card that vhost serves.
pub(super) struct Removal {
    notices: OwnedFd,
    tap: Arc<Tap>,
    status: Status,
    interrupt: Interrupt,
}

impl Removal {
    /// Looks after `tap`, one queue for all; a card's `status` says how it is.
    ///
    /// # Errors
    /// The host's, which may let nobody listen.
    pub(super) fn new(tap: Arc<Tap>, status: Status, interrupt: Interrupt) -> io::Result<Removal> {
        Ok(Removal { notices: listen()?, tap, status, interrupt })
    }

    fn look(&self) {
        if self.tap.is_gone() && tell(&self.status, &self.interrupt, false) {
            let (card, tap) = (self.interrupt.name(), self.tap.name());
            log::warn!("{card}: TAP {tap} is gone; the guest's link is down");
        }
    }
}

impl MutEventSubscriber for Removal {
    fn init(&mut self, ops: &mut EventOps) {
        let edges = EventSet::IN | EventSet::EDGE_TRIGGERED;
        if let Err(e) = ops.add(Events::new(&self.notices, edges)) {
            // The card works without.
            self.interrupt.complain(&format_args!("{}: {e}", unnoticed(&self.tap)));
        }
        // It may have gone before anybody listened.
        self.look();
    }

    fn process(&mut self, _events: Events, _ops: &mut EventOps) {
        drain(&self.notices);
        self.look();
    }
}

/// What a card is without that watch.
pub(super) fn unnoticed(tap: &Tap) -> String {
    format!("it will not be noticed when TAP {} is deleted", tap.name())
}

/// A socket that is told of interfaces that change.
fn listen() -> io::Result<OwnedFd> {
    let kind = libc::SOCK_RAW | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
    // SAFETY: socket takes no pointers.
    let fd = unsafe { libc::socket(libc::AF_NETLINK, kind, libc::NETLINK_ROUTE) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor was made just now and is nobody else's.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    // SAFETY: all zeroes is an address: the kernel chooses a number for this end.
    let mut address: libc::sockaddr_nl = unsafe { std::mem::zeroed() };
    address.nl_family = libc::AF_NETLINK as libc::sa_family_t;
    address.nl_groups = libc::RTMGRP_LINK as u32;
    let len = size_of_val(&address) as libc::socklen_t;
    // SAFETY: bind reads a sockaddr_nl, which is as long as said.
    if unsafe { libc::bind(fd, (&raw const address).cast(), len) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(socket)
}

/// Throws away what has come: all of it, for a socket for which more came than had room (`ENOBUFS`) is told nothing
/// more until it is empty.
fn drain(notices: &OwnedFd) {
    let mut word = [0u8; 4];
    let (fd, at) = (notices.as_fd().as_raw_fd(), word.as_mut_ptr().cast());
    loop {
        // SAFETY: `word` has room for its length; what is longer is cut.
        let len = unsafe { libc::recv(fd, at, word.len(), libc::MSG_DONTWAIT) };
        let error = io::Error::last_os_error().raw_os_error();
        if len < 0 && !matches!(error, Some(libc::ENOBUFS | libc::EINTR)) {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;
    use std::sync::atomic::{AtomicU16, Ordering};

    use virtio_bindings::bindings::virtio_net::VIRTIO_NET_S_LINK_UP;

    use super::*;
    use crate::skipped::skipped;
    use crate::virtio::net::tests::real_tap;
    use crate::virtio::registers::Registers;
    use crate::virtio::testing::wait_until;
    use crate::worker::Worker;

    /// `VIRTIO_MMIO_INT_CONFIG` (virtio 1.3 §4.2.2).
    fn is_told(interrupt: &Interrupt) -> bool {
        interrupt.interrupt_status() & 2 != 0
    }

    #[test]
    fn a_tap_that_nobody_reads_is_found_gone_when_it_is_deleted_and_not_before() {
        let Some(tap) = real_tap("husktest9") else { return };
        let other = Tap::open("husktest10").unwrap();
        let up = VIRTIO_NET_S_LINK_UP as u16;
        let (tap, status) = (Arc::new(tap), Arc::new(AtomicU16::new(up)));
        let registers = Registers::alone().unwrap();
        let interrupt = Interrupt::new("net0", registers).unwrap();
        let worker = Worker::here("net").unwrap();
        let watch = Removal::new(tap.clone(), status.clone(), interrupt.clone()).unwrap();
        let (fd, least) = (watch.notices.as_raw_fd(), 1i32);
        // SAFETY: SO_RCVBUF reads an integer.
        unsafe {
            let at = (&raw const least).cast();
            libc::setsockopt(fd, libc::SOL_SOCKET, libc::SO_RCVBUF, at, 4);
        }
        let task = worker.handle().add(watch).unwrap();
        let is_up = || {
            worker.turn();
            status.load(Ordering::Acquire) == up
        };
        // Others' ends are not its own, though there be more than it has room for.
        drop(other);
        (0..16).for_each(|_| drop(Tap::open("husktest10").unwrap()));
        assert!(is_up() && !is_told(&interrupt));
        let deleted = Command::new("ip").args(["link", "delete", "husktest9"]).status();
        if let Err(e) = deleted {
            skipped(format!("no ip: {e}"));
            return;
        }
        wait_until("the link to go down", || !is_up());
        assert!(tap.is_gone() && is_told(&interrupt));
        // One that is gone from the beginning is found so, too, and is not told twice.
        drop(task.take());
        status.store(up, Ordering::Release);
        let watch = Removal::new(tap, status.clone(), interrupt).unwrap();
        let _task = worker.handle().add(watch).unwrap();
        assert!(!is_up());
    }
}
