//! The outer machine's QEMU: its command line, and a process that never outlives us. The emulated
//! processor has AMD's SVM with nested paging, so that kvm-amd inside works without any support
//! from this machine.

use std::ffi::OsString;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result};

use super::Options;
use super::image::Image;
use super::job::Job;
use super::monitor::Monitor;
use crate::host;

/// Our ends of the command's streams. On a terminal, input and output are one stream.
pub struct Streams {
    pub input: UnixStream,
    pub output: UnixStream,
    pub error: Option<UnixStream>,
}

/// A running QEMU; killed when dropped.
pub struct Qemu {
    child: Child,
    pub monitor: Monitor,
}

impl Qemu {
    /// Starts the outer machine. Call it on a thread that lives as long as the machine is to: the
    /// death signal comes with the end of the *thread* that started it (prctl(2)).
    pub fn start(
        options: &Options,
        image: &Image,
        job: &Job,
        results: &Path,
        tty: bool,
    ) -> Result<(Self, Streams)> {
        let mut command = host::command(&options.qemu);
        machine(&mut command, options, image);
        share(&mut command, "host", Path::new("/"), ",readonly=on");
        share(&mut command, "job", job.dir(), "");
        share(&mut command, "results", results, "");
        let mut console = OsString::from("file:");
        console.push(job.console());
        command.arg("-serial").arg(console);
        command.args(["-device", "virtio-serial-pci"]);

        let mut inherited = Vec::new();
        let mut socket = |command: &mut Command, name: &str| -> Result<UnixStream> {
            let (ours, theirs) = UnixStream::pair().context("making a socket pair")?;
            let theirs = above_stdio(OwnedFd::from(theirs))?;
            let fd = theirs.as_raw_fd();
            command.arg("-chardev").arg(format!("socket,id={name},fd={fd}"));
            inherited.push(theirs);
            Ok(ours)
        };
        let monitor = socket(&mut command, "monitor")?;
        command.args(["-mon", "chardev=monitor,mode=control"]);
        let mut port = |command: &mut Command, device: &str, name: &str| -> Result<UnixStream> {
            let ours = socket(command, name)?;
            command.arg("-device").arg(format!("{device},chardev={name},name=husk.{name}"));
            Ok(ours)
        };
        let streams = if tty {
            let output = port(&mut command, "virtconsole", "tty")?;
            let input = output.try_clone().context("sharing a socket")?;
            Streams { input, output, error: None }
        } else {
            Streams {
                output: port(&mut command, "virtserialport", "out")?,
                error: Some(port(&mut command, "virtserialport", "err")?),
                input: port(&mut command, "virtserialport", "in")?,
            }
        };

        let fds: Vec<RawFd> = inherited.iter().map(AsRawFd::as_raw_fd).collect();
        let parent = std::process::id();
        // SAFETY: between fork and exec only async-signal-safe calls are made, and no allocation.
        unsafe {
            command.pre_exec(move || {
                if libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) != 0 {
                    return Err(std::io::Error::last_os_error());
                }
                if u32::try_from(libc::getppid()) != Ok(parent) {
                    libc::_exit(1); // our parent died before the line above
                }
                for fd in &fds {
                    libc::fcntl(*fd, libc::F_SETFD, 0);
                }
                Ok(())
            });
        }
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::inherit());
        // A Ctrl-C at the terminal is for us alone.
        command.process_group(0);
        let started = command.spawn();
        let child = started.with_context(|| format!("starting {}", options.qemu.display()))?;
        Ok((Self { child, monitor: Monitor::new(monitor) }, streams))
    }

    /// True when QEMU has ended by itself.
    pub fn has_ended(&mut self) -> Result<bool> {
        Ok(self.child.try_wait().context("waiting for QEMU")?.is_some())
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        // Both only fail when it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn machine(command: &mut Command, options: &Options, image: &Image) {
    let (accelerator, smp) =
        if options.icount { ("tcg,thread=single", 1) } else { ("tcg,thread=multi", options.smp) };
    command.args(["-M", "q35", "-accel", accelerator, "-cpu", &options.cpu]);
    if options.icount {
        command.args(["-icount", "shift=1"]);
    }
    command.args(["-smp", &smp.to_string(), "-m", &options.memory_mib.to_string()]);
    command.arg("-kernel").arg(&image.kernel).arg("-initrd").arg(&image.initramfs);
    command.args(["-append", "console=ttyS0 reboot=t panic=-1 quiet mitigations=off"]);
    command.args(["-nodefaults", "-no-user-config", "-nographic", "-no-reboot"]);
}

/// Shares a directory over 9p. `multidevs=remap`: without it files of two file systems look the
/// same inside, and the changed root has no /proc.
fn share(command: &mut Command, tag: &str, path: &Path, extra: &str) {
    let mut fsdev = OsString::from(format!("local,id={tag},security_model=none,path="));
    fsdev.push(escaped(path));
    fsdev.push(format!(",multidevs=remap{extra}"));
    command.arg("-fsdev").arg(fsdev);
    command.arg("-device").arg(format!("virtio-9p-pci,fsdev={tag},mount_tag={tag}"));
}

/// QEMU's options end at a comma unless it is doubled.
fn escaped(path: &Path) -> String {
    path.to_string_lossy().replace(',', ",,")
}

/// The same descriptor under a number that no standard stream will take.
fn above_stdio(fd: OwnedFd) -> Result<OwnedFd> {
    // SAFETY: F_DUPFD_CLOEXEC on an open descriptor makes a new one and touches nothing else.
    let new = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_DUPFD_CLOEXEC, 10) };
    if new < 0 {
        return Err(std::io::Error::last_os_error()).context("duplicating a descriptor");
    }
    // SAFETY: `new` was just made and belongs to nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(new) })
}
