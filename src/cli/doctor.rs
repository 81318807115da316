//! `husk doctor`: can Linux boot here, and if not, what would help?

use std::fmt::Write;

use clap::Args;
use husk::doctor::{Report, Status};

use super::Error;

/// Exit status when Linux cannot boot here.
const CANNOT_BOOT: u8 = 1;

/// Say whether Linux can boot here, and what would help; exit status 0 means it can
#[derive(Args)]
pub struct Doctor {
    /// Print the report as JSON
    #[arg(long)]
    json: bool,
}

impl Doctor {
    /// Examines this host and prints the report.
    pub fn execute(self) -> Result<u8, Error> {
        let report = husk::doctor::examine();
        let text = match self.json {
            true => serde_json::to_string_pretty(&report)? + "\n",
            false => super::stderr::plain(&table(&report)),
        };
        super::stdout::print(&text)?;
        Ok(if report.linux_boots { 0 } else { CANNOT_BOOT })
    }
}

/// The report for people: a line a check, what helps beneath it, the conclusion at the end.
fn table(report: &Report) -> String {
    let width = report.checks.iter().map(|c| c.name.chars().count()).max().unwrap_or(0);
    let mut text = String::new();
    for (n, check) in report.checks.iter().enumerate() {
        let mark = match check.status {
            Status::Ok => '✓',
            Status::Warn => '!',
            Status::Fail => '✗',
        };
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{mark} {:width$}  {}", check.name, check.detail);
        // What helps against several things is said once.
        let said = report.checks.iter().take(n).any(|before| before.remedy == check.remedy);
        let _ = match &check.remedy {
            Some(_) if said => writeln!(text, "  {:width$}  → as above", ""),
            Some(remedy) => writeln!(text, "  {:width$}  → {remedy}", ""),
            None => Ok(()),
        };
    }
    let count = |status| report.checks.iter().filter(|c| c.status == status).count();
    let _ = match (count(Status::Fail), count(Status::Warn)) {
        (0, 0) => writeln!(text, "\nLinux can boot here."),
        (0, warnings) => writeln!(text, "\nLinux can boot here. Optional and missing: {warnings}."),
        (fails, _) => writeln!(text, "\nLinux cannot boot here: {fails} of the above (✗)."),
    };
    text
}

#[cfg(test)]
mod tests {
    use husk::doctor::Check;

    use super::*;

    fn check(name: &str, status: Status, remedy: Option<&str>) -> Check {
        Check {
            name: name.to_owned(),
            status,
            detail: "found".to_owned(),
            remedy: remedy.map(str::to_owned),
        }
    }

    fn report(checks: Vec<Check>) -> Report {
        Report {
            linux_boots: checks.iter().all(|c| c.status != Status::Fail),
            native: None,
            kvm_api_version: None,
            max_vcpus: None,
            speed: None,
            host_kernel: String::new(),
            checks,
        }
    }

    #[test]
    fn a_line_has_its_mark_and_the_remedy_stands_beneath() {
        let checks = vec![
            check("/dev/kvm", Status::Ok, None),
            check("TAP", Status::Warn, Some("make one")),
            check("INT3", Status::Fail, Some("go elsewhere")),
        ];
        let expected = "✓ /dev/kvm  found\n\
                        ! TAP       found\n\
                        \x20           → make one\n\
                        ✗ INT3      found\n\
                        \x20           → go elsewhere\n\
                        \n\
                        Linux cannot boot here: 1 of the above (✗).\n";
        assert_eq!(table(&report(checks)), expected);
    }

    #[test]
    fn what_helps_against_several_things_is_said_once() {
        let checks = vec![
            check("INT3", Status::Fail, Some("go elsewhere")),
            check("TAP", Status::Warn, Some("make one")),
            check("XRSTOR", Status::Fail, Some("go elsewhere")),
        ];
        let text = table(&report(checks));
        assert_eq!(text.matches("go elsewhere").count(), 1, "{text}");
        assert!(text.contains("✗ XRSTOR  found\n          → as above\n"), "{text}");
    }

    #[test]
    fn the_last_line_is_the_conclusion() {
        let healthy = table(&report(vec![check("/dev/kvm", Status::Ok, None)]));
        assert!(healthy.ends_with("\nLinux can boot here.\n"));
        let warned = table(&report(vec![check("TAP", Status::Warn, Some("x"))]));
        assert!(warned.ends_with("Linux can boot here. Optional and missing: 1.\n"));
    }
}
