//! The host side of the console: a task in the VM's worker.
//!
//! It writes only what the output takes without blocking, and holds back what the guest does not
//! read yet, so a reader that stalls or a guest that does not listen costs nobody else anything.
//! Escapes are heard even when the guest has stopped reading.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use event_manager::{EventOps, Events, MutEventSubscriber};
use vmm_sys_util::epoll::EventSet;

use super::streams::{ConsoleStreams, Sink};
use super::{EscapeFilter, EscapeHandler, Escapes, Line};

/// How much is read or written at once.
const CHUNK: usize = 512;
/// How much of typed input may wait for the guest's FIFO.
const TYPED_MAX: usize = 4096;

/// Carries bytes between a [`Line`] and the host.
pub struct ConsoleTask {
    line: Arc<dyn Line>,
    input: Option<Input>,
    output: Option<Sink>,
    /// Whether `output` is watched for room.
    watching_output: bool,
    escape: Option<(EscapeFilter, EscapeHandler)>,
    /// Typed, and waiting for the guest.
    typed: Vec<u8>,
}

/// Where typed bytes come from.
struct Input {
    file: File,
    watched: bool,
    /// Not a regular file, which has no events: it is read as the guest takes it.
    has_events: bool,
}

/// How an attempt to write went.
enum Progress {
    /// There is nothing to write.
    Empty,
    Wrote,
    /// The output takes no more for now.
    Full,
    /// The output is gone.
    Closed,
}

impl ConsoleTask {
    /// Connects `line` to `streams`.
    pub fn new(line: Arc<dyn Line>, streams: ConsoleStreams) -> Self {
        let input = streams.input.map(|file| Input { file, watched: false, has_events: true });
        Self {
            line,
            input,
            output: streams.output.map(Sink::new),
            watching_output: false,
            escape: streams
                .escapes
                .map(|Escapes { keys, handler }| (EscapeFilter::new(keys), handler)),
            typed: Vec::new(),
        }
    }

    /// Writes what is left. Gives up when the reader takes nothing for `patience`, and at the latest
    /// after `limit`.
    pub fn finish(mut self, patience: Duration, limit: Duration) {
        let end = Instant::now() + limit;
        let lost = self.line.output().dropped();
        if lost > 0 && self.output.is_some() {
            log::warn!("console: {lost} bytes were lost because nobody read what came before");
        }
        loop {
            match self.write_some() {
                Progress::Empty | Progress::Closed => return,
                Progress::Wrote if Instant::now() < end => {}
                Progress::Full
                    if self.output_has_room_within(patience.min(end - Instant::now())) => {}
                Progress::Wrote | Progress::Full => {
                    log::warn!("console: nobody reads the guest's last output; it is dropped");
                    return;
                }
            }
        }
    }

    fn output_has_room_within(&self, patience: Duration) -> bool {
        let millis = libc::c_int::try_from(patience.as_millis()).unwrap_or(libc::c_int::MAX);
        !patience.is_zero() && self.output.as_ref().is_some_and(|o| o.has_room_within(millis))
    }

    fn write_some(&mut self) -> Progress {
        let mut chunk = [0; CHUNK];
        let len = self.line.output().peek(&mut chunk);
        let Some(bytes) = chunk.get(..len).filter(|b| !b.is_empty()) else {
            return Progress::Empty;
        };
        let written = match &mut self.output {
            None => Ok(len),
            Some(output) => output.write(bytes),
        };
        match written {
            Ok(written) => {
                if self.line.output().consume(written) {
                    self.line.output_has_room();
                }
                Progress::Wrote
            }
            Err(e) if e.kind() == ErrorKind::WouldBlock => Progress::Full,
            Err(e) if e.kind() == ErrorKind::Interrupted => Progress::Wrote,
            Err(e) => {
                log::warn!("console: its output is gone ({e}); the guest goes on without");
                Progress::Closed
            }
        }
    }

    /// Writes until the buffer is empty or the output full, then watches for what is missing.
    fn drain(&mut self, ops: &mut EventOps) {
        loop {
            match self.write_some() {
                Progress::Wrote => {}
                Progress::Empty => return self.watch_output(false, ops),
                Progress::Full => return self.watch_output(true, ops),
                Progress::Closed => {
                    self.watch_output(false, ops);
                    self.output = None;
                }
            }
        }
    }

    fn watch_output(&mut self, watch: bool, ops: &mut EventOps) {
        let Some(output) = self.output.as_ref().filter(|_| watch != self.watching_output) else {
            return;
        };
        let events = Events::new(output.file(), EventSet::OUT);
        let done = if watch { ops.add(events) } else { ops.remove(events) };
        match done {
            Ok(()) => self.watching_output = watch,
            Err(e) => log::error!("console: output cannot be watched: {e}"),
        }
    }

    /// Gives the guest what was typed, and reads on as far as there is room.
    fn deliver(&mut self, ops: &mut EventOps) {
        loop {
            let taken = self.line.receive(&self.typed);
            self.typed.drain(..taken.min(self.typed.len()));
            self.watch_input(ops);
            let read_now = self.input.as_ref().is_some_and(|i| !i.has_events)
                && self.typed.is_empty()
                && self.line.room() > 0;
            if !read_now || !self.read_some(ops) {
                return;
            }
        }
    }

    /// Watches the input as long as what it brings can be kept, or an escape may be among it.
    fn watch_input(&mut self, ops: &mut EventOps) {
        let wanted = self.escape.is_some() || self.typed.len() < TYPED_MAX;
        let Some(input) = self.input.as_mut().filter(|i| i.has_events && i.watched != wanted)
        else {
            return;
        };
        let events = Events::new(&input.file, EventSet::IN);
        let done = if wanted { ops.add(events) } else { ops.remove(events) };
        match done {
            Ok(()) => input.watched = wanted,
            Err(_) => input.has_events = false,
        }
    }

    /// Reads once. False when the input has ended.
    fn read_some(&mut self, ops: &mut EventOps) -> bool {
        let Some(input) = &mut self.input else { return false };
        let mut chunk = [0; CHUNK];
        match input.file.read(&mut chunk) {
            Ok(len) if len > 0 => {
                let bytes = chunk.get(..len).unwrap_or_default();
                match &mut self.escape {
                    Some((filter, handler)) => filter.filter(bytes, &mut self.typed, handler),
                    None => self.typed.extend_from_slice(bytes),
                }
                // Only at a terminal: typed at a guest that has long stopped reading.
                if self.escape.is_some() {
                    self.typed.truncate(TYPED_MAX);
                }
                true
            }
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => true,
            end => {
                if let Err(e) = end {
                    log::warn!("console: input ended: {e}");
                }
                if input.watched
                    && let Err(e) = ops.remove(Events::new(&input.file, EventSet::IN))
                {
                    log::error!("console: input cannot be left alone: {e}");
                }
                self.input = None;
                false
            }
        }
    }
}

impl MutEventSubscriber for ConsoleTask {
    fn init(&mut self, ops: &mut EventOps) {
        // Another loop may have watched them before.
        self.watching_output = false;
        if let Some(input) = &mut self.input {
            input.watched = false;
        }
        for fd in [self.line.output().wake(), self.line.wants_input()] {
            if let Err(e) = ops.add(Events::new(fd, EventSet::IN)) {
                log::error!("console: cannot be watched: {e}");
            }
        }
        self.drain(ops);
        self.deliver(ops);
    }

    fn process(&mut self, events: Events, ops: &mut EventOps) {
        let fd = events.fd();
        if fd == self.line.output().wake().as_raw_fd() {
            // Reading resets it; EAGAIN cannot hurt.
            let _ = self.line.output().wake().read();
            self.drain(ops);
        } else if fd == self.line.wants_input().as_raw_fd() {
            let _ = self.line.wants_input().read();
            self.deliver(ops);
        } else if self.input.as_ref().is_some_and(|i| i.file.as_raw_fd() == fd) {
            if self.read_some(ops) {
                self.deliver(ops);
            }
        } else if self.output.as_ref().is_some_and(|o| o.file().as_raw_fd() == fd) {
            self.drain(ops);
        }
    }
}
