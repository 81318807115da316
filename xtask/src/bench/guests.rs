//! Parts 2 and 3 of the start-up benchmark, where KVM runs Linux.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use super::process::{cpu_ticks, memory, page_faults};
use super::rivals::{self, Devices, Guest, Subject};
use super::stats::{Summary, shuffle};
use super::{InnerArgs, in_ram};
use crate::tap::Tap;
use crate::{assets, host, skeleton};

/// What is run inside the testbed.
#[derive(Debug, Serialize, Deserialize)]
pub struct Inner {
    /// Rounds; each runs every subject once.
    pub rounds: usize,
    /// The binary.
    pub husk: PathBuf,
    /// Kernels.
    pub assets: PathBuf,
    /// A kernel that husk built for speed.
    pub fast: Option<PathBuf>,
    /// Whether to measure exec → init.
    pub init: bool,
    /// Whether to measure memory and idle CPU.
    pub cost: bool,
    /// Whether guests must leave XSAVE alone (TCG breaks it).
    pub noxsave: bool,
}

/// Reads the plan and runs it.
pub fn inner(args: &InnerArgs) -> Result<u8> {
    in_ram(args, run)
}

/// The first line of the guest's user space; behind it the guest's own clock in seconds.
const MARKER: &str = "HUSK-BENCH-INIT";
/// The size of the disk of a guest whose cost is measured, in bytes.
const DISK: u64 = 64 << 20;
/// What it does before it idles: both devices have been at work.
const USE: &str =
    "ifconfig eth0 up; dd if=/dev/vda of=/dev/null bs=64k; echo HUSK-BENCH-INIT; sleep 100000";
const LIMIT: Duration = Duration::from_secs(120);

fn run(plan: &Inner, ram: &Path) -> Result<()> {
    let copy = |from: &Path, name: &str| -> Result<String> {
        let to = ram.join(name);
        std::fs::copy(from, &to).with_context(|| format!("copying {}", from.display()))?;
        Ok(to.display().to_string())
    };
    let husk = PathBuf::from(copy(&plan.husk, "husk")?);
    let vmlinux = copy(&plan.assets.join(assets::VMLINUX_CLOUD), "vmlinux")?;
    let bzimage = copy(&plan.assets.join(assets::VMLINUZ_CLOUD), "vmlinuz")?;
    let initrd = ram.join("initrd");
    std::fs::write(&initrd, bench_initrd()?)?;
    let initrd = initrd.display().to_string();
    let extra = if plan.noxsave { " noxsave" } else { "" };
    let cmdline = format!("{}{extra}", rivals::CMDLINE);
    let bare = Guest {
        vmlinux: &vmlinux,
        bzimage: &bzimage,
        initrd: Some(&initrd),
        cmdline: &cmdline,
        scratch: ram,
        devices: None,
    };
    if plan.init {
        let mut subjects = rivals::all(&husk, &bare);
        subjects.extend(rivals::qemu_bzimage(&bare));
        if let Some(fast) = &plan.fast {
            let vmlinux = copy(fast, "vmlinux-fast")?;
            subjects.extend(rivals::fast(&husk, &Guest { vmlinux: &vmlinux, ..bare }));
        }
        to_init(&subjects, plan.rounds)?;
    }
    if plan.cost {
        let initrd = copy(&plan.assets.join(assets::FULL), "initrd-full")?;
        let disk = ram.join("disk").display().to_string();
        std::fs::File::create(&disk).and_then(|file| file.set_len(DISK))?;
        let tap = Tap::create()?;
        let cmdline = format!("{cmdline} husk.cmd=\"{USE}\"");
        let guest = Guest {
            initrd: Some(&initrd),
            cmdline: &cmdline,
            devices: Some(Devices {
                disk: &disk,
                second: None,
                tap: &tap.name,
                vhost: false,
                vsock: None,
            }),
            ..bare
        };
        cost(&rivals::all(&husk, &guest))?;
    }
    Ok(())
}

/// busybox and an init that tells its clock before anything else.
pub(super) fn bench_initrd() -> Result<Vec<u8>> {
    let init = format!(
        "#!/bin/busybox sh\n/bin/busybox mount -t proc proc /proc\nread up rest </proc/uptime\n\
         echo {MARKER} $up\nexec /bin/busybox sleep 100000\n"
    );
    Ok(skeleton::with_init(&init)?.finish())
}

pub(super) struct Started {
    child: Child,
    /// From exec to the line.
    pub(super) elapsed: Duration,
    guest_clock: f64,
}

impl Drop for Started {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Starts `subject` and waits for its guest's line.
pub(super) fn start(subject: &Subject) -> Result<Started> {
    let (program, args) = subject.command.split_first().context("no command")?;
    let begun = Instant::now();
    let mut child = Command::new(program)
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .with_context(|| format!("starting {program}"))?;
    let output = child.stdout.take().context("no output")?;
    let mut started = Started { child, elapsed: Duration::ZERO, guest_clock: 0.0 };
    let (tell, told) = mpsc::channel();
    std::thread::spawn(move || {
        let mut lines = BufReader::new(output);
        let mut line = Vec::new();
        while lines.read_until(b'\n', &mut line).is_ok_and(|n| n > 0) {
            let text = String::from_utf8_lossy(&line);
            if let Some(at) = text.find(MARKER) {
                let clock = text.get(at + MARKER.len()..).unwrap_or_default().trim().parse();
                // Nobody waits any more when the limit has passed.
                let _ = tell.send((begun.elapsed(), clock.unwrap_or(0.0)));
            }
            line.clear();
        }
    });
    match told.recv_timeout(LIMIT) {
        Ok((elapsed, clock)) => {
            (started.elapsed, started.guest_clock) = (elapsed, clock);
            Ok(started)
        }
        Err(_) => bail!("{}: its guest said nothing", subject.name),
    }
}

fn to_init(subjects: &[Subject], rounds: usize) -> Result<()> {
    let mut times = vec![Vec::new(); subjects.len()];
    let mut outside = vec![Vec::new(); subjects.len()];
    let mut faults = vec![Vec::new(); subjects.len()];
    let mut order: Vec<usize> = (0..subjects.len()).collect();
    let mut broken = vec![None; subjects.len()];
    for round in 0..=rounds {
        shuffle(&mut order);
        for &n in &order {
            let (Some(subject), Some(broken)) = (subjects.get(n), broken.get_mut(n)) else {
                continue;
            };
            if broken.is_some() {
                continue;
            }
            match start(subject) {
                Ok(run) => {
                    let elapsed = run.elapsed.as_secs_f64() * 1e3;
                    // The first round warms the caches.
                    if let (1.., Some(times), Some(outside), Some(faults)) =
                        (round, times.get_mut(n), outside.get_mut(n), faults.get_mut(n))
                    {
                        times.push(elapsed);
                        outside.push(elapsed - run.guest_clock * 1e3);
                        faults.push(page_faults(run.child.id())? as f64);
                    }
                }
                Err(e) => *broken = Some(e.to_string()),
            }
        }
        host::say(format!("round {round} of {rounds}"));
    }
    let base = times.first().map_or(1.0, |t| Summary::of(t).median);
    let base_outside = outside.first().map_or(1.0, |t| Summary::of(t).median);
    println!(
        "\nexec → first line of the guest's init, ms: 1 vCPU, 512 MiB, {rounds} rounds, in turn"
    );
    println!(
        "{:<30} {:>8} {:>8} {:>8} {:>11} {:>15} {:>11} {:>8}",
        "", "median", "min", "max", "husk/this", "outside clock", "husk/this", "faults"
    );
    for (n, subject) in subjects.iter().enumerate() {
        if let Some(Some(why)) = broken.get(n) {
            println!("{:<30} {why}", subject.name);
            continue;
        }
        let empty = Vec::new();
        let s = Summary::of(times.get(n).unwrap_or(&empty));
        let o = Summary::of(outside.get(n).unwrap_or(&empty));
        println!(
            "{:<30} {:>8.0} {:>8.0} {:>8.0} {:>11.2} {:>15.0} {:>11.2} {:>8.0}",
            subject.name,
            s.median,
            s.min,
            s.max,
            base / s.median,
            o.median,
            base_outside / o.median,
            Summary::of(faults.get(n).unwrap_or(&empty)).median
        );
    }
    let median = |all: &[Vec<f64>], name: &str| {
        let n = subjects.iter().position(|subject| subject.name == name)?;
        let times = all.get(n).filter(|times| !times.is_empty())?;
        Some(Summary::of(times).median)
    };
    aims(&AIMS, "", |name| median(&times, name));
    aims(&OUTSIDE_AIMS, ", outside the guest's clock", |name| median(&outside, name));
    Ok(())
}

/// An aim: the ratio of the first to the least of the others that were measured.
struct Aim(&'static str, &'static [&'static str], f64);

/// Those that start the stock kernel as an ELF file.
const RIVALS: &[&str] = &[rivals::FIRECRACKER, rivals::CLOUD_HYPERVISOR, rivals::QEMU];
/// What is to be reached, as ratios of medians: with any kernel, and with one built for speed.
const AIMS: [Aim; 5] = [
    Aim(rivals::HUSK, &[rivals::QEMU], 0.85),
    Aim(rivals::HUSK, RIVALS, 0.95),
    Aim(rivals::HUSK_BZIMAGE, &[rivals::QEMU_BZIMAGE], 0.4),
    Aim(rivals::HUSK_FAST, &[rivals::FIRECRACKER_FAST], 0.85),
    Aim(rivals::HUSK_FAST, &[rivals::HUSK], 0.25),
];
/// Of what is outside the guest's clock.
const OUTSIDE_AIMS: [Aim; 2] =
    [Aim(rivals::HUSK, &[rivals::FIRECRACKER], 0.8), Aim(rivals::HUSK, RIVALS, 0.6)];

fn aims(aims: &[Aim], what: &str, median: impl Fn(&str) -> Option<f64>) {
    for Aim(this, others, aim) in aims {
        let measured = others.iter().filter_map(|that| Some((that, median(that)?)));
        let best = measured.min_by(|(_, a), (_, b)| a.total_cmp(b));
        if let (Some(ours), Some((that, theirs))) = (median(this), best) {
            let of = if others.len() > 1 { ", the best of the others" } else { "" };
            let ratio = ours / theirs;
            println!("{this} / {that}{of}{what}: {ratio:.2} (the aim is {aim} at most)");
        }
    }
}

/// Memory of its own (everything that is not the guest's RAM mapping) and CPU while idle.
fn cost(subjects: &[Subject]) -> Result<()> {
    println!("\nwhile the guest idles, having used its disk and its network card");
    println!("{:<30} {:>16} {:>14} {:>12}", "", "own memory, MiB", "guest RAM, MiB", "CPU, %");
    for subject in subjects {
        let started = match start(subject) {
            Ok(started) => started,
            Err(e) => {
                println!("{:<30} {e}", subject.name);
                continue;
            }
        };
        std::thread::sleep(Duration::from_secs(3));
        let pid = started.child.id();
        let (before, since) = (cpu_ticks(pid)?, Instant::now());
        std::thread::sleep(Duration::from_secs(10));
        let ticks = cpu_ticks(pid)? - before;
        let busy = ticks as f64 / 100.0 / since.elapsed().as_secs_f64() * 100.0;
        let (own, guest) = memory(pid)?;
        println!(
            "{:<30} {:>16.2} {:>14.1} {busy:>12.2}",
            subject.name,
            own as f64 / 1024.0,
            guest as f64 / 1024.0
        );
    }
    Ok(())
}
