//! What the host does not give: KVM, disks, network interfaces. Exit status 125, an error that names
//! the thing and the way out, nothing on stdout, nothing left behind.

use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};

use crate::fixture::husk::{Running, Sandbox, refuses, refuses_run, wait_for_text};
use crate::fixture::kernel::image;
use crate::fixture::{self, Emit};
use crate::needs_kvm;

#[test]
fn a_disk_that_cannot_be_used_is_named_with_the_way_out() {
    needs_kvm!();
    let sandbox = Sandbox::with_kernel();
    std::fs::create_dir(sandbox.path().join("directory")).unwrap();
    sandbox.file("disk", [0; 512]);
    let run = |disk: &[&str], words: &[&str]| {
        refuses_run(&sandbox, &[&["--kernel", "kernel"], disk].concat(), words);
    };
    run(&["--disk", "missing.img"], &["disk missing.img", "No such file"]);
    run(&["--disk", "directory"], &["disk directory", "a directory", "raw image"]);
    run(&["--disk", "directory,ro"], &["disk directory", "a directory"]);
    run(&["--disk", "/dev/null"], &["disk /dev/null"]);
    // Opened twice, once for writing.
    let words = &["disk disk", "in use", "read-only"];
    run(&["--disk", "disk", "--disk", "disk"], words);
    run(&["--disk", "disk,ro", "--disk", "disk"], words);
    run(&["--disk", "disk", "--disk", "disk,ro"], words);
}

#[test]
fn a_disk_in_use_by_another_husk_is_refused_and_two_readers_are_not() {
    needs_kvm!();
    let sandbox = Sandbox::new();
    sandbox.file("disk", [0; 512]);
    sandbox.file(
        "kernel",
        image(32, |a| {
            a.say("up")?;
            a.spin()
        }),
    );
    sandbox.file("off", image(32, |a| a.power_off()));
    for (first, second, may) in [
        ("disk", "disk", false),
        ("disk", "disk,ro", false),
        ("disk,ro", "disk", false),
        ("disk,ro", "disk,ro", true),
    ] {
        let args = ["run", "--kernel", "kernel", "--console", "file=log", "--disk", first];
        let mut running = Running::start(&mut sandbox.husk(&args));
        fixture::husk::wait_for_text(&sandbox.path().join("log"), "up");
        let args = ["--kernel", "off", "--disk", second];
        if may {
            assert_eq!(sandbox.run(&[&["run"], &args[..]].concat()).status, 0);
        } else {
            refuses_run(&sandbox, &args, &["disk disk", "in use"]);
        }
        running.child.kill().unwrap();
        running.status();
        std::fs::remove_file(sandbox.path().join("log")).unwrap();
    }
}

#[test]
fn a_network_descriptor_that_is_no_tap_is_refused() {
    needs_kvm!();
    let sandbox = Sandbox::with_kernel();
    refuses_run(&sandbox, &["--kernel", "kernel", "--net", "fd=77,id=lan"], &["77", "lan"]);
    refuses_run(&sandbox, &["--kernel", "kernel", "--net", "fd=0,id=lan"], &["TAP"]);
}

#[test]
fn without_passt_or_vhost_net_the_way_out_is_named() {
    needs_kvm!();
    let sandbox = Sandbox::with_kernel();
    let mut husk = sandbox.husk(&["run", "--kernel", "kernel", "--net", "user,id=lan"]);
    husk.env("PATH", sandbox.path());
    refuses(&sandbox, husk, &["lan", "apt install passt"]);
    if std::path::Path::new("/dev/vhost-net").exists() {
        fixture::skipped("there is a /dev/vhost-net here");
        return;
    }
    // The TAP comes before it.
    let script = "ip tuntap add husktap mode tap";
    let allowed = Command::new("unshare").args(["--net", "sh", "-c", script]).output();
    if !allowed.is_ok_and(|done| done.status.success()) {
        fixture::skipped("no TAP can be made here");
        return;
    }
    let script = format!(r#"{script}; exec "$0" "$@" --net tap=husktap,vhost=on"#);
    let husk = env!("CARGO_BIN_EXE_husk");
    let args = ["--net", "sh", "-ec", &script, husk, "run", "--kernel", "kernel"];
    refuses(&sandbox, sandbox.program("unshare", &args), &["vhost=on", "modprobe vhost_net"]);
}

#[test]
fn a_link_has_two_ends() {
    needs_kvm!();
    let sandbox = Sandbox::new();
    let spin = image(32, |a| {
        a.say("up")?;
        a.spin()
    });
    sandbox.file("kernel", spin);
    let runtime = tempfile::tempdir().unwrap();
    let husk = |console: &str| {
        let args = ["run", "--kernel", "kernel", "--console", console, "--net", "link=lab"];
        let mut husk = sandbox.husk(&args);
        husk.env("XDG_RUNTIME_DIR", runtime.path());
        husk
    };
    let mut first = Running::start(&mut husk("file=first"));
    wait_for_text(&sandbox.path().join("first"), "up");
    let mut second = Running::start(&mut husk("file=second"));
    wait_for_text(&sandbox.path().join("second"), "up");
    refuses(&sandbox, husk("none"), &["link lab", "two VMs", "another name"]);
    first.child.kill().unwrap();
    first.status();
    let mut third = Running::start(&mut husk("file=third"));
    wait_for_text(&sandbox.path().join("third"), "up");
    for running in [&mut second, &mut third] {
        running.child.kill().unwrap();
        running.status();
    }
}

#[test]
fn no_descriptor_of_husks_own_is_taken_for_an_inherited_tap() {
    needs_kvm!();
    let sandbox = Sandbox::with_kernel();
    let tap = format!("tap=huskf{}", std::process::id());
    for number in 3..40 {
        let fd = format!("fd={number}");
        let args = ["--kernel", "kernel", "--net", &tap, "--net", &fd];
        refuses_run(&sandbox, &args, &[&format!("net1: descriptor {number} is not a TAP")]);
    }
}

#[test]
fn an_interface_that_is_no_tap_is_said_to_be_none() {
    needs_kvm!();
    let sandbox = Sandbox::with_kernel();
    let args = ["--kernel", "kernel", "--net", "tap=lo"];
    let finished = sandbox.run(&[&["run"], &args[..]].concat());
    if finished.stderr.contains("/dev/net/tun") || finished.stderr.contains("no permission") {
        fixture::skipped("husk may not use TAPs here");
        return;
    }
    refuses_run(&sandbox, &args, &["net0: lo is", "no TAP"]);
}

#[test]
fn too_many_open_files_are_answered_with_the_remedy() {
    needs_kvm!();
    let sandbox = Sandbox::with_kernel();
    let husk = env!("CARGO_BIN_EXE_husk");
    let mut refused = 0;
    for limit in 6..30 {
        let script = format!(r#"ulimit -n {limit}; exec "$0" run --kernel kernel --memory 32M"#);
        let command = &mut sandbox.program("sh", &["-c", &script, husk]);
        let finished = Running::start(command).finish();
        if finished.status != 0 {
            assert_eq!(finished.status, 125, "{limit}: {finished:?}");
            assert!(finished.stderr.contains("`ulimit -n`"), "{limit}: {finished:?}");
            refused += 1;
        }
    }
    assert!(refused > 0);
}

#[test]
fn without_permission_a_tap_and_a_disk_are_refused_by_name() {
    needs_kvm!();
    let sandbox = Sandbox::with_kernel();
    std::fs::set_permissions(sandbox.path(), PermissionsExt::from_mode(0o755)).unwrap();
    sandbox.file("secret", [0; 512]);
    let secret = sandbox.path().join("secret");
    std::fs::set_permissions(secret, PermissionsExt::from_mode(0o600)).unwrap();
    // As nobody, who may use KVM.
    let script = |args: &str| {
        format!(
            r#"mount -t tmpfs none /mnt; mknod /mnt/kvm c 10 232; chmod 666 /mnt/kvm
               mount --bind /mnt/kvm /dev/kvm
               exec setpriv --reuid=65534 --regid=65534 --clear-groups "$0" "$@" {args}"#
        )
    };
    let probe = script("--cpus 0").replace(r#""$0""#, "sh -c 'exec 3<>/dev/kvm' -");
    let Some(mut command) = in_mount_namespace(&sandbox, &probe) else { return };
    if !command.stderr(Stdio::null()).status().is_ok_and(|status| status.success()) {
        fixture::skipped("no other user can be given a /dev/kvm here");
        return;
    }
    for (args, words) in [
        ("--disk secret", &["disk secret", "ermission denied"][..]),
        ("--initrd secret", &["initrd secret", "ermission denied"]),
        ("--net tap=husk-no-such", &["husk-no-such"]),
    ] {
        if let Some(command) = in_mount_namespace(&sandbox, &script(args)) {
            refuses(&sandbox, command, words);
        }
    }
    // The host's own networks need none.
    if Command::new("passt").arg("--version").output().is_err() {
        fixture::skipped("there is no passt here");
    } else if let Some(mut command) = in_mount_namespace(&sandbox, &script("--net user")) {
        let finished = Running::start(&mut command).finish();
        assert_eq!(finished.status, 0, "{finished:?}");
    }
    let taps = std::fs::read_to_string("/proc/net/dev").unwrap();
    assert!(!taps.contains("husk-no-such"), "an interface was left behind");
}

#[test]
fn who_may_open_tun_is_told_what_makes_a_tap_of_his_own() {
    needs_kvm!();
    let sandbox = Sandbox::with_kernel();
    std::fs::set_permissions(sandbox.path(), PermissionsExt::from_mode(0o755)).unwrap();
    // As nobody, in a network namespace of its own with a TAP of root's.
    let script = |program: &str, args: &str| {
        format!(
            r#"mount -t tmpfs none /mnt; mknod /mnt/kvm c 10 232; mknod /mnt/tun c 10 200
               chmod 666 /mnt/*; mount --bind /mnt/kvm /dev/kvm; mount --bind /mnt/tun /dev/net/tun
               exec unshare --net sh -ec 'ip tuntap add roots mode tap user 0
                   exec setpriv --reuid=65534 --regid=65534 --clear-groups {program} {args}' "$0" "$@""#
        )
    };
    let probe = script("sh -c \"exec 3<>/dev/kvm 4<>/dev/net/tun\"", "");
    let Some(mut command) = in_mount_namespace(&sandbox, &probe) else { return };
    if !command.stderr(Stdio::null()).status().is_ok_and(|status| status.success()) {
        fixture::skipped("no other user can be given /dev/kvm and TAPs here");
        return;
    }
    for name in ["roots", "none-such"] {
        let script = script(r#""$0" "$@""#, &format!("--net tap={name}"));
        let Some(command) = in_mount_namespace(&sandbox, &script) else { return };
        let words = [name, "no permission", "ip tuntap add", "CAP_NET_ADMIN"];
        refuses(&sandbox, command, &words);
    }
}

#[test]
fn a_tap_that_husk_made_is_gone_whatever_ends_husk() {
    needs_kvm!();
    let sandbox = Sandbox::new();
    sandbox.file(
        "kernel",
        image(32, |a| {
            a.say("up")?;
            a.spin()
        }),
    );
    fixture::husk::sparse(&sandbox.path().join("huge"), 64 << 20);
    let tap = format!("husk{}", std::process::id());
    let interface = std::path::Path::new("/sys/class/net").join(&tap);
    let net = format!("tap={tap}");
    let args = ["--kernel", "kernel", "--memory", "32M", "--net", &net];

    let up = [&["run"], &args[..], &["--console", "file=log"]].concat();
    let mut running = Running::start(&mut sandbox.husk(&up));
    let log = sandbox.path().join("log");
    while !std::fs::read(&log).is_ok_and(|said| said.starts_with(b"up")) {
        if running.child.try_wait().unwrap().is_some() {
            let finished = running.finish();
            assert!(finished.stderr.contains(&tap), "{finished:?}");
            fixture::skipped("husk may not make a TAP here");
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    assert!(interface.exists(), "husk has made no TAP");
    running.child.kill().unwrap();
    running.status();
    assert!(!interface.exists(), "left behind after a SIGKILL");
    std::fs::remove_file(log).unwrap();

    // Failures of later steps: a second interface, the console, the kernel's parameters, its initrd.
    let long = "x".repeat(3000);
    for (late, words) in [
        (["--net", "fd=77"], "77"),
        (["--net", net.as_str()], tap.as_str()),
        (["--console", "file=nowhere/log"], "nowhere/log"),
        (["--append", long.as_str()], "command line"),
        (["--initrd", "huge"], "more memory"),
    ] {
        refuses_run(&sandbox, &[&args[..], &late].concat(), &[words]);
        assert!(!interface.exists(), "left behind after a failure: {late:?}");
    }
}

/// Runs `sh -c script` in a mount namespace of its own, with husk as `$0` and `run --kernel kernel`
/// after it; `None`, visibly, where that is not allowed.
fn in_mount_namespace(sandbox: &Sandbox, script: &str) -> Option<Command> {
    let allowed = |flags: &str| {
        let test = ["--mount", flags, "sh", "-c", "mount -t tmpfs none /mnt"];
        Command::new("unshare")
            .args(test)
            .stderr(Stdio::null())
            .status()
            .is_ok_and(|status| status.success())
    };
    let Some(flags) = ["--propagation=private", "--map-root-user"].into_iter().find(|f| allowed(f))
    else {
        fixture::skipped("mount namespaces are not allowed here");
        return None;
    };
    let husk = env!("CARGO_BIN_EXE_husk");
    let args = ["--mount", flags, "sh", "-ec", script, husk, "run", "--kernel", "kernel"];
    Some(sandbox.program("unshare", &args))
}

#[test]
fn without_dev_kvm_the_error_says_how_to_get_it() {
    let sandbox = Sandbox::with_kernel();
    let script = r#"mount -t tmpfs none /dev; exec "$0" "$@""#;
    if let Some(command) = in_mount_namespace(&sandbox, script) {
        refuses(&sandbox, command, &["/dev/kvm does not exist", "kvm_intel", "husk doctor"]);
    }
}

#[test]
fn a_dev_kvm_that_is_something_else_is_refused() {
    needs_kvm!();
    let sandbox = Sandbox::with_kernel();
    let script = r#"mount --bind /dev/null /dev/kvm; exec "$0" "$@""#;
    if let Some(command) = in_mount_namespace(&sandbox, script) {
        refuses(&sandbox, command, &["/dev/kvm", "API version"]);
    }
}

#[test]
fn without_permission_for_dev_kvm_the_error_names_the_group() {
    needs_kvm!();
    let sandbox = Sandbox::with_kernel();
    std::fs::set_permissions(sandbox.path(), PermissionsExt::from_mode(0o755)).unwrap();
    let husk = env!("CARGO_BIN_EXE_husk");
    let as_nobody = ["--reuid=65534", "--regid=65534", "--clear-groups"];
    let reaches = |program: &str, args: &[&str]| {
        let mut command = sandbox.program("setpriv", &[&as_nobody[..], &[program], args].concat());
        command.stderr(Stdio::null()).status().is_ok_and(|status| status.success())
    };
    // Everybody may use KVM on some hosts, and only root may become somebody else.
    if !reaches(husk, &["--version"]) || reaches("sh", &["-c", "exec 3<>/dev/kvm"]) {
        fixture::skipped("nobody cannot run husk here, or may use /dev/kvm");
        return;
    }
    let run = [husk, "run", "--kernel", "kernel"];
    let command = sandbox.program("setpriv", &[&as_nobody[..], &run].concat());
    refuses(&sandbox, command, &["no permission", "/dev/kvm", "usermod -aG kvm"]);
}

#[test]
fn a_user_of_the_library_without_dev_kvm_is_told_what_to_do() {
    const NAME: &str = "bad_host::a_user_of_the_library_without_dev_kvm_is_told_what_to_do";
    const INSIDE: &str = "HUSK_TEST_WITHOUT_KVM";
    if std::env::var_os(INSIDE).is_some() {
        let vm = husk::Vm::builder().kernel("kernel").budget(husk::Budget::unlimited());
        match vm.start().err() {
            Some(husk::TestError::NoKvm { remedy }) => {
                assert!(remedy.contains("load kvm_intel"), "{remedy}");
            }
            other => panic!("{other:?}"),
        }
        return;
    }
    let sandbox = Sandbox::with_kernel();
    let exe = std::env::current_exe().unwrap();
    let exe = exe.display();
    let script = format!("mount -t tmpfs none /dev; exec env {INSIDE}=1 '{exe}' --exact {NAME}");
    if let Some(mut command) = in_mount_namespace(&sandbox, &script) {
        let output = command.output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && said.contains(" 1 passed"), "{output:?}");
    }
}
