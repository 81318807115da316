//! Who is compared, and with which words each is told the same machine.

use std::path::Path;

use crate::host::arg;
use crate::{assets, host};

/// A VMM with its arguments.
#[derive(Debug, Clone)]
pub struct Subject {
    /// As it stands in the tables.
    pub name: String,
    /// Program and arguments.
    pub command: Vec<String>,
}

impl Subject {
    fn new(name: &str, command: &[&str]) -> Self {
        Self { name: name.to_owned(), command: command.iter().map(|s| (*s).to_owned()).collect() }
    }

    fn add<const N: usize>(&mut self, words: [&str; N]) {
        self.command.extend(words.map(str::to_owned));
    }
}

/// A guest for everyone.
pub struct Guest<'a> {
    /// The ELF kernel.
    pub vmlinux: &'a str,
    /// The same kernel as a bzImage.
    pub bzimage: &'a str,
    /// The initramfs, if any.
    pub initrd: Option<&'a str>,
    /// The command line, without what hangs on the machine: see [`Guest::line`].
    pub cmdline: &'a str,
    /// A directory for configuration files.
    pub scratch: &'a Path,
    /// Disks and a card, if it is to have them.
    pub devices: Option<Devices<'a>>,
}

/// What every kernel is told, in every benchmark.
pub const CMDLINE: &str = "console=ttyS0 quiet panic=-1";

impl Guest<'_> {
    /// The command line for a machine, with or without a PCI bus: where there is none, the kernel does not
    /// look for one. husk says that by itself, the others do not.
    fn line(&self, pci: bool) -> String {
        format!("{}{}", self.cmdline, if pci { "" } else { " pci=off" })
    }
}

/// The devices of a guest that has some.
#[derive(Clone, Copy)]
pub struct Devices<'a> {
    /// A disk's image.
    pub disk: &'a str,
    /// A second disk's, only read.
    pub second: Option<&'a str>,
    /// A TAP interface.
    pub tap: &'a str,
    /// Frames go through the host's kernel, where a VMM can do both.
    pub vhost: bool,
    /// Where the host's end of vsock is, as Firecracker has it, for those that can.
    pub vsock: Option<&'a str>,
}

/// The memory of every guest.
const MEMORY: &str = "512M";

/// husk with the kernel in both shapes, and every rival on PATH.
pub fn all(husk: &Path, guest: &Guest<'_>) -> Vec<Subject> {
    let mut subjects = vec![
        of_husk(HUSK, husk, guest, guest.vmlinux, &[]),
        own_line(husk, guest),
        of_husk(HUSK_BZIMAGE, husk, guest, guest.bzimage, &[]),
        of_husk("husk, bzImage, --share-kernel", husk, guest, guest.bzimage, &["--share-kernel"]),
    ];
    subjects.extend(others(guest));
    subjects
}

/// husk with what its own command line has and those of the others have not.
pub fn own_line(husk: &Path, guest: &Guest<'_>) -> Subject {
    of_husk(HUSK_OWN, husk, guest, guest.vmlinux, &["--append", "cryptomgr.notests"])
}

/// QEMU, if it is on PATH, with the kernel as distributions have it: its firmware and the kernel
/// unpack it.
pub fn qemu_bzimage(guest: &Guest<'_>) -> Option<Subject> {
    qemu(QEMU_BZIMAGE, guest, guest.bzimage)
}

/// husk and, if it is on PATH, Firecracker with a kernel that husk built for speed, which is
/// `guest.vmlinux`.
pub fn fast(husk: &Path, guest: &Guest<'_>) -> Vec<Subject> {
    // A kernel without ACPI finds its devices on the command line. Firecracker says both anyway.
    let mut subjects = vec![of_husk(HUSK_FAST, husk, guest, guest.vmlinux, &["--no-acpi"])];
    subjects.extend(
        firecracker(guest).map(|subject| Subject { name: FIRECRACKER_FAST.to_owned(), ..subject }),
    );
    subjects
}

/// The subjects that the aims are about.
pub const HUSK: &str = "husk, vmlinux";
/// As it is when it is not told a command line.
pub const HUSK_OWN: &str = "husk, its own command line";
/// See [`HUSK`].
pub const HUSK_BZIMAGE: &str = "husk, bzImage (warm cache)";
/// See [`HUSK`].
pub const QEMU: &str = "QEMU microvm, vmlinux";
/// See [`HUSK`].
pub const QEMU_BZIMAGE: &str = "QEMU microvm, bzImage";
/// See [`HUSK`].
pub const CLOUD_HYPERVISOR: &str = "Cloud Hypervisor, vmlinux";
/// See [`HUSK`].
pub const FIRECRACKER: &str = "Firecracker, vmlinux";
/// husk with a kernel built for speed.
pub const HUSK_FAST: &str = "husk, fast kernel";
/// A rival with that kernel.
pub const FIRECRACKER_FAST: &str = "Firecracker, fast kernel";

fn of_husk(name: &str, husk: &Path, guest: &Guest<'_>, kernel: &str, more: &[&str]) -> Subject {
    let (husk, line) = (arg(husk), guest.line(false));
    let words = [&husk, "run", "--memory", MEMORY, "--kernel", kernel, "--cmdline", &line];
    let mut subject = Subject::new(name, &words);
    if let Some(initrd) = guest.initrd {
        subject.add(["--initrd", initrd]);
    }
    if let Some(devices) = guest.devices {
        let Devices { disk, second, tap, vhost, vsock } = devices;
        let vhost = if vhost { "on" } else { "off" };
        subject.add(["--disk", &format!("path={disk}")]);
        if let Some(second) = second {
            subject.add(["--disk", &format!("path={second},ro")]);
        }
        subject.add(["--net", &format!("tap={tap},vhost={vhost}")]);
        if let Some(vsock) = vsock {
            subject.add(["--vsock", &format!("socket={vsock}")]);
        }
    }
    subject.command.extend(more.iter().map(|word| (*word).to_owned()));
    subject
}

/// husk once, and every rival on PATH.
pub fn one_each(husk: &Path, guest: &Guest<'_>) -> Vec<Subject> {
    let mut subjects = all(husk, guest);
    let others = subjects.iter().position(|subject| !subject.name.starts_with("husk"));
    subjects.drain(1..others.unwrap_or(subjects.len()));
    subjects
}

fn others(guest: &Guest<'_>) -> impl Iterator<Item = Subject> {
    let qemu = qemu(QEMU, guest, guest.vmlinux);
    let all = [qemu, cloud_hypervisor(guest), firecracker(guest), kvmtool(guest)];
    all.into_iter().flatten()
}

fn qemu(name: &str, guest: &Guest<'_>, kernel: &str) -> Option<Subject> {
    let program = arg(&host::find("qemu-system-x86_64")?);
    let machine = "microvm,accel=kvm,pit=off,pic=off,rtc=on";
    let mut subject = Subject::new(
        name,
        &[
            &program,
            "-M",
            machine,
            "-cpu",
            "host",
            "-m",
            MEMORY,
            "-smp",
            "1",
            "-kernel",
            kernel,
            "-append",
            &guest.line(false),
            "-nodefaults",
            "-no-user-config",
            "-nographic",
            "-serial",
            "stdio",
            "-no-reboot",
        ],
    );
    if let Some(initrd) = guest.initrd {
        subject.add(["-initrd", initrd]);
    }
    if let Some(Devices { disk, second, tap, vhost, .. }) = guest.devices {
        let drive = format!("if=none,id=d,format=raw,file={disk},aio=io_uring");
        subject.add(["-object", "iothread,id=t", "-drive", &drive]);
        subject.add(["-device", "virtio-blk-device,drive=d,iothread=t"]);
        if let Some(second) = second {
            let drive = format!("if=none,id=e,format=raw,file={second},readonly=on");
            subject.add(["-drive", &drive, "-device", "virtio-blk-device,drive=e"]);
        }
        let vhost = if vhost { "on" } else { "off" };
        let tap = format!("tap,id=n,ifname={tap},script=no,downscript=no,vhost={vhost}");
        subject.add(["-netdev", &tap, "-device", "virtio-net-device,netdev=n"]);
    }
    Some(subject)
}

fn cloud_hypervisor(guest: &Guest<'_>) -> Option<Subject> {
    let program = arg(&host::find("cloud-hypervisor")?);
    let mut subject = Subject::new(
        CLOUD_HYPERVISOR,
        &[
            &program,
            "--kernel",
            guest.vmlinux,
            "--cmdline",
            // It has a PCI bus, and its devices are there.
            &guest.line(true),
            "--cpus",
            "boot=1",
            "--memory",
            "size=512M",
            "--serial",
            "tty",
            "--console",
            "off",
        ],
    );
    if let Some(initrd) = guest.initrd {
        subject.add(["--initramfs", initrd]);
    }
    if let Some(Devices { disk, second, tap, vsock, .. }) = guest.devices {
        // Newer ones write to no first sector of what is not said to be raw; older ones know no types.
        let help = host::text(host::command(&program).arg("--help")).unwrap_or_default();
        let kind = if help.contains("image_type=") { ",image_type=raw" } else { "" };
        subject.add(["--disk", &format!("path={disk}{kind}")]);
        if let Some(second) = second {
            subject.add([&format!("path={second},readonly=on{kind}")]);
        }
        subject.add(["--net", &format!("tap={tap}")]);
        if let Some(vsock) = vsock {
            subject.add(["--vsock", &format!("cid=3,socket={vsock}")]);
        }
    }
    Some(subject)
}

/// Of Firecracker's default line, which ours replaces: its keyboard controller can do nothing but reset,
/// and Linux waits for answers to all else.
const KEYBOARD: &str = "i8042.noaux i8042.nomux i8042.dumbkbd";

fn firecracker(guest: &Guest<'_>) -> Option<Subject> {
    let program = arg(&host::find("firecracker")?);
    let mut source = serde_json::json!({
        "kernel_image_path": guest.vmlinux,
        "boot_args": format!("{} {KEYBOARD} reboot=k", guest.line(false)),
    });
    if let (Some(initrd), Some(source)) = (guest.initrd, source.as_object_mut()) {
        source.insert("initrd_path".to_owned(), initrd.into());
    }
    let (mut drives, mut cards) = (Vec::new(), Vec::new());
    if let Some(Devices { disk, second, tap, .. }) = guest.devices {
        let disks = [(Some(disk), "d", false), (second, "e", true)];
        for (path, id, read_only) in disks {
            drives.extend(path.map(|path| {
                serde_json::json!({
                    "drive_id": id,
                    "path_on_host": path,
                    "is_root_device": false,
                    "is_read_only": read_only,
                })
            }));
        }
        cards.push(serde_json::json!({ "iface_id": "n", "host_dev_name": tap }));
    }
    let vsock = guest.devices.and_then(|devices| devices.vsock);
    let mut config = serde_json::json!({
        "boot-source": source,
        "drives": drives,
        "network-interfaces": cards,
        "machine-config": { "vcpu_count": 1, "mem_size_mib": 512 },
    });
    if let (Some(path), Some(config)) = (vsock, config.as_object_mut()) {
        let vsock = serde_json::json!({ "guest_cid": 3, "uds_path": path });
        config.insert("vsock".to_owned(), vsock);
    }
    // All sorts of guest may stand side by side.
    let kind = if guest.devices.is_some() { "devices" } else { "bare" };
    let kernel = Path::new(guest.vmlinux).file_name().unwrap_or_default().to_string_lossy();
    let file = guest.scratch.join(format!("firecracker-{kind}-{kernel}.json"));
    std::fs::write(&file, config.to_string()).ok()?;
    let command =
        [&program, "--no-api", "--no-seccomp", "--level", "Off", "--config-file", &arg(&file)];
    Some(Subject::new(FIRECRACKER, &command))
}

fn kvmtool(guest: &Guest<'_>) -> Option<Subject> {
    let program = arg(&host::find("lkvm")?);
    let mut subject = Subject::new(
        "kvmtool, bzImage",
        &[
            &program,
            "run",
            "-k",
            guest.bzimage,
            "-m",
            "512",
            "-c",
            "1",
            "-p",
            // It has a PCI bus, and its devices are there.
            &guest.line(true),
            "--console",
            "serial",
        ],
    );
    if let Some(initrd) = guest.initrd {
        subject.add(["-i", initrd]);
    }
    match guest.devices {
        Some(Devices { disk, second, tap, vhost, .. }) => {
            subject.add(["--disk", disk]);
            if let Some(second) = second {
                subject.add(["--disk", &format!("{second},ro")]);
            }
            let vhost = u8::from(vhost);
            subject.add(["--network", &format!("mode=tap,tapif={tap},vhost={vhost}")]);
        }
        None => subject.add(["--network", "mode=none"]),
    }
    Some(subject)
}

/// The subjects of the first part: the floor and the floor in the usual order first, then everyone.
pub fn first_run(husk: &Path, floor: &Path, dir: &Path) -> Vec<Subject> {
    let file = |name: &str| {
        // Where the links lead: husk's cache is keyed by the file itself.
        let path = dir.join(name);
        arg(&path.canonicalize().unwrap_or(path))
    };
    let (vmlinux, bzimage) = (file(assets::VMLINUX_CLOUD), file(assets::VMLINUZ_CLOUD));
    let scratch = std::env::temp_dir();
    let floor = arg(floor);
    let mut subjects = vec![
        Subject::new("floor", &[&floor, &vmlinux, "512", "map"]),
        Subject::new(
            "floor, in the usual order",
            &[&floor, &vmlinux, "512", "map", "irqchip-first"],
        ),
        Subject::new("floor, kernel read", &[&floor, &vmlinux, "512", "read"]),
    ];
    subjects.extend(all(
        husk,
        &Guest {
            vmlinux: &vmlinux,
            bzimage: &bzimage,
            initrd: None,
            // husk refuses a Linux of which it finds in time that it has no root; of this it cannot tell.
            cmdline: &format!("{CMDLINE} root=PARTLABEL=none"),
            scratch: &scratch,
            devices: None,
        },
    ));
    subjects
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_has_no_pci_bus_is_told_so_and_all_else_is_the_same_for_all() {
        let guest = Guest {
            vmlinux: "vmlinux",
            bzimage: "vmlinuz",
            initrd: None,
            cmdline: CMDLINE,
            scratch: Path::new("/no/such/directory"),
            devices: None,
        };
        assert_eq!(guest.line(true), CMDLINE);
        assert_eq!(guest.line(false), format!("{CMDLINE} pci=off"));
        let husk = of_husk(HUSK, Path::new("/husk"), &guest, guest.vmlinux, &[]);
        assert!(husk.command.contains(&guest.line(false)), "{:?}", husk.command);
        // Whoever of them is here; Firecracker's stands in a file.
        for subject in others(&guest).filter(|subject| subject.name != FIRECRACKER) {
            let pci = [CLOUD_HYPERVISOR, "kvmtool, bzImage"].contains(&subject.name.as_str());
            let without = subject.command.iter().any(|word| word.ends_with(" pci=off"));
            assert_eq!(without, !pci, "{:?}", subject.command);
        }
    }
}
