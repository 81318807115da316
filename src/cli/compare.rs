//! `husk compare`: VMs against containers and against one another, on this machine.

use std::io::IsTerminal;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::time::{Duration, Instant, SystemTime};

use clap::Args;
use husk::compare::{self, CompareError, Plan, Progress, Results, Workload};

use super::signals::Signals;
use super::{Error, stderr, stdout};

/// SIGINT, when the signal has not been seen here yet.
const INTERRUPT: i32 = 2;

/// Compare VMs with containers and with one another, on this machine
///
/// Every contestant that is installed starts the same small static program with the same files, in
/// turn and in random order. One clock runs for all of them, from the fork of the launcher.
#[derive(Args)]
#[command(allow_negative_numbers = true)]
pub struct Compare {
    /// The contestants, of process, crun, runc, runsc, podman, docker, husk, qemu, firecracker
    /// and cloud-hypervisor; ratios are to the first [default: those that are installed]
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    with: Vec<String>,
    /// How often each is measured, at each level of --parallel
    #[arg(long, value_name = "N", default_value = "100")]
    runs: usize,
    /// How many are started at once: a list
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_value = "1,10")]
    parallel: Vec<usize>,
    /// What each does: true (say a line, end), sh (a shell that counts, starts programs and pipes),
    /// python (the host's python3 starts and works on JSON) or http (a web server answers once)
    #[arg(long, value_name = "NAME", default_value = "true")]
    workload: String,
    /// How many idle instances memory, disk and isolation are measured with; 0 leaves them out
    #[arg(long, value_name = "N", default_value = "5")]
    idle: usize,
    /// Measure with cold caches as well (10 runs at most; needs root)
    #[arg(long)]
    cold: bool,
    /// The kernel of all VMs [default: as `husk run`]
    #[arg(long, value_name = "FILE")]
    kernel: Option<PathBuf>,
    /// Added to the kernel command line in all VMs
    #[arg(
        long,
        value_name = "TEXT",
        allow_hyphen_values = true,
        default_value = "",
        hide_default_value = true
    )]
    append: String,
    /// Where results.csv and report.html are written
    #[arg(long, value_name = "DIR", default_value = "husk-compare")]
    out: PathBuf,
    /// The order of the runs, to have it again [default: another one each time]
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// Print what containers and VMs differ in axis by axis, with what was measured, instead of the
    /// table of figures
    #[arg(long)]
    table: bool,
}

impl Compare {
    /// Compares, and returns the exit status.
    pub fn execute(self) -> Result<u8, Error> {
        let (out, axes) = (self.out.clone(), self.table);
        let plan = self.into_plan()?;
        plan.check()?;
        let prepared = compare::prepare_directory(&out)?;
        // A signal gives the work up, so that it can clean up behind itself.
        let signals = Signals::block()?;
        let (cancel, signal) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicI32::new(0)));
        let (given_up, came) = (cancel.clone(), signal.clone());
        std::thread::spawn(move || {
            came.store(signals.wait(), Ordering::Release);
            given_up.store(true, Ordering::Release);
        });
        let mut line = Line::default();
        let outcome = compare::compare(&plan, &cancel, &mut |progress| line.show(&progress));
        line.clear();
        if outcome.is_err() {
            prepared.give_up();
        }
        match outcome {
            Err(e @ CompareError::Cancelled) => {
                tell!("husk: {e}\n");
                let signal = signal.load(Ordering::Acquire);
                let signal = if signal == 0 { INTERRUPT } else { signal };
                Ok(128u8.wrapping_add(signal as u8))
            }
            Err(e) => Err(e.into()),
            Ok(results) => {
                let files = results.write(&out)?;
                stdout::print(&stderr::plain(&text(&results, axes)))?;
                let [csv, html] = files.map(|file| file.display().to_string());
                tell!("husk: every run is in {csv}, all of it in {html}\n");
                Ok(0)
            }
        }
    }

    fn into_plan(self) -> Result<Plan, Error> {
        let clock = || {
            let now = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
            // Short enough to be typed again.
            u64::from(now.subsec_micros())
        };
        Ok(Plan {
            husk: std::env::current_exe()?,
            with: self.with,
            runs: self.runs,
            parallel: self.parallel,
            idle: self.idle,
            cold: self.cold,
            workload: Workload::named(&self.workload)?,
            kernel: self.kernel,
            append: self.append,
            seed: self.seed.unwrap_or_else(clock),
        })
    }
}

fn text(results: &Results, axes: bool) -> String {
    if axes { results.axes() } else { results.table() }
}

/// The line on a terminal that says how far it is.
#[derive(Default)]
struct Line {
    shown: Option<Instant>,
}

impl Line {
    /// Shows it, ten times a second at most.
    fn show(&mut self, progress: &Progress) {
        const PAUSE: Duration = Duration::from_millis(100);
        if !std::io::stderr().is_terminal() || self.shown.is_some_and(|at| at.elapsed() < PAUSE) {
            return;
        }
        self.shown = Some(Instant::now());
        const WIDTH: usize = 24;
        let full = (progress.done * WIDTH).checked_div(progress.total).unwrap_or(0).min(WIDTH);
        let bar = format!("{}{}", "#".repeat(full), "·".repeat(WIDTH - full));
        let doing: String = stderr::plain(&progress.doing).chars().take(50).collect();
        eprint_quietly(&format!("\r\x1b[K[{bar}] {doing}"));
    }

    fn clear(&mut self) {
        if self.shown.take().is_some() {
            eprint_quietly("\r\x1b[K");
        }
    }
}

/// The line moves the cursor, so it is not plain; nobody has to read it.
fn eprint_quietly(text: &str) {
    use std::io::Write;
    let _ = std::io::stderr().write_all(text.as_bytes());
}
