//! `husk run`: boot a kernel, be its console, end with its status.

mod name;
mod session;

use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::{Args, ValueEnum};
use husk::GuestCommand;
use husk::config::{
    BalloonConfig, BootProtocol, ConsoleConfig, ConsoleDevice, DiskConfig, MemoryConfig, NetConfig,
    OnReboot, PmemConfig, PortConfig, Publish, VmConfig, VolumeConfig, VsockConfig,
};
use husk::error::NameError;
use husk::named;
use husk::timeline::{Phase, Timeline};
use log::LevelFilter;

use super::awaited::Awaited;
use super::command::Exec;
use super::detach::{self, Detached};
use super::signals::Signals;
use super::values::{
    parse_balloon, parse_console, parse_console_device, parse_cpus, parse_disk, parse_memory,
    parse_on_reboot, parse_pmem, parse_port, parse_protocol, parse_seconds, parse_switch,
    parse_volume, parse_vsock,
};
use super::{Error, limits, logging, net, terminal};
use session::Session;

/// What `husk run --help` ends with.
pub const AFTER_HELP: &str = "\
Exit status: 0 the guest turned itself off, 124 --timeout, 125 husk could not, 134 the guest's kernel \
died, 128+n ended by signal n, 2n+1 the guest wrote n to port 0xf4. Of a command: its own, 126 it cannot \
be executed, 127 there is none, 128+n it ended by signal n, 137 also when the VM was killed under it.\n\n\
On a terminal: Ctrl-a x ends the VM, Ctrl-a h helps. With nothing to run (no CMD, --initrd, --disk, \
root=, nothing of the kernel's own) a shell in the host's root, which stays as it is.";

/// What `husk run --help` has its options under, beside the kernel's and the machine's own.
const DEVICES: &str = "Devices";
const COMMAND: &str = "A command in the guest";
const LIFE: &str = "The VM's life, and what is known of it";

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
    /// The kernel command line [default: console=ttyS0 cryptomgr.notests, and root=/dev/vda with a
    /// disk; panic=-1 and pci=off are added unless set]
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    cmdline: Option<String>,
    /// Added to the kernel command line; may be repeated
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    append: Vec<String>,
    /// Number of vCPUs [default: 1]
    #[arg(long, value_name = "N", value_parser = parse_cpus)]
    cpus: Option<u32>,
    /// Guest memory: SIZE[,shared][,hugepages] [default: 512M]
    #[arg(long, value_name = "SIZE", value_parser = parse_memory)]
    memory: Option<MemoryConfig>,
    /// A disk: [path=]FILE [,ro] [,id=NAME] [,format=raw|qcow2] [,backing] [,overlay]
    /// [,overlay_dir=DIR] [,cache=writeback|direct|unsafe] [,engine=auto|io_uring|threads|sync]
    /// [,queues=N] [,bps=SIZE] [,iops=N]; may be repeated: a VM has at most 18 virtio devices, of
    /// whatever kind. At SIGUSR2 husk looks again how large they are, and tells the guest
    #[arg(long, value_name = "DISK", value_parser = parse_disk, help_heading = DEVICES)]
    disk: Vec<DiskConfig>,
    /// A file as persistent memory, /dev/pmem0: [path=]FILE[,ro][,id=NAME]; may be repeated
    #[arg(long, value_name = "PMEM", value_parser = parse_pmem, help_heading = DEVICES)]
    pmem: Vec<PmemConfig>,
    /// A directory of the host's, which the guest mounts by its tag (`mount -t virtiofs TAG /mnt`):
    /// PATH:TAG[:ro] [,cache=auto|always|never]; may be repeated. With a command also PATH:/DIR[:ro|cow],
    /// and it is at /DIR; with cow, changes are lost
    #[arg(long, value_name = "VOLUME", value_parser = parse_volume, help_heading = DEVICES)]
    volume: Vec<VolumeConfig>,
    /// A network interface: tap=NAME, fd=N, user or link=NAME, then [,address=IP/BITS] [,mac=MAC]
    /// [,mtu=BYTES] [,queues=N] [,vhost=on|off|auto] [,rx_bandwidth=SIZE] [,tx_bandwidth=SIZE] [,rx_ops=N]
    /// [,tx_ops=N] [,id=NAME]; may be repeated
    #[arg(long, value_name = "NET", value_parser = net::parse, help_heading = DEVICES)]
    net: Vec<NetConfig>,
    /// With --net user, a port of the host that leads to the guest: [ADDRESS:]HOST:GUEST[/udp];
    /// may be repeated
    #[arg(long, value_name = "PORTS", help_heading = DEVICES)]
    publish: Vec<Publish>,
    /// Whether the guest has virtio-rng [default: on]
    #[arg(long, value_name = "on|off", value_parser = parse_switch, help_heading = DEVICES)]
    rng: Option<bool>,
    /// A memory balloon that takes SIZE from the guest at first; what the guest frees comes back to
    /// the host, also with 0
    #[arg(long, value_name = "SIZE", value_parser = parse_balloon, help_heading = DEVICES)]
    balloon: Option<BalloonConfig>,
    /// Sockets between guest and host: socket=PATH[,cid=N]; the host says `CONNECT <port>` to PATH,
    /// and the guest reaches PATH_<port> [cid: 3]
    #[arg(long, value_name = "VSOCK", value_parser = parse_vsock, help_heading = DEVICES)]
    vsock: Option<VsockConfig>,
    /// The guest's own init starts husk's agent; see `husk agent`
    #[arg(long, help_heading = DEVICES)]
    agent: bool,
    /// The console: stdio, none, file=PATH, or pty [default: stdio]
    #[arg(long, value_name = "WHERE", value_parser = parse_console, help_heading = DEVICES)]
    console: Option<ConsoleConfig>,
    /// What the console is to the guest: serial (ttyS0), or virtio (hvc0, faster) [default: serial]
    #[arg(long, value_name = "WHAT", value_parser = parse_console_device, help_heading = DEVICES)]
    console_device: Option<ConsoleDevice>,
    /// A byte port, /dev/virtio-ports/NAME in the guest: name=NAME,socket=PATH or
    /// name=NAME,file=PATH; may be repeated
    #[arg(long, value_name = "PORT", value_parser = parse_port, help_heading = DEVICES)]
    port: Vec<PortConfig>,
    /// Describe the machine by an MP table and virtio_mmio.device= parameters instead of ACPI
    #[arg(long)]
    no_acpi: bool,
    /// How it is entered: auto, pvh or linux64 [default: auto]
    #[arg(long, value_name = "HOW", value_parser = parse_protocol)]
    boot_protocol: Option<BootProtocol>,
    /// Share the kernel's pages with other VMs of the same kernel instead of reading it anew; while
    /// they run, who makes its file in ~/.cache/husk shorter breaks them
    #[arg(long)]
    share_kernel: bool,
    #[command(flatten, next_help_heading = COMMAND)]
    exec: Exec,
    /// The VM's name, for `husk ps`, `exec`, `logs` and the like
    #[arg(long, value_name = "NAME", help_heading = LIFE)]
    name: Option<String>,
    /// Return when the VM or its command runs, and print its name; `husk logs` has what it writes,
    /// `husk wait` its exit status
    #[arg(long, conflicts_with = "print_config", help_heading = LIFE)]
    detach: bool,
    #[arg(long, hide = true)]
    detached: bool,
    /// When the command fails, or --timeout ends, leave the VM for `husk exec`, until Ctrl-C or
    /// `husk stop`
    #[arg(long, help_heading = LIFE)]
    keep_on_failure: bool,
    /// What a reboot of the guest does: exit or restart [default: restart]
    #[arg(long, value_name = "WHAT", value_parser = parse_on_reboot, help_heading = LIFE)]
    on_reboot: Option<OnReboot>,
    /// After SIGTERM, SIGINT, SIGHUP or SIGQUIT, seconds until a hard stop
    #[arg(long, value_name = "SECONDS", default_value = "10", value_parser = parse_seconds, help_heading = LIFE)]
    grace: Duration,
    /// End the VM after this many seconds, with status 124
    #[arg(long, value_name = "SECONDS", value_parser = parse_seconds, help_heading = LIFE)]
    timeout: Option<Duration>,
    /// What husk says on stderr
    #[arg(long, value_name = "LEVEL", default_value = "warn", help_heading = LIFE)]
    log: Level,
    /// Read the VM from a JSON file (of at most 1 MiB); other options override it, and --append adds to it
    #[arg(long, value_name = "FILE", help_heading = LIFE)]
    config: Option<PathBuf>,
    /// Print the VM as the JSON that --config reads, and exit
    #[arg(long, help_heading = LIFE)]
    print_config: bool,
    /// Write what each device has done to this file as JSON: at the end, and when husk gets SIGUSR1
    #[arg(long, value_name = "FILE", help_heading = LIFE)]
    metrics: Option<PathBuf>,
    /// At the end, print where start-up time went
    #[arg(long, help_heading = LIFE)]
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
        if self.detach && !self.detached {
            return detach::start();
        }
        let detached = if self.detached { Some(Detached::begin()?) } else { None };
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
        let (keep, tty) = (self.keep_on_failure, self.exec.tty());
        let mut name = self.name.clone();
        if let Some(name) = &name {
            named::check(name)?;
            // Before anything is started; who is first of two at the same time is found out later.
            match named::find(name) {
                Ok(_) => return Err(NameError::InUse(name.clone()).into()),
                Err(NameError::Unknown(_) | NameError::Ended { .. }) => {}
                // A directory, say, in which there can be no names.
                Err(e) => return Err(e.into()),
            }
        }
        if name.is_none() && (detached.is_some() || keep) {
            name = Some(detach::made_up()?);
        }
        let at_terminal = std::io::stdin().is_terminal() && std::io::stdout().is_terminal();
        let (mut config, command) = self.into_config(at_terminal)?;
        if keep && command.is_none() {
            return Err("--keep-on-failure is for a command: end with `-- CMD`".into());
        }
        config.name_devices();
        config.validate()?;
        if let Some(file) = &config_file {
            spare(file, &config)?;
        }
        if print_config {
            super::stdout::print(&(config.to_json()? + "\n"))?;
            return Ok(0);
        }

        if config.vsock.is_some() || config.agent || !config.volumes.is_empty() {
            limits::raise_descriptors();
        }
        let _restore = terminal::Restore;
        let session = Session {
            resized: Awaited::block(libc::SIGWINCH)?,
            asked: metrics_path.as_ref().map(|_| Awaited::block(libc::SIGUSR1)).transpose()?,
            larger: Awaited::block(libc::SIGUSR2)?,
            signals: Signals::block()?,
            config,
            timeline,
            name,
            keep,
            tty,
            detached,
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

    /// The VM, and the command that its guest is to run, if it is one for that. Somebody may be
    /// `at_terminal`, to whom a shell is of use.
    fn into_config(self, at_terminal: bool) -> Result<(VmConfig, Option<GuestCommand>), Error> {
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
        config.agent = config.agent || self.agent;
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
        // Who has said how the guest boots, or wants to see its console, is told what is missing.
        let boots = config.cmdline.is_some()
            || config.agent
            || self.console == Some(ConsoleConfig::Stdio)
            || self.print_config;
        let interactive = at_terminal && !boots;
        let command = self.exec.apply(&mut config, self.console.as_ref(), interactive)?;
        Ok((config, command))
    }
}

/// Refuses a file for what the guest writes that is the configuration's own: it would be emptied.
fn spare(file: &Path, config: &VmConfig) -> Result<(), String> {
    match config.written_over([file]) {
        Some((what, written, file)) => Err(format!(
            "{what}: cannot write to {}: it is the --config file {}",
            written.display(),
            file.display()
        )),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests;
