//! Parts 2 and 3 of the start-up benchmark, where KVM runs Linux.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use super::rivals::{self, Guest, Subject};
use super::stats::{Summary, shuffle};
use crate::cpio::Cpio;
use crate::{assets, host};

/// What is run inside the testbed.
#[derive(Debug, Serialize, Deserialize)]
pub struct Inner {
    /// Rounds; each runs every subject once.
    pub rounds: usize,
    /// The binary.
    pub husk: PathBuf,
    /// Kernels.
    pub assets: PathBuf,
    /// Whether to measure exec → init.
    pub init: bool,
    /// Whether to measure memory and idle CPU.
    pub cost: bool,
    /// Whether guests must leave XSAVE alone (TCG breaks it).
    pub noxsave: bool,
}

/// `xtask __bench-guests PLAN`
#[derive(clap::Args)]
pub struct InnerArgs {
    plan: PathBuf,
}

/// Reads the plan and runs it.
pub fn inner(args: &InnerArgs) -> Result<u8> {
    let text = std::fs::read_to_string(&args.plan)
        .with_context(|| format!("reading {}", args.plan.display()))?;
    main(&serde_json::from_str(&text)?)
}

/// The first line of the guest's user space; behind it the guest's own clock in seconds.
const MARKER: &str = "HUSK-BENCH-INIT";
const LIMIT: Duration = Duration::from_secs(120);

/// Runs the benchmark here.
pub fn main(plan: &Inner) -> Result<u8> {
    let ram = tempdir("/dev/shm")?;
    let result = run(plan, &ram);
    // What is left is in RAM and ours; the benchmark's result matters more.
    let _ = std::fs::remove_dir_all(&ram);
    result.map(|()| 0)
}

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
    let cmdline = format!("console=ttyS0 quiet panic=-1{extra}");
    let subjects = rivals::all(
        &husk,
        &Guest {
            vmlinux: &vmlinux,
            bzimage: &bzimage,
            initrd: Some(&initrd),
            cmdline: &cmdline,
            scratch: ram,
        },
    );
    if plan.init {
        to_init(&subjects, plan.rounds)?;
    }
    if plan.cost {
        cost(&subjects)?;
    }
    Ok(())
}

/// busybox and an init that tells its clock before anything else.
fn bench_initrd() -> Result<Vec<u8>> {
    let init = format!(
        "#!/bin/busybox sh\n/bin/busybox mount -t proc proc /proc\nread up rest </proc/uptime\n\
         echo {MARKER} $up\nexec /bin/busybox sleep 100000\n"
    );
    let mut cpio = Cpio::with_skeleton();
    cpio.file("init", 0o755, init.as_bytes());
    cpio.executable("bin/busybox", &assets::busybox()?)?;
    Ok(cpio.finish())
}

struct Started {
    child: Child,
    elapsed: Duration,
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
fn start(subject: &Subject) -> Result<Started> {
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
                    if let (1.., Some(times), Some(outside)) =
                        (round, times.get_mut(n), outside.get_mut(n))
                    {
                        times.push(elapsed);
                        outside.push(elapsed - run.guest_clock * 1e3);
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
        "{:<30} {:>8} {:>8} {:>8} {:>11} {:>15} {:>11}",
        "", "median", "min", "max", "husk/this", "outside clock", "husk/this"
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
            "{:<30} {:>8.0} {:>8.0} {:>8.0} {:>11.2} {:>15.0} {:>11.2}",
            subject.name,
            s.median,
            s.min,
            s.max,
            base / s.median,
            o.median,
            base_outside / o.median
        );
    }
    Ok(())
}

/// Memory of its own (everything that is not the guest's RAM mapping) and CPU while idle.
fn cost(subjects: &[Subject]) -> Result<()> {
    println!("\nwhile the guest idles");
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

/// utime + stime in clock ticks of 10 ms (`proc_pid_stat(5)`, fields 14 and 15).
fn cpu_ticks(pid: u32) -> Result<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let rest = stat.rsplit_once(')').context("/proc/PID/stat")?.1;
    let fields: Vec<u64> =
        rest.split_whitespace().skip(11).take(2).filter_map(|f| f.parse().ok()).collect();
    Ok(fields.iter().sum())
}

/// PSS in KiB outside and inside guest RAM: the mapping of 512 MiB, and whatever file is mapped
/// over parts of it.
fn memory(pid: u32) -> Result<(u64, u64)> {
    const GUEST: u64 = 512 << 20;
    let maps = std::fs::read_to_string(format!("/proc/{pid}/smaps"))?;
    let range = |line: &str| -> Option<(u64, u64)> {
        let (start, end) = line.split_whitespace().next()?.split_once('-')?;
        Some((u64::from_str_radix(start, 16).ok()?, u64::from_str_radix(end, 16).ok()?))
    };
    let pieces: Vec<(u64, u64)> = maps.lines().filter_map(range).collect();
    let ram = find_ram(&pieces, GUEST).context("no guest memory found in /proc/PID/smaps")?;
    let (mut own, mut guest, mut inside) = (0, 0, false);
    for line in maps.lines() {
        if let Some((start, end)) = range(line) {
            inside = start >= ram.0 && end <= ram.1;
        } else if let Some(pss) = line.strip_prefix("Pss:") {
            let kib: u64 = pss.trim().trim_end_matches(" kB").parse().unwrap_or(0);
            if inside { guest += kib } else { own += kib }
        }
    }
    Ok((own, guest))
}

/// Where the guest's RAM is among the mappings: pieces that touch and have its size together, or
/// else one that is larger because the kernel merged it with its neighbours.
fn find_ram(pieces: &[(u64, u64)], size: u64) -> Option<(u64, u64)> {
    for (n, &(start, _)) in pieces.iter().enumerate() {
        let mut end = start;
        for &(from, to) in pieces.iter().skip(n).take_while(|(from, _)| *from <= start + size) {
            if from != end {
                break;
            }
            end = to;
            if end - start == size {
                return Some((start, end));
            }
        }
    }
    pieces.iter().copied().filter(|(s, e)| e - s >= size).min_by_key(|(s, e)| e - s)
}

/// A fresh directory under `parent`.
fn tempdir(parent: &str) -> Result<PathBuf> {
    let dir = Path::new(parent).join(format!("husk-bench-{}", std::process::id()));
    std::fs::create_dir_all(&dir).with_context(|| format!("making {}", dir.display()))?;
    Ok(dir)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guest_memory_is_found_in_one_piece_in_many_or_merged_with_others() {
        assert_eq!(find_ram(&[(0, 5), (10, 110), (110, 112)], 100), Some((10, 110)));
        assert_eq!(find_ram(&[(0, 10), (10, 50), (50, 110), (110, 112)], 100), Some((10, 110)));
        assert_eq!(find_ram(&[(0, 5), (10, 130)], 100), Some((10, 130)));
        assert_eq!(find_ram(&[(0, 5)], 100), None);
    }
}
