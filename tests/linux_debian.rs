//! The whole of it: Debian's own kernel, a Debian root file system on a disk, a login.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod guest;

use std::ffi::OsStr;
use std::time::{Duration, Instant};

use guest::process::resident_program;
use guest::tools::{fsck, host, read_from};
use guest::{DEBIAN, Lab, PATIENCE, soak_rounds};

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

    let mut guest = lab.guest().args("--cpus 2").disk(&root, "").start();
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
    guest.type_line("poweroff");
    let done = guest.finish();
    done.expect_status(0);
    assert!(done.stderr.is_empty(), "{}", done.stderr);
    fsck(&root);
    assert_eq!(read_from(&root, "/root/answer"), b"answer-42 of husk\n");
    std::fs::remove_file(root).unwrap();
}
