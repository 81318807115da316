//! Bad input to the husk command: exit status 125, an error that names the thing and the way out,
//! nothing on stdout, nothing left behind.

use crate::fixture;
use crate::fixture::husk::{Finished, Running, Sandbox, broken_pipe, refuses, refuses_run, sparse};
use crate::needs_kvm;

/// `husk run --config` with this text must be refused with `words`.
#[track_caller]
fn refuses_json(text: &str, words: &[&str]) -> Finished {
    let sandbox = Sandbox::with_kernel();
    let file = sandbox.file("vm.json", text);
    refuses_run(&sandbox, &["--config", &file], &[&["vm.json"], words].concat())
}

#[test]
fn without_a_kernel_the_places_that_were_looked_at_are_listed() {
    let sandbox = Sandbox::new();
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    if !std::path::Path::new(&format!("/boot/vmlinuz-{}", release.trim())).exists() {
        refuses_run(
            &sandbox,
            &[],
            &[
                "no kernel",
                "--kernel",
                "husk kernel fetch",
                "$HUSK_KERNEL",
                ".local/share/husk/kernels",
                release.trim(),
            ],
        );
    }
    if fixture::kvm_or_skip() {
        let mut command = sandbox.husk(&["run"]);
        command.env("HUSK_KERNEL", "/nowhere/vmlinuz");
        refuses(&sandbox, command, &["/nowhere/vmlinuz", "No such file"]);
    }
}

#[test]
fn an_initrd_that_cannot_be_used_is_named() {
    needs_kvm!();
    let sandbox = Sandbox::with_kernel();
    std::fs::create_dir(sandbox.path().join("directory")).unwrap();
    sparse(&sandbox.path().join("huge"), 64 << 20);
    let run = |name: &str, words: &[&str]| {
        let args = ["--kernel", "kernel", "--memory", "32M", "--initrd", name];
        refuses_run(&sandbox, &args, &[&["initrd", name], words].concat());
    };
    run("missing", &["No such file"]);
    run("directory", &["a directory"]);
    run("huge", &["64.0 MiB", "room for", "more memory"]);
}

#[test]
fn a_command_line_longer_than_the_kernel_takes_is_refused_with_the_limit() {
    needs_kvm!();
    let sandbox = Sandbox::with_kernel();
    let long = "x".repeat(3000);
    refuses_run(&sandbox, &["--kernel", "kernel", "--cmdline", &long], &["command line", "2047"]);
    refuses_run(&sandbox, &["--kernel", "kernel", "--append", &long], &["command line", "2047"]);
    refuses_run(&sandbox, &["--kernel", "kernel", "--append", "a\nb"], &["command line"]);
}

#[test]
fn numbers_of_cpus_that_cannot_be_are_refused() {
    let sandbox = Sandbox::with_kernel();
    for cpus in ["0", "65", "4294967295"] {
        refuses_run(
            &sandbox,
            &["--kernel", "kernel", "--cpus", cpus],
            &["--cpus", cpus, "1 to 64"],
        );
    }
    // One more than both husk and this host's KVM allow.
    let report = sandbox.run(&["doctor", "--json"]);
    let report: husk::doctor::Report = serde_json::from_str(&report.stdout).unwrap();
    if let Some(most) = report.max_vcpus {
        let cpus = (most + 1).to_string();
        let words = &["--cpus", &cpus, &format!("{most}")];
        refuses_run(&sandbox, &["--kernel", "kernel", "--cpus", &cpus], words);
    }
    for cpus in ["-1", "two", "4294967296", "1.5", ""] {
        let words = &["--cpus", cpus, "a number of vCPUs"];
        refuses_run(&sandbox, &["--kernel", "kernel", "--cpus", cpus], words);
    }
}

#[test]
fn amounts_of_memory_that_cannot_be_are_refused() {
    let sandbox = Sandbox::with_kernel();
    let run = |memory: &str, words: &[&str]| {
        let args = ["--kernel", "kernel", "--memory", memory];
        refuses_run(&sandbox, &args, &[&["--memory"], words].concat());
    };
    run("0", &["at least 32M"]);
    run("1M", &["1M", "at least 32M"]);
    run("4097K", &["4097K", "at least 32M"]);
    run("32769K", &["32769K", "multiple of 4 KiB"]);
    run("18446744073709551615", &["18446744073709551615", "at most 16T"]);
    run("18446744073709551616", &["is not a size", "512M"]);
    run("33M,hugepages", &["multiple of 2 MiB"]);
    run("lots", &["lots", "512M"]);
    run("512M,hugepage", &["hugepage", "did you mean `hugepages`"]);
    run("", &["--memory"]);
}

#[test]
fn more_memory_than_the_host_has_is_refused_with_what_it_has() {
    needs_kvm!();
    let sandbox = Sandbox::with_kernel();
    let args = ["--kernel", "kernel", "--memory", "15T"];
    refuses_run(&sandbox, &args, &["--memory 15T", "this host has"]);
}

#[test]
fn huge_pages_the_host_does_not_have_are_refused_with_the_command_that_reserves_them() {
    needs_kvm!();
    let sandbox = Sandbox::with_kernel();
    let args = ["--kernel", "kernel", "--memory", "1T,hugepages"];
    refuses_run(&sandbox, &args, &["hugepages", "sysctl vm.nr_hugepages=524288"]);
}

#[test]
fn a_configuration_file_with_a_mistake_is_named_with_the_place_of_the_mistake() {
    refuses_json("", &["line 1"]);
    refuses_json("{", &["line 1"]);
    refuses_json("{\n  \"kernel\": \"kernel\",\n}", &["line 3"]);
    refuses_json("[]", &["line 1"]);
    refuses_json(r#"{"kernel": "kernel"} more"#, &["line 1"]);
    refuses_json(r#"{"kernel": "kernel", "kernel": "kernel"}"#, &["duplicate", "kernel"]);
}

#[test]
fn an_unknown_key_is_refused_with_the_nearest_known_one() {
    for (wrong, right) in [
        (r#""cpu": 2"#, "`cpus`"),
        (r#""memroy": {"size": "1G"}"#, "`memory`"),
        (r#""memory": {"sise": "1G"}"#, "`size`"),
        (r#""disks": [{"path": "d", "read_only": true}]"#, "`readonly`"),
        (r#""nets": [{"tapp": "t"}]"#, "`tap`"),
        (r#""on_reboot": "restrat""#, "`restart`"),
    ] {
        let text = format!(r#"{{"kernel": "kernel", {wrong}}}"#);
        refuses_json(&text, &["did you mean", right]);
    }
    let finished = refuses_json(r#"{"kernel": "kernel", "xyzzy": 1}"#, &["xyzzy"]);
    assert!(!finished.stderr.contains("did you mean"), "{}", finished.stderr);
}

#[test]
fn a_value_of_the_wrong_type_is_refused() {
    for wrong in [
        r#""cpus": "two""#,
        r#""cpus": -1"#,
        r#""cpus": 1.5"#,
        r#""memory": "1X""#,
        r#""memory": ["1G"]"#,
        r#""memory": {"size": true}"#,
        r#""memory": {"size": -1}"#,
        r#""memory": {"size": "1X"}"#,
        r#""disks": {}"#,
        r#""rng": "on""#,
        r#""append": null"#,
    ] {
        refuses_json(&format!(r#"{{"kernel": "kernel", {wrong}}}"#), &["line 1"]);
    }
}

#[test]
fn a_configuration_file_that_cannot_be_read_is_named() {
    let sandbox = Sandbox::with_kernel();
    refuses_run(&sandbox, &["--config", "missing.json"], &["missing.json", "No such file"]);
    refuses_run(&sandbox, &["--config", "."], &["directory"]);
    sandbox.file("noise.json", [0xff, 0xfe]);
    refuses_run(&sandbox, &["--config", "noise.json"], &["noise.json", "UTF-8"]);
}

#[test]
fn a_configuration_file_that_never_ends_is_refused_and_not_read() {
    let sandbox = Sandbox::with_kernel();
    refuses_run(&sandbox, &["--config", "/dev/zero"], &["/dev/zero", "a device"]);
    let fifo = sandbox.path().join("fifo");
    assert!(std::process::Command::new("mkfifo").arg(fifo).status().unwrap().success());
    refuses_run(&sandbox, &["--config", "fifo"], &["fifo", "a pipe"]);
    sparse(&sandbox.path().join("long"), (1 << 20) + 1);
    refuses_run(&sandbox, &["--config", "long"], &["long", "longer than 1024 KiB"]);
}

#[test]
fn the_configuration_file_is_not_emptied_for_the_console() {
    let sandbox = Sandbox::with_kernel();
    sandbox.file("vm.json", r#"{"kernel": "kernel"}"#);
    std::os::unix::fs::symlink("vm.json", sandbox.path().join("link")).unwrap();
    for console in ["file=vm.json", "file=link"] {
        let args = ["--config", "vm.json", "--console", console];
        refuses_run(&sandbox, &args, &["console", "the --config file vm.json"]);
    }
}

#[test]
fn a_path_that_json_cannot_hold_is_named() {
    use std::os::unix::ffi::OsStrExt;
    let sandbox = Sandbox::with_kernel();
    let name = std::ffi::OsStr::from_bytes(b"k\xffernel");
    let mut command = sandbox.husk(&["run", "--print-config", "--kernel"]);
    command.arg(name);
    refuses(&sandbox, command, &[r"k\xFFernel", "UTF-8"]);
    let mut command = sandbox.husk(&["kernel", "list", "--json"]);
    command.env("HUSK_KERNEL", name);
    refuses(&sandbox, command, &[r"k\xFFernel", "UTF-8"]);
}

#[test]
fn what_was_typed_or_read_cannot_command_the_terminal() {
    let sandbox = Sandbox::with_kernel();
    let title = "\u{1b}]0;title\u{7}";
    let mut ended = vec![
        refuses_run(&sandbox, &["--kernel", "kernel", "--disk", &format!("x,{title}")], &[]),
        refuses_run(&sandbox, &[&format!("--{title}")], &[]),
        refuses_run(&sandbox, &["--config", &format!("{title}.json")], &[".json"]),
        refuses_json(r#"{"\u001b]0;title\u0007": 1}"#, &["title"]),
        refuses(&sandbox, sandbox.husk(&["kernel", "unpack", title, "out"]), &["title"]),
    ];
    let mut command = sandbox.husk(&["kernel", "list"]);
    ended.push(Running::start(command.env("HUSK_KERNEL", format!("/x/{title}"))).finish());
    for ended in ended {
        let said = ended.stdout + &ended.stderr;
        assert!(!said.is_empty() && !said.contains(['\u{1b}', '\u{7}']), "{said:?}");
    }
}

#[test]
fn what_is_wrong_by_itself_is_not_printed_as_a_configuration() {
    let sandbox = Sandbox::with_kernel();
    for (wrong, words) in [
        (r#""disks": [{"path": ""}]"#, ["disk0", "empty"]),
        (r#""console": {"file": ""}"#, ["console file", "empty"]),
        (r#""initrd": """#, ["initrd", "empty"]),
        (r#""initrd": "a\u0000b""#, ["initrd", "NUL"]),
        (r#""cmdline": "a\nb""#, ["command line", "printable"]),
        (r#""append": "a\nb""#, ["command line", "printable"]),
    ] {
        sandbox.file("vm.json", format!(r#"{{"kernel": "kernel", {wrong}}}"#));
        refuses_run(&sandbox, &["--print-config", "--config", "vm.json"], &words);
    }
    sandbox.file("vm.json", r#"{"kernel": "a\u0000b"}"#);
    let words = ["kernel", "NUL"];
    refuses_run(&sandbox, &["--print-config", "--config", "vm.json"], &words);
}

#[test]
fn a_number_that_is_too_large_or_too_small_is_refused_with_its_range() {
    refuses_json(r#"{"cpus": 4294967296}"#, &["`4294967296`", "from 0 to 4294967295"]);
    refuses_json(r#"{"cpus": -1}"#, &["`-1`", "from 0 to 4294967295"]);
    refuses_json(r#"{"nets": [{"fd": 2147483648}]}"#, &["to 2147483647"]);
}

#[test]
fn two_devices_with_one_id_are_refused() {
    let sandbox = Sandbox::with_kernel();
    sandbox.file("disk", [0; 512]);
    let kernel = ["--kernel", "kernel"];
    for devices in [
        ["--disk", "disk,id=a", "--disk", "disk,id=a"],
        ["--disk", "disk,id=a", "--net", "tap=t0,id=a"],
        // One that is named as the other is by default.
        ["--disk", "disk,id=disk1", "--disk", "disk"],
    ] {
        let words = if devices[1].contains("disk1") { "`disk1`" } else { "`a`" };
        refuses_run(&sandbox, &[&kernel[..], &devices].concat(), &["two devices", words, "id="]);
    }
}

#[test]
fn more_devices_than_interrupts_are_refused() {
    let sandbox = Sandbox::with_kernel();
    let mut args = vec!["--kernel", "kernel", "--rng", "off"];
    args.extend(["--disk", "disk"].repeat(19));
    refuses_run(&sandbox, &args, &["19", "interrupts for 18"]);
}

#[test]
fn devices_that_make_no_sense_are_refused() {
    let sandbox = Sandbox::with_kernel();
    for (device, words) in [
        (["--disk", "pth=x"], "did you mean `path`"),
        (["--disk", "ro"], "path=FILE"),
        (["--disk", "x,id=no spaces"], "no spaces"),
        (["--disk", "x,id=rng"], "two devices are called `rng`"),
        (["--disk", "x,id=a-name-that-is-too-long"], "1 to 20"),
        (["--net", "mac=52:54:00:12:34:56"], "tap=NAME, fd=N, user and link=NAME"),
        (["--net", "tap=t,fd=3"], "tap=NAME, fd=N, user and link=NAME"),
        (["--net", "tap=a-very-long-interface-name"], "1 to 15 bytes"),
        (["--net", "tap=t,mac=53:54:00:12:34:56"], "53:54:00:12:34:56"),
        (["--net", "tap=t,mac=junk"], "52:54:00:12:34:56"),
        (["--net", "fd=three"], "fd=three"),
        (["--net", "link=../up"], "../up"),
        (["--net", "user,queues=2"], "queues"),
        (["--net", "user,vhost=on"], "vhost"),
        (["--net", "tap=t,vhost=perhaps"], "vhost=perhaps"),
        (["--net", "tap=t,rx_bandwidth=0"], "limit"),
        (["--publish", "8080:80"], "--net user"),
        (["--publish", "8080"], "HOST:GUEST"),
        (["--console", "screen"], "stdio"),
        (["--on-reboot", "never"], "restart"),
        (["--rng", "maybe"], "on or off"),
        (["--boot-protocol", "bios"], "linux64"),
        (["--grace", "-1"], "a number of seconds is wanted"),
        (["--timeout", "1e30"], "a number of seconds is wanted"),
        (["--timeout", "soon"], "seconds"),
        (["--append", "virtio_mmio.device=4K@0xd0000000:6"], "describes its devices"),
    ] {
        refuses_run(&sandbox, &[&["--kernel", "kernel"], &device[..]].concat(), &[words]);
    }
}

#[test]
fn a_console_file_that_cannot_be_made_is_named() {
    needs_kvm!();
    let sandbox = Sandbox::with_kernel();
    let args = ["--kernel", "kernel", "--console", "file=nowhere/log"];
    refuses_run(&sandbox, &args, &["console", "nowhere/log", "No such file"]);
}

#[test]
fn an_unknown_option_or_subcommand_is_refused_with_the_nearest_known_one() {
    let sandbox = Sandbox::with_kernel();
    refuses_run(&sandbox, &["--kernle", "kernel"], &["--kernle", "--kernel"]);
    refuses_run(&sandbox, &["--kernel", "kernel", "--cups", "2"], &["--cups", "--cpus"]);
    refuses_run(&sandbox, &["./vmlinuz"], &["husk run --kernel ./vmlinuz"]);
    refuses_run(&sandbox, &["--kernel"], &["--kernel"]);
    refuses(&sandbox, sandbox.husk(&["rum"]), &["rum", "run"]);
    refuses(&sandbox, sandbox.husk(&[]), &["run"]);
}

#[test]
fn an_error_that_nobody_reads_is_still_an_exit_status() {
    let sandbox = Sandbox::with_kernel();
    for args in [&["run", "--cpus", "0", "--kernel", "kernel"][..], &["run", "--nonsense"]] {
        let mut command = sandbox.husk(args);
        command.stderr(broken_pipe());
        assert_eq!(Running::start(&mut command).finish().status, 125, "{args:?}");
    }
}
