//! `husk run`: boot a kernel, be its console, end with its status.

mod device_values;

use std::path::PathBuf;
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use clap::{Args, ValueEnum};
use husk::config::{
    BalloonConfig, BootProtocol, ConsoleConfig, ConsoleDevice, DiskConfig, MemoryConfig, NetConfig,
    OnReboot, PmemConfig, PortConfig, Size, VmConfig,
};
use husk::timeline::{Phase, Timeline};
use husk::{ConsoleStreams, Escape, Outcome, RunningVm, Vm};
use log::LevelFilter;

use super::awaited::Awaited;
use super::keyvalue::KeyValues;
use super::signals::Signals;
use super::{Error, footprint, logging, metrics, terminal};

/// Exit status: the time given with --timeout ran out.
const TIMED_OUT: u8 = 124;
/// Exit status: kernel panic, triple fault, KVM internal error.
const GUEST_DIED: u8 = 134;

/// What `husk run --help` ends with.
pub const AFTER_HELP: &str = "\
Exit status: 0 the guest turned itself off, 124 --timeout, 125 husk could not, 134 the guest's
kernel died, 128+n ended by signal n, 2n+1 the guest wrote n to port 0xf4. On a terminal: Ctrl-a x ends the VM, Ctrl-a h helps.";

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
    /// is a disk; panic=-1 is added unless panic= is set]
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    cmdline: Option<String>,
    /// Added to the kernel command line; may be repeated
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    append: Vec<String>,
    /// Number of vCPUs [default: 1]
    #[arg(long, value_name = "N")]
    cpus: Option<u32>,
    /// Guest memory: SIZE[,shared][,hugepages], as in 512M or 2G [default: 512M]
    #[arg(long, value_name = "SIZE", value_parser = parse_memory)]
    memory: Option<MemoryConfig>,
    /// A disk: path=FILE[,ro][,id=NAME]; may be repeated
    #[arg(long, value_name = "DISK", value_parser = parse_disk)]
    disk: Vec<DiskConfig>,
    /// A file as persistent memory, /dev/pmem0: path=FILE[,ro][,id=NAME]; may be repeated
    #[arg(long, value_name = "PMEM", value_parser = device_values::parse_pmem)]
    pmem: Vec<PmemConfig>,
    /// A network interface: tap=NAME or fd=N, [,mac=MAC][,id=NAME]; may be repeated
    #[arg(long, value_name = "NET", value_parser = parse_net)]
    net: Vec<NetConfig>,
    /// Whether the guest has virtio-rng [default: on]
    #[arg(long, value_name = "on|off", value_parser = parse_switch)]
    rng: Option<bool>,
    /// A memory balloon that takes SIZE from the guest at first; what the guest frees comes back to
    /// the host, also with 0
    #[arg(long, value_name = "SIZE", value_parser = device_values::parse_balloon)]
    balloon: Option<BalloonConfig>,
    /// The console: stdio, none, file=PATH, or pty [default: stdio]
    #[arg(long, value_name = "WHERE", value_parser = parse_console)]
    console: Option<ConsoleConfig>,
    /// What the console is to the guest: serial (ttyS0), or virtio (hvc0, faster; the kernel command
    /// line says console=hvc0 then) [default: serial]
    #[arg(long, value_name = "serial|virtio", value_parser = device_values::parse_console_device)]
    console_device: Option<ConsoleDevice>,
    /// A byte port, /dev/virtio-ports/NAME in the guest: name=NAME,socket=PATH or
    /// name=NAME,file=PATH; may be repeated
    #[arg(long, value_name = "PORT", value_parser = device_values::parse_port)]
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
    /// On SIGTERM or SIGINT, seconds between the power button and a hard stop
    #[arg(long, value_name = "SECONDS", default_value = "10", value_parser = parse_seconds)]
    grace: Duration,
    /// End the VM after this many seconds, with status 124
    #[arg(long, value_name = "SECONDS", value_parser = parse_seconds)]
    timeout: Option<Duration>,
    /// What husk says on stderr
    #[arg(long, value_name = "LEVEL", default_value = "warn")]
    log: Level,
    /// Read the VM from a JSON file; other options override it
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
        let (print_config, metrics_path) = (self.print_config, self.metrics.clone());
        let mut config = self.into_config()?;
        config.name_devices();
        config.validate()?;
        if print_config {
            use std::io::Write as _;
            writeln!(std::io::stdout(), "{}", config.to_json())?;
            return Ok(0);
        }

        let _restore = terminal::Restore;
        let resized = Awaited::block(libc::SIGWINCH)?;
        let asked = metrics_path.as_ref().map(|_| Awaited::block(libc::SIGUSR1)).transpose()?;
        let ending = Ending::attend(Signals::block()?, grace)?;
        let (console, escapes) = console(&config)?;
        let vm = Vm::with(config, console, timeline.clone())?;
        let metrics = metrics_path.as_deref().map(metrics::File::make).transpose()?;
        if escapes.is_some() {
            terminal::make_raw();
        }
        let vm = Arc::new(vm.start()?);
        if let Some(path) = vm.console_path() {
            tell!("husk: the console is at {}\n", path.display());
        }
        if let Some(escapes) = escapes {
            attend_escapes(escapes, vm.clone())?;
            attend_window(resized, &vm)?;
        }
        ending.started(vm.clone());
        if let (Some(file), Some(asked)) = (metrics.clone(), asked) {
            attend_metrics(file, asked, &vm)?;
        }

        footprint::release();
        let outcome = match timeout {
            None => vm.wait(),
            Some(limit) => match vm.wait_timeout(limit) {
                Some(outcome) => outcome,
                None => {
                    let ended = kill(&vm);
                    terminal::restore();
                    tell!("husk: the VM still ran after {} s\n", limit.as_secs_f64());
                    report(show, metrics.as_ref(), &vm);
                    if !ended {
                        std::process::exit(TIMED_OUT.into());
                    }
                    return Ok(TIMED_OUT);
                }
            },
        };
        terminal::restore();
        let status = conclude(&outcome, ending.signal());
        report(show, metrics.as_ref(), &vm);
        Ok(status)
    }

    fn into_config(self) -> Result<VmConfig, Error> {
        let mut config = match (&self.config, self.kernel) {
            (Some(path), kernel) => {
                let mut config = VmConfig::from_file(path)?;
                config.kernel = kernel.unwrap_or(config.kernel);
                config
            }
            (None, Some(kernel)) => VmConfig::new(kernel),
            (None, None) => VmConfig::new(husk::kernels::default_kernel()?),
        };
        config.initrd = self.initrd.or(config.initrd);
        config.cmdline = self.cmdline.or(config.cmdline);
        if !self.append.is_empty() {
            config.append = self.append.join(" ");
        }
        config.cpus = self.cpus.unwrap_or(config.cpus);
        config.memory = self.memory.unwrap_or(config.memory);
        if !self.disk.is_empty() {
            config.disks = self.disk;
        }
        if !self.pmem.is_empty() {
            config.pmem = self.pmem;
        }
        if !self.net.is_empty() {
            config.nets = self.net;
        }
        config.rng = self.rng.unwrap_or(config.rng);
        config.balloon = self.balloon.or(config.balloon);
        config.console = self.console.unwrap_or(config.console);
        config.console_device = self.console_device.unwrap_or(config.console_device);
        if !self.port.is_empty() {
            config.ports = self.port;
        }
        config.on_reboot = self.on_reboot.unwrap_or(config.on_reboot);
        config.acpi = config.acpi && !self.no_acpi;
        config.boot_protocol = self.boot_protocol.unwrap_or(config.boot_protocol);
        config.share_kernel = config.share_kernel || self.share_kernel;
        Ok(config)
    }
}

type Escapes = std::sync::mpsc::Receiver<Escape>;

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

/// Starts a thread that mostly sleeps: with a small stack, which no huge page backs.
fn watch(work: impl FnOnce() + Send + 'static) -> std::io::Result<()> {
    const STACK: usize = 128 << 10;
    std::thread::Builder::new().stack_size(STACK).spawn(work).map(drop)
}

/// Tells the guest the size of the terminal, now and whenever it changes, as long as there is a VM.
fn attend_window(resized: Awaited, vm: &Arc<RunningVm>) -> std::io::Result<()> {
    let tell = |vm: &RunningVm| {
        if let Some(size) = terminal::size() {
            vm.resize_console(size);
        }
    };
    tell(vm);
    let vm = Arc::downgrade(vm);
    watch(move || {
        loop {
            resized.wait();
            let Some(vm) = vm.upgrade() else { return };
            tell(&vm);
        }
    })
}

/// Writes the metrics now and whenever it is asked for them, as long as there is a VM.
fn attend_metrics(file: metrics::File, asked: Awaited, vm: &Arc<RunningVm>) -> std::io::Result<()> {
    file.write(vm);
    let vm = Arc::downgrade(vm);
    watch(move || {
        loop {
            asked.wait();
            let Some(vm) = vm.upgrade() else { return };
            file.write(&vm);
        }
    })
}

fn attend_escapes(escapes: Escapes, vm: Arc<RunningVm>) -> std::io::Result<()> {
    watch(move || {
        for escape in escapes {
            match escape {
                Escape::Help => tell!(
                    "\r\nhusk: Ctrl-a x  end the VM\r\n      Ctrl-a h  this help\r\n      \
                     Ctrl-a a  send Ctrl-a\r\n"
                ),
                // An error means that it has ended already.
                Escape::End => drop(vm.kill()),
            }
        }
    })
}

/// Ends the VM at once. False when it has not ended after a while: something of it waits for the host,
/// a disk that does not answer, and only the end of the process can end it.
fn kill(vm: &Arc<RunningVm>) -> bool {
    const LIMIT: Duration = Duration::from_secs(6);
    let killer = vm.clone();
    // In a thread, for even the controller may be waiting. An error means that it has ended.
    let kill = move || {
        let _ = killer.kill();
    };
    if watch(kill).is_err() {
        return false;
    }
    let ended = vm.wait_timeout(LIMIT).is_some();
    if !ended {
        tell!("husk: the VM does not end, because the host does not answer it; husk ends anyway\n");
    }
    ended
}

/// What the signals that ask husk to end do.
///
/// Before the VM runs there is nothing to end but the process. Then the first presses the power
/// button and, after the grace, ends the VM; a second one at once.
#[derive(Clone, Default)]
struct Ending {
    vm: Arc<OnceLock<Arc<RunningVm>>>,
    signal: Arc<AtomicI32>,
}

impl Ending {
    /// Waits for `signals` in a thread of its own.
    fn attend(signals: Signals, grace: Duration) -> std::io::Result<Self> {
        let ending = Self::default();
        let this = ending.clone();
        watch(move || {
            let signal = signals.wait();
            let Some(vm) = this.vm.get() else {
                terminal::restore();
                std::process::exit(128 + signal);
            };
            this.signal.store(signal, Ordering::Release);
            log::info!("asked to end: pressing the power button");
            let patient = vm.clone();
            if let Err(e) = watch(move || drop(patient.stop(grace))) {
                log::error!("the grace is not granted: {e}");
            } else {
                signals.wait();
            }
            if !kill(vm) {
                terminal::restore();
                std::process::exit(128 + signal);
            }
        })?;
        Ok(ending)
    }

    /// From now on there is a VM to end.
    fn started(&self, vm: Arc<RunningVm>) {
        // Called once.
        let _ = self.vm.set(vm);
    }

    /// The signal that came, or 0.
    fn signal(&self) -> i32 {
        self.signal.load(Ordering::Acquire)
    }
}

/// Says what has to be said about the end, and returns the exit status.
fn conclude(outcome: &Outcome, signal: i32) -> u8 {
    match outcome {
        Outcome::PowerOff | Outcome::Reboot => 0,
        Outcome::Exit(status) => *status,
        // By a signal after the grace, or by Ctrl-a x.
        Outcome::Killed if signal != 0 => 128u8.wrapping_add(signal as u8),
        Outcome::Killed => 0,
        Outcome::Panic { console } => {
            tell!("husk: the guest's kernel panicked\n");
            report_console(console);
            GUEST_DIED
        }
        Outcome::Crash { report, console } => {
            tell!("husk: the guest died: {report}");
            report_console(console);
            GUEST_DIED
        }
        Outcome::Failed { why } => {
            tell!("husk: {why}\n");
            super::CANNOT
        }
    }
}

fn report_console(console: &str) {
    if !console.is_empty() {
        // The guest's bytes must not command the user's terminal.
        let plain = console.replace(|c: char| c.is_control() && c != '\n' && c != '\t', "\u{fffd}");
        tell!("husk: the last lines of its console:\n{plain}\n");
    }
}

fn report(timeline: bool, metrics: Option<&metrics::File>, vm: &RunningVm) {
    if let Some(file) = metrics {
        file.write(vm);
    }
    if timeline {
        tell!("{}", vm.timeline());
    }
}

fn parse_memory(text: &str) -> Result<MemoryConfig, String> {
    let mut kv = KeyValues::parse("--memory", &["size", "shared", "hugepages"], text)?;
    let size = kv.value("size")?.ok_or("how much? --memory 512M")?;
    let size: Size = size.parse().map_err(|e: husk::config::SizeError| e.to_string())?;
    Ok(MemoryConfig { size, shared: kv.switch("shared")?, hugepages: kv.switch("hugepages")? })
}

fn parse_disk(text: &str) -> Result<DiskConfig, String> {
    let mut kv = KeyValues::parse("--disk", &["path", "ro", "id"], text)?;
    Ok(DiskConfig {
        path: kv.value("path")?.ok_or("which file? --disk path=FILE")?.into(),
        readonly: kv.switch("ro")?,
        id: kv.value("id")?.unwrap_or_default(),
    })
}

fn parse_net(text: &str) -> Result<NetConfig, String> {
    let mut kv = KeyValues::parse("--net", &["tap", "fd", "mac", "id"], text)?;
    let fd = kv.value("fd")?;
    let fd = fd.map(|fd| fd.parse().map_err(|_| format!("fd={fd} is no descriptor number")));
    Ok(NetConfig {
        tap: kv.value("tap")?,
        fd: fd.transpose()?,
        mac: kv.value("mac")?,
        id: kv.value("id")?.unwrap_or_default(),
    })
}

fn parse_console(text: &str) -> Result<ConsoleConfig, String> {
    match text.split_once('=').unwrap_or((text, "")) {
        ("stdio", "") => Ok(ConsoleConfig::Stdio),
        ("none", "") => Ok(ConsoleConfig::None),
        ("pty", "") => Ok(ConsoleConfig::Pty),
        ("file", path) if !path.is_empty() => Ok(ConsoleConfig::File(path.into())),
        _ => Err("one of stdio, none, file=PATH, pty".to_owned()),
    }
}

fn parse_on_reboot(text: &str) -> Result<OnReboot, String> {
    match text {
        "exit" => Ok(OnReboot::Exit),
        "restart" => Ok(OnReboot::Restart),
        _ => Err("exit or restart".to_owned()),
    }
}

fn parse_protocol(text: &str) -> Result<BootProtocol, String> {
    match text {
        "auto" => Ok(BootProtocol::Auto),
        "pvh" => Ok(BootProtocol::Pvh),
        "linux64" => Ok(BootProtocol::Linux64),
        _ => Err("auto, pvh or linux64".to_owned()),
    }
}

fn parse_switch(text: &str) -> Result<bool, String> {
    match text {
        "on" => Ok(true),
        "off" => Ok(false),
        _ => Err("on or off".to_owned()),
    }
}

fn parse_seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| "a number of seconds".to_owned())?;
    Duration::try_from_secs_f64(seconds).map_err(|e| e.to_string())
}

#[cfg(test)]
mod tests;
