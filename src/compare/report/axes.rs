//! "How is a container different from a virtual machine?", axis by axis: what was measured here, or a
//! plain "not yet" where husk has no answer.

use std::fmt::Write;

use super::super::contestants::Family;
use super::super::results::Clock;
use super::super::{Entrant, Reach, Results};
use super::mib;
use super::table::daemons;

/// The text. Writing to a String cannot fail.
pub fn axes(results: &Results) -> String {
    let mut out = String::new();
    if let Some(caveat) = results.environment.caveat() {
        let _ = writeln!(out, "! {caveat}");
    }
    for (axis, lines) in [
        ("start-up", start(results)),
        ("resources", resources(results)),
        ("isolation", isolation(results)),
        ("portability", portability(results)),
        ("management", management()),
        ("scale", scale(results)),
    ] {
        let _ = writeln!(out, "{axis}");
        for (who, what) in lines {
            let _ = writeln!(out, "  {who:<18}{what}");
        }
    }
    out
}

type Lines = Vec<(String, String)>;

/// A line for every entrant that `of` has something to say of.
fn each(results: &Results, of: impl Fn(usize, &Entrant) -> Option<String>) -> Lines {
    let entrants = results.entrants.iter().enumerate();
    entrants.filter_map(|(n, entrant)| Some((entrant.name.to_owned(), of(n, entrant)?))).collect()
}

fn start(results: &Results) -> Lines {
    let level = results.levels().first().copied().unwrap_or(1);
    each(results, |n, _| {
        let first = results.percentiles(n, level, false, Clock::First)?.p50;
        let exit = results.percentiles(n, level, false, Clock::Exit)?.p50;
        Some(format!("{first:.1} ms to the workload's first line, {exit:.1} ms to its end (p50)"))
    })
}

fn resources(results: &Results) -> Lines {
    let lines = each(results, |n, _| {
        let idle = results.most_idle(n)?;
        let count = idle.count as f64;
        let memory = idle.pss.map_or("memory unknown".to_owned(), |pss| {
            format!("{:.2} MiB of memory", mib(pss) / count)
        });
        let disk = idle.disk.map_or("disk unknown".to_owned(), |disk| {
            format!("{:.1} KiB of disk", disk as f64 / 1024.0 / count)
        });
        Some(format!("{memory} and {disk} for each of {} idle ones", idle.count))
    });
    let shared = daemons(results).into_iter().map(|line| ("shared".to_owned(), line));
    or_not_measured(lines.into_iter().chain(shared).collect())
}

fn isolation(results: &Results) -> Lines {
    let lines = each(results, |n, entrant| {
        let facts = results.isolation.iter().find(|facts| facts.entrant == n)?;
        let threads = match facts.filtered {
            (filtered, all) if filtered == all => "all threads under a filter".to_owned(),
            (filtered, all) => format!("{filtered} of {all} threads under a filter"),
        };
        let filter = match (facts.reach, entrant.family) {
            (Some(Reach::All), Family::Vm) if facts.filtered.0 > 0 => {
                format!("{threads}, which leaves it all")
            }
            (Some(Reach::All), _) => "no filter of system calls".to_owned(),
            (Some(Reach::Some(n)), Family::Vm) => format!("{threads}, which leaves it {n}"),
            (Some(Reach::Some(n)), _) => format!("a filter leaves the workload {n} system calls"),
            (Some(Reach::Unread), _) => "under a filter of system calls".to_owned(),
            (None, _) => threads,
        };
        Some(match entrant.family {
            Family::Process => format!("the host's kernel and everything of its user's; {filter}"),
            Family::Container => format!(
                "the host's kernel; namespaces of its own: {}; {filter}",
                facts.namespaces.join(", ")
            ),
            Family::Vm => {
                let calls = facts.syscalls.map_or("not measured".to_owned(), |n| n.to_string());
                format!("a kernel of its own; different system calls of the VMM: {calls}; {filter}")
            }
        })
    });
    or_not_measured(lines)
}

fn portability(results: &Results) -> Lines {
    let files = format!("{:.1} MiB of files", mib(results.files_bytes));
    let kernel = results
        .kernel_bytes
        .map_or("a kernel".to_owned(), |bytes| format!("a kernel of {:.1} MiB", mib(bytes)));
    vec![
        ("containers".to_owned(), format!("any Linux with their runtime; {files}")),
        (
            "husk".to_owned(),
            format!(
                "x86-64 Linux with KVM (here: {}); {files} and {kernel}, whatever the host's; other \
                 processors: not yet",
                results.environment.kvm.word()
            ),
        ),
    ]
}

fn management() -> Lines {
    vec![
        (
            "containers".to_owned(),
            "images, registries, orchestration, by the OCI's formats".to_owned(),
        ),
        (
            "husk".to_owned(),
            "a command line, a file of JSON, a library; OCI images and an OCI runtime's command \
             line: not yet"
                .to_owned(),
        ),
    ]
}

fn scale(results: &Results) -> Lines {
    let levels = results.levels();
    let (Some(&low), Some(&high)) = (levels.first(), levels.last()) else { return Vec::new() };
    each(results, |n, _| {
        let at = |level| results.percentiles(n, level, false, Clock::First).map(|p| p.p50);
        let speed = match (at(low), at(high)) {
            (Some(a), Some(b)) if low != high => {
                format!("{a:.1} ms with {low} at once, {b:.1} ms with {high}")
            }
            (Some(a), _) => format!("{a:.1} ms with {low} at once, more: not measured"),
            _ => "not measured".to_owned(),
        };
        let fit = results.most_idle(n).and_then(|idle| {
            let each = idle.pss.filter(|pss| *pss > 0)? / idle.count as u64;
            Some(format!(
                "; by PSS {} idle ones fill this host",
                results.environment.memory / each.max(1)
            ))
        });
        Some(speed + &fit.unwrap_or_default())
    })
}

fn or_not_measured(lines: Lines) -> Lines {
    if lines.is_empty() {
        vec![("all".to_owned(), "not measured (--idle 0)".to_owned())]
    } else {
        lines
    }
}
