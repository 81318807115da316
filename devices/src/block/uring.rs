//! The engine on io_uring: the file is registered, a batch of steps is one system call, and the
//! ring's own descriptor tells the event loop of completions.
//!
//! The ring has room for every job at once, so that completions cannot overflow. What would block is
//! done by the kernel's own threads; that is found by trying, except where trying itself may wait
//! for a server that does not answer (see [`is_remote`]). A local file system that has to read its
//! own metadata may make even the trial wait.

use std::fs::File;
use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::Duration;

use io_uring::types::{CancelBuilder, Fixed, FsyncFlags, Timespec};
use io_uring::{IoUring, Probe, opcode, squeue};

use super::disk::Disk;
use super::engine::{Engine, Keep, Kept};
use super::job::Job;
use super::temporary::file_system;
use super::types::{Part, Step};

/// The registered files: the image, and the overlay's.
const IMAGE: Fixed = Fixed(0);
const LAYER: Fixed = Fixed(1);
/// How often a host that is short of memory is asked again, and how long after.
const PATIENCE: u32 = 200;
const PAUSE: Duration = Duration::from_millis(1);

pub(super) struct Uring {
    /// Only taken when dropped.
    ring: Option<Ring>,
    held: bool,
}

struct Ring {
    ring: IoUring,
    /// Jobs at the host, by their user data.
    slots: Vec<Option<Box<Job>>>,
    free: Vec<usize>,
    /// Jobs that are done or held without ever having been at the host.
    ready: Vec<Box<Job>>,
    kept: Kept,
    /// Nothing is tried by who submits.
    aside: bool,
    /// Keeps the lock as long as anything is at the host.
    _disk: Disk,
}

impl Uring {
    /// A ring for `depth` jobs.
    ///
    /// # Errors
    /// The host's; `Unsupported` when it lacks an operation.
    pub(super) fn new(disk: &Disk, depth: u16) -> io::Result<Uring> {
        let ring = IoUring::new(u32::from(depth))?;
        let mut probe = Probe::new();
        ring.submitter().register_probe(&mut probe)?;
        let needed = [
            opcode::Readv::CODE,
            opcode::Writev::CODE,
            opcode::Fsync::CODE,
            opcode::Fallocate::CODE,
        ];
        let params = ring.params();
        if !needed.iter().all(|code| probe.is_supported(*code))
            || !params.is_feature_nodrop()
            || !params.is_feature_submit_stable()
        {
            return Err(io::ErrorKind::Unsupported.into());
        }
        let fds: Vec<_> = disk.files().map(File::as_raw_fd).collect();
        ring.submitter().register_files(&fds)?;
        let depth = usize::from(depth);
        let ring = Ring {
            ring,
            slots: (0..depth).map(|_| None).collect(),
            free: (0..depth).rev().collect(),
            ready: Vec::new(),
            kept: Kept::default(),
            aside: disk.files().any(is_remote),
            _disk: disk.clone(),
        };
        Ok(Uring { ring: Some(ring), held: false })
    }
}

impl Ring {
    fn in_flight(&self) -> usize {
        self.slots.len() - self.free.len() + self.ready.len()
    }

    /// Queues the next step of the job in `slot`; false when it has none.
    fn push(&mut self, slot: usize) -> io::Result<bool> {
        let Some(job) = self.slots.get_mut(slot).and_then(Option::as_mut) else {
            return Ok(false);
        };
        let Some(step) = job.step() else { return Ok(false) };
        let mut entry = entry(step).user_data(slot as u64);
        if self.aside {
            entry = entry.flags(squeue::Flags::ASYNC);
        }
        loop {
            // SAFETY: the entry's list of pieces is in the job, which stays in its slot until the
            // completion comes, and who submitted the job vouches for the pieces.
            if unsafe { self.ring.submission().push(&entry) }.is_ok() {
                return Ok(true);
            }
            self.submit()?;
        }
    }

    fn submit(&mut self) -> io::Result<()> {
        let mut patience = PATIENCE;
        loop {
            if self.ring.submission().is_empty() {
                return Ok(());
            }
            match self.ring.submit() {
                Ok(_) => {}
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if patience > 0 && is_shortage(&e) => {
                    patience -= 1;
                    std::thread::sleep(PAUSE);
                }
                Err(e) => return Err(e),
            }
        }
    }

    fn release(&mut self, slot: usize, done: &mut Vec<Box<Job>>) {
        if let Some(job) = self.slots.get_mut(slot).and_then(Option::take) {
            self.free.push(slot);
            done.push(job);
        }
    }

    fn reap(&mut self, held: bool, done: &mut Vec<Box<Job>>) {
        done.append(&mut self.ready);
        // Each may queue one more step: not more at once than the queue has room for.
        for _ in 0..self.slots.len() {
            let Some(completion) = self.ring.completion().next() else { return };
            // What has another user data is none of ours.
            let Ok(slot) = usize::try_from(completion.user_data()) else { continue };
            let Some(job) = self.slots.get_mut(slot).and_then(Option::as_mut) else { continue };
            let returned = completion.result();
            if returned != -libc::ECANCELED {
                job.answer(returned);
            }
            if job.is_finished() || held {
                self.release(slot, done);
                continue;
            }
            match self.push(slot) {
                Ok(true) => {}
                Ok(false) => self.release(slot, done),
                Err(e) => {
                    if let Some(job) = self.slots.get_mut(slot).and_then(Option::as_mut) {
                        job.fail(e);
                    }
                    self.release(slot, done);
                }
            }
        }
    }
}

impl Engine for Uring {
    unsafe fn submit(&mut self, mut job: Box<Job>) {
        let Some(ring) = &mut self.ring else { return };
        let slot = if self.held || job.is_finished() { None } else { ring.free.pop() };
        let Some(slot) = slot else {
            if !job.is_finished() && !self.held {
                job.fail(io::ErrorKind::QuotaExceeded.into());
            }
            ring.ready.push(job);
            return;
        };
        if let Some(place) = ring.slots.get_mut(slot) {
            *place = Some(job);
        }
        match ring.push(slot) {
            Ok(true) => {}
            failed => {
                let mut back = Vec::new();
                ring.release(slot, &mut back);
                for mut job in back {
                    if let Err(e) = &failed {
                        job.fail(io::Error::from(e.kind()));
                    }
                    ring.ready.push(job);
                }
            }
        }
    }

    fn kick(&mut self) -> io::Result<()> {
        self.ring.as_mut().map_or(Ok(()), Ring::submit)
    }

    fn reap(&mut self, done: &mut Vec<Box<Job>>) {
        let held = self.held;
        if let Some(ring) = &mut self.ring {
            ring.reap(held, done);
        }
    }

    fn in_flight(&self) -> usize {
        self.ring.as_ref().map_or(0, Ring::in_flight)
    }

    fn event(&self) -> BorrowedFd<'_> {
        let fd = self.ring.as_ref().map_or(-1, |ring| ring.ring.as_raw_fd());
        // SAFETY: the ring is open as long as self lives: only drop takes it.
        unsafe { BorrowedFd::borrow_raw(fd) }
    }

    fn hold(&mut self, held: bool) {
        self.held = held;
    }

    fn cancel(&mut self) {
        if let Some(ring) = &self.ring {
            // What cannot be called back, or a kernel before 6.0, says so: then it is waited for.
            let everything = CancelBuilder::any().all();
            let _ = ring.ring.submitter().register_sync_cancel(Some(Timespec::new()), everything);
        }
    }

    fn protect(&mut self, memory: Keep) {
        if let Some(ring) = &mut self.ring {
            let in_flight = ring.in_flight();
            ring.kept.add(memory, in_flight);
        }
    }
}

impl Drop for Uring {
    fn drop(&mut self) {
        let Some(ring) = self.ring.take() else { return };
        if ring.free.len() == ring.slots.len() {
            // The kernel takes its time over a ring that is closed: the disk's lock should not wait
            // for that. It fails only when there is nothing registered.
            let _ = ring.ring.submitter().unregister_files();
            return;
        }
        // Closing the ring would leave the kernel at work on memory that may be unmapped next: a
        // thread waits for that instead, and has the memory and the file as long; for ever, if
        // there can be no thread.
        let mut ring = ManuallyDrop::new(ring);
        let rest = std::thread::Builder::new().name("husk-disk-rest".into()).stack_size(64 << 10);
        let waiting = rest.spawn(move || {
            let mut done = Vec::new();
            while ring.free.len() < ring.slots.len() {
                match ring.ring.submit_and_wait(1) {
                    Ok(_) => ring.reap(true, &mut done),
                    Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                    Err(_) => std::thread::sleep(PAUSE),
                }
                done.clear();
            }
            drop(ManuallyDrop::into_inner(ring));
        });
        if let Err(e) = waiting {
            log::warn!("a disk that is closed still has requests at the host: {e}");
        }
    }
}

/// Whether the file lies in a file system that asks somebody else for its pages. Such wait for the
/// answer even where they are told not to (Linux `page_cache_sync_ra` with `IOCB_NOWAIT`).
/// Who does not even say which it is, counts as one of them.
fn is_remote(file: &File) -> bool {
    /// Linux `include/uapi/linux/magic.h`: 9p, AFS, Ceph, CIFS, FUSE, NFS, SMB 1, SMB 2.
    const MAGICS: [u32; 8] = [
        0x0102_1997,
        0x5346_414f,
        0x00c3_6400,
        0xff53_4d42,
        0x6573_5546,
        0x6969,
        0x517b,
        0xfe53_4d42,
    ];
    file_system(file).is_none_or(|magic| MAGICS.contains(&magic))
}

/// The host has no memory just now, or completions wait to be taken.
fn is_shortage(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EBUSY | libc::ENOMEM))
}

fn entry(step: Step<'_>) -> squeue::Entry {
    let file = |part| match part {
        Part::Image => IMAGE,
        Part::Layer => LAYER,
    };
    // A Segment is a transparent iovec, and there are at most IOV_MAX; offsets are not negative.
    match step {
        Step::Read { part, to, offset } => {
            let (list, count) = (to.as_ptr().cast(), to.len() as u32);
            opcode::Readv::new(file(part), list, count).offset(offset as u64).build()
        }
        Step::Write { part, from, offset } => {
            let (list, count) = (from.as_ptr().cast(), from.len() as u32);
            opcode::Writev::new(file(part), list, count).offset(offset as u64).build()
        }
        Step::Allocate { part, mode, offset, len } => {
            let allocate = opcode::Fallocate::new(file(part), len as u64);
            allocate.offset(offset as u64).mode(mode).build()
        }
        Step::Sync => opcode::Fsync::new(IMAGE).flags(FsyncFlags::DATASYNC).build(),
    }
}
