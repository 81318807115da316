//! Kernels that husk brings by itself, for `cargo xtask soak` alone: one that it built without ACPI, which takes
//! its devices from the command line and their interrupts from the MP table, one with it, and the distribution's.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests"
)]

mod guest;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use guest::network::{enter_namespace, ip};
use guest::{
    BUILT, BUILT_FULL, Builder, FETCHED, Lab, PATIENCE, TINY, TOOLS, absent, husk, kernel_cache,
    skipped,
};

/// All that a machine can have: 14 disks, a card, entropy, balloon and sockets.
const DEVICES: usize = 18;
const DISKS: usize = 14;
/// The first one's interrupt; one past the last is the I/O APIC's last.
const FIRST_GSI: usize = 6;

/// husk's data directory `name`, with a kernel that husk brought, and the kernel's own directory.
fn brought(lab: &Lab, name: &str) -> Option<(PathBuf, PathBuf)> {
    let data = lab.asset(name);
    let kernel = data.join("husk/kernels/default");
    let Ok(kernel) = kernel.canonicalize() else {
        skipped(absent(name));
        return None;
    };
    Some((data, kernel))
}

/// A husk that knows only the kernel in `data`.
fn husk_with(data: &Path, args: &[&str]) -> (Option<i32>, String, String) {
    let mut command = Command::new(husk());
    command.env_remove("HUSK_KERNEL").env("XDG_DATA_HOME", data);
    command.env("XDG_CACHE_HOME", kernel_cache()).stdin(Stdio::null()).args(args);
    let done = command.output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (done.status.code(), text(&done.stdout), text(&done.stderr))
}

#[test]
fn a_kernel_without_acpi_finds_all_devices_by_the_command_line_and_their_interrupts_by_the_mp_table()
 {
    let Some(lab) = Lab::open() else { return };
    let Some((_, kernel)) = brought(&lab, BUILT) else { return };
    enter_namespace();
    ip("tuntap add tap0 mode tap");
    ip("address add 172.31.0.1/30 dev tap0");
    ip("link set tap0 up");
    // What is in the machine is said by the machine: "gsi=GSI CHIP LINE DEVICE COUNT".
    let script = r#"
echo "virtio=$(ls /sys/bus/virtio/devices | wc -l)"
echo "acpi=$(ls /sys/firmware/acpi 2>/dev/null | wc -l)"
echo "table=$(dmesg | grep -c 'found SMP MP-table')"
for disk in /sys/block/vd*; do
    name=${disk##*/}
    echo "$name=$(cat $disk/serial) $(head -c 6 /dev/$name)"
    echo "write" | dd of=/dev/$name bs=512 seek=1 conv=notrunc,fsync 2>/dev/null
done
ifconfig eth0 172.31.0.2 netmask 255.255.255.252 up && ping -c 3 172.31.0.1 >/dev/null
echo "ping=$?"
[ "$(head -c 16 /dev/hwrng | wc -c)" = 16 ]
echo "rng=$?"
grep virtio /proc/interrupts | while read -r gsi count chip line device; do
    echo "gsi=${gsi%:} $chip $line $device $count"
done
exit 0
"#;
    // Where husk does not know it for one of its own.
    let copy = lab.path("vmlinux");
    fs::copy(kernel.join("vmlinux"), &copy).unwrap();
    let mut guest = Builder::new(&lab, copy).initrd(TINY).args("--no-acpi --on-reboot exit");
    for n in 0..DISKS {
        let disk = lab.hole(&format!("disk{n}"), 0);
        fs::write(&disk, [format!("disk{n:02}").as_bytes(), &[0; 4090]].concat()).unwrap();
        guest = guest.disk(&disk, &format!("id=disk{n}"));
    }
    guest = guest.args("--net tap=tap0 --balloon 0 --vsock").arg(socket(&lab));
    let done = guest.append("husk.end=reboot").script(script).run();
    done.expect_clean().expect_fact("acpi", "0").expect_fact("table", "1");
    done.expect_fact("virtio", &DEVICES.to_string());
    done.expect_fact("ping", "0").expect_fact("rng", "0");
    for n in 0..DISKS {
        let name = format!("vd{}", char::from(b'a' + n as u8));
        done.expect_fact(&name, &format!("disk{n} disk{n:02}"));
        let written = fs::read(lab.path(&format!("disk{n}"))).unwrap();
        assert!(written[512..].starts_with(b"write\n"), "disk {n}");
    }
    let lines = done.console.lines().filter_map(|line| line.strip_prefix("gsi="));
    let lines: Vec<_> = lines.map(|line| line.rsplit_once(' ').unwrap()).collect();
    let wanted: Vec<_> = (0..DEVICES)
        .map(|n| (n, FIRST_GSI + n))
        .map(|(n, gsi)| format!("{gsi} IO-APIC {gsi}-edge virtio{n}"))
        .collect();
    assert_eq!(lines.iter().map(|(line, _)| *line).collect::<Vec<_>>(), wanted);
    // Disks and card come first.
    for (line, count) in &lines[..=DISKS] {
        assert!(count.trim().parse::<u64>().unwrap() > 0, "{line} has had no interrupt");
    }
}

fn socket(lab: &Lab) -> String {
    format!("socket={}", lab.path("sockets").display())
}

#[test]
fn commands_run_in_guests_of_a_kernel_without_acpi_and_where_it_is_not_known_for_one_it_is_said() {
    let Some(lab) = Lab::open() else { return };
    let Some((data, kernel)) = brought(&lab, BUILT) else { return };
    let shared = lab.path("shared");
    fs::create_dir(&shared).unwrap();
    fs::write(shared.join("file"), "shared\n").unwrap();
    let volume = format!("{}:/mnt", shared.display());
    let mut args = vec!["run", "--volume", &volume];
    let disks: Vec<_> = (0..10).map(|n| lab.hole(&format!("disk{n}"), 1 << 20)).collect();
    let disks: Vec<_> = disks.iter().map(|disk| format!("path={}", disk.display())).collect();
    disks.iter().for_each(|disk| args.extend(["--disk", disk]));
    // As the default kernel it is known to have no ACPI.
    let script = "uname -r; cat /mnt/file; ls /dev/vd? | wc -l; ls -d /sys/firmware/acpi; exit 5";
    let (status, stdout, stderr) =
        husk_with(&data, &[&args[..], &["--", "sh", "-c", script]].concat());
    let version = kernel.file_name().unwrap().to_string_lossy();
    assert_eq!(
        (status, &stdout[..]),
        (Some(5), &format!("{version}\nshared\n10\n")[..]),
        "{stderr}"
    );
    assert!(version.ends_with("-husk-fast"), "{version}");
    let copy = lab.path("vmlinux");
    fs::copy(kernel.join("vmlinux"), &copy).unwrap();
    let copy = copy.display().to_string();
    let known = ["run", "--kernel", &copy, "--no-acpi", "--", "true"];
    let (status, stdout, stderr) = husk_with(&data, &known);
    assert_eq!((status, stdout, stderr), (Some(0), String::new(), String::new()));
    let unknown = ["run", "--kernel", &copy, "--", "true"];
    let (status, stdout, stderr) = husk_with(&data, &unknown);
    assert_eq!((status, &stdout[..]), (Some(125), ""), "{stderr}");
    assert!(stderr.contains("--no-acpi"), "{stderr}");
}

#[test]
fn a_kernel_with_acpi_has_two_processors_its_file_systems_and_a_power_button_and_no_module() {
    let Some(lab) = Lab::open() else { return };
    let Some((data, kernel)) = brought(&lab, BUILT_FULL) else { return };
    let shared = lab.path("shared");
    fs::create_dir(&shared).unwrap();
    fs::write(shared.join("file"), "of the host\n").unwrap();
    // Nothing of it is a module, for it takes none. The tools' disk is ext4; an erofs is made of a part of it, packed, and compared with what it was made of.
    let script = r#"
echo "modules=$(ls /proc/modules 2>/dev/null | wc -l)"
echo "cpus=$(grep -c ^processor /proc/cpuinfo) $(cat /sys/devices/system/cpu/online)"
for cpu in 0 1; do taskset $((1 << cpu)) sh -c 'i=0; while [ $i -lt 2000 ]; do i=$((i + 1)); done' & done
wait
# Where ACPI's tables have told of everything, the MP table has not.
echo "acpi=$(ls -d /sys/firmware/acpi/tables/DSDT) $(dmesg | grep -c 'found SMP MP-table')"
mount -t ext4 -o ro /dev/vda /mnt && mount -t tmpfs none /mnt/tmp && mount -o bind /dev /mnt/dev || exit 1
chroot /mnt mkfs.erofs -zlz4 /dev/vdb /usr/bin >/dev/null || exit 1
mkdir /erofs /share
mount -t erofs -o ro /dev/vdb /erofs || exit 1
sums() { (cd $1 && find . -type f | sort | xargs sha256sum | sha256sum); }
echo "erofs=$(find /erofs -type f | wc -l) $([ "$(sums /erofs)" = "$(sums /mnt/usr/bin)" ]; echo $?)"
mount -t virtiofs given /share || exit 1
echo "share=$(cat /share/file)"
echo "of the guest" >/share/back
sync
acpid
# Until it has the button open: then it says so itself, in its log.
until ls -l /proc/$(pidof acpid)/fd 2>/dev/null | grep -q /dev/input/event; do usleep 100000; done
echo LISTENING
sleep 1000
"#;
    let mut guest = Builder::new(&lab, kernel.join("vmlinux"))
        .initrd(TINY)
        .args("--cpus 2 --memory 512M --grace 100 --volume")
        .arg(format!("{}:given", shared.display()))
        .disk(&lab.asset(TOOLS), "ro,id=tools")
        .disk(&lab.hole("erofs", 256 << 20), "id=erofs")
        .script(script)
        .start();
    guest.wait_for("LISTENING");
    guest.signal(libc::SIGTERM);
    let done = guest.finish_within(PATIENCE);
    done.expect_status(0).expect("HUSK-POWER-BUTTON");
    done.expect_fact("modules", "0").expect_fact("cpus", "2 0-1");
    done.expect_fact("acpi", "/sys/firmware/acpi/tables/DSDT 0");
    let (files, differ) = done.fact("erofs").split_once(' ').unwrap();
    assert!(files.parse::<u32>().unwrap() > 100 && differ == "0", "{files} {differ}");
    done.expect_fact("share", "of the host");
    assert_eq!(fs::read_to_string(shared.join("back")).unwrap(), "of the guest\n");

    // As the default kernel it runs commands, on as many processors, and ends by itself.
    let (status, stdout, stderr) =
        husk_with(&data, &["run", "--cpus", "2", "--", "sh", "-c", "uname -r; nproc; exit 5"]);
    let version = kernel.file_name().unwrap().to_string_lossy();
    assert_eq!((status, stdout), (Some(5), format!("{version}\n2\n")), "{stderr}");
    assert!(version.ends_with("-husk-full"), "{version}");
}

#[test]
fn a_kernel_that_the_distribution_has_is_fetched_with_its_modules_and_runs_commands() {
    let Some(lab) = Lab::open() else { return };
    let Some((data, kernel)) = brought(&lab, FETCHED) else { return };
    let version = kernel.file_name().unwrap().to_string_lossy().into_owned();
    let (status, stdout, stderr) = husk_with(&data, &["kernel", "list"]);
    assert_eq!((status, &stderr[..]), (Some(0), ""));
    let line = stdout.lines().find(|line| line.starts_with('*')).expect("there is a default");
    assert!(line.contains(&version), "{line}");
    let modules = kernel.join("lib/modules").join(&version);
    assert!(modules.join("modules.dep").is_file(), "the modules have no index");
    // The distribution's kernel has what a command needs as modules only: they were found.
    let disk = lab.hole("disk", 1 << 20).display().to_string();
    let script =
        "uname -r; grep -o '^virtio[a-z_]*\\|^vmw_vsock[a-z_]*' /proc/modules; ls /dev/vda; exit 5";
    let args = ["run", "--cpus", "2", "--disk", &disk, "--", "sh", "-c", script];
    let (status, stdout, stderr) = husk_with(&data, &args);
    assert_eq!((status, &stderr[..]), (Some(5), ""), "{stdout}");
    let said: Vec<_> = stdout.lines().collect();
    assert_eq!((said.first(), said.last()), (Some(&&version[..]), Some(&"/dev/vda")), "{stdout}");
    assert!(said.len() > 4, "{stdout}");
}
