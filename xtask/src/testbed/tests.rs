//! What the testbed promises of a command's end, with an emulator that is none, see `fake-qemu.bash`: what is
//! between xtask and the command is the real thing, but for QEMU and the outer machine's Linux.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Instant;

use clap::Parser;

use super::image::Image;
use super::*;
use crate::{Cli, Command, skipped::skipped};

/// A directory with the emulator in it, gone when this is dropped.
struct Fake(PathBuf);

impl Fake {
    /// `plan` says for each start what becomes of it. `None`, which is said, where there are no namespaces.
    fn new(name: &str, plan: &[&str]) -> Option<Self> {
        let unshare = ["--map-root-user", "--mount", "--pid", "--fork", "true"];
        let unshare = unshare.get(usize::from(host::is_root())..).unwrap_or_default();
        if let Err(error) = host::output(host::command("unshare").args(unshare)) {
            skipped(format!("it needs namespaces: {error:#}"));
            return None;
        }
        if host::find("busybox").is_none() {
            skipped("it needs busybox (busybox-static)");
            return None;
        }
        let dir = std::env::temp_dir().join(format!("husk-testbed-{name}-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let fake = Self(dir);
        fs::write(fake.0.join("qemu"), include_str!("fake-qemu.bash")).unwrap();
        fs::set_permissions(fake.0.join("qemu"), Permissions::from_mode(0o755)).unwrap();
        fake.plan(plan);
        Some(fake)
    }

    fn plan(&self, plan: &[&str]) {
        fs::write(
            self.0.join("plan"),
            plan.iter().map(|line| format!("{line}\n")).collect::<String>(),
        )
        .unwrap();
    }

    /// What the plan had for more starts than there were.
    fn left(&self) -> Vec<String> {
        fs::read_to_string(self.0.join("plan")).unwrap().lines().map(str::to_owned).collect()
    }

    fn options(&self, command: &[&str]) -> Options {
        let command = command.iter().map(OsString::from).collect();
        Options {
            qemu: self.0.join("qemu"),
            directory: self.0.clone(),
            timeout: Duration::from_secs(120),
            ..Options::new(command).unwrap()
        }
    }

    fn run(&self, options: &Options) -> End {
        let none = || Path::new("/dev/null").to_owned();
        let image = Image { kernel: none(), initramfs: none() };
        retried(options, || session(options, &image)).unwrap().end
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[test]
fn the_commands_exit_status_is_that_of_the_testbed() {
    let Some(fake) = Fake::new("status", &[]) else { return };
    fs::write(fake.0.join("no-program"), "").unwrap();
    let here = fake.0.display();
    let seen =
        format!("[ $PWD = {here} ] && [ \"$A\" = \"it's b\" ] && [ $HUSK_TESTBED = 1 ] && exit 3");
    for (command, status) in [
        (&["true"][..], 0),
        (&["sh", "-c", "exit 7"], 7),
        (&["sh", "-c", "exit 255"], 255),
        (&["sh", "-c", "kill -KILL $$"], 128 + 9),
        (&["./no-program"], 126),
        (&["no-such-program"], 127),
        // Its directory and environment are as they should be, and its input is at its end.
        (&["sh", "-c", &seen], 3),
        (&["sh", "-c", "read line || exit 4"], 4),
    ] {
        fake.plan(&["work"]);
        let options = Options { env: vec![("A".into(), "it's b".into())], ..fake.options(command) };
        let end = fake.run(&options);
        assert_eq!((end.status(), &end), (status, &End::Exited(status)), "{command:?}");
    }
    fake.plan(&["work"]);
    let nowhere = Options { directory: "/no/such/directory".into(), ..fake.options(&["true"]) };
    assert_eq!(fake.run(&nowhere), End::Exited(126));
}

#[test]
fn a_command_that_takes_too_long_is_ended_with_124() {
    let Some(fake) = Fake::new("limit", &["work", "work"]) else { return };
    let alive = fake.0.join("alive");
    let command = ["sh", "-c", "while :; do echo; sleep 0.1; done >alive"];
    let options = Options { timeout: Duration::from_secs(2), ..fake.options(&command) };
    let begin = Instant::now();
    let end = fake.run(&options);
    assert_eq!((end.status(), end), (124, End::TimedOut));
    assert!(begin.elapsed() >= options.timeout && begin.elapsed() < Duration::from_secs(60));
    // It was not started again, and it is over: nothing writes any more.
    assert_eq!(fake.left(), ["work"]);
    let len = || alive.metadata().unwrap().len();
    let before = len();
    assert!(before > 0);
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!(len(), before);
}

#[test]
fn a_machine_that_stalls_is_started_once_more() {
    let Some(fake) = Fake::new("stall", &["dead", "work", "work"]) else { return };
    let options =
        Options { stall: Duration::from_secs(1), ..fake.options(&["sh", "-c", "exit 7"]) };
    assert_eq!(fake.run(&options), End::Exited(7));
    assert_eq!(fake.left(), ["work"]);
    fake.plan(&["gone", "work"]);
    assert_eq!(fake.run(&options), End::Exited(7));
    // A command that fails is no machine that does.
    fake.plan(&["work", "work"]);
    assert_eq!(fake.run(&options), End::Exited(7));
    assert_eq!(fake.left(), ["work"]);
}

#[test]
fn a_machine_that_stalls_twice_is_no_failure_of_the_command_but_121() {
    let Some(fake) = Fake::new("stalls", &["dead", "silent", "work"]) else { return };
    let options = Options { stall: Duration::from_secs(1), ..fake.options(&["true"]) };
    let end = fake.run(&options);
    assert_eq!(end.status(), 121);
    assert!(matches!(&end, End::Stalled(why) if why.contains("no heartbeat")), "{end:?}");
    assert_eq!(fake.left(), ["work"]);
    fake.plan(&["gone", "gone", "work"]);
    let end = fake.run(&options);
    assert!(matches!(&end, End::Stalled(why) if why.contains("QEMU ended")), "{end:?}");
    assert_eq!((end.status(), fake.left()), (121, vec!["work".to_owned()]));
    fake.plan(&["gone", "work"]);
    let end = fake.run(&Options { retry: false, ..options });
    assert_eq!((end.status(), fake.left()), (121, vec!["work".to_owned()]));
}

#[test]
fn what_has_read_its_input_is_not_started_again() {
    let options = Options::new(vec!["cat".into()]).unwrap();
    let starts = |stdin_consumed| {
        let mut starts = 0;
        let stall = || {
            starts += 1;
            let end = End::Stalled("test".to_owned());
            Ok(Outcome { end, up: None, total: Duration::ZERO, revivals: 0, stdin_consumed })
        };
        assert_eq!(retried(&options, stall).unwrap().end.status(), 121);
        starts
    };
    assert_eq!((starts(true), starts(false)), (1, 2));
}

#[test]
fn the_command_line_says_what_runs_and_for_how_long() {
    let words = "xtask testbed --timeout 9 --stall 3 --env A=b=c -- sh -c 'exit' --timeout";
    let Ok(Cli { command: Command::Testbed(args) }) = Cli::try_parse_from(words.split(' ')) else {
        panic!("it is not understood: {words}")
    };
    let options = args.options().unwrap();
    assert_eq!(options.command, ["sh", "-c", "'exit'", "--timeout"]);
    assert_eq!((options.timeout.as_secs(), options.stall.as_secs()), (9, 3));
    assert_eq!(options.env, [("A".into(), "b=c".into())]);
    assert!(options.stdin && options.retry);
    assert!(Cli::try_parse_from(["xtask", "testbed", "--timeout", "9"]).is_err());
}
