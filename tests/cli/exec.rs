//! `husk run -- CMD` where no command comes to be: options, and guests that die, hang or leave before
//! there is an agent. Each has an end of its own, in time.

use std::process::Command;

use crate::fixture::assembly::Assembled;
use crate::fixture::husk::{Finished, Running, Sandbox, broken_pipe, refuses, refuses_run};
use crate::fixture::kernel::image;
use crate::fixture::{self, Code, Emit};
use crate::needs_kvm;

/// What `husk run … -- true` comes to with this kernel, which is no Linux.
fn run(args: &[&str], code: impl FnOnce(&mut Code) -> Assembled) -> Finished {
    let sandbox = Sandbox::new();
    sandbox.file("kernel", image(32, code));
    let runtime = tempfile::tempdir().unwrap();
    let mut command = command(&sandbox, &[args, &["--name", "one"]].concat());
    let before = sandbox.contents();
    let finished = Running::start(command.env("XDG_RUNTIME_DIR", runtime.path())).finish();
    assert_eq!(sandbox.contents(), before, "something was left behind");
    let names: Vec<_> = runtime.path().join("husk").read_dir().unwrap().collect();
    assert!(names.is_empty(), "{names:?}");
    assert_eq!(finished.stdout, "", "{finished:?}");
    finished
}

fn command(sandbox: &Sandbox, args: &[&str]) -> Command {
    let least = ["run", "--kernel", "kernel", "--memory", "32M"];
    sandbox.husk(&[&least[..], args, &["--", "true"]].concat())
}

#[test]
fn a_guest_that_is_never_ready_is_ended_in_time() {
    needs_kvm!();
    let finished = run(&["--timeout", "5"], |a| {
        a.say("my last words")?;
        a.spin()
    });
    assert_eq!(finished.status, 124, "{finished:?}");
    assert!(finished.stderr.contains("not ready"), "{finished:?}");
    assert!(finished.stderr.contains("my last words"), "{finished:?}");
}

#[test]
fn a_guest_that_turns_itself_off_before_the_command_is_no_success() {
    needs_kvm!();
    // And nothing is left of a disk for what it would have written.
    for args in [&[][..], &["--overlay", "disk,dir=."]] {
        let finished = run(args, |a| {
            a.say("my last words")?;
            a.power_off()
        });
        assert_eq!(finished.status, 125, "{finished:?}");
        assert!(finished.stderr.contains("turned itself off"), "{finished:?}");
        assert!(finished.stderr.contains("my last words"), "{finished:?}");
    }
}

#[test]
fn a_guest_that_dies_before_the_command_is_told_as_one() {
    needs_kvm!();
    let finished = run(&[], |a| {
        // An interrupt without a table for it, nor for the fault that is: a triple fault.
        a.int(0x80)?;
        a.spin()
    });
    assert_eq!(finished.status, 134, "{finished:?}");
}

#[test]
fn a_signal_before_the_command_ends_the_guest_at_once() {
    needs_kvm!();
    let sandbox = Sandbox::new();
    let code = |a: &mut Code| {
        a.say("up")?;
        a.spin()
    };
    sandbox.file("kernel", image(32, code));
    let mut husk = command(&sandbox, &["--console", "file=log"]);
    let running = Running::start(&mut husk);
    fixture::husk::wait_for_text(&sandbox.path().join("log"), "up");
    running.signal(libc::SIGTERM);
    let finished = running.finish();
    assert_eq!(finished.status, 143, "{finished:?}");
}

#[test]
fn options_that_cannot_be_are_refused_with_the_way_out() {
    needs_kvm!();
    let sandbox = Sandbox::with_kernel();
    std::fs::create_dir(sandbox.path().join("dir")).unwrap();
    sandbox.file("image", "an image");
    sandbox.file("squashfs", "hsqs");
    sandbox.file("nul.json", r#"{"guest": {"tmpfs": ["/a\u0000b"]}}"#);
    sandbox.file("qcow2", b"QFI\xfb");
    let no_command: [(&[&str], &str); 8] = [
        (&["--overlay", "disk"], "--overlay"),
        (&["--env", "A=B"], "--env"),
        (&["--user", "me"], "--user"),
        (&["--workdir", "/"], "--workdir"),
        (&["--hostname", "h"], "-- CMD"),
        (&["--rw", "/"], "--rw"),
        (&["--tmpfs", "/t"], "--tmpfs"),
        (&["--cwd"], "--cwd"),
    ];
    for (args, words) in no_command {
        refuses_run(&sandbox, &[&["--kernel", "kernel"], args].concat(), &[words]);
    }
    for (args, words) in [
        (&["--env", "=b"][..], "no name"),
        (&["--env", ""], "--env ''"),
        (&["--user", ""], "--user ''"),
        (&["--user", "me:"], "USER:GROUP"),
        (&["--workdir", "rel"], "begins with `/`"),
        (&["--root", "missing"], "missing"),
        (&["--root", "./none"], "none"),
        (&["--root", "dir:cwo"], "dir:cwo"),
        (&["--root", "dir,cache=some"], "some"),
        (&["--root", "dir,format=raw"], "`format`"),
        (&["--root", "image,cache=auto"], "`cache`"),
        (&["--root", "squashfs:rw"], "squashfs"),
        (&["--root", "qcow2:rw"], "format=qcow2"),
        (&["--root", "/proc"], "/proc"),
        (&["--root", "/:rw"], "--rw DIR"),
        (&["--overlay", "disk,dir=missing"], "dir=DIR"),
        (&["--overlay", "disk,size=1M"], "16M to 8T"),
        (&["--overlay", "disk", "--root", "none"], "leave it out"),
        (&["--rw", "image"], "not a directory"),
        (&["--rw", "missing"], "--rw missing"),
        (&["--rw", "/proc"], "--rw /proc"),
        (&["--rw", "/"], "--rw /"),
        (&["--tmpfs", "tmp"], "begin with `/`"),
        (&["--tmpfs", "/a/../proc"], "/a/../proc"),
        (&["--tmpfs", "/dev"], "/dev"),
        (&["--volume", "dir:/proc"], "/proc"),
        (&["--volume", "dir:/sys/fs"], "/sys/fs"),
        (&["--volume", "dir:rel/ative"], "begins with `/`"),
        (&["--config", "nul.json"], "NUL"),
        (&["--cwd", "--workdir", "/"], "--workdir"),
        (&["--volume", "dir:tag:cow"], "tag"),
        (&["--volume", "dir:/", "--root", "none"], "root"),
        (&["--volume", "dir:root"], "`root`"),
        (&["--disk", "path=image,id=root"], "--root none"),
        (&["--root", "image:rx"], "image:rx"),
        (&["--hostname", "a b"], "host name"),
        (&["--console", "stdio"], "--console"),
        (&["--disk", "path=image,id=root", "--root", "image"], "id="),
        (&["--initrd", "none"], "none"),
        (&["--modules", "dir"], "modules.dep"),
    ] {
        let all = [&["--kernel", "kernel"], args, &["--", "true"]].concat();
        refuses_run(&sandbox, &all, &[words]);
    }
}

#[test]
fn a_directory_that_the_guest_has_itself_is_none_to_run_a_command_in() {
    let sandbox = Sandbox::with_kernel();
    let kernel = sandbox.path().join("kernel");
    let args =
        ["run", "--kernel", kernel.to_str().unwrap(), "--root", "none", "--cwd", "--", "true"];
    for directory in ["/", "/proc", "/sys/kernel", "/dev"] {
        let mut command = sandbox.husk(&args);
        command.current_dir(directory);
        refuses(&sandbox, command, &[&format!("--cwd {directory}: ")]);
    }
}

#[test]
fn a_pipe_for_a_root_or_a_kernel_is_refused_and_not_waited_for() {
    needs_kvm!();
    let sandbox = Sandbox::with_kernel();
    let made = Command::new("mkfifo").arg(sandbox.path().join("pipe")).status().unwrap();
    assert!(made.success());
    for (option, args) in [
        ("--root", &["--kernel", "kernel", "--root", "pipe"][..]),
        ("--kernel", &["--kernel", "pipe"]),
    ] {
        let began = std::time::Instant::now();
        refuses_run(&sandbox, &[args, &["--", "true"]].concat(), &["pipe"]);
        assert!(began.elapsed() < fixture::LIMIT, "{option}");
    }
}

#[test]
fn a_kernel_without_a_driver_is_refused_before_it_is_started() {
    needs_kvm!();
    let sandbox = Sandbox::with_kernel();
    std::fs::create_dir(sandbox.path().join("modules")).unwrap();
    sandbox.file("modules/modules.dep", "k/virtio_mmio.ko:\n");
    sandbox.file("modules/modules.builtin", "k/vmw_vsock_virtio_transport.ko\n");
    sandbox.file("image", vec![0; 4096]);
    let args = ["--kernel", "kernel", "--modules", "modules", "--root", "image", "--", "true"];
    refuses_run(&sandbox, &args, &["CONFIG_VIRTIO_BLK", "kernel"]);
}

#[test]
fn the_guest_is_part_of_the_configuration_that_is_printed_and_read() {
    let sandbox = Sandbox::with_kernel();
    let args = ["run", "--kernel", "kernel", "--root", "image:rw", "--hostname", "here"];
    let mut print = sandbox.husk(&[&args[..], &["--print-config"]].concat());
    let printed = Running::start(&mut print).finish().stdout;
    assert!(printed.contains("\"writable\": true"), "{printed}");
    sandbox.file("vm.json", &printed);
    let mut again = sandbox.husk(&["run", "--config", "vm.json", "--print-config"]);
    assert_eq!(Running::start(&mut again).finish().stdout, printed);
}

#[test]
fn a_commands_root_is_the_hosts_unless_there_is_another() {
    let sandbox = Sandbox::with_kernel();
    std::fs::create_dir(sandbox.path().join("dir")).unwrap();
    sandbox.file("image", "an image");
    sandbox.file("vm.json", r#"{"kernel": "kernel", "guest": {}}"#);
    let print = |args: &[&str]| {
        let all =
            [&["run", "--kernel", "kernel"], args, &["--print-config", "--", "true"]].concat();
        let finished = Running::start(&mut sandbox.husk(&all)).finish();
        assert_eq!(finished.status, 0, "{finished:?}");
        serde_json::from_str::<serde_json::Value>(&finished.stdout).unwrap()
    };
    let root = |args: &[&str]| print(args)["guest"]["root"].clone();
    let on_volume = serde_json::json!({ "volume": "root" });
    let host = print(&[]);
    assert_eq!(host["guest"]["root"], on_volume);
    assert_eq!(
        (&host["volumes"][0]["path"], &host["volumes"][0]["readonly"]),
        (&"/".into(), &true.into())
    );
    assert_eq!(host["guest"]["tmpfs"], serde_json::json!(["/tmp"]));
    for none in [&["--root", "none"][..], &["--initrd", "image"], &["--config", "vm.json"]] {
        assert!(root(none).is_null(), "{none:?}");
    }
    let dir = print(&["--root", "dir"]);
    assert_eq!((&dir["guest"]["root"], &dir["volumes"][0]["path"]), (&on_volume, &"dir".into()));
    assert!(dir["guest"]["tmpfs"].is_null());
    let sealed = print(&["--root", "dir:ro", "--tmpfs", "/var/tmp"]);
    assert_eq!(sealed["guest"]["root"]["readonly"], true);
    assert_eq!(sealed["guest"]["tmpfs"], serde_json::json!(["/tmp", "/var/tmp"]));
    assert_eq!(root(&["--root", "dir:rw"])["writable"], true);
    assert!(print(&["--root", "dir:rw"])["volumes"][0]["readonly"].is_null());
    assert_eq!(root(&["--root", "image:cow"]), serde_json::json!({ "disk": "root" }));
    assert_eq!(print(&["--root", "dir,cache=always"])["volumes"][0]["cache"], "always");
    let image = &print(&["--root", "image:rw,format=qcow2"])["disks"][0];
    assert_eq!((&image["path"], &image["format"]), (&"image".into(), &"qcow2".into()));
    // A directory that is hidden in the guest, or not there, is brought.
    let here = sandbox.path().canonicalize().unwrap();
    let here = here.to_str().unwrap();
    let brought = print(&["--root", "dir", "--cwd"]);
    assert_eq!(brought["volumes"][1]["mount"], here);
    assert_eq!(brought["volumes"][1]["overlay"], true);
    let shared = print(&["--root", "dir", "--cwd", "--rw", "."]);
    assert_eq!(shared["volumes"].as_array().unwrap().len(), 2);
    assert_eq!(
        (&shared["volumes"][1]["mount"], &shared["volumes"][1]["overlay"]),
        (&here.into(), &serde_json::Value::Null)
    );
}

#[test]
fn a_program_in_a_directory_below_one_that_the_guest_has_in_its_memory_is_brought() {
    let sandbox = Sandbox::new();
    sandbox.file("kernel", image(32, |a| a.power_off()));
    sandbox.file("program", vec![0]);
    let here = sandbox.path().canonicalize().unwrap();
    let (here, above) = (here.to_str().unwrap(), here.parent().unwrap().to_str().unwrap());
    let volumes = |args: &[&str], program: &str| {
        let base = ["run", "--kernel", "kernel", "--print-config"];
        let command = ["--", program];
        let finished = sandbox.run(&[&base[..], args, &command].concat());
        assert_eq!(finished.status, 0, "{finished:?}");
        let config: serde_json::Value = serde_json::from_str(&finished.stdout).unwrap();
        config["volumes"].as_array().cloned().unwrap_or_default()
    };
    let program = format!("{here}/program");
    let with = volumes(&["--tmpfs", above], &program);
    assert_eq!(with.len(), 2, "{with:?}");
    assert_eq!((&with[1]["mount"], &with[1]["readonly"]), (&here.into(), &true.into()));
    // /tmp itself is the guest's own; a name is looked for by the guest; what is there is there.
    let direct = tempfile::NamedTempFile::new_in("/tmp").unwrap();
    assert_eq!(volumes(&[], direct.path().to_str().unwrap()).len(), 1);
    assert_eq!(volumes(&["--tmpfs", above], "program").len(), 1);
    assert_eq!(volumes(&["--tmpfs", above], &format!("{here}/missing")).len(), 1);
    assert_eq!(volumes(&["--tmpfs", above, "--rw", here], &program).len(), 2);
    assert!(volumes(&["--tmpfs", above, "--root", "none"], &program).is_empty());
}

#[test]
fn the_agent_is_written_as_a_program_and_its_vm_is_no_vm_for_a_command() {
    let sandbox = Sandbox::with_kernel();
    let written = sandbox.run(&["agent", "--output", "husk-agent"]);
    assert_eq!((written.status, &written.stdout[..]), (0, ""), "{written:?}");
    let path = sandbox.path().join("husk-agent");
    let mode = std::os::unix::fs::PermissionsExt::mode(&path.metadata().unwrap().permissions());
    assert_eq!(mode & 0o777, 0o755);
    // Of the host's it is one as well, and its own words tell what it lacks here.
    let mut agent = sandbox.program(path.to_str().unwrap(), &["--help"]);
    let said = Running::start(&mut agent).finish();
    assert!(said.status == 2 && said.stderr.contains("husk-agent: "), "{said:?}");
    let mut piped = sandbox.husk(&["agent"]);
    assert_eq!(piped.output().unwrap().stdout, std::fs::read(&path).unwrap());
    // All of it or an error.
    let unread = Running::start(sandbox.husk(&["agent"]).stdout(broken_pipe())).finish();
    assert_eq!(unread.status, 125, "{unread:?}");
    let script = r#"exec "$0" agent >&-"#;
    let mut closed = sandbox.program("sh", &["-c", script, env!("CARGO_BIN_EXE_husk")]);
    let closed = Running::start(&mut closed).finish();
    assert!(closed.status == 125 && closed.stderr.contains("is closed"), "{closed:?}");
    let script = r#"exec "$0" ps >&-"#;
    let mut closed = sandbox.program("sh", &["-c", script, env!("CARGO_BIN_EXE_husk")]);
    let closed = Running::start(closed.env("XDG_RUNTIME_DIR", sandbox.path())).finish();
    let words = "standard output: Bad file descriptor";
    assert!(closed.status == 125 && closed.stderr.contains(words), "{closed:?}");
    let unit = sandbox.run(&["agent", "--unit"]).stdout;
    assert!(unit.contains("\nExecStart=/usr/local/sbin/husk-agent\n"), "{unit}");
    let refused = sandbox.run(&["agent", "--output", "none/agent"]);
    assert!(refused.status == 125 && refused.stderr.contains("none/agent"), "{refused:?}");
    let refused = sandbox.run(&["run", "--kernel", "kernel", "--agent", "--", "true"]);
    assert!(refused.status == 125 && refused.stderr.contains("--agent"), "{refused:?}");
    let config = sandbox.run(&["run", "--kernel", "kernel", "--agent", "--print-config"]).stdout;
    assert!(config.contains("\"agent\": true"), "{config}");
}

/// `husk matrix` with these arguments, in which kernels that are no Linux are `off` and `dies`.
fn matrix(args: &[&str]) -> (Sandbox, Command) {
    let sandbox = Sandbox::new();
    let off = |a: &mut Code| {
        a.say("my last words")?;
        a.power_off()
    };
    sandbox.file("off", image(32, off));
    sandbox.file("dies", image(32, |a| a.ud2()));
    sandbox.file("spins", image(32, |a| a.spin()));
    let command = sandbox.husk(&[&["matrix", "--memory", "32M"], args].concat());
    (sandbox, command)
}

#[test]
fn a_matrix_tells_how_each_kernel_did_and_is_no_success_when_one_failed() {
    needs_kvm!();
    for parallel in [&[][..], &["--parallel", "3"]] {
        let kernels =
            ["--kernel", "off", "--kernel=dies", "--append", "--kernel", "--kernel", "none"];
        let (_sandbox, mut command) = matrix(&[&kernels[..], parallel, &["--", "true"]].concat());
        let finished = Running::start(&mut command).finish();
        assert_eq!(finished.status, 1, "{finished:?}");
        let rows: Vec<Vec<_>> =
            finished.stdout.lines().map(|line| line.split_whitespace().collect()).collect();
        let statuses: Vec<_> = rows.iter().map(|row| &row[..2]).collect();
        let wanted = [["KERNEL", "STATUS"], ["off", "125"], ["dies", "134"], ["none", "125"]];
        assert_eq!(statuses, wanted, "{finished:?}");
        for line in ["off  |   | my last words", "dies | husk: the guest died", "none | husk: "] {
            assert!(finished.stderr.lines().any(|said| said.starts_with(line)), "{finished:?}");
        }
    }
}

#[test]
fn a_signal_ends_the_guest_of_a_matrix_and_begins_no_other() {
    needs_kvm!();
    let args = ["--kernel", "spins", "--kernel", "off", "--console", "file=log", "--", "true"];
    let (sandbox, mut command) = matrix(&args);
    let running = Running::start(&mut command);
    let deadline = std::time::Instant::now() + fixture::LIMIT;
    while !sandbox.path().join("log").exists() {
        assert!(std::time::Instant::now() < deadline, "it does not begin");
    }
    running.signal(libc::SIGTERM);
    let finished = running.finish();
    assert_eq!(finished.status, 143, "{finished:?}");
    let rows: Vec<_> = finished.stdout.lines().collect();
    assert!(rows[1].contains("143") && rows[2].contains("not run"), "{finished:?}");
}

#[test]
fn a_matrix_without_kernels_a_command_or_with_what_is_for_one_vm_is_refused() {
    for (args, words) in [
        (&["--", "true"][..], "--kernel"),
        (&["--kernel", "off"], "CMD"),
        (&["--kernel", "off", "--name", "one", "--", "true"], "--name is for `husk run`"),
        (&["--kernel", "off", "--keep-on-failure", "--", "true"], "--keep-on-failure is for"),
        (&["--kernel", "off", "--parallel", "0", "--", "true"], "--parallel"),
        (&["--kernel", "off", "--memroy", "1G", "--", "true"], "--memory"),
    ] {
        let (_sandbox, mut command) = matrix(args);
        let refused = Running::start(&mut command).finish();
        assert_eq!(refused.status, 125, "{refused:?}");
        assert!(refused.stderr.contains(words), "{args:?}: {refused:?}");
    }
}
