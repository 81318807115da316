//! Commands in a guest: from the library, many in one guest, and from the command line.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests"
)]

mod guest;

use std::ffi::OsStr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Once;
use std::time::{Duration, Instant, SystemTime};

use guest::command::{cli, finish, modules};
use guest::tools::{fsck, host, read_from, sha256};
use guest::{DEBIAN, Lab, PATIENCE, TINY, VMLINUZ_CLOUD, VMLINUZ_STD, husk, kernel_cache};
use husk::config::{DiskConfig, GuestConfig, MemoryConfig, RootConfig, Size, VmConfig};
use husk::error::ExecError;
use husk::{GuestCommand, Outcome, Output, RunningVm, Status, TestError, Vm};

/// A machine with the Debian root below an overlay.
fn debian(lab: &Lab) -> VmConfig {
    static CACHE: Once = Once::new();
    // SAFETY: nobody in this process reads the environment but std, which locks it.
    CACHE.call_once(|| unsafe { std::env::set_var("XDG_CACHE_HOME", kernel_cache()) });
    let mut config = VmConfig::new(lab.asset(VMLINUZ_CLOUD));
    config.console = husk::config::ConsoleConfig::None;
    config.memory = MemoryConfig { size: Size(192 << 20), ..MemoryConfig::default() };
    let path = lab.asset(DEBIAN);
    config.disks =
        vec![DiskConfig { id: "root".into(), path, readonly: true, ..Default::default() }];
    let root = Some(RootConfig::on_disk("root"));
    let modules = modules(lab);
    config.guest = Some(GuestConfig { root, modules, ..GuestConfig::default() });
    config
}

fn shell(script: &str) -> GuestCommand {
    GuestCommand::new(["sh", "-c", script]).timeout(PATIENCE)
}

fn run(vm: &RunningVm, command: &GuestCommand) -> Output {
    vm.output(command).unwrap_or_else(|e| panic!("{e}\n{}", vm.console_tail(40)))
}

fn text(output: &Output) -> String {
    let Output { status, stdout, stderr } = output;
    assert!(status.success(), "{status:?}: {}", String::from_utf8_lossy(stderr));
    String::from_utf8(stdout.clone()).unwrap()
}

#[test]
fn one_guest_runs_many_commands_and_its_panic_is_told() {
    let Some(lab) = Lab::open() else { return };
    let vm = Vm::new(debian(&lab)).unwrap().start().unwrap();
    vm.wait_ready(PATIENCE).unwrap_or_else(|e| panic!("{e}\n{}", vm.console_tail(60)));
    let facts = text(&run(&vm, &shell("hostname; pwd; id -u; stat -f -c %T /; cat /proc/1/comm")));
    assert_eq!(facts, "husk\n/\n0\noverlayfs\ninit\n");

    for (script, code) in [
        ("exit 0", 0),
        ("exit 1", 1),
        ("exit 7", 7),
        ("kill -KILL $$", 137),
        ("kill -TERM $$", 143),
    ] {
        assert_eq!(run(&vm, &shell(script)).status.code(), code, "{script}");
    }
    let missing = vm.exec(["there-is-none"]).unwrap_err();
    assert!(matches!(missing, ExecError::NotFound(_)), "{missing}");
    let no_program = vm.exec(["/etc/passwd"]).unwrap_err();
    assert!(matches!(no_program, ExecError::NotExecutable { .. }), "{no_program}");

    streams(&vm);
    arguments(&vm);
    clock(&vm);
    files(&vm, &lab);
    memory(&vm);

    let begin = Instant::now();
    let endless =
        shell("trap '' TERM; while :; do sleep 1000; done").timeout(Duration::from_secs(1));
    assert!(matches!(vm.output(&endless), Err(ExecError::TimedOut(_))));
    assert!(begin.elapsed() < PATIENCE);

    let error = vm.exec(["sh", "-c", "echo c >/proc/sysrq-trigger; sleep 1000"]).unwrap_err();
    match error {
        ExecError::Ended(outcome) => match *outcome {
            Outcome::Panic { console } => assert!(console.contains("sysrq"), "{console}"),
            other => panic!("{other:?}"),
        },
        other => panic!("{other}"),
    }
    let after = vm.exec(["true"]).unwrap_err();
    assert!(matches!(after, ExecError::Ended(_)), "{after}");
}

fn streams(vm: &RunningVm) {
    let lines = "i=0; while [ $i -lt 10000 ]; do echo out $i; echo err $i >&2; i=$((i+1)); done";
    let output = run(vm, &shell(lines));
    let wanted = |name: &str| (0..10000).map(|n| format!("{name} {n}\n")).collect::<String>();
    assert!(output.stdout == wanted("out").as_bytes(), "{} bytes", output.stdout.len());
    assert!(output.stderr == wanted("err").as_bytes(), "{} bytes", output.stderr.len());

    let mut state = 1u32;
    let bytes: Vec<u8> = (0..16 << 20)
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as u8
        })
        .collect();
    let hash = sha256(&bytes);
    let output = run(vm, &GuestCommand::new(["sha256sum"]).input(bytes).timeout(PATIENCE));
    assert_eq!(text(&output).split_whitespace().next(), Some(hash.as_str()));

    let background = run(vm, &shell("sleep 1000 & echo begun"));
    assert_eq!(text(&background), "begun\n");
}

fn arguments(vm: &RunningVm) {
    let odd = "a line\nand another\t\"quoted\" \\ $HOME\u{7f}\u{1}é";
    let command = shell("printf %s \"$1\"; printf %s \"$ODD\"; pwd").arg("sh").arg(odd);
    let output = run(vm, &command.env("ODD", odd).directory("/usr"));
    assert_eq!(text(&output), format!("{odd}{odd}/usr\n"));
    let value = "v".repeat(100 << 10);
    let mut command = shell("ulimit -s; env | wc -c");
    // More than 2 MiB, which is what Linux gives to whoever has the usual stack.
    for n in 0..21 {
        command = command.env(format!("LONG{n}"), &value);
    }
    let told = text(&run(vm, &command));
    let (stack, counted) = told.split_once('\n').unwrap();
    assert!(counted.trim().parse::<usize>().unwrap() > 21 * value.len(), "{told}");
    assert!(stack.parse::<u32>().unwrap() > 8192, "{told}");
    assert_eq!(text(&run(vm, &shell("ulimit -s"))), "8192\n");
    let user = run(vm, &GuestCommand::new(["id"]).user("nobody").timeout(PATIENCE));
    assert!(text(&user).starts_with("uid=65534(nobody) gid=65534(nogroup)"), "{user:?}");
    // The root is an overlay, so that the group is this guest's alone.
    let member = "echo members:x:4321:other,nobody >>/etc/group";
    assert!(run(vm, &shell(member)).status.success());
    let groups =
        |user: &str| text(&run(vm, &GuestCommand::new(["id", "-G"]).user(user).timeout(PATIENCE)));
    assert_eq!(groups("nobody"), "65534 4321\n");
    assert_eq!((groups("65534"), groups("nobody:0")), ("65534\n".into(), "0\n".into()));
}

/// The guest's clock is the host's, and not behind by the time that the guest took to boot.
fn clock(vm: &RunningVm) {
    let now = || SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs();
    let before = now();
    let told: u64 = text(&run(vm, &shell("date +%s"))).trim().parse().unwrap();
    assert!((before - 1..=now() + 1).contains(&told), "{told} between {before} and {}", now());
}

fn files(vm: &RunningVm, lab: &Lab) {
    let bytes: Vec<u8> = (0..1 << 20).map(|n: u32| (n % 253) as u8).collect();
    let (from, back) = (lab.path("from"), lab.path("back"));
    std::fs::write(&from, &bytes).unwrap();
    std::fs::set_permissions(&from, PermissionsExt::from_mode(0o751)).unwrap();
    vm.copy_in(&from, Path::new("/root/copy")).unwrap();
    assert_eq!(text(&run(vm, &shell("stat -c '%a %s' /root/copy"))), "751 1048576\n");
    vm.copy_out(Path::new("/root/copy"), &back).unwrap();
    assert!(std::fs::read(back).unwrap() == bytes);
    let (part, most) = (lab.path("part"), bytes.len() as u64 / 2);
    let error = vm.copy_out_at_most(Path::new("/root/copy"), &part, most).unwrap_err();
    assert!(matches!(error, ExecError::TooLarge { .. }), "{error}");
    assert!(!part.exists());
    let error = vm.copy_in(&from, Path::new("/no/such/place")).unwrap_err();
    assert!(matches!(error, ExecError::GuestFile { .. }), "{error}");
}

fn memory(vm: &RunningVm) {
    let hungry = run(vm, &GuestCommand::new(["tail", "/dev/zero"]).timeout(PATIENCE));
    assert_eq!(hungry.status, Status::Signaled { signal: 9, out_of_memory: true });
    // One that it started was killed, and it itself by somebody else: both are told for what they are.
    let child = vm.spawn(&shell("tail /dev/zero; kill -KILL $$")).unwrap();
    let other = child.wait_timeout(PATIENCE).unwrap();
    assert_eq!(other, Some(Status::Signaled { signal: 9, out_of_memory: false }));
    assert_eq!(child.killed_for_memory(), 1);
    assert!(run(vm, &shell("true")).status.success(), "the guest is there still");
    // The agent's own process, made the first to go, and a kernel that is told that memory has run out.
    let script =
        "echo 1000 >/proc/$PPID/oom_score_adj; echo f >/proc/sysrq-trigger; exec sleep 1000";
    let begin = Instant::now();
    let lost = vm.output(&shell(script)).unwrap_err();
    match &lost {
        ExecError::AgentLost { console } => assert!(console.contains("Out of memory"), "{console}"),
        other => panic!("{other}"),
    }
    eprintln!("the agent's end was told after {:.1?}", begin.elapsed());
    assert!(matches!(TestError::from(lost), TestError::AgentLost { .. }));
    assert!(run(vm, &shell("true")).status.success(), "the guest is there still");
}

#[test]
fn a_kernel_without_a_driver_is_refused_before_it_starts_by_the_option_that_it_lacks() {
    let Some(lab) = Lab::open() else { return };
    let Some(real) = modules(&lab) else { return };
    // All that the kernel has but the overlay, as if it had been built without.
    let directory = lab.path("lacking");
    std::fs::create_dir(&directory).unwrap();
    let index = std::fs::read_to_string(real.join("modules.dep")).unwrap();
    let (lacking, others): (Vec<_>, Vec<_>) =
        index.lines().partition(|line| line.contains("/overlay.ko"));
    assert_eq!(lacking.len(), 1, "{lacking:?}");
    std::fs::write(directory.join("modules.dep"), others.join("\n")).unwrap();
    std::fs::copy(real.join("modules.builtin"), directory.join("modules.builtin")).unwrap();
    let mut config = debian(&lab);
    config.guest.as_mut().unwrap().modules = Some(directory);
    let error = TestError::from(Vm::new(config).map(drop).unwrap_err());
    match &error {
        TestError::MissingKernelFeature { name, .. } => assert_eq!(name, "CONFIG_OVERLAY_FS"),
        other => panic!("{other}"),
    }
    assert!(error.to_string().contains("--modules DIR"), "{error}");

    // The same kernel away from all of its modules, which it cannot do without.
    let kernel = lab.path("away").join("vmlinuz");
    std::fs::create_dir(kernel.parent().unwrap()).unwrap();
    std::fs::copy(lab.asset(VMLINUZ_CLOUD), &kernel).unwrap();
    let mut config = debian(&lab);
    config.kernel = kernel;
    config.guest.as_mut().unwrap().modules = None;
    let error = TestError::from(Vm::new(config).map(drop).unwrap_err());
    match &error {
        TestError::MissingKernelFeature { name, .. } => assert_eq!(name, "CONFIG_VIRTIO_MMIO"),
        other => panic!("{other}"),
    }
    assert!(error.to_string().contains("away/lib/modules/"), "{error}");
}

#[test]
fn husk_run_is_the_command_and_a_writable_root_keeps_what_it_wrote() {
    let Some(lab) = Lab::open() else { return };
    let root: PathBuf = lab.path("root.ext4");
    let from = lab.asset(DEBIAN);
    host(
        "cp",
        [OsStr::new("--sparse=always"), OsStr::new("-L"), from.as_os_str(), root.as_os_str()],
    );
    let root_arg = format!("{}:rw", root.display());
    let (work, given) = (lab.path("work"), lab.path("given"));
    for directory in [&work, &given] {
        std::fs::create_dir(directory).unwrap();
    }
    std::fs::write(given.join("file"), "shared").unwrap();
    let work_arg = format!("{}:/mnt/made/work", work.display());
    let given_arg = format!("{}:/mnt/given:ro", given.display());
    let script = "cat >/kept; echo $GREETING; echo told >&2; pwd; cp /mnt/given/file /mnt/made/work/copy; \
                  touch /mnt/given/mine 2>/dev/null && echo written; exit 7";
    let args = [
        "--root",
        &root_arg,
        "--env",
        "GREETING=hello",
        "--workdir",
        "/etc",
        "--volume",
        &work_arg,
        "--volume",
        &given_arg,
        "--",
        "sh",
        "-c",
        script,
    ];
    let (status, stdout, stderr) = finish(cli(&lab, &args), b"from husk's stdin\n");
    assert_eq!((status, stdout.as_str(), stderr.as_str()), (7, "hello\n/etc\n", "told\n"));
    assert_eq!(std::fs::read(work.join("copy")).unwrap(), b"shared");
    assert_eq!(read_from(&root, "/kept"), b"from husk's stdin\n");
    fsck(&root);
}

/// So many MiB of any bytes, no two of them the same.
fn binary(mib: u32) -> Vec<u8> {
    let mut state = 1u32;
    let mut one: Vec<u8> = std::iter::repeat_with(|| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    })
    .take(1 << 20)
    .collect();
    let mut all = Vec::with_capacity((mib as usize) << 20);
    for n in 0..mib {
        one[..4].copy_from_slice(&n.to_le_bytes());
        all.extend_from_slice(&one);
    }
    all
}

#[test]
fn husk_run_works_with_the_hosts_own_files_and_leaves_them_as_they_are() {
    let Some(lab) = Lab::open() else { return };
    let directories = ["here", "work", "cow"].map(|name| lab.path(name));
    let [here, work, cow] = &directories;
    for directory in &directories {
        std::fs::create_dir(directory).unwrap();
        std::fs::write(directory.join("file"), "the host's\n").unwrap();
    }
    std::fs::write(here.join("goes"), "").unwrap();
    let script = r#"
sha256sum
show() { while read -r line; do echo "$line"; done <"$1"; }
pwd; show file; echo $HOME
echo "the guest's" >file; show file; rm goes; mkdir made
echo more >>/mnt/cow/file; show /mnt/cow/file
show "$1/file"; echo kept >"$1/new"
echo x >/etc/husk-was-here && show /etc/husk-was-here
stat -f -c %T / /proc /sys /dev /run /tmp
echo /tmp/* /run/*
show /proc/1/comm
./tests --list --format terse
exit 6"#;
    // As a test runner wants it: on stdout the list of a test program's tests, and nothing else.
    let tests = std::env::current_exe().unwrap();
    std::fs::copy(&tests, here.join("tests")).unwrap();
    let list = Command::new(&tests).args(["--list", "--format", "terse"]).output().unwrap();
    let cow_arg = format!("{}:/mnt/cow:cow", cow.display());
    let args = ["--memory", "256M", "--cwd", "--volume", &cow_arg, "--rw", work.to_str().unwrap()];
    let command = ["--", "sh", "-c", script, "sh", work.to_str().unwrap()];
    let mut husk = cli(&lab, &[&args[..], &command].concat());
    husk.current_dir(here).env("HOME", "/home/of/mine");
    let input = binary(64);
    let (status, stdout, stderr) = finish(husk, &input);
    let wanted = format!(
        "{}  -\n{}\nthe host's\n/home/of/mine\nthe guest's\nthe host's\nmore\nthe host's\nx\n\
         overlayfs\nproc\nsysfs\ntmpfs\ntmpfs\ntmpfs\n/tmp/* /run/*\ninit\n{}",
        sha256(&input),
        here.canonicalize().unwrap().display(),
        String::from_utf8(list.stdout).unwrap()
    );
    assert_eq!((status, stdout, stderr.as_str()), (6, wanted, ""));
    for directory in &directories {
        assert_eq!(std::fs::read(directory.join("file")).unwrap(), b"the host's\n");
    }
    assert!(here.join("goes").exists() && !here.join("made").exists());
    assert!(!Path::new("/etc/husk-was-here").exists());
    assert_eq!(std::fs::read(work.join("new")).unwrap(), b"kept\n");
}

#[test]
fn husk_run_passes_a_signal_on_ends_after_the_grace_and_is_reached_by_name() {
    let Some(lab) = Lab::open() else { return };
    let initrd = lab.asset(TINY);
    let script = "trap 'echo caught' TERM; echo up; while :; do /bin/busybox sleep 0.1; done";
    let busybox = ["--", "/bin/busybox"];
    let args = ["--name", "one", "--grace", "5", "--initrd", initrd.to_str().unwrap()];
    let mut command = cli(&lab, &[&args[..], &busybox, &["sh", "-c", script]].concat());
    let runtime = lab.path("runtime");
    std::fs::create_dir(&runtime).unwrap();
    command.env("XDG_RUNTIME_DIR", &runtime);
    let begin = |command: &mut Command| {
        let mut child = command.spawn().unwrap();
        let mut line = [0; 3];
        std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut line).unwrap();
        assert_eq!(&line, b"up\n");
        child
    };
    let child = begin(&mut command);
    others_reach_it_by_its_name(&lab, &runtime);
    let mut other = Command::new(husk());
    other.args([
        "exec",
        "one",
        "--",
        "/bin/busybox",
        "sh",
        "-c",
        "echo up; /bin/busybox sleep 1000",
    ]);
    other.env("XDG_RUNTIME_DIR", &runtime);
    let other = begin(other.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()));
    let pid = libc::pid_t::try_from(child.id()).unwrap();
    // SAFETY: kill touches no memory; the child has not been waited for, so the id is its own.
    assert_eq!(unsafe { libc::kill(pid, libc::SIGTERM) }, 0);
    let output = child.wait_with_output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    // It was told, did not end, and was ended.
    assert_eq!(output.status.code(), Some(128 + libc::SIGTERM), "{stderr}");
    assert!(stderr.contains("still ran 5 s after SIGTERM"), "{stderr}");
    assert_eq!(output.stdout, b"caught\n", "{stderr}");
    assert_eq!(runtime.join("husk").read_dir().unwrap().count(), 0, "its name is still there");
    let output = other.wait_with_output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(137), "{stderr}");
    assert!(stderr.contains("the VM has ended: it was killed"), "{stderr}");
}

/// `husk ps`, `exec` and `cp` for the VM called `one`, in which there is busybox.
fn others_reach_it_by_its_name(lab: &Lab, runtime: &Path) {
    let call = |args: &[&str]| {
        let mut command = Command::new(husk());
        command.env("XDG_RUNTIME_DIR", runtime).args(args);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        finish(command, b"some input\n")
    };
    let (status, listed, stderr) = call(&["ps"]);
    assert!(status == 0 && listed.contains("one "), "{listed}{stderr}");
    let script = "/bin/busybox cat; echo told >&2; exit 5";
    let done = call(&["exec", "one", "--", "/bin/busybox", "sh", "-c", script]);
    assert_eq!(done, (5, "some input\n".to_owned(), "told\n".to_owned()));
    let mut full = Command::new(husk());
    full.env("XDG_RUNTIME_DIR", runtime).args([
        "exec",
        "one",
        "--",
        "/bin/busybox",
        "echo",
        "lost",
    ]);
    full.stdout(std::fs::File::options().write(true).open("/dev/full").unwrap());
    let cut = full.stderr(Stdio::piped()).output().unwrap();
    let stderr = String::from_utf8_lossy(&cut.stderr);
    assert_eq!(guest::process::status(cut.status), 125, "{stderr}");
    assert!(stderr.contains("No space left on device"), "{stderr}");
    // So is a stdout that is closed, of which a command that writes nothing needs none.
    for (applet, status) in [("uname", 125), ("true", 0)] {
        let script = r#"exec "$0" exec one -- /bin/busybox "$1" >&-"#;
        let mut closed = Command::new("sh");
        closed.env("XDG_RUNTIME_DIR", runtime).args(["-c", script]).arg(husk()).arg(applet);
        let closed = closed.stderr(Stdio::piped()).output().unwrap();
        let stderr = String::from_utf8_lossy(&closed.stderr);
        assert_eq!(guest::process::status(closed.status), status, "{stderr}");
        assert_eq!(stderr.contains("Bad file descriptor"), status == 125, "{stderr}");
    }
    // Who reads no more ends the command as in a pipe of a shell, and the next one writes to the end.
    for (script, wanted) in [("exec /bin/busybox yes", 128 + libc::SIGPIPE), ("echo y; exit 7", 7)]
    {
        let mut cut = Command::new(husk());
        guest::process::with_ordinary_signals(&mut cut);
        cut.env("XDG_RUNTIME_DIR", runtime).args(["exec", "one", "--", "/bin/busybox", "sh", "-c"]);
        let mut cut = cut.arg(script).stdout(Stdio::piped()).spawn().unwrap();
        let mut read = [0; 2];
        std::io::Read::read_exact(&mut cut.stdout.take().unwrap(), &mut read).unwrap();
        assert_eq!(&read, b"y\n");
        assert_eq!(guest::process::status(cut.wait().unwrap()), wanted, "{script}");
    }
    let (status, _, stderr) = call(&["exec", "one", "--", "there-is-none"]);
    assert_eq!(status, 127, "{stderr}");
    let (from, back) = (lab.path("cp-from"), lab.path("cp-back"));
    std::fs::write(&from, "copied").unwrap();
    let copy = |from: &str, to: &str| {
        let (status, _, stderr) = call(&["cp", from, to]);
        assert_eq!(status, 0, "{stderr}");
    };
    copy(from.to_str().unwrap(), "one:/tmp/");
    copy("one:/tmp/cp-from", back.to_str().unwrap());
    assert_eq!(std::fs::read(back).unwrap(), b"copied");
    // A signal in the middle leaves nothing, here and there.
    let there = || call(&["exec", "one", "--", "/bin/busybox", "ls", "/tmp"]).1;
    let script = "mkdir /tmp/long && dd if=/dev/null of=/tmp/long/file bs=1M seek=60000";
    let (status, _, stderr) = call(&["exec", "one", "--", "/bin/busybox", "sh", "-c", script]);
    assert_eq!(status, 0, "{stderr}");
    let place = lab.path("cp-cut");
    std::fs::create_dir(&place).unwrap();
    let big = lab.hole("cp-big", 1 << 40);
    let to = place.join("long");
    let out = ("one:/tmp/long", to.to_str().unwrap(), libc::SIGINT);
    for (from, to, signal) in [out, (big.to_str().unwrap(), "one:/tmp/big", libc::SIGTERM)] {
        let mut cut = Command::new(husk());
        guest::process::with_ordinary_signals(&mut cut);
        cut.env("XDG_RUNTIME_DIR", runtime).args(["cp", from, to]).stderr(Stdio::piped());
        let cut = cut.spawn().unwrap();
        let deadline = std::time::Instant::now() + guest::PATIENCE;
        let begun = || match signal {
            libc::SIGINT => place.read_dir().unwrap().count() == 1,
            _ => there().contains(".husk-"),
        };
        while !begun() {
            assert!(std::time::Instant::now() < deadline, "{from} is not copied");
            std::thread::sleep(Duration::from_millis(20));
        }
        // SAFETY: kill touches no memory; the child has not been waited for.
        assert_eq!(unsafe { libc::kill(cut.id() as libc::pid_t, signal) }, 0);
        let cut = cut.wait_with_output().unwrap();
        assert_eq!(guest::process::status(cut.status), 128 + signal);
        assert_eq!(String::from_utf8_lossy(&cut.stderr), "");
    }
    assert_eq!(place.read_dir().unwrap().count(), 0, "something was left");
    let deadline = std::time::Instant::now() + guest::PATIENCE;
    while there().contains("big") {
        assert!(std::time::Instant::now() < deadline, "something was left there");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_matrix_runs_the_command_under_two_kernels_and_tells_which_failed() {
    let Some(lab) = Lab::open() else { return };
    let mut command = Command::new(husk());
    guest::process::with_ordinary_signals(&mut command);
    command.env("XDG_CACHE_HOME", kernel_cache()).arg("matrix");
    // Each has its modules where husk finds them by itself.
    for kernel in [lab.asset(VMLINUZ_CLOUD), lab.asset(VMLINUZ_STD), lab.path("none")] {
        command.arg("--kernel").arg(kernel);
    }
    command.arg("--initrd").arg(lab.asset(TINY)).args(["--parallel", "2", "--", "/bin/busybox"]);
    command.args(["sh", "-c", "r=$(uname -r); echo $r; case $r in *cloud*) exit 0; esac; exit 5"]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let (status, stdout, stderr) = finish(command, b"");
    assert_eq!(status, 1, "{stdout}{stderr}");
    let (said, table) = stdout.split_once("KERNEL ").unwrap();
    let mut said: Vec<_> = said.lines().filter_map(|line| line.split_once(" | ")).collect();
    said.sort_unstable();
    let [(cloud, its), (standard, others)] = said[..] else { panic!("{stdout}{stderr}") };
    assert_eq!((cloud.trim(), standard.trim()), ("vmlinuz-cloud", "vmlinuz-std"), "{stdout}");
    assert!(
        its.contains("cloud") && !others.contains("cloud") && its[..2] == others[..2],
        "{stdout}"
    );
    let rows: Vec<Vec<_>> = table.lines().map(|line| line.split_whitespace().collect()).collect();
    for (row, wanted) in
        [(1, ["vmlinuz-cloud", "0"]), (2, ["vmlinuz-std", "5"]), (3, ["none", "125"])]
    {
        assert_eq!(rows[row][..2], wanted, "{stdout}");
    }
    assert!(stderr.contains("none          | husk: "), "{stderr}");
}

#[test]
fn a_guest_that_cannot_reach_husk_says_which_option_its_kernel_lacks() {
    let Some(lab) = Lab::open() else { return };
    // An index by which everything is built in, which it is not.
    let modules = lab.path("modules");
    std::fs::create_dir(&modules).unwrap();
    std::fs::write(modules.join("modules.dep"), "").unwrap();
    let builtin = "k/virtio_mmio.ko\nk/vmw_vsock_virtio_transport.ko\n";
    std::fs::write(modules.join("modules.builtin"), builtin).unwrap();
    let args = ["--modules", modules.to_str().unwrap(), "--root", "none", "--", "true"];
    let (status, stdout, stderr) = finish(cli(&lab, &args), b"");
    assert_eq!((status, stdout.as_str()), (125, ""), "{stderr}");
    assert!(stderr.contains("CONFIG_VIRTIO_VSOCKETS"), "{stderr}");
}
