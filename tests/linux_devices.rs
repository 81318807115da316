//! The smaller devices with Linux's own drivers: console and byte ports, balloon, persistent memory,
//! the generation id.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests"
)]

mod guest;

use std::ffi::OsStr;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use guest::tools::{fsck, host, read_from, sha256, try_host};
use guest::{FULL, FULL_STD, Lab, PATIENCE, VMLINUZ_CLOUD, VMLINUZ_STD};
use husk::config::{BalloonConfig, ConsoleConfig, Size, VmConfig};
use husk::{Outcome, RunningVm, Vm};

#[test]
fn a_virtio_console_and_byte_ports_carry_what_guest_and_host_say() {
    let Some(lab) = Lab::open() else { return };
    // Port names by what Linux says of them; a port can be opened once.
    let script = r#"
echo "size=$(stty size </dev/hvc0)"
for port in /sys/class/virtio-ports/*; do
    name=$(cat $port/name)
    eval "$name=/dev/${port##*/}"
    echo "PORT $name"
done
echo SPOKEN-ON-HVC0 >/dev/hvc0
yes 0123456789012345678901234567890123456789012345678901234567890 | head -c 65536 >/dev/hvc0
echo >/dev/hvc0
echo one >$log
exec 3<>$agent
read line <&3
echo "heard=$line"
echo "you said $line" >&3
dd if=/dev/zero bs=64k count=32 >&3 2>/dev/null &
sleep 1
echo two >$log
echo THE-OTHERS-GO-ON
read line </dev/hvc0
echo "typed=$line"
wait $!
echo "sent=$?"
exit 0
"#;
    let (socket, log, metrics) = (lab.path("agent.sock"), lab.path("log"), lab.path("metrics"));
    let mut guest = lab
        .guest()
        .args("--console-device virtio --append console=ttyS0")
        .args(&format!("--port name=agent,socket={}", socket.display()))
        .args(&format!("--port name=log,file={}", log.display()))
        .args(&format!("--metrics {}", metrics.display()))
        .script(script)
        .start();
    guest.wait_for("SPOKEN-ON-HVC0");
    let client = UnixStream::connect(&socket).unwrap();
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    (&client).write_all(b"good morning\n").unwrap();
    let mut reader = BufReader::new(&client);
    let mut line = String::new();
    reader.read_line(&mut line).unwrap();
    assert_eq!(line, "you said good morning\n");
    // Two megabytes come and nobody reads them yet.
    guest.wait_for("THE-OTHERS-GO-ON");
    assert_eq!(fs::read_to_string(&log).unwrap(), "one\ntwo\n");
    guest.type_line("on hvc0");
    guest.wait_for("typed=on hvc0");
    let mut zeroes = vec![1; 32 << 16];
    reader.read_exact(&mut zeroes).unwrap();
    assert!(zeroes.iter().all(|byte| *byte == 0));
    let done = guest.finish();
    done.expect_clean();
    done.expect_fact("size", "24 80");
    done.expect_fact("heard", "good morning");
    done.expect_fact("sent", "0");
    for name in ["agent", "log"] {
        done.expect(&format!("PORT {name}\n"));
    }
    assert!(!socket.exists(), "the socket is still there");

    let text = fs::read_to_string(&metrics).unwrap();
    let metrics: husk::Metrics = serde_json::from_str(&text).unwrap();
    let tty = metrics.devices["tty"].counts;
    assert!(tty.bytes_from_guest >= 65536, "{text}");
    assert!(tty.doorbells * 8 < tty.bytes_from_guest, "a doorbell for few bytes: {text}");
    assert!(metrics.devices["ports"].counts.bytes_from_guest >= 32 << 16, "{text}");
    eprintln!("{} bytes on hvc0, {} doorbells", tty.bytes_from_guest, tty.doorbells);
}

#[test]
fn a_kernel_that_panics_on_a_virtio_console_is_reported_as_on_a_serial_one() {
    let Some(lab) = Lab::open() else { return };
    // Nothing is said by the serial line.
    let script = "exec </dev/hvc0 >/dev/hvc0 2>&1; echo LAST-WORDS; sleep 1; \
                  echo c >/proc/sysrq-trigger";
    let done = lab.guest().args("--console-device virtio").script(script).run();
    done.expect_status(134);
    done.expect("LAST-WORDS");
    done.expect_stderr("sysrq triggered crash");
}

/// A machine in this process whose console goes to a file.
struct Machine {
    vm: RunningVm,
    console: PathBuf,
}

impl Machine {
    fn start(
        lab: &Lab,
        kernel: &str,
        initrd: &str,
        script: &str,
        adjust: impl FnOnce(&mut VmConfig),
    ) -> Machine {
        let console = lab.path("console");
        let mut config = VmConfig::new(lab.asset(kernel));
        config.initrd = Some(lab.initrd_with(initrd, script));
        config.append = "quiet".to_owned();
        config.console = ConsoleConfig::File(console.clone());
        adjust(&mut config);
        Machine { vm: Vm::new(config).unwrap().start().unwrap(), console }
    }

    fn said(&self) -> String {
        fs::read_to_string(&self.console).unwrap_or_default()
    }

    #[track_caller]
    fn wait_for(&self, text: &str) {
        self.wait(text, || self.said().contains(text));
    }

    #[track_caller]
    fn wait(&self, what: &str, mut until: impl FnMut() -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !until() {
            assert!(Instant::now() < deadline, "no {what}: {}", self.vm.console_tail(40));
            sleep(Duration::from_millis(20));
        }
    }
}

/// What of this process is in memory, in MiB: a number that the kernel keeps, where `smaps` would go
/// through all of a guest's pages each time.
fn resident() -> u64 {
    let text = fs::read_to_string("/proc/self/statm").unwrap();
    let pages: u64 = text.split_whitespace().nth(1).unwrap().parse().unwrap();
    pages >> 8
}

#[test]
fn a_guest_gives_back_what_it_frees_and_what_it_is_asked_for_and_takes_it_when_in_need() {
    let Some(lab) = Lab::open() else { return };
    // Steps are asked for by the power button, which the script takes for itself.
    let script = r#"
steps=0
step() { while ! [ -e /step$1 ]; do usleep 20000; done; }
mkdir -p /etc/acpi/PWRF
cat >/etc/acpi/PWRF/00000080 <<'END'
#!/bin/sh
n=$(cat /steps 2>/dev/null || echo 0)
n=$((n + 1))
echo $n >/steps
touch /step$n
END
chmod +x /etc/acpi/PWRF/00000080
acpid
mount -t tmpfs -o size=1400m,huge=always none /mnt
dd if=/dev/zero of=/mnt/fill bs=1M count=1024 2>/dev/null
echo FILLED
step 1
rm /mnt/fill
echo FREED
step 2
dd if=/dev/zero of=/mnt/fill bs=1M count=640 2>/dev/null && echo FILLED-IN-NEED
step 3
"#;
    let machine = Machine::start(&lab, VMLINUZ_CLOUD, FULL, script, |config| {
        config.cpus = 2;
        // Debian's kernel would fill each page with zeros that it takes to give up: a fault for each.
        config.append.push_str(" init_on_alloc=0");
        config.memory.size = Size::mib(1536);
        config.balloon = Some(BalloonConfig { size: Size(0) });
    });
    let vm = &machine.vm;
    machine.wait_for("FILLED");
    let full = resident();
    assert!(full > 1024, "{full} MiB");
    vm.press_power_button().unwrap();
    machine.wait_for("FREED");
    // Linux 6.1 looks every two seconds and reports a part of what is free each time.
    let freed = Instant::now();
    let (mut first, mut after_5) = (None, 0);
    while resident() + 1000 > full {
        let (now, took) = (resident(), freed.elapsed().as_secs_f64());
        assert!(took < 60.0, "{full} MiB before, {now} after");
        if now + 100 < full {
            first.get_or_insert(took);
        }
        if took < 5.0 {
            after_5 = full - now.min(full);
        }
        sleep(Duration::from_millis(20));
    }
    let (first, all) = (first.unwrap_or(0.0), freed.elapsed().as_secs_f64());
    eprintln!(
        "1 GiB freed: the first of it back after {first:.1} s, {after_5} MiB after 5 s, all after {all:.1} s"
    );
    assert!(first < 5.0, "{first} s");

    // Nobody asks for anything yet, and the guest tells how it is.
    let statistics = vm.memory_statistics(PATIENCE).unwrap();
    let (free, total) = (statistics.free.unwrap(), statistics.total.unwrap());
    assert!(free > 1000 << 20 && total > free && total < 1536 << 20, "{statistics:?}");
    let wanted = 1000 << 20;
    vm.set_balloon(wanted).unwrap();
    machine.wait("inflated balloon", || vm.balloon().unwrap() == wanted);
    let left = vm.memory_statistics(PATIENCE).unwrap().free.unwrap();
    assert!(left + (900 << 20) < free, "{free} bytes were free, and {left} are");
    let small = resident();
    // It needs 640 MiB and has 500: before it kills anybody it takes them from the balloon, which
    // it does by and by, 1 MiB at a time.
    vm.press_power_button().unwrap();
    machine.wait_for("FILLED-IN-NEED");
    let kept = vm.balloon().unwrap();
    assert!(kept < 900 << 20, "the balloon still has {kept} bytes");
    assert!(resident() > small + 550, "{small} MiB before, {} after", resident());
    vm.set_balloon(0).unwrap();
    machine.wait("deflated balloon", || vm.balloon().unwrap() == 0);
    assert!(vm.set_balloon(1536 << 20).is_err());
    let errors = vm.metrics().devices["balloon"].counts.errors;
    assert_eq!(errors, 0);
    vm.press_power_button().unwrap();
    assert!(matches!(vm.wait(), Outcome::PowerOff), "{}", vm.console_tail(40));
}

/// A file of 64 MiB with an ext4 file system of what is in `dir`.
fn image_of(dir: &Path, image: &Path) {
    fs::File::create(image).unwrap().set_len(64 << 20).unwrap();
    let from = [OsStr::new("-d"), dir.as_os_str(), image.as_os_str()];
    host("mkfs.ext4", [OsStr::new("-q"), OsStr::new("-b"), OsStr::new("4096")].iter().chain(&from));
}

/// KiB of `file` that a process has mapped and touched: those that another process has, too, and those that
/// it has alone or has copied.
fn pages_of(pid: u32, file: &Path) -> [u64; 2] {
    let smaps = fs::read_to_string(format!("/proc/{pid}/smaps")).unwrap();
    let name = file.file_name().unwrap().to_str().unwrap();
    let (mut own, mut sums) = (false, [0, 0]);
    for line in smaps.lines() {
        let Some((key, value)) = line.split_once(':').filter(|(key, _)| !key.contains(' ')) else {
            // The first line of a mapping, which ends in its file's name.
            own = line.ends_with(&format!("/{name}"));
            continue;
        };
        let sum = match key {
            "Shared_Clean" | "Shared_Dirty" => &mut sums[0],
            "Private_Clean" | "Private_Dirty" => &mut sums[1],
            _ => continue,
        };
        if own {
            *sum += value.trim().trim_end_matches(" kB").parse::<u64>().unwrap();
        }
    }
    sums
}

#[test]
fn files_as_memory_keep_what_was_synced_and_lend_what_is_only_read() {
    let Some(lab) = Lab::open() else { return };
    let (empty, full) = (lab.path("empty"), lab.path("full"));
    fs::create_dir_all(&empty).unwrap();
    fs::create_dir_all(&full).unwrap();
    fs::write(full.join("given"), vec![b'g'; 1 << 20]).unwrap();
    let (data, given) = (lab.path("data.img"), lab.path("given.img"));
    image_of(&empty, &data);
    image_of(&full, &given);
    let before = sha256(&fs::read(&given).unwrap());
    let script = r#"
set -e
mount -t ext4 -o dax /dev/pmem0 /mnt
mkdir /given
mount -t ext4 -o ro,dax /dev/pmem1 /given
grep pmem /proc/mounts
dd if=/dev/urandom of=/mnt/data bs=1M count=8 2>/dev/null
cp /given/given /mnt/copy
sync
echo "hash=$(sha256sum /mnt/data | cut -d' ' -f1)"
echo "given=$(sha256sum /given/given | cut -d' ' -f1)"
mount -o remount,rw /given 2>/dev/null || echo STAYS-READ-ONLY
echo SYNCED
sleep 1000
"#;
    let pmem = |path: &Path, more: &str| format!("--pmem path={}{more}", path.display());
    let mut guest = lab
        .guest()
        .args(&pmem(&data, ""))
        .args(&pmem(&given, ",ro"))
        .args("--append root=")
        .script(script)
        .start();
    guest.wait_for("SYNCED");
    let console = guest.console();
    // Another VM may read the same file at the same time, from the same memory, and may not write it.
    let second = lab.guest().args(&pmem(&given, ",ro")).args("--append root=");
    let script = r#"
mount -t ext4 -o ro,dax /dev/pmem0 /mnt
echo "given=$(sha256sum /mnt/given | cut -d' ' -f1)"
echo HAS-READ
read line
"#;
    let mut second = second.script(script).start();
    second.wait_for("HAS-READ");
    for pid in [guest.pid(), second.pid()] {
        let [shared, private] = pages_of(pid, &given);
        assert!(shared >= 1024, "{shared} KiB are shared");
        assert!(private < shared, "{private} KiB are not, and {shared} are");
    }
    second.type_line("go on");
    let second = second.finish();
    second.expect_clean().expect_fact("given", &sha256(&vec![b'g'; 1 << 20]));
    let refused = lab.guest().args(&pmem(&given, "")).script("true").run();
    refused.expect_status(125).expect_stderr("in use");
    // What was synced is in the file though husk is killed.
    guest.signal(libc::SIGKILL);
    guest.finish().expect_status(1000 + libc::SIGKILL);
    let fact = |name: &str| {
        let start = format!("{name}=");
        let line = console.lines().find_map(|line| line.strip_prefix(&start));
        line.unwrap_or_else(|| panic!("no {name}=: {console}")).trim().to_owned()
    };
    assert_eq!(console.matches("dax").count(), 2, "{console}");
    assert_eq!(fact("given"), sha256(&vec![b'g'; 1 << 20]));
    assert_eq!(sha256(&fs::read(&given).unwrap()), before, "a file that is only read has changed");
    // The journal is replayed, and nothing else is to be done that matters: 1 is "corrected".
    let (status, said) = try_host("e2fsck", [OsStr::new("-fp"), data.as_os_str()]);
    assert!(status <= 1, "{said}");
    assert_eq!(sha256(&read_from(&data, "data")), fact("hash"));
    assert_eq!(read_from(&data, "copy").len(), 1 << 20);
    fsck(&data);
}

#[test]
fn a_guest_has_its_root_file_system_from_memory() {
    let Some(lab) = Lab::open() else { return };
    let root = lab.path("root");
    for dir in ["bin", "sbin", "dev", "proc"] {
        fs::create_dir_all(root.join(dir)).unwrap();
    }
    fs::copy("/bin/busybox", root.join("bin/busybox")).unwrap();
    let init = "#!/bin/busybox sh\n/bin/busybox mount -t proc proc /proc\n\
                echo \"root=$(/bin/busybox grep ' / ext4' /proc/mounts | /bin/busybox cut -c 1-10)\"\n\
                /bin/busybox poweroff -f\n";
    fs::write(root.join("sbin/init"), init).unwrap();
    let permissions = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(root.join("sbin/init"), permissions).unwrap();
    let image = lab.path("root.img");
    image_of(&root, &image);
    // The command line is husk's own.
    let done = lab.guest().args(&format!("--pmem path={},ro", image.display())).run();
    done.expect_status(0);
    done.expect_fact("root", "/dev/pmem0");
}

#[test]
fn linux_makes_new_random_numbers_when_it_is_told_of_a_new_generation() {
    let Some(lab) = Lab::open() else { return };
    // Debian's cloud kernel has no driver for it. Linux says nothing of a new generation as long as it
    // has no randomness at all.
    let script = r#"
while ! dmesg | grep -q 'crng init done'; do usleep 50000; done
ls -l /sys/bus/acpi/drivers/vmgenid/ | grep -o HUSK0001:00 | head -n 1
dmesg | grep -c 'virtual machine fork'
echo WAITING
while ! dmesg | grep -q 'virtual machine fork'; do usleep 50000; done
dmesg | grep 'virtual machine fork'
"#;
    let machine = Machine::start(&lab, VMLINUZ_STD, FULL_STD, script, |_| {});
    machine.wait_for("WAITING");
    let said = machine.said().replace('\r', "");
    assert!(said.contains("HUSK0001:00\n0\nWAITING"), "{said}");
    machine.vm.renew_generation().unwrap();
    let outcome = machine.vm.wait_timeout(PATIENCE);
    assert!(matches!(outcome, Some(Outcome::PowerOff)), "{}", machine.vm.console_tail(40));
    assert!(machine.said().contains("reseeded due to virtual machine fork"), "{}", machine.said());
}
