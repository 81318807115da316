//! `husk run`: boot a kernel, be its console, end with its status.

mod ending;
mod values;

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::{Args, ValueEnum};
use husk::config::{
    BalloonConfig, BootProtocol, ConsoleConfig, ConsoleDevice, DiskConfig, MemoryConfig, NetConfig,
    OnReboot, PmemConfig, PortConfig, Publish, VmConfig, VolumeConfig, VsockConfig,
};
use husk::error::NameError;
use husk::timeline::{Phase, Timeline};
use husk::{ConsoleStreams, GuestCommand, Outcome, RunningVm, Vm};
use log::LevelFilter;

use super::awaited::Awaited;
use super::exec::{self, Exec, Forward};
use super::life::{
    Escapes, TIMED_OUT, attend_disks, attend_escapes, attend_metrics, attend_window, conclude,
    kill, report,
};
use super::signals::Signals;
use super::{Error, footprint, limits, logging, metrics, net, terminal};
use ending::Ending;
pub use values::parse_seconds;
use values::{
    parse_balloon, parse_console, parse_console_device, parse_cpus, parse_disk, parse_memory,
    parse_on_reboot, parse_pmem, parse_port, parse_protocol, parse_switch, parse_volume,
    parse_vsock,
};

/// What `husk run --help` ends with.
pub const AFTER_HELP: &str = "\
Exit status: 0 the guest turned itself off, 124 --timeout, 125 husk could not, 134 the guest's kernel \
died, 128+n ended by signal n, 2n+1 the guest wrote n to port 0xf4. Of a command: its own, 126 it cannot \
be executed, 127 there is none, 128+n it ended by signal n, 137 also when the VM was killed under it.\n\n\
On a terminal: Ctrl-a x ends the VM, Ctrl-a h helps.";

/// Boot a Linux kernel in a VM
#[derive(Args)]
#[command(allow_negative_numbers = true)]
pub struct Run {
    /// The kernel: vmlinuz (bzImage) or vmlinux (ELF) [default: $HUSK_KERNEL, the newest that
    /// `husk kernel fetch` brought, /boot/vmlinuz-$(uname -r)]
    #[arg(long, value_name = "FILE")]
    kernel: Option<PathBuf>,
    /// The initial RAM file system
    #[arg(long, value_name = "FILE")]
    initrd: Option<PathBuf>,
    /// The kernel command line [default: console=ttyS0 pci=off, and root=/dev/vda when there
    /// is a disk; panic=-1 is added unless panic= is set]. With pci=off Linux does not look for PCI,
    /// which there is none of; its "PCI: Fatal: No config space access function found" is harmless
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    cmdline: Option<String>,
    /// Added to the kernel command line, after what --config adds; may be repeated
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    append: Vec<String>,
    /// Number of vCPUs [default: 1]
    #[arg(long, value_name = "N", value_parser = parse_cpus)]
    cpus: Option<u32>,
    /// Guest memory: SIZE[,shared][,hugepages], as in 512M or 2G [default: 512M]
    #[arg(long, value_name = "SIZE", value_parser = parse_memory)]
    memory: Option<MemoryConfig>,
    /// A disk: path=FILE [,ro] [,id=NAME] [,format=raw|qcow2] [,backing] [,overlay]
    /// [,overlay_dir=DIR] [,cache=writeback|direct|unsafe] [,engine=auto|io_uring|threads]
    /// [,queues=N] [,bps=SIZE] [,iops=N]; may be repeated. At SIGUSR2 husk looks again how large the
    /// disks are, and tells the guest
    #[arg(long, value_name = "DISK", value_parser = parse_disk)]
    disk: Vec<DiskConfig>,
    /// A file as persistent memory, /dev/pmem0: path=FILE[,ro][,id=NAME]; may be repeated
    #[arg(long, value_name = "PMEM", value_parser = parse_pmem)]
    pmem: Vec<PmemConfig>,
    /// A directory of the host's, which the guest mounts by its tag (`mount -t virtiofs TAG /mnt`):
    /// PATH:TAG[:ro] [,cache=auto|always|never]; may be repeated. With a command also PATH:/DIR[:ro]…,
    /// and the command finds it at /DIR
    #[arg(long, value_name = "VOLUME", value_parser = parse_volume)]
    volume: Vec<VolumeConfig>,
    /// A network interface: tap=NAME, fd=N, user or link=NAME, then [,address=IP/BITS] [,mac=MAC]
    /// [,mtu=BYTES] [,queues=N] [,vhost=on|off|auto] [,rx_bandwidth=SIZE] [,tx_bandwidth=SIZE] [,rx_ops=N]
    /// [,tx_ops=N] [,id=NAME]; may be repeated
    #[arg(long, value_name = "NET", value_parser = net::parse)]
    net: Vec<NetConfig>,
    /// With --net user, a port of the host that leads to the guest: [ADDRESS:]HOST:GUEST[/udp];
    /// may be repeated
    #[arg(long, value_name = "PORTS")]
    publish: Vec<Publish>,
    /// Whether the guest has virtio-rng [default: on]
    #[arg(long, value_name = "on|off", value_parser = parse_switch)]
    rng: Option<bool>,
    /// A memory balloon that takes SIZE from the guest at first; what the guest frees comes back to
    /// the host, also with 0
    #[arg(long, value_name = "SIZE", value_parser = parse_balloon)]
    balloon: Option<BalloonConfig>,
    /// Sockets between guest and host: socket=PATH[,cid=N]; the host says `CONNECT <port>` to PATH,
    /// and the guest reaches PATH_<port> [cid: 3]
    #[arg(long, value_name = "VSOCK", value_parser = parse_vsock)]
    vsock: Option<VsockConfig>,
    /// The console: stdio, none, file=PATH, or pty [default: stdio]
    #[arg(long, value_name = "WHERE", value_parser = parse_console)]
    console: Option<ConsoleConfig>,
    /// What the console is to the guest: serial (ttyS0), or virtio (hvc0, faster; the kernel command
    /// line says console=hvc0 then) [default: serial]
    #[arg(long, value_name = "serial|virtio", value_parser = parse_console_device)]
    console_device: Option<ConsoleDevice>,
    /// A byte port, /dev/virtio-ports/NAME in the guest: name=NAME,socket=PATH or
    /// name=NAME,file=PATH; may be repeated
    #[arg(long, value_name = "PORT", value_parser = parse_port)]
    port: Vec<PortConfig>,
    /// What a reboot of the guest does [default: restart]
    #[arg(long, value_name = "exit|restart", value_parser = parse_on_reboot)]
    on_reboot: Option<OnReboot>,
    /// Describe the machine by an MP table and virtio_mmio.device= parameters instead of ACPI
    #[arg(long)]
    no_acpi: bool,
    /// How to enter the kernel: auto, pvh or linux64 [default: auto]
    #[arg(long, value_name = "HOW", value_parser = parse_protocol)]
    boot_protocol: Option<BootProtocol>,
    /// Share the kernel's pages with other VMs of the same kernel instead of reading it anew
    #[arg(long)]
    share_kernel: bool,
    /// What the VM is called, for `husk ps`, `exec`, `cp`, `logs`, `stop` and `kill`
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    #[command(flatten)]
    exec: Exec,
    /// On SIGTERM, SIGINT, SIGHUP or SIGQUIT, seconds between the power button, or the command's
    /// signal, and a hard stop
    #[arg(long, value_name = "SECONDS", default_value = "10", value_parser = parse_seconds)]
    grace: Duration,
    /// End the VM after this many seconds, with status 124
    #[arg(long, value_name = "SECONDS", value_parser = parse_seconds)]
    timeout: Option<Duration>,
    /// What husk says on stderr
    #[arg(long, value_name = "LEVEL", default_value = "warn")]
    log: Level,
    /// Read the VM from a JSON file (of at most 1 MiB); other options override it, and --append adds to it
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Print the VM as the JSON that --config reads, and exit
    #[arg(long)]
    print_config: bool,
    /// Write what each device has done (requests, bytes, errors, interrupts, doorbells) to this file
    /// as JSON: at the end, and when husk gets SIGUSR1
    #[arg(long, value_name = "FILE")]
    metrics: Option<PathBuf>,
    /// At the end, print where start-up time went
    #[arg(long)]
    timeline: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum Level {
    Off,
    Error,
    Warn,
    Info,
    Debug,
    Trace,
}

/// Says where a kernel goes when `husk run` was given a word that is no option. (The other
/// subcommands know their words, or are not followed by the name of a file.)
pub fn hint_at_kernel(error: &mut clap::Error) {
    use clap::error::{ContextKind, ContextValue, ErrorKind};
    let word = match error.get(ContextKind::InvalidArg) {
        Some(ContextValue::String(word)) if !word.starts_with('-') => word.clone(),
        _ => return,
    };
    let in_run = std::env::args_os().nth(1).is_some_and(|subcommand| subcommand == "run");
    if error.kind() == ErrorKind::UnknownArgument && in_run {
        let tip = format!("if that is the kernel: husk run --kernel {word}");
        error.insert(ContextKind::Suggested, ContextValue::StyledStrs(vec![tip.into()]));
    }
}

/// When this process began, as far as it can tell: the CPU time it has used lies behind it.
pub fn process_start() -> Instant {
    let now = Instant::now();
    let mut used = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: a valid clock and a valid place for its value.
    let failed = unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &mut used) } != 0;
    let used =
        Duration::new(used.tv_sec.try_into().unwrap_or(0), used.tv_nsec.try_into().unwrap_or(0));
    if failed { now } else { now.checked_sub(used).unwrap_or(now) }
}

impl Run {
    /// Runs the VM to its end and returns the exit status.
    pub fn execute(self, started: Instant) -> Result<u8, Error> {
        let timeline = Arc::new(Timeline::default());
        timeline.mark_at(Phase::ProcessStart, started);
        logging::init(match self.log {
            Level::Off => LevelFilter::Off,
            Level::Error => LevelFilter::Error,
            Level::Warn => LevelFilter::Warn,
            Level::Info => LevelFilter::Info,
            Level::Debug => LevelFilter::Debug,
            Level::Trace => LevelFilter::Trace,
        });
        let (grace, timeout, show) = (self.grace, self.timeout, self.timeline);
        let (print_config, config_file) = (self.print_config, self.config.clone());
        let metrics_path = self.metrics.clone();
        let name = self.name.clone();
        if let Some(name) = &name {
            husk::named::check(name)?;
            // Before anything is started; who is first of two at the same time is found out later.
            match husk::named::find(name) {
                Ok(_) => return Err(NameError::InUse(name.clone()).into()),
                Err(NameError::Unknown(_)) => {}
                // A directory, say, in which there can be no names.
                Err(e) => return Err(e.into()),
            }
        }
        let (mut config, command) = self.into_config()?;
        config.name_devices();
        config.validate()?;
        if let Some(file) = &config_file {
            spare(file, &config)?;
        }
        if print_config {
            super::stdout::print(&(config.to_json()? + "\n"))?;
            return Ok(0);
        }

        if config.vsock.is_some() || !config.volumes.is_empty() {
            limits::raise_descriptors();
        }
        let _restore = terminal::Restore;
        let session = Session {
            resized: Awaited::block(libc::SIGWINCH)?,
            asked: metrics_path.as_ref().map(|_| Awaited::block(libc::SIGUSR1)).transpose()?,
            larger: Awaited::block(libc::SIGUSR2)?,
            signals: Signals::block()?,
            kernel: config.kernel.display().to_string(),
            config,
            timeline,
            name,
            metrics_path,
            grace,
            timeout,
            show,
        };
        match command {
            Some(command) => session.run_command(command),
            None => session.run_console(),
        }
    }

    fn into_config(self) -> Result<(VmConfig, Option<GuestCommand>), Error> {
        let mut config = match &self.config {
            Some(path) => VmConfig::from_file(path)?,
            None => VmConfig::new(""),
        };
        if let Some(kernel) = self.kernel {
            config.kernel = kernel;
        } else if config.kernel.as_os_str().is_empty() {
            config.kernel = husk::kernels::default_kernel()?;
        }
        config.initrd = self.initrd.or(config.initrd);
        config.cmdline = self.cmdline.or(config.cmdline);
        let appended = [config.append].into_iter().chain(self.append);
        config.append = appended.filter(|text| !text.is_empty()).collect::<Vec<_>>().join(" ");
        config.cpus = self.cpus.unwrap_or(config.cpus);
        config.memory = self.memory.unwrap_or(config.memory);
        if !self.disk.is_empty() {
            config.disks = self.disk;
        }
        if !self.pmem.is_empty() {
            config.pmem = self.pmem;
        }
        if !self.volume.is_empty() {
            config.volumes = self.volume;
        }
        if !self.net.is_empty() {
            config.nets = self.net;
        }
        if !self.publish.is_empty() {
            let user = config.nets.iter_mut().find(|net| net.user);
            user.ok_or("--publish needs a network to publish from: --net user")?.publish =
                self.publish;
        }
        config.rng = self.rng.unwrap_or(config.rng);
        config.balloon = self.balloon.or(config.balloon);
        config.vsock = self.vsock.or(config.vsock);
        config.console = self.console.clone().unwrap_or(config.console);
        config.console_device = self.console_device.unwrap_or(config.console_device);
        if !self.port.is_empty() {
            config.ports = self.port;
        }
        config.on_reboot = self.on_reboot.unwrap_or(config.on_reboot);
        config.acpi =
            config.acpi && !self.no_acpi && !husk::kernels::is_without_acpi(&config.kernel);
        config.boot_protocol = self.boot_protocol.unwrap_or(config.boot_protocol);
        config.share_kernel = config.share_kernel || self.share_kernel;
        let command = self.exec.apply(&mut config, self.console.as_ref())?;
        Ok((config, command))
    }
}

/// A VM from here on: what it is made of, and what is asked of husk while it runs.
struct Session {
    config: VmConfig,
    timeline: Arc<Timeline>,
    /// The kernel's path, for `husk ps`.
    kernel: String,
    name: Option<String>,
    metrics_path: Option<PathBuf>,
    grace: Duration,
    timeout: Option<Duration>,
    /// `--timeline`.
    show: bool,
    resized: Awaited,
    /// For the metrics.
    asked: Option<Awaited>,
    /// Some disks are.
    larger: Awaited,
    signals: Signals,
}

impl Session {
    /// A guest for one command.
    fn run_command(self, command: GuestCommand) -> Result<u8, Error> {
        let signals = Forward::attend(self.signals, self.grace)?;
        let vm = Vm::with(self.config, None, self.timeline)?;
        let metrics = self.metrics_path.as_deref().map(metrics::File::make).transpose()?;
        let timeout = self.timeout.map(|limit| (limit, Instant::now()));
        let vm = Arc::new(vm.start()?);
        signals.has_vm(vm.clone());
        attend(&vm, metrics.as_ref(), self.asked, self.larger)?;
        footprint::release();
        let _name =
            self.name.map(|name| husk::named::serve(&name, &vm, self.kernel)).transpose()?;
        let limits = exec::Limits { timeout, grace: self.grace };
        let status = exec::run(&vm, command, &signals, self.resized, &limits)?;
        report(self.show, metrics.as_ref(), &vm);
        Ok(status)
    }

    /// A guest whose console is ours.
    fn run_console(self) -> Result<u8, Error> {
        let ending = Ending::attend(self.signals, self.grace)?;
        let (console, escapes) = console(&self.config)?;
        let vm = Vm::with(self.config, console, self.timeline)?;
        let metrics = self.metrics_path.as_deref().map(metrics::File::make).transpose()?;
        if escapes.is_some() {
            if terminal::is_anothers() {
                tell!(
                    "husk: this job is in the background and the terminal, its guest's console, is \
                     not: it stops until the shell's `fg` (or leave the terminal alone: \
                     </dev/null, or --console file=PATH)\n"
                );
            }
            terminal::make_raw();
        }
        let vm = Arc::new(vm.start()?);
        // Before anything that may wait: from now on a signal asks the guest.
        ending.started(vm.clone());
        let _name =
            self.name.map(|name| husk::named::serve(&name, &vm, self.kernel)).transpose()?;
        if let Some(path) = vm.console_path() {
            tell!("husk: the console is at {}\n", path.display());
        }
        if let Some(escapes) = escapes {
            attend_escapes(escapes, vm.clone())?;
            attend_window(self.resized, &vm)?;
        }
        attend(&vm, metrics.as_ref(), self.asked, self.larger)?;

        let Some(outcome) = wait(&vm, self.timeout) else {
            let ended = kill(&vm);
            terminal::restore();
            let limit = self.timeout.unwrap_or_default();
            tell!("husk: the VM still ran after {} s\n", limit.as_secs_f64());
            report(self.show, metrics.as_ref(), &vm);
            if !ended {
                std::process::exit(TIMED_OUT.into());
            }
            return Ok(TIMED_OUT);
        };
        terminal::restore();
        let status = conclude(&outcome, ending.signal());
        report(self.show, metrics.as_ref(), &vm);
        Ok(status)
    }
}

/// Attends to what may be asked of husk while any VM runs.
fn attend(
    vm: &Arc<RunningVm>,
    metrics: Option<&metrics::File>,
    asked: Option<Awaited>,
    larger: Awaited,
) -> std::io::Result<()> {
    if let (Some(file), Some(asked)) = (metrics, asked) {
        attend_metrics(file.clone(), asked, vm)?;
    }
    attend_disks(larger, vm)
}

/// Waits until the VM ends, at most for `limit`, and gives back meanwhile what only its start needed:
/// at once, and after ever longer times, for how long a guest takes to come up nobody knows.
fn wait(vm: &RunningVm, limit: Option<Duration>) -> Option<Outcome> {
    const FIRST: Duration = Duration::from_secs(1);
    let began = Instant::now();
    let mut pause = FIRST;
    loop {
        footprint::release();
        let left = limit.map(|limit| limit.saturating_sub(began.elapsed()));
        let step = left.map_or(pause, |left| left.min(pause));
        if let Some(outcome) = vm.wait_timeout(step) {
            return Some(outcome);
        }
        if left == Some(step) {
            return None;
        }
        pause = pause.saturating_mul(2);
    }
}

/// Refuses a file for what the guest writes that is the configuration's own: it would be emptied.
fn spare(file: &Path, config: &VmConfig) -> Result<(), String> {
    let console = match &config.console {
        ConsoleConfig::File(console) => Some(("console", console)),
        _ => None,
    };
    let ports = config.ports.iter().filter_map(|port| Some(("port", port.file.as_ref()?)));
    let identity = |path: &Path| std::fs::metadata(path).ok().map(|m| (m.dev(), m.ino()));
    for (what, written) in ports.chain(console) {
        if identity(written).is_some_and(|id| identity(file) == Some(id)) {
            let (written, file) = (written.display(), file.display());
            return Err(format!(
                "{what}: cannot write to {written}: it is the --config file {file}"
            ));
        }
    }
    Ok(())
}

/// On a terminal, standard streams with the escape key; otherwise what the configuration says.
fn console(config: &VmConfig) -> Result<(Option<ConsoleStreams>, Option<Escapes>), Error> {
    use std::io::IsTerminal;
    if config.console != ConsoleConfig::Stdio || !std::io::stdin().is_terminal() {
        return Ok((None, None));
    }
    let (typed, escapes) = std::sync::mpsc::channel();
    let mut streams = husk::stdio_streams()?;
    streams.on_escape = Some(Box::new(move |escape| {
        // Nobody listens any more when the VM is ending anyway.
        let _ = typed.send(escape);
    }));
    Ok((Some(streams), Some(escapes)))
}

#[cfg(test)]
mod tests;
