//! Many VMs of as many processes at the same time, for `cargo xtask soak` alone: none of them is in another's
//! way, and of none of them anything is left.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod guest;

use std::process::{Command, Stdio};
use std::time::Instant;

use guest::{Lab, MODULES_CLOUD, TINY, VMLINUZ_CLOUD, husk, kernel_cache, soak_rounds};

/// How many run at once.
const AT_ONCE: usize = 20;

#[test]
fn commands_in_many_vms_at_once_end_each_with_their_own_status_and_leave_nothing() {
    let Some(lab) = Lab::open() else { return };
    // Whatever it is that husk makes, it makes it here.
    let [tmp, runtime] = ["tmp", "runtime"].map(|name| {
        let path = lab.path(name);
        std::fs::create_dir(&path).unwrap();
        path
    });
    for round in 0..soak_rounds(1, 2) {
        let begin = Instant::now();
        let started: Vec<_> = (0..AT_ONCE)
            .map(|n| {
                let mut command = Command::new(husk());
                guest::process::with_ordinary_signals(&mut command);
                command
                    .env("XDG_CACHE_HOME", kernel_cache())
                    .env("XDG_DATA_HOME", lab.path("data"));
                command.env("TMPDIR", &tmp).env("XDG_RUNTIME_DIR", &runtime);
                command.arg("run").arg("--kernel").arg(lab.asset(VMLINUZ_CLOUD));
                if lab.asset(MODULES_CLOUD).is_dir() {
                    command.arg("--modules").arg(lab.asset(MODULES_CLOUD));
                }
                command.arg("--initrd").arg(lab.asset(TINY)).args(["--memory", "96M"]);
                // An emulated host has one processor for all of them.
                command.args(["--timeout", "1800"]);
                // Every other one has a name, which is a file as long as it is taken.
                if n % 2 == 0 {
                    command.args(["--name", &format!("many-{n}")]);
                }
                let script = format!("echo out {n}; echo err {n} >&2; exit {n}");
                command.args(["--", "/bin/busybox", "sh", "-c", &script]);
                command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
                command.spawn().unwrap()
            })
            .collect();
        // All are waited for before the first is judged: a failure leaves none running.
        let ended: Vec<_> = started.into_iter().map(|vm| vm.wait_with_output().unwrap()).collect();
        for (n, output) in ended.into_iter().enumerate() {
            let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
            let (stdout, stderr) = (text(&output.stdout), text(&output.stderr));
            let status = guest::process::status(output.status);
            let wanted = (n as i32, format!("out {n}\n"), format!("err {n}\n"));
            assert_eq!((status, stdout, stderr), wanted, "VM {n} in round {round}");
        }
        eprintln!("{AT_ONCE} VMs at once ended after {:.1?}", begin.elapsed());
        let left = |directory: &std::path::Path| -> Vec<_> {
            let entries = std::fs::read_dir(directory).into_iter().flatten();
            entries.map(|entry| entry.unwrap().file_name()).collect()
        };
        assert!(left(&tmp).is_empty(), "{:?}", left(&tmp));
        assert!(left(&runtime.join("husk")).is_empty(), "{:?}", left(&runtime.join("husk")));
    }
}
