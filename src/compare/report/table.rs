//! The table for a terminal.

use std::fmt::Write;

use super::super::results::Clock;
use super::super::{Reach, Results};
use super::{level_name, mib};

/// Widths of the columns of figures.
const WIDTH: usize = 10;

/// The whole table. Writing to a String cannot fail.
pub fn table(results: &Results) -> String {
    let mut out = String::new();
    head(results, &mut out);
    let mut levels: Vec<(usize, bool)> = results.levels().into_iter().map(|n| (n, false)).collect();
    if results.has_cold() {
        levels.push((1, true));
    }
    for (parallel, cold) in levels {
        for (clock, what) in [
            (Clock::First, "to the first line of the workload"),
            (Clock::Exit, "to its end, reaped"),
        ] {
            let _ = writeln!(out, "\nfork → {what}, ms, {}", level_name(parallel, cold));
            times(results, (parallel, cold, clock), &mut out);
        }
    }
    phases(results, &mut out);
    idle(results, &mut out);
    feet(results, &mut out);
    out
}

fn head(results: &Results, out: &mut String) {
    let env = &results.environment;
    let plan = &results.plan;
    let _ = writeln!(
        out,
        "workload {}, {} each, in random order (--seed {}); {} × {}, Linux {}, KVM {}",
        results.workload.name(),
        if plan.runs == 1 { "1 run".to_owned() } else { format!("{} runs", plan.runs) },
        plan.seed,
        env.cpus,
        env.cpu,
        env.kernel,
        env.kvm.word(),
    );
    if let Some(kernel) = results.guest_kernel() {
        let _ = writeln!(out, "the guests' kernel: {kernel}");
    }
    if let Some(caveat) = env.caveat() {
        let _ = writeln!(out, "! {caveat}");
    }
}

fn name_width(results: &Results) -> usize {
    results.entrants.iter().map(|entrant| entrant.name.len()).max().unwrap_or(0).max(8)
}

fn times(results: &Results, (parallel, cold, clock): (usize, bool, Clock), out: &mut String) {
    let width = name_width(results);
    let first = results.entrants.first().map_or("", |entrant| entrant.name);
    let ratio = format!("×{first}");
    let _ = writeln!(
        out,
        "{:width$} {:>WIDTH$} {:>WIDTH$} {:>WIDTH$} {:>WIDTH$} {:>6}",
        "", "p50", "p95", "p99", ratio, "runs"
    );
    let base = results.percentiles(0, parallel, cold, clock).map(|p| p.p50);
    for (n, entrant) in results.entrants.iter().enumerate() {
        let failed = match results.failed(n, parallel, cold) {
            0 => String::new(),
            failed => format!("  ({failed} failed)"),
        };
        let Some(p) = results.percentiles(n, parallel, cold, clock) else {
            let _ = writeln!(out, "{:width$} {:>WIDTH$}{failed}", entrant.name, "none");
            continue;
        };
        let ratio = base
            .filter(|base| *base > 0.0)
            .map_or("–".to_owned(), |base| format!("{:.2}", p.p50 / base));
        let _ = writeln!(
            out,
            "{:width$} {:>WIDTH$.2} {:>WIDTH$.2} {:>WIDTH$.2} {ratio:>WIDTH$} {:>6}{failed}",
            entrant.name, p.p50, p.p95, p.p99, p.count
        );
    }
}

fn phases(results: &Results, out: &mut String) {
    let level = results.levels().first().copied().unwrap_or(1);
    let traced =
        if results.has_traced() { "; VMs in runs of their own, with KVM traced" } else { "" };
    let level = level_name(level, false);
    let _ = writeln!(out, "\nwhere the time goes, ms (mean), {level}{traced}");
    let width = name_width(results);
    for (n, entrant) in results.entrants.iter().enumerate() {
        let phases = results.phases(n);
        let words = phases.iter().map(|(name, ms)| format!("{name} {ms:.2}"));
        let words = words.collect::<Vec<_>>().join(" → ");
        let _ = writeln!(out, "{:width$} {words}", entrant.name);
    }
}

fn idle(results: &Results, out: &mut String) {
    if results.idle.is_empty() {
        return;
    }
    let most = results.idle.iter().map(|idle| idle.count).max().unwrap_or(1);
    let width = name_width(results);
    let _ = writeln!(out, "\nidle, for each of {most}; isolation");
    let _ = writeln!(
        out,
        "{:width$} {:>WIDTH$} {:>WIDTH$} {:>WIDTH$}  {:>14} {:>8} {:>8}  namespaces of its own",
        "", "PSS, MiB", "taken, MiB", "disk, KiB", "filtered", "can call", "calls"
    );
    for (n, entrant) in results.entrants.iter().enumerate() {
        let Some(idle) = results.most_idle(n) else { continue };
        let each = |bytes: f64, unit: f64| {
            let each = bytes / unit / idle.count as f64;
            // No -0.00.
            format!("{:.2}", if each.abs() < 0.005 { 0.0 } else { each })
        };
        let unknown = || "unknown".to_owned();
        let mi = f64::from(1 << 20);
        let pss = idle.pss.map_or_else(unknown, |pss| each(pss as f64, mi));
        let taken = idle.taken.map_or_else(unknown, |taken| each(taken as f64, mi));
        let disk = idle.disk.map_or_else(unknown, |disk| each(disk as f64, 1024.0));
        let facts = results.isolation.iter().find(|facts| facts.entrant == n);
        let (filtered, reach, calls, namespaces) = facts.map_or_else(Default::default, |facts| {
            let (filtered, all) = facts.filtered;
            let namespaces = match facts.namespaces.as_slice() {
                [] => "none".to_owned(),
                some => some.join(" "),
            };
            let calls = facts.syscalls.map_or("–".to_owned(), |calls| calls.to_string());
            let reach = match facts.reach {
                Some(Reach::All) => "all".to_owned(),
                Some(Reach::Some(calls)) => calls.to_string(),
                Some(Reach::Unread) => "some".to_owned(),
                None => "–".to_owned(),
            };
            (format!("{filtered} of {all}"), reach, calls, namespaces)
        });
        let _ = writeln!(
            out,
            "{:width$} {pss:>WIDTH$} {taken:>WIDTH$} {disk:>WIDTH$}  {filtered:>14} {reach:>8} \
             {calls:>8}  {namespaces}",
            entrant.name
        );
    }
    let _ = writeln!(
        out,
        "PSS: of all processes of an instance, its monitor or shim and guest memory it has touched \
         included. taken: of the\nhost's MemAvailable. disk: what an instance writes to its own \
         directory; all share {:.1} MiB of files{}.\nfiltered: threads under a filter of system \
         calls, of all processes of an instance. can call: how many of the host's\nsystem calls \
         their filters leave to the workload's own process, and of a VM to its VMM (some: a filter \
         that only root\nmay read). calls: how many different ones a VMM makes (strace).",
        mib(results.files_bytes),
        results
            .kernel_bytes
            .map_or(String::new(), |bytes| format!(", VMs a kernel of {:.1} MiB too", mib(bytes))),
    );
    for line in daemons(results) {
        let _ = writeln!(out, "besides, for all instances of {line}");
    }
}

/// What serves all instances of an entrant, and what it takes: a line for each such entrant.
pub fn daemons(results: &Results) -> Vec<String> {
    let unknown = || "unknown".to_owned();
    let size = |pss: Option<u64>| pss.map_or_else(unknown, |pss| format!("{:.1}", mib(pss)));
    let entrants = results.entrants.iter().enumerate();
    let lines = entrants.filter_map(|(n, entrant)| {
        let mine = results.daemons.iter().filter(|daemon| daemon.entrant == n);
        let each = mine.map(|daemon| {
            let (without, with) = (size(daemon.pss.0), size(daemon.pss.1));
            format!("{} {without} MiB (PSS), {with} with {} idle", daemon.name, daemon.count)
        });
        let each: Vec<_> = each.collect();
        (!each.is_empty()).then(|| format!("{}: {}", entrant.name, each.join("; ")))
    });
    lines.collect()
}

fn feet(results: &Results, out: &mut String) {
    if !results.absent.is_empty() || !results.notes.is_empty() {
        out.push('\n');
    }
    for (name, why) in &results.absent {
        let _ = writeln!(out, "left out: {name}: {why}");
    }
    for note in &results.notes {
        let _ = writeln!(out, "note: {note}");
    }
}
