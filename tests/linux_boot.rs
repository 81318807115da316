//! Kernels come up: every way in, with few and many processors, little and much memory, with ACPI
//! and without, and find each device once.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests"
)]

mod guest;

use std::fs;
use std::process::Command;

use guest::{
    Builder, Done, FULL_STD, Lab, MEMTEST, TINY, VMLINUX_CLOUD, VMLINUZ_CLOUD, VMLINUZ_STD, husk,
};
use husk::doctor::Report;

/// What a guest says of itself. Bootloader type 0xb0 is PVH's, 0xff that of boot_params filled in
/// by a loader without a number of its own.
const FACTS: &str = r#"
echo "cpus=$(nproc)"
echo "total=$(dmesg | sed -n 's/.*Memory: [0-9]*K.\([0-9]*\)K available.*/\1/p')"
echo "free=$(sed -n 's/^MemAvailable: *\([0-9]*\) kB/\1/p' /proc/meminfo)"
echo "cmdline=$(cat /proc/cmdline)"
cd /sys/devices/system/cpu
echo "x2apic=$(grep -c '^flags.* x2apic ' /proc/cpuinfo)"
echo "packages=$(cat cpu[0-9]*/topology/physical_package_id | sort -u | wc -l)"
echo "cores=$(cat cpu[0-9]*/topology/thread_siblings_list | sort -u | wc -l)"
echo "loader=$(cat /proc/sys/kernel/bootloader_type)"
echo "clock=$(cat /sys/devices/system/clocksource/clocksource0/current_clocksource)"
echo "tests=$(cat /sys/module/cryptomgr/parameters/notests)"
echo "tsc=$(dmesg | grep -c 'tsc: Detected [0-9.]* MHz processor')"
echo "hypervisor=$(dmesg | sed -n 's/.*Hypervisor detected: //p')"
dmesg -r | grep '^<[0-3]>' | grep -v 'PCI: Fatal: No config space access' | sed 's/^/suspect: /'
dmesg | grep -iE 'calibration|soft lockup|stall|WARNING:|BUG:|Call Trace|firmware bug' |
    sed 's/^/suspect: /'
exit 0
"#;

/// Boots with [`FACTS`] and checks what every machine has in common.
fn check(guest: Builder<'_>, cpus: u32, mib: u64) -> Done {
    let cpus_arg = cpus.to_string();
    let guest = guest.arg("--cpus").arg(&cpus_arg).append("husk.test").script(FACTS);
    let done = guest.run();
    done.expect_clean();
    done.expect_fact("cpus", &cpus_arg);
    // One package of as many cores, each of one thread.
    done.expect_fact("x2apic", &cpus_arg)
        .expect_fact("packages", "1")
        .expect_fact("cores", &cpus_arg);
    // All of it is there, but the kernel counts neither page 0 nor the legacy areas (388 KiB).
    let total = done.number("total");
    let all = mib * 1024;
    if total > all || total + 512 < all {
        done.fail(&format!("the guest has {total} KiB of {all}"));
    }
    assert!(done.number("free") > 32 * 1024, "hardly anything is free: {}", done.console);
    assert!(done.fact("cmdline").starts_with("console=ttyS0 quiet "), "{}", done.console);
    assert!(done.fact("cmdline").contains(" husk.test panic=-1 pci=off"), "{}", done.console);
    // It does not try its ciphers again.
    done.expect_fact("tests", "Y");
    done.expect_fact("clock", "kvm-clock").expect_fact("tsc", "1").expect_fact("hypervisor", "KVM");
    if done.count("suspect: ") > 0 {
        done.fail("the kernel has complaints");
    }
    done
}

#[test]
fn doctor_finds_that_linux_boots_where_it_does() {
    let Some(_lab) = Lab::open() else { return };
    let doctor = Command::new(husk()).args(["doctor", "--json"]).output().unwrap();
    let report: Report = serde_json::from_slice(&doctor.stdout).unwrap();
    assert_eq!((doctor.status.code(), report.linux_boots), (Some(0), true), "{report:?}");
}

/// Each kernel with three of the nine pairs of processors and memory, so that over all four
/// kernels every pair of values occurs.
fn matrix(lab: &Lab, kernel: &str, shift: usize, args: &str, loader: &str) {
    const MEMORY: [u64; 3] = [128, 512, 5 * 1024];
    for (n, cpus) in [1, 2, 4].into_iter().enumerate() {
        let mib = MEMORY[(n + shift) % 3];
        let guest = lab.kernel(kernel).initrd(TINY).args(args);
        let done = check(guest.arg("--memory").arg(format!("{mib}M")), cpus, mib);
        done.expect_fact("loader", loader);
        eprintln!("{kernel} {args} with {cpus} vCPUs and {mib} MiB: {:.1?}", done.took);
    }
}

#[test]
fn a_cloud_bzimage_boots() {
    let Some(lab) = Lab::open() else { return };
    matrix(&lab, VMLINUZ_CLOUD, 0, "", "176");
}

#[test]
fn a_standard_bzimage_boots() {
    let Some(lab) = Lab::open() else { return };
    matrix(&lab, VMLINUZ_STD, 1, "", "176");
}

#[test]
fn a_vmlinux_boots_by_pvh() {
    let Some(lab) = Lab::open() else { return };
    matrix(&lab, VMLINUX_CLOUD, 2, "--boot-protocol pvh", "176");
}

#[test]
fn a_vmlinux_boots_by_the_64_bit_protocol() {
    let Some(lab) = Lab::open() else { return };
    matrix(&lab, VMLINUX_CLOUD, 0, "--boot-protocol linux64", "255");
}

#[test]
fn eight_processors_come_up() {
    let Some(lab) = Lab::open() else { return };
    check(lab.tiny(), 8, 512);
}

#[test]
fn a_kernel_of_debians_that_is_cut_off_anywhere_is_refused_before_it_runs() {
    let Some(lab) = Lab::open() else { return };
    let (kernel, cache) = (lab.path("kernel"), lab.path("cache"));
    // The second bzImage is there for its compression, which is not come to.
    for (name, step) in [(VMLINUZ_CLOUD, 1), (VMLINUZ_STD, 5), (VMLINUX_CLOUD, 1)] {
        fs::copy(lab.asset(name), &kernel).unwrap();
        let file = fs::File::options().write(true).open(&kernel).unwrap();
        let whole = file.metadata().unwrap().len();
        for sixteenth in (0..16u32).step_by(step).rev() {
            file.set_len(whole * u64::from(sixteenth) / 16).unwrap();
            let guest = Builder::new(&lab, kernel.clone()).initrd(TINY);
            let done = guest.env("XDG_CACHE_HOME", &cache).run();
            done.expect_status(125).expect_stderr(&kernel.display().to_string());
            done.expect_stderr(if sixteenth == 0 { "an empty file" } else { "truncated" });
            if !done.console.is_empty() || done.stderr.lines().count() != 1 {
                done.fail(&format!(
                    "{name} was started or said too much of, cut at {sixteenth}/16"
                ));
            }
        }
    }
    // Nothing was unpacked, or kept.
    let kept = |what: &str| fs::read_dir(cache.join("husk").join(what)).map_or(0, Iterator::count);
    assert_eq!((kept("kernels"), kept("index")), (0, 0));
}

/// Prints how many virtio devices there are, and the first byte of each disk's serial number.
const DEVICES: &str = r#"
echo "cpus=$(nproc)"
echo "virtio=$(ls /sys/bus/virtio/devices | wc -l)"
echo "serials=$(cd /sys/block && for d in vd*; do echo $d:$(cat $d/serial); done | tr '\n' ' ')"
echo "interrupts=$(grep -c virtio /proc/interrupts)"
[ "$(head -c 4 /dev/vda)" = disk ] && head -c 16 /dev/hwrng >/dev/null && echo works=yes
echo "uarts=$(dmesg | grep -c 'ttyS[0-9] at I/O')"
"#;

fn two_disks(lab: &Lab) -> Builder<'_> {
    for name in ["a.img", "b.img"] {
        fs::write(lab.hole(name, 0), [b"disk".as_slice(), &[0; 4092]].concat()).unwrap();
    }
    lab.guest()
        .args("--cpus 2")
        .disk(&lab.path("a.img"), "id=first")
        .disk(&lab.path("b.img"), "id=second,ro")
        .script(DEVICES)
}

/// Two disks and the source of entropy: nothing is found twice, nothing is missing.
fn expect_devices(done: &Done) {
    done.expect_fact("cpus", "2").expect_fact("virtio", "3").expect_fact("interrupts", "3");
    done.expect_fact("serials", "vda:first vdb:second").expect_fact("works", "yes");
    done.expect_fact("uarts", "1");
}

#[test]
fn with_acpi_every_device_is_found_once() {
    let Some(lab) = Lab::open() else { return };
    let done = two_disks(&lab).run();
    expect_devices(done.expect_clean());
}

#[test]
fn without_acpi_the_machine_is_whole_and_a_reboot_ends_it() {
    let Some(lab) = Lab::open() else { return };
    // Debian's kernels do not look for devices on their command line
    // (VIRTIO_MMIO_CMDLINE_DEVICES), so this looks at what stands there: "virt", and the number of
    // the device's type. 0x1000 and 0x2000 bytes on are the other two.
    let script = r#"
echo "cpus=$(nproc)"
echo "described=$(grep -o 'virtio_mmio.device=[^ ]*' /proc/cmdline | tr '\n' ' ')"
echo "found=$(for at in 0 1 2; do devmem 0xd000${at}000; devmem 0xd000${at}008; done | tr '\n' ' ')"
echo "virtio=$(ls /sys/bus/virtio/devices | wc -l)"
echo "table=$(dmesg | grep -c 'found SMP MP-table')"
echo "uarts=$(dmesg | grep -c 'ttyS[0-9] at I/O')"
echo "interrupt=$(grep -o 'IO-APIC.*ttyS0' /proc/interrupts)"
echo "acpi=$(ls /sys/firmware/acpi 2>/dev/null | wc -l)"
"#;
    let disk = lab.hole("a.img", 1 << 20);
    let other = lab.hole("b.img", 1 << 20);
    let guest =
        lab.kernel(VMLINUZ_STD).initrd(FULL_STD).args("--cpus 2 --on-reboot exit --no-acpi");
    let guest = guest.disk(&disk, "").disk(&other, "ro").append("husk.end=reboot");
    let done = guest.script(script).run();
    done.expect_clean().expect_fact("cpus", "2");
    let described = (0..3).map(|n| format!("virtio_mmio.device=4K@0xd000{n}000:{}", 6 + n));
    done.expect_fact("described", &described.collect::<Vec<_>>().join(" "));
    let magic = "0x74726976";
    let disk = format!("{magic} 0x00000002");
    done.expect_fact("found", &format!("{disk} {disk} {magic} 0x00000004"));
    done.expect_fact("virtio", "0").expect_fact("acpi", "0").expect_fact("table", "1");
    done.expect_fact("uarts", "1").expect_fact("interrupt", "IO-APIC   4-edge      ttyS0");
    assert_eq!(done.count("HUSK-INIT-READY"), 1);
}

#[test]
fn a_kernel_that_knows_neither_acpi_nor_mp_tables_has_a_timer() {
    let Some(lab) = Lab::open() else { return };
    // The cloud kernel cannot read MP tables: without ACPI it is left with the PC's timer and
    // interrupt controllers. Without a timer it would neither sleep nor reboot.
    let guest = lab.tiny().args("--no-acpi --on-reboot exit").append("husk.end=reboot");
    let done = guest.script("sleep 2; grep -w timer /proc/interrupts").run();
    done.expect_clean().expect("XT-PIC      timer");
}

#[test]
fn memory_can_be_shared_or_of_huge_pages() {
    let Some(lab) = Lab::open() else { return };
    check(lab.tiny().args("--memory 256M,shared"), 1, 256);

    match guest::HugePages::more(128) {
        Some(_pool) => drop(check(lab.tiny().args("--memory 256M,hugepages"), 2, 256)),
        None => guest::skipped("128 huge pages cannot be set aside here"),
    }
}

#[test]
fn memtest86_reaches_its_screen() {
    let Some(lab) = Lab::open() else { return };
    let guest = lab.kernel(MEMTEST).args("--memory 64M --cmdline console=ttyS0,115200");
    let mut guest = guest.start();
    guest.wait_for("Memtest86+");
    // It tests; and it listens: the first key on its menu.
    guest.wait_for("Pass");
    guest.type_line("1");
    guest.wait_for("Settings");
    assert!(guest.is_up());
}

#[test]
fn the_timeline_has_every_phase_of_a_boot() {
    let Some(lab) = Lab::open() else { return };
    let script = r"printf '\001' | dd of=/dev/port bs=1 seek=1296 conv=notrunc 2>/dev/null";
    // The cloud kernel has no /dev/port.
    let done = lab.kernel(VMLINUZ_STD).initrd(TINY).arg("--timeline").script(script).run();
    done.expect_status(0).expect("HUSK-EXIT 0");
    let phases = [
        "process start",
        "configuration",
        "memory",
        "kernel opened",
        "devices",
        "kernel load",
        "KVM VM",
        "first KVM_RUN",
        "first console byte",
        "user-space marker",
        "exit",
    ];
    // "   1.234    0.567  phase"
    let rows = done.stderr.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        let at: f64 = words.next()?.parse().ok()?;
        let step: f64 = words.next()?.parse().ok()?;
        Some((at, step, words.collect::<Vec<_>>().join(" ")))
    });
    let rows: Vec<_> = rows.collect();
    let at = |phase: &str| {
        let found: Vec<_> = rows.iter().filter(|(.., name)| name == phase).collect();
        assert_eq!(found.len(), 1, "{phase}: {}", done.stderr);
        found[0].0
    };
    assert_eq!(rows.len(), phases.len(), "{}", done.stderr);
    // Those of the preparation are in no fixed order: some of it is done side by side.
    let (before, after) = phases.split_at(8);
    let prepared = before.iter().map(|phase| at(phase)).fold(0.0, f64::max);
    let times: Vec<_> = after.iter().map(|phase| at(phase)).collect();
    assert!(prepared <= times[0] && times.is_sorted(), "{}", done.stderr);
    assert_eq!(at("process start"), 0.0);
    assert!(rows.is_sorted_by_key(|(at, ..)| *at), "{}", done.stderr);
    assert!(rows.iter().all(|(_, step, _)| *step >= 0.0), "{}", done.stderr);
    let (last, ..) = rows[rows.len() - 1];
    assert!(last > 100.0 && last <= done.took.as_secs_f64() * 1e3, "{last} ms: {}", done.stderr);
    eprint!("{}", done.stderr);
}
