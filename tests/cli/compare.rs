//! `husk compare` as a user runs it, with what needs neither KVM nor root; and what is mistyped.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::fixture::{process, skipped};

/// `husk compare` with everything it writes in `dir`.
fn compare(dir: &Path, args: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_husk"));
    process::with_ordinary_signals(&mut command);
    command.arg("compare").args(args.split_whitespace());
    command.current_dir(dir).env("TMPDIR", dir).env("HOME", dir).env_remove("HUSK_KERNEL");
    command
}

/// Status, stdout and stderr.
fn run(dir: &Path, args: &str) -> (i32, String, String) {
    let done = compare(dir, args).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (process::status(done.status), text(done.stdout), text(done.stderr))
}

/// Whether the workload's program is here; if not, says that the calling test is skipped.
fn has_busybox(said: &str) -> bool {
    let has = !said.contains("busybox-static");
    if !has {
        skipped("no statically linked busybox");
    }
    has
}

#[test]
fn a_mistyped_option_is_answered_before_anything_is_started_or_written() {
    let dir = tempfile::tempdir().unwrap();
    for (args, words) in [
        ("--with proces,crun", "did you mean process?"),
        ("--with process,", "no contestant called \"\""),
        ("--with process --workload tru", "did you mean true?"),
        ("--with process --runs 0", "--runs must be from 1 to 100000, and is 0"),
        ("--with process --parallel 1,0", "a level of --parallel must be from 1 to 1000"),
        ("--with process --parallel 1,x", "--parallel"),
        ("--with process --idle 9999", "--idle must be from 0 to 1000"),
        ("--with process --seed -1", "--seed"),
    ] {
        let (status, out, err) = run(dir.path(), args);
        assert_eq!((status, out.as_str()), (125, ""), "{args}: {err}");
        assert!(err.contains(words), "{args}: {err}");
    }
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn a_directory_for_the_results_that_cannot_be_made_is_named_first() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("file"), "").unwrap();
    let (status, out, err) = run(dir.path(), "--with process --out file/results");
    assert_eq!((status, out.as_str()), (125, ""));
    assert!(err.starts_with("husk: making file/results: "), "{err}");
}

#[test]
fn a_vm_without_a_kernel_or_a_kvm_that_boots_it_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let (status, _, err) = run(dir.path(), "--with process,husk --kernel no-such-kernel --runs 1");
    assert_eq!(status, 125, "{err}");
    let boots = Command::new(env!("CARGO_BIN_EXE_husk")).arg("doctor").output().unwrap();
    let words = match (boots.status.success(), err.contains("busybox-static")) {
        (_, true) => "busybox-static",
        (true, _) => "no-such-kernel",
        (false, _) => "`husk compare --with process`",
    };
    assert!(err.contains(words), "{err}");
}

#[test]
fn processes_are_compared_and_the_results_are_files() {
    let dir = tempfile::tempdir().unwrap();
    let args = "--with process --runs 4 --parallel 1,2 --idle 1 --seed 3";
    let (status, table, err) = run(dir.path(), args);
    if !has_busybox(&err) {
        return;
    }
    assert_eq!(status, 0, "{err}");
    assert!(table.contains("(--seed 3)") && table.contains("×process"), "{table}");
    assert!(err.contains("results.csv") && !err.contains('\u{1b}'), "{err}");
    let csv = std::fs::read_to_string(dir.path().join("husk-compare/results.csv")).unwrap();
    assert_eq!(csv.lines().count(), 1 + 4 + 4, "{csv}");
    let axes = run(dir.path(), &format!("{args} --table --out other")).1;
    assert!(axes.contains("\nisolation\n") && axes.contains("not yet"), "{axes}");
    let mut left: Vec<_> =
        std::fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    left.sort();
    assert_eq!(left, ["husk-compare", "other"]);
}

/// A directory with a link to the statically linked busybox and nothing else; if there is none, says that the
/// calling test is skipped.
fn only_busybox(dir: &Path) -> Option<PathBuf> {
    let said = run(dir, "--with process --runs 1 --parallel 1 --idle 0 --out tried").2;
    if !has_busybox(&said) {
        return None;
    }
    let path = dir.join("path");
    fs::create_dir(&path).unwrap();
    let places = std::env::var_os("PATH").unwrap_or_default();
    for name in ["busybox", "busybox-static", "busybox.static"] {
        // It is a link to all that is so called; which of them is the one, husk finds out.
        if let Some(found) =
            std::env::split_paths(&places).map(|d| d.join(name)).find(|p| p.exists())
        {
            std::os::unix::fs::symlink(found, path.join(name)).unwrap();
        }
    }
    Some(path)
}

#[test]
fn what_is_not_installed_is_left_out_with_the_package_that_brings_it() {
    let dir = tempfile::tempdir().unwrap();
    let Some(path) = only_busybox(dir.path()) else { return };
    // For husk where KVM boots Linux: no kernel, so that it is left out as well.
    fs::write(dir.path().join("kernel"), "no kernel").unwrap();
    let args = "--runs 1 --parallel 1 --idle 0 --kernel kernel";
    let done = compare(dir.path(), args).env("PATH", &path).output().unwrap();
    let (table, err) = (String::from_utf8(done.stdout).unwrap(), String::from_utf8(done.stderr));
    assert_eq!(process::status(done.status), 0, "{err:?}");
    assert!(table.lines().any(|line| line.starts_with("process ")), "{table}");
    for (name, package) in [
        ("crun", "`apt-get install crun`"),
        ("podman", "`apt-get install podman`"),
        ("docker", "`apt-get install docker.io`"),
        ("firecracker", "a release of https://github.com/firecracker-microvm/firecracker"),
    ] {
        // It is looked for where administrators' tools are, too.
        if Path::new("/usr/sbin").join(name).exists() {
            continue;
        }
        let line = format!("left out: {name}: not on PATH: {package}");
        assert!(table.lines().any(|said| said == line), "{line}\n{table}");
        let args = format!("--with process,{name} --runs 1");
        let done = compare(dir.path(), &args).env("PATH", &path).output().unwrap();
        let err = String::from_utf8(done.stderr).unwrap();
        assert_eq!(process::status(done.status), 125, "{name}: {err}");
        assert!(err.contains(package), "{name}: {err}");
    }
    assert!(table.lines().any(|line| line.starts_with("left out: husk: ")), "{table}");
}

#[test]
fn every_workload_is_done() {
    for workload in ["python", "http"] {
        let dir = tempfile::tempdir().unwrap();
        let args = "--with process --runs 1 --parallel 1 --idle 1 --workload";
        let (status, table, err) = run(dir.path(), &format!("{args} {workload}"));
        if !has_busybox(&err) {
            return;
        }
        if err.contains("this host's python3") {
            skipped(err);
            continue;
        }
        assert_eq!(status, 0, "{workload}: {err}");
        assert!(table.starts_with(&format!("workload {workload}, 1 run each")), "{table}");
        assert!(!table.contains("failed") && !table.contains("left out"), "{table}");
        let csv = fs::read_to_string(dir.path().join("husk-compare/results.csv")).unwrap();
        let run = csv.lines().last().unwrap();
        assert!(run.starts_with("process,process,") && run.ends_with(','), "an error: {run}");
    }
}

/// A docker that knows one image, and in a container of which a plain process runs.
const DOCKER: &str = r#"#!/bin/sh
PATH=/usr/bin:/bin:$PATH
dir=${0%/*}
echo "$*" >>"$dir/log"
case $1 in
--version) echo "Docker version 0 for tests" ;;
version) [ ! -e "$dir/no-daemon" ] || { echo "Cannot connect to the daemon at all" >&2; exit 1; } ;;
import) mkdir "$dir/image" && busybox tar -x -C "$dir/image" -f "$2" && echo "$3" >"$dir/name" ;;
rmi) [ "$3" = "$(cat "$dir/name")" ] && rm -r "$dir/image" "$dir/name" ;;
run)
    while [ "$1" != /bin/busybox ]; do
        [ "$1" != --cidfile ] || echo 0123456789abcdef >"$2"
        before=$1
        shift
    done
    [ "$before" = "$(cat "$dir/name")" ] || exit 125
    cd "$dir/image" && shift && exec ./bin/busybox "$@" ;;
esac
"#;

#[test]
fn docker_gets_an_image_of_the_files_which_is_gone_at_the_end() {
    let dir = tempfile::tempdir().unwrap();
    let Some(path) = only_busybox(dir.path()) else { return };
    let docker = path.join("docker");
    fs::write(dir.path().join("docker"), DOCKER).unwrap();
    // By another process: no other test's child can have it open for writing, or it would be busy.
    let mut install = Command::new("install");
    install.args(["-m", "755"]).arg(dir.path().join("docker")).arg(&docker);
    assert!(install.status().unwrap().success());
    let compare = || {
        let args = "--with process,docker --runs 2 --parallel 1 --idle 1";
        let done = compare(dir.path(), args).env("PATH", &path).output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        assert!(done.status.success(), "{}", text(done.stderr));
        (text(done.stdout), fs::read_to_string(path.join("log")).unwrap())
    };
    let (table, log) = compare();
    assert!(!table.contains("left out") && !table.contains("failed"), "{table}\n{log}");
    assert!(table.lines().any(|line| line.starts_with("docker ")), "{table}");
    assert!(!path.join("image").exists() && !path.join("name").exists(), "{log}");
    let runs = log.lines().filter(|line| line.starts_with("run --rm --name husk-compare-"));
    // The warm-up, two runs, and one that idles, which is killed and so deleted.
    assert_eq!(runs.clone().count(), 4, "{log}");
    for run in runs {
        for word in ["--network=none", "--read-only", "--pull=never", " husk-compare:"] {
            assert!(run.contains(word), "{run}");
        }
    }
    assert_eq!(log.lines().filter(|line| line.starts_with("rm --force ")).count(), 1, "{log}");
    assert_eq!(log.lines().filter(|line| line.starts_with("rmi --force ")).count(), 1, "{log}");

    fs::write(path.join("no-daemon"), "").unwrap();
    let table = compare().0;
    let why = "left out: docker: no daemon answers: Cannot connect to the daemon at all";
    assert!(table.contains(why), "{table}");
    assert!(table.lines().any(|line| line.starts_with("process ")), "{table}");
}

#[test]
fn a_docker_that_is_installed_takes_part_or_is_left_out_in_its_own_words() {
    if Command::new("docker").arg("--version").output().is_err() {
        return skipped("no docker");
    }
    let dir = tempfile::tempdir().unwrap();
    let (status, table, err) =
        run(dir.path(), "--with process,docker --runs 1 --parallel 1 --idle 0");
    if !has_busybox(&err) {
        return;
    }
    assert_eq!(status, 0, "{err}");
    // With a daemon it has to run; without one it is left out in its client's words.
    let none = "left out: docker: no daemon answers: ";
    let left_out = table.lines().find_map(|line| line.strip_prefix(none));
    let ran = table.lines().any(|line| line.starts_with("docker ") && !line.contains("none"));
    assert!(ran || left_out.is_some_and(|why| why.len() > 20), "{table}");
}

/// Killed when dropped.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // Both fail only when it has ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn ctrl_c_ends_it_and_leaves_nothing_behind() {
    let dir = tempfile::tempdir().unwrap();
    let mut command = compare(dir.path(), "--with process --runs 100000 --parallel 1 --idle 0");
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut running = Running(command.spawn().unwrap());
    let scratch = || {
        let entries = std::fs::read_dir(dir.path()).unwrap().flatten();
        let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
        names.filter(|name| name.starts_with("husk-compare-")).count()
    };
    let end = Instant::now() + Duration::from_secs(60);
    while scratch() == 0 && running.0.try_wait().unwrap().is_none() {
        assert!(Instant::now() < end, "it never began");
        std::thread::sleep(Duration::from_millis(10));
    }
    let pid = libc::pid_t::try_from(running.0.id()).unwrap();
    // SAFETY: kill touches no memory; the child has not been waited for, so the id is its own.
    unsafe { libc::kill(pid, libc::SIGINT) };
    let status = loop {
        if let Some(status) = running.0.try_wait().unwrap() {
            break status;
        }
        assert!(Instant::now() < end, "it does not end");
        std::thread::sleep(Duration::from_millis(10));
    };
    let err = std::io::read_to_string(running.0.stderr.take().unwrap()).unwrap();
    if !has_busybox(&err) {
        return;
    }
    assert_eq!(process::status(status), 128 + libc::SIGINT, "{err}");
    assert!(err.contains("given up"), "{err}");
    assert_eq!(scratch(), 0);
}
