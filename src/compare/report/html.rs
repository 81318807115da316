//! One page that opens anywhere, without a network: tables, plots, and how to repeat it.

use std::fmt::Write;

use super::super::{CompareError, Results};
use super::{level_name, plots};
use crate::config::quoted;

const STYLE: &str = "body{font:15px/1.5 system-ui,sans-serif;max-width:60em;margin:2em auto;padding:0 1em;\
color:#222}h1,h2{line-height:1.2}h2{margin-top:2em}pre{background:#f4f4f4;padding:1em;overflow-x:auto;\
font-size:13px}svg{max-width:100%;height:auto}table{border-collapse:collapse;font-size:13px}\
td{border-top:1px solid #ddd;padding:.2em .6em;vertical-align:top}td:first-child{white-space:nowrap}\
code{word-break:break-all}.caveat{background:#fff3cd;border-left:4px solid #e0a800;padding:.6em 1em}";

/// The page. Writing to a String cannot fail.
///
/// # Errors
/// A plot cannot be drawn.
pub fn html(results: &Results) -> Result<String, CompareError> {
    let mut out = String::from("<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n");
    let _ = writeln!(out, "<meta charset=\"utf-8\"/>\n<title>husk compare</title>");
    let _ = writeln!(out, "<style>{STYLE}</style>\n</head>\n<body>\n<h1>husk compare</h1>");
    if let Some(caveat) = results.environment.caveat() {
        let _ = writeln!(out, "<p class=\"caveat\">{}</p>", escaped(&caveat));
    }
    let level = results.levels().first().copied().unwrap_or(1);
    let mut figures = vec![
        (
            format!(
                "fork → the workload's first line: share of the runs, {}",
                level_name(level, false)
            ),
            plots::distribution(results, level, false),
        ),
        (
            format!("where the time goes (mean), {}", level_name(level, false)),
            plots::phases(results),
        ),
        ("the first line against how many start at once".to_owned(), plots::parallelism(results)),
        ("memory against the number of idle instances".to_owned(), plots::memory(results)),
    ];
    if results.has_cold() {
        let title = format!("share of the runs, {}", level_name(1, true));
        figures.insert(1, (title, plots::distribution(results, 1, true)));
    }
    for (title, svg) in figures {
        let svg = svg.map_err(|e| {
            let source = std::io::Error::other(e.to_string());
            CompareError::Host { what: format!("drawing {title:?}"), source }
        })?;
        // Empty where there is nothing to draw.
        if !svg.is_empty() {
            let _ = writeln!(out, "<h2>{}</h2>\n{svg}", escaped(&title));
        }
    }
    let _ = writeln!(out, "<h2>figures</h2>\n<pre>{}</pre>", escaped(&results.table()));
    let _ = writeln!(out, "<h2>axis by axis</h2>\n<pre>{}</pre>", escaped(&results.axes()));
    let mut facts = results.environment.facts();
    facts.extend(results.guest_kernel().map(|kernel| ("guests' kernel".to_owned(), kernel)));
    rows("environment", facts, &mut out);
    let versions = results.entrants.iter().map(|e| (e.name.to_owned(), e.version.clone()));
    rows("versions", versions.collect(), &mut out);
    let commands = results.entrants.iter().map(|e| (e.name.to_owned(), e.command.clone()));
    rows("command of one instance", commands.collect(), &mut out);
    let _ = writeln!(out, "<h2>to repeat it</h2>\n<pre>{}</pre>", escaped(&again(results)));
    out.push_str("</body>\n</html>\n");
    Ok(out)
}

/// The command that measures the same again.
fn again(results: &Results) -> String {
    let plan = &results.plan;
    let list =
        |numbers: &[usize]| numbers.iter().map(usize::to_string).collect::<Vec<_>>().join(",");
    let names: Vec<_> = results.entrants.iter().map(|entrant| entrant.name).collect();
    let kernel = results
        .kernel
        .as_ref()
        .map_or(String::new(), |kernel| format!(" --kernel {}", quoted(&kernel.to_string_lossy())));
    let append = match plan.append.as_str() {
        "" => String::new(),
        words => format!(" --append {}", quoted(words)),
    };
    format!(
        "husk compare --with {} --runs {} --parallel {} --workload {} --idle {} --seed {}{}{kernel}{append}",
        names.join(","),
        plan.runs,
        list(&plan.parallel),
        results.workload.name(),
        plan.idle,
        plan.seed,
        if plan.cold { " --cold" } else { "" },
    )
}

fn rows(title: &str, rows: Vec<(String, String)>, out: &mut String) {
    let _ = writeln!(out, "<h2>{}</h2>\n<table>", escaped(title));
    for (name, value) in rows {
        let _ = writeln!(
            out,
            "<tr><td>{}</td><td><code>{}</code></td></tr>",
            escaped(&name),
            escaped(&value)
        );
    }
    out.push_str("</table>\n");
}

/// `text` as HTML has it: what programs and files say of themselves is no markup. A space stands for
/// other control characters.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\n' => out.push(c),
            c if c.is_control() => out.push(' '),
            c => out.push(c),
        }
    }
    out
}
