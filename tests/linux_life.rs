//! How a guest's life goes and ends: power-off, reboot, panic, triple fault, time-out and signals,
//! pause and resume, and a console that is typed to, ended, or not read at all.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests"
)]

mod guest;

use std::fs;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use guest::command::{cli, finish};
use guest::process::cpu_time;
use guest::tools::holdings;
use guest::{FULL, Lab, PATIENCE, TINY, VMLINUX_CLOUD, soak_rounds};
use husk::config::{ConsoleConfig, DiskConfig, VmConfig};
use husk::{Outcome, RunningVm, Vm};

#[test]
fn a_guest_reboots_in_place_and_then_turns_itself_off() {
    let Some(lab) = Lab::open() else { return };
    let rounds = soak_rounds(3, 50);
    // The disk remembers how many boots there were.
    let script = format!(
        r#"
n=$(head -c 8 /dev/vda | tr -d '\0'); n=${{n:-0}}
echo "BOOT $n with $(nproc) processors."
printf '%s' $((n + 1)) | dd of=/dev/vda conv=notrunc,fsync 2>/dev/null
[ $n -ge {rounds} ] && exit 0
stty -F /dev/console sane # drains it
reboot -f
sleep 1000
"#
    );
    let disk = lab.hole("count.img", 4096);
    let mut guest = lab.guest().args("--cpus 2").disk(&disk, "").script(&script).start();
    let mut held = None;
    for n in 0..=rounds {
        guest.wait_for(&format!("BOOT {n} with 2 processors."));
        let now = holdings(guest.pid());
        // Descriptors and threads; after the first reboot everything has been there once.
        assert_eq!(*held.get_or_insert(now), now, "(descriptors, threads) at boot {n}");
    }
    let done = guest.finish();
    done.expect_clean();
    assert_eq!(done.count("HUSK-INIT-READY"), rounds + 1);
    assert!(fs::read(&disk).unwrap().starts_with((rounds + 1).to_string().as_bytes()));
}

#[test]
fn a_reboot_ends_the_vm_when_that_is_wanted() {
    let Some(lab) = Lab::open() else { return };
    let guest = lab.tiny().args("--on-reboot exit").append("husk.end=reboot");
    let done = guest.script("true").run();
    done.expect_clean();
    assert_eq!(done.count("HUSK-INIT-READY"), 1);
}

#[test]
fn a_panic_ends_the_vm_with_the_consoles_last_words() {
    let Some(lab) = Lab::open() else { return };
    // Known by its words on the console, and by the driver's report.
    for guest in [lab.tiny(), lab.guest()] {
        let done = guest.append("husk.end=panic").script("true").run();
        done.expect_status(134);
        assert_eq!(done.count("HUSK-INIT-READY"), 1);
        done.expect_stderr("the guest's kernel panicked");
        done.expect_stderr("Kernel panic - not syncing: sysrq triggered crash");
    }
    // Without a console only the driver can tell.
    let guest = lab.guest().args("--cmdline nothing").append("husk.end=panic").script("true");
    let done = guest.run();
    done.expect_status(134).expect_stderr("the guest's kernel panicked");
    assert_eq!(done.console, "");
}

#[test]
fn a_triple_fault_ends_the_vm_with_a_report_and_last_words() {
    let Some(lab) = Lab::open() else { return };
    let guest = lab.tiny().args("--cpus 2").append("husk.end=reboot reboot=t");
    let done = guest.script("echo before the fault").run();
    done.expect_status(134);
    assert_eq!(done.count("HUSK-INIT-READY"), 1);
    done.expect_stderr("triple fault").expect_stderr("vCPU ").expect_stderr("before the fault");
    // On AMD's processors, of which the testbed has one, KVM has forgotten them.
    if !done.stderr.contains("its registers and code are lost") {
        for words in ["rip", "rsp", "cr3", "code"] {
            done.expect_stderr(words);
        }
    }
}

#[test]
fn a_vm_ends_when_its_time_is_up() {
    let Some(lab) = Lab::open() else { return };
    let done = lab.tiny().args("--timeout 3").run();
    done.expect_status(124).expect_stderr("3 s");
    let took = done.took.as_secs_f64();
    assert!((3.0..10.0).contains(&took), "{took} s");
}

#[test]
fn husk_run_ends_a_command_whose_time_is_up() {
    let Some(lab) = Lab::open() else { return };
    let initrd = lab.asset(TINY);
    // The guest's start is part of the time, and takes longer on a slow machine.
    let mut seconds = 5;
    let (status, stdout, stderr) = loop {
        let time = seconds.to_string();
        let args = ["--timeout", &time, "--initrd", initrd.to_str().unwrap(), "--", "/bin/busybox"];
        let command = ["sh", "-c", "echo up; exec /bin/busybox sleep 1000"];
        let ended = finish(cli(&lab, &[&args[..], &command].concat()), b"");
        if !ended.2.contains("not ready") && !ended.1.is_empty() {
            break ended;
        }
        assert!(ended.0 == 124 && seconds < 160, "{ended:?}");
        seconds *= 2;
    };
    let told = format!("husk: the command still ran after {seconds} s\n");
    assert_eq!((status, stdout.as_str(), stderr), (124, "up\n", told));
}

#[test]
fn sigterm_presses_the_power_button_of_a_guest_that_listens() {
    let Some(lab) = Lab::open() else { return };
    let script = "acpid; echo LISTENING; sleep 1000";
    let mut guest = lab.guest().args("--grace 60").script(script).start();
    guest.wait_for("LISTENING");
    // Gives acpid, which goes to the background, the time to open the button.
    sleep(Duration::from_secs(2));
    guest.signal(libc::SIGTERM);
    let done = guest.finish_within(Duration::from_secs(50));
    done.expect_status(0).expect("HUSK-POWER-BUTTON");
}

#[test]
fn sigterm_ends_a_guest_that_does_not_listen_after_the_grace() {
    let Some(lab) = Lab::open() else { return };
    let mut guest = lab.guest().args("--grace 2").script("echo DEAF; sleep 1000").start();
    guest.wait_for("DEAF");
    let sent = Instant::now();
    guest.signal(libc::SIGTERM);
    let done = guest.finish();
    let took = sent.elapsed().as_secs_f64();
    done.expect_status(143);
    assert!((2.0..10.0).contains(&took), "{took} s");
    assert!(!done.console.contains("HUSK-POWER-BUTTON"));
}

#[test]
fn a_second_signal_ends_the_vm_at_once() {
    let Some(lab) = Lab::open() else { return };
    let mut guest = lab.tiny().args("--grace 100").script("echo DEAF; sleep 1000").start();
    guest.wait_for("DEAF");
    guest.signal(libc::SIGINT);
    sleep(Duration::from_secs(1));
    assert!(guest.is_up(), "the first signal was enough");
    let sent = Instant::now();
    guest.signal(libc::SIGTERM);
    let done = guest.finish();
    // By the first of them.
    done.expect_status(130);
    assert!(sent.elapsed() < Duration::from_secs(5), "{:?}", sent.elapsed());
}

#[test]
fn a_piped_standard_input_is_typed_on_the_console_to_its_end() {
    let Some(lab) = Lab::open() else { return };
    let mut guest = lab.tiny().start();
    // Before the guest has a driver for it.
    guest.type_line("echo answer-$((6 * 7))");
    guest.wait_for("a shell; it powers off at its end");
    guest.wait_for("answer-42");
    // More at once than the UART's FIFO holds.
    let lines = "0123456789012345678901234567890123456789\n".repeat(40);
    guest.type_line(&format!("cat >/typed <<END\n{lines}END"));
    guest.type_line("echo typed-$(sha256sum </typed)");
    guest.wait_for(&format!("typed-{}", guest::tools::sha256(lines.as_bytes())));
    // What was typed before the end of the input is still done, and the guest goes on without.
    guest.type_line("sleep 3; echo later-$((40 + 3)); exit");
    guest.close_stdin();
    guest.wait_for("later-43");
    guest.finish().expect_status(0);
}

#[test]
fn an_idle_guest_costs_hardly_any_processor_time() {
    let Some(lab) = Lab::open() else { return };
    let disk = lab.hole("idle.img", 1 << 20);
    let script = "sleep 3; echo IDLE; sleep 1000";
    let mut guest = lab.guest().disk(&disk, "").script(script).start();
    // An input that has ended is not asked again and again.
    guest.close_stdin();
    guest.wait_for("IDLE");
    sleep(Duration::from_secs(1));
    let (before, began) = (cpu_time(guest.pid()), Instant::now());
    sleep(Duration::from_secs(5));
    let used = cpu_time(guest.pid()) - before;
    let share = used.as_secs_f64() / began.elapsed().as_secs_f64() * 100.0;
    eprintln!("an idle guest used {used:?} in 5 s: {share:.1} % of a core");
    // Under two emulators a timer tick of the guest's costs a hundred times what it should.
    assert!(share < 5.0, "{share:.1} % of a core");
}

#[test]
fn a_console_nobody_reads_stops_neither_the_guest_nor_its_disk() {
    let Some(lab) = Lab::open() else { return };
    let disk = lab.hole("disk.img", 4 << 20);
    // The flood fills husk's buffer (128 KiB) and the pipe, and then stops; everything else goes on.
    let script = r#"
yes "nobody reads this" | head -c 200000 >/flood
cat /flood &
full() { a=$(grep -o 'tx:[0-9]*' /proc/tty/driver/serial); sleep 2
    [ "$a" = "$(grep -o 'tx:[0-9]*' /proc/tty/driver/serial)" ]; }
until full; do :; done
dd if=/dev/zero bs=1M count=4 2>/dev/null | tr '\0' p | dd of=/dev/vda bs=1M conv=notrunc,fsync 2>/dev/null
poweroff -f
"#;
    let guest = lab.guest().args("--cpus 2").disk(&disk, "").script(script).unread().start();
    let done = guest.finish();
    done.expect_status(0).expect_stderr("nobody reads the guest's last output");
    assert!(fs::read(&disk).unwrap().iter().all(|b| *b == b'p'), "the disk was not written");
    eprintln!("over after {:.1?}", done.took);
}

/// One line of the guest's clock: its wall clock and its time since the boot, in seconds, and how
/// many complaints its kernel has.
#[derive(Debug)]
struct Tick {
    wall: f64,
    uptime: f64,
    complaints: u32,
}

/// Waits for the next tick on the console.
fn next_tick(console: &Path) -> Tick {
    let whole = || fs::read_to_string(console).unwrap_or_default();
    let before = whole().matches("TICK ").count();
    let deadline = Instant::now() + PATIENCE;
    loop {
        let text = whole();
        let complete = text.rfind('\n').map_or("", |end| &text[..end]);
        // The one after the next was begun after we were called.
        let tick = complete.lines().filter_map(|l| l.strip_prefix("TICK ")).nth(before + 1);
        if let Some(tick) = tick {
            let numbers: Vec<f64> = tick.split_whitespace().map(|n| n.parse().unwrap()).collect();
            return Tick { wall: numbers[0], uptime: numbers[1], complaints: numbers[2] as u32 };
        }
        assert!(Instant::now() < deadline, "the guest does not tick:\n{text}");
        sleep(Duration::from_millis(20));
    }
}

fn host_clock() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64()
}

#[test]
fn a_paused_guest_stands_still_and_goes_on_with_its_clock_right() {
    let Some(lab) = Lab::open() else { return };
    let script = r#"
acpid
dd if=/dev/urandom of=/data bs=64k count=16 2>/dev/null
(n=0; while :; do
    dd if=/data of=/dev/vda bs=64k conv=notrunc,fsync 2>/dev/null
    echo 3 >/proc/sys/vm/drop_caches
    dd if=/dev/vda of=/back bs=64k count=16 2>/dev/null || echo UNREADABLE
    cmp /back /data || echo DIFFERENT
    n=$((n + 1)); echo "ROUND $n"
done) &
while :; do
    bad=$(dmesg | grep -ciE 'soft lockup|rcu.*stall|hung task|clocksource: timekeeping watchdog')
    echo "TICK $(date +%s) $(cut -d' ' -f1 /proc/uptime) $bad"
    sleep 0.2
done
"#;
    let console = lab.path("console");
    let mut config = VmConfig::new(lab.asset(VMLINUX_CLOUD));
    config.initrd = Some(lab.initrd_with(FULL, script));
    config.append = "quiet".to_owned();
    config.cpus = 2;
    config.disks = vec![DiskConfig {
        id: "disk".to_owned(),
        path: lab.hole("disk.img", 1 << 20),
        ..DiskConfig::default()
    }];
    config.console = ConsoleConfig::File(console.clone());
    let vm: RunningVm = Vm::new(config).unwrap().start().unwrap();
    let before = next_tick(&console);
    eprint!("{}", vm.timeline());
    let began = Instant::now();
    let report = |what: &str| eprintln!("{:6.1} s {what}", began.elapsed().as_secs_f64());
    assert!((before.wall - host_clock()).abs() < 3.0, "{before:?} at {}", host_clock());

    vm.pause().unwrap();
    vm.pause().unwrap(); // twice is once
    // The console's worker writes what the guest said before.
    sleep(Duration::from_millis(300));
    let held = fs::metadata(&console).unwrap().len();
    sleep(Duration::from_secs(2));
    assert_eq!(fs::metadata(&console).unwrap().len(), held, "a paused guest spoke");
    vm.resume().unwrap();
    vm.resume().unwrap();

    let after = next_tick(&console);
    let (elapsed, passed) = (began.elapsed().as_secs_f64(), after.uptime - before.uptime);
    eprintln!("{elapsed:.2} s on the host, {passed:.2} s in the guest");
    assert!((passed - elapsed).abs() < 1.5, "{passed} s in the guest, {elapsed} s on the host");
    assert!((after.wall - host_clock()).abs() < 3.0, "{after:?} at {}", host_clock());
    assert_eq!(after.complaints, 0, "{}", vm.console_tail(40));

    report("paused once");

    // In between everything, also in the middle of disk requests.
    let rounds = || fs::read_to_string(&console).unwrap().matches("ROUND ").count();
    let before = rounds();
    for n in 0..soak_rounds(30, 3000) {
        vm.pause().unwrap();
        sleep(Duration::from_millis(n as u64 % 7));
        vm.resume().unwrap();
        sleep(Duration::from_millis(20 + n as u64 % 11));
    }
    report("paused often");
    let last = next_tick(&console);
    assert_eq!(last.complaints, 0, "{}", vm.console_tail(40));
    let deadline = Instant::now() + PATIENCE;
    while rounds() < before + 2 {
        assert!(Instant::now() < deadline, "the disk stands still: {}", vm.console_tail(40));
        sleep(Duration::from_millis(50));
    }
    report("the disk goes on");
    // Now, because a kernel that shuts down takes its disks away while this still writes.
    let said = fs::read_to_string(&console).unwrap();
    assert!(!said.contains("DIFFERENT") && !said.contains("UNREADABLE"), "{said}");
    let outcome = vm.stop(Duration::from_secs(60));
    report("over");
    assert!(matches!(outcome, Outcome::PowerOff), "{outcome:?}: {}", vm.console_tail(40));
    let rest = fs::read_to_string(&console).unwrap();
    eprintln!("{}", rest.get(said.len()..).unwrap_or_default());
}
