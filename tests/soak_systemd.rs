//! husk's agent in a Debian that systemd starts, by the unit that `husk agent --unit` prints, for `cargo xtask
//! soak` alone: commands, an agent that is killed, a reboot, and an end in good order.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod guest;

use std::ffi::OsStr;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use guest::tools::{fsck, host, read_from, write_into};
use guest::{Lab, SYSTEMD, husk, soak_rounds};

/// systemd comes up in two minutes in an emulated machine that does something else besides.
const LIMIT: Duration = Duration::from_secs(900);

/// And goes in that time.
const GRACE: Duration = Duration::from_secs(300);

/// Where the agent and its unit are, as docs/commands.md has it.
const AGENT: &str = "/usr/local/sbin/husk-agent";
const UNIT: &str = "/etc/systemd/system/husk-agent.service";

#[test]
fn systemd_starts_the_agent_by_its_unit_keeps_it_running_and_turns_the_guest_off() {
    let Some(lab) = Lab::open() else { return };
    for round in 0..soak_rounds(1, 1) {
        once(&lab, &format!("systemd{round}.ext4"));
    }
}

fn once(lab: &Lab, name: &str) {
    let root = lab.path(name);
    let from = lab.asset(SYSTEMD);
    let words = ["--sparse=always", "--dereference"].map(OsStr::new);
    host("cp", words.into_iter().chain([from.as_os_str(), root.as_os_str()]));
    with_agent(lab, &root);
    let runtime = lab.path("runtime");
    std::fs::create_dir_all(&runtime).unwrap();
    let guest = lab.guest().args("--cpus 2 --agent --name systemd").disk(&root, "");
    let mut guest = guest.env("XDG_RUNTIME_DIR", &runtime).start();
    guest.wait_for("systemd[1]: ");
    // (status, stdout); it waits for the agent.
    let exec = |script: &str| {
        let mut exec = Command::new(husk());
        exec.env("XDG_RUNTIME_DIR", &runtime).args(["exec", "systemd", "--", "sh", "-c", script]);
        let done = exec.output().unwrap();
        eprintln!("{script}: {done:?}");
        (done.status.code(), String::from_utf8_lossy(&done.stdout).trim().to_owned())
    };
    let said = |script: &str| exec(script).1;
    assert_eq!(exec("cat /proc/1/comm; exit 5"), (Some(5), "systemd".to_owned()));
    assert_eq!(
        said("systemctl is-enabled husk-agent; systemctl is-active husk-agent"),
        "enabled\nactive"
    );
    // The agent is the unit's, and it is not what dies when memory runs out.
    let main = said("systemctl show --property MainPID --value husk-agent");
    assert_eq!(said("pgrep -P 1 -x husk-agent"), main);
    assert_eq!(said(&format!("cat /proc/{main}/oom_score_adj")), "-1000");
    assert_eq!(said("cat /proc/self/oom_score_adj"), "0");
    // systemd starts it anew, and what runs is not ended by that.
    let killed = exec(&format!("kill -KILL {main}; sleep 0.2; echo survived"));
    assert_eq!(killed, (Some(0), "survived".to_owned()));
    let again = said("systemctl show --property MainPID --value husk-agent");
    assert!(again != main && again != "0" && !again.is_empty(), "{main}, then {again}");
    assert_eq!(said("systemctl show --property NRestarts --value husk-agent"), "1");
    // A reboot of the guest's own is waited out.
    let boot = said("cat /proc/sys/kernel/random/boot_id");
    exec("systemctl reboot");
    let begin = std::time::Instant::now();
    while [&boot[..], ""].contains(&&said("cat /proc/sys/kernel/random/boot_id")[..]) {
        assert!(begin.elapsed() < LIMIT, "it does not come up again");
    }
    assert_eq!(said("echo kept >/root/kept; systemctl is-active husk-agent"), "active");
    // It is asked to by the agent, and does it in its own good order: sooner than it is turned off.
    let begin = std::time::Instant::now();
    let grace = GRACE.as_secs().to_string();
    let mut stop = Command::new(husk());
    stop.env("XDG_RUNTIME_DIR", &runtime).args(["stop", "--grace", &grace, "systemd"]);
    assert!(stop.status().unwrap().success());
    let done = guest.finish();
    done.expect_status(0);
    assert!(begin.elapsed() < GRACE, "it was turned off");
    fsck(&root);
    assert_eq!(read_from(&root, "/root/kept"), b"kept\n");
    std::fs::remove_file(root).unwrap();
}

/// Puts the agent and its unit into the file system, and enables it, as docs/commands.md has it: with what
/// `systemctl --root ROOT enable` makes.
fn with_agent(lab: &Lab, root: &Path) {
    let (agent, unit) = (lab.path("husk-agent"), lab.path("husk-agent.service"));
    let words = [OsStr::new("agent"), OsStr::new("--output"), agent.as_os_str()];
    host(&husk().display().to_string(), words);
    let printed = Command::new(husk()).args(["agent", "--unit"]).output().unwrap().stdout;
    assert!(String::from_utf8_lossy(&printed).contains("WantedBy=multi-user.target"));
    std::fs::write(&unit, printed).unwrap();
    write_into(root, &agent, AGENT, 0o755);
    write_into(root, &unit, UNIT, 0o644);
    // It may be there already.
    let wants = "mkdir /etc/systemd/system/multi-user.target.wants";
    host("debugfs", ["-w".as_ref(), "-R".as_ref(), wants.as_ref(), root.as_os_str()]);
    let link =
        format!("symlink /etc/systemd/system/multi-user.target.wants/husk-agent.service {UNIT}");
    host("debugfs", ["-w".as_ref(), "-R".as_ref(), link.as_ref(), root.as_os_str()]);
}
