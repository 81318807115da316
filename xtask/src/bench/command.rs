//! `cargo xtask bench command`: `husk run -- true`, from exec to exit, against the way of the same kernel to its
//! first process, and against `crun run`. What is more than the one is husk's own: modules, roots, the
//! agent, the command, the end. What is more than the other is what a snapshot would have to save.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use super::guests::{bench_initrd, start};
use super::rivals::{self, Guest, Subject};
use super::startup::fast_kernel;
use super::stats::{Summary, shuffle};
use super::{InnerArgs, Place, in_ram, inside};
use crate::{assets, cargo, host, skeleton};

/// `cargo xtask bench command`
#[derive(clap::Args)]
pub struct Args {
    /// Rounds; each runs everything once
    #[arg(long, default_value_t = 7, value_name = "N")]
    rounds: usize,
    /// A kernel that `husk kernel build` made for speed [default: the one in husk's kernel
    /// directory, if it is there]
    #[arg(long, value_name = "FILE")]
    fast_kernel: Option<PathBuf>,
    #[command(flatten)]
    place: Place,
}

/// What is run where Linux boots.
#[derive(Serialize, Deserialize)]
struct Plan {
    rounds: usize,
    husk: PathBuf,
    assets: PathBuf,
    fast: Option<PathBuf>,
    noxsave: bool,
}

/// What a command may cost more than the kernel's own way to its first process, in milliseconds.
const MORE: f64 = 600.0;

const INIT: &str = "the kernel's way to its init";
const TRUE: &str = "husk run -- true";
const FAST: &str = "husk run -- true, fast kernel";
const CRUN: &str = "crun run";

/// Makes everything, and measures where Linux boots.
pub fn main(args: &Args) -> Result<u8> {
    let husk = cargo::build_husk()?;
    let plan = Plan {
        rounds: args.rounds.max(1),
        husk: husk.clone(),
        assets: assets::all()?,
        fast: fast_kernel(&husk, args.fast_kernel.as_deref())?,
        noxsave: args.place.xsave,
    };
    inside(&husk, &args.place, "__bench-command", &plan, 4096)
}

/// Reads the plan and runs it.
pub fn inner(args: &InnerArgs) -> Result<u8> {
    in_ram(args, measure)
}

fn measure(plan: &Plan, ram: &Path) -> Result<()> {
    assets::copy_to_ram(&plan.assets, &[assets::VMLINUX_CLOUD], ram)?;
    assets::link_modules(&plan.assets, ram)?;
    let husk = ram.join("husk");
    fs::copy(&plan.husk, &husk).with_context(|| format!("copying {}", husk.display()))?;
    let (kernel, initrd) = (ram.join(assets::VMLINUX_CLOUD), ram.join("initrd"));
    fs::write(&initrd, bench_initrd()?).context("writing the initramfs")?;
    let noxsave = if plan.noxsave { " noxsave" } else { "" };
    let init = rivals::own_line(
        &husk,
        &Guest {
            vmlinux: &host::arg(&kernel),
            bzimage: "",
            initrd: Some(&host::arg(&initrd)),
            cmdline: &format!("{}{noxsave}", rivals::CMDLINE),
            scratch: ram,
            devices: None,
        },
    );
    let run_true = |kernel: &Path, more: &[&str]| {
        let noxsave: &[&str] = if plan.noxsave { &["--append", "noxsave"] } else { &[] };
        let words = [&host::arg(&husk), "run", "--kernel", &host::arg(kernel)];
        [&words, noxsave, more, &["--", "true"]].concat().into_iter().map(str::to_owned).collect()
    };
    let modules = host::arg(&ram.join(assets::MODULES_CLOUD));
    let mut commands = vec![(TRUE, run_true(&kernel, &["--modules", &modules]))];
    if let Some(fast) = &plan.fast {
        let kernel = ram.join("vmlinux-fast");
        fs::copy(fast, &kernel).with_context(|| format!("copying {}", fast.display()))?;
        commands.push((FAST, run_true(&kernel, &["--no-acpi"])));
    }
    if let Some(crun) = host::find("crun") {
        commands.push((CRUN, bundle(&crun, &ram.join("bundle"))?));
    }
    let figures = in_turn(plan.rounds, &init, &commands)?;
    println!("\nexec → exit, ms: {} rounds, in turn", plan.rounds);
    println!("{:<30} {:>8} {:>8} {:>8}", "", "median", "min", "max");
    let names = std::iter::once(INIT).chain(commands.iter().map(|(name, _)| *name));
    for (name, Summary { median, min, max }) in names.clone().zip(&figures) {
        println!("{name:<30} {median:>8.0} {min:>8.0} {max:>8.0}");
    }
    let median = |wanted| {
        let mut all = names.clone().zip(&figures);
        all.find_map(|(name, figure)| (name == wanted).then_some(figure.median))
    };
    if let (Some(init), Some(command)) = (median(INIT), median(TRUE)) {
        println!("{TRUE}: {:.0} ms more than {INIT} (the aim is {MORE} at most)", command - init);
    }
    if let (Some(fast), Some(crun)) = (median(FAST), median(CRUN)) {
        println!("{FAST} / {CRUN}: {:.2}", fast / crun);
    }
    for (name, command) in commands.iter().filter(|(name, _)| *name != CRUN) {
        let mut command = command.clone();
        command.insert(2, "--timeline".to_owned());
        println!("\n{name}, where its time goes\n{}", run(&command)?);
    }
    Ok(())
}

/// What everything takes, `init` first, each in milliseconds; the first round warms the caches.
fn in_turn(
    rounds: usize,
    init: &Subject,
    commands: &[(&str, Vec<String>)],
) -> Result<Vec<Summary>> {
    let mut times = vec![Vec::new(); 1 + commands.len()];
    let mut order: Vec<usize> = (0..times.len()).collect();
    for round in 0..=rounds {
        shuffle(&mut order);
        for &n in &order {
            let begun = Instant::now();
            let took = match n.checked_sub(1).and_then(|n| commands.get(n)) {
                Some((_, command)) => run(command).map(|_| begun.elapsed())?,
                None => start(init)?.elapsed,
            };
            if let (1.., Some(times)) = (round, times.get_mut(n)) {
                times.push(took.as_secs_f64() * 1e3);
            }
        }
        host::say(format!("round {round} of {rounds}"));
    }
    Ok(times.iter().map(|times| Summary::of(times)).collect())
}

/// A container of busybox's `true`, as `crun spec` describes one.
fn bundle(crun: &Path, at: &Path) -> Result<Vec<String>> {
    let bin = at.join("rootfs/bin");
    fs::create_dir_all(&bin).with_context(|| format!("making {}", bin.display()))?;
    fs::copy(skeleton::busybox()?, bin.join("true")).context("copying busybox")?;
    host::output(Command::new(crun).arg("spec").current_dir(at))?;
    let file = at.join("config.json");
    let text = fs::read_to_string(&file).context("reading crun's config.json")?;
    let mut spec: serde_json::Value = serde_json::from_str(&text).context("crun's config.json")?;
    let process = spec.get_mut("process").and_then(|process| process.as_object_mut());
    let process = process.context("crun's config.json has no process")?;
    process.insert("terminal".to_owned(), false.into());
    process.insert("args".to_owned(), serde_json::json!(["/bin/true"]));
    fs::write(&file, spec.to_string()).context("writing crun's config.json")?;
    let words = [&host::arg(crun), "run", "--bundle", &host::arg(at), "husk-bench"];
    Ok(words.map(str::to_owned).to_vec())
}

/// Runs it, and gives what it says. Waited for by the kernel's own means: what is timed is not rounded.
fn run(words: &[String]) -> Result<String> {
    let (program, args) = words.split_first().context("no command")?;
    let done = host::command(program)
        .args(args)
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("starting {program}"))?;
    let said = String::from_utf8_lossy(&[done.stdout, done.stderr].concat()).into_owned();
    if !done.status.success() {
        bail!("{words:?}: {}: {said}", done.status);
    }
    Ok(said)
}
