//! One start of the outer machine, from its first instruction to the end of the command: moves
//! the streams, watches the heartbeat and the clock, and says how it ended. A machine that shows
//! no sign of life is a stall, never the command's failure.

use std::io::Write;
use std::net::Shutdown;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::image::Image;
use super::job::Job;
use super::qemu::{Qemu, Streams};
use super::stream::{self, Ended};
use super::{End, Options, Outcome, terminal};
use crate::cache;

/// Starts the machine, runs the command to its end, and takes the machine down.
pub fn run(options: &Options, image: &Image) -> Result<Outcome> {
    let results = cache::results_dir();
    std::fs::create_dir_all(&results).with_context(|| format!("making {}", results.display()))?;
    let tty = options.stdin && terminal::present();
    let window = tty.then(terminal::window);
    let job = Job::new(options, &results, window)?;
    let (qemu, streams) = Qemu::start(options, image, &job, &results, tty)?;
    let _raw = if tty { Some(terminal::Raw::enter()?) } else { None };
    Session::new(options, job, qemu, window).run(streams)
}

struct Session<'a> {
    options: &'a Options,
    job: Job,
    qemu: Qemu,
    window: Option<(u16, u16)>,
    started: Instant,
    first_beat: Option<Duration>,
    /// Times that it went on after it was woken.
    revivals: u32,
    /// Bytes that came out.
    out: Arc<AtomicU64>,
    /// Bytes of our standard input that went in.
    consumed: Arc<AtomicU64>,
    hang_up: Arc<AtomicBool>,
}

/// How often the clock, the heartbeat and the process are looked at.
const TICK: Duration = Duration::from_millis(200);

impl<'a> Session<'a> {
    fn new(options: &'a Options, job: Job, qemu: Qemu, window: Option<(u16, u16)>) -> Self {
        Self {
            options,
            job,
            qemu,
            window,
            started: Instant::now(),
            first_beat: None,
            revivals: 0,
            out: Arc::default(),
            consumed: Arc::default(),
            hang_up: Arc::default(),
        }
    }

    fn run(mut self, streams: Streams) -> Result<Outcome> {
        let (sender, ends) = mpsc::channel();
        let mut copiers = vec![self.copier(streams.output, std::io::stdout(), sender.clone())];
        copiers.extend(streams.error.map(|error| self.copier(error, std::io::stderr(), sender)));
        let mut open = copiers.len();
        let input = Arc::new(streams.input);
        if self.options.stdin {
            let (keys, hang_up) = (self.window.is_some(), Arc::clone(&self.hang_up));
            let (consumed, input) = (Arc::clone(&self.consumed), Arc::clone(&input));
            thread::spawn(move || stream::copy_in(&input, keys, &hang_up, &consumed));
        } else {
            let _ = input.shutdown(Shutdown::Write);
        }

        let mut life = Life::new(self.started);
        let mut end = None;
        while open > 0 && end.is_none() {
            match ends.recv_timeout(TICK) {
                Ok(Ended::Marked) => open -= 1,
                Ok(Ended::Unread) => end = Some(End::Unread),
                Ok(Ended::Cut) => end = Some(self.machine_gone()),
                Err(_) => end = self.look(&mut life)?,
            }
        }
        let end = match (end, self.job.status()) {
            (Some(end), _) => end,
            (None, Some(status)) => End::Exited(status),
            (None, None) => self.machine_gone(),
        };
        // With QEMU gone the copiers come to their end.
        drop(self.qemu);
        for copier in copiers {
            // One that panicked has said so itself.
            let _ = copier.join();
        }
        Ok(Outcome {
            end,
            up: self.first_beat,
            total: self.started.elapsed(),
            revivals: self.revivals,
            stdin_consumed: self.consumed.load(Ordering::Relaxed) > 0,
        })
    }

    /// Looks at the clock, the process, the heartbeat and the window.
    fn look(&mut self, life: &mut Life) -> Result<Option<End>> {
        if self.hang_up.load(Ordering::Relaxed) {
            return Ok(Some(End::HungUp));
        }
        if self.started.elapsed() > self.options.timeout {
            return Ok(Some(End::TimedOut));
        }
        if self.qemu.has_ended()? {
            return Ok(Some(self.machine_gone()));
        }
        let beat = self.job.heartbeat();
        if self.first_beat.is_none() && !beat.is_empty() {
            self.first_beat = Some(self.started.elapsed());
        }
        let revived = life.sign((beat, self.out.load(Ordering::Relaxed)));
        self.revivals += u32::from(revived);
        if life.silence() > self.options.stall {
            let state = self.qemu.monitor.state().unwrap_or_else(|error| format!("{error:#}\n"));
            let silence = life.silence().as_secs();
            return Ok(Some(self.stalled(&format!(
                "no output and no heartbeat for {silence} s; its processors:\n{state}"
            ))));
        }
        if self.first_beat.is_some() && life.wants_waking() {
            // A monitor that is out of order as well is for the stall's report to say.
            let _ = self.qemu.monitor.wake();
        }
        if self.window.is_some() {
            let now = terminal::window();
            if self.window.replace(now) != Some(now) {
                self.job.set_window(now)?;
            }
        }
        Ok(None)
    }

    fn machine_gone(&self) -> End {
        self.stalled("QEMU ended before the command did")
    }

    fn stalled(&self, why: &str) -> End {
        End::Stalled(format!("{why}; its console's last lines:\n{}", self.job.console_tail(30)))
    }

    /// Passes a stream on to `sink` up to its end.
    fn copier(
        &self,
        from: std::os::unix::net::UnixStream,
        mut sink: impl Write + Send + 'static,
        ended: mpsc::Sender<Ended>,
    ) -> thread::JoinHandle<()> {
        let (mark, out) = (self.job.end.clone(), Arc::clone(&self.out));
        thread::spawn(move || {
            // The receiver is gone only when the session has ended otherwise.
            let _ = ended.send(stream::copy_out(from, &mark, &mut sink, &out));
        })
    }
}

/// When the machine last gave a sign of life, by our clock.
struct Life {
    last: Instant,
    sign: (Vec<u8>, u64),
    woken: bool,
}

/// A machine that is only slow gives its signs of life within this time; see [`super::monitor`].
const SLEEPS: Duration = Duration::from_secs(4);

impl Life {
    fn new(now: Instant) -> Self {
        Self { last: now, sign: (Vec::new(), 0), woken: false }
    }

    /// Takes note of a sign; true if it is the first since the machine was woken.
    fn sign(&mut self, sign: (Vec<u8>, u64)) -> bool {
        if sign == self.sign {
            return false;
        }
        self.sign = sign;
        self.last = Instant::now();
        std::mem::take(&mut self.woken)
    }

    fn silence(&self) -> Duration {
        self.last.elapsed()
    }

    fn wants_waking(&mut self) -> bool {
        let wants = self.silence() > SLEEPS;
        self.woken |= wants;
        wants
    }
}
