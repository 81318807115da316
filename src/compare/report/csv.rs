//! Every run, a line each, for whoever trusts no summary.

use std::fmt::Write;
use std::time::Duration;

use super::super::Results;
use super::super::results::ms;

/// The columns. Times in ms from the fork of the launcher; empty where they were not measured.
const HEAD: &str = "contestant,family,kvm,workload,caches,traced,parallel,round,instance,\
                    kvm_run_ms,kernel_ms,init_ms,first_ms,exit_ms,error";

/// The text (RFC 4180, but for the ends of lines). Writing to a String cannot fail.
pub fn csv(results: &Results) -> String {
    let mut out = format!("{HEAD}\n");
    for run in &results.runs {
        let Some(entrant) = results.entrants.get(run.entrant) else { continue };
        let caches = if run.cold { "cold" } else { "warm" };
        let traced = if run.traced { "yes" } else { "no" };
        let _ = write!(
            out,
            "{},{},{},{},{caches},{traced},{},{},{},",
            entrant.name,
            entrant.family.name(),
            results.environment.kvm.word(),
            results.workload.name(),
            run.parallel,
            run.round,
            run.instance,
        );
        let field =
            |time: Option<Duration>| time.map_or(String::new(), |t| format!("{:.3}", ms(t)));
        let _ = match &run.outcome {
            Ok(m) => writeln!(
                out,
                "{},{},{},{},{},",
                field(m.kvm_run),
                field(m.kernel),
                field(m.init),
                field(Some(m.first)),
                field(Some(m.exit))
            ),
            Err(why) => writeln!(out, ",,,,,{}", quoted(why)),
        };
    }
    out
}

fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace('"', "\"\"").replace(['\n', '\r'], " "))
}
