//! What `cargo xtask demo` does when all is built and fetched, which is what the README begins with. It is all of
//! it but what takes longest and `linux_debian.rs` has: Debian's own way from init to its last script.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod guest;

use std::ffi::OsStr;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use guest::tools::{host, write_into};
use guest::{DEBIAN, FULL, Lab, VMLINUZ_CLOUD, husk, kernel_cache};

/// For Debian's init: what a demo needs of the scripts of a start, then rc.local, which is the last of them and
/// begins the demo; and at once to the end, which it asks for.
const INITTAB: &str = "id:2:initdefault:\n\
    si::sysinit:/bin/sh -c 'mount -t proc proc /proc; mount -t sysfs sys /sys; hostname -F /etc/hostname'\n\
    l2:2:wait:/etc/rc.local\n\
    l0:0:wait:/sbin/poweroff -f\n";

#[test]
fn the_demo_shows_what_the_readme_says_it_shows_and_leaves_nothing() {
    let Some(lab) = Lab::open() else { return };
    let xtask = std::env::var_os("HUSK_XTASK").expect("xtask, which runs this, says where it is");
    let assets = assets_with(&lab, INITTAB);
    let (cards, ram) = (entries("/sys/class/net"), entries("/dev/shm"));
    let mut demo = Command::new(xtask);
    demo.arg("__demo").arg(husk()).arg(assets);
    let done = demo.stdin(Stdio::null()).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).replace('\r', "");
    let (shown, said) = (text(&done.stdout), text(&done.stderr));
    let all = format!("{shown}\n{said}");
    assert_eq!(done.status.code(), Some(0), "{all}");

    let line = |start: &str| {
        let found = shown.lines().find_map(|line| line.strip_prefix(start));
        found.unwrap_or_else(|| panic!("{start:?} is missing: {all}")).trim().to_owned()
    };
    let answer = |title: &str| {
        let mut lines = shown.lines().skip_while(|line| !line.starts_with(title));
        lines.nth(1).unwrap_or_else(|| panic!("{title:?} has no answer: {all}"))
    };
    assert!(answer("== system: uname -a").starts_with("Linux husk "), "{all}");
    assert_eq!(answer("== processors: nproc"), "2", "{all}");
    let written = line("== file written and synced, 4 MiB: ");
    assert!(written.len() > 64, "{written}");
    assert_eq!(line("== file read back from the disk: "), written);
    line("3 packets transmitted, 3 received, 0% packet loss");
    line("HUSK-DEMO-PASSED");
    // What was started, so that it can be started again, where the time went, and that it is over.
    assert!(said.contains("xtask: husk run --kernel "), "{all}");
    assert!(shown.contains("first KVM_RUN") && shown.contains("exit"), "{all}");
    assert!(said.contains("xtask: the demo passed"), "{all}");

    assert_eq!((entries("/sys/class/net"), entries("/dev/shm")), (cards, ram));
}

/// The assets of the demo, with another /etc/inittab in their Debian.
fn assets_with(lab: &Lab, inittab: &str) -> PathBuf {
    let assets = lab.path("assets");
    std::fs::create_dir(&assets).unwrap();
    for name in [VMLINUZ_CLOUD, FULL] {
        symlink(lab.asset(name), assets.join(name)).unwrap();
    }
    let (from, root) = (lab.asset(DEBIAN), assets.join(DEBIAN));
    let words = ["--sparse=always", "--dereference"].map(OsStr::new);
    host("cp", words.into_iter().chain([from.as_os_str(), root.as_os_str()]));
    let file = lab.path("inittab");
    std::fs::write(&file, inittab).unwrap();
    write_into(&root, &file, "/etc/inittab", 0o644);
    assets
}

/// The names in a directory, without husk's cache of kernels.
fn entries(directory: &str) -> Vec<String> {
    let entries = Path::new(directory).read_dir().unwrap().map(|entry| entry.unwrap().file_name());
    let cache = kernel_cache();
    let others = entries.filter(|name| Some(name.as_os_str()) != cache.file_name());
    let mut names: Vec<_> = others.map(|name| name.to_string_lossy().into_owned()).collect();
    names.sort();
    names
}
