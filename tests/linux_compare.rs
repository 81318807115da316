//! `husk compare` with a guest that boots: a process, a container where crun is installed, and husk,
//! on one clock.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests"
)]

mod guest;

use std::fs;
use std::path::Path;
use std::process::Command;

use guest::{Lab, VMLINUZ_CLOUD, husk, kernel_cache, process, skipped};

/// The figures of a line of a table: everything behind the name.
fn figures(table: &str, title: &str, name: &str) -> Vec<f64> {
    let lines = table.lines().skip_while(|line| !line.starts_with(title));
    let line = lines
        .skip(2)
        .take_while(|line| !line.is_empty())
        .find(|line| line.split_whitespace().next() == Some(name));
    let line = line.unwrap_or_else(|| panic!("no {name} under {title:?}:\n{table}"));
    line.split_whitespace().skip(1).map(|word| word.parse().unwrap_or(f64::NAN)).collect()
}

#[test]
fn a_process_a_container_and_a_guest_are_compared_on_one_clock() {
    let Some(lab) = Lab::open() else { return };
    let has = |program: &str| {
        let has = Command::new(program).arg("--version").output().is_ok();
        if !has {
            skipped(format!("the part of {program}, which is not here"));
        }
        has
    };
    let (crun, strace) = (has("crun"), has("strace"));
    let mut names = vec!["process", "husk"];
    names.extend(crun.then_some("crun"));
    let with = names.join(",");
    let (out, scratch) = (lab.path("out"), lab.path("scratch"));
    fs::create_dir(&scratch).unwrap();
    let mut command = Command::new(husk());
    process::with_ordinary_signals(&mut command);
    command
        .args(["compare", "--runs", "3", "--parallel", "1", "--idle", "1", "--seed", "7"])
        .args(["--table", "--with", &with, "--kernel"])
        .arg(lab.asset(VMLINUZ_CLOUD))
        .arg("--out")
        .arg(&out)
        .env("XDG_CACHE_HOME", kernel_cache())
        .env("TMPDIR", &scratch);
    let done = command.output().unwrap();
    let axes = String::from_utf8(done.stdout).unwrap();
    let said = String::from_utf8(done.stderr).unwrap();
    assert_eq!(process::status(done.status), 0, "{said}\n{axes}");
    // The page has both tables.
    let html = fs::read_to_string(out.join("report.html")).unwrap();
    let page = html.replace("&lt;", "<").replace("&gt;", ">").replace("&quot;", "\"");
    let page = page.replace("&amp;", "&");
    assert!(page.contains(&format!("<pre>{axes}</pre>")), "{axes}\n{page}");
    let table = page.split_once("<h2>figures</h2>\n<pre>").unwrap().1;
    let table = table.split_once("</pre>").unwrap().0.to_owned();
    let of = |axis: &str, name: &str| {
        let lines = axes.lines().skip_while(|line| *line != axis).skip(1);
        let mut lines = lines.take_while(|line| line.starts_with("  "));
        let line = lines.find(|line| line.split_whitespace().next() == Some(name));
        line.unwrap_or_else(|| panic!("no {name} under {axis}:\n{axes}")).to_owned()
    };
    for name in &names {
        assert!(of("start-up", name).contains("ms to the workload's first line"), "{axes}");
        assert!(of("resources", name).contains("MiB of memory"), "{axes}");
    }
    assert!(of("isolation", "process").contains("the host's kernel"), "{axes}");
    assert!(of("isolation", "husk").contains("a kernel of its own"), "{axes}");
    assert!(!table.contains("left out") && !table.contains("failed"), "{table}");

    // Everyone has run, and a guest takes longer to come than a process.
    let first = "fork → to the first line of the workload, ms, one at a time";
    let exit = "fork → to its end, reaped, ms, one at a time";
    for name in &names {
        let (first, exit) = (figures(&table, first, name), figures(&table, exit, name));
        // p50, p95, p99, ratio, runs
        assert_eq!((first.len(), first[4], exit[4]), (5, 3.0, 3.0), "{table}");
        assert!(0.0 < first[0] && first[0] <= exit[0] && first[0] <= first[2], "{table}");
    }
    assert!(figures(&table, first, "husk")[3] > 1.0, "{table}");
    assert!(table.contains("the guests' kernel: Linux 6."), "{table}");
    let phases = table.lines().find(|line| line.starts_with("husk     start of the VMM "));
    let phases = phases.unwrap_or_else(|| panic!("no phases of husk: {table}"));
    assert!(phases.contains(" → guest kernel "), "{table}");
    // Where KVM can be traced, it says when the kernel began, whoever the VMM is.
    let traced = Path::new("/sys/kernel/tracing/instances").is_dir();
    assert_eq!(phases.contains(" → to the kernel's entry "), traced, "{table}");
    if !traced {
        skipped("the phases that KVM's tracepoints tell: tracefs is not mounted");
    }

    // A guest has far more memory than a process, and stands behind its VMM.
    let idle = |name| figures(&table, "idle, for each of 1", name);
    assert!(idle("husk")[0] > 10.0 * idle("process")[0] && idle("process")[0] > 0.0, "{table}");
    if strace {
        // PSS, taken, disk, "0 of 6" in three words, "all", system calls
        assert!(idle("husk")[7] > 10.0, "{table}");
    }
    if crun {
        let container = table.lines().find(|line| line.contains(" pid mnt net ipc uts"));
        assert!(container.is_some_and(|line| line.starts_with("crun ")), "{table}");
        // Where this host has the profile that containers have by default, the container has its filter:
        // it leaves most system calls, and not all.
        let profile = Path::new("/usr/share/containers/seccomp.json").exists();
        assert_eq!(
            table.contains("crun: with the filter of system calls that "),
            profile,
            "{table}"
        );
        if profile {
            assert!((250.0..360.0).contains(&idle("crun")[6]), "{table}");
        } else {
            assert!(table.contains("crun: without the filter of system calls"), "{table}");
            skipped("the filter of containers: there is no profile");
        }
    }

    // Every run is in the file, and each moment of a guest after the one before it.
    let csv = fs::read_to_string(out.join("results.csv")).unwrap();
    let more = if traced { 3 } else { 0 };
    assert_eq!(csv.lines().count(), 1 + names.len() * 3 + more, "{csv}");
    let husks = || csv.lines().filter(|line| line.starts_with("husk,VM,"));
    let moments = |line: &str| -> Vec<Option<f64>> {
        line.split(',').skip(9).take(5).map(|field| field.parse().ok()).collect()
    };
    for line in husks() {
        // First KVM_RUN, the kernel, init, the workload, the end.
        let seen = moments(line);
        let kernel_is_seen = line.contains(",warm,yes,");
        assert_eq!(seen.iter().flatten().count(), if kernel_is_seen { 5 } else { 4 }, "{line}");
        assert!(seen.iter().flatten().is_sorted() && seen[0] > Some(0.0), "{line}");
        assert_eq!(seen[1].is_some(), kernel_is_seen, "{line}");
        // A guest's kernel is entered at once, and is what takes the time.
        if let [Some(run), Some(kernel), Some(init), ..] = seen[..] {
            assert!(kernel - run < (init - kernel) / 2.0, "{line}");
        }
    }
    assert_eq!(husks().filter(|line| line.contains(",warm,yes,")).count(), more, "{csv}");
    let left = fs::read_dir("/sys/kernel/tracing/instances").into_iter().flatten().flatten();
    let left: Vec<_> = left.map(|entry| entry.file_name()).collect();
    assert!(!left.iter().any(|name| name.to_string_lossy().contains("husk-compare")), "{left:?}");
    assert!(html.matches("<svg ").count() >= 4 && html.ends_with("</html>\n"));
    let emulated = table.contains("KVM emulated");
    for output in [&table, &html] {
        assert_eq!(output.contains("themselves emulated"), emulated, "{output}");
    }
    assert_eq!(axes.contains("themselves emulated"), emulated, "{axes}");
    assert_eq!(csv.contains(",emulated,"), emulated);

    assert_eq!(fs::read_dir(&scratch).unwrap().count(), 0, "left behind in {scratch:?}");
    assert_eq!(fs::read_dir(&out).unwrap().count(), 2);
}
