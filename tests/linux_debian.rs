//! The whole of it: Debian's own kernel, a Debian root file system on a disk, a login.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod guest;

use std::ffi::OsStr;
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

use std::path::Path;
use std::process::{Command, Output};

use guest::process::resident_program;
use guest::tools::{fsck, host, read_from, write_into};
use guest::{DEBIAN, Lab, PATIENCE, husk, soak_rounds};

#[test]
fn debian_comes_up_to_a_login_works_and_turns_itself_off() {
    let Some(lab) = Lab::open() else { return };
    for round in 0..soak_rounds(1, 10) {
        once(&lab, &format!("root{round}.ext4"));
    }
}

fn once(lab: &Lab, name: &str) {
    let root = lab.path(name);
    let from = lab.asset(DEBIAN);
    let words = ["--sparse=always", "--dereference"].map(OsStr::new);
    host("cp", words.into_iter().chain([from.as_os_str(), root.as_os_str()]));

    with_agent(lab, &root);
    let runtime = lab.path("runtime");
    std::fs::create_dir_all(&runtime).unwrap();
    let guest = lab.guest().args("--cpus 2 --agent --name debian").disk(&root, "");
    let mut guest = guest.env("XDG_RUNTIME_DIR", &runtime).start();
    guest.wait_for("login: ");
    let up = guest.console().len();
    eprintln!("a login after {:.1?} and {up} bytes", guest.started().elapsed());
    guest.type_line("root");
    guest.wait_for("# ");
    guest.type_line("echo \"answer-$((6 * 7)) of $(hostname)\" | tee /root/answer; sync");
    guest.wait_for("answer-42 of husk");
    // Of husk's program 3 MiB would be in memory if what runs once, or nothing else, were among the
    // rest. What only the start needed goes some seconds after it.
    let deadline = Instant::now() + PATIENCE;
    let resident = loop {
        let resident = resident_program(guest.pid());
        if resident < 1536 {
            break resident;
        }
        assert!(Instant::now() < deadline, "{resident} KiB of husk's program are in memory");
        std::thread::sleep(Duration::from_millis(200));
    };
    assert!(resident > 64, "{resident} KiB of husk's program");
    eprintln!("{resident} KiB of husk's program are in memory");
    let begin = Instant::now();
    commands_are_run_beside_its_own_init(&runtime);
    directories_are_copied(lab, &runtime);
    eprintln!("commands and copies took {:.1?}", begin.elapsed());
    // In its own good order: the agent asks its init.
    let stopped = call(&runtime, &["stop", "--grace", "100", "debian"]);
    assert!(stopped.status.success(), "{stopped:?}");
    let done = guest.finish();
    done.expect_status(0);
    assert!(done.stderr.is_empty(), "{}", done.stderr);
    fsck(&root);
    assert_eq!(read_from(&root, "/root/answer"), b"answer-42 of husk\n");
    std::fs::remove_file(root).unwrap();
}

/// Puts husk's agent into the file system, and has its init start it, and start it anew.
fn with_agent(lab: &Lab, root: &Path) {
    let (agent, inittab) = (lab.path("husk-agent"), lab.path("inittab"));
    host(&husk().display().to_string(), [OsStr::new("agent"), "--output".as_ref(), agent.as_ref()]);
    write_into(root, &agent, "/usr/local/sbin/husk-agent", 0o755);
    let mut lines = read_from(root, "/etc/inittab");
    lines.extend(b"HA:2345:respawn:/usr/local/sbin/husk-agent\n");
    std::fs::write(&inittab, lines).unwrap();
    write_into(root, &inittab, "/etc/inittab", 0o644);
}

/// husk, by somebody else who knows the VM's name.
fn call(runtime: &Path, args: &[&str]) -> Output {
    Command::new(husk()).env("XDG_RUNTIME_DIR", runtime).args(args).output().unwrap()
}

fn commands_are_run_beside_its_own_init(runtime: &Path) {
    let exec = |script: &str| {
        let done = call(runtime, &["exec", "debian", "--", "sh", "-c", script]);
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (done.status.code(), text(&done.stdout), text(&done.stderr))
    };
    let script = "cat /proc/1/comm /root/answer; pwd; id -u; echo told >&2; exit 5";
    let wanted = "init\nanswer-42 of husk\n/\n0\n".to_owned();
    assert_eq!(exec(script), (Some(5), wanted, "told\n".to_owned()));
    // Its init starts it anew, and what runs is not ended by that.
    let (_, first, _) = exec("pgrep -P 1 -x husk-agent");
    let killed = exec("pkill -KILL -P 1 -x husk-agent && sleep 0.1 && echo survived");
    assert_eq!(killed, (Some(0), "survived\n".to_owned(), String::new()));
    let (status, second, stderr) = exec("pgrep -n -P 1 -x husk-agent");
    assert!(status == Some(0) && !first.contains(second.trim()), "{first}{second}{stderr}");
}

/// In, out again, and a pipe that is not.
fn directories_are_copied(lab: &Lab, runtime: &Path) {
    let (from, back) = (lab.path("tree"), lab.path("back"));
    // Of the round before, perhaps.
    for dir in [&from, &back] {
        let _ = std::fs::remove_dir_all(dir);
    }
    std::fs::create_dir_all(from.join("sub/empty")).unwrap();
    std::fs::write(from.join("sub/file"), vec![b'x'; 1 << 20]).unwrap();
    std::os::unix::fs::symlink("sub/file", from.join("link")).unwrap();
    let cp = |from: &str, to: &str| call(runtime, &["cp", from, to]);
    let into = cp(from.to_str().unwrap(), "debian:/root");
    assert!(into.status.success(), "{into:?}");
    let script =
        "cd /root/tree && readlink link && wc -c <link && chmod 700 sub && mkfifo /tmp/pipe";
    let seen = call(runtime, &["exec", "debian", "--", "sh", "-c", script]);
    assert_eq!(String::from_utf8_lossy(&seen.stdout), "sub/file\n1048576\n", "{seen:?}");
    let out = cp("debian:/root/tree", back.to_str().unwrap());
    assert!(out.status.success(), "{out:?}");
    host("diff", [OsStr::new("-r"), from.as_ref(), back.as_ref()]);
    let mode = PermissionsExt::mode(&back.join("sub").metadata().unwrap().permissions());
    assert!(back.join("link").is_symlink() && mode & 0o777 == 0o700);
    let refused = cp("debian:/tmp/pipe", "pipe");
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(
        refused.status.code() == Some(125) && said.contains("/tmp/pipe: it is a pipe"),
        "{said}"
    );
}
