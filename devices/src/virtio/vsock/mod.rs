//! The socket device (virtio 1.3 §5.10): stream connections between the guest and unix sockets.
//!
//! ```text
//! host ──▶ Door ──▶ Stream ─┬─ Ends ─┬─ Muxer ──▶ Connection (states, credit): pure
//!      unix sockets         └────────┘
//!                            Serve, in the worker ──▶ queues ──▶ guest
//! ```
//!
//! A host's program connects to the device's socket and says `CONNECT <port>\n`; when the guest
//! accepts it reads `OK <port>\n` and is connected, otherwise `ERROR <why>\n` and an end. A guest's
//! program that connects to port P of CID 2 reaches whoever listens at `<socket>_<P>`. See
//! `docs/devices/vsock.md`. The VMM itself has an end of its own ([`Inside`]), with or without such a
//! socket.
//!
//! The sockets are served as long as the device exists, with or without a driver in the guest;
//! connections survive a pause, and end with a reset of the device.

mod connection;
mod door;
mod ends;
mod handshake;
mod inside;
mod muxer;
mod packet;
mod serve;
mod socket;
mod stream;
#[cfg(test)]
mod tests;
mod token;

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use vmm_sys_util::timerfd::TimerFd;

use super::device::{Activation, StartError, VirtioDevice, stateless};
use super::queue::QueueState;
use super::seat::Seat;
use crate::worker::WorkerHandle;
use door::Door;
use ends::Ends;
pub use inside::Inside;
pub use muxer::MAX_CONNECTIONS;
use serve::{Queues, Serve};
use socket::Listener;
pub use socket::{PATH_MAX, SocketError};

/// Device type 19, virtio 1.3 §5.
const DEVICE_TYPE: u32 = 19;
/// Receive, transmit, event (virtio 1.3 §5.10.2).
const QUEUE_SIZES: [u16; 3] = [256, 256, 64];
/// `VIRTIO_VSOCK_F_STREAM` (virtio 1.3 §5.10.3).
const F_STREAM: u64 = 1;
/// Chains of one transmit round; each may carry 64 KiB.
const TX_ROUND: u16 = 64;
/// How long a peer may take for its line, and the guest for its answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// The context ids a guest may have: 0 to 2 and the last one are reserved, as is what has more than
/// 32 bits (virtio 1.3 §5.10.4).
pub const GUEST_CIDS: std::ops::RangeInclusive<u32> = 3..=u32::MAX - 1;

/// The device cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum VsockError {
    /// Its socket cannot.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// Its timer cannot.
    #[error("vsock: timer: {0}")]
    Timer(io::Error),
    /// It cannot be served.
    #[error("vsock: {0}")]
    Start(StartError),
}

impl From<StartError> for VsockError {
    fn from(e: StartError) -> Self {
        VsockError::Start(e)
    }
}

/// The device; it runs on a worker from the beginning to the end.
pub struct Vsock {
    /// `virtio_vsock_config`: the guest's context id (virtio 1.3 §5.10.4).
    config: [u8; 8],
    worker: WorkerHandle,
    seat: Seat<Serve>,
    inside: Arc<Inside>,
    /// A driver goes on that had connections elsewhere.
    restored: bool,
}

impl Vsock {
    /// Listens at `socket`, if there is one, for a guest with context id `cid`, one of [`GUEST_CIDS`];
    /// `inside` is the end of this process' own.
    ///
    /// # Errors
    /// See [`VsockError`].
    pub fn new(
        cid: u32,
        socket: Option<&Path>,
        inside: Arc<Inside>,
        worker: WorkerHandle,
    ) -> Result<Vsock, VsockError> {
        Vsock::with_patience(cid, socket, inside, worker, PATIENCE)
    }

    fn with_patience(
        cid: u32,
        socket: Option<&Path>,
        inside: Arc<Inside>,
        worker: WorkerHandle,
        patience: Duration,
    ) -> Result<Vsock, VsockError> {
        let timer = TimerFd::new().map_err(|e| VsockError::Timer(e.into()))?;
        let cid = u64::from(cid);
        let listener = socket.map(Listener::bind).transpose()?;
        let ends = Ends::new(cid, Door::new(listener, inside.clone(), patience), timer, patience);
        let mut seat = Seat::default();
        seat.start(&worker, |_| Serve::new(ends))?;
        Ok(Vsock { config: cid.to_le_bytes(), worker, seat, inside, restored: false })
    }

    /// Takes the task out of its loop, changes it, and puts it back.
    fn change<T>(&mut self, change: impl FnOnce(&mut Serve) -> T) -> Result<T, StartError> {
        let late = self.seat.reclaim().map(|mut late| {
            // The rings it has are not its own any more.
            late.guest = None;
            late.ends.forget_guest(None);
            late
        });
        let Some(mut serve) = late.or_else(|| self.seat.stop()) else {
            if self.seat.is_late() {
                return Err(StartError::Hangs);
            }
            let source = io::ErrorKind::BrokenPipe.into();
            return Err(StartError::Host { what: "the worker of the vsock device", source });
        };
        let result = change(&mut serve);
        self.seat.start(&self.worker, |_| serve)?;
        Ok(result)
    }
}

impl VirtioDevice for Vsock {
    fn device_type(&self) -> u32 {
        DEVICE_TYPE
    }

    fn features(&self) -> u64 {
        F_STREAM
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn config(&self) -> Vec<u8> {
        self.config.to_vec()
    }

    fn start(&mut self, activation: Activation) -> Result<(), StartError> {
        let Activation { queues, memory, interrupt, .. } = activation;
        let mut queues = queues.into_iter();
        let mut next = || {
            let queue = queues.next().flatten();
            queue.map(|mut queue| {
                queue.set_budget(queue.size().min(TX_ROUND));
                queue.ring();
                queue
            })
        };
        let queues = [next(), next(), next()];
        let reset_owed = std::mem::take(&mut self.restored);
        self.change(|serve| serve.begin(Queues { memory, interrupt, queues, reset_owed }))
    }

    fn recall(&mut self) {
        self.seat.recall();
    }

    fn stop(&mut self) -> Vec<QueueState> {
        let Ok(Some(guest)) = self.change(|serve| serve.guest.take()) else { return Vec::new() };
        // What could not be told yet is told after the pause.
        self.restored = guest.reset_owed;
        guest.states()
    }

    fn is_busy(&mut self) -> bool {
        self.seat.may_touch()
    }

    fn reset(&mut self) {
        self.restored = false;
        // When the worker has ended there is nothing to forget.
        let _ = self.change(|serve| serve.ends.forget_guest(None));
    }

    fn restore(&mut self, state: &Value) -> Result<(), String> {
        stateless(state)?;
        self.reset();
        self.restored = true;
        Ok(())
    }
}

impl Drop for Vsock {
    fn drop(&mut self) {
        // Closes the sockets and removes the path, also when the worker lives on.
        drop(self.seat.stop());
        self.inside.close();
    }
}
