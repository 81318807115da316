//! `husk run` from start to end: exit statuses, streams, signals, configuration.

use std::io::Write;
use std::process::{Command, Stdio};
use std::time::Duration;

use husk::config::VmConfig;
use iced_x86::code_asm::{al, dx, eax, ebx, ecx, edi, edx, esi};

use crate::fixture::Emit;
use crate::fixture::assembly::{COM1, PVPANIC, RESET};
use crate::fixture::husk::{
    Running, Sandbox, broken_pipe, deaf, refuses_run, run_least as run, sandbox, start_and_wait,
    wait_for_text,
};
use crate::fixture::kernel::{bzimage, image};
use crate::fixture::process::cpu_time;
use crate::needs_kvm;

/// The options in a help text, each with the first line of what is said about it. Lines that go on
/// with the words of an option stand further to the right.
fn options(help: &str) -> Vec<(&str, &str)> {
    help.lines()
        .filter(|line| line.trim_start().starts_with('-') && !line.starts_with("       "))
        .map(|line| {
            let (names, words) = line.trim_start().split_once("  ").unwrap_or((line.trim(), ""));
            let name = names.split([' ', ',']).find(|name| name.starts_with("--"));
            (name.unwrap_or(names), words.trim())
        })
        .collect()
}

#[test]
fn the_guests_words_and_nothing_else_are_on_stdout() {
    needs_kvm!();
    let sandbox = sandbox(|a| {
        a.say("hello\n")?;
        a.power_off()
    });
    let before = sandbox.contents();
    let finished = Running::start(&mut run(&sandbox, &[])).finish();
    assert_eq!(finished.status, 0, "{finished:?}");
    assert_eq!(finished.stdout, "hello\n");
    assert_eq!(finished.stderr, "");
    assert_eq!(sandbox.contents(), before, "something was left behind");
}

#[test]
fn a_reboot_is_done_in_place_or_ends_with_0_as_wanted() {
    needs_kvm!();
    let sandbox = sandbox(|a| {
        a.say("boot\n")?;
        a.typed()?;
        a.out8(RESET, 1)?;
        a.halt()
    });
    let mut command = run(&sandbox, &["--on-reboot", "exit"]);
    let mut running = Running::start(command.stdin(Stdio::piped()));
    running.child.stdin.take().unwrap().write_all(b"x").unwrap();
    let finished = running.finish();
    assert_eq!((finished.status, finished.stdout.as_str()), (0, "boot\n"), "{finished:?}");

    let mut command = run(&sandbox, &["--timeout", "2"]);
    let mut running = Running::start(command.stdin(Stdio::piped()));
    let mut keyboard = running.child.stdin.take().unwrap();
    for _ in 0..3 {
        std::thread::sleep(Duration::from_millis(300));
        keyboard.write_all(b"x").unwrap();
    }
    let finished = running.finish();
    assert_eq!(finished.status, 124, "{finished:?}");
    assert!(finished.stdout.starts_with("boot\nboot\n"), "{finished:?}");
}

#[test]
fn a_guest_that_reboots_for_ever_is_spoken_of() {
    needs_kvm!();
    let sandbox = sandbox(|a| {
        a.out8(RESET, 1)?;
        a.halt()
    });
    let said = sandbox.path().join("said");
    let mut command = run(&sandbox, &["--grace", "0"]);
    let mut running = Running::start(command.stderr(std::fs::File::create(&said).unwrap()));
    wait_for_text(&said, "the guest has rebooted 10 times");
    running.signal(libc::SIGTERM);
    assert_eq!(running.status().code(), Some(143));
    let said = std::fs::read_to_string(said).unwrap();
    assert_eq!(said.matches("has rebooted").count(), 1, "{said}");
}

#[test]
fn a_panic_ends_with_134_and_the_last_lines_of_the_console() {
    needs_kvm!();
    let sandbox = sandbox(|a| {
        for n in 0..60 {
            a.say(&format!("line {n}\n"))?;
        }
        a.out8(PVPANIC, 1)?;
        a.out8(RESET, 1)?;
        a.halt()
    });
    let finished = Running::start(&mut run(&sandbox, &[])).finish();
    assert_eq!(finished.status, 134, "{finished:?}");
    let stderr = &finished.stderr;
    assert!(stderr.contains("panicked") && stderr.contains("last lines"), "{stderr}");
    let shown = stderr.contains("\n  | line 20\n") && stderr.contains("\n  | line 59\n");
    assert!(shown && !stderr.contains("line 19\n"), "40 lines: {stderr}");
}

#[test]
fn a_triple_fault_ends_with_134_and_a_report() {
    needs_kvm!();
    let sandbox = sandbox(|a| {
        a.say("so far so good\n")?;
        a.ud2()
    });
    let finished = Running::start(&mut run(&sandbox, &["--cpus", "2"])).finish();
    assert_eq!(finished.status, 134, "{finished:?}");
    // KVM forgets the registers on AMD's processors, and the report says so.
    let registers: &[&str] = match finished.stderr.contains("are lost") {
        true => &[],
        false => &["rip ", "cr0 ", "code 0f 0b"],
    };
    for words in ["vCPU 0", "triple fault", "so far so good"].iter().chain(registers) {
        assert!(finished.stderr.contains(words), "{words:?} is missing: {}", finished.stderr);
    }
    assert_eq!(finished.stdout, "so far so good\n");
}

#[test]
fn the_log_says_as_much_as_it_is_to() {
    needs_kvm!();
    let sandbox = sandbox(|a| a.power_off());
    let lines = |args: &[&str]| {
        let run = ["run", "--kernel", "kernel", "--memory", "32M,shared", "--rng", "off"];
        let finished = sandbox.run(&[&run[..], args].concat());
        assert_eq!(finished.status, 0, "{finished:?}");
        finished.stderr.lines().count()
    };
    assert_eq!(lines(&[]), 0);
    // A kernel that cannot be shared is a warning.
    assert_eq!(lines(&["--share-kernel"]), 1);
    assert_eq!(lines(&["--share-kernel", "--log", "error"]), 0);
    assert_eq!(lines(&["--share-kernel", "--log", "off"]), 0);
    refuses_run(&sandbox, &["--kernel", "kernel", "--log", "loud"], &["--log", "loud", "debug"]);
}

#[test]
fn a_guest_that_takes_too_long_ends_with_124() {
    needs_kvm!();
    let finished = Running::start(&mut run(&deaf(), &["--timeout", "0.5"])).finish();
    assert_eq!(finished.status, 124, "{finished:?}");
    assert_eq!(finished.stdout, "up");
    assert!(finished.stderr.contains("0.5 s"), "{}", finished.stderr);
}

#[test]
fn a_stdout_that_is_closed_or_broken_does_not_stop_the_guest() {
    needs_kvm!();
    let sandbox = sandbox(|a| {
        for _ in 0..100 {
            a.say("is anybody there?\n")?;
        }
        a.power_off()
    });
    let mut command = run(&sandbox, &[]);
    command.stdout(broken_pipe());
    let finished = Running::start(&mut command).finish();
    assert_eq!(finished.status, 0, "{finished:?}");
    assert!(finished.stderr.contains("console"), "{finished:?}");

    let husk = env!("CARGO_BIN_EXE_husk");
    let script = r#"exec "$0" run --kernel kernel --memory 32M --rng off >&- <&-"#;
    let finished = Running::start(&mut sandbox.program("sh", &["-c", script, husk])).finish();
    assert_eq!(finished.status, 0, "{finished:?}");
}

#[test]
fn a_stdout_that_nobody_reads_does_not_stop_the_guest() {
    needs_kvm!();
    // Two pipes' worth, without looking whether the transmitter is ready.
    let sandbox = sandbox(|a| {
        let mut again = a.create_label();
        a.mov(ebx, 64u32)?;
        a.address_of(|a| a.db(&[b'x'; 2048]))?;
        a.mov(edi, eax)?;
        a.cld()?;
        a.mov(edx, COM1)?;
        a.set_label(&mut again)?;
        a.mov(esi, edi)?;
        a.mov(ecx, 2048)?;
        a.rep().outsb()?;
        a.dec(ebx)?;
        a.jnz(again)?;
        a.power_off()
    });
    let (unread, output) = std::io::pipe().unwrap();
    let mut command = run(&sandbox, &[]);
    command.stdout(output);
    let finished = Running::start(&mut command).finish();
    assert_eq!(finished.status, 0, "{finished:?}");
    assert!(finished.stderr.contains("nobody reads"), "{finished:?}");
    drop(unread);
}

#[test]
fn stdin_reaches_the_guest_and_its_end_does_not_end_the_guest() {
    needs_kvm!();
    let sandbox = sandbox(|a| {
        let mut again = a.create_label();
        a.set_label(&mut again)?;
        a.typed()?;
        a.mov(edx, COM1)?;
        a.out(dx, al)?;
        a.cmp(al, i32::from(b'.'))?;
        a.jne(again)?;
        a.power_off()
    });
    let text = format!("{}.", "all of this ".repeat(50));
    // From a file, and through a pipe.
    std::fs::write(sandbox.path().join("typed"), &text).unwrap();
    let mut command = run(&sandbox, &[]);
    command.stdin(std::fs::File::open(sandbox.path().join("typed")).unwrap());
    let finished = Running::start(&mut command).finish();
    assert_eq!((finished.status, finished.stdout.as_str()), (0, text.as_str()), "{finished:?}");

    let mut command = run(&sandbox, &[]);
    let mut running = Running::start(command.stdin(Stdio::piped()));
    running.child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let finished = running.finish();
    assert_eq!((finished.status, finished.stdout.as_str()), (0, text.as_str()), "{finished:?}");

    // At its end at once: the guest goes on, until the time is over.
    let finished = Running::start(&mut run(&sandbox, &["--timeout", "0.5"])).finish();
    assert_eq!(finished.status, 124, "{finished:?}");
    assert_eq!(finished.stderr.lines().count(), 1, "{finished:?}");
}

#[test]
fn an_idle_guest_with_its_stdin_at_its_end_costs_no_time() {
    needs_kvm!();
    let sandbox = sandbox(|a| {
        a.say("up")?;
        a.halt()
    });
    let running = start_and_wait(&sandbox, &[]);
    let before = cpu_time(running.child.id());
    std::thread::sleep(Duration::from_secs(1));
    let used = cpu_time(running.child.id()) - before;
    running.signal(libc::SIGTERM);
    std::thread::sleep(Duration::from_millis(100));
    running.signal(libc::SIGTERM);
    assert_eq!(running.finish().status, 143);
    assert!(used <= Duration::from_millis(200), "{used:?} in a second");
}

#[test]
fn memory_that_the_guest_has_not_touched_costs_nothing() {
    needs_kvm!();
    let sandbox = deaf();
    let machine = ["run", "--kernel", "kernel", "--memory", "1G", "--console", "file=log"];
    let running = Running::start(&mut sandbox.husk(&machine));
    wait_for_text(&sandbox.path().join("log"), "up");
    let status = std::fs::read_to_string(format!("/proc/{}/status", running.child.id())).unwrap();
    let of = |name| status.lines().find_map(|line: &str| line.strip_prefix(name)).unwrap();
    let kib = |name| of(name).trim().trim_end_matches(" kB").parse::<u64>().unwrap();
    assert!(kib("VmSize:") > 1 << 20 && kib("VmRSS:") < 32 << 10, "{status}");
    running.signal(libc::SIGKILL);
    running.finish();
}

#[test]
fn the_console_can_be_a_file_or_nothing() {
    needs_kvm!();
    let sandbox = sandbox(|a| {
        a.say("hello")?;
        a.power_off()
    });
    let finished = Running::start(&mut run(&sandbox, &["--console", "file=log"])).finish();
    assert_eq!((finished.status, finished.stdout.as_str()), (0, ""), "{finished:?}");
    assert_eq!(std::fs::read(sandbox.path().join("log")).unwrap(), b"hello");
    let finished = Running::start(&mut run(&sandbox, &["--console", "none"])).finish();
    assert_eq!((finished.status, finished.stdout.as_str()), (0, ""), "{finished:?}");
}

#[test]
fn the_timeline_is_printed_on_stderr_at_the_end() {
    needs_kvm!();
    let sandbox = sandbox(|a| {
        a.say("x")?;
        a.power_off()
    });
    let finished = Running::start(&mut run(&sandbox, &["--timeline"])).finish();
    assert_eq!((finished.status, finished.stdout.as_str()), (0, "x"), "{finished:?}");
    for phase in ["process start", "kernel load", "first KVM_RUN", "first console byte", "exit"] {
        assert!(finished.stderr.contains(phase), "{phase:?} is missing: {}", finished.stderr);
    }
    // Milliseconds, in order.
    let times: Vec<f64> = finished
        .stderr
        .lines()
        .skip(1)
        .map(|line| line.split_whitespace().next().unwrap().parse().unwrap())
        .collect();
    assert!(times.is_sorted(), "{}", finished.stderr);
}

#[test]
fn the_printed_configuration_is_the_one_that_runs() {
    let sandbox = sandbox(|a| a.power_off());
    let args = [
        "--kernel",
        "kernel",
        "--initrd",
        "an initrd",
        "--cmdline",
        "console=ttyS0 \"quoted\"",
        "--append",
        "one",
        "--append",
        "two",
        "--cpus",
        "3",
        "--memory",
        "1.5G,shared",
        "--disk",
        "path=a,,b.img,ro,id=root",
        "--disk",
        "second",
        "--net",
        "tap=tap0,mac=52:54:00:00:00:01",
        "--rng",
        "off",
        "--console",
        "file=log",
        "--on-reboot",
        "exit",
        "--no-acpi",
        "--boot-protocol",
        "pvh",
    ];
    for args in [&args[..], &["--kernel", "kernel"]] {
        let printed = sandbox.run(&[&["run", "--print-config"], args].concat());
        assert_eq!((printed.status, printed.stderr.as_str()), (0, ""), "{printed:?}");
        sandbox.file("vm.json", &printed.stdout);
        let again = sandbox.run(&["run", "--config", "vm.json", "--print-config"]);
        assert_eq!(again.stdout, printed.stdout, "{again:?}");
        let config = VmConfig::from_json(&printed.stdout).unwrap();
        assert_eq!(config.cpus, if args.len() > 2 { 3 } else { 1 });
    }
    // An option overrides what the file says, and nothing else of it.
    sandbox.file("vm.json", r#"{"kernel": "kernel", "cpus": 2, "memory": {"size": "64M"}}"#);
    let printed = sandbox.run(&["run", "--config", "vm.json", "--cpus", "4", "--print-config"]);
    let config = VmConfig::from_json(&printed.stdout).unwrap();
    assert_eq!((config.cpus, config.memory.size.to_string()), (4, "64M".to_owned()));
}

#[test]
fn options_complete_a_file_and_append_adds_to_it() {
    let sandbox = Sandbox::new();
    sandbox.file("vm.json", r#"{"memory": "1G", "append": "of=file"}"#);
    let options = ["--kernel", "k", "--append", "of=option", "--append", "two"];
    let args = [&["run", "--config", "vm.json", "--print-config"], &options[..]].concat();
    let printed = sandbox.run(&args);
    assert_eq!(printed.status, 0, "{printed:?}");
    let config = VmConfig::from_json(&printed.stdout).unwrap();
    assert_eq!(config.kernel, std::path::Path::new("k"));
    assert_eq!(config.append, "of=file of=option two");
    assert!(printed.stdout.contains(r#""size": "1G""#), "{}", printed.stdout);
    // Without a kernel in either it is the one that is taken without a file.
    let mut command = sandbox.husk(&["run", "--config", "vm.json", "--print-config"]);
    let printed = Running::start(command.env("HUSK_KERNEL", "/some/vmlinuz")).finish();
    let config = VmConfig::from_json(&printed.stdout).unwrap();
    assert_eq!(config.kernel, std::path::Path::new("/some/vmlinuz"));
}

#[test]
fn a_configuration_file_runs() {
    needs_kvm!();
    let sandbox = sandbox(|a| {
        a.say("configured")?;
        a.power_off()
    });
    sandbox.file("vm.json", r#"{"kernel": "kernel", "memory": {"size": "32M"}, "rng": false}"#);
    let finished = sandbox.run(&["run", "--config", "vm.json"]);
    assert_eq!((finished.status, finished.stdout.as_str()), (0, "configured"), "{finished:?}");
}

#[test]
fn whoever_closes_stdout_or_stderr_has_read_enough() {
    let sandbox = sandbox(|a| a.power_off());
    sandbox.file("vmlinuz", bzimage(&image(32, |a| a.power_off())));
    for args in [
        &["run", "--kernel", "kernel", "--print-config"][..],
        &["run", "--help"],
        &["kernel", "list"],
        &["kernel", "list", "--json"],
        &["kernel", "unpack", "vmlinuz", "vmlinux"],
        &["doctor"],
        &["doctor", "--json"],
    ] {
        let read = sandbox.run(args);
        assert!(read.status <= 1 && read.stdout.len() + read.stderr.len() > 0, "{read:?}");
        let mut command = sandbox.husk(args);
        command.stdout(broken_pipe()).stderr(broken_pipe());
        assert_eq!(Running::start(&mut command).finish().status, read.status, "{args:?}");
        // Nor does husk say anything about it.
        let mut command = sandbox.husk(args);
        command.stdout(broken_pipe());
        let unread = Running::start(&mut command).finish();
        assert_eq!((unread.status, unread.stderr), (read.status, read.stderr), "{args:?}");
    }
}

#[test]
fn the_help_explains_every_option_and_fits_on_a_page_or_two() {
    let sandbox = Sandbox::new();
    // What the README tells of `husk run` is a part of it.
    let table = include_str!("../../README.md").lines().filter(|line| line.starts_with("| `--"));
    let documented: Vec<_> = table
        .flat_map(|row| row.split('`').skip(1).step_by(2))
        .filter_map(|code| code.split([' ', '[']).next().filter(|name| name.starts_with("--")))
        .collect();
    assert!(documented.contains(&"--disk"), "{documented:?}");
    for help in [["run", "--help"], ["run", "-h"], ["help", "run"]] {
        let finished = sandbox.run(&help);
        assert_eq!((finished.status, finished.stderr.as_str()), (0, ""), "{finished:?}");
        let options = options(&finished.stdout);
        for name in documented.iter().chain(&["--kernel", "--help"]) {
            assert!(options.iter().any(|(known, _)| known == name), "{name}: {options:?}");
        }
        for (name, words) in &options {
            assert!(words.starts_with(char::is_uppercase), "{name} is not explained: {words:?}");
        }
        let part =
            |heading: &str| finished.stdout.split_once(&format!("\n{heading}:\n")).unwrap().1;
        assert!(part("Devices").contains("--disk") && !part("Devices").contains("--kernel"));
        assert!(part("A command in the guest").contains("--root"));
        let lines = finished.stdout.lines().count();
        assert!(lines < 100, "{help:?} has {lines} lines");
        let widest = finished.stdout.lines().map(str::len).max().unwrap();
        assert!(widest <= 110, "{help:?} is {widest} wide");
    }
    assert!(sandbox.run(&["--help"]).stdout.contains("To begin: `husk doctor`"));
    assert_eq!(sandbox.run(&["help"]).stdout, sandbox.run(&["--help"]).stdout);
    let none = sandbox.run(&["help", "walk"]);
    assert!(none.status == 125 && none.stderr.contains("walk"), "{none:?}");
    assert!(sandbox.run(&["--version"]).stdout.starts_with("husk "));
}

#[test]
fn a_kernel_without_a_pvh_note_is_not_entered_by_pvh() {
    needs_kvm!();
    let sandbox = Sandbox::new();
    sandbox.file("kernel", image(64, |a| a.power_off()));
    let finished = Running::start(&mut run(&sandbox, &["--boot-protocol", "pvh"])).finish();
    assert_eq!(finished.status, 125, "{finished:?}");
    assert!(finished.stderr.contains("kernel") && finished.stderr.contains("PVH"), "{finished:?}");
    let finished = Running::start(&mut run(&sandbox, &["--boot-protocol", "linux64"])).finish();
    assert_eq!(finished.status, 0, "{finished:?}");
}

#[test]
fn a_console_file_the_vm_is_made_of_is_refused_and_untouched() {
    needs_kvm!();
    let sandbox = Sandbox::with_kernel();
    sandbox.file("disk", [7; 512]);
    for name in ["disk", "kernel"] {
        let before = sandbox.contents();
        let console = format!("file={name}");
        let ended = run(&sandbox, &["--disk", "disk", "--console", &console]);
        let ended = { ended }.output().unwrap();
        assert_eq!(ended.status.code(), Some(125));
        assert!(String::from_utf8_lossy(&ended.stderr).contains("the VM needs it"));
        assert_eq!(sandbox.contents(), before);
    }
}

#[test]
fn a_start_that_fails_leaves_the_console_file_as_it_was() {
    needs_kvm!();
    let sandbox = Sandbox::with_kernel();
    sandbox.file("log", "of the last time");
    let long = "x".repeat(10_000);
    for console in ["file=log", "file=new"] {
        let ended =
            sandbox.run(&["run", "--kernel", "kernel", "--append", &long, "--console", console]);
        assert_eq!(ended.status, 125);
    }
    assert_eq!(std::fs::read(sandbox.path().join("log")).unwrap(), b"of the last time");
    assert!(!sandbox.path().join("new").exists());
}

#[test]
fn a_console_fifo_without_a_reader_is_an_error_and_no_hang() {
    needs_kvm!();
    let sandbox = Sandbox::with_kernel();
    let made = Command::new("mkfifo").arg(sandbox.path().join("fifo")).status().unwrap();
    assert!(made.success());
    let ended = sandbox.run(&["run", "--kernel", "kernel", "--console", "file=fifo"]);
    assert_eq!(ended.status, 125);
    assert!(ended.stderr.contains("fifo"), "{}", ended.stderr);
}

#[test]
fn a_stderr_nobody_reads_does_not_keep_husk_from_ending() {
    needs_kvm!();
    let sandbox = deaf();
    let (_nobody, mut stderr) = std::io::pipe().unwrap();
    // Full, so that every word of husk's would block.
    let full = [b'#'; 1 << 16];
    stderr.write_all(&full).unwrap();
    let mut command = run(&sandbox, &["--timeout", "0.5", "--timeline", "--console", "none"]);
    let mut running = Running::start(command.stderr(Stdio::from(stderr)));
    assert_eq!(running.status().code(), Some(124));
}

#[test]
fn what_a_dead_guest_wrote_cannot_command_the_terminal() {
    needs_kvm!();
    let sandbox = sandbox(|a| {
        a.say("\u{1b}]0;title\u{7}plain")?;
        a.ud2()
    });
    let ended = run(&sandbox, &["--console", "none"]).output().unwrap();
    let stderr = String::from_utf8_lossy(&ended.stderr);
    assert_eq!(ended.status.code(), Some(134), "{stderr}");
    assert!(stderr.contains("plain") && !stderr.contains('\u{1b}'), "{stderr}");
}

#[test]
fn a_kernel_that_cannot_be_shared_is_complained_of_once_however_often_the_guest_reboots() {
    needs_kvm!();
    let sandbox = sandbox(|a| {
        let mut off = a.create_label();
        a.say("boot\n")?;
        a.typed()?;
        a.cmp(al, i32::from(b'q'))?;
        a.je(off)?;
        a.out8(RESET, 1)?;
        a.halt()?;
        a.set_label(&mut off)?;
        a.power_off()
    });
    let mut command = sandbox.husk(&[
        "run",
        "--kernel",
        "kernel",
        "--memory",
        "32M,shared",
        "--share-kernel",
        "--rng",
        "off",
    ]);
    let mut running = Running::start(command.stdin(Stdio::piped()));
    let mut keyboard = running.child.stdin.take().unwrap();
    for key in [b"x", b"x", b"q"] {
        std::thread::sleep(Duration::from_millis(500));
        keyboard.write_all(key).unwrap();
    }
    let finished = running.finish();
    assert_eq!(
        (finished.status, finished.stdout.as_str()),
        (0, "boot\nboot\nboot\n"),
        "{finished:?}"
    );
    assert_eq!(finished.stderr.matches("cannot be shared").count(), 1, "{finished:?}");
}

#[test]
fn a_console_file_that_may_not_grow_does_not_end_the_guest() {
    needs_kvm!();
    let sandbox = sandbox(|a| {
        for _ in 0..100 {
            a.say("is there any room left?\n")?;
        }
        a.power_off()
    });
    let husk = env!("CARGO_BIN_EXE_husk");
    let script = r#"ulimit -f 1; exec "$0" run --kernel kernel --rng off --console file=log"#;
    let finished = Running::start(&mut sandbox.program("sh", &["-c", script, husk])).finish();
    assert_eq!(finished.status, 0, "{finished:?}");
    assert!(sandbox.path().join("log").metadata().unwrap().len() <= 1024);
}
