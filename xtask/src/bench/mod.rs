//! Benchmarks: they print ratios of what was run in turn, in one session, and assert nothing.

mod command;
mod devices;
mod files;
mod first_run;
mod guests;
mod peers;
mod process;
mod rivals;
mod startup;
mod stats;
mod work;

use std::path::{Path, PathBuf};
use std::time::Duration;

pub use command::inner as command;
pub use devices::inner as devices;
pub use files::inner as files;
pub use guests::inner as guests;

use anyhow::{Context, Result};
use clap::Subcommand;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::{cache, doctor, host, limited, testbed};

/// What is measured.
#[derive(Subcommand)]
pub enum Bench {
    /// Start-up: exec to first KVM_RUN, exec to the guest's init, memory and idle CPU
    Startup(startup::Args),
    /// A command: exec to exit of `husk run -- true`, beside the kernel's own start and `crun run`
    Command(command::Args),
    /// Devices: fio on a disk, TCP over a TAP, vsock, and exits to user space
    Devices(devices::Args),
    /// Shared directories: git status, find, grep and a compiler in one, and in the guest's own
    Files(files::Args),
}

/// Runs `cargo xtask bench …`; gives the exit status.
pub fn main(bench: &Bench) -> Result<u8> {
    match bench {
        Bench::Startup(args) => startup::main(args),
        Bench::Command(args) => command::main(args),
        Bench::Devices(args) => devices::main(args),
        Bench::Files(args) => files::main(args),
    }
}

/// What of the testbed a benchmark may want otherwise.
#[derive(clap::Args)]
struct Place {
    /// In the testbed, make time a count of instructions
    #[arg(long)]
    icount: bool,
    /// In the testbed, add what Firecracker wants of a CPU (all guests then boot with noxsave)
    #[arg(long)]
    xsave: bool,
}

/// No benchmark takes longer.
const LIMIT: Duration = Duration::from_secs(3600);

/// Runs `xtask COMMAND PLAN` where Linux boots: here, or in a testbed with so much memory.
fn inside(
    husk: &Path,
    place: &Place,
    command: &str,
    plan: &impl Serialize,
    memory_mib: u64,
) -> Result<u8> {
    let results = cache::results_dir();
    std::fs::create_dir_all(&results).with_context(|| format!("making {}", results.display()))?;
    let file = results.join("bench.json");
    std::fs::write(&file, serde_json::to_string(plan).context("writing the benchmark's plan")?)
        .with_context(|| format!("writing {}", file.display()))?;
    let me = std::env::current_exe().context("finding xtask itself")?;
    let why = match doctor::ask(husk) {
        doctor::Place::Here => {
            let mut here = std::process::Command::new(me);
            here.arg(command).arg(file);
            let done = limited::run_with(&mut here, LIMIT, true, limited::Errors::Ours)?;
            return Ok(done.status());
        }
        doctor::Place::Testbed(why) => why,
    };
    host::say(format!("measuring guests in the testbed: {why}"));
    let mut options = testbed::Options::new([me.into(), command.into(), file.into()].to_vec())?;
    options.icount = place.icount;
    options.memory_mib = memory_mib;
    if place.xsave {
        options.cpu = "qemu64,+svm,+npt,+xsave,+xsaveopt,+xgetbv1".to_owned();
    }
    options.timeout = LIMIT;
    Ok(testbed::run(&options)?.end.status())
}

/// `xtask __bench-… PLAN`: a benchmark's guests, where Linux boots.
#[derive(clap::Args)]
pub struct InnerArgs {
    plan: PathBuf,
}

/// Measures by what [`inside`] was given, on the other side, with a directory in RAM.
fn in_ram<P: DeserializeOwned>(
    args: &InnerArgs,
    measure: impl FnOnce(&P, &Path) -> Result<()>,
) -> Result<u8> {
    let plan = &args.plan;
    let text =
        std::fs::read_to_string(plan).with_context(|| format!("reading {}", plan.display()))?;
    let plan = serde_json::from_str(&text).context("reading the benchmark's plan")?;
    let ram = Scratch::new("/dev/shm")?;
    measure(&plan, &ram.0)?;
    Ok(0)
}

/// A fresh directory, removed when dropped.
struct Scratch(PathBuf);

impl Scratch {
    fn new(parent: &str) -> Result<Self> {
        let dir = Path::new(parent).join(format!("husk-bench-{}", std::process::id()));
        std::fs::create_dir_all(&dir).with_context(|| format!("making {}", dir.display()))?;
        Ok(Self(dir))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // What is left is in RAM and ours; the benchmark's result matters more.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
