//! Whether this machine's KVM boots Linux. husk's own doctor is asked; any answer but a clear yes
//! is a no, with the reason.

use std::path::Path;
use std::time::Duration;

use serde_json::Value;

use crate::{host, limited};

/// Where a guest with Linux is to run.
pub enum Place {
    /// On this machine's own KVM.
    Here,
    /// In the testbed, because of this.
    Testbed(String),
}

/// Asks `husk doctor --json`.
pub fn ask(husk: &Path) -> Place {
    let mut doctor = host::command(husk);
    doctor.args(["doctor", "--json"]);
    let answer = match limited::run(&mut doctor, Duration::from_secs(60), false) {
        Ok(answer) => answer,
        Err(error) => return Place::Testbed(format!("husk doctor did not run: {error:#}")),
    };
    judge(answer.status(), &answer.text())
}

fn judge(status: u8, text: &str) -> Place {
    // Warnings on standard error may stand before and after the object.
    let object = text.find('{').zip(text.rfind('}')).and_then(|(from, to)| text.get(from..=to));
    let report: Option<Value> = object.and_then(|object| serde_json::from_str(object).ok());
    match report.as_ref().and_then(|r| r.get("linux_boots")).and_then(Value::as_bool) {
        Some(true) if status == 0 => Place::Here,
        Some(_) => Place::Testbed("husk doctor finds that Linux cannot boot here".to_owned()),
        None => Place::Testbed(format!("husk doctor gave no answer (exit status {status})")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_clear_yes_is_a_yes() {
        assert!(matches!(judge(0, r#"{"linux_boots": true, "checks": [{}]}"#), Place::Here));
        assert!(matches!(judge(0, "warn\n{\"linux_boots\":true}\n"), Place::Here));
        assert!(matches!(judge(1, r#"{"linux_boots": true}"#), Place::Testbed(_)));
        assert!(matches!(judge(0, r#"{"linux_boots": false}"#), Place::Testbed(_)));
        assert!(matches!(judge(0, r#"{"linux_boots": "true"}"#), Place::Testbed(_)));
        assert!(matches!(judge(0, ""), Place::Testbed(_)));
        assert!(matches!(judge(101, "thread panicked"), Place::Testbed(_)));
    }
}
