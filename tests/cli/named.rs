//! VMs with a name, reached by other husks: with a guest that is no Linux.

use std::process::Command;

use crate::fixture::husk::{Finished, Running, Sandbox, broken_pipe, wait_for_text};
use crate::fixture::kernel::image;
use crate::fixture::{Emit, LIMIT};
use crate::needs_kvm;

/// Between two processes that ask the same.
const PAUSE: std::time::Duration = std::time::Duration::from_millis(50);

/// A sandbox with a kernel that says "up" and spins, and a runtime directory.
fn sandbox() -> Sandbox {
    let sandbox = Sandbox::new();
    let kernel = image(32, |a| {
        a.say("up")?;
        a.spin()
    });
    sandbox.file("kernel", kernel);
    std::fs::create_dir(sandbox.path().join("run")).unwrap();
    sandbox
}

fn husk(sandbox: &Sandbox, args: &[&str]) -> Command {
    let mut command = sandbox.husk(args);
    command.env("XDG_RUNTIME_DIR", sandbox.path().join("run"));
    command
}

fn call(sandbox: &Sandbox, args: &[&str]) -> Finished {
    Running::start(&mut husk(sandbox, args)).finish()
}

/// A VM called `name` whose guest is up.
fn start(sandbox: &Sandbox, name: &str) -> Running {
    let log = format!("{name}.log");
    let console = format!("file={log}");
    let args =
        ["run", "--kernel", "kernel", "--memory", "32M", "--name", name, "--console", &console];
    let running = Running::start(&mut husk(sandbox, &args));
    wait_for_text(&sandbox.path().join(log), "up");
    // It is named a moment after it was started.
    let deadline = std::time::Instant::now() + LIMIT;
    while !call(sandbox, &["ps"]).stdout.contains(name) {
        assert!(std::time::Instant::now() < deadline, "{name} is not listed");
        std::thread::sleep(PAUSE);
    }
    running
}

#[test]
fn a_named_vm_is_listed_read_refused_to_others_and_ended() {
    needs_kvm!();
    let sandbox = sandbox();
    let (one, two) = (start(&sandbox, "one"), start(&sandbox, "two"));
    let listed = call(&sandbox, &["ps", "--json"]).stdout;
    let listed: serde_json::Value = serde_json::from_str(&listed).unwrap();
    assert_eq!(listed[0]["name"], "one");
    assert_eq!(listed[0]["pid"], one.child.id());
    assert_eq!(listed[1]["name"], "two");
    assert_eq!(listed[1]["kernel"], "kernel");
    assert_eq!(call(&sandbox, &["logs", "one"]).stdout.trim(), "up");

    let told = call(&sandbox, &["inspect", "one", "--json"]);
    let facts: serde_json::Value = serde_json::from_str(&told.stdout).unwrap();
    assert_eq!((&facts["name"], &facts["state"]), (&"one".into(), &"running".into()), "{told:?}");
    assert_eq!(facts["pid"], one.child.id());
    assert_eq!(facts["config"]["memory"]["size"], "32M", "{told:?}");
    assert!(facts["metrics"]["devices"]["com1"]["requests"].as_u64() >= Some(2), "{told:?}");
    assert!(facts["guest"].is_null(), "{told:?}");
    let told = call(&sandbox, &["inspect", "two"]);
    assert!(told.stdout.contains("running, for") && told.stdout.contains("com1"), "{told:?}");

    let again = ["run", "--kernel", "kernel", "--memory", "32M", "--name", "one"];
    let refused = call(&sandbox, &again);
    assert_eq!(refused.status, 125, "{refused:?}");
    assert!(refused.stderr.contains("husk stop one"), "{refused:?}");
    let refused = call(&sandbox, &["exec", "one", "--", "true"]);
    assert_eq!(refused.status, 125, "{refused:?}");
    assert!(refused.stderr.contains("runs no commands"), "{refused:?}");
    assert!(refused.stderr.contains("--agent"), "{refused:?}");

    let refused = call(&sandbox, &["attach", "one"]);
    assert_eq!(refused.status, 125, "{refused:?}");
    assert!(refused.stderr.contains("--detach"), "{refused:?}");

    // One that is unknown holds up none of the others.
    let killed = call(&sandbox, &["kill", "nobody", "one"]);
    assert_eq!(killed.status, 125, "{killed:?}");
    assert!(killed.stderr.contains("nobody"), "{killed:?}");
    assert_eq!(one.finish().status, 0);
    // Its guest does not hear of the power button.
    let stopped = call(&sandbox, &["stop", "two", "--grace", "0.1"]);
    assert_eq!(stopped.status, 0, "{stopped:?}");
    assert!(stopped.stderr.contains("two has not turned itself off in 0.1 s"), "{stopped:?}");
    assert_eq!(two.finish().status, 0);
    assert_eq!(sandbox.path().join("run/husk").read_dir().unwrap().count(), 0);
}

#[test]
fn a_command_whose_vm_is_killed_by_its_name_is_no_success() {
    needs_kvm!();
    let sandbox = sandbox();
    let args = ["run", "--kernel", "kernel", "--memory", "32M", "--name", "one", "--", "true"];
    let running = Running::start(&mut husk(&sandbox, &args));
    let deadline = std::time::Instant::now() + LIMIT;
    while call(&sandbox, &["kill", "one"]).status != 0 {
        assert!(std::time::Instant::now() < deadline, "it is not found");
        std::thread::sleep(PAUSE);
    }
    let finished = running.finish();
    assert_eq!(finished.status, 137, "{finished:?}");
    assert!(finished.stderr.contains("it was killed"), "{finished:?}");
}

/// Whether a process waits for a VM's agent: it holds a socket for the answer, and one for the VM's end.
fn waits_for_the_agent(pid: u32) -> bool {
    let Ok(open) = std::fs::read_dir(format!("/proc/{pid}/fd")) else { return false };
    let links = open.flatten().filter_map(|entry| entry.path().read_link().ok());
    links.filter(|link| link.to_string_lossy().starts_with("socket:")).count() >= 2
}

#[test]
fn a_command_in_a_vm_that_is_killed_by_its_name_or_with_its_husk_has_the_status_of_a_kill() {
    needs_kvm!();
    let sandbox = sandbox();
    for with_its_husk in [false, true] {
        let args = ["run", "--kernel", "kernel", "--memory", "32M", "--name", "one", "--", "true"];
        let running = Running::start(&mut husk(&sandbox, &args));
        wait_until(|| call(&sandbox, &["ps"]).stdout.contains("one "));
        let inside = Running::start(&mut husk(&sandbox, &["exec", "one", "--", "true"]));
        wait_until(|| waits_for_the_agent(inside.child.id()));
        let facts = call(&sandbox, &["inspect", "one"]).stdout;
        for fact in ["root       volume root (cow)", "volume     /: root (ro)", "tmpfs      /tmp"] {
            assert!(facts.lines().any(|line| line == fact), "{facts}");
        }
        match with_its_husk {
            false => assert_eq!(call(&sandbox, &["kill", "one"]).status, 0),
            true => running.signal(libc::SIGKILL),
        }
        let finished = inside.finish();
        assert_eq!(finished.status, 137, "{finished:?}");
        assert!(finished.stderr.contains("killed"), "{finished:?}");
        running.finish();
    }
}

#[test]
fn a_command_for_a_vm_whose_husk_is_stopped_is_told_which_process_that_is() {
    needs_kvm!();
    let sandbox = sandbox();
    let one = start(&sandbox, "one");
    one.signal(libc::SIGSTOP);
    let refused = call(&sandbox, &["exec", "one", "--", "true"]);
    one.signal(libc::SIGCONT);
    assert_eq!(refused.status, 125, "{refused:?}");
    assert!(refused.stderr.contains(&format!("kill -KILL {}", one.child.id())), "{refused:?}");
    assert!(!refused.stderr.contains("waited for"), "{refused:?}");
    assert_eq!(call(&sandbox, &["kill", "one"]).status, 0);
    one.finish();
}

#[test]
fn a_name_that_nobody_has_or_that_is_none_is_refused_with_the_way_out() {
    let sandbox = sandbox();
    let calls: [(&[&str], &str); 10] = [
        (&["attach", "nobody"], "husk ps"),
        (&["inspect", "nobody"], "husk ps"),
        (&["stop", "nobody"], "husk ps"),
        (&["kill", "nobody"], "husk ps"),
        (&["logs", "nobody"], "husk ps"),
        (&["exec", "nobody", "--", "true"], "husk ps"),
        (&["cp", "kernel", "nobody:/tmp/"], "husk ps"),
        (&["cp", "kernel", "elsewhere"], "NAME:PATH"),
        (&["logs", "../../etc"], "no name"),
        (&["run", "--kernel", "kernel", "--name", "a/b"], "no name"),
    ];
    for (args, words) in calls {
        let refused = call(&sandbox, args);
        assert_eq!(refused.status, 125, "{refused:?}");
        assert!(refused.stderr.contains(words), "{refused:?}");
    }
}

#[test]
fn a_directory_in_which_there_can_be_no_names_is_refused_before_the_guest_is_started() {
    let sandbox = sandbox();
    let place = sandbox.path().join("run/husk");
    std::fs::create_dir(&place).unwrap();
    std::fs::set_permissions(&place, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let args = ["run", "--kernel", "kernel", "--memory", "32M", "--name", "one"];
    let refused = call(&sandbox, &args);
    assert_eq!((refused.status, refused.stdout.as_str()), (125, ""), "{refused:?}");
    assert!(refused.stderr.contains("others may enter it"), "{refused:?}");
    let detached = ["run", "--detach", "--kernel", "kernel", "--memory", "32M"];
    let refused = call(&sandbox, &detached);
    assert_eq!((refused.status, refused.stdout.as_str()), (125, ""), "{refused:?}");
    assert!(refused.stderr.contains("others may enter it"), "{refused:?}");
}

#[test]
fn the_log_of_a_vm_that_ends_while_it_is_asked_is_shown_to_who_follows_it() {
    let sandbox = sandbox();
    let place = sandbox.path().join("run/husk");
    std::fs::create_dir(&place).unwrap();
    std::fs::set_permissions(&place, std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
    std::fs::write(place.join("one.log"), "said").unwrap();
    // It is there when it is looked for, and has gone when it is asked.
    let listener = std::os::unix::net::UnixListener::bind(place.join("one.sock")).unwrap();
    std::thread::spawn(move || while listener.accept().is_ok() {});
    let followed = call(&sandbox, &["logs", "-f", "one"]);
    assert_eq!((followed.status, followed.stdout.as_str()), (0, "said"), "{followed:?}");
}

#[track_caller]
fn wait_until(mut is_true: impl FnMut() -> bool) {
    let deadline = std::time::Instant::now() + LIMIT;
    while !is_true() {
        assert!(std::time::Instant::now() < deadline, "it does not come true");
        std::thread::sleep(PAUSE);
    }
}

/// A VM that was detached. Killed when dropped.
struct Detached<'a> {
    sandbox: &'a Sandbox,
    name: String,
}

impl Drop for Detached<'_> {
    fn drop(&mut self) {
        let _ = husk(self.sandbox, &["kill", &self.name]).output();
    }
}

/// Starts a VM that goes on by itself; the caller of husk is told its name, and nothing of it is kept open.
fn detach<'a>(sandbox: &'a Sandbox, args: &[&str]) -> Detached<'a> {
    let least = ["run", "--detach", "--memory", "32M", "--timeout", "600", "--kernel"];
    let started = call(sandbox, &[&least[..], args].concat());
    assert_eq!((started.status, started.stderr.as_str()), (0, ""), "{started:?}");
    Detached { sandbox, name: started.stdout.trim_end().to_owned() }
}

#[test]
fn a_detached_vm_goes_on_and_its_output_and_status_are_there_after_its_end() {
    needs_kvm!();
    let sandbox = sandbox();
    let short = image(32, |a| {
        a.say("first\n")?;
        a.say("last\n")?;
        a.power_off()
    });
    sandbox.file("short", short);
    let (one, other) = (detach(&sandbox, &["kernel"]), detach(&sandbox, &["kernel"]));
    assert!(one.name.starts_with("vm-") && one.name != other.name, "{} {}", one.name, other.name);
    let named = detach(&sandbox, &["short", "--name", "short"]);
    assert_eq!(named.name, "short");
    let waited = call(&sandbox, &["wait", "short"]);
    assert_eq!((waited.status, waited.stdout.as_str()), (0, "0\n"), "{waited:?}");
    // It is as well known when it has gone.
    assert_eq!(call(&sandbox, &["wait", "short"]).stdout, "0\n");
    assert_eq!(call(&sandbox, &["logs", "short"]).stdout, "first\nlast\n");
    assert_eq!(call(&sandbox, &["logs", "-f", "short"]).stdout, "first\nlast\n");
    let all = call(&sandbox, &["ps", "--all"]).stdout;
    assert!(all.contains(&one.name) && all.contains("(ended with 0)"), "{all}");
    assert!(!call(&sandbox, &["ps"]).stdout.contains("short"));
    let all = call(&sandbox, &["ps", "--all", "--json"]).stdout;
    let all: serde_json::Value = serde_json::from_str(&all).unwrap();
    let found = all.as_array().unwrap().iter().find(|vm| vm["name"] == "short").unwrap();
    assert!(found["status"] == 0 && found["ended"].is_u64(), "{all}");
    assert!(all.as_array().unwrap().iter().any(|vm| vm["pid"].is_u64()), "{all}");
    for args in [&["exec", "short", "--", "true"][..], &["stop", "short"], &["inspect", "short"]] {
        let gone = call(&sandbox, args);
        let words = "`short` has ended with status 0; `husk logs short`";
        assert!(gone.status == 125 && gone.stderr.contains(words), "{gone:?}");
    }

    // Those who follow and wait hear of the end, and of what was written meanwhile.
    wait_until(|| call(&sandbox, &["logs", &one.name]).stdout == "up");
    // Who reads no more has seen enough.
    for args in [["attach", &one.name], ["logs", &one.name]] {
        let mut unread = husk(&sandbox, &args);
        let unread = unread.stdout(broken_pipe()).stdin(std::process::Stdio::null());
        let unread = Running::start(unread).finish();
        assert_eq!((unread.status, unread.stderr.as_str()), (0, ""), "{args:?}");
    }
    let follower = Running::start(&mut husk(&sandbox, &["logs", "--follow", &one.name]));
    let waiter = Running::start(&mut husk(&sandbox, &["wait", &one.name]));
    assert_eq!(call(&sandbox, &["kill", &one.name]).status, 0);
    let followed = follower.finish();
    assert_eq!((followed.status, followed.stdout.as_str()), (0, "up"), "{followed:?}");
    let waited = waiter.finish();
    assert_eq!((waited.status, waited.stdout.as_str()), (0, "0\n"), "{waited:?}");

    // Another one of the name has a log of its own.
    let again = detach(&sandbox, &["short", "--name", "short"]);
    assert_eq!(call(&sandbox, &["wait", &again.name]).stdout, "0\n");
    assert_eq!(call(&sandbox, &["logs", "short"]).stdout, "first\nlast\n");
    // One that is killed leaves no word, and who waits is told so.
    let told = call(&sandbox, &["inspect", "--json", &other.name]).stdout;
    let pid: libc::pid_t = serde_json::from_str::<serde_json::Value>(&told).unwrap()["pid"]
        .as_i64()
        .unwrap()
        .try_into()
        .unwrap();
    let waiter = Running::start(&mut husk(&sandbox, &["wait", &other.name]));
    // SAFETY: kill touches no memory; the VM's husk runs, for it has just told its id.
    assert_eq!(unsafe { libc::kill(pid, libc::SIGKILL) }, 0);
    assert_eq!(waiter.finish().status, 125);
    let all = call(&sandbox, &["ps", "--all"]).stdout;
    let its = all.lines().find(|line| line.starts_with(&other.name));
    assert!(its.is_some_and(|line| line.ends_with("(its husk was killed)")), "{all}");
    let waited = call(&sandbox, &["wait", &other.name]);
    assert!(waited.status == 125 && waited.stderr.contains("was ended before"), "{waited:?}");
}

#[test]
fn a_detached_vm_that_does_not_come_to_run_is_told_to_whoever_started_it() {
    needs_kvm!();
    let sandbox = sandbox();
    sandbox.file("off", image(32, |a| a.power_off()));
    let least = ["run", "--detach", "--memory", "32M", "--name", "one", "--kernel"];
    for (args, status, words) in [
        (&["none"][..], 125, "none"),
        (&["kernel", "--disk", "none"], 125, "none"),
        (&["kernel", "--cpus", "0"], 125, "--cpus"),
        (&["off", "--", "true"], 125, "turned itself off"),
        (&["kernel", "--timeout", "0.5", "--", "true"], 124, "not ready"),
    ] {
        let refused = call(&sandbox, &[&least[..], args].concat());
        assert_eq!((refused.status, refused.stdout.as_str()), (status, ""), "{refused:?}");
        assert!(refused.stderr.contains(words), "{refused:?}");
        let left: Vec<_> = sandbox.path().join("run/husk").read_dir().unwrap().collect();
        assert!(left.is_empty(), "{args:?} left {left:?}");
    }
    // Nothing could be known of its end, as in a directory without room.
    std::fs::create_dir(sandbox.path().join("run/husk/one.end")).unwrap();
    let refused = call(&sandbox, &[&least[..], &["kernel"]].concat());
    assert_eq!((refused.status, refused.stdout.as_str()), (125, ""), "{refused:?}");
    assert!(refused.stderr.contains("one.end"), "{refused:?}");
    std::fs::remove_dir(sandbox.path().join("run/husk/one.end")).unwrap();
    let refused = call(&sandbox, &["run", "--kernel", "kernel", "--keep-on-failure"]);
    assert!(refused.status == 125 && refused.stderr.contains("-- CMD"), "{refused:?}");
    let refused = call(&sandbox, &["wait", "one"]);
    assert!(refused.status == 125 && refused.stderr.contains("husk ps"), "{refused:?}");
}

#[test]
fn a_signal_for_who_starts_a_detached_vm_ends_it_before_it_runs() {
    needs_kvm!();
    let sandbox = sandbox();
    let args = ["run", "--detach", "--kernel", "kernel", "--memory", "32M", "--name", "one"];
    let mut command = husk(&sandbox, &[&args[..], &["--", "true"]].concat());
    let starting = Running::start(&mut command);
    wait_until(|| call(&sandbox, &["inspect", "one"]).status == 0);
    starting.signal(libc::SIGINT);
    let ended = starting.finish();
    assert_eq!((ended.status, ended.stdout.as_str()), (130, ""), "{ended:?}");
    assert_eq!(sandbox.path().join("run/husk").read_dir().unwrap().count(), 0);
}
