//! `cargo xtask bench devices`: how fast a guest's disk, network and vsock are, against rivals, with the
//! same kernel, the same tools in the guest and the same files in RAM, in one session.
//!
//! Each round starts every subject once, in an order shuffled anew, and has it do all the work
//! ([`super::work`]). Ratios are taken within a round; their spread is printed. Where KVM counts exits
//! to user space, so many stand beside each request.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use husk_initramfs::Cpio;
use serde::{Deserialize, Serialize};

use super::peers::{Iperf, Vsock, exits, ping_pong};
use super::rivals::{self, Devices, Guest, Subject};
use super::stats::{Summary, shuffle};
use super::work::{self, PING_PONG, Said, VSOCK_IN, VSOCK_OUT, Work};
use super::{InnerArgs, Place, in_ram, inside};
use crate::tap::Tap;
use crate::{apt, assets, cache, cargo, host, skeleton};

/// `cargo xtask bench devices`
#[derive(clap::Args)]
pub struct Args {
    /// Rounds; each runs every subject once
    #[arg(long, default_value_t = 7, value_name = "N")]
    rounds: usize,
    /// Seconds of each kind of work
    #[arg(long, default_value_t = 3, value_name = "SECS")]
    seconds: u32,
    /// Frames go through the host's kernel (vhost-net), for those that can
    #[arg(long)]
    vhost: bool,
    /// Only those whose name contains one of these words: husk, QEMU, Firecracker, Cloud, kvmtool
    #[arg(long, value_name = "WORD", value_delimiter = ',')]
    only: Vec<String>,
    /// Another husk to compare with, as it was before a change: the program
    #[arg(long, value_name = "FILE")]
    also: Option<PathBuf>,
    #[command(flatten)]
    place: Place,
}

/// What is run where Linux boots.
#[derive(Serialize, Deserialize)]
struct Plan {
    rounds: usize,
    seconds: u32,
    vhost: bool,
    only: Vec<String>,
    noxsave: bool,
    husk: PathBuf,
    also: Option<PathBuf>,
    assets: PathBuf,
    /// The file system with fio and iperf3.
    tools: PathBuf,
    /// The guest's echo.
    echo: PathBuf,
}

/// The size of the disk that is worked on, in bytes.
const DISK: u64 = 256 << 20;
/// So long may a guest say nothing, beside the time its work takes.
const SILENCE: Duration = Duration::from_secs(120);

/// Makes everything, and measures where Linux boots.
pub fn main(args: &Args) -> Result<u8> {
    let husk = cargo::build_husk()?;
    apt::need(&[("iperf3", "iperf3"), ("ip", "iproute2")])?;
    let results = cache::results_dir();
    std::fs::create_dir_all(&results).with_context(|| format!("making {}", results.display()))?;
    let echo = results.join("guest-echo");
    cargo::static_program(&cache::workspace().join("xtask/src/bin/guest-echo.rs"), &echo)?;
    let plan = Plan {
        rounds: args.rounds,
        seconds: args.seconds.max(1),
        vhost: args.vhost,
        only: args.only.clone(),
        noxsave: args.place.xsave,
        husk: husk.clone(),
        also: args.also.as_ref().map(std::path::absolute).transpose().context("--also")?,
        assets: assets::all()?,
        tools: assets::tools()?,
        echo,
    };
    inside(&husk, &args.place, "__bench-devices", &plan, 6144)
}

/// Reads the plan and runs it.
pub fn inner(args: &InnerArgs) -> Result<u8> {
    in_ram(args, measure)
}

fn measure(plan: &Plan, ram: &Path) -> Result<()> {
    host::say("copying everything to memory");
    assets::copy_to_ram(&plan.assets, &[assets::VMLINUX_CLOUD, assets::VMLINUZ_CLOUD], ram)?;
    let from = plan.tools.parent().context("the tools have no directory")?;
    let name = plan.tools.file_name().and_then(|name| name.to_str()).context("the tools' name")?;
    assets::copy_to_ram(from, &[name], ram)?;
    let husk = ram.join("husk");
    std::fs::copy(&plan.husk, &husk).with_context(|| format!("copying {}", husk.display()))?;
    let path = |name: &str| ram.join(name).display().to_string();
    let (vmlinux, bzimage) = (path(assets::VMLINUX_CLOUD), path(assets::VMLINUZ_CLOUD));
    let (tools, disk, initrd, socket) = (path(name), path("disk"), path("initrd"), path("vsock"));
    // No holes: what is read comes from the page cache.
    std::fs::write(&disk, vec![0xa5; DISK as usize]).context("making the disk")?;
    let tap = Tap::create()?;
    let script = work::script(DISK, plan.seconds, &tap.guest(), &tap.host());
    std::fs::write(&initrd, with_script(plan, &script)?).context("writing the initramfs")?;
    let _iperf = Iperf::start(&tap.host())?;
    let extra = if plan.noxsave { " noxsave" } else { "" };
    let guest = Guest {
        vmlinux: &vmlinux,
        bzimage: &bzimage,
        initrd: Some(&initrd),
        cmdline: &format!("{}{extra}", rivals::CMDLINE),
        scratch: ram,
        devices: Some(Devices {
            disk: &disk,
            second: Some(&tools),
            tap: &tap.name,
            vhost: plan.vhost,
            vsock: Some(&socket),
        }),
    };
    let mut subjects = rivals::one_each(&husk, &guest);
    if let Some(also) = &plan.also {
        let program = ram.join("other");
        std::fs::copy(also, &program).with_context(|| format!("copying {}", also.display()))?;
        let other = rivals::one_each(&program, &guest).into_iter().next();
        let other = other.map(|husk| Subject { name: "the other husk".to_owned(), ..husk });
        subjects.splice(1..1, other);
    }
    let is_wanted = |subject: &Subject| plan.only.iter().any(|word| subject.name.contains(word));
    subjects.retain(|subject| plan.only.is_empty() || is_wanted(subject));
    if subjects.is_empty() {
        bail!("nobody on PATH is called anything like {}", plan.only.join(", "));
    }
    let mut rounds = Rounds::new(subjects);
    for round in 0..plan.rounds {
        rounds.one(|subject, figures| run(subject, plan.seconds, &tap.guest(), &socket, figures));
        host::say(format!("round {} of {}", round + 1, plan.rounds));
    }
    print!("{}", rounds.table());
    Ok(())
}

/// The initramfs with modules, the script and the echo.
fn with_script(plan: &Plan, script: &str) -> Result<Vec<u8>> {
    let full = plan.assets.join(assets::FULL);
    let mut image = std::fs::read(&full).with_context(|| format!("reading {}", full.display()))?;
    let mut cpio = Cpio::default();
    cpio.file("test.sh", 0o755, script.as_bytes());
    skeleton::add_program(&mut cpio, "bin/echo-tcp", &plan.echo)?;
    image.extend(cpio.finish());
    Ok(image)
}

/// What one run gave, by the work's name: the figure, and exits to user space for each request.
type Figures = BTreeMap<&'static str, (f64, Option<f64>)>;

/// Starts `subject` and has its guest do all the work, as far as it comes.
fn run(
    subject: &Subject,
    seconds: u32,
    guest: &str,
    socket: &str,
    figures: &mut Figures,
) -> Result<()> {
    // A killed rival leaves its own socket behind.
    cache::remove(Path::new(socket))?;
    let vsock = Vsock::listen(socket, (work::vsock_mib(seconds) as usize) << 20)?;
    let running = Running::start(subject)?;
    let mut before = None;
    loop {
        let silence = SILENCE + Duration::from_secs(seconds.into());
        match running.said.recv_timeout(silence).context("its guest says nothing more")? {
            Said::Over => return Ok(()),
            Said::Failed(work) => bail!("{} failed in its guest", work.name),
            Said::End { work, figure: 0.0, .. } => {
                // It is no figure, and no ratio can be taken of it.
                host::say(format!("{}: {}: nothing was done in its time", subject.name, work.name));
            }
            Said::End { work, figure, requests } => {
                let exits = exits().zip(before).map(|(after, before)| after - before);
                let each = exits.zip(requests).map(|(exits, requests)| exits / requests.max(1.0));
                figures.insert(work.name, (figure, each));
            }
            Said::Begin(work) => {
                let mut insert = |figure| figures.insert(work.name, (figure, None));
                match work {
                    PING_PONG => {
                        let span = Duration::from_secs(seconds.into());
                        insert(ping_pong(guest, work::ECHO_PORT, span)?);
                    }
                    VSOCK_OUT => drop(insert(vsock.came()?)),
                    VSOCK_IN => drop(insert(vsock.went()?)),
                    _ => before = exits(),
                }
            }
        }
    }
}

/// A VMM at work; killed when dropped.
struct Running {
    child: Child,
    said: Receiver<Said>,
}

impl Running {
    fn start(subject: &Subject) -> Result<Self> {
        let (program, args) = subject.command.split_first().context("no command")?;
        let mut child = Command::new(program)
            .args(args)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .with_context(|| format!("starting {program}"))?;
        let output = child.stdout.take().context("no output")?;
        let (tell, said) = mpsc::channel();
        std::thread::spawn(move || {
            let mut lines = BufReader::new(output);
            let mut line = Vec::new();
            while lines.read_until(b'\n', &mut line).is_ok_and(|len| len > 0) {
                if let Some(said) = work::read(&String::from_utf8_lossy(&line)) {
                    // Nobody listens any more when the run has failed.
                    let _ = tell.send(said);
                }
                line.clear();
            }
        });
        Ok(Self { child, said })
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// All figures, of all rounds.
struct Rounds {
    subjects: Vec<Subject>,
    /// By subject, in the order of the rounds; of a run that failed what came before.
    figures: Vec<Vec<Figures>>,
    /// Why a subject is no longer run.
    broken: Vec<Option<String>>,
}

impl Rounds {
    fn new(subjects: Vec<Subject>) -> Self {
        let count = subjects.len();
        Self { subjects, figures: vec![Vec::new(); count], broken: vec![None; count] }
    }

    fn one(&mut self, run: impl Fn(&Subject, &mut Figures) -> Result<()>) {
        let mut order: Vec<usize> = (0..self.subjects.len()).collect();
        shuffle(&mut order);
        for n in order {
            let parts = (self.subjects.get(n), self.figures.get_mut(n), self.broken.get_mut(n));
            let (Some(subject), Some(figures), Some(broken @ None)) = parts else { continue };
            let mut found = Figures::new();
            *broken = run(subject, &mut found).err().map(|error| format!("{error:#}"));
            figures.push(found);
        }
    }

    /// The figures of one subject for one kind of work, by round.
    fn of(&self, subject: usize, work: Work) -> Vec<(f64, Option<f64>)> {
        let rounds = self.figures.get(subject).map(Vec::as_slice).unwrap_or_default();
        rounds.iter().filter_map(|figures| figures.get(work.name).copied()).collect()
    }

    fn table(&self) -> String {
        let mut text = String::new();
        for (subject, broken) in self.subjects.iter().zip(&self.broken) {
            if let Some(why) = broken {
                text += &format!("\n{}: {why}\n", subject.name);
            }
        }
        text += &format!(
            "\n{:<18} {:<28} {:>10} {:>10} {:>10} {:>9} {:>15} {:>12}\n",
            "", "", "median", "min", "max", "husk/this", "(spread)", "exits/request"
        );
        for work in work::all() {
            let mut heading = format!("{} {}", work.name, work.unit);
            for (n, subject) in self.subjects.iter().enumerate() {
                if let Some(line) = self.line(work, n, subject) {
                    text += &format!("{heading:<25} {line}");
                    heading.clear();
                }
            }
            text += &self.best(work);
        }
        text
    }

    /// The line of whichever rival was best in each round; empty if there was none.
    fn best(&self, work: Work) -> String {
        let is_rival = |subject: &Subject| !subject.name.contains("husk");
        let rivals = (0..).zip(&self.subjects).filter(|(_, subject)| is_rival(subject));
        let others: Vec<_> = rivals.map(|(n, _)| self.of(n, work)).collect();
        let own = self.of(0, work);
        let ratios = own.iter().enumerate().filter_map(|(round, (own, _))| {
            let these = others.iter().filter_map(|those| those.get(round));
            these.map(|(figure, _)| *figure).reduce(f64::max).map(|best| own / best)
        });
        let ratios: Vec<f64> = ratios.collect();
        if ratios.is_empty() {
            return String::new();
        }
        let r = Summary::of(&ratios);
        let spread = format!("({:.2}–{:.2})", r.min, r.max);
        format!("{:<26}{:<54} {:>9.2} {spread:>15}\n", "", "the best rival", r.median)
    }

    /// The line of one subject, but for its heading; `None` if it has no figure.
    fn line(&self, work: Work, n: usize, subject: &Subject) -> Option<String> {
        let (own, these) = (self.of(0, work), self.of(n, work));
        if these.is_empty() {
            return None;
        }
        let figures: Vec<f64> = these.iter().map(|(figure, _)| *figure).collect();
        let ratios: Vec<f64> =
            own.iter().zip(&figures).map(|((own, _), this)| own / this).collect();
        let exits: Vec<f64> = these.iter().filter_map(|(_, exits)| *exits).collect();
        let (s, r) = (Summary::of(&figures), Summary::of(&ratios));
        let spread = format!("({:.2}–{:.2})", r.min, r.max);
        let exits = match exits.is_empty() {
            true => String::new(),
            false => format!("{:.2}", Summary::of(&exits).median),
        };
        Some(format!(
            "{:<21} {:>10.0} {:>10.0} {:>10.0} {:>9.2} {spread:>15} {exits:>12}\n",
            subject.name.split(',').next().unwrap_or_default(),
            s.median,
            s.min,
            s.max,
            r.median,
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ratios_are_taken_within_a_round_and_a_broken_subject_is_run_once() {
        let subject = |name: &str| Subject { name: name.to_owned(), command: Vec::new() };
        let mut rounds = Rounds::new(vec![subject("husk, x"), subject("other"), subject("bad")]);
        let counts = std::cell::Cell::new((0, 0));
        for factor in [1.0, 3.0] {
            rounds.one(|subject, found| {
                let (runs, bad) = counts.get();
                let figure = match subject.name.as_str() {
                    "bad" => {
                        counts.set((runs, bad + 1));
                        found.insert(VSOCK_OUT.name, (50.0, None));
                        bail!("no such device");
                    }
                    "other" => 100.0 * factor,
                    _ => 200.0 * factor,
                };
                counts.set((runs + 1, bad));
                found.insert(PING_PONG.name, (figure, Some(1.0)));
                Ok(())
            });
        }
        assert_eq!(counts.get(), (4, 1));
        let table = rounds.table();
        assert!(table.contains("bad: no such device"), "{table}");
        let kept = table.lines().find(|line| line.contains(" bad ")).unwrap();
        assert!(kept.contains(" 50 "), "what it did before is lost: {kept}");
        let line = table.lines().find(|line| line.contains(" other ")).unwrap();
        assert!(line.contains("2.00     (2.00–2.00)         1.00"), "{line}");
        let best = table.lines().find(|line| line.contains("the best rival")).unwrap();
        assert!(best.ends_with("2.00     (2.00–2.00)"), "{best}");
    }
}
