//! What /proc says of an instance and of the host: memory, processes, namespaces, filters.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

/// Every process that belongs to one: `root`, all it started, and those that carry one of `names` as a
/// word of their command line (a shim or monitor that was detached) with all that they started.
pub fn members(root: u32, names: &[&str]) -> Vec<u32> {
    let parents = parents();
    let mut members = BTreeSet::from([root]);
    members.extend(parents.keys().filter(|pid| has_word(**pid, names)));
    loop {
        let more: Vec<u32> = parents
            .iter()
            .filter(|(pid, parent)| members.contains(parent) && !members.contains(pid))
            .map(|(pid, _)| *pid)
            .collect();
        if more.is_empty() {
            return members.into_iter().collect();
        }
        members.extend(more);
    }
}

/// Each process and its parent.
fn parents() -> BTreeMap<u32, u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter_map(|pid| Some((pid, parent_of(&stat(pid)?)?))).collect()
}

fn stat(pid: u32) -> Option<String> {
    fs::read_to_string(format!("/proc/{pid}/stat")).ok()
}

/// Field 4 of `proc_pid_stat(5)`. The second, in parentheses, may hold anything.
fn parent_of(stat: &str) -> Option<u32> {
    stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()
}

fn has_word(pid: u32, words: &[&str]) -> bool {
    let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    line.split(|byte| *byte == 0).any(|word| words.iter().any(|wanted| wanted.as_bytes() == word))
}

/// The proportional share of memory of these processes in bytes: what several have in common counts
/// to each in part. `None` when that of one cannot be read; one that has ended has none.
pub fn pss(pids: &[u32]) -> Option<u64> {
    let mut sum = 0;
    for pid in pids {
        match fs::read_to_string(format!("/proc/{pid}/smaps_rollup")) {
            Ok(text) => sum += kib(&text, "Pss:").unwrap_or(0),
            // ESRCH: it has ended, or is a thread of the kernel.
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
            Err(e) if e.raw_os_error() == Some(libc::ESRCH) => {}
            Err(_) => return None,
        }
    }
    Some(sum * 1024)
}

/// A line of `text` that begins with `name`, a number in kB.
fn kib(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.trim().trim_end_matches(" kB").parse().ok()
}

/// A line of /proc/meminfo, in bytes.
pub fn meminfo(name: &str) -> Option<u64> {
    Some(kib(&fs::read_to_string("/proc/meminfo").ok()?, name)? * 1024)
}

/// The kinds of namespaces in which one of these processes is not where this one is.
pub fn namespaces(pids: &[u32]) -> Vec<String> {
    let of = |pid: &str, kind: &str| fs::read_link(format!("/proc/{pid}/ns/{kind}")).ok();
    let kinds = ["user", "pid", "mnt", "net", "ipc", "uts", "cgroup"];
    let apart = |kind: &&str| {
        let own = of("self", kind);
        pids.iter().any(|pid| of(&pid.to_string(), kind).is_some_and(|ns| Some(ns) != own))
    };
    kinds.iter().filter(|kind| apart(kind)).map(|kind| (*kind).to_owned()).collect()
}

/// Which of these processes is called with these as its last words.
pub fn called(pids: &[u32], words: &[&str]) -> Option<u32> {
    let tail: Vec<u8> = words.iter().flat_map(|word| [word.as_bytes(), b"\0"].concat()).collect();
    let mut pids = pids.iter().copied();
    pids.find(|pid| {
        fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line.ends_with(&tail))
    })
}

/// How many threads of these processes have a filter of system calls (`Seccomp: 2` of
/// `proc_pid_status(5)`), and how many there are.
pub fn filtered(pids: &[u32]) -> (usize, usize) {
    let (mut filtered, mut all) = (0, 0);
    for pid in pids {
        for task in fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten() {
            let Ok(status) = fs::read_to_string(task.path().join("status")) else { continue };
            all += 1;
            filtered += usize::from(has_filter(&status));
        }
    }
    (filtered, all)
}

/// Whether the thread of this `status` (`proc_pid_status(5)`) has a filter of system calls.
pub fn has_filter(status: &str) -> bool {
    let mode = status.lines().find_map(|line| line.strip_prefix("Seccomp:"));
    mode.is_some_and(|mode| mode.trim() == "2")
}

/// The processes of a program called `name` (its first 15 bytes, `proc_pid_comm(5)`), but for those `but`.
pub fn programs(name: &str, but: &[u32]) -> Vec<u32> {
    let is_called = |pid: &u32| {
        fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|comm| comm.trim_end() == name)
    };
    parents().into_keys().filter(|pid| !but.contains(pid) && is_called(pid)).collect()
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn children_and_those_who_carry_the_name_belong_to_an_instance() {
        let id = format!("husk-compare-test-{}", std::process::id());
        let mut child = Command::new("sleep").arg("1000").spawn().unwrap();
        let script = "read x; exit $1";
        let mut named = Command::new("/bin/sh")
            .args(["-c", script, "sh", &id])
            .stdin(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let end = std::time::Instant::now() + std::time::Duration::from_secs(30);
        // It is not named so before its exec.
        while !has_word(named.id(), &[&id]) && std::time::Instant::now() < end {
            std::thread::yield_now();
        }
        let ours = members(std::process::id(), &["no such name"]);
        assert!(ours.contains(&child.id()) && ours.contains(&named.id()));
        let found = members(child.id(), &["another name", &id]);
        let (mut expected, pss) = (vec![child.id(), named.id()], pss(&found));
        expected.sort_unstable();
        for process in [&mut child, &mut named] {
            process.kill().unwrap();
            process.wait().unwrap();
        }
        assert_eq!(found, expected);
        assert!(pss.is_some_and(|pss| pss > 0));
    }

    #[test]
    fn a_process_with_a_filter_of_system_calls_is_counted_as_such_and_found_by_its_words() {
        use std::os::unix::process::CommandExt;
        // A filter that lets everything pass (`linux/filter.h`, `linux/seccomp.h`): it returns
        // SECCOMP_RET_ALLOW.
        let all = libc::sock_filter { code: 0x06, jt: 0, jf: 0, k: libc::SECCOMP_RET_ALLOW };
        let filter = move || {
            let mut all = all;
            let program = libc::sock_fprog { len: 1, filter: &mut all };
            // SAFETY: plain numbers, and a program that is alive through the call.
            let failed = unsafe {
                libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0
                    || libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &program) != 0
            };
            if failed { Err(std::io::Error::last_os_error()) } else { Ok(()) }
        };
        let name = format!("{}", 100_000 + std::process::id());
        let start = |with| {
            let mut command = Command::new("sleep");
            command.arg(&name);
            if with {
                // SAFETY: it makes two system calls and allocates nothing.
                unsafe { command.pre_exec(filter) };
            }
            command.spawn().unwrap()
        };
        let (mut with, mut without) = (start(true), start(false));
        let pids = [without.id(), with.id()];
        // Its words are those of its program as soon as that runs, a moment after it is started.
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
        let found = loop {
            match called(&pids[1..], &["sleep", &name]) {
                None if std::time::Instant::now() < deadline => std::thread::yield_now(),
                found => break found,
            }
        };
        let counts = [filtered(&pids), filtered(&pids[..1]), filtered(&pids[1..])];
        let none = called(&pids, &["sleep"]);
        for process in [&mut with, &mut without] {
            process.kill().unwrap();
            process.wait().unwrap();
        }
        assert_eq!(counts, [(1, 2), (0, 1), (1, 1)]);
        assert_eq!((found, none), (Some(pids[1]), None));
    }

    #[test]
    fn daemons_are_found_by_their_program_but_not_those_that_belong_to_an_instance() {
        // A name that nobody else has: it is that of the file that is run.
        let dir = tempfile::tempdir().unwrap();
        let name = format!("hd{}", std::process::id());
        std::os::unix::fs::symlink("/bin/sleep", dir.path().join(&name)).unwrap();
        let start = || Command::new(dir.path().join(&name)).arg("1000").spawn().unwrap();
        let (mut a, mut b) = (start(), start());
        let end = std::time::Instant::now() + std::time::Duration::from_secs(30);
        while programs(&name, &[]).len() < 2 && std::time::Instant::now() < end {
            std::thread::yield_now();
        }
        let (mut all, but) = (programs(&name, &[]), programs(&name, &[a.id()]));
        let (mut expected, second) = (vec![a.id(), b.id()], b.id());
        for process in [&mut a, &mut b] {
            process.kill().unwrap();
            process.wait().unwrap();
        }
        all.sort_unstable();
        expected.sort_unstable();
        assert_eq!((all, but), (expected, vec![second]));
        assert!(programs("no-such-daemon", &[]).is_empty());
    }

    #[test]
    fn a_parent_is_read_whatever_the_program_is_called() {
        assert_eq!(parent_of("17 (a) R 9 (b)) S 42 17 17 0"), Some(42));
        assert_eq!(parent_of("17"), None);
    }

    #[test]
    fn this_process_is_in_no_namespace_but_its_own() {
        assert!(namespaces(&[std::process::id()]).is_empty());
        assert!(filtered(&[std::process::id()]).1 > 0);
        assert!(meminfo("MemAvailable:").is_some_and(|bytes| bytes > 0));
        assert_eq!(kib("A: 1 kB\nPss:     12 kB\n", "Pss:"), Some(12));
    }
}
