//! Persistent memory (virtio 1.3 §5.19): a file that the guest has as memory, and a queue to flush it.
//!
//! The guest reads and writes the file's pages without husk; where they are mapped, and that they are,
//! is the machine floor's. Flushing blocks in the host, so the device has a worker of its own.

use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use event_manager::{EventOps, Events, MutEventSubscriber};
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::epoll::EventSet;

use super::device::{Activation, StartError, VirtioDevice};
use super::interrupt::Interrupt;
use super::queue::{Answer, Chain, Queue, QueueState};
use super::seat::Seat;
use crate::block::{lock_image, remedy};
use crate::worker::{Lease, WorkerHandle};

/// Device type 27, virtio 1.3 §5.
const DEVICE_TYPE: u32 = 27;
const QUEUE_SIZES: [u16; 1] = [64];
/// `VIRTIO_PMEM_REQ_TYPE_FLUSH` and the two answers (virtio 1.3 §5.19.6).
const FLUSH: u32 = 0;
const OK: u32 = 0;
const FAILED: u32 = 1;

/// The file's length is a multiple of this, in bytes: a page of the guest's page tables' second level,
/// which Linux wants persistent memory to consist of.
pub const ALIGNMENT: u64 = 2 << 20;

/// A file that cannot be persistent memory. Each names the path and the way out.
#[derive(Debug, thiserror::Error)]
pub enum PmemError {
    /// It is not there, or not ours to open.
    #[error("cannot open --pmem {path}: {source}; {remedy}", path = path.display())]
    Open {
        /// What the user gave.
        path: PathBuf,
        /// The host's answer.
        r#source: io::Error,
        /// What to do about it.
        remedy: &'static str,
    },
    /// It is no regular file and no block device.
    #[error("--pmem {path} is neither a file nor a block device", path = .0.display())]
    Kind(PathBuf),
    /// Another VM has it.
    #[error(
        "--pmem {path} is in use; stop the other VM, or give it to both with `ro`",
        path = .0.display()
    )]
    InUse(PathBuf),
    /// The guest could not map all of it.
    #[error(
        "--pmem {path} has {size} bytes, and must have a multiple of 2 MiB; make it longer with \
         `truncate -s {} {path}`", .size.max(&1).next_multiple_of(ALIGNMENT), path = path.display()
    )]
    Length {
        /// What the user gave.
        path: PathBuf,
        /// Bytes.
        size: u64,
    },
    /// The host cannot lock, measure or map it.
    #[error("cannot {what} --pmem {path}: {source}", path = path.display())]
    Host {
        /// What the user gave.
        path: PathBuf,
        /// What was tried.
        what: &'static str,
        /// The host's answer.
        r#source: io::Error,
    },
}

/// An open and locked file, of a length that can be mapped.
#[derive(Debug)]
pub struct PmemFile {
    file: Arc<File>,
    path: PathBuf,
    read_only: bool,
    size: u64,
}

impl PmemFile {
    /// Opens the file at `path`, and locks it for as long as this lives: many readers or one writer.
    ///
    /// # Errors
    /// See [`PmemError`].
    pub fn open(path: &Path, read_only: bool) -> Result<PmemFile, PmemError> {
        let path = path.to_path_buf();
        let opened = OpenOptions::new()
            .read(true)
            .write(!read_only)
            // A FIFO would block us.
            .custom_flags(libc::O_NONBLOCK)
            .open(&path);
        let mut file = match opened {
            Ok(file) => file,
            Err(source) => {
                let remedy = remedy(&source, read_only);
                return Err(PmemError::Open { path, source, remedy });
            }
        };
        let host = |what, source| PmemError::Host { path: path.clone(), what, source };
        let kind = file.metadata().map_err(|e| host("examine", e))?.file_type();
        if !kind.is_file() && !kind.is_block_device() {
            return Err(PmemError::Kind(path));
        }
        if !lock_image(&file, read_only).map_err(|e| host("lock", e))? {
            return Err(PmemError::InUse(path));
        }
        let size = file.seek(SeekFrom::End(0)).map_err(|e| host("measure", e))?;
        if size == 0 || !size.is_multiple_of(ALIGNMENT) {
            return Err(PmemError::Length { path, size });
        }
        Ok(PmemFile { file: Arc::new(file), path, read_only, size })
    }

    /// The open file.
    pub fn file(&self) -> &Arc<File> {
        &self.file
    }

    /// What the user gave.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether the guest may only read it.
    pub fn read_only(&self) -> bool {
        self.read_only
    }

    /// Bytes, as they were when it was opened.
    pub fn size(&self) -> u64 {
        self.size
    }
}

/// The device; it runs on a worker between start and stop.
pub struct Pmem {
    /// `virtio_pmem_config`: guest address and length (virtio 1.3 §5.19.4).
    config: [u8; 16],
    file: Arc<PmemFile>,
    worker: WorkerHandle,
    seat: Seat<Serve>,
}

impl Pmem {
    /// The device for `file`, which the guest has at guest address `start`. `worker` should have
    /// nothing else to do: flushes block it.
    pub fn new(file: Arc<PmemFile>, start: u64, worker: WorkerHandle) -> Pmem {
        let mut config = [0; 16];
        let fields = start.to_le_bytes().into_iter().chain(file.size().to_le_bytes());
        config.iter_mut().zip(fields).for_each(|(to, from)| *to = from);
        Pmem { config, file, worker, seat: Seat::default() }
    }
}

impl VirtioDevice for Pmem {
    fn device_type(&self) -> u32 {
        DEVICE_TYPE
    }

    fn features(&self) -> u64 {
        0
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn config(&self) -> Vec<u8> {
        self.config.to_vec()
    }

    fn start(&mut self, activation: Activation) -> Result<(), StartError> {
        let Activation { queues, memory, interrupt, .. } = activation;
        if let Some(mut queue) = queues.into_iter().flatten().next() {
            // A flush may take long; who waits for one should not wait for all.
            queue.set_prompt(true);
            queue.ring();
            let file = self.file.clone();
            self.seat.start(&self.worker, |lease| Serve {
                queue,
                memory,
                interrupt,
                file,
                lease,
            })?;
        }
        Ok(())
    }

    fn recall(&mut self) {
        self.seat.recall();
    }

    fn stop(&mut self) -> Vec<QueueState> {
        self.seat.stop().map(|task| task.queue.state()).into_iter().collect()
    }

    fn is_busy(&mut self) -> bool {
        self.seat.may_touch()
    }
}

/// What runs in the worker.
struct Serve {
    queue: Queue,
    memory: GuestMemoryMmap,
    interrupt: Interrupt,
    file: Arc<PmemFile>,
    lease: Lease,
}

impl MutEventSubscriber for Serve {
    fn init(&mut self, ops: &mut EventOps) {
        if let Err(e) = ops.add(Events::new(self.queue.doorbell(), EventSet::IN)) {
            self.interrupt.needs_reset(&e);
        }
    }

    fn process(&mut self, _events: Events, _ops: &mut EventOps) {
        self.queue.quiet();
        let Serve { queue, memory, interrupt, file, lease } = self;
        queue.process(memory, interrupt, |chain| {
            // What is put back here is found when the device starts again.
            if lease.is_recalled() {
                return Answer::Stop;
            }
            answer(chain, || {
                // Nothing that a guest does reaches a file it only reads.
                let sync = || if file.read_only { Ok(()) } else { file.file.sync_data() };
                Some(result(lease.away(sync)?, file, interrupt))
            })
        });
    }
}

/// Answers one request: a type, and room for a result, both le32. Where `flush` comes to nothing the
/// chain and its rings are somebody else's by now.
fn answer(chain: &Chain<'_>, flush: impl FnOnce() -> Option<u32>) -> Answer {
    let mut kind = [0; 4];
    if chain.copy_to(0, &mut kind).is_err() {
        return Answer::Broken("a pmem request without type");
    }
    let result = if u32::from_le_bytes(kind) == FLUSH { flush() } else { Some(FAILED) };
    let Some(result) = result else { return Answer::Gone };
    match chain.copy_from(0, &result.to_le_bytes()) {
        Ok(()) => Answer::Done(4),
        Err(_) => Answer::Broken("a pmem request without room for its result"),
    }
}

/// What the guest wrote before is on stable storage, or could not be brought there.
fn result(synced: io::Result<()>, file: &PmemFile, interrupt: &Interrupt) -> u32 {
    let Err(e) = synced else { return OK };
    interrupt.complain(&format_args!("flush of {}: {e}", file.path.display()));
    FAILED
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;
    use crate::block::hanging::HangingFile;
    use crate::virtio::testing::{DATA, Driver, EVENT_IDX, Piece, wait_until};
    use crate::worker::Worker;

    fn image(size: u64) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(size).unwrap();
        file
    }

    #[test]
    fn a_flush_is_answered_and_anything_else_refused() {
        let (file, worker) = (image(ALIGNMENT), Worker::spawn("pmem").unwrap());
        for read_only in [false, true] {
            let open = Arc::new(PmemFile::open(file.path(), read_only).unwrap());
            let device = Pmem::new(open, 0x1_0800_0000, worker.handle());
            let mut driver = Driver::start(Box::new(device), EVENT_IDX, 16);
            let config = [0x1_0800_0000u64.to_le_bytes(), ALIGNMENT.to_le_bytes()].concat();
            assert_eq!(driver.config(0, 16), config);
            for (kind, result) in [(FLUSH, OK), (1, FAILED), (u32::MAX, FAILED)] {
                driver.write(DATA, &kind.to_le_bytes());
                driver.write(DATA + 8, &[0xee; 4]);
                driver.send(0, &[Piece::Out(DATA, 4), Piece::In(DATA + 8, 4)]);
                assert_eq!(driver.wait_used(0, 1)[0].1, 4);
                assert_eq!(driver.read(DATA + 8, 4), result.to_le_bytes());
            }
            assert_eq!(driver.transport.counters().counts().errors, 0);
            for pieces in [
                [Piece::Out(DATA, 3), Piece::In(DATA, 4)],
                [Piece::Out(DATA, 4), Piece::In(DATA, 3)],
            ] {
                driver.write(DATA, &[0; 4]);
                driver.send(0, &pieces);
                driver.wait_broken();
                driver.bring_up(0, 16);
            }
            let state = driver.transport.save();
            driver.transport.restore(&state).unwrap();
            assert_eq!(driver.transport.save(), state);
        }
    }

    #[test]
    fn what_cannot_be_persistent_memory_is_refused_with_its_path_and_a_remedy() {
        let said = |path: &Path, ro| PmemFile::open(path, ro).unwrap_err().to_string();
        for (size, wanted) in [(0, 2 << 20), (1, 2 << 20), ((2 << 20) + 4096, 4 << 20)] {
            let file = image(size);
            let error = said(file.path(), true);
            assert!(error.contains(&format!("truncate -s {wanted} ")), "{error}");
            assert!(error.contains(file.path().to_str().unwrap()), "{error}");
        }
        assert!(said(Path::new("/dev/null"), true).contains("neither a file"));
        assert!(said(Path::new("/no/such"), true).contains("check the path"));
        let dir = tempfile::tempdir().unwrap();
        assert!(said(dir.path(), true).contains("neither a file"));
        assert!(said(dir.path(), false).contains("cannot open"));
    }

    #[test]
    fn a_flush_that_hangs_in_the_host_holds_up_no_reset_and_touches_nothing_after_it() {
        let Some(file) = HangingFile::mount() else { return };
        let patience = Duration::from_secs(1);
        let worker = Worker::spawn("pmem").unwrap().with_patience(patience);
        let open = Arc::new(PmemFile::open(file.path(), false).unwrap());
        let device = Pmem::new(open, 0x1_0800_0000, worker.handle());
        let mut driver = Driver::start(Box::new(device), EVENT_IDX, 16);
        driver.write(DATA, &FLUSH.to_le_bytes());
        driver.write(DATA + 8, &[0xee; 4]);
        driver.send(0, &[Piece::Out(DATA, 4), Piece::In(DATA + 8, 4)]);
        file.wait_for_a_reader();
        let begin = Instant::now();
        driver.set(0x70, 0);
        assert!(begin.elapsed() < Duration::from_secs(10), "{:?}", begin.elapsed());
        assert_eq!(driver.status(), 0);
        assert!(!driver.transport.is_busy(), "the worker can touch no memory: a reboot may go on");
        driver.bring_up(EVENT_IDX, 16);
        assert_ne!(driver.status() & 0x40, 0, "started while its worker hangs");
        let used = driver.rings[0].used;
        driver.write(used, &[0xaa; 16]);
        file.answer();
        wait_until("return of the worker", || {
            assert_eq!(driver.read(used, 16), [0xaa; 16]);
            assert_eq!(driver.read(DATA + 8, 4), [0xee; 4]);
            driver.bring_up(EVENT_IDX, 16);
            driver.write(used, &[0xaa; 16]);
            driver.status() & 0x40 == 0
        });
        driver.bring_up(EVENT_IDX, 16);
        driver.send(0, &[Piece::Out(DATA, 4), Piece::In(DATA + 8, 4)]);
        driver.wait_used(0, 1);
        assert_eq!(driver.read(DATA + 8, 4), OK.to_le_bytes());
    }

    #[test]
    fn a_file_has_many_readers_or_one_writer() {
        let file = image(ALIGNMENT);
        let readers = [true, true].map(|ro| PmemFile::open(file.path(), ro).unwrap());
        assert!(matches!(PmemFile::open(file.path(), false), Err(PmemError::InUse(_))));
        drop(readers);
        let _writer = PmemFile::open(file.path(), false).unwrap();
        assert!(matches!(PmemFile::open(file.path(), true), Err(PmemError::InUse(_))));
    }
}
